"""Every public name is documented: in the reference, with shapes, what it raises, and an example that runs."""

import ast
import dataclasses
import importlib
import inspect
import pathlib
import re
import textwrap
import typing

import jax
import numpy as np
import pytest

pytestmark = pytest.mark.docs

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHOWN = {
    name
    for page in (ROOT / "docs" / "reference").glob("*.md")
    for name in re.findall(r"^::: ([\w.]+)$", page.read_text(), re.MULTILINE)
}
FILES = {".".join(path.with_suffix("").relative_to(ROOT).parts).removesuffix(".__init__")
         for path in (ROOT / "robust_gan").rglob("*.py")}  # fmt: skip
MODULES = sorted(SHOWN & FILES)

_FOLDER = "needs a folder with a checkpoint; tests/checkpoint, and the tutorials"
_EVALUATED = "needs a whole evaluation; tests/reporting"
_JOINED = "needs several processes; tests/parallel"
NO_EXAMPLE = {
    "robust_gan.checkpoint.export": _FOLDER,
    "robust_gan.checkpoint.get_attack": _FOLDER,
    "robust_gan.checkpoint.get_classifier": _FOLDER,
    "robust_gan.checkpoint.get_generator": _FOLDER,
    "robust_gan.checkpoint.get_variables": _FOLDER,
    "robust_gan.checkpoint.has_generator": _FOLDER,
    "robust_gan.checkpoint.load_attack": _FOLDER,
    "robust_gan.checkpoint.load_classifier": _FOLDER,
    "robust_gan.checkpoint.load_generator": _FOLDER,
    "robust_gan.checkpoint.read_record": _FOLDER,
    "robust_gan.reproduction.run": "takes minutes; tests/reproduction, and the tutorials",
    "robust_gan.reporting.html.write": "needs folders of runs; tests/reporting",
    "robust_gan.parallel.connect": _JOINED,
    "robust_gan.parallel.leave": _JOINED,
    "robust_gan.reporting.evaluation_record.card": _EVALUATED,
    "robust_gan.reporting.evaluation_record.record": _EVALUATED,
    "robust_gan.reporting.evaluation_report.write": _EVALUATED,
    "robust_gan.training.train": "takes seconds; tests/training, and the tutorials",
}
"""Functions without a doctest, and where they are tried instead."""


def public(module):
    """The names of a module: those that it lists, or those that it defines."""
    listed = getattr(module, "__all__", None)
    for name in listed or vars(module):
        if name.startswith("_"):
            continue
        value = getattr(module, name)
        if (
            typing.get_origin(value)
            or inspect.ismodule(value)
            or not callable(value)
            or not hasattr(value, "__qualname__")
        ):
            continue
        if listed or value.__module__ == module.__name__:
            yield f"{module.__name__}.{name}", value


NAMES = dict(sorted(pair for module in MODULES for pair in public(importlib.import_module(module))))
FUNCTIONS = {name: value for name, value in NAMES.items() if inspect.isfunction(value)}
CLASSES = {name: value for name, value in NAMES.items() if inspect.isclass(value)}


def raised(function):
    """The exceptions that a function raises itself."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            called = node.exc.func
            # `raise (A if x else B)(...)` is either.
            kinds = (called.body, called.orelse) if isinstance(called, ast.IfExp) else (called,)
            yield from (kind.id for kind in kinds)


def test_every_listed_module_has_a_page():
    for path in sorted((ROOT / "robust_gan").glob("*/__init__.py")):
        name = f"robust_gan.{path.parent.name}"
        if hasattr(importlib.import_module(name), "__all__") and name != "robust_gan.cli":
            assert name in MODULES
    assert "robust_gan" in MODULES


def test_a_name_that_is_also_that_of_its_file_is_shown():
    """The reference is built from the sources, where such a name is the file."""
    for name, value in NAMES.items():
        if value.__module__ == name:
            assert f"{name}.{value.__name__}" in SHOWN


def unmet(checks):
    """Returns what is wrong, one line each, of `(name, holds, what is wrong)`."""
    return [f"{name}: {wrong}" for name, holds, wrong in checks if not holds]


def test_every_public_name_has_a_docstring():
    """Ruff holds the form; names that are assigned it does not see."""
    assert not unmet((name, value.__doc__, "no docstring") for name, value in NAMES.items())


def test_functions_have_an_example_shapes_and_exceptions():
    def checks():
        for name, function in FUNCTIONS.items():
            text, parameters = inspect.getdoc(function), inspect.signature(function).parameters.values()
            yield name, (">>>" in text) != (name in NO_EXAMPLE), "an example, or a reason in NO_EXAMPLE"
            yield name, "Args:" in text or len(parameters) <= 2, "its arguments are not described"
            arrays = [item for item in parameters if item.annotation in (jax.Array, np.ndarray) and item.name != "key"]
            yield name, not arrays or re.search(r"`[a-z ]*\[", text), "no shape"
            for exception in set(raised(function)):
                yield name, exception in text.partition("Raises:")[2], f"{exception} is not under Raises"

    assert not unmet(checks())


def test_classes_describe_their_fields():
    def checks():
        for name, cls in CLASSES.items():
            fields = [field.name for field in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []
            fields += getattr(cls, "_fields", ())
            for field in fields:
                described = re.search(rf"^ +{field}: ", cls.__doc__, re.MULTILINE) or len(fields) <= 3
                yield name, described, f"its field {field} is not described"

    assert not unmet(checks())
