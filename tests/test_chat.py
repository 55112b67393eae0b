"""The prompt against OpenGVLab's template `internvl2_5`, with strings and ids written down here."""

import re

import pytest
from conftest import ROOT

from perceptio.convert.published import random_checkpoint
from perceptio.convert.tokenizers import convert_tokenizer
from perceptio.core.foreign import BadSample
from perceptio.core.settings import Settings
from perceptio.method.samples import Collator, Sample, Turn, encode_sample, prompt_ids
from perceptio.method.tokens import PerceptionVocab

SYSTEM = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
HEAD = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"
START, END, IMG, IMG_END, PIXEL = 260, 261, 262, 263, 264  # of write_tokenizer: 256 bytes, 3 joins, then ADDED
LINE = 198  # GPT-2's number of the line break, and Qwen2.5's
JOINED = 258  # "nt", the third join


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    "The byte-level tokenizer of a small checkpoint in the published format, with perception tokens."
    folder = tmp_path_factory.mktemp("published")
    settings, _ = random_checkpoint(folder / "raw")
    tokenizer = convert_tokenizer(folder / "raw", folder / "converted")
    return settings, tokenizer, PerceptionVocab.add_to(tokenizer, settings.n_codes, settings.n_depth_tokens)


def bytes_of(text):
    "Ids of plain ASCII letters: the first byte-level token is the exclamation mark."
    return [ord(c) - 33 for c in text]


def test_one_and_several_turns_with_and_without_image(published):
    settings, tokenizer, vocab = published
    two = Sample("two", "vqa", None, [Turn("what?", "red"), Turn("why?", "so")])
    ids, labels = encode_sample(two, tokenizer, vocab, settings, tiles=0)
    turns = "<|im_start|>user\nwhat?<|im_end|>\n<|im_start|>assistant\nred<|im_end|>\n"
    turns += "<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\nso<|im_end|>"
    assert tokenizer.decode(ids) == HEAD + turns
    assert tokenizer.decode([i for i in labels if i != -100]) == "red<|im_end|>so<|im_end|>"
    for tiles in (1, 3):  # 56 pixels, patches of 14, halved: 2 x 2 tokens a tile
        ids, _ = encode_sample(two, tokenizer, vocab, settings, tiles=tiles)
        image = "<img>" + "<IMG_CONTEXT>" * 4 * tiles + "</img>\n"
        assert tokenizer.decode(ids) == HEAD + turns.replace("user\n", "user\n" + image, 1)


def test_ids(published):
    settings, tokenizer, _ = published
    ids = prompt_ids("red?", "none", 2, tokenizer, settings)
    head = [START, *bytes_of("system"), LINE]
    user, assistant = [START, *bytes_of("user"), LINE], [START, *bytes_of("assista"), JOINED, LINE]
    assert ids[: len(head)] == head
    assert ids[ids.index(END) :] == [
        *[END, LINE, *user, IMG, PIXEL, PIXEL, IMG_END, LINE, *bytes_of("red?"), END, LINE, *assistant]
    ]
    later = prompt_ids("red?", "none", 0, tokenizer, settings, first=False)
    assert later == [LINE, *user, *bytes_of("red?"), END, LINE, *assistant]


def test_the_tiny_base_reads_what_it_was_trained_with():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data" / "checkpoints" / "tiny-base" / "language")
    vocab, settings = PerceptionVocab.add_to(tokenizer, 128, 64), Settings.load("tiny")
    ids = prompt_ids("segment the red cube", "both", 2, tokenizer, settings)
    assert ids == [2, 7, 4, 6, 6, 5, 82, 91, 77, 30, 102, 61, 17, 35, 11, 3, 2, 8]
    two = Sample("k", "vqa", None, [Turn("where is the red cube ?", "on the left ."), Turn("what color ?", "red")])
    ids, labels = encode_sample(two, tokenizer, vocab, settings, 0)
    question, answer = [2, 7, 99, 53, 91, 77, 30, 14, 3, 2, 8], [69, 91, 56, 11, 3]
    assert ids == [*question, *answer, 2, 7, 98, 27, 14, 3, 2, 8, 77, 3]
    assert labels == [-100] * 11 + answer + [-100] * 8 + [77, 3]


def test_a_reserved_word_in_a_batch_is_a_counted_skip(published):
    settings, tokenizer, vocab = published
    good, bad = (Sample(k, "vqa", None, [Turn("what?", a)]) for k, a in (("good", "red"), ("bad", "red<|im_end|>")))
    skipped = []

    def skip(key, reason):
        skipped.append((key, reason))
        return Sample(key, "skipped", None, [])

    batch = Collator(tokenizer, vocab, settings, skip=skip)([good, bad])
    assert (batch["labels"] != -100).sum(1).tolist() == [4, 0]
    assert [key for key, _ in skipped] == ["bad"] and "'<|im_end|>'" in skipped[0][1]
    with pytest.raises(BadSample, match=re.escape("'<|im_end|>'")):
        Collator(tokenizer, vocab, settings)([good, bad])
