"""Seeded kills and full disks: does what was stopped come to the same end? `make kills` strikes runs of the smoke size
and gives them again until they are complete.

A kill is a kill -9 at a drawn moment of a drawn phase, of one process or of all that belong to a run. A disk that is
full is the kernel's limit on the size of a file, set to a drawn number of bytes when the phase begins: an ordinary user
can set it, and it also stops what C++ and Rust write, at any byte, which an error put into Python's `write` does not.
What it does not do is to refuse a file that is smaller than the limit. After each strike what is complete by its own
sign must be whole; in the end every file must be the one of a run that nothing interrupted, clocks apart. The commands
are the notebooks and functions that a user runs; only the intervals between two kept states are shortened. Stopped, the
same call goes on."""

import argparse
import contextlib
import functools
import hashlib
import importlib
import json
import os
import random
import resource
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

import psutil
from conftest import NOTEBOOKS, ROOT, cells, source

FOLDER = ROOT / "runs" / "kills"
PATIENCE = 400  # seconds that a command may take, or its processes to end
LORA = "batch_size=4 train_llm=lora new_embeddings=new_rows lora_rank=4 lora_alpha=8 lora_dropout=0.1"  # dropout: draws
SCENES = 200  # of the commands `scenes` and `cache`: four chunks, 25 shards

# ---- what a user runs


def notebook(name, **parameters):
    "Run the cells of a notebook as papermill does, in this process."
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    shell = InteractiveShell.instance(config=Config(HistoryManager=dict(enabled=False)))
    given = "# Parameters\n" + "\n".join(f"{k} = {v!r}" for k, v in parameters.items())
    code = [source(c) for c in cells(ROOT / "nbs" / f"{name}.ipynb") if c["cell_type"] == "code"]
    for text in (code[0], given, *code[1:]):
        shell.run_cell(text.removeprefix("%matplotlib inline\n"), store_history=True).raise_error()


def train(processes):
    notebook("train", size="smoke", processes=processes, max_steps=6, settings=LORA)


def codebook(processes):
    import perceptio.method.codebook_training as made

    made.train_codebook = functools.partial(made.train_codebook, every=3)
    notebook("train_codebook", size="smoke", steps=15)


def pretrain(processes):
    import perceptio.pretrain.masks as masks
    import perceptio.train.trainer as trainer

    arguments = trainer.training_arguments
    trainer.training_arguments = lambda *a, **k: arguments(*a, **k | dict(save_steps=1))
    masks.pretrain_masks = functools.partial(masks.pretrain_masks, save_every=0, log_every=1)
    notebook("pretrain", size="smoke")


def scenes(processes):
    from perceptio.core.notebook import data_dir
    from perceptio.world.scenes import write_split

    return write_split(data_dir() / "scenes", "base", SCENES, px=64, workers=processes, progress=False)


def cache(processes):
    from perceptio.core.launch import launch

    scenes(processes)
    launch(depth_tokens, processes=processes)


def depth_tokens():
    "What each process of `cache` does."
    import torch

    from perceptio.core.notebook import data_dir
    from perceptio.core.settings import Settings
    from perceptio.data.depth_cache import write_depth_tokens
    from perceptio.method.codebook import DepthCodebook
    from perceptio.world.scenes import SceneStore

    torch.manual_seed(0)
    codebook, store = DepthCodebook.from_settings(Settings.load("smoke")), SceneStore(data_dir() / "scenes" / "base")
    codebook.codebook.copy_(torch.randn(codebook.codebook.shape))
    keys = [f"{i}.png" for i in range(len(store))]
    more = dict(batch_size=8, shard=8, workers=1, maps=True, progress=False)
    write_depth_tokens(data_dir() / "tokens", keys, lambda i: store[i].disparity, None, codebook.freeze(), **more)


