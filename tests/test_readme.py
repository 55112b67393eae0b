"""The README's result table is made from data/results/, and its commands exist."""

import re
from pathlib import Path

from perceptio.evaluate.suite import markdown
from perceptio.report.paper import audit, counts
from perceptio.report.reproduce import README_RUNS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_results_block_is_generated():
    block = re.search(r"<!-- results:begin -->\n(.*)\n<!-- results:end -->", README, re.S)
    assert block, "README has no results block"
    assert block[1] == markdown(*README_RUNS), "run `make results`, which rewrites the block"


def test_commands_are_make_targets():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make ([\w-]+)", README, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_files_named_in_the_readme_exist():
    for name in re.findall(r"\]\(([\w./]+)\)|!\[[^]]*\]\(([^)]+)\)", README):
        path = next(filter(None, name))
        assert (ROOT / path).exists(), path


def test_the_audits_counts_are_the_audits():
    found = re.search(r"(\d+) statements of the paper.*?(\d+) hold, (\d+) do not, (\d+) cannot", README, re.S)
    held = counts(audit()).loc["all"].tolist()
    assert list(map(int, found.groups())) == [sum(held), *held]
