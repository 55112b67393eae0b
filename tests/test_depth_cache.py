"""The cache of depth tokens, killed and shared: the same bytes as one process that nothing interrupts."""

import functools
import hashlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, cells, source
from PIL import Image

import perceptio.data.depth_cache
from perceptio.core.dense import dense_token
from perceptio.core.launch import launch
from perceptio.core.notebook import run_dir
from perceptio.core.record import Run, read_metrics, read_result, read_run
from perceptio.core.settings import Settings
from perceptio.data.depth_cache import DepthTokens, tokens_folder, write_depth_tokens
from perceptio.data.depth_store import Depth, untrained, write_depth
from perceptio.method import codebook_training
from perceptio.method.codebook import DepthCodebook, normalize_depth
from perceptio.world.normals import normals_of_disparity
from perceptio.world.scenes import fixture

KEYS = [f"{i:02d}.jpg" for i in range(40)]
MISSING = 30  # a row whose image is not there


def coarse(i, channels):
    "A random picture of 5 x 5 cells (channels, 5, 5) in [0, 1]."
    return torch.from_numpy(np.random.default_rng((7, i)).random((channels, 5, 5), np.float32))


def depth(i):
    if i == MISSING:
        raise FileNotFoundError(2, "No such file or directory", KEYS[i])
    if os.environ.get("DIE") == f"row {i}":
        os.kill(os.getpid(), signal.SIGKILL)
    return normalize_depth(F.interpolate(coarse(i, 1)[None], (40, 50), mode="bicubic"))[0, 0].numpy()


def photograph(i):
    "One of two sizes."
    size = (60, 80) if i % 3 else (80, 60)
    return (F.interpolate(coarse(i, 3)[None], size)[0].permute(1, 2, 0) * 255).to(torch.uint8).numpy()


@functools.cache
def codebook():
    "Random weights; the codes are what the encoder says of some maps, so that all kinds of codes occur."
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        book = DepthCodebook(128, 16, 80, 10, "compact").freeze()
    some = torch.stack([torch.from_numpy(depth(i)) for i in range(100, 104)])[:, None]
    book.codebook.copy_(book.latents(some).permute(0, 2, 3, 1).reshape(-1, 16)[::3][:128])
    return book


def tiny_teacher():
    "Depth Anything with 37,813 random weights."
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

    from perceptio.data.depth_teacher import DepthTeacher

    stages = [f"stage{i}" for i in range(1, 5)]
    backbone = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
        out_features=stages,
        reshape_hidden_states=False,
        initializer_range=0.2,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=16,
        neck_hidden_sizes=[8] * 4,
        fusion_hidden_size=8,
        head_hidden_size=4,
        initializer_range=0.2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(2)
        return DepthTeacher(DepthAnythingForDepthEstimation(config))


def write(folder, **more):
    "All maps in five shards."
    torch.set_num_threads(1)
    write_depth_tokens(
        folder, KEYS, depth, None, codebook(), **dict(shard=8, batch_size=1, maps=True, progress=False) | more
    )


def write_both(folder):
    "The maps, and photographs with a network."
    write(folder / "maps")
    write_depth_tokens(
        folder / "photographs", KEYS[:5], photograph, tiny_teacher(), codebook(), shard=2, batch_size=2, progress=False
    )


def write_and_die(folder, die):
    "Killed (kill -9) when a row is read, before a file gets its name, or before the shards are removed."
    os.environ["DIE"], replace = die, os.replace

    def deadly(source, target):
        if Path(target).name == die:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    perceptio.data.depth_cache.os.replace = deadly
    if die == "cleaning":
        shutil.rmtree = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
    write(folder)


MOMENTS = {
    "row 19": 2,
    "maps-000000016.npy": 2,
    "000000024.safetensors": 3,
    "codes.npy": 5,
    "meta.json": 5,
    "cleaning": 5,
}  # shards then there


def die_at_each(base):
    "One process for each moment; what became of them."
    codebook()
    for die in MOMENTS:
        if not (child := os.fork()):
            write_and_die(base / die, die)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            sys.exit(f"{die}: not killed, status {status}")


def files(folder):
    assert all(p.is_file() for p in folder.iterdir())
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    "A folder with `one`: what a process wrote that nothing interrupted."
    base = tmp_path_factory.mktemp("cache")
    write_both(base / "one")
    return base


@pytest.fixture(scope="module")
def whole(base):
    return files(base / "one" / "maps")


@pytest.fixture(scope="module")
def killed(base):
    code = f"import test_depth_cache as t, pathlib; t.die_at_each(pathlib.Path({str(base)!r}))"
    environ = os.environ | dict(PYTHONPATH=str(Path(__file__).parent), OMP_NUM_THREADS="1")
    subprocess.run([sys.executable, "-c", code], env=environ, check=True)
    return base


