"""A metric on two processes is the metric on one, to the sample; on HardBLINK's files the blind rules get what is known
of them."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist

from perceptio.core.launch import launch
from perceptio.evaluate.depth import MeanCodebook, evaluate_depth
from perceptio.evaluate.hardblink import hardblink_hash, published_items
from perceptio.evaluate.marked_points import evaluate_marked_points, marked_items, token_replacement_test
from perceptio.evaluate.masks import FunctionPredictor, Scripted, Shared, ask, evaluate_res, predict, res_queries
from perceptio.evaluate.metrics import Score
from perceptio.evaluate.text import evaluate_vqa, vqa_queries
from perceptio.world.scenes import fixture

BATCH = 7  # odd: the processes get parts of different lengths


def whim(sample, codes):
    "A different mask, text and depth for each sample, as if by chance; the same in every process."
    rng = np.random.default_rng(int(hashlib.sha256(sample.key.encode()).hexdigest()[:8], 16))
    height, width = sample.image.shape[:2]
    mask = np.zeros((height, width), bool)
    y, x = rng.integers(0, 100, 2)
    mask[y : y + 40, x : x + 40] = True
    text = str(rng.choice(["(A)", "(B)", "red", "2", "yes", "metal", "?"]))
    own = codes or (rng.integers(0, 128, 25).tolist() if rng.random() < 0.8 else None)
    return Scripted(text, mask if rng.random() < 0.8 else None, own, [] if own else ["5 depth codes instead of 25"])


def measure():
    "Every evaluation with `whim`, shared where there are several processes; who was asked what."
    predictor = asked = FunctionPredictor(whim)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        dist.init_process_group("gloo")
        predictor = Shared(asked)
    store, codebook = fixture(), MeanCodebook()
    items = marked_items(store, 3, debias=False)
    results = dict(
        res=evaluate_res(predictor, store, res_queries(store, scenes=5), str, batch_size=BATCH),
        marked=evaluate_marked_points(predictor, items, codebook, batch_size=BATCH),
        vqa=evaluate_vqa(predictor, store, vqa_queries(store, scenes=5), batch_size=BATCH),
        depth=evaluate_depth(predictor, store, codebook, "depth ?", batch_size=BATCH),
        replacement=token_replacement_test(predictor, items, codebook, np.random.default_rng(0), batch_size=BATCH),
    )
    keys = [s.key for batch in asked.seen for s in batch]
    everyone = [keys]
    if dist.is_initialized():
        everyone = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, keys)
    return results, everyone


def test_two_processes_give_the_numbers_of_one():
    (alone, (all_keys,)), (shared, parts) = measure(), launch(measure, processes=2)
    assert alone["res"]["metrics"]["ciou"] > 0 and 0 < alone["vqa"]["metrics"]["macro"] < 1
    for name in alone:
        assert shared[name]["records"] == alone[name]["records"], name
        assert {k: v for k, v in shared[name].items() if k != "records"} == {
            k: v for k, v in alone[name].items() if k != "records"
        }, name
    assert len(parts) == 2 and min(map(len, parts)) > len(all_keys) / 3  # both worked
    assert sorted(parts[0] + parts[1]) == sorted(all_keys)  # and nothing was asked twice


def padded():
    "How a distributed sampler would do it: five samples are padded to six, each process scores three."
    dist.init_process_group("gloo")
    share = [k % 5 for k in range(6)][dist.get_rank() :: 2]
    parts = [None, None]
    dist.all_gather_object(parts, share)
    return parts


def test_padding_would_change_n():
    nameless, keyed = Score(), Score()
    for share in launch(padded, processes=2):
        for score, key in ((nameless, lambda k: None), (keyed, lambda k: k)):
            part = Score()
            for k in share:
                part.add(key(k), hit=k == 0)
            score.merge(part)
    assert (len(nameless.records), len(keyed.records)) == (6, 5)
    assert (nameless.rate("hit"), keyed.rate("hit")) == (2 / 6, 1 / 5)


def other_samples():
    "Processes that do not ask the same."
    dist.init_process_group("gloo")
    shared, blank = Shared(FunctionPredictor(whim)), np.zeros((128, 128, 3), np.uint8)
    return list(predict(shared, range(4), lambda k: ask(f"{k}/{dist.get_rank()}", blank, "?", "none"), "none"))


def test_processes_that_ask_different_questions_are_refused():
    with pytest.raises(RuntimeError, match="given different samples"):
        launch(other_samples, processes=2)


REAL = os.environ.get("PERCEPTIO_HARDBLINK", "")


@pytest.mark.skipif(
    not REAL,
    reason="PERCEPTIO_HARDBLINK names no folder with AURORA's Data/evals/hardblink; the files cannot be shipped",
)
def test_blind_rules_on_the_published_files():
    assert Path(REAL).is_dir(), REAL
    assert hardblink_hash(REAL) == "5abdb2681815fe274bec3f3ddb65af12ee390ff89b99796be6c5ab8d963abbfc"
    items = published_items(REAL)
    silent = evaluate_marked_points(FunctionPredictor(lambda s, c: Scripted("")), items, perceive="none")
    base = silent["baselines"]
    assert [round(100 * base[f"majority@{n}"], 1) for n in (3, 4, 5)] == [37.9, 27.4, 21.8]
    assert (silent["metrics"]["n"], silent["metrics"]["average"], silent["metrics"]["parse_rate"]) == (372, 0, 0)
    if silent["metrics"]["located"]:  # counted once, apart from this code, by template matching
        lowest = [100 * base[f"lowest@{n}"] for n in (3, 4, 5)]
        assert np.allclose(lowest, [43.5, 40.3, 30.6], atol=1.7), (lowest, silent["metrics"]["located"])
