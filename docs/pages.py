"""A notebook as a page of the documentation site: no nbdev lines or hidden cells, notebooks named in the text linked.

Nothing here is part of the package; build_site.py, which `make docs` calls, uses it.
"""

import copy
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"
FLOORS = {  # folder of nbs/ -> what its page says, in the order of the site
    "core": "What every other room needs: where files are, settings, reading foreign files, recording runs.",
    "method": "Section 3 of the paper (Methods), an equation at a time: tokens, codebook, losses, soft merge,"
    " model, generation.",
    "convert": "Published checkpoints and tokenizers become this project's.",
    "world": "The built-in scenes with exact masks and depth, their questions, and the mixture to train on.",
    "data": "The paper's data: readers of the published sets, the depth teacher, the joint set, filters and caches.",
    "pretrain": "How the tiny model gets what a published checkpoint brings: sight, language, masks.",
    "evaluate": "Metrics with intervals, and every benchmark that the paper's tables name.",
    "train": "The trainer, a whole run, a dry run before it, and fine-tuning on your own data.",
    "report": "From recorded results to tables, figures and the audit of the paper's numbers.",
    "testing": "Small files in the published forms, broken files, and what a machine can do.",
}
DIRECTIVE = re.compile(r"^#\|\s*(?P<name>[\w-]+):?[ \t]*(?P<value>.*)$", re.M)
LONG = 10  # lines of code that stay open on the page of a notebook to run
NAMED = re.compile(r"(?<![\[`])`(?P<path>(?:nbs/)?[\w/-]+\.ipynb|\w+/\d\d_\w+)`(?!\])")
WIDGET = "application/vnd.jupyter.widget-view+json"
BAR = re.compile(r"\d%\|.*\| *\d+\/\d+")  # of tqdm, as text


def read(path):
    "A notebook as a dictionary."
    return json.loads(Path(path).read_text(encoding="utf-8"))


def source(cell):
    "The text of a cell."
    return "".join(cell["source"])


def directives(text):
    "Name -> value of a cell's lines that begin with `#|`."
    return {match["name"]: match["value"].strip() for match in DIRECTIVE.finditer(text)}


def is_picture(output):
    "Whether an output is a picture."
    return any(kind.startswith("image/") for kind in output.get("data", {}))


def is_bar(output):
    "Whether an output is a line of progress, which nobody reads afterwards."
    data = output.get("data", {})
    return set(data) == {"text/plain"} and bool(BAR.search("".join(data["text/plain"])))


def shown_outputs(cell):
    "What a reader sees of a cell's outputs: no logs, no bars, and of several forms of a picture the first."
    for output in cell.get("outputs", []):
        if output.get("name") == "stderr" or WIDGET in output.get("data", {}) or is_bar(output):
            continue
        if is_picture(output) and "image/png" in output["data"]:
            output["data"] = {k: v for k, v in output["data"].items() if k in ("image/png", "text/plain")}
        yield output


def folds(cell, text):
    "Tags that fold long code and long plain output on the page of a notebook to run, which is read for its results."
    plain = sum(o.get("data", o).get("text/plain", o.get("text", "")).count("\n") for o in joined(cell["outputs"]))
    rich = any({"text/html", "text/markdown", "image/png"} & set(o.get("data", ())) for o in cell["outputs"])
    parameters = {"parameters", "injected-parameters"} & set(cell["metadata"].get("tags", []))
    long = text.count("\n") >= LONG and not parameters
    return ["hide-input"] * long + ["hide-output"] * (plain > 3 * LONG and not rich)


def joined(outputs):
    "Outputs whose texts are strings and not lists of lines."
    whole = lambda text: "".join(text) if isinstance(text, list) else text
    for output in outputs:
        data = {kind: whole(text) for kind, text in output.get("data", {}).items()}
        yield {"data": data} if data else {"text": whole(output.get("text", ""))}