def shards(folder):
    return len(list(folder.glob("shards/*.safetensors")))


@pytest.mark.parametrize("die", MOMENTS)
def test_killed_and_continued(killed, whole, die):
    folder = killed / die
    assert shards(folder) == MOMENTS[die] and (folder / "meta.json").exists() == (die == "cleaning")
    if die != "cleaning":
        with pytest.raises(ValueError, match=f"not complete, {MOMENTS[die]} shards"):
            DepthTokens(folder)
    write(folder)
    assert files(folder) == whole


def test_what_the_bytes_hold(base):
    tokens = DepthTokens.open(base / "one" / "maps", KEYS, None, codebook(), maps=True)
    assert tokens.codes.shape == (40, 100) and len(np.unique(tokens.codes)) > 40
    for i in (0, 17, 39):
        true = torch.from_numpy(depth(i))[None, None]
        assert np.array_equal(tokens[i], codebook().encode(true)[0].numpy())
        assert np.abs(tokens.map(i) - codebook().resize(true)[0, 0].numpy()).max() <= 0.5 / 255 + 1e-6
    assert len(list((base / "one" / "maps").glob("maps-*.npy"))) == 5
    assert tokens.meta["skipped"] == 1 and set(tokens.codes[MISSING].tolist()) == {255}
    with pytest.raises(ValueError, match=r"'30.jpg' has no depth tokens.*FileNotFoundError"):
        tokens[MISSING]
    assert isinstance(tokens.codes, np.memmap) and not tokens.codes.flags.owndata


def test_two_processes_write_the_bytes_of_one(base, whole):
    launch(write_both, base / "two", processes=2)
    assert files(base / "two" / "maps") == whole
    assert files(base / "two" / "photographs") == files(base / "one" / "photographs")
    codes = DepthTokens(base / "one" / "photographs").codes
    assert len({row.tobytes() for row in codes}) == 5 and codes.max() < 128


def test_one_of_two_processes_is_killed(base, whole, monkeypatch):
    "The first process dies at row 19, in its second shard; one process goes on with what both have left."
    monkeypatch.setenv("DIE", "row 19")
    with pytest.raises(RuntimeError, match="process 0 of 2 failed: .*SIGKILL"):
        launch(write, base / "half", processes=2)
    monkeypatch.delenv("DIE")
    assert 1 <= shards(base / "half") <= 3 and not (base / "half" / "shards" / "000000016.safetensors").exists()
    write(base / "half")
    assert files(base / "half") == whole


def no_teacher():
    return None


def depth_of(path):
    "A map by the number in the name; leaves the mark of the process that asked."
    (path.parent / f"process-{os.getpid()}").touch()
    return depth(100 + int(path.stem))


def test_a_set_of_images_by_two_processes(tmp_path):
    "What prepare_data.ipynb does with processes = 2: the bytes of one process, and both took part."
    names, found = [f"{i:03d}.png" for i in range(260)], {}  # two units of work
    for n in (1, 2):
        images, folder = tmp_path / f"images-{n}", tmp_path / f"tokens-{n}"
        images.mkdir()
        made = Depth(folder, codebook, no_teacher, depth_of, partial(launch, processes=n))
        torch.set_num_threads(1)
        store = write_depth(made, "some", images, names, progress=False)
        found[n] = {
            p.relative_to(folder): p.read_bytes()
            for p in folder.rglob("*")
            if p.is_file() and not p.name.startswith(".")
        }
        assert len(list(images.glob("process-*"))) == n
        assert np.array_equal(store["259.png"], codebook().encode(torch.from_numpy(depth(359))[None, None])[0].numpy())
    assert found[1] == found[2] and len(found[1]) == 7


def seen(path):
    "What a file shows, as a map; leaves a line about each file that was opened."
    with (path.parent.parent / "opened").open("a") as log:
        log.write(f"{path.parent.name}/{path.stem} ")
    return np.asarray(Image.open(path).convert("L"), np.float32) / 255


