"""Seeded mutation run: would the tests notice? `make mutants` changes one place of one notebook at a time.

`nbdev_test` defines a notebook's functions again inside the notebook, so a mutant is written into the notebook's cell
and into the exported module alike, in a copy of the checkout. Then the notebook's cells run, and those that ALSO names;
the first failure kills the mutant. General mutation tools change modules only. Every place where an operator applies is
equally likely to be drawn; without a change everything that is run must pass. A run goes on where it was stopped."""

import argparse
import ast
import contextlib
import hashlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

from conftest import NOTEBOOKS, ROOT, cells, module_name, source

FOLDER = ROOT / "runs" / "mutants"
ROOMS = {  # the notebooks, by their folders' and modules' names
    "method": {
        "method": "tokens vqvae codebook codebook_training losses soft_merge sam "
        "mask_head new_rows chat backbone backbone_files samples"
        " model saving decoding answers conversation generation",
        "convert": "checkpoints",
        "pretrain": "dense_heads",
        "train": "trainer",
    },
    "data": {
        "world": "mixture",
        "data": "rows refcoco_files instruct_files refcoco llava grounded "
        "ade20k hardblink own depth_cache depth_store curation"
        " joint_set paper_mixture lengths",
    },
    "evaluation": {
        "world": "marked_points",
        "evaluate": "intervals depth_metrics metrics masks depth text marked_points hardblink refcoco wording suite",
    },
}  # fmt: skip
ALSO = {  # what is run beside a module's own notebook: where it is used
    **dict.fromkeys(("losses", "mask_head", "soft_merge", "new_rows"), "method/15_model"), "chat": "method/13_samples",
    **dict.fromkeys(("decoding", "conversation"), "method/20_generation"),
}  # fmt: skip
COMPARE = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.In: "not in",
    ast.NotIn: "in",
    ast.Is: "is not",
    ast.IsNot: "is",
}
ARITHMETIC = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "/",
    ast.Div: "*",
    ast.FloorDiv: "/",
    ast.Mod: "*",
    ast.Pow: "*",
    ast.BitAnd: "|",
    ast.BitOr: "&",
}
PAIRS = (
    "min max, any all, sum mean, argmax argmin, amin amax, zeros ones, floor ceil, x y, h w, height width, "
    "row column, rows columns"
)
NAMES = {a: b for pair in PAIRS.split(", ") for a, b in (pair.split(), pair.split()[::-1])}
STRINGS = {"bilinear": "nearest", "cosine": "linear", "zeros": "border", "token": "group", "at": "previous"}
EQUIVALENT = {  # notebook, the changed line -> why no test can notice
    ("method/11_backbone", "side, quarter = round((embedding.shape[1] + 1) ** 0.5), embedding.shape[2] // 4"):
    "the root of n * n + 2 rounds to n for every n above 1, "
    "and a grid of one cell has no sides to tell apart",
    ("data/12_curation", "(a, b, w, h), (c, d, v, g) = other, one"):
    "intersection over union is the same whichever box comes "
    "first, to the last bit",
    ("evaluate/03_metrics", 'if mask.dtype.kind not in "iu" or mask.min(initial=0) < 0 or mask.max(initial=1) > 1:'):
    "a largest value above 1 is above 1 beside a 0 and beside a 1",
    ("method/16_saving", "trained = {name for name, p in model.named_parameters() if True}"):
    "torch has left frozen parameters out already (ignore_frozen_params); the names keep buffers out, "
    "which are no parameters either way",
}  # fmt: skip
SKIPPED = (ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom, ast.Assert)


def draws(node):
    "Is this a function whose result is a picture? Whether it is a good one is for a reader to see."
    words = ("matplotlib", "subplots", "imshow")
    return isinstance(node, ast.FunctionDef) and any(f"'{word}" in ast.dump(node) for word in words)


