"""What an executed notebook must not hold, for .ci/run, which has just run train.ipynb: `executed.py NOTEBOOK ...`
(pytest does not collect this file)."""

import json
import re
import sys
from pathlib import Path

STREAMS = 3  # outputs of what other libraries say


def faults(notebook):
    "What a reader of the page would stumble over, in words."
    outputs = [o for cell in notebook["cells"] for o in cell.get("outputs", [])]
    pages = ["".join(o.get("data", {}).get("text/html", "")) for o in outputs]
    texts = ["".join(o.get("data", {}).get("text/plain", "")) for o in outputs]
    streams = [o for o in outputs if o["output_type"] == "stream"]
    found = [f"{len(streams)} streams of text, {STREAMS} at most"] * (len(streams) > STREAMS)
    for o in streams:
        bars = re.findall(r"\d+%\|", "".join(o["text"]))
        found += [f"a progress bar of {len(bars)} lines"] * bool(bars)
    for o in outputs:
        kinds = o.get("data", {})
        found += ["a picture without words"] * (
            "image/png" in kinds and not o.get("metadata", {}).get("image/png", {}).get("alt")
        )
        found += ["a widget, which shows nothing without a kernel"] * any("widget" in kind for kind in kinds)
    found += ["a cell of a table that says NaN"] * any(re.search(r">\s*(nan|None)\s*<", page, re.I) for page in pages)
    found += ["a table that is not styled"] * any('class="dataframe"' in page for page in pages)
    found += ["dtype: of a raw column"] * any("dtype:" in text for text in texts)
    return found


if __name__ == "__main__":
    wrong = {name: found for name in sys.argv[1:] if (found := faults(json.loads(Path(name).read_text())))}
    sys.exit("\n".join(f"{name}: {'; '.join(found)}" for name, found in wrong.items()) or 0)