def test_equal_names_in_another_folder(tmp_path):
    "x.png, y.png and z.png of several folders, which show these maps: each name has the tokens of its own picture."
    made, written = Depth(tmp_path / "tokens", codebook, no_teacher, seen), {}
    for number in (0, 1, 2, 5, 6):
        written[number] = (depth(100 + number) * 255).round().astype(np.uint8)
    expected = {
        n: codebook().encode(torch.from_numpy(m)[None, None].float() / 255)[0].numpy() for n, m in written.items()
    }
    assert len({codes.tobytes() for codes in expected.values()}) == 5
    folders = {"a": (0, 1, 2), "b": (0, 5, 6), "c": (0, 5, 2), "d": (6, 1, 0)}
    for folder, numbers in folders.items():
        (tmp_path / folder).mkdir()
        for letter, number in zip("xyz", numbers):
            Image.fromarray(written[number]).save(tmp_path / folder / f"{letter}.png")
    opened = []
    for folder in "abcdbca":
        (tmp_path / "opened").write_text("")
        store = write_depth(made, "some", tmp_path / folder, ["x.png", "y.png", "z.png"], progress=False)
        opened.append((tmp_path / "opened").read_text().split())
        read = pickle.loads(pickle.dumps(store))  # training opens the folders that are named in source.json
        for letter, number in zip("xyz", folders[folder]):
            assert np.array_equal(store.codes(f"{letter}.png"), expected[number]), (folder, letter)
            assert np.array_equal(read.codes(f"{letter}.png"), expected[number]), (folder, letter)
    assert [sorted(o) for o in opened[:2]] == [["a/x", "a/y", "a/z"], ["b/y", "b/z"]]
    assert len(opened[2]) <= 1 and sorted(opened[3]) == ["d/x", "d/z"]  # y of c lies in b's, z in a's, in no order both
    assert opened[4:] == [[], [], []]


def scene_depth(path):
    return fixture()[int(path.stem)].disparity


def test_a_codebook_of_published_kind_from_kept_maps(tmp_path, monkeypatch):
    """train_codebook.ipynb at 1B on twelve maps, its shapes made small: killed and begun again; its log, curve, table,
    result and codebook."""
    small, load, log, name = dict(n_depth_tokens=9, depth_size=96, code_dim=16), Settings.load, Run.log, "codebook-1B-9"
    monkeypatch.setattr(Settings, "load", lambda size, **chosen: load(size, **small | chosen))
    monkeypatch.setattr(codebook_training, "train_codebook", partial(codebook_training.train_codebook, every=10))
    made = Depth(tmp_path / "tokens", partial(untrained, Settings.load("1B")), no_teacher, scene_depth)
    write_depth(made, "scenes", tmp_path, [f"{k}.png" for k in range(12)], progress=False)

    def train():
        space = {}
        for cell in (c for c in cells(ROOT / "nbs" / "train_codebook.ipynb") if c["cell_type"] == "code"):
            exec(source(cell), space)
            if "parameters" in cell["metadata"].get("tags", ()):
                space |= dict(size="1B", steps=12, maps_dir=str(tmp_path / "tokens"))
            if "training MSE" in source(cell):
                space["drawn"] = [list(line.get_xdata()) for axis in space["axes"].flat for line in axis.lines]
        plt.close("all")
        return space

    def dies(run, step, **values):
        log(run, step, **values)
        if step == 10:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Run, "log", dies)
        train()
    assert [row["step"] for row in read_metrics(name)] == [0, 10]  # the state is that after the steps 0 to 9
    space = train()
    assert [row["step"] for row in read_metrics(name)] == [0, 10, 11]  # and the last one
    assert [r["step"] for r in read_run(name)["resumed"]] == [9] and read_run(name)["status"] == "finished"
    assert [r["step"] for r in space["trained"][9]["history"]] == list(range(12))
    assert space["drawn"] == [list(range(12))] * 3
    assert [space["stores"][split].shape for split in ("train", "val")] == [(11, 96, 96), (1, 96, 96)]
    book = DepthCodebook.from_pretrained(run_dir("codebook-1B-9") / "codebook")
    assert (book.size, book.n_codes, book.n_tokens, book.code_dim) == (96, 128, 9, 16)
    truth = np.asarray(Image.fromarray(fixture()[0].disparity).resize((96, 96), Image.Resampling.NEAREST))
    shown = book.decode(book.encode(torch.from_numpy(truth)[None, None]))[0, 0].numpy()
    result = read_result("codebook-1B-9", "codebook-1B-9")
    assert result["n"] == 1 and sum(result["metrics"]["counts"]) == 9
    by_hand = ((shown - truth) ** 2).mean()  # kept maps have 255 steps, this has none
    assert result["metrics"]["mse"] == pytest.approx(by_hand, rel=0.02)

    # killed before the result was written: what is trained is measured again
    (run_dir(name) / "results" / f"{name}.json").unlink()
    weights = (run_dir(name) / "codebook" / "model.safetensors").stat().st_mtime_ns
    assert [r["step"] for r in train()["trained"][9]["history"]] == [0, 10, 11]
    assert read_result(name, name)["metrics"] == result["metrics"] and read_run(name)["steps"] == 11
    assert (run_dir(name) / "codebook" / "model.safetensors").stat().st_mtime_ns == weights


