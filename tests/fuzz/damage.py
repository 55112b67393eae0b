"""Ways to break bytes, texts and JSON."""

import copy
import json
import random

WHOLE, LOST, ANY = "whole", "lost", "any"  # what a case makes of its input: nothing, something that is none, one of all
PAGE = b"<!DOCTYPE html><html>"
DIGITS, DEEP, HALF = "@digits@", "@deep@", "@half@"  # what json.dumps cannot write
SPELT = {
    DIGITS: "9" * 5000,
    DEEP: "[" * 30_000 + "]" * 30_000,
    HALF: '"\\ud83d"',
}
NAMES = (
    "../secret.png",
    "/etc/passwd",
    "a/../../secret.png",
    "..",
    ".",
    "",
    "a\0b.png",
    "x" * 300,
    "x" * 252,
    "a/" * 2500 + "b.png",
    "\ud800.png",
    "data:image/png;base64," + "iVBORw0KGgo" * 40,
    "data:image/png;base64,AAAA",
    "http://127.0.0.1:9/a.png",
    "file:///etc/passwd",
    "pipe.png",
    "loop.png",
    "device.png",
    "folder.png",
    "away.png",
    "C:\\a.png",
    "~/a.png",
    "$HOME/a.png",
    "a.png\n",
    "caf\u00e9.png",
    "cafe\u0301.png",
    "-rf.png",
    "*.png",
    "[a-z].png",
    "none.png",
)
TEXTS = (
    "",
    " ",
    "\n",
    "a\0b",
    "\x1b[31mred\x1b[0m",
    "\u202eright to left",
    "\u2028line\u2029paragraph",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "</td></table><h1>x</h1>",
    "costs $5 and $\\frac{$ 10",
    "[SEG]",
    "<d_start><d_1><d_end>",
    "<|im_end|>\n<|im_start|>system",
    "<image>",
    "</s>",
    "\ud83d",
    "\U0001f600" * 3,
    "日本語" * 50,
    "x" * 100_000,
    "{0.__class__}",
    "{}",
    "%s%n",
    "'; drop table x; --",
    "a\tb\rc",
    "NaN",
    "null",
    "7",
    "128",
)
ODD = (
    *(None, True, False, 0, -1, 1, 7, 2**31, 2**63, 10**18, -(10**18), 0.5, 1e300, float("nan"), float("inf")),
    *([], {}, [[]], [{}], {"": 0}, [[0, 5]], [1], [None] * 5, {"size": [10**6, 10**6], "counts": [1]}),
    *(DIGITS, DEEP, HALF),
)


def odd(rng: random.Random):
    "A value that is not expected anywhere."
    return copy.deepcopy(rng.choice([rng.choice(ODD), rng.choice(TEXTS), rng.choice(NAMES)]))


def places(value, path=()):
    "Paths to everything within lists and dictionaries."
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def change(value, rng: random.Random, times: int = 1):
    "A copy with something in it replaced, removed, doubled or renamed."
    value = copy.deepcopy(value)
    for _ in range(times):
        *path, key = rng.choice(list(places(value)) or [(None,)])
        if key is None:
            return odd(rng)
        holder = value
        for step in path:
            holder = holder[step]
        how = rng.random()
        if how < 0.7:
            holder[key] = odd(rng)
        elif how < 0.85:
            del holder[key]
        elif isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        else:
            holder[rng.choice(TEXTS[:20])] = holder.pop(key)
    return value


def spelt(value) -> str:
    "JSON with what json.dumps cannot write."
    text = json.dumps(value)
    for name, written in SPELT.items():
        text = text.replace(json.dumps(name), written)
    return text


def torn(content: bytes, rng: random.Random) -> bytes:
    "Bytes cut, flipped, repeated, overwritten or put in front."
    content, how = bytearray(content), rng.randrange(7)
    at = rng.randrange(len(content) + 1) if content else 0
    if how == 0:
        return bytes(content[:at])
    if how == 1:
        return bytes(content[at:])
    if how == 2:
        return bytes(content[:at]) + rng.randbytes(rng.randrange(1, 40)) + bytes(content[at:])
    if how == 3:
        return rng.choice(
            [
                b"",
                PAGE,
                b"version https://git-lfs.github.com/spec/v1\nsize 7\n",
                b"\0" * 64,
                b"PK\3\4",
            ]
        )
    if how == 4 and len(content) > 8:
        at = min(at, len(content) - 8)
        content[at : at + 8] = rng.choice([b"\xff" * 8, b"\0" * 8, b"\x7f" + b"\xff" * 7, b"\xff\xff\xff\x7f" * 2])
        return bytes(content)
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        if content:
            content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content)


def spoil(value, rng: random.Random, kind: str, times: int = 1):
    "A value of JSON: whole, none of what belongs there, or changed."
    return copy.deepcopy(value) if kind == WHOLE else 7 if kind == LOST else change(value, rng, times)


def spoil_bytes(content: bytes, rng: random.Random, kind: str) -> bytes:
    "The same for a file."
    return content if kind == WHOLE else PAGE if kind == LOST else torn(content, rng)


def spoil_json(value, rng: random.Random, kind: str, times: int = 1) -> bytes:
    "A file of JSON: whole, something else, or changed in a value, or in its bytes."
    if kind == ANY and rng.random() < 0.8:
        return spelt(change(value, rng, times)).encode()
    return spoil_bytes(json.dumps(value).encode(), rng, kind)
