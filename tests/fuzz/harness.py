"""Doors through which foreign files come in, seeded cases of broken and hostile ones, and what may come of a case.

A case ends in one of three ways: an error of ours that names the value ("error"), a counted skip ("skip"), correct use
("use"). Anything else fails: another type of exception, a hang, much memory, a payload that ran, a result that is
another one. The first case of each door is whole and must be used, the second is beyond use and must not be; all others
are drawn.
"""

import importlib
import random
import resource
import signal
import traceback
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from damage import ANY, LOST, WHOLE

from perceptio.core.foreign import BadSample
from perceptio.core.weights import NoFile

OURS = (ValueError, BadSample, NoFile)  # and not what is derived from them: json's and Unicode's errors are ValueErrors
OUTCOMES = ("error", "skip", "use")
SECONDS, WAIT = 10, 60  # of work that a case may take; until it ends, on a busy machine
MEMORY = 1 << 21  # KiB by which the process may grow in a case
CASES = 3000  # of all doors together; annotations, of which there are most forms, take three times their part
MODULES = ("doors_images", "doors_annotations", "doors_pickles", "doors_files", "doors_caches")
FIRST = ((WHOLE, ("use",)), (LOST, ("error", "skip")))  # the first cases of a door, and how they must end


class Hang(BaseException):
    "A case that did not end."


class Wrong(AssertionError):
    "A case that ended as none may."


@dataclass(frozen=True)
class Door:
    "One way in."

    name: str
    share: int  # of all cases
    case: Callable  # (rng, folder, kind: WHOLE, LOST or ANY) -> "skip" | "use"; or it raises


DOORS = {}


def door(name, share):
    "Register a function of (rng, folder of its own, kind of damage) as a door."

    def register(case):
        DOORS[name] = Door(name, share, case)
        return case

    return register


@contextmanager
def naming(*names):
    "Errors raised within must say one of these."
    try:
        yield
    except OURS as error:
        if not any(str(name) in str(error) for name in names):
            raise Wrong(f"the error names none of {names}: {type(error).__name__}: {error}") from error
        raise


TIMERS = ((signal.SIGPROF, signal.ITIMER_PROF, SECONDS), (signal.SIGALRM, signal.ITIMER_REAL, WAIT))


def stop(*_):
    raise Hang(f"more than {SECONDS} s of work, or {WAIT} s without an end")


def one(entry: Door, number: int, folder: Path) -> str:
    "What became of a case: one of OUTCOMES, or the failure."
    rng = random.Random(zlib.crc32(entry.name.encode()) * 1_000_003 + number)
    kind, ends = FIRST[number] if number < len(FIRST) else (ANY, OUTCOMES)
    said = ""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, timer, seconds in TIMERS:
        signal.signal(name, stop)
        signal.setitimer(timer, seconds)
    try:
        found = entry.case(rng, folder, kind)
    except OURS as error:
        found, said = "error" if type(error) in OURS else failure(), str(error)
    except (Exception, Hang):
        found = failure()
    finally:
        for _, timer, _ in TIMERS:
            signal.setitimer(timer, 0)
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before > MEMORY:
        return "failure: it took more than 2 GiB"
    return f"failure: what is {kind} ended in {found!r}: {said}" if found in OUTCOMES and found not in ends else found


def failure():
    lines = traceback.format_exc(limit=-4).strip().splitlines()
    return "failure: " + "\n".join(line[:300] for line in [lines[-1], *lines[1:-1]])


def doors_of(*modules: str) -> list[Door]:
    "The doors of some of the modules; all are imported, for the shares of all count."
    for name in MODULES:
        importlib.import_module(name)
    return [d for d in DOORS.values() if d.case.__module__ in modules]


def cases_of(entry: Door, cases: int) -> int:
    "Its part of all cases, rounded up, and never fewer than the first ones."
    return max(len(FIRST), -(-cases * entry.share // sum(d.share for d in DOORS.values())))


def run(entry: Door, cases: int, folder: Path) -> tuple[Counter, dict[int, str]]:
    "Counts by outcome, and the failures by the number of their case."
    counts, failures = Counter(dict.fromkeys(OUTCOMES, 0)), {}
    for number in range(cases):
        found = one(entry, number, folder)
        if found in OUTCOMES:
            counts[found] += 1
        else:
            failures[number] = found
    return counts, failures


def check(entry: Door, cases: int, folder: Path) -> None:
    "What a test asserts: no failure; so one was used and one was not."
    counts, failures = run(entry, cases_of(entry, cases), folder)
    shown = "\n".join(f"case {number} of {entry.name!r}: {said}" for number, said in list(failures.items())[:5])
    assert not failures, f"{len(failures)} of {cases_of(entry, cases)} cases:\n{shown}"
