"""What pip installs: one package, from which the studies run without a checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from mtl_jax.studies.registry import built_in

ROOT = Path(__file__).parents[1]


def test_the_wheel_has_one_package_and_runs_the_studies(tmp_path):
    source, installed = tmp_path / "source", tmp_path / "installed"
    for name in ("mtl_jax", "experiments", "tests"):
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=unwanted)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", f"--wheel-dir={tmp_path}"]
    subprocess.run([sys.executable, "-m", "pip", *build, str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        files = {name for name in packed.namelist() if ".dist-info/" not in name}
        packed.extractall(installed)
    wanted = (*ROOT.glob("mtl_jax/**/*.py"), ROOT / "mtl_jax" / "py.typed")
    assert files == {str(file.relative_to(ROOT)) for file in wanted}

    code = (
        "import mtl_jax; from mtl_jax.cli.commands import run; from mtl_jax.studies import registry"
        "\nprint(mtl_jax.__file__, [run(['study', n, '--help']) for n in registry.built_in()])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=installed.parent,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "usage: mtl-jax study freezing [-h]" in done.stdout
    statuses = [0] * len(built_in())
    assert done.stdout.endswith(f"{installed / 'mtl_jax' / '__init__.py'} {statuses}\n")
