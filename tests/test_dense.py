"""A mask, depth and normals in one sequence: a second dense token from its section of settings.ini to a map in the
answer."""

import importlib
import json
import linecache
import shutil
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import ROOT, cells, source

from perceptio.core.dense import DenseMaps, further_tokens
from perceptio.core.notebook import run_dir
from perceptio.core.record import read_metrics, read_result
from perceptio.core.settings import Settings
from perceptio.data.paper_mixture import PaperMixture
from perceptio.data.prepare import open_sources, prepare_sources
from perceptio.method.backbone import set_trainable
from perceptio.method.backbone_files import read_tokenizer
from perceptio.method.codebook import DenseCodebook
from perceptio.method.generation import Perceptio
from perceptio.method.losses import marker_loss, token_loss
from perceptio.method.model import build_language, build_model
from perceptio.method.samples import Collator, DenseMap, Sample, Turn, encode_sample, prompt_ids
from perceptio.method.saving import export_backbone, save_model
from perceptio.method.soft_merge import depth_reconstruction_loss, soft_merge
from perceptio.method.tokens import request_name, request_parts
from perceptio.testing.example import example_depth, rendered_depth, write_aurora, write_example
from perceptio.train.dry_run import check_length, meta_model
from perceptio.world.mixture import SceneMixture, dense_scenes, scene_codes, scene_tasks
from perceptio.world.scenes import fixture

WORDS = dict(mask="seg", depth="depth", normals="normals")


def drawn_codes(codebook, seed):
    codebook.codebook.copy_(torch.randn(codebook.codebook.shape, generator=torch.Generator().manual_seed(seed)))
    return codebook


@pytest.fixture(scope="module")
def made():
    "Settings, model, tokenizer, and two scenes as samples: one with all three, one with normals alone."
    torch.manual_seed(0)
    settings = Settings.load("smoke", dense="depth normals", max_length=384, code_corruption=0.0, lm_mean="token")
    (token,) = further_tokens(settings)
    depth = drawn_codes(DenseCodebook.from_settings(settings), 0)
    normals = drawn_codes(DenseCodebook.from_settings(settings, token), 1)
    model, tokenizer = build_model(settings, depth, dict(normals=normals))
    samples = []
    for k, perceive in ((0, "seg+depth+normals"), (1, "normals")):
        scene, known = fixture()[k], {}
        if "depth" in perceive:
            ids = depth.encode(torch.from_numpy(scene.disparity)[None, None])[0].numpy()
            known = dict(disparity=scene.disparity, codes=ids)
        own = normals.maps.of_scene(scene)
        known["dense"] = dict(normals=DenseMap(own, normals.encode(torch.from_numpy(own)[None])[0].numpy()))
        mask = scene.mask(1) if "seg" in perceive else None
        samples.append(
            Sample(f"{k}", "joint", scene.image, [Turn("where is a cube ?", "left", perceive, mask)], **known)
        )
    return settings, model, tokenizer, samples


def test_one_sequence(made):
    "[SEG] <d_start> ... <d_end> <n_start> ... <n_end> text, and any subset of it."
    settings, model, tokenizer, samples = made
    names = tokenizer.convert_ids_to_tokens
    _, labels = encode_sample(samples[0], tokenizer, model.vocab, settings)
    said = names([i for i in labels if i != -100])
    codes = [[f"<{x}_{k}>" for k in ids] for x, ids in zip("dn", samples[0].known_codes().values())]
    spans = [[f"<{x}_start>", *ids, f"<{x}_end>"] for x, ids in zip("dn", codes)]
    assert said == ["[SEG]", *spans[0], *spans[1], "Ġleft", "<|im_end|>"]
    _, labels = encode_sample(samples[1], tokenizer, model.vocab, settings)
    assert names([i for i in labels if i != -100])[0] == "<n_start>" and labels.count(model.vocab.seg_id) == 0
    ids, _ = encode_sample(samples[0], tokenizer, model.vocab, settings)
    assert tokenizer.decode(ids).count("with mask and depth and normals .") == 1
    without = replace(settings, use_seg=False)
    _, labels = encode_sample(samples[0], tokenizer, model.vocab, without)
    assert names([i for i in labels if i != -100]) == [*spans[0], *spans[1], "Ġleft", "<|im_end|>"]


