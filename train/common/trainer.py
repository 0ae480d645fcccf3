"""The training loop of language models and tokenizers.

    each step   forward and backward pass of a batch, optimizer step    train_step
                moving average, or the count of bad steps               accept, _skip
                a line of metrics, if due                               log
                evaluation, samples, snapshots, if due                  evaluate_if_due
                a checkpoint, if due                                    save
                stop after Ctrl-C or SIGTERM                            stopped
    at the end  last checkpoint, the finished model                     finish

A subclass defines these methods: train/lm/trainer.py, train/tokenizer/trainer.py.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from ..distributed.process_group import ProcessGroup, TrainingFailed
from .checkpoint import Checkpoints
from .metrics import Metrics
from .progress import Progress
from .run_state import RunCounters
from .signals import StopRequest


class LoopSettings(Protocol):
    """Config fields that the loop reads."""

    @property
    def log_every(self) -> int: ...
    @property
    def save_every(self) -> int | None: ...
    @property
    def max_consecutive_bad(self) -> int: ...


class StepReport(Protocol):
    """What the loop must know of a step, the same in every process."""

    @property
    def skipped(self) -> bool:
        """The loss or its gradient was not finite; nothing changed."""
        ...

    @property
    def stopping(self) -> bool:
        """Some process was asked to stop."""
        ...


Report = TypeVar("Report", bound=StepReport)
State = TypeVar("State", bound=RunCounters)


class Trainer(ABC, Generic[Report, State]):
    """One run in one process.

    Args:
        out: folder of the run.
        settings: intervals of logging and saving. total_steps: at the end of the run.
        state: of a new run; a subclass replaces it when it resumes.
        command: that started the run, for the message on how to resume.
        show: report on stderr; for the first process only.
    """

    advice: str
    """What to do about bad steps, for the message that ends the run."""

    def __init__(
        self,
        out: Path,
        world: ProcessGroup,
        settings: LoopSettings,
        total_steps: int,
        checkpoints: Checkpoints,
        state: State,
        command: str,
        show: bool,
    ):
        self.out, self.world, self.command, self.show = out, world, command, show
        self.loop, self.total_steps = settings, total_steps
        self.checkpoints, self.state = checkpoints, state
        self.is_best = False
        """Whether the current weights are among the best and should be saved."""
        self.metrics: Metrics | None = None
        self.progress = Progress(total_steps, 0, show=False)

    def run(self) -> bool:
        """Train to the end or until a signal.

        Returns:
            True when finished, False if stopped by Ctrl-C or SIGTERM after saving.
        Raises:
            TrainingFailed: non-finite losses, `max_consecutive_bad` times in a row.
        """
        if self.world.is_first:
            self.out.mkdir(parents=True, exist_ok=True)
            self.open_folder()
            self.metrics = Metrics(self.out, self.state.step)
        self.progress = Progress(self.total_steps, self.state.step, show=self.show)
        self.introduce()
        self._begun, self._first_step = time.monotonic(), self.state.step
        try:
            with StopRequest() as stop:
                finished = self.train(stop)
                if finished:
                    self.finish()
                return finished
        finally:
            self.progress.close()
            if self.metrics is not None:
                self.metrics.close()

    def train(self, stop: StopRequest) -> bool:
        """Train to the end; False if stopped by a signal."""
        return self.train_until(self.total_steps, stop)

    def train_until(self, end: int, stop: StopRequest) -> bool:
        """Train until `end` steps are finished; False if stopped by a signal, after saving."""
        state = self.state
        while state.step < end:
            report = self.train_step(stop)
            state.step += 1
            self.progress.advance()
            if report.skipped:
                self._skip(report)
            else:
                state.consecutive_bad = 0
                self.accept(report)
            last = state.step == self.total_steps
            if self.is_due(self.loop.log_every) or state.step == end:
                self.log(report)
            self.evaluate_if_due(last)
            if last:
                break  # `finish` saves
            if report.stopping or self.is_best or self.is_due(self.loop.save_every):
                self.save()
            if report.stopping:
                self.progress.note(self.stopped())
                return False
        return True

    def save(self) -> None:
        """Write a checkpoint; all processes call this."""
        write, num_bytes = self.collect()
        self.checkpoints.save(self.state.step, write, num_bytes)
        self.is_best = False

    def is_due(self, every: int | None) -> bool:
        """Whether something that happens every so many steps happens after this one; None or 0: never."""
        return bool(every) and self.state.step % every == 0

    @property
    def seconds(self) -> float:
        """Time since the run was started or resumed."""
        return time.monotonic() - self._begun

    @property
    def seconds_left(self) -> float:
        """Estimated time to the end of the run."""
        return (self.total_steps - self.state.step) * self.seconds / max(1, self.state.step - self._first_step)

    def write_metrics(self, split: str, values: dict[str, Any]) -> None:
        """Write a line of metrics.jsonl, in the first process."""
        if self.metrics is not None:
            self.metrics.write(self.state.step, split, values)

    def _skip(self, report: Report) -> None:
        """Record a bad step, and end the run after too many in a row."""
        state, limit = self.state, self.loop.max_consecutive_bad
        state.skipped += 1
        state.consecutive_bad += 1
        if self.metrics is not None:
            self.write_metrics("bad", self.describe_bad(report))
        self.progress.note(
            f"step {state.step}: the loss or its gradient is not finite; skipped ({state.consecutive_bad} of {limit})"
        )
        if state.consecutive_bad >= limit:
            raise TrainingFailed(
                f"the loss or its gradient was not finite in {limit} steps in a row, up to step {state.step}; the "
                f"weights are those of step {state.step - limit}; {self.advice}"
            )

    # Defined by a trainer

    @abstractmethod
    def open_folder(self) -> None:
        """Write the resolved config into the folder of the run; only the first process calls this."""

    @abstractmethod
    def introduce(self) -> None:
        """Note on stderr what is trained."""

    @abstractmethod
    def train_step(self, stop: StopRequest) -> Report:
        """Run step `state.step`, the first is 0; its report says whether any process was asked to stop."""

    @abstractmethod
    def accept(self, report: Report) -> None:
        """Update the moving average after a good step."""

    @abstractmethod
    def describe_bad(self, report: Report) -> dict[str, Any]:
        """The line of metrics.jsonl about a bad step."""

    @abstractmethod
    def log(self, report: Report) -> None:
        """Report the losses of a step."""

    @abstractmethod
    def evaluate_if_due(self, last: bool) -> None:
        """Evaluation, samples and snapshots between steps. last: this was the last step of the run."""

    @abstractmethod
    def collect(self) -> tuple[Callable[[Path], None], int]:
        """Collect the state of all processes; all call this.

        Returns:
            A function that writes it into a checkpoint's folder, called in the first process, and its size in bytes.
        """

    @abstractmethod
    def stopped(self) -> str:
        """The note after a stop by a signal: how to go on."""

    @abstractmethod
    def finish(self) -> None:
        """Save, and write the finished model; all processes call this."""