COMMANDS = dict(train=train, codebook=codebook, pretrain=pretrain, scenes=scenes, cache=cache)
READERS = "train", "codebook", "cache"  # commands that begin with the scenes that are there
PHASES = {  # while one of these runs, the command is in that phase
    "step": ("perceptio.train.trainer:PerceptioTrainer.training_step",),
    "save": ("perceptio.train.trainer:PerceptioTrainer._save_checkpoint", "perceptio.train.run:save_model"),
    "result": ("perceptio.report.results:write_parts", "perceptio.core.record:Run.finish"),
    "scenes": ("perceptio.world.scenes:_render",),
    "cache": ("perceptio.data.depth_cache:_make_mine", "perceptio.data.depth_cache:_join"),
    "codebook": ("perceptio.method.codebook_training:train_codebook",
                 "perceptio.method.codebook_training:save_codebook"),
    "pretrain": ("perceptio.pretrain.masks:MaskPretrainer.step", "perceptio.pretrain.masks:MaskPretrainer.save",
                 "perceptio.pretrain.language:save_base"),
}  # fmt: skip
KILLS = [  # command, phase, processes, how many
    ("train", "step", 1, 3), ("train", "step", 2, 2), ("train", "save", 1, 2), ("train", "save", 2, 2),
    ("train", "result", 1, 2),
    ("scenes", "scenes", 1, 1), ("scenes", "scenes", 2, 2), ("cache", "cache", 1, 1), ("cache", "cache", 2, 2),
    ("codebook", "codebook", 1, 1), ("pretrain", "pretrain", 1, 1), ("pretrain", "save", 1, 1),
]  # fmt: skip
DISKS = [
    ("train", "step", 1, 1), ("train", "save", 1, 1), ("train", "save", 2, 1), ("train", "result", 1, 2),
    ("scenes", "scenes", 2, 1),
    ("cache", "cache", 1, 1), ("codebook", "codebook", 1, 1), ("pretrain", "pretrain", 1, 1),
    ("pretrain", "save", 1, 1),
]  # fmt: skip

# ---- inside the struck processes

_ARMED = []


def tell(address, phase, word):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
        with contextlib.suppress(OSError):  # nobody listens any more
            to.sendto(json.dumps([os.getpid(), phase, word]).encode(), address)


def told(function, phase, address, full):
    "A function that says when it begins and ends; the disk is full from the `at`-th time on."

    kind = resource.RLIMIT_FSIZE

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        tell(address, phase, "begins")
        if full and full["phase"] == phase:
            full["at"] -= 1
            if full["at"] < 0:
                resource.setrlimit(kind, (full["limit"], resource.getrlimit(kind)[1]))
        try:
            return function(*args, **kwargs)
        finally:
            tell(address, phase, "ends")

    return wrapped


def arm(address, full, phases):
    "Wrap the functions of the phases in this process."
    if _ARMED:
        return
    _ARMED.append(True)
    for phase, names in phases.items():
        for name in names:
            module, _, path = name.partition(":")
            owner, (*outer, last) = importlib.import_module(module), path.split(".")
            for part in outer:
                owner = getattr(owner, part)
            setattr(owner, last, told(getattr(owner, last), phase, address, full))


def armed(arming, function, *args, **kwargs):
    "What a process that `launch` starts does."
    arm(*arming)
    return function(*args, **kwargs)


def in_child(command, processes, home, arming):
    "A command in this process, which is new; its processes are armed too."
    os.environ["PERCEPTIO_HOME"] = str(home)
    os.environ.pop("IN_TEST", None)
    os.chdir(ROOT)
    if "perceptio.core.launch" in sys.modules:
        launcher = sys.modules["perceptio.core.launch"]
        launch = launcher.launch
        launcher.launch = lambda function, *a, **k: launch(functools.partial(armed, arming, function), *a, **k)
    arm(*arming)
    command(processes)


# ---- one attempt


@dataclass
class Strike:
    "When to strike: a time after a phase has begun for the n-th time."

    phase: str
    at: int
    delay: float  # seconds
    whom: float | None  # 0..1: which process; None = all


def begin(command, processes, home, arming):
    "Fork, with a session of its own: its process id, and where it says something."
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.setsid(), os.close(read), os.dup2(write, 1), os.dup2(write, 2), os.close(write)
        code = 1
        try:
            in_child(command, processes, home, arming)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(write)
    return child, read


def members(group):
    "Processes of a group that have not ended."
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def kill(group, spoke, whom):
    """Kill all, or one that works: the command itself, a process that has said something, or one of a pool. Was there
    one?"""
    works = lambda p: p.pid in {group, *spoke} or "spawn_main" in " ".join(p.cmdline())  # noqa: E731
    if there := sorted(p.pid for p in members(group) if works(p)):
        os.killpg(group, signal.SIGKILL) if whom is None else os.kill(there[int(whom * len(there))], signal.SIGKILL)
    return bool(there)


