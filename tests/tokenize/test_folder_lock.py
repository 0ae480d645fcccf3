"""One writer for a folder: the second is refused by name, and a lock never outlives its holder."""

import errno
import os
import signal
import subprocess
import sys
from contextlib import ExitStack, suppress

import pytest

from tessera.configs.files import write_atomic
from tessera.configs.folder_lock import LOCK_FILE, FolderInUse, is_empty, lock_folder

HOLD = """
import os, sys, time
from tessera.configs.folder_lock import lock_folder
with lock_folder(sys.argv[1], "tessera holds"):
    if "fork" in sys.argv:
        ready, done = os.pipe()
        if os.fork() == 0:
            os.write(done, b"x")
            time.sleep(60)
        os.read(ready, 1)  # the child runs, and has closed what it inherited
    if "start" in sys.argv:
        import subprocess
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False)
        print(child.pid)
    print("held", flush=True)
    time.sleep(60)
"""


def holder(folder, *how: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), *how], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    while process.stdout.readline().strip() != "held":
        assert process.poll() is None
    return process


@pytest.mark.parametrize("how", ["alone", "fork", "start"])
def test_the_second_is_refused_by_name_until_the_first_is_dead(tmp_path, how):
    """Also where children of the dead one live on, which have inherited its open files."""
    process = holder(tmp_path, how)
    try:
        with (
            pytest.raises(
                FolderInUse,
                match=rf"{tmp_path}: another process .*process {process.pid} on \S+ since .*: tessera holds",
            ),
            lock_folder(tmp_path, "tessera"),
        ):
            pass
        process.kill()
        process.wait()
        assert (tmp_path / LOCK_FILE).exists()
        with lock_folder(tmp_path, "tessera"):
            pass
        assert not list(tmp_path.iterdir())
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_a_lock_is_exclusive_within_a_process_and_can_be_taken_again(tmp_path):
    for _ in range(2):
        with lock_folder(tmp_path, "first"):
            assert is_empty(tmp_path)
            with pytest.raises(FolderInUse, match=r"process \d+ on .*: first"), lock_folder(tmp_path, "second"):
                pass
            (tmp_path / "file").touch()
            assert not is_empty(tmp_path)
            (tmp_path / "file").unlink()


def test_a_child_that_ends_does_not_release_the_lock_of_its_parent(tmp_path):
    with ExitStack() as held:
        held.enter_context(lock_folder(tmp_path, "parent"))
        child = os.fork()
        if child == 0:
            held.close()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        with pytest.raises(FolderInUse), lock_folder(tmp_path, "second"):
            pass


def test_a_folder_that_a_refused_command_made_is_gone_again(tmp_path):
    with pytest.raises(ValueError, match="no"), lock_folder(tmp_path / "a" / "b", "x"):
        raise ValueError("no")
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="is not a folder"), lock_folder(tmp_path / "file", "x"):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, capsys, number):
    import fcntl

    def none(handle, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", none)
    with lock_folder(tmp_path, "x"):
        assert not list(tmp_path.iterdir())
    assert f"note: {tmp_path} cannot be locked" in capsys.readouterr().err


def test_what_is_written_into_a_lock_file_by_others_is_not_trusted(tmp_path):
    import fcntl

    for text in (b"\x1b[2Jx", b"[" * 4000, b'{"pid": "\\u001b[31m", "host": 1, "since": [], "purpose": "\\n"}', b""):
        (tmp_path / LOCK_FILE).write_bytes(text)
        with open(tmp_path / LOCK_FILE) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with pytest.raises(FolderInUse) as refused, lock_folder(tmp_path, "x"):
                pass
        assert str(refused.value).isprintable()
    (tmp_path / LOCK_FILE).unlink()
    (tmp_path / LOCK_FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"), lock_folder(tmp_path, "x"):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_many_at_once_take_turns(tmp_path):
    """Holders remove the lock file; nobody may hold a removed one while another holds its successor."""
    script = """
import os, sys
from tessera.configs.folder_lock import FolderInUse, lock_folder
done = 0
while done < 40:
    try:
        with lock_folder(sys.argv[1], "x"):
            handle = os.open(sys.argv[1] + "/inside", os.O_CREAT | os.O_EXCL)
            os.close(handle)
            os.unlink(sys.argv[1] + "/inside")
            done += 1
    except FolderInUse:
        pass
"""
    processes = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path)]) for _ in range(3)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]


def test_leftovers_of_a_kill_are_removed_and_nothing_else(tmp_path):
    child = os.fork()
    if child == 0:

        def dies(part):
            part.write_bytes(b"half")
            (part.parent / ".tmpAbC123").write_bytes(b"half")
            os._exit(9)

        write_atomic(tmp_path / "index.json", dies)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert len(list(tmp_path.iterdir())) == 1  # a folder with both of them
    (tmp_path / "samples" / "step-1").mkdir(parents=True)
    for name in (".tmpAbC123", ".a.png.ab_12xyz.part", "samples/step-1/.0000.png.ab_12xyz.part"):
        (tmp_path / name).write_bytes(b"half")
    kept = ["my.part", ".tmp", ".tmpfile.txt", "samples/.0000.png.ab_12xyz.part", ".hidden", ".part"]
    for name in kept:
        (tmp_path / name).write_bytes(b"mine")
    (tmp_path / ".link.ab_12xyz.part").symlink_to(tmp_path / "my.part")
    with lock_folder(tmp_path, "x", below=("samples/*",)):
        pass
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if not path.is_dir()}
    assert left == {*kept, ".link.ab_12xyz.part"}
