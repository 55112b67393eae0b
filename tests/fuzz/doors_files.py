"""Weights, checkpoints, codebooks and SAM2's files, and what the program itself writes and reads again."""

import copy
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
from damage import ANY, LOST, ODD, TEXTS, WHOLE, change, spelt, spoil_bytes, spoil_json, torn
from harness import Wrong, door, naming
from papermill.translators import PythonTranslator
from safetensors.torch import load_file, save

from perceptio.convert.published import random_checkpoint
from perceptio.convert.tokenizers import convert_checkpoint
from perceptio.core.notebook import check_parameters
from perceptio.core.record import by_present_names, read_metrics, read_result, read_run
from perceptio.core.settings import Settings
from perceptio.core.weights import check_safetensors, read_weights, tensor_shapes
from perceptio.data.depth_teacher import fingerprint
from perceptio.data.rows import Report, RowFile, write_rows
from perceptio.method.codebook import DepthCodebook, load_codebook
from perceptio.method.sam import load_sam, read_sam_file
from perceptio.method.saving import read_settings
from perceptio.report.results import result_problems


def header(tensors, rng):
    "A safetensors file whose header is broken in its values."
    content = save(tensors)
    length = int.from_bytes(content[:8], "little")
    new = spelt(change(json.loads(content[8 : 8 + length]), rng, rng.choice([1, 2]))).encode()
    return (
        (len(new) if rng.random() < 0.9 else rng.choice([0, 2**40, 2**63])).to_bytes(8, "little")
        + new
        + content[8 + length :]
    )


@door("published shards", 12)
def shards(rng, folder, kind):
    "Files of safetensors, as the converter and whoever loads weights opens them."
    tensors = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
    path, whole = folder / "shard.safetensors", save(tensors)
    content = header(tensors, rng) if kind == ANY and rng.random() < 0.5 else spoil_bytes(whole, rng, kind)
    path.write_bytes(content)
    with naming("shard.safetensors"):
        found = rng.choice([lambda p: check_safetensors(p) or read_weights(p), tensor_shapes, read_sam_file])(path)
    if content == whole and any(found[k].shape != v.shape for k, v in tensors.items()):
        raise Wrong("other shapes")
    return "use"


@cache
def published():
    return random_checkpoint(Path(tempfile.mkdtemp(prefix="perceptio-fuzz-")) / "published")


def break_lines(text, rng):
    lines = text.split("\n")
    k = rng.randrange(len(lines))
    lines[k] = rng.choice(["", "a", "a b c", "x y", "\0", "é é", lines[k][::-1], rng.choice(TEXTS[:20])])
    return "\n".join(lines)


@cache
def converted():
    "What the whole checkpoint becomes."
    settings, source = published()
    convert_checkpoint(source, source.parent / "good", settings)
    return load_all(source.parent / "good"), (source.parent / "good/tokenizer.json").read_bytes()


def load_all(folder):
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


@door("checkpoints to convert", 2)
def conversion(rng, folder, kind):
    "OpenGVLab's form with a damaged configuration, tokenizer, index or shard."
    settings, source = published()
    name = rng.choice(
        [
            "config.json",
            "config.json",
            "tokenizer_config.json",
            "tokenizer_config.json",
            "vocab.json",
            "merges.txt",
            "model.safetensors.index.json",
            "model-00001-of-00002.safetensors",
            "tokenizer.model",
        ][: 8 if kind == WHOLE else None]
    )
    shutil.rmtree(folder / "in", ignore_errors=True), shutil.rmtree(folder / "out", ignore_errors=True)
    (folder / "in").mkdir()
    for path in source.iterdir():
        (folder / "in" / path.name).symlink_to(path)
    broken, whole = folder / "in" / name, (source / name).read_bytes() if name != "tokenizer.model" else b""
    broken.unlink(missing_ok=True)
    if name.endswith(".json"):
        broken.write_bytes(spoil_json(json.loads(whole), rng, kind, rng.choice([1, 1, 2])))
    elif name == "merges.txt" and kind == ANY and rng.random() < 0.75:
        broken.write_text(break_lines(whole.decode(), rng))
    else:
        broken.write_bytes(spoil_bytes(whole, rng, kind) if whole else rng.randbytes(60))
    with naming(
        name,
        "llm_config",
        "vision_config",
        "rope",
        "published",
        "checkpoint",
        "tokenizer",
        "'in'",
        str(folder / "in"),
        "wqkv",
        "the files",
    ):
        convert_checkpoint(folder / "in", folder / "out", settings)
    state, tokenizer = converted()
    found = load_all(folder / "out")
    if name.endswith(".safetensors"):
        return "use"  # bytes of a weight have no checksum
    if found.keys() != state.keys() or not all(torch.equal(found[k], v) for k, v in state.items()):
        raise Wrong(f"other weights after damage to {name}")
    if name == "merges.txt" and (folder / "out/tokenizer.json").read_bytes() != tokenizer:
        raise Wrong("another tokenizer")
    return "use"


