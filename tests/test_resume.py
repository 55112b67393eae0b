"""A training that was killed, with one process or two, goes on to the same weights and the same log."""

import functools
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import perceptio.train.run
import perceptio.train.trainer
from perceptio.core.launch import launch
from perceptio.core.notebook import run_dir, scratch_dir
from perceptio.core.record import Run, read_metrics, read_run
from perceptio.core.settings import Settings
from perceptio.train.run import run_codebook, train_run
from perceptio.train.trainer import checkpoint_step
from perceptio.world.mixture import load_tasks, world, world_hash

EIGHT = dict(max_steps=8, batch_size=4, train_llm="lora", new_embeddings="new_rows", lora_rank=4, lora_alpha=8)
EIGHT |= dict(lora_dropout=0.1)  # a checkpoint after every step; dropout draws random numbers in every step


def begin(name, resume=None):
    "What train.ipynb does before it launches: data, the run, the codebook."
    settings = Settings.load("smoke", **EIGHT)
    stores = world(settings, progress=False)
    load_tasks(stores["train"], settings.seed, progress=False)
    Run(name, settings, data_hash=world_hash(stores), resume=resume)
    if (
        name != "codebook" and not (run_dir(name) / "codebook").exists()
    ):  # the same settings and scenes: the same for all
        shutil.copytree(trained_codebook(), run_dir(name) / "codebook")
    run_codebook(settings, name, stores["train"])
    return settings


@functools.cache
def trained_codebook():
    begin("codebook")
    return run_dir("codebook") / "codebook"


class Deadly(perceptio.train.trainer.RunLog):
    """Also kills the first process (kill -9) after step 4, before its checkpoint, or after step 6, while this lacks
    only its last word."""

    def on_step_end(self, args, state, control, **kwargs):
        if args.process_index == 0 and os.environ["DIE"] == "between" and state.global_step == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        if args.process_index == 0 and os.environ["DIE"] == "saving" and state.global_step == 6:
            perceptio.train.trainer.write_json = lambda *a: os.kill(os.getpid(), signal.SIGKILL)


def train_and_die(settings, name):
    perceptio.train.run.RunLog = Deadly
    train_run(settings, name, curve_points=0)


def whole_run(processes):
    "A run that nothing interrupts."
    name = f"whole-{processes}"
    if not (run_dir(name) / "checkpoint").exists():
        launch(train_run, begin(name), name, curve_points=0, processes=processes)
    return name


def found(name):
    "The bytes of the trained weights, and the log without its clock."
    rows = [
        {k: v for k, v in row.items() if "second" not in k and "per_" not in k and "runtime" not in k}
        for row in read_metrics(name)
    ]
    return (run_dir(name) / "checkpoint" / "model.safetensors").read_bytes(), [row for row in rows if "loss" in row]


def test_killed_twice_at_two_processes_and_resumed(monkeypatch):
    "Between two checkpoints, and in the middle of one."
    settings, name = begin("killed"), "killed"
    for when, last in (("between", 3), ("saving", 5)):
        monkeypatch.setenv("DIE", when)
        with pytest.raises(RuntimeError, match="process 0 of 2 failed: .*SIGKILL"):
            launch(train_and_die, settings, name, processes=2)
        assert (run_dir(name) / f"checkpoint-{last + 1}" / "optimizer.pt").exists() == (when == "saving")
        assert checkpoint_step(run_dir(name)) == last
        settings = begin(name, last)
    launch(train_run, settings, name, curve_points=0, processes=2)
    weights, log = found(name)
    expected, log_of_whole = found(whole_run(2))
    assert weights == expected
    assert log == log_of_whole
    assert read_run(name)["status"] == "finished"


def test_killed_at_one_process_and_resumed(monkeypatch):
    "The whole program dies, as it would in a notebook."
    name, settings = "killed-alone", begin("killed-alone")
    code = (
        "import test_resume as t; from perceptio.core.settings import Settings; "
        f"t.train_and_die(Settings(**{settings.as_dict()}), {name!r})"
    )
    environ = os.environ | dict(
        DIE="saving", PERCEPTIO_SCRATCH=str(scratch_dir()), PYTHONPATH=str(Path(__file__).parent), OMP_NUM_THREADS="1"
    )
    torch.set_num_threads(1)  # sums in another order are other sums
    assert subprocess.run([sys.executable, "-c", code], env=environ, check=False).returncode == -signal.SIGKILL
    assert checkpoint_step(run_dir(name)) == 5
    launch(train_run, begin(name, 5), name, curve_points=0)
    weights, log = found(name)
    expected, log_of_whole = found(whole_run(1))
    assert weights == expected
    assert log == log_of_whole
    assert (
        weights != found(whole_run(2))[0]
    )  # dropout differs between processes: equality above is not for lack of difference