def test_a_map_within_an_answer(made):
    "An inline answer has the span of a dense token where it names it; without its codes, nothing."
    settings, model, tokenizer, samples = made
    names, turn = tokenizer.convert_ids_to_tokens, Turn("where ?", "left <normals> of <depth> cube", "inline")
    codes = [f"<n_{k}>" for k in samples[1].known_codes()["normals"]]
    _, labels = encode_sample(replace(samples[1], turns=[turn]), tokenizer, model.vocab, settings)
    said = names([i for i in labels if i != -100])
    assert said == ["Ġleft", "<n_start>", *codes, "<n_end>", "Ġof", "Ġcube", "<|im_end|>"]


def test_losses_are_those_of_the_equations(made):
    "The terms of normals are the equations' own functions on full logits, with the vocabulary of normals."
    settings, model, tokenizer, samples = made
    batch = Collator(tokenizer, model.vocab, settings, sam_pixels=model.mask_head.preprocess)(samples)
    batch.pop("keys")
    assert batch["dense"]["normals"].shape == (2, 3, 128, 128) and batch["depth"].shape == (2, 1, 128, 128)
    terms = model(**batch)
    with torch.no_grad():
        logits = model.inner.lm_head(model.hidden_states(batch["input_ids"], batch["pixel_values"]))
    labels, span, codebook = batch["labels"], model.vocab.dense["normals"], model.others["normals"]
    latents, valid = soft_merge(logits, labels, span, codebook.codebook)
    target = codebook.resize(batch["dense"]["normals"])
    wanted = dict(
        normals_marker=marker_loss(logits, labels, span),
        normals_token=token_loss(logits, labels, span),
        normals_recon=depth_reconstruction_loss(latents, valid, codebook.decode_latents, target),
    )
    assert valid.tolist() == [True, True]
    for name, value in wanted.items():
        assert abs(terms[name].item() - value.item()) < 1e-5, name
    s, part = settings, {k: v.item() for k, v in terms.items()}
    total = (
        part["llm"] + s.mask_ce * part["mask_ce"] + s.mask_dice * part["mask_dice"] + s.seg_point * part["seg_point"]
    )
    for own in ("", "normals_"):
        depth = sum(getattr(s, f"lambda_{x}") * part[f"{own}{x}"] for x in ("marker", "token", "count"))
        total += s.lambda_depth * depth + s.lambda_recon * part[f"{own}recon"]
    assert abs(part["loss"] - total) < 1e-4
    terms["normals_recon"].backward()
    rows = model.inner.lm_head.weight.grad.norm(dim=1)
    assert rows[list(span.code_ids)].min() > 0 and rows[list(model.vocab.code_ids)].max() == 0
    model.zero_grad()


def test_any_subset_on_request(made, tmp_path):
    "Saved, loaded, asked: exactly the parts that are named come, in the order of Eq. 1."
    settings, model, tokenizer, samples = made
    save_model(model, tokenizer, tmp_path)
    loaded = Perceptio.from_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.glob("codebook*")) == ["codebook", "codebook_normals"]
    image = fixture()[0].image
    for perceive in ("seg", "depth", "both", "normals", "normals+seg", "depth+normals", "seg+depth+normals"):
        parts = {"both": {"seg", "depth"}}.get(perceive, set(perceive.split("+")))
        out = loaded(image, "where is a cube ?", perceive=perceive, max_new_tokens=2)
        assert (out.mask is not None, out.depth is not None, "normals" in out.dense) == tuple(
            p in parts for p in ("seg", "depth", "normals")
        )
        assert out.parsed.well_formed and len(out.token_ids) <= ("seg" in parts) + 66 * len(parts - {"seg"}) + 2
    n = 2 * out.dense["normals"] - 1
    assert n.shape == (3, 128, 128) and np.abs(np.linalg.norm(n, axis=0) - 1).max() < 1e-4
    assert len(out.figure().axes) == 4  # image, mask, depth, normals
    written = loaded.generate([samples[0]], "depth+normals", codes=[samples[0].known_codes()], max_new_tokens=2)[0]
    assert written.parsed.others["normals"] == samples[0].known_codes()["normals"].tolist()
    with pytest.raises(ValueError, match="there is no 'flow'"):
        loaded(image, "where is a cube ?", perceive="seg+flow")
    chat = loaded.chat(image)
    assert "normals" in chat("where is a cube ?", perceive="normals", max_new_tokens=2).dense


