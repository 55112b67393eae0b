"""Annotations of every reader, an entry among others broken or hostile."""

import pytest
from harness import CASES, check, doors_of


@pytest.mark.filterwarnings("ignore")  # of libraries, about what is broken on purpose
@pytest.mark.parametrize("entry", doors_of("doors_annotations"), ids=lambda d: d.name)
def test_door(entry, tmp_path, request):
    check(entry, request.config.getoption("--fuzz-cases") or 3 * CASES, tmp_path)
