"""Images, masks and the names by which files are found."""

import io
import os
import struct
import tempfile
import zlib
from functools import cache
from pathlib import Path

import numpy as np
from damage import ANY, LOST, NAMES, TEXTS, WHOLE, change, odd, spoil_bytes, torn
from harness import Wrong, door, naming
from PIL import Image

from perceptio.core.foreign import BadSample
from perceptio.data.llava import ImageFolders
from perceptio.data.own import own_image, own_mask, read_mask
from perceptio.data.rows import decode_mask, find_image, mend_mask, read_image
from perceptio.method.backbone import check_image

COLOURS = np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)


def encoded(kind, **more):
    content = io.BytesIO()
    picture = Image.fromarray(COLOURS)
    picture.convert(more.pop("mode", "RGB")).save(content, kind, **more)
    return content.getvalue()


@cache
def whole():
    "Files that can be read: name -> (content, the pixels are known exactly)."
    turned = Image.Exif()
    turned[0x0112] = 6
    gif = [Image.fromarray(COLOURS[..., k]) for k in range(3)]
    return {
        "rgb.png": (encoded("PNG"), True),
        "grey.png": (encoded("PNG", mode="L"), False),
        "palette.png": (encoded("PNG", mode="P"), False),
        "alpha.png": (encoded("PNG", mode="RGBA"), True),
        "turned.png": (encoded("PNG", exif=turned), True),
        "rgb.jpg": (encoded("JPEG"), False),
        "cmyk.jpg": (encoded("JPEG", mode="CMYK"), False),
        "turned.jpg": (encoded("JPEG", exif=turned, progressive=True), False),
        "frames.gif": (encoded("GIF", mode="P", save_all=True, append_images=gif), False),
        "rgb.bmp": (encoded("BMP"), True),
        "rgb.webp": (encoded("WEBP", lossless=True), True),
        "rgb.tif": (encoded("TIFF", compression="tiff_lzw"), True),
        "page.ppm": (encoded("PPM"), True),
    }


def chunk(kind, data, crc=0):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ crc)


def with_chunk(content, rng):
    "A PNG with a chunk of its own behind the header, right or broken in itself."
    kind = rng.choice(
        [
            b"eXIf",
            b"pHYs",
            b"cHRM",
            b"acTL",
            b"fcTL",
            b"iCCP",
            b"tEXt",
            b"zTXt",
            b"iTXt",
            b"tRNS",
            b"gAMA",
            b"sRGB",
            b"PLTE",
            b"IHDR",
            b"IEND",
            b"AAAA",
        ]
    )
    bomb = b"k\0\1\0\0\0" + zlib.compress(b" " * (1 << rng.choice([10, 21])))
    tag = struct.pack(
        "<2sHIHHHI4sI",
        b"II",
        42,
        8,
        1,
        0x0112,
        rng.choice([1, 2, 3, 5, 7, 12, 99]),
        rng.choice([0, 1, 4, 2**31]),
        rng.randbytes(4),
        rng.choice([0, 8, 2**32 - 1]),
    )
    data = rng.choice([b"", rng.randbytes(rng.randrange(30)), bomb, tag, b"k\0" + zlib.compress(b"x" * 9)[:-2]])
    return content[:33] + chunk(kind, data, rng.choice([0, 0, 0, 1])) + content[33:]


def with_size(content, rng):
    "A PNG whose header promises other pixels."
    width, height = (rng.choice([0, 1, 36, 24, 20_000, 2**20, 2**31 - 1, 2**32 - 1]) for _ in range(2))
    head = struct.pack(
        ">IIBBBBB",
        width,
        height,
        rng.choice([8, 8, 1, 16, 3]),
        rng.choice([2, 2, 0, 3, 6, 9]),
        0,
        0,
        rng.choice([0, 1]),
    )
    return content[:8] + chunk(b"IHDR", head) + content[33:]


def other_file(rng):
    return rng.choice(
        [
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\n",
            b"<svg xmlns='http://www.w3.org/2000/svg'/>",
            b"BM" + b"\xff" * 60,
            b"GIF89a" + b"\xff" * 40,
            b"RIFF\xff\xff\xff\x7fWEBPVP8L" + b"\0" * 40,
            b"II*\0" + b"\xff" * 40,
            b"MM\0*" + struct.pack(">I", 8) + struct.pack(">H", 999) + b"\1" * 99,
            b"\0\0\1\0\1\0" + b"\xff" * 30,
            b"8BPS\0\1" + b"\0" * 40,
            b"P6 99999999 99999999 255\n",
            b"\xff\xd8\xff\xe0" + b"\0" * 20,
            b"\xff\xd8\xff\xe1\xff\xffExif\0\0II*\0\x08\0\0\0" + b"\xff" * 90,
        ]
    )