def test_a_codebook_that_is_missing_or_another_is_refused(made):
    settings, model, _, _ = made
    with pytest.raises(ValueError, match="no codebook of normals was given; there are none"):
        build_model(settings, model.codebook)
    with pytest.raises(ValueError, match="is one of depth"):
        build_model(settings, model.codebook, dict(normals=model.codebook))


def test_a_run_with_normals():
    "The trainer, the files and the measurements take them from the settings: nothing else is said."
    from perceptio.evaluate.suite import measurements
    from perceptio.train.run import begin_run, train_run
    from perceptio.world.mixture import world, world_hash

    settings = Settings.load("smoke", dense="depth normals", max_length=301, max_steps=2, n_test=1, batch_size=4)
    check_length(settings)  # and 301 is the least that it allows
    with pytest.raises(ValueError, match="set max_length = 301 or more"):
        check_length(replace(settings, max_length=300))
    stores = world(settings, progress=False)
    begin_run(settings, "normals", world_hash(stores))
    train_run(settings, "normals", curve_points=0)
    predictor = Perceptio.from_pretrained(run_dir("normals"))
    found = measurements(predictor, stores, settings, predictor.codebook, scenes=3, quick=True)["normals"]()
    assert {"mean_angle", "median_angle", "floor", "written", "n"} <= set(found["metrics"])
    if not found["metrics"]["written"]:  # what was not written counts as the best constant map
        assert abs(found["metrics"]["mean_angle"] - found["baselines"]["constant"]) < 1e-6
    saved = (
        json.loads((run_dir("normals") / "checkpoint" / "settings.json").read_text())["dense"],
        set(p.name for p in (run_dir("normals") / "checkpoint").glob("codebook_*")),
    )
    assert saved == ("depth normals", {"codebook_normals"})


def test_the_codebook_of_a_named_token(monkeypatch):
    "train_codebook.ipynb -p token normals: trained on exact maps, measured in degrees, saved as a run reads it."
    space, load = {}, Settings.load
    monkeypatch.setattr(Settings, "load", lambda size, **chosen: load(size, **dict(n_train=8, n_test=1) | chosen))
    for cell in (c for c in cells(ROOT / "nbs" / "train_codebook.ipynb") if c["cell_type"] == "code"):
        exec(source(cell), space)
        if "parameters" in cell["metadata"].get("tags", ()):
            space |= dict(size="smoke", token="normals", steps=10)
    plt.close("all")
    result, book = read_result(name := "codebook-normals-smoke-64", name), space["trained"][64]["codebook"]
    truth = torch.from_numpy(np.stack([book.maps.of_scene(scene) for scene in space["seen"]["val"]]))
    wanted = book.maps.valid(book.resize(truth.float())).numpy()
    angle = book.maps.compare(book.decode(book.encode(torch.from_numpy(wanted))).numpy(), wanted)["mean_angle"].mean()
    assert result["metrics"]["mean_angle"] == pytest.approx(angle, abs=0.1)  # kept maps are in half precision
    assert DenseCodebook.from_pretrained(run_dir(name) / "codebook").token == "normals"


