"""Perceptio: a vision-language model that says where things are and how far, then answers. Written in nbs/."""

from importlib import import_module

LAZY = {"Perceptio": "method.generation", "PerceptioOutput": "method.answers", "Settings": "core.settings"}


def __getattr__(name):
    "Import the module of a public name when it is first asked for, so that `import perceptio` stays light."
    if name not in LAZY:
        offered = ", ".join(LAZY)
        raise AttributeError(f"module 'perceptio' has no attribute {name!r}; it offers {offered} and its modules")
    return getattr(import_module(f"perceptio.{LAZY[name]}"), name)


def __dir__():
    return sorted([*globals(), *LAZY])
