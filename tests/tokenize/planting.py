"""For test_traps.py: plant a defect for the time of a test, and two ranks without two processes."""

import threading
from contextlib import contextmanager

import torch
from torch import distributed as dist


def around(owner, name, defect):
    """Plant a defect in a function: `owner.name(...)` becomes `defect(function, ...)`.

    Returns what plants it: a function of pytest's monkeypatch.
    """

    def plant(patch):
        function = getattr(owner, name)
        patch.setattr(owner, name, lambda *arguments, **named: defect(function, *arguments, **named))

    return plant


class Overlaid:
    """A module in which some names have other values."""

    def __init__(self, module, **others):
        self.__dict__.update(others, _module=module)

    def __getattr__(self, name):
        return getattr(self._module, name)


class TwoRanks:
    """torch.distributed as two threads see it: a collective waits for the other rank, and says so if that is gone."""

    def __init__(self):
        self.changed = threading.Condition()
        self.waiting, self.calls, self.gone = [], 0, 0
        self.total = torch.zeros(0)
        self.rank = threading.local()

    def all_reduce(self, tensor):
        """The sum over both, in place."""
        with self.changed:
            before = self.calls
            self.waiting.append(tensor.clone())
            if len(self.waiting) == 2:
                assert self.waiting[0].shape == self.waiting[1].shape, "the ranks reduce different things"
                self.total, self.waiting = self.waiting[0] + self.waiting[1], []
                self.calls += 1
                self.changed.notify_all()
            else:
                self.changed.wait_for(lambda: self.calls > before or self.gone, timeout=60)
                assert self.calls > before, "a rank waits for the other, which never comes"
            tensor.copy_(self.total)

    @contextmanager
    def in_place_of_processes(self, patch):
        """torch.distributed answers for a group of two, until the end."""
        with patch.context() as inside:
            inside.setattr(dist, "is_available", lambda: True)
            inside.setattr(dist, "is_initialized", lambda: True)
            inside.setattr(dist, "get_world_size", lambda: 2)
            inside.setattr(dist, "get_rank", lambda: self.rank.number)
            inside.setattr(dist, "all_reduce", self.all_reduce)
            yield

    def run(self, patch, work):
        """work(rank) of both at the same time -> their results; the first error of either is raised."""
        results, errors = [None, None], []

        def as_rank(number):
            self.rank.number = number
            try:
                results[number] = work(number)
            except BaseException as error:
                errors.append(error)
            with self.changed:
                self.gone += 1
                self.changed.notify_all()

        with self.in_place_of_processes(patch):
            threads = [threading.Thread(target=as_rank, args=(number,)) for number in (0, 1)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        if errors:
            raise errors[0]
        return results