def test_a_checkpoint_brings_its_section(tmp_path, monkeypatch):
    "It is read, and answers, where settings.ini knows nothing of its token; another token of that name is refused."
    monkeypatch.setattr("perceptio.core.settings.BROUGHT", brought := {})
    monkeypatch.setattr("perceptio.method.saving.BROUGHT", brought)
    with monkeypatch.context() as here:
        settings_with_silhouettes(tmp_path, here)
        settings = Settings.load("smoke", dense="depth silhouettes", max_length=384)
        (token,) = further_tokens(settings)
        books = dict(silhouettes=drawn_codes(DenseCodebook.from_settings(settings, token), 0))
        model, tokenizer = build_model(settings, drawn_codes(DenseCodebook.from_settings(settings), 0), books)
        save_model(model, tokenizer, tmp_path / "checkpoint")
        other = tmp_path / "settings.ini"
        other.write_text(other.read_text().replace("letter = s\n", "letter = x\n"))
        with pytest.raises(ValueError, match="trained with letter = s in .dense.silhouettes., and here it is x"):
            Perceptio.from_pretrained(tmp_path / "checkpoint")
    with pytest.raises(ValueError, match="no section .dense.silhouettes."):
        Settings.load("smoke", dense="depth silhouettes")
    out = Perceptio.from_pretrained(tmp_path / "checkpoint")(
        fixture()[0].image, "where ?", "silhouettes", max_new_tokens=2
    )
    assert out.dense["silhouettes"].shape == (1, 128, 128)
    path = tmp_path / "checkpoint" / "dense.json"
    path.write_text(path.read_text().replace(__name__, "nowhere.at_all"))
    brought.clear()
    with pytest.raises(ValueError, match="in a module that Python finds"):
        Perceptio.from_pretrained(tmp_path / "checkpoint")


class Silhouettes(DenseMaps):
    "1 where an object stands: a third token, of no use but to be added."

    title, meaning = "silhouettes", dict(quantity="1 where an object stands, 0 elsewhere")
    valid = lambda self, decoded: decoded.clamp(0, 1)  # noqa: E731
    of_scene = lambda self, scene: (scene.ids > 0)[None].astype(np.float32)  # noqa: E731
    of_disparity = lambda self, disparity: (disparity > 0.5)[None] * 1.0  # noqa: E731
    show = lambda self, map: map[0]  # noqa: E731
    compare = lambda self, maps, truth: dict(share_wrong=abs(maps - truth).mean((1, 2, 3)))  # noqa: E731


def settings_with_silhouettes(tmp_path, monkeypatch):
    "A settings file of its own, with the section of the third token."
    section = f"\n[dense.silhouettes]\nletter = s\nmaps = {__name__}.Silhouettes\nn_tokens = 16\nn_codes = 8\n"
    mine = tmp_path / "settings.ini"
    mine.write_text((ROOT / "settings.ini").read_text() + section)
    monkeypatch.setattr("perceptio.core.settings.settings_file", lambda: mine)


def requests(settings, tokenizer, names):
    "The ids of one question with every set of parts."
    sets = [[n for k, n in enumerate(names) if chosen >> k & 1] for chosen in range(2 ** len(names))]
    return [
        tuple(prompt_ids("which point is closest ?", request_name(parts), 0, tokenizer, settings)) for parts in sets
    ]


@pytest.mark.parametrize("size", ["smoke", "tiny"])
@pytest.mark.parametrize("dense", ["depth", "depth normals", "depth normals silhouettes"])
def test_every_request_is_a_prompt_of_its_own(size, dense, tmp_path, monkeypatch):
    "No two sets of parts are the same ids, and none has an unknown word; the added words' rows are new and trained."
    settings_with_silhouettes(tmp_path, monkeypatch)
    settings = Settings.load(size, dense=dense, max_length=384)
    backbone, tokenizer, vocab = build_language(settings)
    prompts = requests(settings, tokenizer, names := ["seg", *dense.split()])
    assert len(set(prompts)) == 2 ** len(names)
    assert not {tokenizer.unk_token_id} & {i for prompt in prompts for i in prompt}
    added = dense.split()[1:] if tokenizer.unk_token else []  # what spells needs no further words
    assert tokenizer.convert_ids_to_tokens(list(vocab.word_ids)) == added
    assert len(backbone.get_input_embeddings().weight) == max(vocab.ids) + 1 + len(added) == len(tokenizer)
    assert meta_model(settings).inner.lm_head.weight.shape == backbone.lm_head.weight.shape
    for ways in ("full", "new_rows"):
        trained = set_trainable(deepcopy(backbone), replace(settings, new_embeddings=ways), vocab)
        embedding = trained.get_input_embeddings()
        embedding(torch.tensor(vocab.word_ids or vocab.ids)).sum().backward()
        (rows,) = [p.grad for p in embedding.parameters() if p.grad is not None]
        assert rows[-max(1, len(added)) :].abs().min() > 0


