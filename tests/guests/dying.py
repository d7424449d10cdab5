"""For scripts that a test runs in a process of their own, to see what is left when it is killed."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
from collections.abc import Callable

STEPS = ("mkdir", "truncate", "pwrite", "fsync", "fchmod", "rename")  # of a snapshot, in `os`


def die_at_step(step: int, *more: str) -> None:
    """Let this process kill itself as it begins that step of taking a snapshot, the first being 1;
    `more` functions of `os` count, too."""
    count = itertools.count(1)

    def dying(function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            if next(count) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    for name in (*STEPS, *more):
        setattr(os, name, dying(getattr(os, name)))
    shutil.rmtree = dying(shutil.rmtree)
