"""What all tests share. IN_TEST sends everything a test writes to a temporary folder, as under nbdev_test."""

import ast
import json
import os
from pathlib import Path

os.environ["IN_TEST"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # tests of several processes run on the CPU

ROOT = Path(__file__).parent.parent
# The folders of nbs/ and of the package, lowest first: a folder imports from those before it.
FLOORS = "core method convert world data pretrain evaluate train report testing".split()
READ = (
    "index",
    "tour",
)  # on top of nbs/ too, but read like a lesson: no parameters, outputs kept (of a run outside of a test)
NOTEBOOKS = [
    *sorted((ROOT / "nbs").glob("[!_.]*.ipynb")),
    *(path for floor in FLOORS for path in sorted((ROOT / "nbs" / floor).glob("[!_.]*.ipynb"))),
]
MODULES = [p for floor in FLOORS for p in sorted((ROOT / "perceptio" / floor).glob("[!_]*.py"))]


def dotted(path):
    "The name of a module of the package without `perceptio.`, such as method.losses."
    return f"{path.parent.name}.{path.stem}"


def pytest_addoption(parser):
    parser.addoption(
        "--fuzz-cases", type=int, default=0, help="hostile files that tests/fuzz makes; 0 = its own number"
    )


# One process takes a whole file: those that take longest are begun first, and the last ones end together.
LONGEST = """
    launch sequence resume benchmarks foreign_annotations depth_cache foreign_files papermill portable converter
""".split()


def pytest_collection_modifyitems(items):
    "The package is not imported above: mutants.py imports this file, and runs another copy of the package."
    place = {f"test_{name}": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))
    from perceptio.core.notebook import import_before_tests

    import_before_tests()


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def source(cell):
    return "".join(cell["source"])


def module_name(path):
    "The module a notebook exports, or None for one that papermill runs."
    for cell in cells(path):
        for line in source(cell).splitlines():
            if line.replace("| ", "|").startswith("#|default_exp"):
                return line.split()[-1]
    return None


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def write_stand_in(folder):
    "A base of the smoke size as pretraining leaves it, language/ and sam/, of a seed that the settings do not have."
    import torch

    from perceptio.core.settings import Settings
    from perceptio.method.backbone import build_backbone, build_tokenizer
    from perceptio.method.backbone_files import TEST_WORDS
    from perceptio.method.sam import build_sam, save_sam

    settings, tokenizer = Settings.load("smoke", seed=7), build_tokenizer(TEST_WORDS)
    torch.manual_seed(7)
    ids = dict(vocab_size=len(tokenizer), image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"))
    build_backbone(settings, **ids).save_pretrained(folder / "language")
    tokenizer.save_pretrained(folder / "language")
    save_sam(build_sam(settings), folder / "sam")
    return folder
