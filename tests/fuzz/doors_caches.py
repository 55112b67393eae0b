"""What is computed once and kept (depth tokens, joint set, scenes, checkpoints), and what other programs wrote
(parquet, lmms-eval)."""

import copy
import io
import json
import pickle
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
from damage import ANY, WHOLE, spoil_bytes, spoil_json
from doors_annotations import coco, photographs
from harness import Wrong, door, naming

from perceptio.core.settings import Settings
from perceptio.data.curation import Curation
from perceptio.data.depth_cache import DepthTokens, write_depth_tokens
from perceptio.data.depth_teacher import fingerprint
from perceptio.data.hardblink import read_parquet
from perceptio.data.joint_set import read_joint, write_joint
from perceptio.data.refcoco import refcoco_report, refcoco_rows
from perceptio.evaluate.lmms import lmms_results
from perceptio.method.codebook import DepthCodebook
from perceptio.method.model import build_model
from perceptio.method.saving import load_model, save_model
from perceptio.world.scenes import SceneStore, pack, write_split

KEYS = [f"{k}.png" for k in range(6)]
GONE = 4  # an image that cannot be read


def place(name):
    return Path(tempfile.mkdtemp(prefix="perceptio-fuzz-")) / name


def damage(path, rng, kind):
    "Break a file, as JSON where it is some."
    content = path.read_bytes()
    made = spoil_json(json.loads(content), rng, kind) if path.suffix == ".json" else spoil_bytes(content, rng, kind)
    path.write_bytes(made)
    return made == content


def copied(source, target):
    shutil.rmtree(target, ignore_errors=True)
    return shutil.copytree(source, target)


def load(k):
    if k == GONE:
        raise FileNotFoundError(2, "No such file", KEYS[k])
    return np.random.default_rng(k).random((12, 16), np.float32)


@cache
def book():
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return DepthCodebook(8, 4, 40, 5, "compact").freeze()


def tokens_into(folder, **more):
    common = dict(shard=2, maps=True, pictures=[f"sha of {k}" for k in KEYS], progress=False, workers=1)
    return write_depth_tokens(folder, KEYS, load, None, book(), **common | more)


def all_of(tokens):
    "Everything that training reads of a cache."
    rows = [k for k in range(len(tokens)) if k in tokens.usable]
    kept = [(k, tokens[k].tolist(), tokens.map(k).tobytes()) for k in rows]
    return tokens.keys, tokens.pictures, {row: hole["key"] for row, hole in tokens.skipped.items()}, kept


@cache
def depth_caches():
    "A whole cache, one that is being made by two processes, and what is read of the first."
    whole, begun = tokens_into(place("tokens")), tokens_into(place("tokens"), rank=0, world_size=2)
    return whole, begun, all_of(DepthTokens(whole))


@door("depth caches", 8)
def depth_tokens(rng, folder, kind):
    "A finished cache is read, or one that another process has begun is finished."
    whole, begun, good = depth_caches()
    if rng.random() < 0.6:
        home = copied(whole, folder / "tokens")
        path = rng.choice(sorted(home.iterdir()))
        unchanged = damage(path, rng, kind)
        with naming(path.name, *["tokens"] * (path.name == "meta.json")):
            found = all_of(DepthTokens(home))
        if path.name.startswith("maps") and not unchanged:  # maps have no checksum
            found, good = found[:3], good[:3]
    else:
        home = copied(begun, folder / "tokens")
        path = rng.choice(sorted(home.glob("shards/*")))
        damage(path, rng, kind)
        with naming(path.name, "tokens"):
            found = all_of(DepthTokens(tokens_into(home, rank=1, world_size=2)))
        if path.suffix == ".safetensors":  # nor has a shard
            found, good = found[:2], good[:2]
    if found != good:
        raise Wrong(f"another result after damage to {path.name}")
    return "use"


@cache
def joint():
    "A joint set of two images, and its rows."
    root, (refs, instances) = place("data"), coco()
    home = root / "ref_seg" / "refcoco"
    home.mkdir(parents=True)
    (home / "coco2014").symlink_to(photographs() / "ref_seg/refcoco/coco2014")
    for k, ref in enumerate(refs := copy.deepcopy(refs)):  # two expressions in an image must differ
        ref["sentences"][0] |= dict(raw=f"box {k}", sent=f"box {k}", tokens=["box", f"{k}"])
    (home / "refs(unc).p").write_bytes(pickle.dumps(refs))
    (home / "instances.json").write_text(json.dumps(instances))
    rows = list(refcoco_rows(root, "refcoco", "train", refcoco_report("refcoco", "train"), decode=True))
    whole = write_joint(place("joint"), rows, Curation(drop_leaks=False))
    return whole, list(read_joint(whole))