def hear(ear, heard):
    "Keep what a process says: [phase, process, when it began, seconds]."
    pid, phase, word = json.loads(ear.recv(1000))
    if word == "begins":
        heard.append([phase, pid, time.monotonic(), None])
    else:
        last = next(h for h in heard[::-1] if h[:2] == [phase, pid])
        last[3] = time.monotonic() - last[2]


def follow(child, pipe, ear, log, strike):
    "Until a command ends: its status, what it said, was it struck?"
    heard, due, hit, end = [], None, False, time.monotonic() + PATIENCE
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        now = time.monotonic()
        if now > end:
            os.killpg(child, signal.SIGKILL)
        elif due is not None and not hit and now >= due:
            hit = kill(child, [h[1] for h in heard], strike.whom)
        wait = 0.05 if due is None or hit else min(0.05, max(0.0, due - now))
        for ready in select.select([ear, pipe], [], [], wait)[0]:
            if ready is ear:
                hear(ear, heard)
            else:
                log.write(text := os.read(pipe, 1 << 16))
                time.sleep(0 if text else 0.02)  # its processes have closed it
        there = [h for h in heard if strike and h[0] == strike.phase]
        if strike and not hit and len(there) > strike.at:
            due = None if there[strike.at][3] else there[strike.at][2] + strike.delay  # while it is in that phase
    if time.monotonic() > end:
        raise Fault(f"no end after {PATIENCE} s")
    return ended[1], [(h[0], h[3]) for h in heard], hit


def attempt(command, processes, home, log, strike=None, full=None, phases=PHASES):
    "Run a command: its status, (phase, seconds) of all that it did, was it struck? All its processes end with it."
    kind = socket.AF_UNIX, socket.SOCK_DGRAM
    with tempfile.TemporaryDirectory(prefix="kills-") as place, socket.socket(*kind) as ear:
        ear.bind(address := f"{place}/ear")
        child, pipe = begin(command, processes, home, (address, full, phases))
        try:
            found = follow(child, pipe, ear, log, strike)
            if stays := psutil.wait_procs(members(child), timeout=30)[1]:
                raise Fault(f"{len(stays)} processes stay: {[p.cmdline()[-1][:80] for p in stays]}")
            return found
        finally:
            os.close(pipe)
            log.flush()
            for process in members(child):
                process.kill()


class Fault(Exception):
    "What must not be."


# ---- what is there

CLOCKS = {
    "seconds",
    "started",
    "finished",
    "minutes",
    "measured_in",
    "resumed",
    "cpu_seconds",
    "per_second",
    "commit",
    "dirty",
    "code_hash",
    "notebook_hash",
}
SIGNS = {
    "checkpoint": "settings.json",
    "checkpoint-*": "complete.json",
    "codebook": "codebook.json",
    "tokens": "meta.json",
    "*.partial": "never",
    "shards": "never",
}
# of checkpoints: they hold folders, times, sizes of files with times, and what a process drew before
OTHER = "training_args.bin", "trainer_state.json", "complete.json", "rng_state*.pth"


def without_clocks(value):
    if isinstance(value, dict):
        return {k: without_clocks(v) for k, v in value.items() if k not in CLOCKS}
    return [without_clocks(v) for v in value] if isinstance(value, list) else value


def content(path):
    "What a file says, without its times."
    raw = path.read_bytes()
    if path.suffix == ".safetensors":  # times of a state of training stand in its header
        end = 8 + int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8:end])
        told = {
            k: without_clocks(json.loads(v)) if v[0] == "{" else v for k, v in header.pop("__metadata__", {}).items()
        }
        return json.dumps([header, told]) + hashlib.sha256(raw[end:]).hexdigest()
    if path.suffix not in (".json", ".jsonl"):
        return hashlib.sha256(raw).hexdigest()
    rows = [json.loads(line) for line in (raw.splitlines() if path.suffix == ".jsonl" else [raw])]
    return json.dumps([without_clocks(row) for row in rows if "train_runtime" not in row])  # of one call, not of a run


def is_begun(path, home):
    "Whether a file belongs to what is not complete by its own sign, or is a running run's log."
    for folder in path.relative_to(home).parents:
        for pattern, sign in SIGNS.items():
            if folder.match(pattern) and not (home / folder / sign).exists():
                return True
    return path.name in ("metrics.jsonl", "run.json") or path.name.startswith(("training-", "state."))