def test_a_codebook_of_another_token_from_kept_maps(tmp_path, monkeypatch):
    "train_codebook.ipynb at 1B with -p token normals: it learns what the token's class makes of the teacher's maps."
    small, load, name = dict(n_depth_tokens=9, depth_size=96, code_dim=16), Settings.load, "codebook-normals-1B-9"
    monkeypatch.setattr(Settings, "load", lambda size, **chosen: load(size, **small | chosen))
    settings = Settings.load("1B")
    of_normals = partial(untrained, settings, dense_token("normals", settings))
    for book in (of_normals, partial(untrained, settings)):  # maps of depth in the same folder are not learnt from
        made = Depth(tmp_path / "tokens", book, no_teacher, scene_depth)
        write_depth(made, "scenes", tmp_path, [f"{k}.png" for k in range(12)], progress=False)
    space = {}
    for cell in (c for c in cells(ROOT / "nbs" / "train_codebook.ipynb") if c["cell_type"] == "code"):
        exec(source(cell), space)
        if "parameters" in cell["metadata"].get("tags", ()):
            space |= dict(size="1B", steps=4, maps_dir=str(tmp_path / "tokens"), token="normals")
    plt.close("all")
    assert [space["stores"][split].shape for split in ("train", "val")] == [(11, 3, 96, 96), (1, 3, 96, 96)]
    book = DepthCodebook.from_pretrained(run_dir(name) / "codebook")
    assert (book.token, book.size, book.n_tokens) == ("normals", 96, 9)
    pixels = ((np.arange(96) + 0.5) * 128 / 96).astype(int)
    truth = (normals_of_disparity(fixture()[0].disparity) / 2 + 0.5)[:, pixels[:, None], pixels]
    shown = book.decode(book.encode(torch.from_numpy(truth)[None]))[0].numpy()
    cosine = ((2 * shown - 1) * (2 * truth - 1)).sum(0)
    result = read_result(name, name)
    assert result["metrics"]["mean_angle"] == pytest.approx(np.degrees(np.arccos(cosine.clip(-1, 1))).mean(), abs=1)


def test_another_codebook_is_refused(base):
    other, folder = DepthCodebook(128, 16, 80, 10, "compact"), base / "one" / "maps"
    with pytest.raises(ValueError, match=r"made with codebook [0-9a-f]{12}, not [0-9a-f]{12}\. "):
        DepthTokens.open(folder, KEYS, None, other)
    with pytest.raises(ValueError, match="made with codebook"):
        write_depth_tokens(folder, KEYS, depth, None, other, progress=False)


def test_the_same_tokens_as_in_memory(base):
    from perceptio.world.mixture import scene_codes

    store = fixture()
    load, names = (lambda i: store[i].disparity), [str(i) for i in range(len(store))]
    write_depth_tokens(base / "scenes", names, load, None, codebook(), shard=5, progress=False)
    assert np.array_equal(DepthTokens(base / "scenes").codes, scene_codes(store, codebook()))


BEFORE_OTHER_TOKENS = {  # SHA-256, written by the code that knew depth alone
    "codes.npy": "7297cee25a4877f0",
    "keys.json": "2066893fa8c7d30a",
    "maps-000000000.npy": "91b046982bd6c4b6",
    "maps-000000002.npy": "6e1bfe253a813172",
    "meta.json": "1ad9d6f037cadc0a",
    "pictures.json": "900ce4922c5d4ce9",
    "skipped.json": "37517e5f3dc66819",
}


def test_files_of_depth_are_those_of_before_other_tokens(tmp_path):
    "Names and bytes; a codebook of zeros whose codes are 0, 1, ... leaves no number to the kernels."
    book = DepthCodebook(8, 4, 40, 5, "compact").freeze()
    for values in book.state_dict().values():
        values.zero_()
    book.codebook.copy_(torch.arange(8.0)[:, None].expand(8, 4))
    ramps = [np.add.outer(np.arange(40), np.arange(40) * k).astype(np.float32) / (39 * (1 + k)) for k in range(3)]
    home = tokens_folder(tmp_path, None, book)
    assert home.name == "2b07ecafd3d22d8f"
    common = dict(shard=2, maps=True, pictures=["x", "y", "z"], progress=False)
    write_depth_tokens(home / "all", ["a", "b", "c"], lambda i: ramps[i], None, book, **common)
    found = {p.name: hashlib.sha256(p.read_bytes()).hexdigest()[:16] for p in sorted((home / "all").iterdir())}
    assert found == BEFORE_OTHER_TOKENS
