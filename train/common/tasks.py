"""Which task a training step reads an item of text and audio as, for a model with a text stream.

    speak    the text, then the frames      (synthesis)
    write    the frames, then the text      (recognition)

The choice is a pure function of (seed, draw, item), where draw is the step in training. In evaluation every item is
read as each task.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, model_validator

from ...configs.schema import Config, ConfigError
from ...lm.patterns.text_stream import Task, TextStreamConfig
from .batch_sampler import mix

Share = Annotated[float, Field(ge=0, le=1e6)]


class TasksConfig(Config):
    """How often an item is read as each task, relative to each other."""

    speak: Share = 1.0
    """Synthesis: the frames of a given text."""
    write: Share = 1.0
    """Recognition: the text of given frames."""

    @model_validator(mode="after")
    def _check(self) -> TasksConfig:
        if self.speak + self.write == 0:
            raise ValueError("speak and write are both 0; give one of them a share")
        return self


@dataclass(frozen=True)
class TaskReader:
    """Draws the tasks of the items of a run."""

    config: TasksConfig
    seed: int = 0

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Those with a share."""
        shares: dict[Task, float] = {"speak": self.config.speak, "write": self.config.write}
        return tuple(task for task, share in shares.items() if share)

    def __call__(self, draw: int, item: int) -> Task:
        """The task of an item in step `draw`."""
        config = self.config
        border = config.speak / (config.speak + config.write) * (1 << 32)
        return "speak" if mix(self.seed, 8, draw, item) % (1 << 32) < border else "write"


def task_reader(config: TasksConfig | None, stream: TextStreamConfig, seed: int) -> TaskReader:
    """The reader of a run; without a config all tasks that the model can do have the same share.

    Raises:
        ConfigError: the model is to write, but predicts no text.
    """
    if config is None:
        return TaskReader(TasksConfig(write=float(stream.predict == "text")), seed)
    if config.write and stream.predict != "text":
        raise ConfigError(
            f"data.tasks.write is {config.write}, but lm.text_stream.predict is '{stream.predict}', so the model "
            "predicts no text; "
            "set write: 0, or predict: text"
        )
    return TaskReader(config, seed)
