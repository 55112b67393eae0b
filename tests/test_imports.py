"""Imports point one way, and `import perceptio` is light."""

import ast
import functools
import re
import subprocess
import sys

import pytest
from conftest import MODULES, NOTEBOOKS, ROOT, cells, dotted, module_name, source, tree

ORDER = [name for name in map(module_name, NOTEBOOKS) if name]


def imported(path):
    "Modules of this package that a module imports, anywhere in it: method.losses, ..."
    for node in ast.walk(tree(path)):
        names = []
        if isinstance(node, ast.ImportFrom):
            here = ("perceptio", path.parent.name)[: 3 - node.level] if node.level else ()
            names = [".".join([*here, node.module] if node.module else here)]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        for name in names:
            if name.split(".")[0] == "perceptio" and name != "perceptio":
                _, floor, *module = name.split(".")
                yield from [f"{floor}.{module[0]}"] if module else [f"{floor}.{a.name}" for a in node.names]


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_a_module_imports_only_from_earlier_notebooks(path):
    "And so a folder imports only from itself and from those before it in FLOORS."
    later = [name for name in imported(path) if ORDER.index(name) >= ORDER.index(dotted(path))]
    assert not later


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("from .losses import token_loss", ["method.losses"]),
        ("from ..core.files import lock", ["core.files"]),
        ("from perceptio.world.scenes import Scene", ["world.scenes"]),
        ("from perceptio.world import scenes", ["world.scenes"]),
        ("import perceptio.train.run as run", ["train.run"]),
        ("def f():\n    from ..report.paper import reported", ["report.paper"]),
        ("import perceptio, torch\nfrom pathlib import Path", []),
    ],
)
def test_imports_are_seen(tmp_path, line, found):
    path = tmp_path / "method" / "model.py"
    path.parent.mkdir()
    path.write_text(line)
    assert list(imported(path)) == found


def defined(path):
    "Names that a module itself defines at its top."
    for node in tree(path).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]


@functools.cache
def homes():
    return {dotted(path): set(defined(path)) for path in MODULES}


def trees(path):
    "The syntax trees of a file: of each code cell, or of the whole."
    if path.suffix == ".py":
        return [tree(path)]
    kept = [source(c) for c in cells(path) if c["cell_type"] == "code"]
    return [ast.parse(re.sub(r"^(\s*)[%!].*", r"\1pass", text, flags=re.M)) for text in kept]


@pytest.mark.parametrize("path", [*NOTEBOOKS, *ROOT.glob("tests/**/*.py")], ids=lambda p: p.stem)
def test_a_name_is_imported_from_where_it_is_defined(path):
    "No module hands on a name of another: one place to import it from."
    nodes = [n for t in trees(path) for n in ast.walk(t) if isinstance(n, ast.ImportFrom)]
    found = [
        (n.module.partition(".")[2], a.name)
        for n in nodes
        if (n.module or "").count(".") == 2 and n.module.startswith("perceptio.")
        for a in n.names
    ]
    assert [f"{module}.{name}" for module, name in found if name not in homes()[module]] == []


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_a_module_offers_only_what_it_defines(path):
    lists = [n for n in tree(path).body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"]
    assert set(ast.literal_eval(lists[0].value)) <= homes()[dotted(path)]


def test_no_public_name_stands_in_two_modules():
    "One name, one thing: the same job is done once, and another job has another name."
    where = {}
    for module, names in homes().items():
        for name in names:
            if not name.startswith("_"):  # private to its module, or Python's own
                where.setdefault(name, []).append(module)
    assert {name: modules for name, modules in where.items() if len(modules) > 1} == {}


def run(code):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


HEAVY = ("torch", "transformers", "sam2", "peft", "accelerate", "numpy", "pandas", "matplotlib", "IPython")


@pytest.mark.parametrize("module", ["perceptio", "perceptio.core.settings", "perceptio.core.record"])
def test_light(module):
    assert run(f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])") == "[]"


def test_import_takes_less_than_half_a_second():
    assert float(run("import time; t = time.perf_counter(); import perceptio; print(time.perf_counter() - t)")) < 0.5


def test_lazy_names():
    assert run("import perceptio; print(perceptio.Settings.load('8B').lr)") == "4e-05"
    assert "Perceptio" in run("import perceptio; print(dir(perceptio))")
    with pytest.raises(AssertionError, match="cannot import name 'Percepto'"):
        run("from perceptio import Percepto")
