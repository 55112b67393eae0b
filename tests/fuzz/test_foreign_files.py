"""Images, masks, names, pickles, weights and records, broken and hostile: `pytest tests/fuzz --fuzz-cases 100000` for
more than the usual number."""

import pytest
from harness import CASES, MODULES, check, doors_of

OTHERS = [name for name in MODULES if name != "doors_annotations"]


@pytest.mark.filterwarnings("ignore")  # of libraries, about what is broken on purpose
@pytest.mark.parametrize("entry", doors_of(*OTHERS), ids=lambda d: d.name)
def test_door(entry, tmp_path, request):
    check(entry, request.config.getoption("--fuzz-cases") or CASES, tmp_path)
