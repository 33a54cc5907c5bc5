"""The oldest versions that CI installs are the lower bounds of pyproject.toml."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DIRECT = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]


def versions(lines, operator):
    """The version that stands after ``operator`` in each line that has it, by package."""
    requirements = [Requirement(line) for line in lines]
    return {
        canonicalize_name(requirement.name): Version(each.version)
        for requirement in requirements
        for each in requirement.specifier
        if each.operator == operator
    }


def test_the_oldest_stack_is_the_lower_bounds():
    lines = (ROOT / ".ci" / "oldest.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert versions(pins, "==") == versions(DIRECT, ">=")
    assert len(pins) == len(DIRECT)


def test_what_changes_its_interface_with_a_release_has_an_upper_bound():
    assert versions(DIRECT, "<").keys() == {"jax", "orbax-checkpoint", "transformers"}