def found(home, complete=True):
    "{file: content}; of a command that has not come to its end, what claims to be whole."
    files = [p for p in sorted(home.rglob("*")) if p.is_file() and not p.name.startswith(".")]
    files = [p for p in files if not any(p.match(name) for name in OTHER)]
    return {p.relative_to(home).as_posix(): content(p) for p in files if complete or not is_begun(p, home)}


def differences(whole, home, complete=True):
    """Files that are not those of a run that nothing interrupted; while it is not complete, some are not there yet, and
    earlier checkpoints are."""
    try:
        there = found(home, complete)
    except ValueError as error:
        return [f"a file is cut: {error}"]
    missing = sorted(whole.keys() - there.keys()) if complete else []
    return missing + sorted(name for name in there if whole.get(name) != there[name] and (complete or name in whole))


# ---- the cases


@dataclass
class Case:
    "One strike, or two, and what comes after."

    kind: str  # kill | disk
    command: str
    phase: str
    processes: int
    number: int

    def draw(self, seed):
        return random.Random(f"{seed} {asdict(self)}")


def all_cases():
    lists = dict(kill=KILLS, disk=DISKS)
    return [
        Case(kind, c, phase, p, i) for kind, rows in lists.items() for c, phase, p, many in rows for i in range(many)
    ]


def reference(command, processes, folder, log):
    "The same without a strike: its files, and how often and how long it was in each phase."
    folder.mkdir(parents=True)
    status, heard, _ = attempt(command, processes, folder, log)
    if status:
        raise SystemExit(f"a run that nothing interrupts fails: see {log.name}")
    return found(folder), heard


