"""Training on two processes (gloo) is training on one: the same loss and gradients."""

import copy
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from transformers import TrainerCallback

import perceptio.core.launch
from perceptio.core.launch import launch
from perceptio.core.settings import Settings
from perceptio.method.codebook import DepthCodebook
from perceptio.method.model import build_model, step_counts
from perceptio.method.samples import Collator, Sample, Turn
from perceptio.method.saving import gathered_state, saved_state
from perceptio.train.trainer import SHARDED, PerceptioTrainer, training_arguments

LORA = dict(train_llm="lora", new_embeddings="new_rows", lora_rank=4, lora_alpha=8, lora_dropout=0.1)


def samples():
    """Eight, in the order of training. Of every four the last two go to the second process: first text alone, then, in
    the second step, masks where the first process has none."""
    rng = np.random.default_rng(0)
    image = lambda: rng.integers(0, 256, (128, 128, 3), dtype=np.uint8)  # noqa: E731
    depth, codes, mask = (
        np.linspace(0, 1, 128 * 128, dtype=np.float32).reshape(128, 128),
        rng.integers(0, 128, 64),
        np.eye(128, dtype=bool),
    )
    text = Sample("text", "vqa", None, [Turn("how many cubes ?", "two cubes . a small red cube .")])
    short = Sample("short", "vqa", None, [Turn("how many ?", "two")])
    joint = Sample(
        "joint", "joint", image(), [Turn("segment the red cube", "a small cube .", "both", mask)], depth, codes
    )
    two = Sample(
        "two", "res", image(), [Turn("segment the cube", "", "seg", mask), Turn("segment the sphere", "", "seg", ~mask)]
    )
    seen = Sample("seen", "vqa", image(), [Turn("what color ?", "red")])
    marked = Sample(
        "marked", "marked_points", image(), [Turn("which point is closest ?", "(B)", "depth")], depth, codes
    )
    return [joint, two, text, short, seen, marked, two, text]


class KeepGradients(TrainerCallback):
    "The gradients of the first step, as the optimiser gets them."

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == 0:
            self.gradients = {
                n.removeprefix("module."): p.grad.clone() for n, p in model.named_parameters() if p.requires_grad
            }


class Steep(TrainerCallback):
    "In the second step the gradient of the second process is infinite, though its loss is not."

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == 1 and args.process_index == 1:
            next(p for p in model.parameters() if p.requires_grad).register_hook(lambda gradient: gradient + torch.inf)


def steps(folder, counted, more=(), **settings):
    "Two optimiser steps over `samples`; from the first process its log and the gradients of the first step, in a file."
    torch.set_num_threads(1)
    torch.manual_seed(0)
    settings = Settings.load("smoke", **settings)
    codebook = DepthCodebook.from_settings(settings)
    codebook.codebook.copy_(torch.randn(codebook.codebook.shape))
    model, tokenizer = build_model(settings, codebook)
    keep, collate = KeepGradients(), Collator(tokenizer, model.vocab, settings, sam_pixels=model.mask_head.preprocess)
    arguments = training_arguments(
        settings,
        folder,
        max_steps=2,
        log_steps=1,
        disable_tqdm=True,
        train_sampling_strategy="sequential",
        max_grad_norm=0.0,
    )
    count = (lambda batch: step_counts(batch, model.vocab)) if counted else None
    trainer = PerceptioTrainer(
        model, arguments, train_dataset=samples(), data_collator=collate, count=count, callbacks=[keep, *more]
    )
    trainer.train()
    if trainer.args.process_index == 0:
        torch.save(keep.gradients, Path(folder) / "gradients.pt")
    return trainer.accelerator.num_processes, trainer.accelerator.distributed_type.value, trainer.state.log_history


def run_steps(folder, processes, counted=True, **settings):
    "(number of processes, their kind, log), gradients"
    folder.mkdir()
    told = launch(steps, str(folder), counted, processes=processes, **settings)
    return *told, torch.load(folder / "gradients.pt", weights_only=True)


def gap(a, b):
    """(largest difference between two sets of gradients, its tensor), relative to each tensor (and, for those that are
    zero but for rounding, to the largest)."""
    size = max(g.norm() for g in b.values())
    return max((((a[n] - b[n]).norm() / (b[n].norm() + 1e-4 * size)).item(), n) for n in b)


def test_two_processes_are_one(tmp_path):
    """In the first step the second process has no mask, no depth and no image; in the second the first process has no
    mask."""
    whole = dict(batch_size=4, **LORA | dict(lora_dropout=0.0))
    halves = dict(batch_size=2, grad_accum=2, **LORA | dict(lora_dropout=0.0))
    one = run_steps(tmp_path / "one", 1, **whole)
    two = run_steps(tmp_path / "two", 2, **whole, gradient_checkpointing=True)
    passes = run_steps(tmp_path / "passes", 1, **halves)
    assert one[0] == 1 and two[:2] == (2, "MULTI_CPU")
    for other in (two, passes):
        assert gap(other[3], one[3]) < (1e-4,)
        for step, close in (
            (0, 1e-5),
            (1, 1e-3),
        ):  # AdamW makes steps of full size out of gradients that are zero but for rounding
            here, there = one[2][step], other[2][step]
            assert set(here) - {"epoch"} == set(there) - {"epoch"} and "mask_ce" in here
            for name in set(here) - {"epoch", "step"}:
                assert there[name] == pytest.approx(here[name], rel=close, abs=1e-5), name
    uncounted = run_steps(
        tmp_path / "uncounted", 2, counted=False, **whole
    )  # the mean of the devices' means is something else
    assert gap(uncounted[3], one[3]) > (0.05,)