@door("images", 14)
def images(rng, folder, kind):
    "An image file as the readers of data sets, as a person's own data and as a question open it."
    name = rng.choice([n for n in whole() if kind == ANY or not n.endswith(".ppm")])
    content, exact = whole()[name]
    how = {WHOLE: 7, LOST: 6, ANY: rng.randrange(8)}[kind]
    broken = content
    if name.endswith(".png") and how < 3:
        broken = with_chunk(content, rng) if how else with_size(content, rng)
    elif how < 7:
        broken = other_file(rng) if kind == ANY and rng.random() < 0.1 else spoil_bytes(content, rng, kind)
    path = folder / name
    path.write_bytes(broken)
    outcomes = []
    for opened in (read_image, check_image, lambda path: own_image(folder, name)):
        try:
            with naming(name, "image"):
                outcomes.append(opened(path))
        except BadSample:
            outcomes.append("skip")
        except ValueError as error:
            if name not in str(error):
                raise Wrong(f"no name in {error}") from error
            outcomes.append("error")
    pixels = outcomes[0]
    if broken == content and isinstance(pixels, str) != name.endswith(".ppm"):
        raise Wrong(f"{name} can be read, and was not")
    if isinstance(pixels, np.ndarray):
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise Wrong(f"pixels are {pixels.dtype} {pixels.shape}")
        if (
            name.endswith(".png")
            and pixels.shape == COLOURS.shape
            and exact
            and how > 0
            and not np.array_equal(pixels, COLOURS)
            and has_checksums(broken, content)
        ):
            raise Wrong("other pixels, and each chunk has its checksum")
        return "use"
    return "error" if "error" in outcomes else "skip"


def has_checksums(broken, content):
    "Whether header and pixels are those of the whole file: then nothing may differ."
    parts = [content[8:33], content[content.index(b"IDAT") - 4 : content.index(b"IEND") - 4]]
    return (
        all(part in broken for part in parts)
        and broken.count(b"IDAT") == content.count(b"IDAT")
        and not any(k in broken for k in (b"tRNS", b"PLTE"))
    )


@door("mask files", 4)
def mask_files(rng, folder, kind):
    "A PNG that says which pixels are an object's."
    labels = np.zeros((24, 36), np.uint8)
    labels[3:9, 5:20], labels[12:20, 1:4] = 1, 2
    content = io.BytesIO()
    Image.fromarray(labels).convert(rng.choice(["L", "L", "P", "1", "RGB", "LA"])).save(content, "PNG")
    broken = spoil_bytes(content.getvalue(), rng, kind) if kind != ANY else content.getvalue()
    changed = rng.random() < 0.6 and kind == ANY or kind == LOST
    if changed and kind == ANY:
        broken = rng.choice([torn, with_chunk, with_size])(broken, rng)
    path = folder / (rng.choice(["m.png"] * 6 + ["m.jpg", "m"]) if kind == ANY else "m.png")
    path.write_bytes(broken)
    value = rng.choice([None] * 8 + [1, 2, 3, -1, 2**40]) if kind == ANY else None
    size = rng.choice([(24, 36)] * 6 + [(36, 24), (2**31, 2**31)]) if kind == ANY else (24, 36)
    try:
        with naming("mask"):
            mask = read_mask(path, size, value)
    except BadSample:
        return "skip"
    if not changed and value in (None, 1, 2) and len(np.unique(labels[mask])) > 2:
        raise Wrong("the mask has pixels of other values")
    return "use"


def literal(counts, height, width):
    "Run lengths, one pixel after the other."
    flat, value = [], False
    for n in counts:
        flat += [value] * n
        value = not value
    return np.array(flat, bool).reshape(width, height).T


def good_mask(rng, height, width):
    "(segmentation, its pixels or None)"
    if rng.random() < 0.5:
        cuts = sorted(rng.sample(range(1, height * width), rng.randrange(1, 9)))
        counts = [int(n) for n in np.diff([0, *cuts, height * width])]
        return dict(size=[height, width], counts=counts), literal(counts, height, width)
    points = [rng.uniform(0, side) for _ in range(rng.randrange(3, 9)) for side in (width, height)]
    return [points, [1, 1, 9, 1, 9, 9, 1, 9]], None