class Places(ast.NodeVisitor):
    "All mutants of one cell: (start, end, new text), in bytes of its source."

    def __init__(self, text):
        tree, self.text, self.found = ast.parse(text), text.encode(), []
        self.lines, nodes = self.text.splitlines(keepends=True), list(ast.walk(tree))
        self.names = {n.id for n in nodes if isinstance(n, ast.Name)} | {n.arg for n in nodes if isinstance(n, ast.arg)}
        self.visit(tree)

    def at(self, line, column):
        return sum(map(len, self.lines[: line - 1])) + column

    def span(self, node):
        return self.at(node.lineno, node.col_offset), self.at(node.end_lineno, node.end_col_offset)

    def code(self, node):
        start, end = self.span(node)
        return self.text[start:end].decode()

    def add(self, node, new):
        self.found.append((*self.span(node), new))

    def between(self, left, right, new):
        "Another operator between two operands; brackets around them stay."
        start, end = self.span(left)[1], self.span(right)[0]
        old = self.text[start:end].decode()
        sign = old.strip("() \n")
        if sign and "#" not in old:
            self.found.append((start, end, old.replace(sign, new)))

    def visit(self, node):
        kind = type(node).__name__
        if not isinstance(node, SKIPPED) and not draws(node):
            getattr(self, f"on_{kind}", lambda n: None)(node)
            hidden = {id(getattr(node, name, None)) for name in ("annotation", "returns", "type_params")}
            if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)) and ast.get_docstring(node, clean=False):
                hidden.add(id(node.body[0]))
            for child in ast.iter_child_nodes(node):
                if id(child) not in hidden:
                    self.visit(child)

    def on_Compare(self, node):
        for left, sign, right in zip([node.left, *node.comparators], node.ops, node.comparators):
            self.between(left, right, COMPARE[type(sign)])

    def on_BinOp(self, node):
        if type(node.op) in ARITHMETIC:
            self.between(node.left, node.right, ARITHMETIC[type(node.op)])

    def on_BoolOp(self, node):
        self.between(*node.values[:2], "or" if isinstance(node.op, ast.And) else "and")

    def on_UnaryOp(self, node):
        self.add(node, f"({self.code(node.operand)})")

    def on_Constant(self, node):
        value = node.value
        if isinstance(value, bool):
            self.add(node, str(not value))
        elif isinstance(value, (int, float)):
            self.add(node, repr(value + 1 if isinstance(value, int) else 2 * value or 1.0))
        elif value in STRINGS:
            self.add(node, f'"{STRINGS[value]}"')

    def on_Name(self, node):
        if isinstance(node.ctx, ast.Load) and node.id in NAMES and NAMES[node.id] in self.names:
            self.add(node, NAMES[node.id])

    def on_If(self, node):
        self.add(node.test, f"not ({self.code(node.test)})")

    on_IfExp = on_While = on_If

    def on_comprehension(self, node):
        for test in node.ifs:
            self.add(test, "True")

    def on_Call(self, node):
        if len(node.args) > 1 and not any(isinstance(a, ast.Starred) for a in node.args[:2]):
            (start, middle), (again, end) = map(self.span, node.args[:2])
            comma = self.text[middle:again].decode()
            self.found.append((start, end, self.code(node.args[1]) + comma + self.code(node.args[0])))
        for word in node.keywords:
            if word.arg and isinstance(word.value, (ast.Constant, ast.Attribute)):  # the called function's own default
                start, end = self.span(word)
                before = self.text[:start].rstrip()
                start = len(before) - 1 if before.endswith(b",") else start
                self.found.append((start, end, ""))
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in NAMES:
            end = self.span(node.func)[1]
            self.found.append((end - len(name.encode()), end, NAMES[name]))

    def on_Tuple(self, node):
        if len(node.elts) == 2 and isinstance(node.ctx, ast.Load) and ast.dump(node.elts[0]) != ast.dump(node.elts[1]):
            (start, middle), (again, end) = map(self.span, node.elts)
            self.found.append(
                (start, end, self.code(node.elts[1]) + self.text[middle:again].decode() + self.code(node.elts[0]))
            )

    def on_Expr(self, node):
        if isinstance(node.value, ast.Call):
            self.add(node, "pass")


def exported(path):
    "Exported cells of a notebook: id, source."
    return [(c["id"], source(c)) for c in cells(path) if c["cell_type"] == "code" and source(c).startswith("#| export")]


def mutants_of(path, room=""):
    "Every mutant of a notebook, JSON-ready; some are none, see `changes_something`."
    for cell, text in exported(path):
        for start, end, new in Places(text).found:
            raw = text.encode()
            changed = (raw[:start] + new.encode() + raw[end:]).decode()
            was, now = (t.split("\n")[raw[:start].count(b"\n")].strip() for t in (text, changed))
            yield dict(
                room=room,
                notebook=f"{path.parent.name}/{path.stem}",
                cell=cell,
                was=was,
                now=now,
                text=text,
                changed=changed,
            )


def all_mutants():
    "Every mutant of the rooms."
    for room, folders in ROOMS.items():
        for path in (
            p
            for f, names in folders.items()
            for n in names.split()
            for p in (ROOT / "nbs" / f).glob(f"[0-9]*_{n}.ipynb")
        ):
            if path.stem.partition("_")[2] in folders[path.parent.name].split():
                yield from mutants_of(path, room)


