"""The kills notice a command that takes what is half-written for whole, and let one pass that does not."""

import json
import os
import struct
import time

import kills
import pytest

WHOLE = b"0123456789" * 100
PHASES = {"write": ("test_kills:slowly",)}


def slowly(path):
    "Half, a while, the other half."
    with path.open("wb", buffering=0) as file:
        file.write(WHOLE[:500])
        time.sleep(0.3)
        file.write(WHOLE[500:])


def command(careful):
    def run(processes):
        home = kills.Path(os.environ["PERCEPTIO_HOME"])
        if not (home / "weights.bin").exists():
            slowly(home / (".weights.part" if careful else "weights.bin"))
            if careful:
                os.replace(home / ".weights.part", home / "weights.bin")

    return run


@pytest.mark.parametrize("kind", ["kill", "disk"])
@pytest.mark.parametrize("careful", [True, False])
def test_what_is_half_written_is_a_fault(tmp_path, kind, careful):
    with (tmp_path / "log").open("wb") as log:
        home, run = tmp_path / "whole", command(careful)
        home.mkdir()
        status, heard, _ = kills.attempt(run, 1, home, log, phases=PHASES)
        whole = kills.found(home)
        assert status == 0 and [phase for phase, _ in heard] == ["write"] and 0.25 < heard[0][1] < 5
        assert list(whole) == ["weights.bin"]
        case = kills.Case(kind, "toy", "write", 1, 0)
        verdict = kills.run_case(case, 0, whole, heard, None, log, run, largest=900, phases=PHASES)
    assert len(verdict["strikes"]) >= 1
    assert verdict.get("fault") == (None if careful else "half-written and taken for whole: ['weights.bin']")


def weights(value, seconds=1.0):
    "A state of training with one number."
    told = {"run": json.dumps(dict(done=3, seconds=seconds)), "format": "pt"}
    header = json.dumps({"__metadata__": told, "w": dict(dtype="F32", shape=[1], data_offsets=[0, 4])}).encode()
    return len(header).to_bytes(8, "little") + header + struct.pack("<f", value)


def test_another_weight_or_word_is_a_difference_and_another_time_is_none(tmp_path):
    files = {"checkpoint/model.safetensors": weights(0.1), "checkpoint/settings.json": b"{}"}
    files |= {
        "results/a.json": b'{"metrics": {"iou": 0.5}, "started": "today"}',
        "metrics.jsonl": b'{"loss": 1, "seconds": 2}\n',
    }
    times = {"results/a.json": (b"today", b"now"), "metrics.jsonl": (b"2", b"3")}
    facts = {"results/a.json": (b".5", b".6"), "metrics.jsonl": (b"1", b"2")}
    facts["checkpoint/model.safetensors"] = struct.pack("<f", 0.1), struct.pack("<f", 0.10000001)
    put = lambda place, content: (tmp_path / place).write_bytes(content)  # noqa: E731
    for place, content in files.items():
        (tmp_path / place).parent.mkdir(exist_ok=True)
        put(place, content)
    whole = kills.found(tmp_path)
    for place, (old, new) in times.items():
        put(place, files[place].replace(old, new))
    put("checkpoint/model.safetensors", weights(0.1, seconds=2.0))
    assert kills.differences(whole, tmp_path) == []
    for place, (old, new) in facts.items():
        assert files[place].count(old) == 1
        put(place, files[place].replace(old, new))
        assert kills.differences(whole, tmp_path) == [place]
        put(place, files[place])
    (tmp_path / "checkpoint/model.safetensors").unlink()
    assert kills.differences(whole, tmp_path) == ["checkpoint/model.safetensors"]
    assert kills.differences(whole, tmp_path, complete=False) == []
    for place in ("results/a.json", "checkpoint/model.safetensors"):
        put(place, files[place][:12])
        assert "cut" in kills.differences(whole, tmp_path, complete=False)[0]
        put(place, files[place])


def test_the_record_counts_by_phase(tmp_path, monkeypatch):
    monkeypatch.setenv("IN_TEST", "1")
    monkeypatch.setattr(kills, "FOLDER", tmp_path)
    cases, code = [kills.Case("kill", "train", "step", 2, 0), kills.Case("kill", "train", "step", 2, 1)], "0" * 64
    verdicts = {kills.name(cases[0], 3, code): dict(strikes=["a", "b"])}
    verdicts[kills.name(cases[1], 3, code)] = dict(strikes=["c"], fault="half")
    kills.record(cases, verdicts, 3, 1.5, code)
    result = json.loads((tmp_path / "results" / "kills.json").read_text())
    counts = {"n": 2, "same": 1, "strikes": 3}
    assert result["metrics"]["kills"] == counts | {"phases": {"train: step, processes: 2": counts}}
    assert (result["seed"], result["n"], [f["fault"] for f in result["metrics"]["faults"]]) == (3, 2, ["half"])


def test_contributing_says_what_was_published():
    found = json.loads((kills.ROOT / "data" / "results" / "kills.json").read_text())["metrics"]
    said = (
        (kills.ROOT / "CONTRIBUTING.md")
        .read_text(encoding="utf-8")
        .partition("`make kills` stops")[2]
        .partition("kills.json")[0]
    )
    counts = [
        f"{found['kills']['same']} of {found['kills']['n']} kills",
        f"{found['disks']['same']} of {found['disks']['n']} full disks",
    ]
    assert said and all(count in said for count in counts), counts
