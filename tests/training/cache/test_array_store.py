"""Large arrays by key: found again, made again when damaged, within a budget."""

import contextlib
import fcntl
import hashlib
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.core.errors import UserError
from mtl_jax.training.cache.array_store import ArrayStore
from tests import forked

ROOT = Path(__file__).parents[3]
SHAPE = (6, 4)
ROWS = np.arange(1, 25, dtype=np.float32).reshape(SHAPE)
SIZE = ROWS.nbytes
SECONDS = 0.5
FILE = SIZE + 40  # with the seconds that it cost, and the SHA-256

# Processes of their own say ``filling`` half-way, wait for a line, and note that they filled.
BUILD = """
import os
import sys
from pathlib import Path
import numpy as np
from mtl_jax.training.cache.array_store import ArrayStore

folder, fills, value = sys.argv[1:]

def fill(write):
    with open(fills, "a") as file:
        file.write(f"{os.getpid()}\\n")
    rows = np.full((500, 1000), float(value), np.float32)
    write(0, rows)
    print("filling", flush=True)
    sys.stdin.readline()
    write(500, rows)
    return 0.5

print("asking", flush=True)
array = ArrayStore(2**30, Path(folder)).make("ab", (1000, 1000), "float32", fill)
print(type(array).__name__, array.shape, float(array.min()), float(array.max()), flush=True)
"""


def filling(rows=ROWS, calls=None):
    """Writes the rows in two parts, the last ones first."""

    def fill(write):
        if calls is not None:
            calls.append(rows)
        half = len(rows) // 2
        write(half, rows[half:])
        write(0, rows[:half])
        return SECONDS

    return fill


def never(write):
    raise AssertionError("it was made again")


def kept(store, *keys):
    """Of which of the keys there is a file."""
    return [store._path(key).exists() for key in keys]


def listing(folder):
    """The names there, but for the files of locks, which stay."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def get(store, key, fill=None, rows=ROWS, user=None):
    """What a run does: found, else made; and in use."""
    if (array := store.find(key, rows.shape, rows.dtype)) is None:
        array = store.make(key, rows.shape, rows.dtype, fill or filling(rows))
    if user is not None:
        store.use(key, user)
    return array


def start(folder, fills, value):
    return forked.Popen(
        [sys.executable, "-c", BUILD, str(folder), str(fills), str(value)],
        cwd=ROOT,
        stdin=forked.PIPE,
        stdout=forked.PIPE,
        stderr=forked.PIPE,
        text=True,
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_file_is_found_by_every_store_of_the_folder(dtype, tmp_path):
    rows = ROWS.astype(jnp.dtype(dtype))
    folder = tmp_path / "not" / "yet"
    made = get(ArrayStore(2**20, folder), "ab", rows=rows)
    found = get(ArrayStore(2**20, folder), "ab", never, rows)
    for array in (made, found):
        assert isinstance(array, np.memmap)
        assert not array.flags.writeable
        assert (array.dtype, array.shape) == (rows.dtype, rows.shape)
        assert array.tobytes() == rows.tobytes()
    content = rows.tobytes() + struct.pack("<d", SECONDS)
    assert (folder / "ab.states").read_bytes() == content + hashlib.sha256(content).digest()
    assert listing(folder) == ["ab.states"]


def flipped(content, position):
    other = bytearray(content)
    other[position] ^= 1 << position % 8
    return bytes(other)


def test_what_an_array_cost_is_kept_beside_it(tmp_path):
    store, other = ArrayStore(2**20, tmp_path), ArrayStore(2**20, tmp_path)
    get(store, "ab")
    get(other, "ab", never)
    assert store.seconds == other.seconds == {"ab": SECONDS}


DAMAGES = {
    "a byte cut off": lambda content: content[:-1],
    "the digest cut off": lambda content: content[:-32],
    "a row cut out": lambda content: content[16:],
    "empty": lambda content: b"",
    "a byte more": lambda content: content + b"\0",
    "two of them": lambda content: content * 2,
    "zeros": lambda content: bytes(len(content)),
    "other rows": lambda content: content[16:32] + content[:16] + content[32:],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_noticed_said_and_made_again(damage, tmp_path, capsys):
    store = ArrayStore(2**20, tmp_path)
    get(store, "ab")
    path = tmp_path / "ab.states"
    whole = path.read_bytes()
    path.write_bytes(DAMAGES[damage](whole))
    calls = []
    np.testing.assert_array_equal(get(store, "ab", filling(ROWS, calls)), ROWS)
    assert len(calls) == 1
    assert capsys.readouterr().err == f"{path} is damaged: computing it again\n"
    assert path.read_bytes() == whole
    np.testing.assert_array_equal(get(store, "ab", never), ROWS)
    assert capsys.readouterr().err == ""


OPEN = """
import sys
from pathlib import Path
from mtl_jax.training.cache.array_store import ArrayStore

