"""Section 3.5 of the paper (its experimental setup), value by value, and the rules of settings.ini."""

import re
from dataclasses import fields

import pytest
from conftest import ROOT

from perceptio.core.settings import ABLATIONS, Settings, sizes

# As printed in section 3.5, the experimental setup. Right: settings of both published sizes.
PRINTED = {
    "64 NVIDIA A100 GPUs": ("world_size", 64),
    "maximum sequence length of 8,192 tokens": ("max_length", 8192),
    "learning rate of 4e-5": ("lr", 4e-5),
    "batch size of 1 per device": ("batch_size", 1),
    "gradient accumulation over 8 steps": ("grad_accum", 8),
    "LoRA rank 256": ("lora_rank", 256),
    "linear warmup for the first 5%": ("warmup", 0.05),
    "gradient clipping, maximum norm 1.0": ("clip", 1.0),
    "codebook K = 128": ("n_codes", 128),
    "n = 100 depth tokens": ("n_depth_tokens", 100),
    "cross-entropy weight 1.0": ("mask_ce", 1.0),
    "DICE weight 0.25": ("mask_dice", 0.25),
    "VQ-VAE reconstruction weight 1.0, lambda_r": ("lambda_recon", 1.0),
    "lambda_m": ("lambda_marker", 0.3),
    "lambda_t": ("lambda_token", 0.5),
    "lambda_c": ("lambda_count", 0.2),
    "lambda_d": ("lambda_depth", 1.0),
    "665K LLaVA-1.5": ("mix_vqa", 665),
    "214K grounded conversation generation": ("mix_grounded", 214),
    "60K ADE20K": ("mix_depth", 60),
    "56K joint": ("mix_joint", 56),
    "RefCOCO 17K + RefCOCO+ 17K + RefCOCOg 22K": ("mix_res", 17 + 17 + 22),
}


@pytest.mark.parametrize("size", ["4B", "8B"])
@pytest.mark.parametrize("words", PRINTED)
def test_value_of_the_paper(size, words):
    name, value = PRINTED[words]
    assert getattr(Settings.load(size), name) == value


@pytest.mark.parametrize("size", ["4B", "8B"])
def test_effective_batch_is_512(size):
    s = Settings.load(size)
    assert s.batch_size * s.grad_accum * s.world_size == 512
    assert s.base == f"OpenGVLab/InternVL2_5-{size}"


def test_every_size_and_ablation_loads():
    assert sizes() == ("smoke", "tiny", "1B", "2B", "4B", "8B")
    assert all(Settings.load(size, ablation).ablation == ablation for size in sizes() for ablation in ABLATIONS)


def test_first_line_says_what_the_file_is():
    first = (ROOT / "settings.ini").read_text().splitlines()[0]
    assert "Perceptio" in first and "not nbdev's" in first


def test_every_default_cites_its_source():
    "A section of the paper, a published configuration, or a word that it is not in the paper."
    text = (ROOT / "settings.ini").read_text().split("[DEFAULT]")[1].split("\n[")[0]
    names = {f.name for f in fields(Settings)}
    for line in text.splitlines():
        if (name := line.split("=")[0].strip()) in names and not name.startswith("n_") and name not in ("base", "data"):
            known = r"#.*(\b3\.\d|not in the paper|InternVL|SAM2|AURORA|by epochs|MB per image|ablations)"
            assert re.search(known, line), f"no source: {line}"


def test_smoke_has_the_shape_of_tiny():
    "Tests run smoke; what they prove must hold for tiny."
    tiny, smoke = Settings.load("tiny"), Settings.load("smoke")
    assert set(smoke.differences(tiny)) <= {
        *(
            "size",
            "base",
            "sam_checkpoint",
            "mask_dim",
            "codebook_steps",
            "max_steps",
            "batch_size",
            "precision",
            "epochs",
        ),
        *("vision_hidden", "vision_layers", "vision_heads", "vision_mlp", "text_hidden", "text_layers", "text_mlp"),
        "depth_size",
        *("code_prediction", "decode", "block_weight"),  # as the published sizes; tests of the block ask for it
        *("n_train", "n_val", "n_test", "lr", "mask_lr"),
    }


CHANGED = {  # by each ablation, from the full 8B: Tables 3 to 5, and how codes are written
    "no_depth": {"use_depth", "mix_depth", "lambda_depth", "lambda_recon"},
    "no_seg": {"use_seg", "mix_res", "mix_grounded", "mask_ce", "mask_dice"},
    "no_depth_recon": {"lambda_recon"},
    "no_depth_tokens": {"lambda_depth"},
    "sequential": set(),
    "block": {"code_prediction", "decode"},
    "joint": {"code_prediction", "decode"},
}


@pytest.mark.parametrize("ablation", CHANGED)
def test_what_an_ablation_changes(ablation):
    assert set(Settings.load("8B", ablation).differences(Settings.load("8B"))) == CHANGED[ablation] | {"ablation"}
