"""Run every door and keep the counts: `python tests/fuzz/record.py --cases 6000`, then `make results PUBLISH=fuzz`."""

import argparse
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from harness import CASES, DOORS, MODULES, cases_of, doors_of, run

from perceptio.core.files import hash_files
from perceptio.core.record import Run, write_result
from perceptio.core.settings import Settings


def main(cases: int) -> Path:
    "runs/fuzz/results/fuzz.json; refused where a case failed."
    warnings.simplefilter("ignore")  # of libraries, about what is broken on purpose
    here, begun = Path(__file__).parent, time.perf_counter()
    data_hash = hash_files(here, sorted(p.name for p in here.glob("*.py")))
    doors_of(*MODULES)
    with Run("fuzz", Settings.load("smoke"), data_hash=data_hash) as record:
        counts = {}
        for name, entry in DOORS.items():
            with tempfile.TemporaryDirectory() as folder:
                found, failures = run(entry, cases_of(entry, cases), Path(folder))
            if failures:
                raise ValueError(f"{len(failures)} cases of {name!r} failed: {next(iter(failures.items()))}")
            counts[name] = dict(cases=found.total()) | dict(found)
            print(name, counts[name], flush=True)
        record.finish(cases=(n := sum(c["cases"] for c in counts.values())))
        said = {name: " ".join(entry.case.__doc__.split()) for name, entry in DOORS.items()}
        seconds = time.perf_counter() - begun
        return write_result("fuzz", counts, record, data_hash, seconds=seconds, n=n, doors=said)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=CASES, help="of all doors together")
    print(main(parser.parse_args().cases).name)