def test_added_words_are_saved(tmp_path):
    "A checkpoint, and its language model exported for other programs, read the same prompts and the same rows."
    settings = Settings.load("tiny", dense="depth normals", max_length=384)  # its base has words and no pieces
    (token,) = further_tokens(settings)
    books = [drawn_codes(DenseCodebook.from_settings(settings, t), 0) for t in (None, token)]
    model, tokenizer = build_model(settings, books[0], dict(normals=books[1]))
    save_model(model, tokenizer, tmp_path / "checkpoint")
    loaded = Perceptio.from_pretrained(tmp_path / "checkpoint")
    export_backbone(tmp_path / "checkpoint", tmp_path / "plain")
    prompts = requests(settings, tokenizer, ["seg", "depth", "normals"])
    assert loaded.vocab.word_ids == model.vocab.word_ids and len(model.vocab.word_ids) == 1
    for other in (loaded.tokenizer, read_tokenizer(tmp_path / "plain")):
        assert requests(settings, other, ["seg", "depth", "normals"]) == prompts
    row = model.vocab.word_ids[0]
    assert torch.equal(loaded.model.inner.lm_head.weight[row], model.inner.lm_head.weight[row])
    assert tokenizer.decode(tokenizer("the normals left").input_ids) == "the normals left"


def test_a_third_takes_a_section_and_a_class(tmp_path, monkeypatch):
    "Nothing else is edited: a section of settings.ini and the class above, from codebook to answer."
    settings_with_silhouettes(tmp_path, monkeypatch)
    settings = Settings.load("smoke", dense="depth normals silhouettes", max_length=384, code_corruption=0.5)
    scenes, (normals, silhouettes) = [fixture()[k] for k in range(4)], further_tokens(settings)
    books = {t.name: drawn_codes(DenseCodebook.from_settings(settings, t), 0) for t in (normals, silhouettes)}
    depth = drawn_codes(DenseCodebook.from_settings(settings), 0)
    model, tokenizer = build_model(settings, depth, books)
    known = dense_scenes(fixture(), settings, books)
    mixture = SceneMixture(
        scenes, [scene_tasks(s, 0) for s in scenes], settings, scene_codes(fixture(), depth), dense=known
    )
    samples = [mixture.make("joint", k % 4, np.random.default_rng(k)) for k in range(12)]
    asked = {name for s in samples for name in s.turns[0].perceive.split("+")}
    assert {"silhouettes", "normals", "seg"} <= asked
    batch = Collator(tokenizer, model.vocab, settings, sam_pixels=model.mask_head.preprocess)(samples[:4])
    batch.pop("keys")
    terms = model(**batch)
    assert {"silhouettes_marker", "silhouettes_token", "silhouettes_count", "silhouettes_recon"} <= set(terms)
    save_model(model, tokenizer, tmp_path / "checkpoint")
    out = Perceptio.from_pretrained(tmp_path / "checkpoint")(
        scenes[0].image, "where ?", "silhouettes+seg", max_new_tokens=2
    )
    assert tokenizer.convert_ids_to_tokens(out.token_ids)[:2] == ["[SEG]", "<s_start>"]
    assert out.dense["silhouettes"].shape == (1, 128, 128) and len(out.parsed.others["silhouettes"]) == 16


def literal_codes(codebook, disparity):
    "What a token's codebook says of a teacher's map, written out: the map, its pixels, the nearest of the K vectors."
    own = torch.from_numpy(np.asarray(codebook.maps.of_disparity(disparity), np.float32))[None]
    seen = codebook.maps.valid(torch.nn.functional.interpolate(own, (40, 40), mode="bilinear", antialias=True))
    with torch.no_grad():
        z = codebook.encoder(seen * 2 - 1)[0].flatten(1).T  # (n, D), row by row
    return ((z[:, None] - codebook.codebook[None]) ** 2).sum(-1).argmin(1), seen[0].numpy()


