"""What installation relies on. What needs a network is in installs.py, which .ci/run runs."""

import ast
import functools
import importlib.metadata
import re
import sys
import tomllib

import installs
import pytest
from conftest import MODULES, ROOT, tree
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from packaging.markers import default_environment
from packaging.requirements import Requirement

from perceptio.core.optional import OPTIONAL

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
PINNED = {installs.plain(name): version for name, version in PINS.items()}
BASE, EXTRAS = PROJECT["project"]["dependencies"], PROJECT["project"]["optional-dependencies"]


def test_constraints_are_names_and_exact_versions_only():
    for name, version in PINS.items():
        assert re.fullmatch(r"[\w.-]+", name) and re.fullmatch(r"\d[\w.]*", version), f"{name}=={version}"


@functools.cache
def requires(name):
    return [Requirement(r) for r in importlib.metadata.requires(name) or []]


def closure(requirements, **environment):
    """Name -> the requirements it has to satisfy, by the metadata of what is installed here and the markers of another
    Python."""
    found, todo, done, here = {}, [(Requirement(r), "") for r in requirements], set(), default_environment()
    while todo:
        requirement, extra = todo.pop()
        if requirement.marker and not requirement.marker.evaluate(here | environment | dict(extra=extra)):
            continue
        name = installs.plain(requirement.name)
        found.setdefault(name, []).append(requirement)
        for each in {"", *requirement.extras} - {e for n, e in done if n == name}:
            done.add((name, each))
            todo += [(r, each) for r in requires(name)]
    return found


@pytest.mark.parametrize("version", ["3.11.0", "3.11.2", "3.11.9", "3.12.3", "3.13.1"])
def test_pins_are_complete_and_agree_on_every_python(version):
    """pip's own resolution is checked in installs.py, with the markers of the Python that runs it; here they are
    evaluated for each."""
    python = dict(python_version=version.rpartition(".")[0], python_full_version=version)
    for name, requirements in closure([*BASE, *EXTRAS["dev"], *EXTRAS["eval"], *EXTRAS["docs"]], **python).items():
        assert name in PINNED, f"{name} is not pinned"
        assert importlib.metadata.version(name).split("+")[0] == PINNED[name], f"{name} is not the tested one"
        assert [str(r) for r in requirements if not r.specifier.contains(PINNED[name], prereleases=True)] == [], name
        needs = importlib.metadata.metadata(name)["Requires-Python"] or ""
        assert Requirement(f"python{needs}").specifier.contains(version), f"{name} {PINNED[name]} needs Python {needs}"


def test_sam2_and_lmms_eval_are_installed_by_themselves():
    "As dependencies they would pull torchvision, and sam2 would build beside a second copy of torch."
    assert {"sam2", "lmms-eval"} & set(closure([*BASE, *EXTRAS["dev"], *EXTRAS["eval"], *EXTRAS["docs"]])) == set()
    makefile = (ROOT / "Makefile").read_text()
    assert (
        "SAM2_BUILD_CUDA=0 $(BIN)/python -m pip install --no-deps --no-build-isolation --constraint constraints.txt "
        "sam2" in makefile
    )
    assert "pip install --no-deps --constraint constraints.txt lmms-eval" in makefile


def test_documented_lines_name_the_tested_versions():
    lines = [arguments for _, _, arguments in installs.documented()]
    named = [pair for line in lines for pair in re.findall(r"([\w-]+)==([\d.]+)", line)]
    assert {name for name, _ in named} == {"sam2", "lmms-eval", "torch", "torchvision"}
    assert [name for name, version in named if PINNED.get(name, version) != version] == []


def test_a_line_that_is_not_understood_is_an_error(monkeypatch, tmp_path):
    (tmp_path / "README.md").write_text("`pip install a` and pip install `b`")
    monkeypatch.setattr(installs, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match="is not understood"):
        installs.documented()


def test_a_line_that_would_change_the_tested_environment_is_an_error(monkeypatch):
    """trackio by itself asks for a pillow older than the tested one, and the old line for lmms-eval brought another
    torch."""
    assert ("", "other/bin/", '"transformers>=5.23" torch==2.13.0 torchvision==0.28.0 pillow') in installs.documented()
    asked = []
    monkeypatch.setattr(installs, "would_install", lambda *words, env: asked.append(words) or {"pillow": "12.3.0"})
    with pytest.raises(SystemExit, match="`pip install -e '.*' trackio` changes .* pillow 13.0.0 -> 12.3.0"):
        installs.check_line(("A=1", ".venv/bin/", "-e '.[eval]' trackio"), "a.whl")
    assert installs.check_line(("", "other/bin/", "trackio"), "a.whl") == "pip install trackio: 1 packages"
    assert asked == [("a.whl[eval]", "trackio"), ("--ignore-installed", "trackio")]


def test_what_is_imported_is_a_dependency_or_optional_by_name():
    """Every import of the package: from Python itself, from what pip installs with it, or from a package that `require`
    asks for."""
    homes, installed = importlib.metadata.packages_distributions(), set(closure(BASE))
    names = set()
    for path in MODULES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Import):
                names |= {a.name.split(".")[0] for a in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module.split(".")[0])
    allowed = set(sys.stdlib_module_names) | {"perceptio"} | {part.module for part in OPTIONAL.values()}
    missing = [n for n in names - allowed if not {installs.plain(d) for d in homes.get(n, [])} & installed]
    assert missing == []


def test_bars_in_a_kernel_are_widgets():
    "Without ipywidgets tqdm warns in the first cell that imports it, and bars are text."
    spec = dict(name="python3", language="python", display_name="python3")
    cell = new_code_cell("from tqdm.auto import tqdm\nfor _ in tqdm(range(3)):\n    pass")
    done = NotebookClient(new_notebook(cells=[cell], metadata=dict(kernelspec=spec))).execute()
    assert [list(o.data) for o in done.cells[0].outputs] == [["text/plain", "application/vnd.jupyter.widget-view+json"]]


def test_the_wheel_carries_settings():
    assert PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"] == {
        "settings.ini": "perceptio/settings.ini",
        "data/paper/reported_results.json": "perceptio/reported_results.json",
    }


def test_committed_weights_are_small():
    bases = ROOT / "data" / "checkpoints"
    assert sum(p.stat().st_size for name in ("tiny-base", "heights-base") for p in (bases / name).rglob("*")) <= 20e6
