"""lmms-eval finds Perceptio by itself, runs our tasks offline, and gets our numbers, answer by answer."""

import importlib.util
import os
import subprocess
import tomllib

import pytest
import torch
from conftest import ROOT

from perceptio.core.settings import Settings
from perceptio.data.hardblink import VARIANTS, hardblink_items, write_hardblink
from perceptio.evaluate.lmms import HARDBLINK_METRICS, WORLD_METRICS, lmms_command, lmms_results, write_tasks
from perceptio.evaluate.masks import ask, predict
from perceptio.evaluate.metrics import HardBlinkScore
from perceptio.evaluate.text import evaluate_vqa, vqa_queries
from perceptio.method.codebook import DepthCodebook
from perceptio.method.generation import Perceptio
from perceptio.method.model import build_model
from perceptio.method.saving import save_model
from perceptio.world.scenes import fixture

BUDGET = 16  # text tokens, as in the tasks
needs_lmms_eval = pytest.mark.skipif(not importlib.util.find_spec("lmms_eval"), reason="lmms-eval is not installed")


def test_the_plugin_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["lmms_eval.models"] == {"perceptio": "perceptio.evaluate.lmms:manifest"}


WORDS = "(A) (B) (C) red blue green cube sphere left".split()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    "Random weights, loud enough to say words that depend on the image: scores of silence would always agree."
    torch.manual_seed(0)
    settings = Settings.load("smoke")
    codebook = DepthCodebook.from_settings(settings)
    codebook.codebook.copy_(torch.randn_like(codebook.codebook))
    model, tokenizer = build_model(settings, codebook)
    with torch.no_grad():
        head = model.backbone.get_output_embeddings().weight
        rows = [i for (i,) in tokenizer([*WORDS, tokenizer.eos_token]).input_ids]
        head[rows] = torch.randn(len(rows), head.shape[1]) * 6 * head.std()
        for name, weight in model.backbone.named_parameters():
            if "language_model" in name and weight.ndim == 2 and ("self_attn" in name or "mlp" in name):
                weight *= 20
    folder = tmp_path_factory.mktemp("checkpoint")
    save_model(model, tokenizer, folder)
    return folder


class Short:
    "Our own evaluation asks the same model; its answers are cut at the same number of text tokens."

    def __init__(self, perceptio):
        self.perceptio = perceptio

    def generate(self, samples, perceive):
        outputs = self.perceptio.generate(samples, perceive, max_new_tokens=BUDGET)
        for out in outputs:
            out.text = self.perceptio.tokenizer.decode(out.parsed.text_ids[:BUDGET], skip_special_tokens=True).strip()
        return outputs


@pytest.fixture(scope="module")
def run(checkpoint, tmp_path_factory):
    "Both tasks in one call of lmms-eval, without a network."
    folder = tmp_path_factory.mktemp("lmms")
    write_hardblink(folder, [fixture()[k] for k in range(12)])
    tasks = write_tasks(folder / "tasks", hardblink=folder, store=fixture())
    command = lmms_command(checkpoint, tasks, folder / "out", include=folder / "tasks", batch_size=16, device="cpu")
    offline = {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, env=os.environ | offline, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, lmms_results(folder / "out"), done.stdout


@needs_lmms_eval
def test_choice_questions_get_our_own_scores(run, checkpoint):
    _, results, table = run
    own = evaluate_vqa(
        Short(Perceptio.from_pretrained(checkpoint, "cpu")), fixture(), vqa_queries(fixture()), batch_size=16
    )
    theirs = results["perceptio_world_choice"]
    assert "perceptio_world_choice" in table
    assert [r["target"] for r in theirs["records"]] == [r["answer"] for r in own["records"]]
    assert [r["text"] for r in theirs["records"]] == [r["text"] for r in own["records"]]
    assert theirs["metrics"] == pytest.approx({m: own["metrics"][m] for m in WORLD_METRICS})
    assert theirs["metrics"]["macro"] > 0 and len({r["text"] for r in own["records"]}) > 20  # else any text would agree


@needs_lmms_eval
def test_hardblink_gets_our_own_scores(run, checkpoint):
    folder, results, _ = run
    items = [item for n in VARIANTS for item in hardblink_items(folder, n)]
    score, texts = HardBlinkScore(), []
    to_sample = lambda item: ask(item.key, item.pixels(), item.question, "depth")  # noqa: E731
    for item, out in predict(Short(Perceptio.from_pretrained(checkpoint, "cpu")), items, to_sample, "depth", 16):
        score.update(out.text, item.answer, len(item.letters), item.letters, item.key)
        texts.append(out.text)
    theirs = results["hardblink"]
    assert theirs["n"] == 372
    assert [r["text"] for r in theirs["records"]] == texts
    assert theirs["metrics"] == pytest.approx({m: score.compute()[m] for m in HARDBLINK_METRICS})
    assert theirs["metrics"]["average"] > 0 and len(set(texts)) > 20
