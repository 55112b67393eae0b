"""RefCOCO's published files, where somebody has them: PERCEPTIO_REFCOCO names their folder. They cannot be shipped."""

import os
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from perceptio.data.refcoco import find_refcoco, refcoco_report, refcoco_rows
from perceptio.data.rows import row_sample

REAL = os.environ.get("PERCEPTIO_REFCOCO", "")
pytestmark = pytest.mark.skipif(
    not REAL,
    reason="PERCEPTIO_REFCOCO names no folder with refcoco/, refcoco+/ or refcocog/ and COCO's photographs",
)


def sets():
    return sorted({name for name, _ in find_refcoco(REAL)}) if REAL else []


@pytest.mark.parametrize("name", sets())
def test_split_is_whole_and_readable(name):
    report = refcoco_report(name, "val")
    rows = list(refcoco_rows(REAL, name, "val", report, decode=True))
    assert (len(rows), dict(report.skipped)) == (report.expected, {})
    images = next(f.images for (n, _), f in find_refcoco(REAL).items() if n == name and f.images is not None)
    for row in islice(rows, 20):
        sample = row_sample(row, Path(images), np.random.default_rng(0))
        assert sample.image.shape[:2] == tuple(row["size"])
        assert all(t.mask.any() for t in sample.turns)
