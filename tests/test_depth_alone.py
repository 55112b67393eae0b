"""What a model with depth as its only dense token gives: samples, ids, losses, gradients and generated ids, digit by
digit.

Written before other dense tokens were allowed beside depth: `python tests/test_depth_alone.py` writes the record again.
"""

import json
import platform
from pathlib import Path

import numpy as np
import pytest
import torch

from perceptio.core.settings import Settings
from perceptio.method.codebook import DepthCodebook
from perceptio.method.generation import Perceptio
from perceptio.method.model import build_model
from perceptio.method.samples import Collator, Sample, Turn
from perceptio.world.mixture import SceneMixture, scene_codes, scene_tasks
from perceptio.world.scenes import fixture

RECORD = Path(__file__).parent / "recorded" / "depth_alone.json"
WAYS = {
    "as set": {},
    "other terms": dict(count_mode="soft", recon_target="codes", new_row_init="codebook", lm_mean="token"),
    "no depth": dict(ablation="no_depth"),
    "no mask": dict(ablation="no_seg"),
}
WATCHED = ("language_model.embed_tokens", "layers.1.self_attn.q_proj", "multi_modal_projector", "mask_head.projection")


def kernels():
    "What decides the last digits: the processor, the kernels of torch for it, its version, the threads."
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return [name, torch.backends.cpu.get_cpu_capability(), torch.__version__.split("+")[0]]


def untrained(settings):
    "A codebook with random networks, whose codes are encoder outputs at equal steps through the scenes."
    torch.manual_seed(1)
    codebook = DepthCodebook.from_settings(settings)
    maps = torch.from_numpy(fixture().disparities(slice(None)))[:, None]
    with torch.no_grad():
        z = codebook.latents(maps).permute(0, 2, 3, 1).reshape(-1, settings.code_dim)
        codebook.codebook.copy_(z[:: len(z) // settings.n_codes][: settings.n_codes])
    return codebook.freeze()


def values(tensor):
    "Norm and six values at equal steps, as hexadecimal floats."
    flat = tensor.detach().double().flatten()
    return [float(x).hex() for x in (flat.norm(), *flat[:: max(1, len(flat) // 6)][:6])]


def measured(settings):
    "Everything that is recorded, under these settings."
    torch.set_num_threads(1)
    scenes, codebook = fixture(), untrained(settings)
    model, tokenizer = build_model(settings, codebook)
    codes = scene_codes(scenes, codebook)
    mixture = SceneMixture(
        [scenes[i] for i in range(4)], [scene_tasks(scenes[i], 0) for i in range(4)], settings, codes
    )
    samples = [mixture[k] for k in range(12)]
    batch = Collator(tokenizer, model.vocab, settings, sam_pixels=model.mask_head and model.mask_head.preprocess)(
        samples
    )
    keys = batch.pop("keys")
    terms = model(**batch)
    terms["loss"].backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None and any(w in n for w in WATCHED)}
    asked = [Sample(str(i), "call", scenes[i].image, [Turn("where is a cube ?", "")]) for i in range(2)]
    said = {}
    for perceive in ("auto", "none", "seg", "depth", "both"):
        out = Perceptio(model, tokenizer).generate(asked, perceive, guided=True, max_new_tokens=6)
        said[perceive] = [o.token_ids for o in out]
        if perceive == "both" and settings.use_depth:
            said["depth map"] = [values(torch.from_numpy(o.depth)) for o in out]
    return dict(
        keys=keys,
        codes=[row.tolist() for row in codes[:2]],
        input_ids=batch["input_ids"].tolist(),
        labels=batch["labels"].tolist(),
        terms={name: float(term.detach()).hex() for name, term in sorted(terms.items())},
        gradients={name: values(g) for name, g in sorted(gradients.items())},
        said=said,
    )


def settings_of(**more):
    "Those of the record: some of the codes that are shown are wrong."
    return Settings.load("smoke", **dict(code_corruption=1.0) | more)


def all_measured():
    return dict(kernels=kernels(), ways={way: measured(settings_of(**more)) for way, more in WAYS.items()})


def leaves(tree, path=""):
    "Every leaf of a nested record, with its path."
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else None
    if pairs is None:
        yield path, tree
    for key, part in pairs or ():
        yield from leaves(part, f"{path}/{key}")


@pytest.mark.parametrize("way", WAYS)
def test_as_recorded(way):
    "Ids exactly; numbers exactly where the same kernels compute, elsewhere to six digits."
    recorded = json.loads(RECORD.read_text())
    there, here = recorded["ways"][way], json.loads(json.dumps(measured(settings_of(**WAYS[way]))))
    there, here = dict(leaves(there)), dict(leaves(here))
    assert there.keys() == here.keys()
    number = lambda x: isinstance(x, str) and x.lstrip("-").startswith("0x")  # noqa: E731
    assert {k for k in there if not number(there[k]) and there[k] != here[k]} == set()
    if kernels() == recorded["kernels"]:
        assert {k: (there[k], here[k]) for k in there if there[k] != here[k]} == {}
    numbers = [k for k in there if number(there[k])]
    old, new = (np.array([float.fromhex(side[k]) for k in numbers]) for side in (there, here))
    assert np.abs(new - old).max() <= 1e-6 * np.abs(old).max() and np.allclose(new, old, rtol=1e-4, atol=1e-6)


if __name__ == "__main__":
    RECORD.write_text(json.dumps(all_measured(), separators=(",", ":")) + "\n")
