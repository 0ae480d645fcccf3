"""Compiled kernels are loaded from files that only this user can have written, and only whole ones."""

import os
import shutil
import stat
import subprocess
import sys

import pytest

from tessera.lm.kernels import cpu_gemv, kernel_cache
from tessera.lm.kernels.kernel_cache import cache_folder, load_code, private_folder, read_cached, write_cached

needs_compiler = pytest.mark.skipif(bool(cpu_gemv.why_not()), reason=cpu_gemv.why_not() or "-")

OTHER_USER = 12345
COMPILER = next((path for name in ("gcc", "clang", "cc") if (path := cpu_gemv._find_compiler(name))), "")


@pytest.fixture(scope="module")
def compiled():
    """The library as every program gets it: from the user's cache, compiled if it is not there yet."""
    if cpu_gemv.why_not():
        pytest.skip(cpu_gemv.why_not())
    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_gemv, "load_code", lambda content, name: made.append(content) or load_code(content, name))
        cpu_gemv._load_library()
    return made[-1]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of a cache that holds nothing yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir(mode=0o700)
    return tmp_path / "cache" / "tessera"


def count_compilations(monkeypatch, content):
    made = []

    def compile_(compiler):
        made.append(compiler)
        return content

    monkeypatch.setattr(cpu_gemv, "_compile", compile_)
    return made


def test_round_trip(cache):
    assert cache_folder() == cache
    with pytest.raises(FileNotFoundError):
        read_cached(cache, "x")
    write_cached(cache, "x", b"content")
    assert read_cached(cache, "x") == b"content" and read_cached(cache, "y") is None
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700 and os.listdir(cache) == ["x"]
    assert stat.S_IMODE((cache / "x").stat().st_mode) == 0o600
    write_cached(cache, "x", b"")
    assert read_cached(cache, "x") == b""


def test_every_cut_and_every_flipped_bit_is_found(cache):
    write_cached(cache, "x", b"content")
    whole = (cache / "x").read_bytes()
    for size in range(len(whole)):
        (cache / "x").write_bytes(whole[:size])
        assert read_cached(cache, "x") is None
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        (cache / "x").write_bytes(damaged)
        assert read_cached(cache, "x") is None


def other_owner(monkeypatch, path):
    """As if the path belonged to another user."""
    real = os.fstat
    inode = path.stat().st_ino

    def fstat(handle):
        found = real(handle)
        return os.stat_result((*found[:4], OTHER_USER, *found[5:10])) if found.st_ino == inode else found

    monkeypatch.setattr(os, "fstat", fstat)


