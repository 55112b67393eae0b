"""Annotations of every reader. An entry among others is broken; the others must come out as they were."""

import json
import pickle
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from damage import ANY, LOST, TEXTS, WHOLE, change, odd, spelt, spoil
from harness import Wrong, door, naming
from PIL import Image

from perceptio.core.foreign import BadSample
from perceptio.core.json_stream import json_entries
from perceptio.data.ade20k import aurora_rows
from perceptio.data.curation import Curation, Funnel, curate, read_sentences
from perceptio.data.grounded import GCG_FILES, gcg_rows
from perceptio.data.hardblink import blink_item, by_id, hardblink_item
from perceptio.data.llava import llava_rows
from perceptio.data.own import own_rows
from perceptio.data.refcoco import refcoco_queries, refcoco_report, refcoco_rows
from perceptio.data.rows import Report, row_sample
from perceptio.method.chat import reserved_words
from perceptio.world.marked_points import AURORA_QUESTION

SIZE = (40, 56)  # height, width
RECTANGLE, TRIANGLE = [2, 3, 20, 3, 20, 11, 2, 11], [30, 5, 50, 9, 35, 30]
RUNS = dict(size=list(SIZE), counts=[100, 30, 2240 - 130])


@cache
def photographs():
    "A folder in which every reader finds its images."
    root = Path(tempfile.mkdtemp(prefix="perceptio-fuzz-"))
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*SIZE, 3), dtype=np.uint8))
    folders = {"images", "coco", *(places[0] for _, places in GCG_FILES.values()), "ref_seg/refcoco/coco2014/train2014"}
    for name in folders:
        (root / name).mkdir(parents=True)
        for k in range(3):
            picture.save(root / name / f"{k}.png")
    mask = np.zeros(SIZE, np.uint8)
    mask[5:20, 9:30] = 1
    (root / "masks").mkdir()
    Image.fromarray(mask).save(root / "masks" / "0.png")
    (root / "images/blink3pointscenter").mkdir()
    picture.resize((336, 336)).save(root / "images/blink3pointscenter/0.png")
    return root


def talk(question, answer):
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def check_row(row, root):
    "A row can be written, and read as a sample or refused."
    json.dumps(row, ensure_ascii=False).encode()
    try:
        sample = row_sample(row, root, np.random.default_rng(0))
    except BadSample:
        return
    for turn in sample.turns:
        answer = turn.answer.replace("[SEG]", "").replace("<depth>", "") if turn.perceive == "inline" else turn.answer
        if found := reserved_words(turn.question) + reserved_words(answer):
            raise Wrong(f"the reserved word {found[0]!r} came through in {row['key']}")


def others_stay(rows, good, root, mine):
    "The rows that do not belong to the broken entry are those of the whole file."
    for row in rows:
        check_row(row, root)
    found, wanted = ({row["key"]: row for row in some if not mine(row["key"])} for some in (rows, good))
    if json.dumps(found, sort_keys=True) != json.dumps(wanted, sort_keys=True):
        raise Wrong(f"rows of other entries differ: {sorted(found)} of {sorted(wanted)}")


def outcome(report, used_before):
    if report.found != report.used + report.skipped.total():
        raise Wrong(f"found {report.found}, used {report.used}, skipped {report.skipped.total()}")
    return "use" if report.used >= used_before and not report.skipped else "skip"


def in_file(path, entries, lines):
    texts = [spelt(entry) for entry in entries]
    path.write_text("\n".join(texts) if lines else f"[{', '.join(texts)}]", encoding="utf-8")


LLAVA = [
    dict(id="0", image="coco/0.png", conversations=talk("<image>\nWhat?", "A cube.")),
    dict(id="1", conversations=talk("How many?", "Six.") + talk("Why?", "So.")),
    dict(id="2", image="coco/2.png", conversations=talk("Where?\n<image>", "There.")),
]


def listed(entries, rng, folder, kind, read, root, key):
    "Break one entry of a list; the form is a list or a line for each."
    k, lines = rng.randrange(len(entries)), rng.random() < 0.5
    broken = [spoil(e, rng, kind, rng.choice([1, 1, 1, 3])) if j == k else e for j, e in enumerate(entries)]
    path, clean = folder / "entries.json", folder / "clean.json"
    in_file(clean, entries, lines)
    good = list(read(clean, Report("good")))
    in_file(path, broken, lines)
    report = Report("broken")
    with naming(path.name):
        rows = list(read(path, report))
    others_stay(rows, good, root, lambda name: name == key(k))
    return outcome(report, len(entries))


@door("LLaVA's conversations", 8)
def llava(rng, folder, kind):
    "One list or a line for each, an entry of it broken."
    root = photographs()
    read = lambda path, report: llava_rows(path, root, report)  # noqa: E731
    return listed(LLAVA, rng, folder, kind, read, root, lambda k: f"llava/{k}")