def changes_something(mutant):
    "Dropping the first of several arguments leaves a comma, and two that are alike may change places: no mutants."
    try:
        return ast.dump(ast.parse(mutant["changed"])) != ast.dump(ast.parse(mutant["text"]))
    except SyntaxError:
        return False


def name(mutant, seed=""):
    "A mutant keeps its name while its cell stays as it is."
    return hashlib.sha256(f"{seed}{mutant['notebook']}\0{mutant['text']}\0{mutant['changed']}".encode()).hexdigest()


def draw(count, seed):
    "The first `count` mutants in an order that the seed decides, and a change elsewhere in the code does not."
    return list(islice(filter(changes_something, sorted(all_mutants(), key=lambda m: name(m, seed))), count))


def mutate(home, mutant):
    "Write a mutant into a copied checkout: the cell and the module. Returns what was there."
    path = home / "nbs" / f"{mutant['notebook']}.ipynb"
    module = home / "perceptio" / f"{module_name(path).replace('.', '/')}.py"
    kept = {path: path.read_text(encoding="utf-8"), module: module.read_text(encoding="utf-8")}
    whole = json.loads(kept[path])
    (cell,) = (c for c in whole["cells"] if c["id"] == mutant["cell"])
    cell["source"] = mutant["changed"].splitlines(keepends=True)
    path.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    before, after = (mutant[name].split("\n", 1)[1].strip("\n") for name in ("text", "changed"))
    if kept[module].count(before) != 1:
        raise ValueError(f"{path.stem}, cell {mutant['cell']}: the module does not hold this cell once: export first")
    module.write_text(kept[module].replace(before, after), encoding="utf-8")
    return kept


def check(home, what, log):
    "Run a notebook of a copied checkout in this process; did it pass?"
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1), os.dup2(out, 2)
    os.chdir(home)
    os.environ["PYTHONPATH"] = str(home)
    sys.path[:] = [str(home), *(p for p in sys.path if p and Path(p).resolve() not in (ROOT, ROOT / "tests"))]
    from nbdev.test import test_nb

    return test_nb(home / "nbs" / f"{what}.ipynb", skip_flags=["gpu", "slow"], basepath=home, cell_timeout=None)[0]


def passes(home, what, log, limit):
    """`check` in a process of its own, with its own temporary folder; one that computes for `limit` seconds, or waits
    for ten times that, does not pass."""
    temp = tempfile.mkdtemp(prefix="mutant-")
    child = os.fork()
    if not child:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        os.environ["TMPDIR"] = tempfile.tempdir = temp
        with contextlib.suppress(BaseException):
            os._exit(0 if check(home, what, log) else 1)
        os._exit(1)
    end, status = time.monotonic() + 10 * limit, None
    while status is None and time.monotonic() < end:
        done, code = os.waitpid(child, os.WNOHANG)
        status = code if done else time.sleep(0.05)
    if status is None:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
    shutil.rmtree(temp, ignore_errors=True)
    return status == 0


def load_libraries():
    "Import once what every notebook imports; the package itself is imported by each child."
    import matplotlib.pyplot  # noqa: F401
    import pandas  # noqa: F401
    import peft  # noqa: F401
    import torch
    from nbdev.test import test_nb  # noqa: F401
    from transformers import AutoTokenizer, DynamicCache, InternVLForConditionalGeneration, Trainer  # noqa: F401

    torch.set_num_threads(1)


def checks_of(notebook):
    "What must notice a mutant of a notebook."
    return list(filter(None, (notebook, ALSO.get(notebook.partition("_")[2]))))


def run_mutants(mutants, log, seconds, limit, unchanged):
    "For some time: each mutant gets `killed`: by what, or nothing if it survived. `unchanged`: what passes as it is."
    start, home = time.monotonic(), Path(tempfile.mkdtemp(prefix="mutants-")) / "checkout"
    left_out = shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, home, symlinks=True, ignore=left_out)
    try:
        for mutant in mutants:
            if time.monotonic() - start > seconds:
                return
            checks = checks_of(mutant["notebook"])
            for what in checks:
                state = hashlib.sha256((home / "nbs" / f"{what}.ipynb").read_bytes()).hexdigest()
                if unchanged.get(what) != state:
                    if not passes(home, what, log, limit):
                        raise SystemExit(f"{what} fails without any mutant: see {log}")
                    unchanged[what] = state
            kept = mutate(home, mutant)
            mutant["killed"] = next((what for what in checks if not passes(home, what, log, limit)), "")
            for path, text in kept.items():
                path.write_text(text, encoding="utf-8")
            yield mutant
    finally:
        shutil.rmtree(home.parent, ignore_errors=True)