def test_real_rows_take_a_section_and_a_class_too(tmp_path, monkeypatch):
    "Rows of real formats, the teacher's maps, three dense tokens: from cache through mixture to batch and losses."
    settings_with_silhouettes(tmp_path, monkeypatch)
    names = ("depth", "normals", "silhouettes")
    depth = example_depth(tmp_path / "depth_tokens", " ".join(names))
    write_aurora(write_example(tmp_path / "data"), depth.codebook)
    prepare_sources(tmp_path / "data", tmp_path / "rows", depth=depth)
    books = {name: one.codebook for name, one in depth.further.items()}
    sources = open_sources(tmp_path / "rows", depth.codebook, books)
    assert all(set(s.dense) == set(names[1:]) for s in sources if s.name in ("joint", "ade20k"))
    small = dict(data="paper", n_depth_tokens=100, max_length=1024, code_corruption=0.0, mask_size=32)
    more = dict(mix_grounded=1.0, use_own=False, cache_sam_features=False)
    settings = Settings.load("smoke", dense=" ".join(names), **small | more)
    mixture = PaperMixture(sources, settings, epochs=20, skipped=tmp_path / "skipped.jsonl")
    samples, asked, checked = [], set(), set()
    for k in range(len(mixture)):
        row, _ = mixture.place(k)
        source, record = mixture.locate(row)
        if source.name not in ("joint", "ade20k") or not (sample := mixture[k]).turns:
            continue
        requests = [t.perceive for t in sample.turns if t.perceive != "inline"]
        parts = {part for request in requests for part in request_parts(request, names)}
        asked.add(tuple(part for part in names if part in parts))
        assert set(sample.dense) == parts & set(names[1:])
        for name, known in sample.dense.items():
            codes, seen = literal_codes(books[name], rendered_depth(source.images / record["image"]))
            assert known.codes.tolist() == codes.tolist()
            assert known.map.shape == seen.shape and np.abs(known.map - seen).max() <= 0.5 / 255 + 1e-6
            checked.add((source.name, name))
        if len(parts & set(names)) > 1 and len(samples) < 4:
            samples.append(sample)
    subsets = {tuple(n for k, n in enumerate(names) if choice >> k & 1) for choice in range(1, 8)}
    assert subsets <= asked and checked == {(s, n) for s in ("joint", "ade20k") for n in names[1:]}
    model, tokenizer = build_model(settings, depth.codebook, books)
    batch = Collator(tokenizer, model.vocab, settings, sam_pixels=model.mask_head.preprocess)(samples)
    batch.pop("keys")
    assert {name: tuple(maps.shape) for name, maps in batch["dense"].items()} == {
        name: (4, books[name].maps.channels, 40, 40) for name in batch["dense"]
    }
    for k, sample in enumerate(samples):
        for name, known in sample.dense.items():
            span, labels = model.vocab.dense[name], batch["labels"][k].tolist()
            at = labels.index(span.start_id) + 1
            assert [i - span.code_ids[0] for i in labels[at : at + span.n_tokens]] == known.codes.tolist()
    terms = model(**batch)
    assert {f"{name}_recon" for name in batch["dense"]} <= set(terms) and torch.isfinite(terms["loss"])


