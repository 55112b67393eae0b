"""The paper's mixture reaches the optimiser in one sequence: any number of processes, of workers, and through a resume."""

import hashlib
from pathlib import Path

import pytest
import torch

from perceptio.codebook import DepthCodebook
from perceptio.example import write_example
from perceptio.launch import launch
from perceptio.model import build_model, step_counts
from perceptio.paper_mixture import PaperMixture
from perceptio.prepare import open_sources, prepare_sources
from perceptio.samples import Collator
from perceptio.settings import Settings
from perceptio.trainer import PerceptioTrainer, train, training_arguments

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
    options = dict(save_steps=2, disable_tqdm=True, train_sampling_strategy="sequential")
    arguments = training_arguments(settings, folder, **options)
    process, given = arguments.process_index, []

    def count(batch):
        given.append(hashlib.sha256(batch["input_ids"].numpy().tobytes()).hexdigest()[:12])
        return step_counts(batch, model.vocab)

    train(PerceptioTrainer(model, arguments, train_dataset=mixture, data_collator=collate, count=count))
    with (Path(folder) / f"given-{process}.txt").open("a") as file:
        file.write("".join(f"{g}\n" for g in given))


def sequence(rows, folder, stops=(6,), processes=1, **settings):
    "The samples of all steps in order: of each pass first that of process 0."
    folder.mkdir()
    for stop in stops:
        launch(feed, str(rows), str(folder), stop, processes=processes, **settings)
    given = [(folder / f"given-{k}.txt").read_text().split() for k in range(processes)]
    return [g for of_pass in zip(*given, strict=True) for g in of_pass]


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
