"""An exported and a converted folder in the hands of a program that imports transformers and nothing of ours."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from safetensors import safe_open

from perceptio.convert.published import SMALL_SHAPES, random_checkpoint
from perceptio.convert.tokenizers import convert_checkpoint
from perceptio.core.settings import Settings
from perceptio.method.backbone import image_tiles, image_tokens
from perceptio.method.codebook import DepthCodebook
from perceptio.method.model import build_model
from perceptio.method.samples import prompt_ids
from perceptio.method.saving import export_backbone, save_model

QUESTION = "where is a red cube ?"
STRANGER = """
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer
from transformers import InternVLProcessor, LogitsProcessor


class Processor(InternVLProcessor):
    "transformers' class; only the check that a video processor is there, which needs torchvision, is left out."

    def check_argument_for_proper_class(self, name, argument):
        return type(argument) if name == "video_processor" else super().check_argument_for_proper_class(name, argument)


class Third(LogitsProcessor):
    "Two tokens of no meaning, then <|im_end|>, then anything."

    def __init__(self, start, end):
        self.start, self.end = start, end

    def __call__(self, ids, scores):
        scores[:, self.end] = 1e9 if ids.shape[1] == self.start + 2 else -1e9
        return scores


def answer(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    length = json.loads((Path(folder) / "processor_config.json").read_text())["image_seq_length"]
    images, template = AutoImageProcessor.from_pretrained(folder), tokenizer.chat_template
    processor = Processor(images, tokenizer, None, image_seq_length=length, chat_template=template)
    content = [dict(type="image", image=Image.open("photo.png")), dict(type="text", text=sys.argv[1])]
    asked = dict(add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
    inputs = processor.apply_chat_template([dict(role="user", content=content)], **asked)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    np.save(Path(folder).name + ".npy", inputs["pixel_values"].float().numpy())
    inputs = inputs.to(model.dtype)
    start = inputs["input_ids"].shape[1]
    forced = Third(start, tokenizer.convert_tokens_to_ids("<|im_end|>"))
    said = model.generate(**inputs, max_new_tokens=9, logits_processor=[forced])
    types = {str(p.dtype) for p in model.parameters()}
    return dict(ids=inputs["input_ids"][0].tolist(), said=said.shape[1] - start, types=sorted(types))


torch.set_num_threads(1)
found = {folder: answer(folder) for folder in sys.argv[2:]}
assert not [name for name in sys.modules if name.startswith("perceptio")]
print(json.dumps(found))
"""


def smoke_export(home):
    settings = Settings.load("smoke")
    model, tokenizer = build_model(settings, DepthCodebook.from_settings(settings))
    export_backbone(save_model(model, tokenizer, home / "checkpoint"), home / "smoke")
    return settings, tokenizer, model.vocab


def published_export(home):
    "A small random checkpoint of the published format, converted; then LoRA and new rows on its bfloat16, exported."
    shapes, source = random_checkpoint(home / "published")
    convert_checkpoint(source, home / "converted", shapes)
    parts = dict(sam_config="tiny", sam_checkpoint="", sam_image_size=128, mask_dim=128, mask_points=0)
    depth = dict(n_depth_tokens=25, depth_size=80, code_dim=64, codebook_preset="compact")
    lora = dict(base=str(home / "converted"), lora_rank=4, lora_alpha=8, precision="bf16", max_tiles=2)
    settings = Settings.load("4B", **SMALL_SHAPES | parts | depth | lora)
    model, tokenizer = build_model(settings, DepthCodebook.from_settings(settings))
    export_backbone(save_model(model, tokenizer, home / "lora"), home / "trained")
    return settings, tokenizer, model.vocab


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    "What a stranger's program makes of three folders, and what our own prompt is."
    home = tmp_path_factory.mktemp("exported")
    ours = dict(smoke=smoke_export(home), trained=published_export(home))
    ours["converted"] = (Settings.load("4B", **SMALL_SHAPES), *ours["trained"][1:])
    photo = np.random.default_rng(0).integers(0, 256, (56, 112, 3), dtype=np.uint8)
    Image.fromarray(photo).save(home / "photo.png")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", STRANGER, QUESTION, *ours]
    done = subprocess.run(command, cwd=home, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return home, photo, ours, json.loads(done.stdout.splitlines()[-1])


def test_a_stranger_reads_our_prompt(exported):
    home, photo, ours, theirs = exported
    for name, (settings, tokenizer, _) in ours.items():
        pixels = image_tiles(photo, settings)
        assert np.array_equal(np.load(home / f"{name}.npy"), pixels.numpy()), name
        tokens = len(pixels) * image_tokens(settings)
        assert theirs[name]["ids"] == prompt_ids(QUESTION, "none", tokens, tokenizer, settings), name
        assert theirs[name]["ids"].count(tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")) == tokens, name


def test_generation_ends_with_the_answer(exported):
    for name, found in exported[3].items():
        assert found["said"] == 3, name  # two tokens and <|im_end|>; nine without an end


def test_one_type_in_a_folder(exported):
    home, _, _, theirs = exported
    wanted = dict(smoke="float32", trained="bfloat16", converted="float32")
    for name, kind in wanted.items():
        assert theirs[name]["types"] == [f"torch.{kind}"], name
        assert json.loads((home / name / "config.json").read_text())["dtype"] == kind, name
        for file in (home / name).glob("*.safetensors"):
            with safe_open(file, "pt") as weights:
                assert {weights.get_tensor(k).dtype for k in weights.keys()} == {getattr(torch, kind)}, name


def test_files_of_the_processor(exported):
    "What `AutoProcessor` reads where torchvision is: written here from InternVL's published values."
    for name, side, tiles, length in (("smoke", 128, 1, 64), ("trained", 56, 2, 4), ("converted", 56, 12, 4)):
        folder = exported[0] / name
        pixels, processor, video, stop, tokens, words = (
            json.loads((folder / f"{file}.json").read_text())
            for file in ("preprocessor_config", "processor_config", "video_preprocessor_config", "generation_config",
                         "tokenizer_config", "tokenizer")
        )  # fmt: skip
        constants = dict(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225], resample=3, do_rescale=True)
        constants |= dict(do_normalize=True, do_resize=True, do_convert_rgb=True, size=dict(height=side, width=side))
        assert {k: pixels[k] for k in constants} == {k: video[k] for k in constants} == constants
        assert abs(pixels["rescale_factor"] - 1 / 255) < 1e-12
        assert (pixels["crop_to_patches"], pixels["min_patches"], pixels["max_patches"]) == (tiles > 1, 1, tiles)
        assert (pixels["image_processor_type"], video["video_processor_type"]) == (
            "GotOcr2ImageProcessor",
            "InternVLVideoProcessor",
        )
        assert processor == dict(processor_class="InternVLProcessor", image_seq_length=length)
        named = [tokens[k] for k in ("start_image_token", "end_image_token", "context_image_token", "eos_token")]
        assert named == ["<img>", "</img>", "<IMG_CONTEXT>", "<|im_end|>"]
        assert tokens["video_token"] == dict(smoke="<pad>").get(name, "<|endoftext|>")
        added = {token["content"]: token["id"] for token in words["added_tokens"]}
        assert (stop["eos_token_id"], stop["do_sample"]) == (added["<|im_end|>"], False)
    assert ROOT not in exported[0].parents  # nothing of the checkout was near
