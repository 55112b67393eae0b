"""What a stranger meets first agrees with the repository: cards of weights, citation, changelog, and every name of a
notebook or a module."""

import json
import re
import subprocess
import tomllib

import pytest
import yaml
from conftest import FLOORS, MODULES, NOTEBOOKS, ROOT, cells, dotted, source

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
WEIGHTS = [ROOT / name for name in TRACKED if name.endswith((".safetensors", ".pt", ".bin"))]


def card_of(weights):
    "The card of committed weights: the first README.md above them."
    return next(p / "README.md" for p in weights.parents if (p / "README.md").is_file())


def test_there_are_committed_weights():
    assert WEIGHTS


@pytest.mark.parametrize("weights", WEIGHTS, ids=lambda p: p.name)
def test_committed_weights_have_a_card(weights):
    card = card_of(weights)
    assert card.parent.is_relative_to(ROOT / "data" / "checkpoints"), f"{weights} has no card beside it"
    text = card.read_text(encoding="utf-8")
    assert f"`{weights.relative_to(card.parent)}`" in text
    assert {"## Trained on", "## Measured", "## Limits", "## Licence"} <= set(text.splitlines())


@pytest.mark.parametrize("card", sorted(set(map(card_of, WEIGHTS))), ids=lambda p: p.parent.name)
def test_a_card_says_what_its_records_say(card):
    "| what | number | `file` key/key |"
    rows = re.findall(r"^\| .* \| ([\d.]+) \| `([\w./]+\.json)` (\S+) \|$", card.read_text(encoding="utf-8"), re.M)
    assert rows
    for number, file, path in rows:
        value = json.loads((card.parent / file).read_text(encoding="utf-8"))
        for key in path.split("/"):
            value = value[int(key) if isinstance(value, list) else key]
        assert f"{value:.3f}" == number, (file, path)


def test_the_citation_is_of_this_version_and_of_the_paper():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(cited)  # what version 1.2.0 of the form asks for
    assert (cited["cff-version"], cited["version"], cited["license"]) == (
        "1.2.0",
        PROJECT["version"],
        PROJECT["license"],
    )
    (paper,) = cited["references"]
    entry = re.search(r"@article\{.*?\n\}", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)[0]
    assert paper["title"] == re.search(r"title\s+= \{(.*)\}", entry)[1]
    names = [f"{a['family-names']}, {a['given-names']}" for a in paper["authors"]]
    assert " and ".join(names) == re.search(r"author\s+= \{(.*)\}", entry)[1]
    assert paper["url"] == PROJECT["urls"]["Paper"]


def test_the_changelog_begins_with_this_version():
    first = re.search(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)[1]
    assert first == PROJECT["version"]


NOTEBOOK_NAMES = {path.relative_to(ROOT / "nbs").with_suffix("").as_posix() for path in NOTEBOOKS}
MADE_UP = {"out", "none", "evaluate/15_name"}  # examples of a name in prose, and nbdev's word for no file


def spoken():
    """Where -> text of everything that speaks to a reader: pages, lessons, settings, docstrings and messages of the
    package."""
    for name in TRACKED:
        path = ROOT / name
        if path.suffix == ".ipynb":
            yield name, "\n".join(map(source, cells(path)))
        elif path.suffix in (".md", ".ini", ".toml", ".py") and not name.startswith("tests/"):
            yield name, path.read_text(encoding="utf-8")
    for name in ("Makefile", ".gitignore", ".ci/run", "nbs/train.sbatch"):
        yield name, (ROOT / name).read_text(encoding="utf-8")


SPOKEN = dict(spoken())


def test_every_notebook_that_is_named_exists():
    """train.ipynb, nbs/core/05_files.ipynb, or a room: method/05_losses. What lies in runs/ or has a variable in it is
    no name."""
    found = [
        (where, (m[1] + m[2]).removeprefix("nbs/"))
        for where, text in SPOKEN.items()
        for m in re.finditer(r"(?<![\w{}$/.-])((?:[\w.<>-]+/)*)([\w-]+)\.ipynb", text)
        if not m[1].startswith(("runs/", ".")) and "/runs/" not in m[1] and "SLURM" not in m[2]
    ]
    rooms = "|".join(FLOORS)
    found += [
        (where, m[0]) for where, text in SPOKEN.items() for m in re.finditer(rf"\b(?:{rooms})/\d\d[a-z]?_\w+", text)
    ]
    assert len(found) > 200
    assert [pair for pair in found if pair[1] not in NOTEBOOK_NAMES | MADE_UP] == []


def test_no_notebook_has_the_number_of_old():
    "Numbers without a folder, 27e or nbs/30, were names before there were folders."
    old = re.compile(r"\bnbs/\d\w*|(?<![\w/])\d\d[a-e]?_[a-z]\w+|(?<![\w.#-])[1-5]\d[a-e]\b(?!-)")
    assert [(where, m[0]) for where, text in SPOKEN.items() for m in old.finditer(text)] == []


def test_every_module_that_is_named_exists():
    "perceptio.method.losses; what comes from `perceptio` itself is no floor."
    modules = set(map(dotted, MODULES)) | set(FLOORS)
    named = [
        (where, m[1])
        for where, text in SPOKEN.items()
        for m in re.finditer(rf"(?<![\w.])perceptio\.((?:{'|'.join(FLOORS)})(?:\.[a-z]\w*)?)\b", text)
    ]
    assert len(named) > 200
    assert [pair for pair in named if pair[1] not in modules] == []


def test_prose_names_no_module_of_the_flat_package():
    "perceptio.losses was a module before there were folders; CHANGELOG may say so."
    prose = {name: text for name, text in SPOKEN.items() if name.endswith(".md") and name != "CHANGELOG.md"}
    for path in NOTEBOOKS:
        prose[path.name] = "\n".join(source(c) for c in cells(path) if c["cell_type"] == "markdown")
    named = [(where, m[1]) for where, text in prose.items() for m in re.finditer(r"(?<![\w.])perceptio\.(\w+)", text)]
    assert named
    assert [pair for pair in named if pair[1] not in FLOORS] == []