@door("joint sets", 4)
def joint_sets(rng, folder, kind):
    "joint.json, joint.parquet, rows.arrow, or no rows.arrow."
    source, good = joint()
    home = copied(source, folder / "joint")
    path = home / rng.choice(["joint.json", "joint.parquet", "rows.arrow"])
    damage(path, rng, kind)
    if path.name != "rows.arrow" and rng.random() < 0.5:
        (home / "rows.arrow").unlink()
    with naming(path.name):
        found = list(read_joint(home))
    if found != good:
        raise Wrong(f"other rows after damage to {path.name}")
    return "use"


@cache
def scenes():
    "Three small scenes as files and packed in one, and what is read of them."
    whole = write_split(place("split"), "val", 3, px=32, workers=1, progress=False)
    return (whole, pack(whole, place("packed"))), seen(SceneStore(whole))


def seen(store):
    return [(s.index, s.split, s.image.tobytes(), s.depth.tobytes(), s.ids.tobytes(), s.objects) for s in store]


@door("scenes", 4)
def scene_stores(rng, folder, kind):
    "The built-in world as it was written, or as it is committed."
    sources, good = scenes()
    home = copied(rng.choice(sources), folder / "scenes")
    path = rng.choice(sorted(home.iterdir()))
    unchanged = damage(path, rng, kind)
    with naming(path.name, *["scenes"] * (path.name == "meta.json")):
        found = seen(SceneStore(home))
    if path.suffix == ".npy" and not unchanged:  # pixels have no checksum
        found, good = [s[5] for s in found], [s[5] for s in good]
    if path.name != "meta.json" and found != good:
        raise Wrong(f"other scenes after damage to {path.name}")
    return "use"


@cache
def tables():
    "Parquet as others write it, and one whose rows are many times its size."
    import pyarrow as pa
    from pyarrow import parquet

    rows = [
        dict(idx=f"val_{k}", prompt="Which?", answer="(A)", image_1=dict(bytes=b"x" * 200, path=None)) for k in range(9)
    ]
    bomb = pa.table({"idx": pa.DictionaryArray.from_arrays(pa.array([0] * 2_000_000, pa.int8()), ["x" * 5000])})
    made = []
    for table in (pa.Table.from_pylist(rows), bomb):
        content = io.BytesIO()
        parquet.write_table(table, content, compression="zstd")
        made.append(content.getvalue())
    return rows, *made


@door("parquet files", 4)
def parquet_files(rng, folder, kind):
    "BLINK's questions as they are published."
    rows, whole, bomb = tables()
    path = folder / "val.parquet"
    content = bomb if kind == ANY and rng.random() < 0.1 else spoil_bytes(whole, rng, kind)
    path.write_bytes(content)
    with naming(path.name):
        found = read_parquet([path], ["idx"] if content == bomb else list(rows[0]))
    if content == whole and found != rows:
        raise Wrong("other rows")
    return "use"


LMMS = dict(results={"mme": {"mme_score,none": 0.5, "mme_score_stderr,none": 0.1, "alias": "mme"}})
SAMPLES = [dict(doc_id=k, target="yes", filtered_resps=["no"]) for k in range(3)]


@door("lmms-eval's output", 3)
def lmms(rng, folder, kind):
    "The summary and the answers that lmms-eval leaves."
    results, samples = folder / "20260101_results.json", folder / "20260101_samples_mme.jsonl"
    one = rng.random() < 0.5
    results.write_bytes(spoil_json(LMMS, rng, kind if one else WHOLE))
    lines = [json.dumps(e).encode() for e in SAMPLES]
    lines[1] = lines[1] if one else spoil_json(SAMPLES[1], rng, kind).replace(b"\n", b" ").replace(b"\r", b" ")
    samples.write_bytes(b"\n".join(lines))
    with naming(results.name, samples.name, folder.name):
        found = lmms_results(folder)
    if kind == WHOLE and found["mme"]["metrics"] != {"mme_score": 0.5}:
        raise Wrong(f"other numbers: {found}")
    return "use"


@cache
def checkpoint():
    "A checkpoint of the smallest size."
    with torch.random.fork_rng(devices=[]):
        model, tokenizer = build_model(Settings.load("smoke", "no_depth"))
    home = save_model(model, tokenizer, place("checkpoint"))
    return home, loaded(home)


def loaded(folder):
    model, tokenizer = load_model(folder)
    return fingerprint(model.state_dict()), tokenizer.get_vocab(), model.settings


@door("checkpoints", 1)
def own_checkpoints(rng, folder, kind):
    "A folder that training wrote, as `Perceptio.from_pretrained` opens it."
    source, good = checkpoint()
    home = copied(source, folder / "checkpoint")
    path = rng.choice([p for p in sorted(home.rglob("*")) if p.is_file()])
    damage(path, rng, kind)
    with naming(path.name, "checkpoint", "settings", "tokenizer"):
        found = loaded(home)
    if kind == WHOLE and found != good:
        raise Wrong("another model")
    return "use"
