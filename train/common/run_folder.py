"""The folder of a run: locked by its first process, cleaned of what killed runs left, searched for a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ...configs.folder_lock import lock_folder
from ...configs.printable import say
from ..distributed.process_group import ONE_PROCESS, ProcessGroup, join_world, run_in
from .checkpoint import Checkpoints


@contextmanager
def open_run(
    out: Path,
    device: str,
    *,
    resume: bool,
    command: str,
    below: Sequence[str],
    prepare: Callable[[], None],
    show: bool = True,
) -> Iterator[tuple[ProcessGroup, Path | None]]:
    """Join the processes of a run and lock its folder; every process of a run calls this.

    Args:
        out: folder of the run. device: as in the config.
        resume: search for the newest checkpoint.
        command: command that started the run, for the message to another process that wants the folder.
        below: patterns of folders in `out` that a killed run may have left temporary files in.
        prepare: called in the first process once the folder is locked; it checks that a new run may start there.
    Yields:
        The processes, and the checkpoint to resume from; None without `resume`, or with a note if there is none.
    Raises:
        ValueError: another process trains in `out`.
    """
    world = join_world(device)
    with run_in(world), ExitStack() as held:

        def take() -> None:
            held.enter_context(lock_folder(out, command, below=tuple(below)))
            prepare()
            Checkpoints(out / "steps", ONE_PROCESS, keep_last=1).clean()

        world.together(lambda: take() if world.is_first else None)
        yield world, find_checkpoint(out, world, show) if resume else None


def find_checkpoint(out: Path, world: ProcessGroup, show: bool = True) -> Path | None:
    """The newest good checkpoint of a run; None, with a note, if there is none."""
    checkpoints = Checkpoints(out / "steps", world, keep_last=1)
    found = checkpoints.newest()
    if found is None and show and world.is_first:
        say(f"note: no checkpoint in {checkpoints.folder}, starting from step 0")
    return found
