"""Every committed result has the form that nbs/report/01_results.ipynb documents."""

import json
import re

import pytest
from conftest import MODULES, NOTEBOOKS, ROOT, cells, source

from perceptio.report.results import result_problems

RESULTS = sorted((ROOT / "data" / "results").glob("*.json"))
# measured before results named their weights and their time; measuring a run again takes it off this list
EARLIER = re.compile(r"(tiny-n25|tiny-variant)-(res-\w+|sentences|hardblink|depth|vqa|replacement)")


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.stem)
def test_result_has_the_documented_form(path):
    result = json.loads(path.read_text(encoding="utf-8"))
    without = "measured_in" not in result and "checkpoint_hash" not in result["run"]
    earlier = bool(EARLIER.fullmatch(path.stem)) and without
    name = path.stem
    if earlier and name.startswith("tiny-n25-"):  # that run was renamed after it was measured
        name = name.replace("tiny-n25-", "tiny-")
    assert result_problems(result, name, complete=not earlier) == []


def test_there_are_results():
    assert RESULTS


# what knows the checkout's own folders: to read what is committed (scenes, paper, settings), or to change it on demand
COMMITTED = {"notebook", "settings", "scenes", "paper", "reproduce", "pretrain.ipynb"}


def test_only_publishing_knows_the_committed_folders():
    "A run cannot write over what is committed, because nothing that a run calls asks where it lies."
    texts = {p.stem: p.read_text(encoding="utf-8") for p in MODULES}
    texts |= {p.name: "".join(map(source, cells(p))) for p in NOTEBOOKS if p.stem[0].isalpha()}
    assert {name for name, text in texts.items() if "project_root(" in text} == COMMITTED
    assert {name for name, text in texts.items() if "results_dir(" in text} == {"record"}
    assert not re.search(r"write\w*\([^\n]*results_dir\(", texts["record"])
