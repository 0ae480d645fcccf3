"""For tests of files on disk: kill a process between two system calls."""

import os
import signal


def kill_at(count: int, action) -> bool:
    """Run `action` in a child that is killed at its count-th call that changes the disk; True if it completed."""
    child = os.fork()
    if child == 0:
        calls = 0

        def counting(function):
            def call(*arguments, **options):
                nonlocal calls
                calls += 1
                if calls == count:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **options)

            return call

        for name in ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir", "chmod", "open", "write", "pwrite"):
            setattr(os, name, counting(getattr(os, name)))
        try:
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code == 0
