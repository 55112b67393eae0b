"""Several processes that start at once in a fresh folder, one of which is killed: the others wait, take over and find
the same."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np

from perceptio.core.files import lock_holder
from perceptio.world.scenes import make_scene

SPLIT = dict(split="val", n=10, seed=3, px=32)
RENDER = f"""
import sys, time
from pathlib import Path
import perceptio.world.scenes as scenes
go, make = Path(sys.argv[1]), scenes.make_scene
assert scenes.SCENES_CHUNK == 64
scenes.SCENES_CHUNK = 4

def until(path):
    while not path.exists():
        time.sleep(0.01)

def slow(seed, split, i, px, layout):
    "Three units of work: the second is begun, and waits."
    if i == 5:
        until(go / "on")
    return make(seed, split, i, px, layout)

scenes.make_scene = slow
print("ready", flush=True)
until(go)
scenes.write_split(go / "scenes", **{SPLIT}, workers=1, progress=False)
"""


def wait_for(condition):
    "What the condition says when it is no longer false; a minute is long for what takes milliseconds."
    for _ in range(6000):
        if found := condition():
            return found
        time.sleep(0.01)
    raise TimeoutError


def test_scenes_that_four_want_and_the_first_does_not_finish(tmp_path):
    start = [sys.executable, "-c", RENDER, tmp_path / "go"]
    four = [subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.stdout.readline() for process in four] == ["ready\n"] * 4
    (tmp_path / "go").mkdir()
    folder = tmp_path / "go" / "scenes" / "val"
    first = wait_for(lambda: lock_holder(folder))
    others = [process for process in four if process.pid != first["pid"]]
    in_use = f"split 'val' in scenes is in use by process {first['pid']} on "
    for process in others:
        assert process.stderr.readline().startswith(in_use)
    wait_for((folder.with_name("val.partial") / "chunk00000.jsonl").exists)
    os.kill(first["pid"], signal.SIGKILL)
    (tmp_path / "go" / "on").touch()
    said = [process.communicate(timeout=600)[1] for process in four]
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
    for i in range(SPLIT["n"]):
        scene = make_scene(SPLIT["seed"], "val", i, SPLIT["px"])
        assert (arrays["images"][i] == scene.image).all() and (arrays["ids"][i] == scene.ids).all()
        assert (arrays["depth"][i] == scene.depth.astype(np.float16)).all()
    for name, known in json.loads((folder / "meta.json").read_text())["sha256"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == known