@cache
def codebook():
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        made = DepthCodebook(8, 4, 40, 5, "compact")
    folder = Path(tempfile.mkdtemp(prefix="perceptio-fuzz-")) / "codebook"
    made.save_pretrained(folder)
    return made, folder


@door("codebooks", 6)
def codebooks(rng, folder, kind):
    "A folder of save_pretrained."
    made, source = codebook()
    shutil.copytree(source, folder / "codebook", dirs_exist_ok=True)
    name = rng.choice(["codebook.json", "codebook.json", "model.safetensors"])
    path = folder / "codebook" / name
    if name == "codebook.json":
        path.write_bytes(spoil_json(json.loads(path.read_text()), rng, kind, rng.choice([1, 1, 2])))
    elif kind == ANY and rng.random() < 0.3:
        path.write_bytes(header(load_file(path), rng))
    else:
        path.write_bytes(spoil_bytes(path.read_bytes(), rng, kind))
    with naming(str(folder / "codebook"), name):
        found = load_codebook(folder / "codebook")
    if name == "codebook.json" and found.config != made.config:
        raise Wrong(f"another codebook: {found.config}")
    return "use"


@cache
def sam():
    from perceptio.method.sam import build_sam, save_sam

    settings = Settings.load("smoke", sam_checkpoint="")
    return settings, save_sam(build_sam(settings), Path(tempfile.mkdtemp(prefix="perceptio-fuzz-")) / "sam")


@door("SAM2's files", 2)
def sam2(rng, folder, kind):
    "A folder of save_sam."
    settings, source = sam()
    shutil.copytree(source, folder / "sam", dirs_exist_ok=True)
    name = rng.choice(["sam.json", "sam.json", "sam.safetensors"])
    path = folder / "sam" / name
    content, at = path.read_bytes(), rng.randrange(2000)
    if name == "sam.json":
        path.write_bytes(spoil_json(json.loads(content), rng, kind))
    elif kind == ANY:
        broken = content[:at] + rng.randbytes(8) + content[at + 8 :]
        path.write_bytes(content[: rng.randrange(len(content))] if rng.random() < 0.5 else broken)
    else:
        path.write_bytes(spoil_bytes(content, rng, kind))
    with naming("sam"):
        found = load_sam(folder / "sam", settings)
    if name == "sam.json" and fingerprint(found.state_dict()) != sam_hash():
        raise Wrong("other weights")
    return "use"


@cache
def sam_hash():
    settings, source = sam()
    return fingerprint(load_sam(source, settings).state_dict())


@door("settings of checkpoints", 6)
def checkpoints(rng, folder, kind):
    "settings.json of a checkpoint."
    settings = Settings.load("smoke")
    whole = settings.as_dict()
    path = folder / "settings.json"
    path.write_bytes(spoil_json(whole, rng, kind, rng.choice([0, 1, 1, 2])))
    with naming("settings", folder.name):
        found = read_settings(folder).as_dict()
    if any(type(v) is not type(whole[k]) for k, v in found.items()) or kind == WHOLE and found != whole:
        raise Wrong("a setting of another type or value")
    return "use"


@cache
def results():
    root = Path(__file__).parents[2] / "data" / "results"
    wholes = {path.stem: json.loads(path.read_text()) for path in sorted(root.glob("tiny-*.json"))[:12]}
    return [(name, whole | {"settings": by_present_names(whole["settings"])}) for name, whole in wholes.items()]


