"""The documentation site: what a reader sees of a notebook, which run is shown, and which faults stop the build."""

import json
import sys

import pytest
from conftest import FLOORS as ALL_FLOORS
from conftest import NOTEBOOKS, READ, ROOT

sys.path.insert(0, str(ROOT / "docs"))
from build_site import AFTER_TRAIN, FIRST, QUICK, RUN_ORDER, provenance, smallest  # noqa: E402
from check_site import faults  # noqa: E402
from pages import FLOORS, linked, page, purpose, recorded, slug  # noqa: E402


def code(text, *outputs, **metadata):
    return dict(cell_type="code", id="c", metadata=metadata, source=text, outputs=list(outputs))


def text(words):
    return dict(cell_type="markdown", id="m", metadata={}, source=words)


def notebook(*cells, **metadata):
    return dict(cells=list(cells), metadata=metadata, nbformat=4, nbformat_minor=5)


PICTURE = dict(output_type="display_data", data={"image/png": "", "image/jpeg": ""}, metadata={})
LOG = dict(output_type="stream", name="stderr", text="a warning")
LESSON = notebook(
    text("# losses\n> What training\n> minimises\n\nmore"),
    code("#| default_exp method.losses"),
    code("#| hide\nsecret = 1"),
    code("#| export\nx = 1  #| not a line of nbdev", LOG),
    code('#| fig-alt: "two curves"\nplot()', PICTURE),
)


def test_nbdev_is_not_seen():
    shown = page(LESSON, "method", ["below the title"])["cells"]
    assert [c["source"] for c in shown] == [
        LESSON["cells"][0]["source"],
        "below the title",
        "x = 1  #| not a line of nbdev",
        "plot()",
    ]
    exported, plotted = shown[2:]
    assert exported["metadata"] == {"tags": ["exported"]} and exported["outputs"] == []
    assert plotted["metadata"]["mystnb"] == {"image": {"alt": "two curves"}}
    assert set(plotted["outputs"][0]["data"]) == {"image/png"}
    assert LESSON["cells"][3]["outputs"] == [LOG]  # the notebook itself is not changed


def test_long_code_and_long_plain_output_are_folded_where_results_are_read():
    long, printed = "\n".join("x" * 12), dict(output_type="stream", name="stdout", text=["1\n"] * 40)
    told = code(long, printed, tags=["parameters"]), code(long, PICTURE), code("print(x)", printed), code("x")
    tags = lambda fold: [c["metadata"]["tags"] for c in page(notebook(text("# a"), *told), ".", fold=fold)["cells"][1:]]
    assert tags(True) == [["parameters", "hide-output"], ["hide-input"], ["hide-output"], []]
    assert tags(False) == [["parameters"], [], [], []]


def test_bars_are_not_shown():
    shows = lambda said: dict(output_type="display_data", data={"text/plain": [said]}, metadata={})
    told = code("x", shows("train: 100%|████| 24/24 [00:00<00:00, 33.80scene/s]"), shows("95% of 3"))
    assert page(notebook(text("# a"), told), ".")["cells"][1]["outputs"] == [shows("95% of 3")]


def test_named_notebooks_become_links():
    assert linked("see `nbs/train.ipynb`", "method") == "see [`nbs/train.ipynb`](../train.ipynb)"
    assert linked("in `method/05_losses`", ".") == "in [`method/05_losses`](method/05_losses.ipynb)"
    assert linked("see `train.ipynb`, `no/such.ipynb`", ".") == "see [`train.ipynb`](train.ipynb), `no/such.ipynb`"
    assert (
        linked("[`train.ipynb`](x) `papermill nbs/train.ipynb`", ".")
        == "[`train.ipynb`](x) `papermill nbs/train.ipynb`"
    )


def test_title_and_purpose():
    assert purpose(LESSON) == "What training minimises"
    assert purpose(notebook(text("# A\n\nAs Eq. 3 says, one. And Two."))) == "As Eq. 3 says, one."
    assert slug("Marker loss, Eq. 5") == "Marker-loss,-Eq.-5"


def run(folder, cells, **about):
    folder.mkdir(exist_ok=True)
    injected = code("size = 'smoke'", tags=["injected-parameters"])
    whole = notebook(*cells, injected, papermill=dict(exception=None, duration=200, parameters={}) | about)
    (folder / "train.ipynb").write_text(json.dumps(whole))


def test_the_newest_whole_run_of_the_same_cells_is_shown(tmp_path):
    now = notebook(text("# Train"), code("1"))
    assert recorded("train", now, tmp_path) is None
    run(tmp_path / "smoke", now["cells"], end_time="2026-04-01", parameters=dict(size="smoke"))
    assert recorded("train", now, tmp_path).path.parent.name == "smoke"
    run(tmp_path / "a", now["cells"], end_time="2026-01-01")
    run(tmp_path / "b", now["cells"], end_time="2026-02-01")
    run(tmp_path / "failed", now["cells"], end_time="2026-03-01", exception=True)
    run(tmp_path / "killed", now["cells"], end_time=None)
    run(tmp_path / "old", [text("# Train"), code("2")], end_time="2026-03-01")
    found = recorded("train", now, tmp_path)
    assert found.path.parent.name == "b"
    assert "2026-02-01" in provenance(found) and "3 minutes" in provenance(found)
    assert "Not run" in provenance(None)


PAGE = '<h1 id="top">a</h1><a href="{link}">x</a><img src="p.png" alt="{alt}"><script src="{script}"></script>'


@pytest.mark.parametrize(
    "change, fault",
    [
        ({}, None),
        (dict(link="b.html#no"), "b.html#no leads nowhere"),
        (dict(link="c.html"), "c.html leads nowhere"),
        (dict(link="https://example.org/c.html"), None),
        (dict(alt=""), "p.png is a picture without a text"),
        (dict(alt="_images/p.png"), "p.png is a picture without a text"),
        (dict(script="https://example.org/a.js"), "https://example.org/a.js is loaded from elsewhere"),
        (dict(script="no.js"), "no.js is not there"),
    ],
)
def test_faults_of_a_site(tmp_path, change, fault):
    for name in ("b.html", "p.png", "a.js"):
        (tmp_path / name).write_text('<p id="here">')
    values = dict(link="b.html#here", alt="a curve", script="a.js") | change
    (tmp_path / "a.html").write_text(PAGE.format(**values))
    assert faults(tmp_path) == ([f"a.html: {fault}"] if fault else [])


def test_names_that_the_site_lists_exist():
    to_run = {path.stem for path in NOTEBOOKS if path.parent.name == "nbs"}
    assert {*QUICK, *AFTER_TRAIN} <= to_run and {*RUN_ORDER, *READ} == to_run and FIRST == READ
    assert [*FLOORS] == ALL_FLOORS


def test_the_smallest_size_is_asked_for_where_there_is_one():
    sized = code('size: str = "tiny"  # a size\nn: int = 1  # a number', tags=["parameters"])
    assert smallest(notebook(sized)) == ["-p", "size", "smoke"]
    assert smallest(notebook(code('resize: str = "x"  # none', tags=["parameters"]))) == []
