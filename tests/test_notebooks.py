"""Notebooks are safe to run with parameters, and clean enough to be read as a diff."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import FLOORS, MODULES, NOTEBOOKS, READ, ROOT, cells, dotted, module_name, source
from executed import faults
from papermill.inspection import inspect_notebook
from papermill.log import logger

PAPERMILL = [p for p in NOTEBOOKS if module_name(p) is None and p.stem not in READ]
LIBRARY = [p for p in NOTEBOOKS if module_name(p) is not None]
NOISE = {
    "an absolute path": r"(?<![\w.])/(home|root|work|tmp|usr|opt|Users|var)/\w",
    "an object's address": r"\bat 0x[0-9a-f]{6,}",
    "a progress bar": r"\d+%\|.*\||\bit/s\b|\bs/it\b",
    "a timing": r"(?i)\b(wall time|cpu times|elapsed)\b",
    "a process": r"\bprocess \d+ on \S+ since\b",
}


def name(path):
    return path.stem


def text_outputs(cell):
    "All text a cell has saved; pictures are left out."
    for output in cell.get("outputs", []):
        yield from output.get("text", [])
        for kind, data in output.get("data", {}).items():
            if not kind.startswith("image/png"):
                yield from data if isinstance(data, list) else [data if isinstance(data, str) else json.dumps(data)]


@pytest.mark.parametrize("path", PAPERMILL, ids=name)
def test_parameters(path):
    code = [c for c in cells(path) if c["cell_type"] == "code"]
    tagged = [i for i, c in enumerate(code) if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1, "exactly one cell is tagged `parameters`"
    assert "check_parameters(globals())" in source(code[tagged[0] + 1]), "the next code cell is the guard"
    text = source(code[tagged[0]])
    for node in ast.parse(text).body:
        line = text.splitlines()[node.end_lineno - 1]
        assert isinstance(node, ast.AnnAssign), f"`{line}` gives a type"
        ast.literal_eval(node.value)  # a derived value would be computed before papermill's override
        assert "  # " in line, f"`{line}` says what it is"


@pytest.mark.parametrize("path", PAPERMILL, ids=name)
def test_papermill_sees_every_parameter(path, caplog):
    "Its parser reads line by line and gives up at a second `=`: then it warns of an unknown parameter that exists."
    text = source(next(c for c in cells(path) if "parameters" in c["metadata"].get("tags", [])))
    lines = {n.target.id: text.splitlines()[n.lineno - 1] for n in ast.parse(text).body}
    with caplog.at_level("WARNING", logger.name):
        seen = inspect_notebook(str(path))
    assert caplog.messages == []
    assert {k: f"{k}: {v['inferred_type_name']} = {v['default']}  # {v['help']}" for k, v in seen.items()} == lines


@pytest.mark.parametrize("path", PAPERMILL, ids=name)
def test_papermill_notebooks_keep_no_outputs(path):
    assert not any(c.get("outputs") for c in cells(path))


@pytest.mark.parametrize("path", LIBRARY, ids=name)
def test_title_is_the_module_and_says_its_purpose(path):
    first = source(cells(path)[0])
    title = re.match(r"# (\S.*)\n+> \S", first)
    assert title, "the first cell is `# title` and `> purpose`"
    assert title[1] == module_name(path).partition(".")[2]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_format(path):
    whole = json.loads(path.read_text(encoding="utf-8"))
    assert whole["metadata"]["kernelspec"]["name"] == "python3"
    assert all(c.get("execution_count") is None for c in whole["cells"])
    assert len({c["id"] for c in whole["cells"]}) == len(whole["cells"])
    assert path.stat().st_size < 400_000, (
        "few pictures, each shown by core.display.show_picture, whose palette makes them small"
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_outputs_are_the_same_everywhere(path):
    for cell in cells(path):
        for text in text_outputs(cell):
            for what, pattern in NOISE.items():
                assert not re.search(pattern, text), f"a saved output holds {what}: {text[:200]!r}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_every_kept_picture_says_what_it_shows(path):
    "Who cannot see a picture reads the line `#| fig-alt: words` of its cell, and the documentation site shows it."
    for cell in cells(path):
        if any(kind.startswith("image/") for o in cell.get("outputs", []) for kind in o.get("data", {})):
            assert re.search(r"^#\| fig-alt: \S+ \S+", source(cell), re.M), source(cell)[:200]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_pictures_have_one_style(path):
    "Charts are made by core.display.charts, images and maps drawn by its draw_image, kept ones as one PNG each."
    for cell in cells(path):
        code = source(cell) if cell["cell_type"] == "code" else ""
        assert not re.search(r"^\s*import matplotlib\.pyplot", code, re.M), (
            f"a chart in matplotlib's own style: {code[:200]}"
        )
        assert path.stem == "12_display" or not re.search(r"""cmap=(?!"Greys")""", code), f"own colours: {code[:200]}"
        assert not re.search(r"show_picture\([^\n]*dpi=[1-9]?[0-9]\b", code), f"too coarse to be read: {code[:200]}"
        for output in cell.get("outputs", []):
            assert "image/jpeg" not in output.get("data", {}), f"one picture kept twice: {code[:200]}"


def anchors(path):
    "Headings of a notebook as JupyterLab makes anchors of them."
    lines = "\n".join(source(c) for c in cells(path) if c["cell_type"] == "markdown").splitlines()
    return {re.sub(r"[`*]", "", line.lstrip("# ")).replace(" ", "-") for line in lines if re.match("#+ ", line)}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_links_between_notebooks_lead_to_a_heading(path):
    for cell in cells(path):
        if cell["cell_type"] == "markdown":
            for link in re.findall(r"\]\(([^)#:]*\.ipynb(?:#[^)]*)?)\)", source(cell)):
                name, _, anchor = link.partition("#")
                assert (target := path.parent / name).is_file(), f"{link}: there is no such notebook"
                assert not anchor or anchor in anchors(target), f"{link}: headings are {sorted(anchors(target))}"


def test_every_notebook_lies_on_top_or_on_a_floor():
    "What is run lies on top, what is read lies in the folder that its module is exported to."
    there = {
        p.relative_to(ROOT / "nbs") for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts
    }
    assert there == {p.relative_to(ROOT / "nbs") for p in NOTEBOOKS}
    for path in LIBRARY:
        floor, _, module = module_name(path).partition(".")
        assert (floor, module) == (path.parent.name, path.stem.partition("_")[2]), path
    for floor in FLOORS:
        numbers = [int(p.stem.partition("_")[0]) for p in LIBRARY if p.parent.name == floor]
        assert numbers == list(range(1, len(numbers) + 1)), floor


def test_one_notebook_per_module():
    names = [module_name(p) for p in LIBRARY]
    assert len(set(names)) == len(names)
    assert set(names) == set(map(dotted, MODULES))


def test_clean_keeps_the_parameters_tag(tmp_path):
    "By default nbdev_clean deletes it, and papermill's values are then silently overwritten by the defaults."
    cell = dict(
        cell_type="code", id="a1", metadata=dict(tags=["parameters"], scrolled=True), source=["n: int = 1  # a number"]
    )
    whole = dict(
        cells=[cell | dict(outputs=[], execution_count=3)],
        metadata=dict(kernelspec=dict(name="python3", language="python", display_name="Python 3")),
        nbformat=4,
        nbformat_minor=5,
    )
    path = tmp_path / "one.ipynb"
    path.write_text(json.dumps(whole))
    subprocess.run([Path(sys.executable).parent / "nbdev_clean", "--fname", path], cwd=ROOT, check=True)
    assert cells(path)[0]["metadata"] == dict(tags=["parameters"])
    assert cells(path)[0]["execution_count"] is None


def shown(kind, data, **metadata):
    return dict(output_type="display_data", data={kind: data}, metadata=metadata)


@pytest.mark.parametrize(
    "output, words",
    [
        (shown("text/plain", "steps: 100%|##| 3/3"), None),
        (shown("image/png", "", **{"image/png": dict(alt="a curve")}), None),
        (shown("image/png", ""), "a picture without words"),
        (shown("text/html", "<td>nan</td>"), "a cell of a table that says NaN"),
        (shown("text/html", ["<td >None</td>"]), "a cell of a table that says NaN"),
        (shown("text/html", '<table class="dataframe">'), "a table that is not styled"),
        (shown("text/plain", ["lr 1", "dtype: object"]), "dtype: of a raw column"),
        (shown("application/vnd.jupyter.widget-view+json", {}), "a widget, which shows nothing without a kernel"),
        (dict(output_type="stream", name="stderr", text="a 1%|# |a 2%|##|"), "a progress bar of 2 lines"),
    ],
)
def test_faults_of_an_executed_notebook_are_seen(output, words):
    "What tests/executed.py asks of train.ipynb, which .ci/run executes."
    assert faults(dict(cells=[dict(outputs=[output])])) == ([words] if words else [])


def test_many_streams_are_a_fault():
    stream = dict(output_type="stream", name="stderr", text="a remark")
    assert faults(dict(cells=[dict(outputs=[stream] * 4)])) == ["4 streams of text, 3 at most"]
