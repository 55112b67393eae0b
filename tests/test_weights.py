"""Every door through which weights and saved arrays come in: a file that is no whole file is named, with what to do."""

import json
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import test_depth_cache as depth
import torch
from conftest import write_stand_in

from perceptio.core.settings import Settings
from perceptio.core.weights import tensor_shapes
from perceptio.data.depth_cache import DepthTokens, write_depth_tokens
from perceptio.data.depth_teacher import DepthTeacher
from perceptio.method.codebook import DepthCodebook
from perceptio.method.codebook_training import train_codebook
from perceptio.method.generation import Perceptio
from perceptio.method.mask_head import build_mask_head
from perceptio.method.model import build_model
from perceptio.method.saving import load_mask_head, load_model, save_model
from perceptio.train.trainer import train

SETTINGS = Settings.load("smoke", "no_depth")
COMPACT = Settings.load("smoke", code_dim=8)
MAPS = torch.rand(8, 80, 80, generator=torch.Generator().manual_seed(0))


def mask_head(name):
    return lambda root: build_mask_head(replace(SETTINGS, sam_checkpoint=str(root / name)))


def resume(root):
    "What `train` does until it hands the run to transformers."
    arguments = SimpleNamespace(output_dir=root / "run", max_steps=9, world_size=1)
    train(SimpleNamespace(args=arguments, train=lambda resume_from_checkpoint: None))


def join(root):
    "A cache whose first shard is there; the other is made, and both are joined."
    folder = root / "now" / "cache"
    shutil.copytree(root / "cache", folder, dirs_exist_ok=True)
    try:
        write_depth_tokens(folder, depth.KEYS[:4], depth.depth, None, depth.codebook(), shard=2, progress=False)
    except ValueError as error:
        raise ValueError(str(error).replace(str(folder), str(root / "cache"))) from error
    finally:
        shutil.rmtree(folder)


def train_on(root):
    "Codebook training whose state was kept after its last step."
    train_codebook(MAPS, COMPACT, 2, keep=root / "training.safetensors", every=1)


DOORS = {  # what -> (file, what opens it)
    "base": ("base/language/model.safetensors", lambda root: load_model(root / "checkpoint", seg=False)),
    "base by name": (
        "b/model.safetensors",
        lambda root: Perceptio.from_pretrained(root / "checkpoint", "cpu", root / "b"),
    ),
    "checkpoint": ("checkpoint/model.safetensors", lambda root: load_model(root / "checkpoint")),
    "its mask head": ("checkpoint/model.safetensors", lambda root: load_mask_head(root / "checkpoint")),
    "SAM2, folder": ("base/sam/sam.safetensors", mask_head("base/sam")),
    "SAM2, file": ("sam.pt", mask_head("sam.pt")),
    "codebook": ("codebook/model.safetensors", lambda root: DepthCodebook.from_pretrained(root / "codebook")),
    "codebook, AURORA": ("aurora.pt", lambda root: DepthCodebook.from_pretrained(root / "aurora.pt", 64, "inverse")),
    "depth teacher": ("teacher/model.safetensors", lambda root: DepthTeacher.from_pretrained(root / "teacher", "cpu")),
    "resume": ("run/checkpoint-2/model.safetensors", resume),
    "resume, optimizer": ("run/checkpoint-2/optimizer.pt", resume),
    "depth shard": ("cache/shards/000000000.safetensors", join),
    "depth tokens": ("tokens/codes.npy", lambda root: DepthTokens(root / "tokens")[1]),
    "depth maps": ("tokens/maps-000000002.npy", lambda root: DepthTokens(root / "tokens").map(3)),
    "codebook training": ("training.safetensors", train_on),
    "converter": ("b/model.safetensors", lambda root: tensor_shapes(root / "b" / "model.safetensors")),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    "One of each, whole."
    root = tmp_path_factory.mktemp("weights")
    write_stand_in(root / "base")
    shutil.copytree(root / "base" / "language", root / "b")
    settings = replace(SETTINGS, base=str(root / "base"), sam_checkpoint=str(root / "base" / "sam"))
    model, tokenizer = build_model(settings)
    save_model(model, tokenizer, root / "checkpoint")
    shutil.rmtree(root / "checkpoint" / "base")  # the doors are then the ones that are named
    torch.save({"model": model.mask_head.sam.state_dict()}, root / "sam.pt")
    depth.codebook().save_pretrained(root / "codebook")
    with torch.random.fork_rng(devices=[]):
        torch.save({"weights": DepthCodebook(4, 8, 64, 2).state_dict()}, root / "aurora.pt")
    depth.tiny_teacher().model.save_pretrained(root / "teacher")
    state = root / "run" / "checkpoint-2"
    state.mkdir(parents=True)
    shutil.copy(root / "checkpoint" / "model.safetensors", state)
    torch.save({"state": {}}, state / "optimizer.pt")
    (state / "complete.json").write_text(json.dumps(dict(step=2, processes=1, files={})))
    some = dict(keys=depth.KEYS[:4], load=depth.depth, teacher=None, codebook=depth.codebook(), shard=2, progress=False)
    write_depth_tokens(root / "tokens", **some, maps=True)
    write_depth_tokens(root / "cache", **some, rank=0, world_size=2)
    train_on(root)
    return root


def damaged(whole):
    "Kind -> (content, what is said of it)."
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 897952466\n"
    page = b"<!DOCTYPE html>\n<html><title>Sign in</title></html>"
    cut = whole[: len(whole) // 2], "is cut off at"
    return dict(cut=cut, pointer=(pointer, "git-lfs pointer"), page=(page, "web page"), empty=(b"", "is empty"))


@pytest.mark.parametrize("door", DOORS)
def test_a_damaged_file_is_named(root, door):
    name, opened = DOORS[door]
    path = root / name
    whole = path.read_bytes()
    opened(root)
    try:
        for kind, (content, words) in damaged(whole).items():
            path.write_bytes(content)
            with pytest.raises(ValueError) as told:
                opened(root)
            said = str(told.value)
            assert str(path) in said and words in said, (kind, said)
            assert re.search("again|anew|download|git lfs pull|delete the folder", said), (kind, said)
    finally:
        path.write_bytes(whole)
