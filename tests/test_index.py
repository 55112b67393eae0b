"""nbs/index.ipynb covers the paper, and its links and the functions it names are what it says."""

import importlib
import inspect
import json
import re

import pytest
from conftest import ROOT, cells, source

FACTS = json.loads((ROOT / "data/paper/sections.json").read_text(encoding="utf-8"))
TEXT = "\n".join(source(c) for c in cells(ROOT / "nbs/index.ipynb"))
ROWS = [[part.strip() for part in line.strip("| ").split(" | ")] for line in TEXT.splitlines() if line.startswith("| ")]
LINK = re.compile(r"\[([^\]]+)\]\(([^)]+)\)")
EQUATIONS = {int(m[1]): row for row in ROWS if (m := re.match(r"\[Eq\. (\d+)\]", row[0]))}


@pytest.mark.parametrize(
    "kind, name", [("tables", "Table"), ("figures", "Figure"), ("equations", "Eq."), ("algorithms", "Algorithm")]
)
def test_everything_that_the_paper_numbers_is_linked(kind, name):
    linked = [text for row in ROWS for text, _ in LINK.findall(row[0])]
    assert [n for n in FACTS[kind] if linked.count(f"{name} {n}") != 1] == []


def test_every_section_of_the_paper_is_linked():
    there = {row[0]: row[1] for row in ROWS}
    for number, section in FACTS["sections"].items():
        assert LINK.findall(there[f"{number} {section['title']}"]), number


def function(row):
    "The function that a row names."
    path = re.search(r"`(\w+)\.([\w.]+)`", row[-1])
    found = importlib.import_module(f"perceptio.method.{path[1]}")
    for part in path[2].split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("number", [*map(int, FACTS["equations"])])
def test_the_function_of_an_equation_cites_it(number):
    assert re.search(rf"\bEq\. (\d+( and |-))?{number}\b", inspect.getdoc(function(EQUATIONS[number])))


@pytest.mark.parametrize("number", [*map(int, FACTS["equations"])])
def test_the_lesson_of_an_equation_defines_its_function(number):
    ((_, link),) = LINK.findall(EQUATIONS[number][0])
    name = function(EQUATIONS[number]).__name__
    lesson = cells(ROOT / "nbs" / link.partition("#")[0])
    assert (
        sum(bool(re.search(rf"^ *(def|class) {name}\b", source(c), re.M)) for c in lesson if "#| export" in source(c))
        == 1
    )