def aurora_entry(k):
    span = "<DEPTH_START>" + "".join(f"<DEPTH_{(k + i) % 128}>" for i in range(4)) + "<DEPTH_END>"
    return dict(id=str(k), image=f"{k}.png", conversations=talk("<image>\nWhat is the depth map?", span))


@door("AURORA's conversations", 5)
def aurora(rng, folder, kind):
    "Depth tokens spelt out in an answer."
    root = photographs() / "images"
    entries = [aurora_entry(k) for k in range(3)]
    if kind == ANY and rng.random() < 0.3:
        answer = rng.choice(
            [
                "<DEPTH_START>",
                "<DEPTH_START><DEPTH_999999999><DEPTH_END>",
                "<DEPTH_1>" * 5,
                "<DEPTH_END><DEPTH_START>",
                "<PIXEL_1>",
                "<DEPTH_START>" + "<DEPTH_1>" * 50_000,
            ]
        )
        entries[1]["conversations"][1]["value"] = answer
    read = lambda path, report: aurora_rows(path, root, report, n=4)  # noqa: E731
    return listed(entries, rng, folder, kind, read, root, lambda k: f"aurora/{k}")


def grounded(name):
    "Three whole entries of one of GLaMM's files; of Flickr's, the whole file."
    caption, runs = "A red cube stands before two cones.", dict(size=list(SIZE), counts="T3N0000000P\\1")
    runs = RUNS
    if name == "refcocog":
        refs = [
            dict(sentence="A red cube", segmentation=[RECTANGLE]),
            dict(sentence="two cones", segmentation=[TRIANGLE, RECTANGLE]),
        ]
        return [{str(k): dict(img_file_name=f"{k}.png", caption=f'"{caption}"', refs=refs)} for k in range(3)]
    if name == "flickr":
        images = [dict(id=k, file_name=f"{k}.png", height=SIZE[0], width=SIZE[1], caption=caption) for k in range(3)]
        notes = [
            dict(id=10 * k + j, image_id=k, tokens_positive=[place], sam_mask=runs, bbox=[2, 3, 18, 8], area=144)
            for k in range(3)
            for j, place in enumerate(([0, 10], [25, 34]))
        ]
        return dict(info=dict(year=2015), images=images, annotations=notes)
    found = {
        "A red cube": dict(token_positives=[0, 10], rle_masks=[runs]),
        "two cones": dict(token_positives=[25, 34], rle_masks=[runs, runs]),
    }
    return [
        dict(file_name=f"{k}.png", height=SIZE[0], width=SIZE[1], image_id=k, caption=caption, groundings=found)
        for k in range(3)
    ]


@door("GLaMM's captions", 12)
def gcg(rng, folder, kind):
    "Grounded captions in one of four forms."
    name, root, phrases = rng.choice(list(GCG_FILES)), photographs(), Report("phrases")
    read = lambda path, report: gcg_rows({name: path}, root, report, phrases)  # noqa: E731
    if name != "flickr":
        found = listed(grounded(name), rng, folder, kind, read, root, lambda k: f"gcg/{name}/{k}")
    else:
        whole, path, report = grounded(name), folder / "flickr.json", Report("broken")
        part, number = rng.choice(["images", "annotations"]), rng.randrange(3)
        k = number if part == "images" else 2 * number + rng.randrange(2)
        whole[part][k] = spoil(whole[part][k], rng, kind)
        path.write_text(spelt(whole))
        with naming(path.name):
            rows = list(read(path, report))
        for row in rows:
            check_row(row, root)
        if len(rows) < 2:
            raise Wrong("two whole images are there")
        found = outcome(report, 3)
    if phrases.found != phrases.used + phrases.skipped.total():
        raise Wrong("phrases do not add up")
    return found


OWN = [
    dict(image="0.png", expression="the left box", mask=[RECTANGLE]),
    dict(image="1.png", question="What is there?", answer="A box [SEG].", masks=["masks/0.png"]),
    dict(image="2.png", expression=["one", "two"], mask=RUNS, note="x"),
    dict(image="0.png", question="Which?", answer="That.", mask="masks/0.png", value=1),
    dict(question="What is a cube?", answer="A body."),
]
SA2VA = [dict(image=f"{k}.png", mask=[[RECTANGLE], [TRIANGLE]], text=["a box", "a sail"]) for k in range(3)]


