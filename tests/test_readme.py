"""What is read first is true: tables made from data/results/, code that runs as printed, commands, links and pictures
that exist."""

import re
from pathlib import Path

import pytest
from conftest import ROOT, cells, source
from PIL import Image
from test_notebooks import anchors as notebook_anchors

from perceptio.core.notebook import run_dir
from perceptio.report.ablation import ablation_runs, ablation_table
from perceptio.report.figures import untrained_run
from perceptio.report.front import (
    README_RUNS,
    front_table,
    page_block,
    printed_by,
    python_blocks,
    results_tables,
    snippet_output,
)

CARDS = sorted(ROOT.glob("data/checkpoints/*/README.md"))
PAGES = [*sorted(ROOT.glob("*.md")), ROOT / "data/results/README.md", *CARDS]
TEXTS = {path: path.read_text(encoding="utf-8") for path in [*PAGES, ROOT / "figures" / "README.md"]}
README, GUIDE = TEXTS[ROOT / "README.md"], TEXTS[ROOT / "GUIDE.md"]


def test_tables_are_generated():
    assert page_block(README, "results") == front_table(), "run `make results`, which rewrites the block"
    assert page_block(TEXTS[ROOT / "data/results/README.md"], "results") == results_tables(*README_RUNS)


def test_the_first_screen_holds_picture_and_commands():
    "Title, what and for whom, a picture that is wide and low, and the commands: some 900 pixels of GitHub's page."
    assert README.index("figures/opening.png") < README.index("make train") < README.index("\n## ")
    with Image.open(ROOT / "figures" / "opening.png") as picture:
        assert picture.width <= 900 and picture.height <= 360
    assert len(README[: README.index("![")].splitlines()) <= 6


def columns(line):
    "The cells of a line of a table as they are read: a link is its words."
    return [re.sub(r"\]\([^)]*\)|[*`\[]", "", cell).strip() for cell in line.strip("|").split("|")]


def test_no_row_of_the_readme_is_broken_on_a_page():
    "A page of GitHub is some 850 pixels wide, a letter at most 9, and a cell has 27 beside its words; code is smaller."
    for table in re.findall(r"(?:^\|.*\n)+", README, re.M):
        widest = [max(map(len, column)) for column in zip(*map(columns, table.splitlines()))]
        assert 9 * sum(widest) + 27 * len(widest) <= 900, table


@pytest.fixture(scope="module")
def folder():
    "Where the snippets run: runs/tiny is an untrained model of the smoke size."
    untrained_run("tiny")
    return run_dir("tiny").parents[1]


def test_the_snippet_runs_as_printed(folder):
    (code,) = python_blocks(page_block(README, "snippet"))
    assert len(printed_by(code, folder).splitlines()) >= 3
    shown = page_block(README, "output")  # what the published weights said; nothing where they were not at hand
    assert shown == snippet_output(code) or re.fullmatch(r"```text\n(.+\n){3,}```", shown)
    assert "at hand" not in README


def test_the_equation_prints_what_is_shown_below_it(folder):
    (code,) = python_blocks(page_block(README, "equation"))
    shown = re.search(r"<!-- equation:end -->\n\n```text\n(.*?)\n```", README, re.S)[1]
    assert printed_by(code, folder) == shown


def test_the_snippets_of_the_guide_run(folder):
    codes = python_blocks(GUIDE)
    assert codes
    for code in codes:
        printed_by(code, folder)


def test_what_the_readme_says_of_the_ablation():
    "Differences to the full model, over seeds, in the words of README."
    points, masks = "marked points, answer", "res/val cIoU, attribute+location"
    grid = ablation_table(ablation_runs(), [points, masks]).set_index(["ablation", "measured"])
    said = {f"{grid.loc[where, 'difference']:+.3f}".replace("0.", "."): where for where in (
        ("no_depth", points), ("no_perception", points), ("no_depth", masks)
    )}  # fmt: skip
    assert re.search("without depth (.{5}), trained on text only (.{5}), and masks (.{5})", README).groups() == (*said,)
    zero = [grid.loc[where, "difference low"] < 0 < grid.loc[where, "difference high"] for where in said.values()]
    assert zero == [True, True, False] and "the first two intervals cover zero" in README


def test_what_the_readme_says_of_the_audit():
    totals = re.search(
        r"^\| all \| (\d+) \| (\d+) \| (\d+) \|$", (ROOT / "figures/audit.md").read_text(), re.M
    ).groups()
    found = re.search(r"holds (\d+) statements[^:]*: (\d+) hold, (\d+) do not, (\d+)\s+cannot", README).groups()
    assert found == (str(sum(map(int, totals))), *totals)


@pytest.mark.parametrize("page", TEXTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_commands_are_make_targets(page):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^|`)make ([a-z][\w-]+)(?=[\s`])", TEXTS[page], re.M):
        assert re.search(rf"^(?:\w+ )*{target}(?: \w+)*:", makefile, re.M), target


def test_every_equation_is_linked_and_named_as_in_the_index():
    "The same lesson, heading and function; the words between them are shorter."
    row = re.compile(r"^\| \[((?:Eq\. |Algorithm )\d+)\]\((?:nbs/)?([^)]*#[^)]*)\) \|.*\| `([\w.]+)` \|$", re.M)
    index = "\n".join(source(c) for c in cells(ROOT / "nbs" / "index.ipynb"))
    assert row.findall(README) == row.findall(index)
    assert [name for name, _, _ in row.findall(README)] == [*(f"Eq. {k}" for k in range(1, 11)), "Algorithm 1"]


def anchors(text):
    "The headings of a page as GitHub links to them."
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", text, re.M)}


@pytest.mark.parametrize("page", TEXTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_and_pictures_exist(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        if not link.startswith("http"):
            name, _, anchor = link.partition("#")
            target = (page.parent / name) if name else page
            assert Path(target).exists(), link
            if anchor:
                there = notebook_anchors(target) if target.suffix == ".ipynb" else anchors(target.read_text("utf-8"))
                assert anchor in there, link
    assert re.findall(r"!\[\]\(", TEXTS[page]) == [], "a picture without words"
