"""Progress on stderr: a bar in a terminal, otherwise a line now and then; and throughput."""

from __future__ import annotations

import math
import sys
import time

from tqdm import tqdm


class Progress:
    """A progress bar if stderr is a terminal, otherwise occasional lines."""

    def __init__(self, steps: int, done: int, show: bool = True):
        self.steps = steps
        self.show = show
        self.bar = tqdm(
            total=steps, initial=done, unit="step", dynamic_ncols=True, file=sys.stderr, disable=None if show else True
        )

    def advance(self) -> None:
        """Advance by one finished step."""
        self.bar.update()

    def report(self, step: int, text: str, seconds_left: float) -> None:
        """Show the latest losses."""
        if not self.bar.disable:
            self.bar.set_postfix_str(text)
        elif self.show:
            print(f"step {step}/{self.steps}  {text}  {duration(seconds_left)} left", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        if self.show:
            tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        """Close the bar and leave it on screen."""
        self.bar.close()


def duration(seconds: float) -> str:
    """ "1:02:03" or "2:03"; "?" when unknown."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Throughput:
    """Tokens per second since `restart`."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin to count; also after evaluating or saving, which take time but process no tokens."""
        self.tokens, self.begin = 0.0, time.monotonic()

    def add(self, tokens: float) -> None:
        """Count the tokens of a step."""
        self.tokens += tokens

    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / max(1e-9, time.monotonic() - self.begin)
