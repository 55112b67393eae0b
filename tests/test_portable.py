"""A checkpoint on another machine: the package copied as a wheel installs it, no checkout, another folder to work in."""

import hashlib
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

from perceptio.codebook import DepthCodebook
from perceptio.generation import Perceptio
from perceptio.model import build_model
from perceptio.saving import located, read_settings, save_model
from perceptio.settings import Settings

ASK = """
import hashlib, sys
import numpy as np
import perceptio.generation
image = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
out = perceptio.generation.Perceptio.from_pretrained("mymodel", device="cpu")(image, "segment the red cube", perceive="both", max_new_tokens=4)
print(out.token_ids, hashlib.sha256(out.mask.tobytes() + out.depth.tobytes()).hexdigest(), perceptio.generation.__file__)
"""


def test_a_copied_checkpoint_answers_the_same(tmp_path):
    settings = Settings.load("smoke")
    torch.manual_seed(0)
    codebook = DepthCodebook.from_settings(settings)
    codebook.codebook.copy_(torch.randn_like(codebook.codebook))
    model, tokenizer = build_model(settings, codebook)
    image = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    out = Perceptio(model, tokenizer)(image, "segment the red cube", perceive="both", max_new_tokens=4)
    expected = f"{out.token_ids} {hashlib.sha256(out.mask.tobytes() + out.depth.tobytes()).hexdigest()}"

    save_model(model, tokenizer, tmp_path / "made")
    site, work = tmp_path / "site", tmp_path / "elsewhere"
    shutil.copytree(ROOT / "perceptio", site / "perceptio", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "settings.ini", site / "perceptio")
    shutil.move(tmp_path / "made", work / "mymodel")
    env = {k: v for k, v in os.environ.items() if k != "PERCEPTIO_ROOT"} | {"PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", ASK], cwd=work, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split("/")[0].strip() == expected
    assert str(site) in done.stdout


def test_the_stand_in_base_goes_along(tmp_path):
    from perceptio.saving import carry_base

    settings = Settings.load("tiny")
    carry_base(settings, tmp_path)
    for part in ("language/model.safetensors", "language/tokenizer.json", "sam/sam.safetensors"):
        ours, theirs = tmp_path / "base" / part, ROOT / "data" / "checkpoints" / "tiny-base" / part
        assert ours.read_bytes() == theirs.read_bytes()
    there = located(settings, tmp_path)
    assert (there.base, there.sam_checkpoint) == (str(tmp_path / "base"), str(tmp_path / "base" / "sam"))
    assert located(settings, tmp_path, base="/a", sam="/b.pt").sam_checkpoint == "/b.pt"


def test_what_is_missing_is_named(tmp_path):
    from perceptio.checkpoints import language_folder

    settings = Settings.load("8B", base="OpenGVLab/none")
    with pytest.raises(ValueError, match="no base checkpoint at 'OpenGVLab/none'.*Looked at .*OpenGVLab/none"):
        language_folder(settings)
    with pytest.raises(ValueError, match="no settings.json"):
        read_settings(tmp_path)
