"""What a process of our own sets, each in a process that does nothing else."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

COMPILE = """
from mtl_jax.core.runtime import keep_compiled
folder = keep_compiled()
import collections
import jax
import jax.numpy as jnp
import numpy as np
events = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: events.update([event]))
print(folder)
print(jax.config.jax_compilation_cache_dir)
print(jax.config.jax_persistent_cache_min_compile_time_secs)
print(jax.jit(lambda x: (jnp.abs(x) @ x).sum())(np.arange(4.0, dtype=np.float32).reshape(2, 2)))
cache = "/jax/compilation_cache/cache_"
print(events[cache + "hits"], events[cache + "misses"])
"""
EVERYTHING = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

SET = """
from mtl_jax.core.errors import UserError
from mtl_jax.core.runtime import keep_compiled
try:
    keep_compiled()
except UserError as error:
    print(error)
else:
    import jax.numpy as jnp
    print((jnp.ones((2, 3)) * jnp.ones(3)).sum())
"""

ALLOCATE = """
import resource
import sys
import numpy as np
from mtl_jax.core.runtime import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory() is None

def step():
    return float(sum(np.full(2**23, i, np.float64).sum() for i in range(4)))

step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
assert [step() for _ in range(10)] == [6.0 * 2**23] * 10
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


COLLECT = """
import gc
import sys
from mtl_jax.core.runtime import collect_less_often

if sys.argv[1] == "less often":
    collect_less_often()
gc.collect()
before = sum(generation["collections"] for generation in gc.get_stats())
objects = [[] for _ in range(15_000)]
print(sum(generation["collections"] for generation in gc.get_stats()) - before)
"""


def run(code, *arguments, **variables):
    """A process with only these of JAX's and our variables set; its warnings are errors."""
    ours = ("JAX_", "MTL_JAX_", "XLA_", "XDG_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=environment | {"JAX_PLATFORMS": "cpu"} | variables,
        capture_output=True,
        text=True,
        check=True,
    )


def compiled(**variables):
    """The folder, the least seconds of what is kept, and what was found in it and what not."""
    done = run(COMPILE, **variables)
    folder, used, least_seconds, value, counts = done.stdout.splitlines()
    assert used == folder
    assert value == "22.0"
    return Path(folder), float(least_seconds), counts


def test_compiled_code_is_found_by_the_next_process(tmp_path):
    cache = tmp_path / "cache"
    variables = {"MTL_JAX_CACHE": str(cache)}
    # Also what compiles in no time.
    assert compiled(**variables) == (cache / "xla", 0.0, "0 1")
    kept = {path: path.read_bytes() for path in (cache / "xla").glob("*-cache")}
    assert len(kept) == 1
    assert compiled(**variables) == (cache / "xla", 0.0, "1 0")
    assert {path: path.read_bytes() for path in (cache / "xla").glob("*-cache")} == kept


def test_jax_settings_come_first(tmp_path):
    cache, own = tmp_path / "cache", tmp_path / "own"
    variables = {"MTL_JAX_CACHE": str(cache), "JAX_COMPILATION_CACHE_DIR": str(own), **EVERYTHING}
    assert compiled(**variables) == (own, 0.0, "0 1")
    assert compiled(**variables) == (own, 0.0, "1 0")
    assert len(list(own.glob("*-cache"))) == 1
    assert not cache.exists()


def test_a_damaged_entry_is_compiled_again_and_replaced(tmp_path):
    variables = {"MTL_JAX_CACHE": str(tmp_path), "PYTHONWARNINGS": "error"}
    compiled(**variables)
    (entry,) = (tmp_path / "xla").glob("*-cache")
    whole = entry.read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    for damaged in (whole[: len(whole) // 2], bytes(changed), b""):
        entry.write_bytes(damaged)
        done = run(COMPILE, **variables)
        assert done.stdout.splitlines()[-2:] == ["22.0", "0 1"]
        assert done.stderr == f"note: {entry} was damaged: it is compiled again\n"
        assert list((tmp_path / "xla").iterdir()) == [entry]
    assert compiled(**variables)[2] == "1 0"


def test_a_cache_that_cannot_be_written_costs_no_more_than_the_compilation(tmp_path):
    (tmp_path / "file").write_text("in the way")
    variables = {"MTL_JAX_CACHE": str(tmp_path / "file"), **EVERYTHING}
    # Warnings as errors: what the process says of the folder is no reason to stop.
    found = compiled(**variables, PYTHONWARNINGS="error")
    assert found == (tmp_path / "file" / "xla", 0.0, "0 0")
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_full_cache_is_told_once_and_costs_no_more_than_the_compilation(tmp_path):
    full = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
    again = "jax.jit(lambda x: x * 3)(np.ones(4))\n"
    done = run(full + COMPILE + again, MTL_JAX_CACHE=str(tmp_path), PYTHONWARNINGS="error")
    assert "22.0" in done.stdout.splitlines()
    assert done.stderr == (
        f"note: compiled programs can't be kept in {tmp_path / 'xla'} (File too large): each run "
        "compiles them again until there is room\n"
    )
    assert list((tmp_path / "xla").iterdir()) == []


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are left alone")
def test_freed_memory_is_used_again_without_faults():
    """Ten times four arrays of 64 MiB, which are given back to the system otherwise."""
    kept, given_back = (int(run(ALLOCATE, how).stdout) for how in ("keep", "not"))
    assert kept < 100
    # 40 arrays of 32 pages each, where pages are as large as they can be.
    assert given_back > 1000


def test_garbage_is_looked_for_less_often():
    less_often, as_ever = (int(run(COLLECT, how).stdout) for how in ("less often", "as ever"))
    assert less_often == 0 < as_ever


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("JAX_ENABLE_X64", "perhaps", "JAX can't be started as the environment says ("),
        ("JAX_NUMPY_RANK_PROMOTION", "raise", "6.0"),
    ],
)
def test_what_the_environment_tells_jax(variable, value, words):
    assert run(SET, **{variable: value}).stdout.startswith(words)
