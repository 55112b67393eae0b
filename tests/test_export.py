"""The package is what the notebooks export."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from conftest import ROOT


def test_export_changes_nothing(tmp_path):
    for part in ("nbs", "perceptio"):
        shutil.copytree(
            ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    environment = {k: v for k, v in os.environ.items() if k != "IN_TEST"}  # under IN_TEST the index is not written
    command = [Path(sys.executable).parent / "nbdev_export"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    here, there = (
        {p.relative_to(root).as_posix(): p.read_text() for p in (root / "perceptio").rglob("*.py")}
        for root in (ROOT, tmp_path)
    )
    assert sorted(here) == sorted(there)
    assert [name for name in here if here[name] != there[name]] == []
