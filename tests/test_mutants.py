"""The mutation run changes what it says it changes, in a notebook and its module alike."""

import json
import shutil

import mutants
import pytest
from conftest import ROOT
from mutants import Places, changes_something, mutants_of, mutate, record

from perceptio.report.results import result_problems

CELL = """#| export
def near(x: int, y, scale=2.0) -> bool:
    "Is x + 1 < y?"
    if scale == 0:
        raise ValueError(f"scale = {scale + 1}")
    print(x)
    return not max(x, y * scale, key=abs) > 3 and y
"""


def changed(start, end, new):
    return CELL[:start] + new + CELL[end:]


def test_every_kind_of_place_is_found_and_nothing_else():
    "Documentation, annotations and what an error says are left alone."
    new = [changed(*place) for place in Places(CELL).found]
    said = [
        "scale=4.0)",
        "scale != 0:",
        "== 1:",
        "if not (scale == 0):",
        "\n    pass\n",
        "y / scale",
        "x * scale",
        "min(x",
    ]
    said += ["return (max(", ">= 3", "> 4", "3 or y", "max(y, y", "max(y * scale, x, key", "and x", "print(y)"]
    assert len(new) == len(set(new))
    for text in said:
        assert sum(text in n and text not in CELL for n in new) == 1, text
    assert all('"Is x + 1 < y?"' in n and 'f"scale = {scale + 1}"' in n and "x: int" in n for n in new)
    assert len(new) == len(said)


def test_notebook_and_module_change_alike(tmp_path):
    notebook = ROOT / "nbs" / "evaluate/01_intervals.ipynb"
    for name in ("nbs/evaluate/01_intervals.ipynb", "perceptio/evaluate/intervals.py"):
        (tmp_path / name).parent.mkdir(parents=True)
        shutil.copy(ROOT / name, tmp_path / name)
    found = [m for m in mutants_of(notebook) if changes_something(m)]
    assert len(found) > 50
    for mutant in found[::9]:
        kept = mutate(tmp_path, mutant)
        for path, text in kept.items():
            assert sum(a != b for a, b in zip(text.splitlines(), path.read_text().splitlines(), strict=True)) == 1
            path.write_text(text)


def test_the_score_is_recorded_as_a_result(tmp_path, monkeypatch):
    "Five mutants: two killed at once, one after a test was added, one that survives, one that changes nothing."
    sample = list(filter(changes_something, mutants_of(ROOT / "nbs" / "evaluate/01_intervals.ipynb", "evaluation")))[:5]
    monkeypatch.setattr(mutants, "FOLDER", tmp_path / "mutants")
    monkeypatch.setattr(mutants, "EQUIVALENT", {("evaluate/01_intervals", sample[4]["now"]): "nothing changes"})
    monkeypatch.setattr(mutants, "all_mutants", lambda: iter(sample))
    monkeypatch.setenv("IN_TEST", "1")
    first = dict(zip(map(mutants.name, sample), ("evaluate/01_intervals", "evaluate/01_intervals", "", "", "")))
    record({7: sample}, first, first | {mutants.name(sample[2]): "evaluate/01_intervals"}, 12.5)
    result = json.loads((tmp_path / "mutants" / "results" / "mutants.json").read_text())
    assert result_problems(result, "mutants") == []
    found = result["metrics"]["seed 7"]
    assert [found[when]["killed"] for when in ("first", "mended")] == [2, 3]
    assert [found[when]["survived"] for when in ("first", "mended")] == [2, 1]
    assert found["first"]["score"] == 0.5 and found["first"]["equivalent"] == 1
    assert (found["first"]["low"], found["first"]["high"]) == pytest.approx((0.1500, 0.8500), abs=1e-4)
    assert found["mended"]["rooms"] == {"evaluation": {"killed": 3, "n": 4}}
    left = result["survivors of seed 7"]
    assert [[m["now"] for m in left[when]] for when in ("first", "mended")] == [
        [sample[2]["now"], sample[3]["now"]],
        [sample[3]["now"]],
    ]
    assert [m["why"] for m in result["equivalents"]] == ["nothing changes"]


def test_contributing_says_what_was_measured():
    found = json.loads((ROOT / "data" / "results" / "mutants.json").read_text(encoding="utf-8"))["metrics"]
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    said = page.partition("`make mutants` changes")[2].partition("mutants.json")[0]
    counts = {
        seed: [f"{s['killed']} of {s['killed'] + s['survived']}" for s in scores.values()]
        for seed, scores in found.items()
    }
    assert said and all(seed in said and all(count in said for count in both) for seed, both in counts.items()), counts
