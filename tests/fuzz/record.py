"""Run every door and keep the counts as a run: `python tests/fuzz/record.py --cases 20000`, then `make results` with PUBLISH=fuzz."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from harness import CASES, DOORS, MODULES, cases_of, doors_of, run

from perceptio.files import hash_files
from perceptio.record import Run, write_result
from perceptio.settings import Settings


def main(cases: int) -> Path:
    "runs/fuzz/results/fuzz.json; refused where a case failed."
    data_hash, begun = (
        hash_files(Path(__file__).parent, sorted(p.name for p in Path(__file__).parent.glob("*.py"))),
        time.perf_counter(),
    )
    doors_of(*MODULES)
    with Run("fuzz", Settings.load("smoke"), data_hash=data_hash) as record:
        counts = {}
        for name, entry in DOORS.items():
            with tempfile.TemporaryDirectory() as folder:
                found, failures = run(entry, cases_of(entry, cases), Path(folder))
            if failures:
                raise ValueError(f"{len(failures)} cases of {name!r} failed: {next(iter(failures.items()))}")
            counts[name] = dict(cases=found.total()) | dict(found)
            print(name, counts[name])
        record.finish(cases=sum(c["cases"] for c in counts.values()))
        return write_result("fuzz", counts, record, data_hash, seconds=time.perf_counter() - begun)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=CASES, help="of all doors together")
    print(main(parser.parse_args().cases).name)
