"""Copied as sitecustomize.py by test_failures.py: makes one process of a run fail in the way that FAIL names."""

import os
import signal


def main(how: str) -> None:
    from tessera.train.lm import trainer
    from tessera.train.lm.dataset import CodesDataset

    if how == "disk":
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    elif how in ("shard", "kill", "interrupt"):
        batch = CodesDataset.batch

        def damaged(self, rows, draw=0):
            if draw == 2:
                if how == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise KeyboardInterrupt if how == "interrupt" else ValueError("00000.safetensors: damaged")
            return batch(self, rows, draw)

        CodesDataset.batch = damaged
    elif how == "evaluate":

        def fails(*given):
            raise MemoryError("no memory for an evaluation")

        trainer.evaluate_tasks = fails
    else:
        raise AssertionError(how)


if os.environ.get("FAIL") and os.environ.get("RANK") == os.environ["FAIL"].split()[0]:
    main(os.environ["FAIL"].split()[1])
