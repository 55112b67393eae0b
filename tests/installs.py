"""What .ci/run asks of the installation, with a network and without installing anything for good (pytest does not
collect this file).

The wheel works alone, with masks after one documented line; the pins resolve on every Python that CONTRIBUTING names;
no line that a page or nbs/core/06_optional.ipynb shows would change a package of the tested environment."""

import importlib.metadata
import os
import re
import shlex
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11.2", "3.12", "3.13")
SOURCE_ONLY = (
    "antlr4-python3-runtime",
    "iopath",
)  # no wheels in the registry, and pip reads no others for another Python
OF_CUDA = ("nvidia-", "cuda-", "triton")  # what torch brings where it is not a CPU build; not pinned
NO_REGISTRY = "git+https://"
MARKED = re.compile(r"(?:([A-Z_0-9]+=\S+) )?([^\s`]*)pip install ([^`#\n]*[^`#\s])")
USE = """
import importlib.util, pkgutil, sys
from pathlib import Path
import numpy as np
import perceptio
from perceptio.method.generation import Perceptio
from perceptio.method.codebook import DepthCodebook
from perceptio.method.model import build_model
from perceptio.method.saving import save_model
from perceptio.core.settings import Settings

site, sam2 = map(Path, sys.argv[1:])
assert Path(perceptio.__file__).is_relative_to(site), perceptio.__file__
for module in pkgutil.walk_packages(perceptio.__path__, "perceptio."):
    importlib.import_module(module.name)
assert Settings.load("8B").lora_rank == 256
settings = Settings.load("smoke")
sys.modules["sam2"] = None  # as it is before the documented line
try:
    build_model(settings, DepthCodebook.from_settings(settings))
except ValueError as error:
    print(error)
del sys.modules["sam2"]
sys.path.insert(0, str(sam2))
model, tokenizer = build_model(settings, DepthCodebook.from_settings(settings))
assert Path(importlib.util.find_spec("sam2").origin).is_relative_to(sam2)
save_model(model, tokenizer, "mymodel")
image = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
asked = dict(perceive="both", max_new_tokens=4)
folders = ("mymodel", Path("mymodel").absolute())
found = [Perceptio.from_pretrained(f, device="cpu")(image, "segment the red cube", **asked) for f in folders]
assert [(out.mask.shape, out.depth.shape) for out in found] == [((96, 128), (96, 128))] * 2
assert found[0].token_ids == found[1].token_ids and (found[0].mask == found[1].mask).all()
"""


def run(*command, **more):
    "The text a command writes; stop with it if the command fails."
    done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more)
    if done.returncode:
        sys.exit(f"{shlex.join(map(str, command))} ended with {done.returncode}:\n{done.stdout[-3000:]}")
    return done.stdout


def pip(*arguments, **more):
    "pip of this environment."
    return run(sys.executable, "-m", "pip", *arguments, cwd=ROOT, **more)


def would_install(*arguments, **more):
    """Name -> version of what pip would install; fast-deps reads the end of a wheel where a registry has no file of its
    metadata."""
    text = pip("install", "--dry-run", "--use-feature=fast-deps", *arguments, **more)
    line = re.search(r"^Would install (.*)$", text, re.M)
    return dict(word.rsplit("-", 1) for word in line[1].split()) if line else {}


def plain(name):
    "A name as pip compares it."
    return re.sub(r"[-_.]+", "-", name).lower()


def pages():
    "README, GUIDE and CONTRIBUTING as one text."
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("*.md")))


def documented():
    "(environment, whose pip, arguments) of every line that the pages on top and the lesson on optional parts show."
    from perceptio.core.optional import OPTIONAL

    text = pages()
    lines = [line for part in OPTIONAL.values() for line in part.line.split(" && ") if NO_REGISTRY not in line]
    found = MARKED.findall("\n".join([text, *lines]))
    if len(found) != text.count("pip install") + len(lines) or not lines:
        sys.exit(
            "a line with `pip install` in README, GUIDE, CONTRIBUTING or nbs/core/06_optional.ipynb is not understood "
            "by tests/installs.py"
        )
    return list(dict.fromkeys(found))


