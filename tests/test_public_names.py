"""What a package offers is what its lazy names say, whatever has been imported before."""

import ast
import importlib
import inspect
import pkgutil
import re
import textwrap
from types import ModuleType
from typing import Any

import mtl_jax


def packages() -> list[ModuleType]:
    """The packages that import what they offer when it is first used."""
    prefix = f"{mtl_jax.__name__}."
    names = [each.name for each in pkgutil.walk_packages(mtl_jax.__path__, prefix) if each.ispkg]
    found = [mtl_jax, *map(importlib.import_module, names)]
    return [package for package in found if hasattr(package, "__getattr__")]


def test_no_module_takes_the_place_of_a_lazy_name_once_it_is_imported():
    assert {package.__name__ for package in packages()} >= {"mtl_jax", "mtl_jax.studies"}
    for package in packages():
        # Python binds a module in its package as it is imported, and asks for no lazy name then.
        modules = {each.name for each in pkgutil.iter_modules(package.__path__)}
        meant = set(getattr(package, "_PACKAGES", ()))
        assert modules & set(package.__all__) == meant, package.__name__
        assert set(package._HOMES) | meant == set(package.__all__)
        for name, home in package._HOMES.items():
            module = importlib.import_module(f"{mtl_jax.__name__}.{home}")
            assert getattr(package, name) is getattr(module, name)


def example_in(docstring: str) -> str:
    """What is indented above the first section."""
    lines = re.split("\n(?:Args|Attributes|Raises|Returns):\n", docstring)[0].splitlines()
    return textwrap.dedent("\n".join(line for line in lines if line.startswith("    ")))


def calls_in(code: str) -> list[tuple[Any, ast.Call]]:
    """The calls of public names, with what they call."""
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    places = {"mtl": mtl_jax, "mtl.studies": mtl_jax.studies}
    return [
        (getattr(places[ast.unparse(call.func.value)], call.func.attr), call)
        for call in calls
        if isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) in places
    ]


def test_the_docstring_of_every_name_shows_its_use():
    bound = 0
    for package in packages():
        for name in package.__all__:
            code = example_in(inspect.getdoc(getattr(package, name)) or "")
            compile(code, name, "exec")
            assert re.search(rf"\b{name}\b", code, re.IGNORECASE), name
            for called, call in calls_in(code):
                named = {word.arg: word.value for word in call.keywords if word.arg}
                inspect.signature(called).bind(*call.args, **named)
                bound += 1
    assert bound > len(mtl_jax.__all__) / 2