def test_a_run_on_real_rows_with_normals(tmp_path, monkeypatch):
    "Codebooks where the settings say, the terms of normals, and their error on held-out rows."
    from perceptio.train.run import begin_run, train_run

    monkeypatch.setattr("perceptio.train.run.rows_dir", lambda: tmp_path / "rows")
    small = dict(data="paper", n_depth_tokens=100, max_length=1024, code_corruption=0.0, mask_size=32, workers=0)
    more = dict(mix_grounded=1.0, use_own=False, cache_sam_features=False, codebook=str(tmp_path / "codebook"))
    steps = dict(max_steps=3, batch_size=4, held_out=2, eval_steps=0)
    settings = Settings.load("smoke", dense="depth normals", **small | more | steps)
    depth = example_depth(tmp_path / "depth_tokens", settings.dense)
    depth.codebook.save_pretrained(tmp_path / "codebook")
    depth.further["normals"].codebook.save_pretrained(tmp_path / "codebook_normals")
    prepare_sources(write_example(tmp_path / "data"), tmp_path / "rows", depth=depth)
    begin_run(settings, "real-normals", "example")
    train_run(settings, "real-normals", curve_points=0)
    log = read_metrics("real-normals")
    trained = [row for row in log if "loss" in row]
    assert len(trained) == 3 and any("normals_recon" in row for row in trained)
    (measured,) = [row for row in log if "held-out loss" in row]
    mixture = PaperMixture(open_sources(tmp_path / "rows"), settings, held_out=2)
    held = [mixture.read(row) for row in mixture.held]
    answered = {name for s in held for name, codes in s.known_codes().items() if codes is not None}
    assert {name for name in ("depth", "normals") if f"held-out {name} MSE" in measured} == answered
    saved = {p.name for p in (run_dir("real-normals") / "checkpoint").glob("codebook*")}
    assert saved == {"codebook", "codebook_normals"}


EDGES = """import numpy as np

from perceptio.core.dense import DenseMaps


class Edges(DenseMaps):
    title, meaning = "edges", dict(quantity="edges")
    channels = 1

    def of_scene(self, scene):
        return (np.abs(np.gradient(scene.disparity, axis=0)) > LIMIT)[None].astype(np.float32)

    valid = lambda self, decoded: decoded.clamp(0, 1)
    of_disparity = show = lambda self, x: x
    compare = lambda self, maps, truth: dict(share_wrong=abs(maps - truth).mean((1, 2, 3)))
"""


def test_an_edited_class_gets_no_stale_maps(tmp_path, monkeypatch):
    "Kept maps and kept codebooks belong to the text of the class; the same text finds them again."
    from perceptio.core.dense import maps_hash
    from perceptio.method.codebook_training import ensure_codebook
    from perceptio.world.mixture import SceneMaps, world

    section = "\n[dense.edges]\nletter = e\nmaps = my_edges.Edges\n"
    (tmp_path / "settings.ini").write_text((ROOT / "settings.ini").read_text() + section)
    monkeypatch.setattr("perceptio.core.settings.settings_file", lambda: tmp_path / "settings.ini")
    monkeypatch.syspath_prepend(tmp_path)
    settings = Settings.load("smoke", dense="depth edges", n_train=8, n_val=8)
    store, found = world(settings, progress=False)["val"], []
    for limit in ("0.01", "0.01", "0.1"):
        monkeypatch.delitem(sys.modules, "my_edges", raising=False)
        (tmp_path / "my_edges.py").write_text(EDGES.replace("LIMIT", limit))
        importlib.invalidate_caches()
        linecache.clearcache()
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        (token,) = further_tokens(settings)
        maps_hash.cache_clear()
        found.append(SceneMaps(store, token, settings))
    assert np.array_equal(found[0][:], found[1][:]) and not np.array_equal(found[1][:], found[2][:])
    exact = torch.from_numpy(found[2].token.maps.of_scene(store[0]))[None]
    wanted = torch.nn.functional.interpolate(exact, (40, 40), mode="bilinear", antialias=True)
    assert np.abs(found[2][:1].numpy() - wanted.numpy()).max() < 1e-3
    assert len(list(Path(store.path).glob("edges-40-compact-*.npy"))) == 2
    ensure_codebook(settings, found[2], tmp_path / "book", token=found[2].token)
    ensure_codebook(settings, found[2], tmp_path / "book", token=found[2].token)
    maps_hash.cache_clear()
    (tmp_path / "my_edges.py").write_text(EDGES.replace("LIMIT", "0.2"))
    linecache.clearcache()
    with pytest.raises(ValueError, match="holds another codebook"):
        ensure_codebook(settings, found[2], tmp_path / "book", token=found[2].token)
