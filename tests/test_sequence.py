"""The paper's mixture reaches the optimiser in one sequence: any number of processes, of workers, and through a
resume."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from PIL import Image, UnidentifiedImageError
from transformers.trainer_pt_utils import BatchRebalanceSampler

from perceptio.core.launch import launch
from perceptio.core.settings import Settings
from perceptio.data.lengths import SampleLengths
from perceptio.data.paper_mixture import PaperMixture
from perceptio.data.prepare import open_sources, prepare_sources
from perceptio.method.codebook import DepthCodebook
from perceptio.method.model import build_model, step_counts
from perceptio.method.samples import Collator
from perceptio.testing.example import write_example
from perceptio.train.run import HeldOut
from perceptio.train.trainer import PerceptioTrainer, train, training_arguments

STEP = 4  # samples of an optimiser step


def feed(rows, folder, stop, **settings):
    "Train up to step `stop`, from the last checkpoint if there is one; every process lists the samples it was given."
    torch.set_num_threads(1)
    more = dict(
        mix_res=1.0, mix_vqa=1.0, mix_grounded=1.0, max_length=1024, batch_size=1, grad_accum=STEP, max_steps=stop
    )
    settings = Settings.load("smoke", **more | settings)
    mixture = PaperMixture(open_sources(rows), settings, epochs=2, skipped=Path(folder) / "skipped.jsonl")
    model, tokenizer = build_model(settings, DepthCodebook.from_settings(settings))
    pixels = model.mask_head.preprocess
    collate = Collator(tokenizer, model.vocab, settings, sam_pixels=pixels, skip=mixture.skip)
    options = dict(save_steps=2, log_steps=1, disable_tqdm=True, train_sampling_strategy="sequential")
    arguments = training_arguments(settings, folder, **options)
    process, given = arguments.process_index, []

    def count(batch):
        real = [row[row != tokenizer.pad_token_id] for row in batch["input_ids"]]
        names = [hashlib.sha256(ids.numpy().tobytes()).hexdigest()[:12] for ids in real]
        given.append(dict(names=names, tokens=[max(1, len(ids)) for ids in real]))
        return step_counts(batch, model.vocab)

    lengths = SampleLengths(mixture, tokenizer, model.vocab) if settings.rebalance else None
    data = dict(train_dataset=mixture, data_collator=collate, lengths=lengths)
    trainer = train(PerceptioTrainer(model, arguments, count=count, **data))
    with (Path(folder) / f"given-{process}.txt").open("a") as file:
        file.write("".join(json.dumps(g) + "\n" for g in given))
    if process == 0:
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        (Path(folder) / "losses.json").write_text(json.dumps(losses))


def passes_of(rows, folder, stops=(6,), processes=1, **settings):
    "What each pass was given, for each process: the names of the samples, and their tokens."
    folder.mkdir()
    for stop in stops:
        launch(feed, str(rows), str(folder), stop, processes=processes, **settings)
    return [[json.loads(line) for line in (folder / f"given-{k}.txt").open()] for k in range(processes)]


def sequence(rows, folder, processes=1, **more):
    "The samples of all steps in order: of each pass first that of process 0."
    given = passes_of(rows, folder, processes=processes, **more)
    return [name for of_pass in zip(*given, strict=True) for one in of_pass for name in one["names"]]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    prepare_sources(write_example(folder / "data"), folder / "rows")
    return folder / "rows"


@pytest.fixture(scope="module")
def plain(rows, tmp_path_factory):
    return sequence(rows, tmp_path_factory.mktemp("plain") / "run")


def test_samples_differ_and_epochs_too(plain):
    assert len(plain) == 6 * STEP and len(set(plain)) > len(plain) // 2


def test_two_processes_and_workers(rows, plain, tmp_path):
    assert sequence(rows, tmp_path / "run", processes=2, workers=2) == plain


def test_resumed(rows, plain, tmp_path):
    "Four steps, then two more from the checkpoint, with workers that read ahead."
    assert sequence(rows, tmp_path / "run", stops=(4, 6), workers=2) == plain


def test_another_seed_is_another_sequence(rows, plain, tmp_path):
    assert sequence(rows, tmp_path / "run", seed=7) != plain


DEALT = dict(rebalance=True, data="paper", batch_size=2, grad_accum=STEP)  # eight samples a step


@pytest.fixture(scope="module")
def whole_images(rows):
    "Files that end in the middle are made whole for a while: their header promises tokens that they do not have."
    cut = {}
    for file in (rows.parent / "data").rglob("*.jpg"):
        try:
            image = Image.open(file)
            size = image.size
            image.load()
        except UnidentifiedImageError:  # without a header
            continue
        except OSError:
            cut[file] = (file.read_bytes(), size)
    for file, (_, size) in cut.items():
        Image.new("RGB", size).save(file)
    yield rows
    for file, (content, _) in cut.items():
        file.write_bytes(content)


@pytest.fixture(scope="module")
def in_order(whole_images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("order") / "run"
    given = passes_of(whole_images, folder, stops=(3,), **DEALT | dict(rebalance=False))
    return given[0], json.loads((folder / "losses.json").read_text())


@pytest.mark.parametrize("processes", [1, 2])
def test_dealt_out_by_length(whole_images, in_order, tmp_path, processes):
    """As transformers deals out samples whose lengths are listed: the same in every step, and the same losses, after a
    resume too."""
    whole, losses = in_order
    names, lengths = ([x for given in whole for x in given[k]] for k in ("names", "tokens"))
    assert len(names) == 3 * 2 * STEP and len(set(lengths)) > 2 * STEP
    dealt = passes_of(whole_images, tmp_path / "run", stops=(2, 3), processes=processes, workers=1, **DEALT)
    for rank, passes in enumerate(dealt):
        sampler = BatchRebalanceSampler(lengths, 2 * STEP, processes, STEP // processes, shuffle=False, rank=rank)
        assert [given["names"] for given in passes] == [[names[k] for k in batch] for batch in sampler]
    assert json.loads((tmp_path / "run" / "losses.json").read_text()) == pytest.approx(losses, rel=1e-4)


def measure_held(rows, folder):
    "What every process finds on the rows that are kept out, with weights that nobody has trained."
    torch.set_num_threads(1)
    settings = Settings.load("smoke", data="paper", mix_res=1.0, mix_vqa=1.0, mix_grounded=1.0, max_length=1024)
    mixture = PaperMixture(open_sources(rows), settings)
    mixture.held = mixture.kept[::7][:5]
    model, tokenizer = build_model(settings, DepthCodebook.from_settings(settings))
    collate = Collator(tokenizer, model.vocab, settings, sam_pixels=model.mask_head.preprocess)
    arguments = training_arguments(settings, folder, disable_tqdm=True)
    trainer = PerceptioTrainer(model, arguments, train_dataset=mixture, data_collator=collate)
    found = HeldOut(trainer, None, 0).measure()
    Path(folder, f"held-{arguments.process_index}.json").write_text(json.dumps(found))


def test_held_out_rows_by_two_processes(rows, tmp_path):
    "An odd number of rows: the second process has nothing to do in the last round."
    found = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        launch(measure_held, str(rows), str(folder), processes=processes)
        found += [json.loads(file.read_text()) for file in sorted(folder.glob("held-*.json"))]
    assert found[0]["held-out samples"] == 5
    assert {"held-out loss", "held-out text perplexity", "held-out mask IoU"} <= set(found[0])
    assert found[1] == found[2] == pytest.approx(found[0], rel=1e-4)