@door("own data", 10)
def own(rng, folder, kind):
    "data.jsonl and annotations.json beside images."
    home = folder / "own"
    if not home.is_dir():
        home.mkdir()
        for name in ("images", "masks"):
            (home / name).symlink_to(photographs() / name)
    name = rng.choice(["data.jsonl", "annotations.json"])
    entries, report = (OWN if name == "data.jsonl" else SA2VA), Report("own")
    for other in ("data.jsonl", "annotations.json"):
        (home / other).unlink(missing_ok=True)
    in_file(home / name, entries, name == "data.jsonl")
    good = list(own_rows(home, Report("good")))
    k = rng.randrange(len(entries))
    broken = [spoil(e, rng, kind, rng.choice([1, 1, 2])) if j == k else e for j, e in enumerate(entries)]
    in_file(home / name, broken, name == "data.jsonl")
    with naming(name):
        rows = list(own_rows(home, report))
    images = {f"own/images/{e['image']}" for e in (entries[k],) if "image" in e} | {
        row["key"] for row in rows if row["kind"] == "ref" and row["key"] not in {g["key"] for g in good}
    }
    others_stay(
        rows,
        good,
        home,
        lambda key: (
            key == f"own/data.jsonl line {k + 1}"
            or key in images
            or key.startswith("own/images/")
            and k >= 0
            and moved(entries[k], broken[k])
        ),
    )
    return outcome(report, len(entries))


def moved(before, after):
    "Whether a change may have put an expression into the row of another image."
    return not isinstance(after, dict) or after.get("image") != before.get("image")


@cache
def coco():
    "Two images with two objects each, as (refs, instances)."
    images = [dict(id=900 + k, file_name=f"{k}.png", height=SIZE[0], width=SIZE[1]) for k in range(2)]
    notes = [
        dict(id=9000 + 10 * k + j, image_id=900 + k, category_id=5, bbox=[2, 3, 18, 8], segmentation=mask, iscrowd=0)
        for k in range(2)
        for j, mask in enumerate(([RECTANGLE], RUNS))
    ]
    refs = [
        dict(
            ref_id=k,
            ann_id=n["id"],
            image_id=n["image_id"],
            split="train",
            category_id=5,
            sentences=[dict(raw="The left box.", sent="the left box", tokens=["the", "left", "box"], sent_id=k)],
        )
        for k, n in enumerate(notes)
    ]
    return refs, dict(
        info={}, images=images, annotations=notes, categories=[dict(id=5, name="box", supercategory="solid")]
    )


@door("RefCOCO's refs and instances", 12)
def refcoco(rng, folder, kind):
    "A pickle of refs and COCO's instances; rows for training, the joint set, and queries."
    home, (refs, instances) = folder / "ref_seg" / "refcoco", coco()
    if not home.is_dir():
        home.mkdir(parents=True)
        (home / "coco2014").symlink_to(photographs() / "ref_seg/refcoco/coco2014")
    if rng.random() < 0.5:
        number = rng.randrange(2)
        refs = [spoil(r, rng, kind) if k == number else r for k, r in enumerate(refs)]
    else:
        part = rng.choice(["images", "annotations", "categories"])
        number = 0
        instances = instances | {part: [spoil(e, rng, kind) if k == 0 else e for k, e in enumerate(instances[part])]}
        if kind == ANY and rng.random() < 0.1:
            instances = change(coco()[1], rng)
    (home / "refs(unc).p").write_bytes(pickle.dumps(refs, rng.choice([0, 2, 4])))
    (home / "instances.json").write_text(spelt(instances))
    report, queries = refcoco_report("refcoco", "train"), refcoco_report("refcoco", "train", queries=True)
    with naming("refs(unc).p", "instances.json"):
        rows = list(refcoco_rows(folder, "refcoco", "train", report, decode=True))
        asked = refcoco_queries(folder, "refcoco", "train", queries)
    for row in rows:
        check_row(row, photographs() / "ref_seg/refcoco/coco2014/train2014")
    for query in asked:
        query.mask()
    if queries.found != queries.used + queries.skipped.total():
        raise Wrong("queries do not add up")
    joint = list(curate(rows, Curation(drop_leaks=False), Funnel()))
    for row in joint:
        json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
    return outcome(report, 2) if not report.notes else "skip"