def shown_code(cell, fold=False):
    "A code cell as a reader sees it, without nbdev's lines; None for one that is hidden or has nothing left."
    said = directives(source(cell))
    cell["outputs"] = list(shown_outputs(cell))
    text = DIRECTIVE.sub("", source(cell)).strip("\n")
    tags = cell["metadata"].get("tags", [])
    if "hide" in said or not (text.strip() or cell["outputs"]):
        return None
    metadata = {"tags": tags + ["exported"] * ("export" in said) + (folds(cell, text) if fold else [])}
    if alt := said.get("fig-alt"):
        metadata["mystnb"] = {"image": {"alt": alt.strip("\"'")}}
    return cell | {"source": text, "metadata": metadata, "execution_count": None}


def linked(text, folder):
    "Markdown whose notebooks in code style (`nbs/train.ipynb`, `train.ipynb`, lessons without ending) are links."

    def link(match):
        path = (NBS / match["path"].removeprefix("nbs/")).with_suffix(".ipynb")
        return f"[`{match['path']}`]({os.path.relpath(path, NBS / folder)})" if path.is_file() else match[0]

    return NAMED.sub(link, text)


def page(notebook, folder, remarks=(), fold=False):
    "A notebook as the site shows it: nbdev's lines and hidden cells gone, remarks below its title, long code folded."
    cells = []
    for cell in copy.deepcopy(notebook["cells"]):
        if cell["cell_type"] == "markdown":
            cells.append(cell | {"source": linked(source(cell), folder)})
        elif cell["cell_type"] == "code" and (cell := shown_code(cell, fold)):
            cells.append(cell)
    notes = [{"cell_type": "markdown", "id": f"remark{i}", "metadata": {}, "source": r} for i, r in enumerate(remarks)]
    return notebook | {"cells": cells[:1] + notes + cells[1:]}


@dataclass
class Recorded:
    "A notebook that papermill executed."

    path: Path
    notebook: dict

    @property
    def about(self):
        "What papermill wrote about the run."
        return self.notebook["metadata"].get("papermill", {})

    @property
    def is_whole(self):
        "Whether it came to its end."
        return bool(self.about.get("end_time")) and not self.about.get("exception")

    @property
    def parameters(self):
        "Parameters that the run was given."
        return self.about.get("parameters", {})

    def is_run_of(self, notebook):
        "Whether its cells are those of a notebook, but for the cell that papermill injects."
        cells = [c for c in self.notebook["cells"] if "injected-parameters" not in c["metadata"].get("tags", [])]
        return [source(c) for c in cells] == [source(c) for c in notebook["cells"]]


def recorded(name, notebook, runs):
    "The newest whole run of the same cells below runs/, real sizes before smoke; None if there is none."
    found = [Recorded(path, read(path)) for path in (*runs.glob(f"{name}.ipynb"), *runs.glob(f"*/{name}.ipynb"))]
    found = [run for run in found if run.is_whole and run.is_run_of(notebook)]
    return max(found, key=lambda run: (run.parameters.get("size") != "smoke", run.about["end_time"]), default=None)


def slug(title):
    "The anchor of a heading as JupyterLab makes it, and GitHub for notebooks: blanks become hyphens, no more."
    return title.replace(" ", "-")


def title(notebook):
    "The first heading."
    return re.search(r"^# (.+)$", source(notebook["cells"][0]), re.M)[1]


def purpose(notebook):
    "What the page is for: a lesson quotes it below its title, a notebook to run says it in its first sentence."
    text = source(notebook["cells"][0]).partition("\n")[2].strip().partition("\n\n")[0]
    line = re.sub(r"\n(> ?)?", " ", text.removeprefix("> "))
    return line if text.startswith("> ") else re.split(r"(?<=\w\w\w\.)\s(?=[A-Z])", line)[0]


def module(notebook):
    "The module that a lesson exports; None for a notebook to run."
    said = [directives(source(c)).get("default_exp") for c in notebook["cells"] if c["cell_type"] == "code"]
    return next((name for name in said if name), None)