found = ArrayStore(2**20, Path(sys.argv[1])).find("ab", (6, 4), "float32")
print(found if found is None else found.sum())
"""


def test_a_file_is_read_whole_once_in_each_process(tmp_path):
    """A change that leaves no trace but in the bytes shows who has read them."""
    store = ArrayStore(2**20, tmp_path)
    get(store, "ab")
    path = tmp_path / "ab.states"
    before = path.stat()

    def command():
        arguments = [sys.executable, "-c", OPEN, str(tmp_path)]
        return forked.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True)

    assert command().stdout == f"{ROWS.sum()}\n"
    with path.open("r+b") as file:
        file.write(b"\x7f")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert get(ArrayStore(2**20, tmp_path), "ab", never).tobytes() != ROWS.tobytes()
    assert command().stdout == "None\n"
    # A change that leaves its time is noticed here, too.
    os.utime(path)
    np.testing.assert_array_equal(get(store, "ab"), ROWS)
    assert command().stdout == f"{ROWS.sum()}\n"


def test_another_file_in_its_place_is_noticed(tmp_path, capsys):
    """Of the same size and with the same time of change."""
    store = ArrayStore(2**20, tmp_path)
    get(store, "ab")
    path = tmp_path / "ab.states"
    before = path.stat()
    other = tmp_path / "other"
    other.write_bytes(flipped(path.read_bytes(), 3))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)
    calls = []
    np.testing.assert_array_equal(get(store, "ab", filling(ROWS, calls)), ROWS)
    assert len(calls) == 1
    assert capsys.readouterr().err == f"{path} is damaged: computing it again\n"


def test_a_flipped_bit_is_noticed_wherever_it_is(tmp_path, capsys):
    """In each byte of the array and of its digest."""
    store = ArrayStore(2**20, tmp_path)
    get(store, "ab")
    path = tmp_path / "ab.states"
    whole = path.read_bytes()
    assert len(whole) == FILE
    for position in range(FILE):
        path.write_bytes(flipped(whole, position))
        calls = []
        np.testing.assert_array_equal(get(store, "ab", filling(ROWS, calls)), ROWS)
        assert len(calls) == 1, position
        assert path.read_bytes() == whole, position
    assert capsys.readouterr().err.count("is damaged") == FILE


def test_a_fill_that_fails_half_way_leaves_nothing(tmp_path):
    store = ArrayStore(2**20, tmp_path / "files")

    def failing(write):
        write(0, ROWS[:3])
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        get(store, "ab", failing)
    assert kept(store, "ab") == [False]
    assert listing(tmp_path / "files") == []
    np.testing.assert_array_equal(get(store, "ab"), ROWS)
    np.testing.assert_array_equal(get(store, "ab", never), ROWS)


def test_a_process_killed_half_way_harms_nothing(tmp_path):
    folder, fills = tmp_path / "files", tmp_path / "fills"
    with start(folder, fills, 1) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["asking\n", "filling\n"]
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    part = f".ab.states.{process.pid}.part"
    assert listing(folder) == [part]
    assert (folder / part).stat().st_size > 0

    rows = np.full((1000, 1000), 2, np.float32)
    np.testing.assert_array_equal(get(ArrayStore(2**30, folder), "ab", rows=rows), rows)
    assert listing(folder) == ["ab.states"]


def test_of_processes_that_ask_at_once_one_makes_it(tmp_path):
    folder, fills = tmp_path / "files", tmp_path / "fills"
    found = f"memmap (1000, 1000) {1.0} {1.0}\n"
    with start(folder, fills, 1) as first, contextlib.ExitStack() as stack:
        assert first.stdout is not None
        assert [first.stdout.readline() for _ in range(2)] == ["asking\n", "filling\n"]
        # They would write other values, and fill at once: their input has ended.
        others = [stack.enter_context(start(folder, fills, value)) for value in (2, 3)]
        for other in others:
            assert other.stdin is not None
            assert other.stdout is not None
            other.stdin.close()
            assert other.stdout.readline() == "asking\n"
            assert other.stderr is not None
            assert other.stderr.readline() == (
                f"waiting for another process that computes {folder / 'ab.states'}\n"
            )
        assert first.stdin is not None
        first.stdin.close()
        assert first.stdout.read() == found
        assert [other.stdout.read() for other in others if other.stdout] == [found] * 2
    assert [process.returncode for process in (first, *others)] == [0, 0, 0]
    assert fills.read_text() == f"{first.pid}\n"
    assert listing(folder) == ["ab.states"]


@pytest.mark.parametrize("below", ["", "further/down"])
def test_a_folder_that_cannot_be_made_is_told_with_a_remedy(below, tmp_path):
    (tmp_path / "taken").write_text("a file")
    folder = tmp_path / "taken" / below
    with pytest.raises(UserError) as caught:
        get(ArrayStore(2**20, folder), "ab", never)
    message = str(caught.value)
    assert message.startswith(f"activations can't be kept in {folder} (")
    assert message.endswith(
        "): make room or access, name another --cache-folder, or use --no-prefix-cache"
    )
    assert len(message.splitlines()) == 1
    assert (tmp_path / "taken").read_text() == "a file"


def test_a_folder_without_access_is_told_with_a_remedy(tmp_path):
    """A folder in the place of the lock: what keeps everyone out, root included."""
    (tmp_path / ".ab.states.lock").mkdir()
    with pytest.raises(UserError, match=r"\(Is a directory\): make room or access, name another"):
        get(ArrayStore(2**20, tmp_path), "ab", never)


def test_a_disk_without_writes_is_read_from_and_else_told(small_disk):
    disk = small_disk(1)
    get(ArrayStore(2**20, disk), "ab")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    store = ArrayStore(2**20, disk)
    np.testing.assert_array_equal(get(store, "ab", never), ROWS)
    with pytest.raises(UserError) as caught:
        get(store, "cd", never)
    assert str(caught.value) == (
        f"activations can't be kept in {disk} (Read-only file system): make room or access, "
        "name another --cache-folder, or use --no-prefix-cache"
    )
    assert listing(disk) == ["ab.states"]


def test_a_folder_in_the_place_of_a_file_is_told(tmp_path):
    (tmp_path / "ab.states").mkdir()
    with pytest.raises(UserError, match=r"^activations can't be kept in .* \(Is a directory\): "):
        get(ArrayStore(2**20, tmp_path), "ab", never)


def test_more_than_the_disk_has_is_told_before_anything_is_computed(tmp_path):
    store = ArrayStore(2**62, tmp_path)
    words = (
        rf"^{tmp_path} has [\d.]+ [GT]iB free, activations need 1024\.0 TiB: make room, name "
        r"another --cache-folder, lower --max-length, or use --no-prefix-cache$"
    )
    with pytest.raises(UserError, match=words):
        store.make("ab", (2**40, 256), "float32", never)
    assert listing(tmp_path) == []


LIMITED = """
import resource
import signal
import sys
from pathlib import Path
import numpy as np
from mtl_jax.core.errors import UserError
from mtl_jax.training.cache.array_store import ArrayStore

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
store = ArrayStore(2**30, Path(sys.argv[1]))
block = np.ones((int(sys.argv[2]), 1000), np.float32)

