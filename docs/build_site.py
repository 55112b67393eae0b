"""Build the documentation site in _site/, without a network, and fail on a broken link or a picture without a text.

A lesson is shown with the outputs it keeps. A notebook to run keeps none: its page is the newest recorded run
of the same cells (`runs/NAME.ipynb`, `runs/*/NAME.ipynb`), else a run at its smallest size if that is quick, else it
says that it was not run.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from check_site import faults
from pages import FLOORS, NBS, ROOT, Recorded, module, page, purpose, read, recorded, title

FIRST = ("index", "tour")  # read, not run with parameters; they keep their outputs like a lesson
QUICK = ("train", "audit", "tables")  # seconds each
AFTER_TRAIN = ("evaluate", "figures", "inference_cost")  # of the run they show
RUN_ORDER = (  # the order in which one would use them
    *("train", "evaluate", "benchmarks", "ablate", "code_writing", "inference_cost", "shortcuts", "worth", "used"),
    "finetune_your_data",
    *("tables", "figures", "audit", "reproduce"),
    *("prepare_data", "convert", "pretrain", "train_codebook", "check_1B", "gpu_check", "benchmark_data"),
)
HOME = Path(os.environ.get("PERCEPTIO_HOME") or ROOT)
WORK = ROOT / "build" / "docs"
TO_RUN = "Notebooks to run"


def smallest(notebook):
    "What papermill is given for the smallest size."
    tagged = [c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", [])]
    return ["-p", "size", "smoke"] if tagged and "\nsize:" in "\n" + "".join(tagged[0]["source"]) else []


def run_folder():
    "build/docs/runs/HASH of the code and the data that runs read; those of other code are removed."
    digest = hashlib.sha256()
    for pattern in ("settings.ini", "perceptio/**/*.py", "data/results/*.json", "data/paper/*.json"):
        for path in sorted(ROOT.glob(pattern)):
            digest.update(path.read_bytes())
    folder = WORK / "runs" / digest.hexdigest()[:12]
    for other in folder.parent.glob("*"):
        if other != folder:
            shutil.rmtree(other)
    (folder / "home").mkdir(parents=True, exist_ok=True)
    return folder


def execute(name, folder):
    "A run at the smallest size; one of the same cells and the same code that is in the folder is taken."
    notebook, out = read(NBS / f"{name}.ipynb"), folder / f"{name}.ipynb"
    if out.is_file() and (done := Recorded(out, read(out))).is_whole and done.is_run_of(notebook):
        return done
    command = [sys.executable, "-m", "papermill", NBS / f"{name}.ipynb", out, *smallest(notebook), "--no-progress-bar"]
    environment = os.environ | {
        "PERCEPTIO_HOME": str(folder / "home"),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name}.ipynb, run for the site, ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return Recorded(out, read(out))


def origin(path, notebook):
    "The line below a title: which file this is, and what it becomes or how it is run."
    name = path.relative_to(ROOT)
    if module(notebook):
        return f"{{.origin}}\n`{name}` · exported as `perceptio.{module(notebook)}`"
    return f"{{.origin}}\n`{name}` · run it: `papermill {name} runs/tiny/{path.name}`"


def provenance(run):
    "Where the outputs of a page come from."
    if run is None:
        return (
            ":::{admonition} Not run\n:class: warning\nNo recorded run of these cells is in `runs/`, and it takes too"
            " long to be run for this page. Its cells are shown without results.\n:::"
        )
    given = ", ".join(f"`{k} = {v}`" for k, v in run.parameters.items()) or "its own values"
    seconds = run.about["duration"]
    took = f"{seconds / 60:.0f} minutes" if seconds > 100 else f"{seconds:.0f} seconds"
    form = (
        " This is the smallest size: it shows the form, not results." if run.parameters.get("size") == "smoke" else ""
    )
    return f":::{{note}}\nRun on {run.about['end_time'][:10]} with {given}; it took {took}.{form}\n:::"


def write(path, notebook):
    "Write a page's source."
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(notebook), encoding="utf-8")


def listing(names, heading, sentence, folder):
    "A section's page: its notebooks with their purposes, and the tree that the sidebar shows."
    rows = [f"| [{title(nb)}]({name}) | {purpose(nb)} |" for name in names for nb in [read(NBS / folder / name)]]
    tree = "\n".join(name.removesuffix(".ipynb") for name in names)
    table = "\n".join(["| page | what it is for |", "|---|---|", *rows])
    return f"# {heading}\n\n{sentence}\n\n{table}\n\n```{{toctree}}\n:hidden:\n\n{tree}\n```\n"


def lessons(source):
    "The pages of every floor."
    for floor, sentence in FLOORS.items():
        paths = sorted((NBS / floor).glob("[0-9]*.ipynb"))
        for path in paths:
            notebook = read(path)
            write(source / floor / path.name, page(notebook, floor, [origin(path, notebook)]))
        (source / floor / "index.md").write_text(listing([p.name for p in paths], floor, sentence, floor))


def run_quick(names):
    "Notebook -> its run at the smallest size, two at a time; those that show a run come after the training."
    folder = run_folder()
    later = [name for name in names if name in AFTER_TRAIN]
    first = [name for name in QUICK if name in names or (name == "train" and later)]
    with ThreadPoolExecutor(2) as pool:
        return {
            name: run
            for stage in (first, later)
            for name, run in zip(stage, pool.map(lambda name: execute(name, folder), stage))
        }


def runs(source):
    "The pages of the notebooks to run; the names of those that were not run."
    names = [name for name in RUN_ORDER if (NBS / f"{name}.ipynb").is_file()]
    found = {name: recorded(name, read(NBS / f"{name}.ipynb"), HOME / "runs") for name in names}
    done = run_quick([name for name in names if found[name] is None])
    found = {name: found[name] or done.get(name) for name in names}
    for name in names:
        path = NBS / f"{name}.ipynb"
        shown = found[name].notebook if found[name] else read(path)
        write(source / path.name, page(shown, ".", [origin(path, read(path)), provenance(found[name])], fold=True))
    sentence = (
        "Each is run with papermill, at `size=tiny` on a laptop's CPU, and with `-p size 8B` at the paper's size."
    )
    (source / "run.md").write_text(listing([f"{name}.ipynb" for name in names], TO_RUN, sentence, "."))
    return [name for name in names if found[name] is None]


def front(source):
    "The first page, with the tree of the whole site."
    for name in FIRST:
        notebook = read(NBS / f"{name}.ipynb")
        write(source / f"{name}.ipynb", page(notebook, "."))
    names = "\n".join([*FIRST[1:], "run", *(f"{floor}/index" for floor in FLOORS)])
    tree = {
        "cell_type": "markdown",
        "id": "tree",
        "metadata": {},
        "source": f"```{{toctree}}\n:hidden:\n\n{names}\n```",
    }
    first = read(source / "index.ipynb")
    write(source / "index.ipynb", first | {"cells": [*first["cells"], tree]})


def collect(source):
    "All pages' sources in a fresh folder; the names of the notebooks that were not run."
    shutil.rmtree(source, ignore_errors=True)
    lessons(source)
    front(source)
    return runs(source)


def sphinx(source, site):
    "Sphinx, with warnings as errors."
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-j", "auto", "-q", "-W", "--keep-going"]
    folders = ["-c", Path(__file__).parent, "-d", WORK / "doctrees", source, site]
    if subprocess.run(list(map(str, command + folders)), cwd=ROOT).returncode:
        sys.exit("the site was not built: see the warnings above")


def main():
    not_run = collect(WORK / "source")
    built, site = WORK / "html", ROOT / "_site"
    shutil.rmtree(built, ignore_errors=True)
    sphinx(WORK / "source", built)
    if found := faults(built):
        sys.exit("\n".join([f"the site in {built.relative_to(ROOT)} has faults:", *found]))
    shutil.rmtree(site, ignore_errors=True)
    built.rename(site)
    pages = len(list(site.rglob("*.html")))
    print(f"{pages} pages in _site/; not run: {', '.join(not_run) or 'none'}. Open _site/index.html")


if __name__ == "__main__":
    main()
