"""Imports point one way, and `import perceptio` is light."""

import ast
import subprocess
import sys

import pytest
from conftest import MODULES, NOTEBOOKS, ROOT, module_name, tree

ORDER = [name for name in map(module_name, NOTEBOOKS) if name]


def imported(path):
    "Modules of this package that a module imports, anywhere in it."
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            yield from [node.module] if node.module else [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("perceptio."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from [a.name.split(".")[1] for a in node.names if a.name.startswith("perceptio.")]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_a_module_imports_only_from_earlier_notebooks(path):
    later = [name for name in imported(path) if ORDER.index(name) >= ORDER.index(path.stem)]
    assert not later


def run(code):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


HEAVY = ("torch", "transformers", "sam2", "peft", "accelerate", "numpy", "pandas", "matplotlib", "IPython")


@pytest.mark.parametrize("module", ["perceptio", "perceptio.settings", "perceptio.record"])
def test_light(module):
    assert run(f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])") == "[]"


def test_import_takes_less_than_half_a_second():
    assert float(run("import time; t = time.perf_counter(); import perceptio; print(time.perf_counter() - t)")) < 0.5


def test_lazy_names():
    assert run("import perceptio; print(perceptio.Settings.load('8B').lr)") == "4e-05"
    assert "Perceptio" in run("import perceptio; print(dir(perceptio))")
    with pytest.raises(AssertionError, match="cannot import name 'Percepto'"):
        run("from perceptio import Percepto")