def fill(write):
    for start in range(0, 1000, len(block)):
        write(start, block)
    return 0.5

try:
    store.make("ab", (1000, 1000), "float32", fill)
except UserError as error:
    print(error)
print(store.make("cd", (100, 1000), "float32", lambda write: write(0, block[:100]) or 0.5).shape)
"""


@pytest.mark.parametrize("rows", [100, 1000])
def test_a_write_that_fails_is_told_and_leaves_no_file(rows, tmp_path):
    """A file of this process may have a mebibyte: writing more is an error of the system."""
    done = forked.run(
        [sys.executable, "-c", LIMITED, str(tmp_path), str(rows)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        f"activations can't be kept in {tmp_path} (File too large): make room or access, "
        "name another --cache-folder, or use --no-prefix-cache",
        "(100, 1000)",
    ]
    assert listing(tmp_path) == ["cd.states"]


def test_a_disk_that_fills_meanwhile_is_told_and_left_as_it_was(small_disk):
    disk = small_disk(1)
    rows = np.ones((150, 1000), np.float32)
    get(ArrayStore(2**30, disk), "ab", rows=rows[:50])

    def while_another_fills_the_disk(write):
        free = os.statvfs(disk)
        (disk / "filler").write_bytes(bytes(free.f_bavail * free.f_frsize - 300_000))
        return filling(rows)(write)

    with pytest.raises(UserError, match=r"\(No space left on device\): make room or access, "):
        get(ArrayStore(2**30, disk), "cd", while_another_fills_the_disk, rows)
    names = ["ab.states", "filler"]
    assert listing(disk) == names
    (disk / "filler").unlink()
    np.testing.assert_array_equal(get(ArrayStore(2**30, disk), "cd", rows=rows), rows)
    get(ArrayStore(2**30, disk), "ab", never, rows[:50])


def test_more_than_the_budget_is_told(tmp_path):
    get(ArrayStore(2**20, tmp_path), "ab")
    with pytest.raises(UserError) as caught:
        ArrayStore(2**29, tmp_path).make("cd", (2**18, 1024), "float32", never)
    assert str(caught.value) == (
        "activations of 1.0 GiB exceed --cache-size (512.0 MiB): raise it, lower --max-length, or "
        "use --no-prefix-cache"
    )
    # Nothing made room for what would not have fitted.
    assert kept(ArrayStore(0, tmp_path), "ab") == [True]


def test_the_budget_counts_every_byte(tmp_path):
    with pytest.raises(UserError, match="exceed --cache-size"):
        get(ArrayStore(FILE - 1, tmp_path), "ab", never)
    get(ArrayStore(FILE, tmp_path), "ab")
    assert (tmp_path / "ab.states").stat().st_size == FILE


def used_at(folder, *keys):
    """Sets when the files were last used: in that order, long ago."""
    for second, key in enumerate(keys):
        os.utime(folder / f"{key}.states", (second, second))


def test_the_files_used_longest_ago_make_room(tmp_path):
    store = ArrayStore(3 * FILE, tmp_path)
    (tmp_path / "mine.txt").write_text("not of the store")
    for key in ("aa", "bb", "cc"):
        get(store, key)
    used_at(tmp_path, "aa", "bb", "cc")
    held = get(store, "bb", never)
    get(store, "aa", never)
    used_at(tmp_path, "cc", "bb", "aa")
    get(store, "dd")
    assert kept(store, "aa", "bb", "cc", "dd") == [True, True, False, True]
    rows = np.concatenate([ROWS, ROWS])
    get(store, "ee", rows=rows)  # as large as two, but for a digest
    assert kept(store, "aa", "bb", "dd", "ee") == [False, False, True, True]
    # Whoever has an array keeps it.
    np.testing.assert_array_equal(held, ROWS)
    assert (tmp_path / "mine.txt").read_text() == "not of the store"


def test_a_file_that_is_found_counts_as_used(tmp_path):
    store = ArrayStore(2 * FILE, tmp_path)
    for key in ("aa", "bb"):
        get(store, key)
    used_at(tmp_path, "aa", "bb")
    get(store, "aa", never)
    get(store, "cc")
    assert kept(store, "aa", "bb", "cc") == [True, False, True]


class User:
    """Something that uses what it has got for as long as it lives."""


@pytest.mark.parametrize("lets_go", ["ends", "releases"])
def test_files_in_use_make_no_room_and_too_small_a_budget_is_told(lets_go, tmp_path):
    store, user = ArrayStore(2 * FILE, tmp_path), User()
    get(store, "aa", user=user)
    get(store, "bb")
    get(store, "cc", user=user)
    used_at(tmp_path, "aa", "cc")
    names = ["aa.states", "cc.states"]
    assert listing(tmp_path) == names
    with pytest.raises(UserError) as caught:
        get(store, "dd", never, user=user)
    assert str(caught.value) == (
        f"activations of {FILE} B and {2 * FILE} B that this run uses already exceed "
        f"--cache-size ({2 * FILE} B): raise it, lower --max-length, or use --no-prefix-cache"
    )
    assert listing(tmp_path) == names
    if lets_go == "ends":
        del user, caught
    else:
        store.release(user)
    get(store, "dd")
    assert listing(tmp_path) == ["cc.states", "dd.states"]


def test_a_file_that_another_process_removes_stays_with_those_who_have_it(tmp_path):
    """A map of a file outlives its name."""
    mine = get(ArrayStore(FILE, tmp_path), "ab")
    code = (
        "import sys; from pathlib import Path; import numpy as np; from "
        "mtl_jax.training.cache.array_store import ArrayStore;"
        "ArrayStore(136, Path(sys.argv[1])).make('cd', (6, 4), 'float32',"
        "lambda write: write(0, np.zeros((6, 4), np.float32)) or 0.5)"
    )
    forked.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=True)
    assert listing(tmp_path) == ["cd.states"]
    np.testing.assert_array_equal(mine, ROWS)


def test_files_of_other_versions_count_and_make_room(tmp_path):
    """Whatever is in them: their key will not be asked for again."""
    old = tmp_path / f"{'0' * 64}.states"
    old.write_bytes(bytes(2 * FILE))
    used_at(tmp_path, "0" * 64)
    store = ArrayStore(3 * FILE, tmp_path)
    get(store, "aa")
    assert old.exists()
    get(store, "bb")
    assert listing(tmp_path) == ["aa.states", "bb.states"]


def test_what_another_process_is_writing_takes_its_room(tmp_path):
    store = ArrayStore(3 * FILE, tmp_path)
    for key in ("aa", "bb"):
        get(store, key)
    used_at(tmp_path, "aa", "bb")
    part = tmp_path / ".cc.states.1.part"
    with (tmp_path / ".cc.states.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        part.write_bytes(bytes(FILE))
        get(store, "dd")
        assert part.exists()
    assert kept(store, "aa", "bb", "dd") == [False, True, True]


def test_old_files_make_room_on_a_full_disk(small_disk):
    disk = small_disk(1)
    rows = np.ones((100, 1000), np.float32)
    for key in ("aa", "bb"):
        get(ArrayStore(2**30, disk), key, rows=rows)
    used_at(disk, "aa", "bb")
    np.testing.assert_array_equal(get(ArrayStore(2**30, disk), "cc", rows=rows), rows)
    assert listing(disk) == ["bb.states", "cc.states"]


def test_what_a_killed_process_left_of_another_file_is_removed(tmp_path):
    with start(tmp_path, tmp_path / "fills", 1) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["asking\n", "filling\n"]
        # What is still being made stays.
        get(ArrayStore(2**30, tmp_path), "cd")
        part = f".ab.states.{process.pid}.part"
        assert listing(tmp_path) == sorted([part, "cd.states", "fills"])
        process.send_signal(signal.SIGKILL)
    get(ArrayStore(2**30, tmp_path), "ef")
    assert listing(tmp_path) == ["cd.states", "ef.states", "fills"]