@door("benchmark questions", 6)
def benchmarks(rng, folder, kind):
    "HardBLINK's questions and answers, BLINK's rows, attribute sentences."
    which = rng.randrange(3) if kind == ANY else 0
    if which == 0:
        asked = [dict(question_id=k, image="0.png", text=AURORA_QUESTION) for k in range(2)]
        told = [dict(question_id=k, text="(A)") for k in range(2)]
        asked[0] = spoil(asked[0], rng, kind) if kind != ANY or rng.random() < 0.6 else asked[0]
        told[0] = change(told[0], rng) if kind == ANY and rng.random() < 0.6 else told[0]
        for name, entries in (("questions", asked), ("answers", told)):
            in_file(folder / f"{name}.jsonl", entries, True)
        with naming("questions.jsonl", "answers.jsonl"):
            found = [by_id(folder / f"{name}.jsonl") for name in ("questions", "answers")]
        item = hardblink_item(photographs(), 3, 1, *found)
        if item.answer != "A":
            raise Wrong("the other question is as it was")
        return use_or_skip(lambda: hardblink_item(photographs(), 3, 0, *found).pixels())
    if which == 1:
        content = (photographs() / "images/0.png").read_bytes()
        row = dict(idx="val_1", prompt="Which?", answer="(A)", image_1=dict(bytes="@bytes@", path=None))
        row = change(row, rng) | {}
        missing = {"idx": "val_1", "prompt": None, "answer": None, "image_1": None}
        row = missing | {k: v for k, v in row.items() if k in missing}
        if isinstance(row["image_1"], dict) and row["image_1"].get("bytes") == "@bytes@":
            row["image_1"]["bytes"] = content[: rng.choice([len(content)] * 3 + [rng.randrange(len(content))])]
        return use_or_skip(lambda: blink_item(row, hidden=rng.random() < 0.3))
    lines = [dict(key="refcoco/train/7/1", sentence="A dog lies."), dict(image="7.png", object=2, sentence="A cat.")]
    in_file(folder / "sentences.jsonl", [change(lines[0], rng), lines[1]], True)
    with naming("sentences.jsonl, line 1", "sentences.jsonl, line 2"):
        found = read_sentences(folder / "sentences.jsonl")
    if found["7.png", 2] != "A cat.":
        raise Wrong("the other sentence is as it was")
    return "use"


def use_or_skip(call):
    try:
        call()
    except BadSample:
        return "skip"
    return "use"


@door("JSON", 10)
def streams(rng, folder, kind):
    "A list, or a line for each, in which one entry is broken in its letters: the others are read as they are."
    entries = [dict(id=k, text=rng.choice(TEXTS[:7] + TEXTS[17:20]), deep=[{"a": [k, ']}\\"']}]) for k in range(4)]
    entries = [e for e in entries if e["text"] != "\ud83d"]
    texts, k, lines = (
        [json.dumps(e, ensure_ascii=rng.random() < 0.5).encode() for e in entries],
        rng.randrange(len(entries)),
        rng.random() < 0.5,
    )
    if kind == LOST:
        texts[k] = b'{"t": "\\udc00"}'
    elif kind == ANY:
        texts[k] = hostile_letters(rng)
    path = folder / rng.choice(["a.json", "a.jsonl"])
    path.write_bytes(b"\n".join(texts) if lines else b"[" + b",\n".join(texts) + b"]")
    if lines and k == 0 and path.suffix == ".json" and kind == ANY:  # its form is told from the first line
        return "use"
    with naming(path.name):
        found = list(json_entries(path))
    if [e for j, e in enumerate(found) if j != k] != [e for j, e in enumerate(entries) if j != k]:
        raise Wrong("other entries differ")
    return "skip" if isinstance(found[k], BadSample) else "use"


def hostile_letters(rng):
    return rng.choice(
        [
            b'{"t": "\\udc00"}',
            b'{"t": "\xff\xfe"}',
            b'{"n": ' + b"9" * 5000 + b"}",
            b"9" * 5000,
            b'{"n": ' * 20_000 + b"1" + b"}" * 20_000,
            b"[" * 100_000 + b"]" * 100_000,
            b"{'t': 1}",
            b'{"t" 1}',
            b'{"t": "\0"}',
            b'{"t": tru}',
            b'{"t": 1e999}',
            b'{"t": NaN}',
            spelt(odd(rng)).encode(),
        ]
    )


@door("texts", 8)
def texts(rng, folder, kind):
    """What people write comes through letter for letter, or is refused: control characters, HTML, other scripts,
    reserved words."""
    text = "".join(rng.choice(TEXTS) for _ in range(rng.choice([1, 1, 2, 3])))
    if rng.random() < 0.3:
        text = "".join(chr(rng.choice([rng.randrange(32), rng.randrange(0x110000)])) for _ in range(20))
    text = text if kind == ANY else {WHOLE: "What is <b>this</b>?", LOST: "\ud83d"}[kind]
    path, report = folder / "texts.json", Report("texts")
    path.write_text(json.dumps([dict(id="0", conversations=talk(text, "x " + text))]))
    rows = list(llava_rows(path, folder, report))
    if not rows:
        return outcome(report, 1)
    if rows[0]["turns"] != [dict(question=text, answer="x " + text)]:
        raise Wrong(f"another text than {text!r}")
    check_row(rows[0], folder)
    return "use"
