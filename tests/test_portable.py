"""A checkpoint on another machine: the package copied as a wheel installs it, no checkout, another folder to work
in."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, write_stand_in

from perceptio.core.settings import Settings
from perceptio.evaluate.lmms import lmms_class
from perceptio.method.codebook import DepthCodebook
from perceptio.method.generation import Perceptio
from perceptio.method.model import build_model
from perceptio.method.sam import build_sam, save_sam
from perceptio.method.saving import carry_base, load_model, read_settings, save_model, with_places

ASK = """
import hashlib, sys
import numpy as np
from perceptio.method import generation
image = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
model = generation.Perceptio.from_pretrained("mymodel", device="cpu")
out = model(image, "segment the red cube", perceive="both", max_new_tokens=4)
print(out.token_ids, hashlib.sha256(out.mask.tobytes() + out.depth.tobytes()).hexdigest(), generation.__file__)
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
    env = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", ASK], cwd=work, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split("/")[0].strip() == expected
    assert str(site) in done.stdout


def test_the_stand_in_base_goes_along(tmp_path):
    settings = Settings.load("tiny")
    carry_base(settings, tmp_path)
    for part in ("language/model.safetensors", "language/tokenizer.json", "sam/sam.safetensors"):
        ours, theirs = tmp_path / "base" / part, ROOT / "data" / "checkpoints" / "tiny-base" / part
        assert ours.read_bytes() == theirs.read_bytes()
    there = with_places(settings, tmp_path)
    assert (there.base, there.sam_checkpoint) == (str(tmp_path / "base"), str(tmp_path / "base" / "sam"))
    assert with_places(settings, tmp_path, base="/a", sam="/b.pt").sam_checkpoint == "/b.pt"


def test_what_is_missing_is_named(tmp_path):
    from perceptio.method.backbone_files import language_folder

    settings = Settings.load("8B", base="OpenGVLab/none")
    with pytest.raises(ValueError, match="no base checkpoint at 'OpenGVLab/none'.*Looked at .*OpenGVLab/none"):
        language_folder(settings)
    with pytest.raises(ValueError, match="no settings.json"):
        read_settings(tmp_path)


def made_codebook(settings):
    torch.manual_seed(0)
    codebook = DepthCodebook.from_settings(settings)
    codebook.codebook.copy_(torch.randn_like(codebook.codebook))
    return codebook


def answer(perceptio):
    "Ids, mask and depth, as text."
    image = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    out = perceptio(image, "segment the red cube", perceive="both", max_new_tokens=4)
    return f"{out.token_ids} {hashlib.sha256(out.mask.tobytes() + out.depth.tobytes()).hexdigest()}"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_stand_in(tmp_path_factory.mktemp("bases") / "stand-in")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    "From one machine to the next: a folder to work in, in which nothing of the last one is."

    def move(name, *take):
        (tmp_path / name).mkdir()
        for path in take:
            shutil.move(path, tmp_path / name / Path(path).name)
        monkeypatch.chdir(tmp_path / name)
        for other in tmp_path.iterdir():
            if other.name != name:
                shutil.rmtree(other)

    return move


def test_the_base_goes_along_twice(base, elsewhere):
    "Trained here, fine-tuned from a copy on a second machine, used on a third, and no checkout has the base."
    elsewhere("first")
    shutil.copytree(base, "stand-in")
    settings = Settings.load("smoke", base="stand-in", sam_checkpoint="stand-in/sam")
    save_model(*build_model(settings, made_codebook(settings)), "mymodel")
    elsewhere("second", Path("mymodel").absolute())
    model, tokenizer = load_model("mymodel")
    with torch.no_grad():  # what fine-tuning does
        model.mask_head.projection[0].weight += 0.01
        model.inner.lm_head.weight += 0.01 * torch.randn(
            model.inner.lm_head.weight.shape, generator=torch.manual_seed(1)
        )
    expected = answer(Perceptio(model, tokenizer))
    save_model(model, tokenizer, "tuned")
    elsewhere("third", Path("tuned").absolute())
    assert answer(Perceptio.from_pretrained("tuned", device="cpu")) == expected
    assert "second" not in Path("tuned/settings.json").read_text()  # another machine's places are no setting


def test_a_base_and_a_sam_given_by_name(base, elsewhere):
    "Published parts do not go along: here they lie elsewhere than the checkpoint says."
    elsewhere("first")
    shutil.copytree(base / "language", "published")
    weights = build_sam(Settings.load("smoke", seed=7)).state_dict()
    torch.save({"model": weights}, "sam.pt")
    settings = Settings.load("smoke", base="published", sam_checkpoint="sam.pt")
    model, tokenizer = build_model(settings, made_codebook(settings))
    expected = answer(Perceptio(model, tokenizer))
    assert not (save_model(model, tokenizer, "mymodel") / "base").exists()
    Path("parts").mkdir()
    shutil.move("published", "parts/language-model")
    shutil.move("sam.pt", "parts/sam2.pt")
    elsewhere("second", Path("mymodel").absolute(), Path("parts").absolute())
    perceptio = Perceptio.from_pretrained("mymodel", "cpu", base="parts/language-model", sam="parts/sam2.pt")
    os.chdir("..")  # SAM2 is read when the first mask is asked for
    assert answer(perceptio) == expected
    os.chdir("second")
    lmms = lmms_class(object)(pretrained="mymodel", device="cpu", base="parts/language-model", sam="parts/sam2.pt")
    assert answer(lmms.perceptio) == expected
    with pytest.raises(ValueError, match="no base checkpoint at 'published'.*Looked at .*second/published"):
        Perceptio.from_pretrained("mymodel", "cpu")
    with pytest.raises(ValueError, match="no SAM2 weights at 'parts/none.pt'.*Looked at .*second/parts/none.pt"):
        Perceptio.from_pretrained("mymodel", "cpu", base="parts/language-model", sam="parts/none.pt")
    without = Perceptio.from_pretrained("mymodel", "cpu", base="parts/language-model")
    with pytest.raises(ValueError, match="no SAM2 weights at 'sam.pt'.*Looked at .*second/sam.pt"):
        answer(without)


def test_a_checkpoint_saved_again_has_its_own_base(base, tmp_path, monkeypatch):
    "A run trained anew, after its base was: the copy in the folder is the new one."
    monkeypatch.chdir(tmp_path)
    for seed in (7, 8):
        shutil.copytree(base, "stand-in", dirs_exist_ok=True)
        settings = Settings.load("smoke", base="stand-in", sam_checkpoint="stand-in/sam", seed=seed)
        save_sam(build_sam(Settings.load("smoke", seed=seed)), "stand-in/sam")
        carry_base(settings, Path("mymodel"))
        written = (tmp_path / "stand-in/sam/sam.safetensors").read_bytes()
        assert (tmp_path / "mymodel/base/sam/sam.safetensors").read_bytes() == written
