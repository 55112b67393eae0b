"""The guard of a parametrised notebook, through the real papermill: the failures it is there for exit with 0 without
it."""

import json

import nbformat
import papermill
import pytest
from conftest import ROOT
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from perceptio.core.record import Run
from perceptio.core.settings import Settings

PARAMETERS = 'size: str = "tiny"  # a size\nsteps: int = 1  # how many'
END = 'import json, pathlib\npathlib.Path(out).write_text(json.dumps([notebook_size(size), steps, run_dir("x").name]))'


@pytest.fixture
def notebook(tmp_path):
    "A notebook shaped like ours; what it found ends in result.json."
    cells = [
        new_code_cell(
            "from perceptio.core.notebook import check_parameters, run_dir\n"
            "from perceptio.core.parameters import notebook_size"
        ),
        new_code_cell(PARAMETERS, metadata=dict(tags=["parameters"])),
        new_code_cell("check_parameters(globals())"),
        new_code_cell(f"out = {str(tmp_path / 'result.json')!r}\n{END}"),
    ]
    spec = dict(name="python3", language="python", display_name="python3")
    nbformat.write(new_notebook(cells=cells, metadata=dict(kernelspec=spec)), tmp_path / "one.ipynb")
    return tmp_path / "one.ipynb"


def execute(path, **parameters):
    papermill.execute_notebook(path, path.with_name("done.ipynb"), parameters, progress_bar=False, cwd=path.parent)
    return json.loads(path.with_name("result.json").read_text())


def test_override_reaches_the_run(notebook):
    assert execute(notebook, steps=7) == ["smoke", 7, "x"]


def test_same_without_papermill(notebook):
    "JupyterLab runs the cells as they stand."
    NotebookClient(nbformat.read(notebook, 4), resources=dict(metadata=dict(path=notebook.parent))).execute()
    assert json.loads(notebook.with_name("result.json").read_text()) == ["smoke", 1, "x"]


def test_misspelt_parameter_stops_the_run(notebook):
    with pytest.raises(
        papermill.PapermillExecutionError, match=r"unknown parameter 'sise'; did you mean 'size'\?.*steps = 1"
    ):
        execute(notebook, sise="8B")
    assert not notebook.with_name("result.json").exists()


def test_wrong_type_stops_the_run(notebook):
    with pytest.raises(papermill.PapermillExecutionError, match="parameter steps = 'many' is of type str, not int"):
        execute(notebook, steps="many")


def test_stripped_tag_stops_the_run(notebook):
    "Without the tag papermill inserts its cell at the top, and the notebook's own values win."
    whole = nbformat.read(notebook, 4)
    whole.cells[1].metadata = {}
    nbformat.write(whole, notebook)
    with pytest.raises(papermill.PapermillExecutionError, match="has lost its tag"):
        execute(notebook, steps=7)


def shown(path):
    "All text that an executed notebook shows."
    outputs = [o for c in json.loads(path.read_text())["cells"] for o in c.get("outputs", [])]
    return "\n".join("".join(o.get("data", {}).get("text/plain", o.get("text", ""))) for o in outputs)


def test_dry_run_prints_its_tables_and_stops(tmp_path):
    papermill.execute_notebook(
        ROOT / "nbs" / "train.ipynb", tmp_path / "dry.ipynb", dict(dry_run=True), progress_bar=False, cwd=ROOT / "nbs"
    )
    text = shown(tmp_path / "dry.ipynb")
    for words in ("SAM2 mask decoder", "GiB per device", "samples a step", "throughput not given"):
        assert words in text
    assert "cIoU" not in text  # nothing was trained or measured


def first_cells(**given):
    "The parameters of train.ipynb, changed, and the cell that checks them, in a fresh namespace."
    cells = [c for c in nbformat.read(ROOT / "nbs" / "train.ipynb", 4).cells if c.cell_type == "code"][:2]
    first, second = (c.source.replace("%matplotlib inline", "") for c in cells)
    space = {}
    exec(first, space)
    space |= given
    exec(second, space)


def test_a_run_that_lacks_something_stops_before_it_starts():
    said = "things that size '8B' needs are missing: language model.*SAM2.*depth codebook.*prepared rows"
    with pytest.raises(ValueError, match=said):
        first_cells(size="8B")


@pytest.mark.parametrize(
    "given, words",
    [
        (dict(settings="batchsize=1"), "'batchsize' is not a setting; did you mean 'batch_size'"),
        (dict(settings="max_steps=7", max_steps=7), "gives max_steps twice"),
        (dict(ablation="no_depth", settings="lambda_depth=1"), "contradicts ablation 'no_depth'"),
    ],
)
def test_settings_by_name_are_checked_first(given, words):
    with pytest.raises(ValueError, match=words):
        first_cells(**given)


def test_a_run_that_is_there_is_not_touched():
    "`-p resume False` once emptied the log of a finished run, marked it as failed, and then refused."
    with Run("there", Settings.load("smoke"), data_hash="0" * 64) as run:
        run.log(3, loss=0.5)
    before = {p.name: p.read_bytes() for p in run.dir.iterdir() if p.is_file()}
    assert set(before) >= {"run.json", "metrics.jsonl"} and b"0.5" in before["metrics.jsonl"]
    with pytest.raises(ValueError, match=r"run 'there' is there already \(finished\), and resume is off"):
        first_cells(name="there", resume=False)
    with pytest.raises(ValueError, match="run 'there' is finished, and there is no checkpoint"):
        first_cells(name="there")
    assert {p.name: p.read_bytes() for p in run.dir.iterdir() if p.is_file()} == before