PLANTED = {
    "file writable by a group": lambda cache, _: (cache / "x").chmod(0o620),
    "file writable by all": lambda cache, _: (cache / "x").chmod(0o602),
    "file of another user": lambda cache, patch: other_owner(patch, cache / "x"),
    "folder of another user": lambda cache, patch: other_owner(patch, cache),
    "folder above of another user": lambda cache, patch: other_owner(patch, cache.parent),
    "folder above writable by all": lambda cache, _: cache.parent.chmod(0o777),
    "folder above writable by a group": lambda cache, _: cache.parent.chmod(0o770),
    "link to a file": lambda cache, _: (cache / "x").rename(cache / "y") and os.symlink(cache / "y", cache / "x"),
    "link to a folder": lambda cache, _: os.symlink(cache.rename(cache.with_name("z")), cache),
    "link above": lambda cache, _: os.symlink(cache.parent.rename(cache.parent.with_name("z")), cache.parent),
    "pipe": lambda cache, _: (cache / "x").unlink() or os.mkfifo(cache / "x"),
    "folder in its place": lambda cache, _: (cache / "x").unlink() or (cache / "x").mkdir(),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_others_can_change_is_not_read(cache, monkeypatch, name):
    write_cached(cache, "x", b"content")
    PLANTED[name](cache, monkeypatch)
    with pytest.raises(OSError):
        read_cached(cache, "x")


def test_a_loose_folder_is_tightened(cache):
    write_cached(cache, "x", b"content")
    cache.chmod(0o777)
    assert read_cached(cache, "x") == b"content"
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


def test_relative_paths_are_ignored(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("cache", ".", "../x", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_folder() == tmp_path / ".cache" / "tessera"
    monkeypatch.setenv("HOME", "home")
    assert cache_folder() is None
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: f"./{name}")
    assert cpu_gemv._find_compiler("gcc") is None


@pytest.mark.slow
@needs_compiler
def test_planted_damaged_and_foreign_libraries_are_compiled_again(cache, monkeypatch, compiled):
    made = count_compilations(monkeypatch, compiled)
    cpu_gemv._load_library()
    cpu_gemv._load_library()
    assert len(made) == 1
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], whole[:4096] + bytes([whole[4096] ^ 1]) + whole[4097:]):
        path.write_bytes(content)
        cpu_gemv._load_library()
        assert path.read_bytes() == whole
    assert len(made) == 4
    write_cached(cache, path.name, b"no library")
    cpu_gemv._load_library()
    assert len(made) == 5 and path.read_bytes() == whole
    path.chmod(0o666)
    cpu_gemv._load_library()
    assert len(made) == 6 and stat.S_IMODE(path.stat().st_mode) == 0o600


@needs_compiler
def test_a_library_without_a_function_is_compiled_again(cache, monkeypatch, compiled, tmp_path):
    made = count_compilations(monkeypatch, compiled)
    cpu_gemv._load_library()
    (tmp_path / "x.c").write_text("int gemv_linear(void) { return 0; }\n")
    subprocess.run([COMPILER, "-shared", "-fPIC", str(tmp_path / "x.c"), "-o", str(tmp_path / "x.so")], check=True)
    (path,) = cache.iterdir()
    write_cached(cache, path.name, (tmp_path / "x.so").read_bytes())
    assert hasattr(cpu_gemv._load_library(), "gemv_stack") and len(made) == 2


@needs_compiler
@pytest.mark.parametrize("where", ["full", "read-only", "no home", "no temporary folder"])
def test_without_a_place_for_it(cache, monkeypatch, compiled, where):
    made = count_compilations(monkeypatch, compiled)

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    if where == "full":
        monkeypatch.setattr(os, "fsync", fail)
    elif where == "read-only":
        monkeypatch.setattr(os, "mkdir", fail)
    elif where == "no home":
        monkeypatch.setattr(cpu_gemv, "cache_folder", lambda: None)
    else:
        monkeypatch.setattr(kernel_cache.tempfile, "gettempdir", fail)
    assert hasattr(cpu_gemv._load_library(), "gemv_stack") and hasattr(cpu_gemv._load_library(), "gemv_stack")
    assert len(made) == (1 if where == "no temporary folder" else 2)
    assert not list(cache.glob("*")) or where == "no temporary folder"


def test_private_folders(cache, monkeypatch, tmp_path):
    with private_folder() as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700 and not list(folder.iterdir())
    assert not folder.exists()
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)  # and not sticky: another user may rename what is in it
    monkeypatch.setattr(kernel_cache.tempfile, "gettempdir", lambda: str(shared))
    with private_folder() as folder:
        assert folder.parent == cache


@needs_compiler
def test_code_is_loaded_without_memory_files_too(monkeypatch, compiled):
    monkeypatch.delattr(os, "memfd_create", raising=False)
    assert hasattr(load_code(compiled, "x.so"), "gemv_linear")


@pytest.mark.slow
@needs_compiler
def test_two_processes_at_once(cache):
    code = "from tessera.lm.kernels import cpu_gemv; assert not cpu_gemv.why_not(), cpu_gemv.why_not()"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    (path,) = cache.iterdir()
    assert read_cached(cache, path.name)