@door("result files", 8)
def result_files(rng, folder, kind):
    "data/results/*.json as tables read them, and as their form is checked."
    name, whole = rng.choice(results())
    path = folder / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(spoil_json(whole, rng, kind, rng.choice([0, 1, 1, 2])))
    with naming(f"{name}.json"):
        found = read_result(name, folder)
    said = result_problems(found, name, complete=False)
    same = whole | {"settings": by_present_names(whole["settings"])}  # an older result has older names
    if kind == WHOLE and (found != same or said):
        raise Wrong(f"a whole result has problems: {said}")
    return "use"


@door("logs and records of runs", 8)
def metrics_logs(rng, folder, kind):
    "metrics.jsonl and run.json."
    rows = [dict(step=k, seconds=k / 2, loss=1.5 - k, lr=4e-5) for k in range(4)]
    k = rng.randrange(4)
    lines = [json.dumps(r).encode() for r in rows]
    spoilt = rng.choice(
        [
            b"",
            b"null",
            b"[]",
            b"{}",
            b"\0",
            spelt(change(rows[k], rng)).encode(),
            torn(lines[k], rng).replace(b"\n", b" "),
            lines[k] + lines[k],
            b'{"step": 1e400}',
            b"{" * 50_000,
            b'{"step": "1"}',
            b'{"step": 1.5}',
        ]
    )
    lines[k] = {WHOLE: lines[k], LOST: b"[]", ANY: spoilt}[kind]
    (folder / "metrics.jsonl").write_bytes(
        b"\n".join(lines) + (rng.choice([b"\n", b"\n", b""]) if kind == ANY else b"\n")
    )
    (folder / "run.json").write_bytes(spoil_bytes(b'{"name": "x", "seconds": 1.0, "settings": {}}', rng, kind))
    if rng.random() < 0.4:
        with naming("run.json"):
            read_run(folder)
        return "use"
    with naming(f"metrics.jsonl, line {k + 1}"):
        found = read_metrics(folder)
    if [r for r in found if r["step"] in (set(range(4)) - {k})][:k] != rows[:k]:
        raise Wrong("the lines before it are as they were")
    return "use"


@door("rows on disk", 6)
def rows_on_disk(rng, folder, kind):
    "rows.jsonl, offsets.npy and report.json."
    rows = [dict(key=f"k/{k}", kind="turns", turns=[dict(question="a ?", answer="ä")]) for k in range(4)]
    write_rows(folder / "rows", iter(rows), Report("rows"))
    name = rng.choice(["rows.jsonl", "offsets.npy", "report.json"])
    path = folder / "rows" / name
    path.write_bytes(spoil_bytes(path.read_bytes(), rng, kind))
    with naming(name, "rows.jsonl"):
        found = list(RowFile(folder / "rows"))
    if name != "rows.jsonl" and found != rows:
        raise Wrong(f"other rows after damage to {name}")
    return "use"


DEFAULTS = (
    'size: str = "tiny"  # a size\nsteps: int = 5  # how many\nlr: float = 0.5  # how fast\nwrite: bool = False  # or '
    "not\n"
)


@door("papermill's parameters", 8)
def parameters(rng, folder, kind):
    "Values of any kind under any name, in the cell that papermill itself writes."
    values = {
        rng.choice(["size", "steps", "lr", "write", "seeed", "In", "__name__"]): copy.deepcopy(
            rng.choice([*(v for v in ODD if not isinstance(v, str)), "8B", 7, 0.25, True, *TEXTS[:20]])
        )
        for _ in range(rng.choice([1, 1, 2]))
    }
    if kind != ANY:
        values = {"steps": 7} if kind == WHOLE else {"seeed": 7}
    cell = "# Parameters\n" + PythonTranslator.codify(values, "Parameters").split("\n", 1)[1]
    namespace = {}
    exec(DEFAULTS, namespace)
    try:
        exec(cell, namespace)
    except SyntaxError:  # papermill cannot say it either
        return "error"
    kinds = dict(size=str, steps=int, lr=float, write=bool)
    with naming(*values):
        found = check_parameters(namespace | {"In": ["", DEFAULTS, cell, "check_parameters(globals())"]})
    for name, value in values.items():
        fits = name in kinds and (type(value) is kinds[name] or kinds[name] is float and type(value) is int)
        if not fits or isinstance(value, float) and not np.isfinite(value) or found[name] != value:
            raise Wrong(f"{name} = {value!r} was let through")
    return "use"