@door("masks", 12)
def masks(rng, folder, kind):
    "Polygons and run lengths of any form and size."
    height, width = rng.randrange(10, 40), rng.randrange(10, 40)
    segmentation, pixels = good_mask(rng, height, width)
    size, changed = (height, width), kind == ANY and rng.random() < 0.85
    if kind == LOST:
        segmentation, changed = rng.choice([7, dict(size=[10**6, 10**6], counts="0")]), True
    elif changed:
        segmentation = (
            change(segmentation, rng, rng.choice([1, 1, 2]))
            if rng.random() < 0.9
            else rng.choice([packed(rng), odd(rng)])
        )
        size = rng.choice(
            [size] * 6
            + [
                (10**6, 10**6),
                (2**31, 2**31),
                (0, 5),
                (-4, 4),
                (width, height),
                (height, 10**9),
                (None, 3),
                ("24", 24),
                (1.5, 2),
                (True, True),
            ]
        )
    read = rng.choice(
        [
            decode_mask,
            lambda s, *size: decode_mask(s, *size, "sa2va_sum"),
            lambda s, *size: decode_mask(mend_mask(s, *size, str), *size),
            lambda s, *size: own_mask(folder, s, size),
        ]
    )
    try:
        with naming("mask", "polygon", "run lengths", "path", "write"):
            mask = read(segmentation, *size)
    except BadSample:
        return "skip"
    if isinstance(mask, np.ndarray) and (mask.shape != tuple(size) or mask.dtype != bool or not mask.any()):
        raise Wrong(f"a mask is {mask.dtype} {mask.shape}")
    if not changed and pixels is not None and isinstance(mask, np.ndarray) and not np.array_equal(mask, pixels):
        raise Wrong("other pixels than the run lengths say, one after the other")
    return "use"


def packed(rng):
    return dict(
        size=[20, 20],
        counts=rng.choice(
            [
                "o" * 100_000,
                "0" * 50_000,
                "P" * 1000,
                "".join(chr(rng.randrange(48, 112)) for _ in range(12)),
                "\ud83d",
                "é",
                b"\xff",
            ]
        ),
    )


@cache
def tree():
    "A folder of images with all that must not be opened in it, a secret beside it, and a link that the owner made."
    top = Path(tempfile.mkdtemp(prefix="perceptio-fuzz-"))
    root = top / "data"
    for name in ("images", "sub/folder.png", "elsewhere"):
        (root / name).mkdir(parents=True)
    secret = encoded("PNG", mode="1")
    (top / "secret.png").write_bytes(secret)
    for name in ("a.png", "sub/a.png", "images/a.png", "caf\u00e9.png", "two.png", "two.jpg", "folder.jpg"):
        (root / name).write_bytes(whole()["rgb.png"][0])
    os.mkfifo(root / "pipe.png")
    os.mkfifo(root / "images" / "pipe.png")
    for name, target in (
        ("loop.png", "loop.png"),
        ("device.png", "/dev/zero"),
        ("away.png", "elsewhere/none.png"),
        ("linked.png", "sub/a.png"),
        ("to_pipe.png", "pipe.png"),
    ):
        (root / name).symlink_to(target)
    (root / "folder.png").mkdir()
    return root


@door("names and paths", 10)
def names(rng, folder, kind):
    "A name out of an annotation: what is opened lies below the folder, is a file, and is the one that was named."
    root = tree()
    name = rng.choice(
        [
            rng.choice(NAMES),
            rng.choice(["linked.png", "to_pipe.png", "a.png", "a", "two", "sub/a.png"]),
            "/".join(
                rng.choice(["..", ".", "sub", "a.png", "", "~", "\0", "x" * 300, "caf\u00e9.png"])
                for _ in range(rng.randrange(1, 6))
            ),
            rng.choice(TEXTS),
        ]
    )
    if rng.random() < 0.1:
        name = odd(rng)
    if kind != ANY:
        name = "sub/a.png" if kind == WHOLE else rng.choice(["../secret.png", "pipe.png", "/etc/passwd"])
    try:
        how = rng.randrange(3)
        if how == 0:
            found = find_image(root, name, rng.random() < 0.5)
        elif how == 1:
            found = ImageFolders(root).find(name)
            found = found and root / found
        else:
            found = root / own_image(root, name)[0]
        if found is None:
            return "skip"
        read = read_image(found)
    except BadSample:
        return "skip"
    if not os.path.realpath(found).startswith(str(root)):
        raise Wrong(f"{name!r} led to {found}")
    if not np.array_equal(read, COLOURS):
        raise Wrong(f"{name!r} gave other pixels")
    return "use"
