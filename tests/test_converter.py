"""Converting a published checkpoint: how much memory it takes, and what it leaves behind when it refuses."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from safetensors import safe_open

from perceptio.convert.checkpoints import read_config
from perceptio.convert.published import published_config, random_checkpoint, write_random
from perceptio.convert.tokenizers import convert_checkpoint
from perceptio.core.settings import Settings
from perceptio.core.weights import shard_files

MIB = 2**20
MEASURED = """
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

from perceptio.convert.checkpoints import convert_tensor, convert_weights, read_config
from perceptio.core.weights import shard_files

{first}

def resident(key):
    return next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith(key))

source, target = map(Path, sys.argv[1:])
before = resident("VmRSS")
{then}
print(resident("VmHWM") - before)
"""
SHARD_BY_SHARD = dict(
    first="from transformers import InternVLConfig, InternVLForConditionalGeneration",  # code is no part of the measure
    then="convert_weights(source, target, image_token_id=7)",
)
ALL_SHARDS_FIRST = dict(
    first="",
    then="""
states = {name: load_file(source / name) for name in shard_files(source)}
target.mkdir()
for name, state in states.items():
    converted = (convert_tensor(k, v, read_config(source)["llm_config"]) for k, v in state.items())
    save_file({k: v for part in converted for k, v in part.items()}, target / name)
""",
)


@pytest.fixture(scope="module")
def published():
    "Five shards of 60 to 100 MB in bfloat16; deleted afterwards, pytest's own folders would stay."
    wide = dict(vision_hidden=256, vision_layers=2, vision_heads=4, vision_mlp=1024, image_size=56, base="")
    deep = dict(text_hidden=1024, text_layers=10, text_heads=8, text_kv_heads=2, text_mlp=4096, vocab_size=20_000)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "published"
        write_random(source, published_config(Settings.load("8B", **wide, **deep)), shards=5, dtype=torch.bfloat16)
        yield source


def increase(source, conversion):
    "MiB by which a conversion raises the resident memory of a process that does nothing else."
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        command = [sys.executable, "-c", MEASURED.format(**conversion)]
        done = subprocess.run([*command, source, Path(folder) / "new"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout) / 1024


def limits(source):
    "MiB of the largest shard and of the largest tensor."
    largest = 0
    for name in shard_files(source):
        with safe_open(source / name, "pt") as file:
            largest = max(largest, *(file.get_tensor(key).nbytes for key in file.keys()))
    return max((source / name).stat().st_size for name in shard_files(source)) / MIB, largest / MIB


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="resident memory is read where Linux shows it")
def test_conversion_holds_one_shard_at_a_time(published):
    """Peak memory stays under 1.3 shards and one tensor.

    Peak is the highest resident size of the process during the conversion, less its size when the conversion starts.
    It counts pages of mapped files, although the system may take those back at any time: the bound is on the safe
    side. VmHWM belongs to one program, while ru_maxrss begins with the size of the process that started it and would
    hide the increase.
    """
    shard, tensor = limits(published)
    bound = 1.3 * shard + tensor
    assert shard > 60 and len(shard_files(published)) == 5
    assert 0.5 * shard < increase(published, SHARD_BY_SHARD) < bound
    assert increase(published, ALL_SHARDS_FIRST) > 2 * bound  # the control: the measurement sees what is held


def test_a_conversion_that_fails_half_way_leaves_nothing(tmp_path):
    settings, source = random_checkpoint(tmp_path / "published")

    def fail_at_second(file, seen=[]):  # noqa: B006
        seen.append(file)
        if len(seen) == 2:
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        convert_checkpoint(source, tmp_path / "new", settings, fail_at_second)
    assert [p.name for p in tmp_path.glob("[!.]*")] == ["published"]  # and hidden locks
    convert_checkpoint(source, tmp_path / "new", settings)  # and the next attempt works


def edit(path, change):
    "Change a json file in place."
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def full_disk(source, monkeypatch):
    usage = namedtuple("usage", "total used free")
    size = sum((source / name).stat().st_size for name in shard_files(source))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2 * size, size, size))  # the weights and nothing else


def rows_of_other_tokens(source, monkeypatch):
    "Somebody's fine-tuned model: seven more tokens, with rows and in the configuration."
    config = read_config(source)
    config["llm_config"]["vocab_size"] += 7
    write_random(source, config)


def other_tokens_without_rows(source, monkeypatch):
    def add(config):
        added = config["added_tokens_decoder"]
        added[str(max(map(int, added)) + 1)] = dict(content="[SEG]", special=True)

    edit(source / "tokenizer_config.json", add)


def another_kind(source, monkeypatch):
    edit(source / "config.json", lambda config: config.update(model_type="sa2va_chat"))


def half_a_shard(source, monkeypatch):
    path = source / shard_files(source)[1]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "spoil, message",
    [
        (full_disk, "GiB free: make room first"),
        (rows_of_other_tokens, r"llm_config.vocab_size: 272 there, 265 for 4B"),
        (other_tokens_without_rows, "the tokenizer has 266 tokens, the checkpoint 265 embedding rows"),
        (another_kind, "holds a 'sa2va_chat' checkpoint"),
        (half_a_shard, "model-00002-of-00002.safetensors is cut off at"),
    ],
)
def test_refused_before_a_weight_is_written(tmp_path, monkeypatch, spoil, message):
    settings, source = random_checkpoint(tmp_path / "published")
    spoil(source, monkeypatch)
    converted = []
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(source, tmp_path / "new", settings, converted.append)
    assert converted == []
    assert [p.name for p in tmp_path.glob("[!.]*")] == ["published"]  # and hidden locks