def sharded():
    """Loss and gradients of a model in shards (FSDP2) against those of a whole one, on half a step each; the second
    process has text only."""
    dist.init_process_group("gloo")
    settings = Settings.load("smoke", gradient_checkpointing=True, **LORA | dict(lora_dropout=0.0))
    torch.manual_seed(0)
    weights = DepthCodebook.from_settings(settings)
    models = []
    for _ in range(2):
        model, tokenizer = build_model(settings, copy.deepcopy(weights))
        for p in model.backbone.parameters():
            p.data = p.data if p.requires_grad else p.data.bfloat16()  # as at the published sizes
        models.append(model)
    whole_model, model = models
    mine = samples()[2 * dist.get_rank() :][:2]
    batch = Collator(tokenizer, model.vocab, settings, sam_pixels=model.mask_head.preprocess)(mine)
    batch.pop("keys")
    counts = step_counts(batch, model.vocab)
    dist.all_reduce(counts)
    for layer in model.modules():
        if type(layer).__name__ in SHARDED:
            fully_shard(layer)
    fully_shard(model)
    losses = []
    for m in models:
        losses.append(m(**batch, whole=counts / 2)["loss"])
        losses[-1].backward()
    expected = {n: p.grad for n, p in whole_model.named_parameters() if p.requires_grad}
    for grad in expected.values():
        dist.all_reduce(grad)
    found = {n: p.grad.full_tensor() * 2 for n, p in model.named_parameters() if p.requires_grad}
    saved, expected_state = gathered_state(model), saved_state(whole_model)
    same = dist.get_rank() > 0 or (
        saved.keys() == expected_state.keys() and all(torch.equal(saved[n], expected_state[n]) for n in saved)
    )
    blocks = {type(p).__name__ for n, p in model.named_parameters() if "layers.0" in n}
    return gap(found, expected), losses[0].item() - losses[1].item(), blocks, same


def test_shards_are_the_whole():
    difference, loss, blocks, same = launch(sharded, processes=2)
    assert difference < (1e-5,) and abs(loss) < 1e-5 and blocks == {"DTensor"} and same


def test_terms_keep_their_names(tmp_path):
    """Passes with and without masks make their terms in different orders; the logged names must not be mixed up between
    processes."""
    half = dict(batch_size=2, grad_accum=2, seg_point=2.0, **LORA | dict(lora_dropout=0.0))
    one, two = (run_steps(tmp_path / str(n), n, **half) for n in (1, 2))
    for name in ("seg_point", "mask_iou", "mask_ce"):
        assert two[2][0][name] == pytest.approx(one[2][0][name], rel=1e-4, abs=1e-6), name


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def test_two_machines_meet():
    "The way of nbs/train.sbatch on this one: a launcher for each machine, one process each."
    code = "import os; from perceptio.core.launch import launch; print(launch(os.getenv, 'RANK'))"
    machines, port = [], free_port()
    for node in (0, 1):
        environ = os.environ | dict(
            SLURM_NNODES="2", SLURM_NODEID=str(node), MASTER_ADDR="localhost", MASTER_PORT=str(port)
        )
        machines.append(subprocess.Popen([sys.executable, "-c", code], env=environ, stdout=subprocess.PIPE, text=True))
    assert [m.communicate(timeout=120)[0].strip() for m in machines] == ["0", "1"]


def steep_steps(folder, **settings):
    "Two steps, the second of which goes wrong in the second process; what each process says, in a file."
    try:
        steps(folder, True, [Steep()], **settings)
    except FloatingPointError as error:
        (Path(folder) / f"said-{dist.get_rank()}.txt").write_text(str(error))
        raise


def test_an_infinite_gradient_in_one_process_stops_both(tmp_path):
    "And a failure names the process. The samples of the second step are those of both."
    before = signal.getsignal(signal.SIGTERM)
    said = (
        "the gradient of step 2 has the norm (inf|nan), though the loss is finite: the optimiser has not moved. Its "
        "samples are "
    )
    names = re.escape("['seen', 'marked', 'two', 'text']")
    with pytest.raises(RuntimeError, match=rf"process \d of 2 failed: FloatingPointError: {said}{names}"):
        launch(steep_steps, str(tmp_path), batch_size=4, processes=2, **LORA)
    for process in (0, 1):
        assert re.match(said + names, (tmp_path / f"said-{process}.txt").read_text())
    assert signal.getsignal(signal.SIGTERM) == before


def test_processes_end_with_their_launcher():
    "Also when it is killed and can stop nobody."
    code = (
        "import time; from perceptio.core import launch; launch.SLOW_IMPORTS = ['perceptio.core.launch']; "
        "launch.launch(time.sleep, 600, processes=2)"
    )
    launcher = subprocess.Popen([sys.executable, "-c", code])
    started, there = time.monotonic(), []
    while len(there) < 4 and time.monotonic() < started + 120:  # the server, its tracker, and the two
        time.sleep(0.2)
        there = psutil.Process(launcher.pid).children(recursive=True)
    time.sleep(3)  # until they sleep
    assert len(psutil.Process(launcher.pid).children(recursive=True)) >= 4
    launcher.kill()
    launcher.wait()
    _, alive = psutil.wait_procs(there, timeout=30)
    assert not alive


def test_the_server_of_processes_touches_no_gpu():
    "A fork of a process that has asked CUDA anything cannot use it: the imports that are made before forking must not."
    code = """
import sys, torch
for name in ("is_available", "device_count", "current_device", "_lazy_init", "get_device_properties", "mem_get_info"):
    setattr(torch.cuda, name, lambda *a, name=name, **k: sys.exit(f"{name} was called"))
for name in sys.argv[1:]:
    __import__(name)
assert not any(name.startswith("perceptio") for name in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *perceptio.core.launch.SLOW_IMPORTS], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
