"""Pickles, which are programs: refs of RefCOCO and what torch.save wrote. A marker must never appear."""

import copy
import io
import pickle
import zipfile
from functools import cache

import torch
from damage import ANY, LOST, WHOLE, change, torn
from harness import Wrong, door, naming

from perceptio.core.weights import read_torch
from perceptio.data.refcoco import read_plain_pickle, read_refs
from perceptio.method.codebook import DepthCodebook
from perceptio.method.sam import read_sam_file


class Call:
    "An object that calls a function when it is read."

    def __init__(self, function, *args):
        self.how = function, args

    def __reduce__(self):
        return self.how


def code(marker):
    return f"open({str(marker)!r}, 'w').close()"


def payloads(marker):
    "Programs that make the marker, in every opcode that names something."
    import builtins
    import os
    import subprocess

    m, text = str(marker), code(marker)
    calls = [
        Call(os.mkdir, m),
        Call(exec, text),
        Call(eval, f"[{text}]"),
        Call(os.system, f"touch {m}"),
        Call(subprocess.check_output, ["touch", m]),
        Call(builtins.open, m, "w"),
        Call(getattr, Call(__import__, "os"), "mkdir"),
    ]
    for call in calls:
        for protocol in (0, 1, 2, 4):
            yield pickle.dumps([{"image_id": 1, "x": call}], protocol)
    line, raw = m.encode(), text.encode()
    yield b"(S'" + line + b"'\niposix\nmkdir\n."  # INST
    yield b"(cposix\nmkdir\nS'" + line + b"'\no."  # OBJ
    yield b"\x80\x02cposix\nmkdir\nX" + len(line).to_bytes(4, "little") + line + b"\x85R."
    yield (
        b"\x80\x04\x8c\x05posix\x8c\x05mkdir\x93X" + len(line).to_bytes(4, "little") + line + b"\x85R."
    )  # STACK_GLOBAL
    yield b"\x80\x02cbuiltins\nexec\nX" + len(raw).to_bytes(4, "little") + raw + b"\x85\x81."  # NEWOBJ
    yield b"\x80\x02ctypes\nSimpleNamespace\n)\x81}X\1\0\0\0aK\1sb."  # BUILD
    yield b"\x80\x02\x82\xf0."  # EXT1
    yield b"Pposix.mkdir\n."  # PERSID
    yield b"\x80\x02)" + b"\x85" * 100_000 + b"."
    yield b"\x80\x02})" + b"\x85" * 200_000 + b"Ns."
    yield b"\x80\x04}(\x91" + b"\x85" * 200_000 + b"Ns."
    yield b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    yield b"\x80\x02]r\xff\xff\xff\x7f."
    yield b"(lp2147483647\n."
    yield b"\x80\x02\x8b\xff\xff\xff\x7f" + b"\1" * 9 + b"."
    yield b"\x80\x02T\xff\xff\xff\x7f" + b"a."
    yield b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f" + b"a."
    yield b"\x80\x05\x96" + b"\xff" * 7 + b"\x0f" + b"a."
    yield b"L" + b"9" * 6000 + b"L\n."
    yield b"I" + b"9" * 6000 + b"\n."


@cache
def programs(marker):
    return list(payloads(marker))


REFS = [
    dict(
        ref_id=k,
        ann_id=10 + k,
        image_id=k,
        split="val",
        sentences=[dict(raw="x", sent="x", tokens=["x"], sent_id=k)],
        sent_ids=[k],
    )
    for k in range(3)
]


class Plain(pickle._Unpickler):
    "Python's own reader, written in Python: what the file says, for comparison."

    def find_class(self, module, name):
        raise pickle.UnpicklingError("a name")


def program(rng, marker, kind=ANY):
    "A pickle: plain data, whole or damaged, or a payload."
    if kind == LOST or kind == ANY and rng.random() < 0.35:
        return rng.choice(programs(marker))
    value = change(REFS, rng, rng.choice([1, 1, 3])) if kind == ANY and rng.random() < 0.7 else REFS
    whole = pickle.dumps(value, rng.choice([0, 1, 2, 3, 4, 5]))
    return torn(whole, rng) if kind == ANY and rng.random() < 0.6 else whole


@door("pickles of refs", 10)
def refs(rng, folder, kind):
    "What is read is what Python's own reader makes of it; nothing runs."
    marker, path = folder / "marker", folder / "refs(unc).p"
    content = program(rng, marker, kind)
    path.write_bytes(content)
    try:
        with naming("refs(unc).p"):
            found = read_plain_pickle(path)
            if len(content) < 50_000 and repr(found) != repr(Plain(io.BytesIO(content), encoding="latin-1").load()):
                raise Wrong("another value than Python's own reader gives")
            read_refs(path)
    finally:
        if marker.exists():
            raise Wrong("a payload ran")
    return "use"


@cache
def saved():
    content = io.BytesIO()
    with torch.random.fork_rng(devices=[]):
        torch.save({"model": {"a.weight": torch.ones(2, 3), "b": torch.zeros(4)}}, content)
    old = io.BytesIO()
    torch.save({"model": {"a": torch.ones(2)}}, old, _use_new_zipfile_serialization=False)
    return content.getvalue(), old.getvalue()


def with_program(program):
    "An archive of torch.save with another program in it."
    new = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved()[0])) as old, zipfile.ZipFile(new, "w") as made:
        for item in old.infolist():
            made.writestr(item.filename, program if item.filename.endswith("data.pkl") else old.read(item))
    return new.getvalue()


@cache
def bombs():
    "Archives whose parts unpack to more than the file has: packed zeros, and one part under many names."
    packed, overlapping = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved()[0])) as old:
        for method, made in ((zipfile.ZIP_DEFLATED, packed), (zipfile.ZIP_STORED, overlapping)):
            with zipfile.ZipFile(made, "w", method) as new:
                for item in old.infolist():
                    part = old.read(item) if item.filename.endswith(("data.pkl", "version")) else bytes(1 << 24)
                    new.writestr(item.filename, part if method else part[: 1 << 18])
                last = new.infolist()[-1]
                for k in range(
                    500 if not method else 0
                ):  # entries of the table of contents, without content of their own
                    again = copy.copy(last)
                    again.filename = f"{last.filename}{k}"
                    new.filelist.append(again)
    return packed.getvalue(), overlapping.getvalue()


def bomb(rng):
    return rng.choice(bombs())


@door("pickles of weights", 6)
def weights(rng, folder, kind):
    "Files of torch.save as the readers of codebooks, SAM2 and checkpoints open them."
    marker, path = folder / "marker", folder / "weights.pt"
    how = {WHOLE: 1, LOST: 0, ANY: rng.random()}[kind]
    content = rng.choice(saved())
    if kind == ANY and how < 0.1:
        content = bomb(rng)
    elif how < 0.4:
        attack = program(rng, marker, LOST if kind == LOST else ANY)
        content = with_program(attack) if rng.random() < 0.6 else attack
    elif how < 0.9:
        content = torn(content, rng)
    path.write_bytes(content)
    try:
        with naming("weights.pt"):
            read = [read_torch, read_sam_file, lambda p: DepthCodebook.from_pretrained(p, 64)]
            rng.choice(read if kind != WHOLE else read[:1])(path)
    finally:
        if marker.exists():
            raise Wrong("a payload ran")
    return "use"
