"""What installation relies on."""

import re
import tomllib

import pytest
from conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())


def canonical(requirement):
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


def test_constraints_are_names_and_exact_versions_only():
    for name, version in PINS.items():
        assert re.fullmatch(r"[\w.-]+", name) and re.fullmatch(r"\d[\w.]*", version), f"{name}=={version}"


@pytest.mark.parametrize("extra", ["", "dev", "convert", "eval"])
def test_every_dependency_is_pinned(extra):
    project = PROJECT["project"]
    wanted = project["optional-dependencies"][extra] if extra else project["dependencies"]
    pinned = {canonical(name) for name in PINS}
    assert [r for r in wanted if canonical(r) not in pinned] == []


def test_sam2_is_installed_by_itself():
    "As a dependency it would pull torchvision and build beside a second copy of torch."
    assert "sam2" not in (canonical(r) for r in PROJECT["project"]["dependencies"])
    assert (
        "sam2" in PINS
        and "--no-deps --no-build-isolation --constraint constraints.txt sam2" in (ROOT / "Makefile").read_text()
    )


def test_the_wheel_carries_settings():
    assert PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"] == {
        "settings.ini": "perceptio/settings.ini",
        "data/paper/reported_results.json": "perceptio/reported_results.json",
    }


def test_committed_weights_are_small():
    base = ROOT / "data" / "checkpoints" / "tiny-base"
    assert sum(p.stat().st_size for p in base.rglob("*") if p.is_file()) <= 20 * 2**20
