"""Several processes that start at once in a fresh folder, one of which is killed: the others wait, take over and find the same."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np

from perceptio.files import holder
from perceptio.scenes import make_scene

SPLIT = dict(split="val", n=130, seed=3, px=32)  # three units of work
RENDER = f"""
import sys, time
from pathlib import Path
from perceptio.scenes import write_split
print("ready", flush=True)
while not Path(sys.argv[1]).exists():
    time.sleep(0.01)
write_split(Path(sys.argv[1]) / "scenes", **{SPLIT}, workers=1, progress=False)
"""


def test_scenes_that_four_want_and_the_first_does_not_finish(tmp_path):
    start = [sys.executable, "-c", RENDER, tmp_path / "go"]
    four = [subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.stdout.readline() for process in four] == ["ready\n"] * 4
    (tmp_path / "go").mkdir()
    folder = tmp_path / "go" / "scenes" / "val"
    while not (first := holder(folder)):
        time.sleep(0.01)
    os.kill(first["pid"], signal.SIGSTOP)
    others = [process for process in four if process.pid != first["pid"]]
    in_use = f"split 'val' in scenes is in use by process {first['pid']} on "
    for process in others:
        assert process.stderr.readline().startswith(in_use)
    os.kill(first["pid"], signal.SIGKILL)
    said = [process.communicate(timeout=120)[1] for process in four]
    assert [process.returncode for process in others] == [0, 0, 0], said
    left = f"split 'val' in scenes was left by process {first['pid']} on "
    assert sum(left in text for text in said) == 1  # one goes on, and the last two find it done
    made = sorted(path.name for path in folder.parent.iterdir())
    assert made == [".val.lock", "val"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "depth.npy",
        "ids.npy",
        "images.npy",
        "meta.json",
        "objects.jsonl",
    ]
    arrays = {name: np.load(folder / f"{name}.npy") for name in ("images", "depth", "ids")}
    for i in (0, 63, 64, 127, 128, 129):
        scene = make_scene(SPLIT["seed"], "val", i, SPLIT["px"])
        assert (arrays["images"][i] == scene.image).all() and (arrays["ids"][i] == scene.ids).all()
        assert (arrays["depth"][i] == scene.depth.astype(np.float16)).all()
    for name, known in json.loads((folder / "meta.json").read_text())["sha256"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == known