def is_equivalent(mutant, verdict):
    return not verdict and (mutant["notebook"], mutant["now"]) in EQUIVALENT


def score(sample, verdicts):
    "How many were killed; those that change nothing are not counted."
    from perceptio.evaluate.intervals import wilson

    real = [m for m in sample if not is_equivalent(m, verdicts[name(m)])]
    killed = {room: [bool(verdicts[name(m)]) for m in real if m["room"] == room] for room in ROOMS}
    k, n = sum(map(sum, killed.values())), len(real)
    low, high = wilson(k, n)
    rooms = {room: dict(killed=sum(v), n=len(v)) for room, v in killed.items() if v}
    return dict(score=k / n, low=low, high=high, killed=k, survived=n - k, equivalent=len(sample) - n, rooms=rooms)


def record(samples, first, verdicts, seconds):
    """Write the scores with their origin, by seed: as the sample found the tests, and after its survivors were looked
    at."""
    from perceptio.core.files import hash_files
    from perceptio.core.record import Run, write_result
    from perceptio.core.settings import Settings

    os.environ.pop("IN_TEST", None)  # conftest sets it
    place = lambda m: dict(notebook=m["notebook"], was=m["was"], now=m["now"])
    metrics = {f"seed {seed}": dict(first=score(s, first), mended=score(s, verdicts)) for seed, s in samples.items()}
    left = lambda s, found: [place(m) for m in s if not found[name(m)] and not is_equivalent(m, "")]
    lists = {
        f"survivors of seed {seed}": dict(first=left(s, first), mended=left(s, verdicts)) for seed, s in samples.items()
    }
    same = [m for s in samples.values() for m in s if is_equivalent(m, verdicts[name(m)])]
    lists["equivalents"] = [place(m) | dict(why=EQUIVALENT[m["notebook"], m["now"]]) for m in same]
    code = hash_files(ROOT / "nbs", sorted(p.relative_to(ROOT / "nbs").as_posix() for p in NOTEBOOKS if module_name(p)))
    with Run("mutants", Settings.load("smoke"), FOLDER, data_hash=code) as run:
        run.finish(**metrics)
    more = dict(
        places=sum(map(changes_something, all_mutants())),
        protocol="one change at a time; first: by the tests that the sample met when it was drawn; mended: survivors "
        "once more, after tests were added; 95 % interval by Wilson",
    )
    write_result("mutants", metrics, run, code, seconds=seconds, **more, **lists)
    return metrics


def main(argv=None):
    parser = argparse.ArgumentParser(description=" ".join(__doc__.split("\n\n")[0].split()))
    parser.add_argument("--count", type=int, default=60, help="size of each sample")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="a sample for each")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after about so many; the next call goes on")
    parser.add_argument("--limit", type=int, default=300, help="seconds of one processor that a notebook may take")
    parser.add_argument("--again", action="store_true", help="run survivors again: tests were added")
    asked = parser.parse_args(argv)
    FOLDER.mkdir(parents=True, exist_ok=True)
    file, new = FOLDER / "verdicts.json", dict(verdicts={}, first={}, unchanged={}, seconds=0.0, samples={})
    state = json.loads(file.read_text()) if file.is_file() else new
    first, verdicts, whole = state["first"], state["verdicts"], state["samples"]
    samples = {seed: whole.get(str(seed)) or draw(asked.count, seed) for seed in asked.seeds}
    load_libraries()
    start, before = time.monotonic(), state["seconds"]
    everything = {name(m): m for sample in samples.values() for m in sample}
    there = set(
        map(name, all_mutants())
    )  # a sample that was run to its end stays as it was, though its cells may change
    again = lambda m: asked.again and not verdicts[name(m)] and not is_equivalent(m, "") and name(m) in there
    todo = [m for key, m in everything.items() if key not in verdicts or again(m)]
    for m in run_mutants(todo, FOLDER / "log.txt", 60 * asked.minutes, asked.limit, state["unchanged"]):
        verdicts[name(m)], state["seconds"] = m["killed"], before + time.monotonic() - start
        first.setdefault(name(m), m["killed"])
        file.write_text(json.dumps(state, indent=1))
        print(f"{m['notebook']}: {m['killed'] or 'SURVIVED'}\n  - {m['was']}\n  + {m['now']}", flush=True)
    if left := sum(key not in verdicts for key in everything):
        print(f"{left} of {len(everything)} are left: the same command goes on")
    else:
        whole |= {str(seed): sample for seed, sample in samples.items()}
        file.write_text(json.dumps(state, indent=1))
        print(json.dumps(record(samples, first, verdicts, state["seconds"]), indent=1))


if __name__ == "__main__":
    main()