def strikes(case, heard, draw, largest):
    "Drawn moments for a case, each of them sooner than the last: what was over before it was struck is struck again."
    times = [seconds for phase, seconds in heard if phase == case.phase]
    for sooner in count():
        at, share = draw.randrange(len(times)), draw.random()
        whom = draw.random() if case.processes > 1 and draw.random() < 0.5 else None
        if case.kind == "kill":
            yield dict(strike=Strike(case.phase, at, share * times[at] / 1.5**sooner, whom))
        else:
            yield dict(full=dict(phase=case.phase, at=at // case.processes, limit=int(largest**share) // 4**sooner))


def words(strike=None, full=None):
    "What was done."
    if full:
        return f"no file over {full['limit']:,} bytes, from time {full['at'] + 1} of {full['phase']} on"
    whom = "all" if strike.whom is None else f"one ({strike.whom:.2f})"
    return f"{whom}, {strike.delay:.3f} s after time {strike.at + 1} of {strike.phase} began"


def run_case(case, seed, whole, heard, start, log, command, largest=10**6, phases=PHASES):
    """Strike a command at a drawn moment, or twice, and give it again until it is complete: its strikes, and its fault
    if there is one."""
    draw, said = case.draw(seed), []
    wanted, moments = 1 + (draw.random() < 1 / 3), strikes(case, heard, draw, largest)
    run = functools.partial(attempt, command, case.processes, log=log, phases=phases)
    with tempfile.TemporaryDirectory(prefix="kills-home-") as place:
        try:
            while not said:  # what was over before it was struck begins anew
                shutil.rmtree(home := Path(place) / "home", ignore_errors=True)
                shutil.copytree(start, home) if start else home.mkdir()
                strike_once(run, home, next(moments), whole, said)
            if wanted > 1:
                strike_once(run, home, next(moments), whole, said)
            if run(home=home)[0]:
                raise Fault("the same command does not come to its end")
            if differ := differences(whole, home):
                raise Fault(f"{len(differ)} of {len(whole)} files differ: {differ[:5]}")
        except Fault as fault:
            return dict(strikes=said, fault=str(fault))
    return dict(strikes=said)


def strike_once(run, home, moment, whole, said):
    "Run a command that is struck, and look at what it leaves; nothing is said about one that came to its end before."
    status, _, hit = run(home=home, **moment)
    if status:
        said.append(words(**moment))
        if "strike" in moment and not hit:
            raise Fault("it failed before it was struck")
        if half := differences(whole, home, complete=False):
            raise Fault(f"half-written and taken for whole: {half[:5]}")


# ---- all of them


def name(case, seed, code):
    "Of a verdict."
    return hashlib.sha256(json.dumps([asdict(case), seed, code]).encode()).hexdigest()


def code_name():
    "What the verdicts are about: the notebooks, and this file."
    from perceptio.core.files import hash_files

    return hash_files(ROOT, ["tests/kills.py", *(p.relative_to(ROOT).as_posix() for p in NOTEBOOKS)])


def run_cases(cases, seed, folder, log, minutes):
    "For some time: each case with what it came to. References are made when they are needed first."
    references, begins, start = {}, {}, time.monotonic()
    for case in cases:
        if time.monotonic() - start > 60 * minutes:
            return
        key = case.command, case.processes
        if key not in references:
            home = folder / f"{case.command}-{case.processes}"
            references[key] = reference(COMMANDS[case.command], case.processes, home, log)
            if case.command in READERS:
                begins[case.command] = folder / f"scenes-{case.command}"
                shutil.copytree(home / "data" / "scenes", begins[case.command] / "data" / "scenes", dirs_exist_ok=True)
        whole, heard = references[key]
        yield case, run_case(case, seed, whole, heard, begins.get(case.command), log, COMMANDS[case.command])


def record(cases, verdicts, seed, seconds, code):
    "Write what happened with its origin."
    from perceptio.core.record import Run, write_result
    from perceptio.core.settings import Settings

    os.environ.pop("IN_TEST", None)  # conftest sets it
    metrics, lists = {}, dict(faults=[])
    for kind in ("kill", "disk"):
        phases = {}
        for case in (c for c in cases if c.kind == kind):
            verdict = verdicts[name(case, seed, code)]
            row = phases.setdefault(
                f"{case.command}: {case.phase}, processes: {case.processes}", Counter(n=0, same=0, strikes=0)
            )
            row.update(n=1, same="fault" not in verdict, strikes=len(verdict["strikes"]))
            lists["faults"] += [asdict(case) | verdict] if "fault" in verdict else []
        total = sum(phases.values(), Counter())
        metrics[f"{kind}s"] = {k: total[k] for k in ("n", "same", "strikes")} | dict(
            phases={k: dict(v) for k, v in phases.items()}
        )
    with Run("kills", Settings.load("smoke", seed=seed), FOLDER, data_hash=code) as run:
        run.finish(**metrics)
    same = "same: every file that is kept is that of a run that nothing interrupted, clocks apart"
    write_result("kills", metrics | lists, run, code, seconds=seconds, n=len(cases), protocol=same)
    return metrics


def load_everything():
    "Import once what the commands import; nothing is computed."
    from mutants import load_libraries

    load_libraries()
    for (
        module
    ) in "train.run core.launch train.dry_run report.results pretrain.masks pretrain.language data.depth_cache".split():
        importlib.import_module(f"perceptio.{module}")


def main(argv=None):
    parser = argparse.ArgumentParser(description=" ".join(__doc__.split("\n\n")[0].split()))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after about so many; the next call goes on")
    parser.add_argument("--only", default="", help="cases whose command, phase or kind this is; nothing is recorded")
    asked = parser.parse_args(argv)
    FOLDER.mkdir(parents=True, exist_ok=True)
    os.environ |= dict(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", MPLBACKEND="agg")
    code, file = code_name(), FOLDER / "verdicts.json"
    state = json.loads(file.read_text()) if file.is_file() else dict(verdicts={}, seconds=0.0)
    cases = [c for c in all_cases() if asked.only in ("", c.kind, c.command, c.phase)]
    todo = [c for c in cases if name(c, asked.seed, code) not in state["verdicts"]]
    start, before = time.monotonic(), state["seconds"]
    load_everything()
    with tempfile.TemporaryDirectory(prefix="kills-whole-") as place, (FOLDER / "log.txt").open("ab") as log:
        for case, verdict in run_cases(todo, asked.seed, Path(place), log, asked.minutes):
            state["verdicts"][name(case, asked.seed, code)] = verdict
            state["seconds"] = before + time.monotonic() - start
            file.write_text(json.dumps(state, indent=1))
            told = f"FAULT: {verdict['fault']}" if "fault" in verdict else "same"
            where = f"{case.kind} {case.command}/{case.phase} x{case.processes} #{case.number}"
            print(f"{where}: {told} ({'; '.join(verdict['strikes'])})", flush=True)
    if left := sum(name(c, asked.seed, code) not in state["verdicts"] for c in cases):
        print(f"{left} of {len(cases)} are left: the same command goes on")
    elif not asked.only:
        print(json.dumps(record(cases, state["verdicts"], asked.seed, state["seconds"], code), indent=1))


if __name__ == "__main__":
    import kills  # processes that a command starts find its functions under this name

    kills.main()