def from_wheel(argument, wheel):
    "The built wheel where a line names this package, its checkout or its file; the extras stay."
    match = re.fullmatch(r"(?:\.|perceptio)(\[[\w,]+\])|(perceptio-[\d.]+-py3-none-any\.whl)", argument)
    return f"{wheel}{match[1] or ''}" if match else argument


def check_line(line, wheel):
    "A documented line: in the tested environment it changes no version; for an environment of its own it resolves."
    environment, whose, arguments = line
    words = [from_wheel(word, wheel) for word in shlex.split(arguments) if word != "-e"]
    own = whose.startswith("other/")
    given = dict([environment.split("=", 1)]) if environment else {}
    given["FLASH_ATTENTION_SKIP_CUDA_BUILD"] = "TRUE"  # only its metadata is read
    new = would_install(*(["--ignore-installed"] if own else []), *words, env=os.environ | given)
    here = {plain(d.metadata["Name"]): d.version for d in importlib.metadata.distributions()}
    changed = [f"{k} {here[plain(k)]} -> {v}" for k, v in new.items() if here.get(plain(k), v) != v]
    if changed and not own:
        sys.exit(f"`pip install {arguments}` changes the tested environment: {', '.join(changed)}")
    return f"pip install {arguments}: {len(new)} packages"


def check_pins(version, wheel, sources):
    "Everything that is installed has wheels for this Python, at the pinned version."
    pins = {plain(k): v for k, v in (line.split("==") for line in (ROOT / "constraints.txt").read_text().split())}
    for_it = ("--python-version", version, "--only-binary=:all:", "--target", sources, "--find-links", sources)
    new = would_install("--ignore-installed", *for_it, "-c", "constraints.txt", f"{wheel}[dev,eval,docs]")
    wrong = [f"{k} {v}" for k, v in new.items() if not k.startswith(OF_CUDA) and pins.get(plain(k)) != v.split("+")[0]]
    wrong = [k for k in wrong if not k.startswith("perceptio ")]
    if wrong or len(new) < 100:
        sys.exit(f"Python {version}: {len(new)} packages, not at their pins: {', '.join(wrong)}")
    return f"Python {version}: {len(new)} packages"


def check_use(wheel, folder):
    """The wheel without a checkout, used from another folder; without sam2 the error says the line that CONTRIBUTING
    shows, and with it there are masks."""
    line = "SAM2_BUILD_CUDA=0 pip install --no-deps --no-build-isolation sam2==1.1.0"
    pip("install", "--no-deps", "--target", folder / "site", wheel)
    arguments = shlex.split(line.partition("pip ")[2])
    pip(*arguments, "--target", folder / "sam2", env=os.environ | dict(SAM2_BUILD_CUDA="0"))
    (folder / "elsewhere").mkdir()
    env = {k: v for k, v in os.environ.items() if k not in ("PERCEPTIO_ROOT", "PYTHONPATH")}
    env |= dict(PYTHONPATH=str(folder / "site"), HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    said = run(sys.executable, "-c", USE, folder / "site", folder / "sam2", cwd=folder / "elsewhere", env=env)
    if line not in said or line not in pages():
        sys.exit(f"the wheel without sam2 does not say CONTRIBUTING's line {line!r}, but {said!r}")
    return "the wheel works alone, and with masks after one line"


def main():
    with tempfile.TemporaryDirectory() as kept:
        folder = Path(kept)
        pip("wheel", "--no-deps", "--wheel-dir", folder, ".")
        pip("wheel", "--no-deps", "--wheel-dir", folder / "sources", "-c", "constraints.txt", *SOURCE_ONLY)
        (wheel,) = folder.glob("perceptio-*.whl")
        with ThreadPoolExecutor(3) as pool:
            jobs = [pool.submit(check_use, wheel, folder)]
            jobs += [pool.submit(check_pins, version, wheel, folder / "sources") for version in PYTHONS]
            jobs += [pool.submit(check_line, line, wheel) for line in documented()]
            for job in jobs:
                print(job.result(), flush=True)


if __name__ == "__main__":
    main()
