"""A machine's moments: at rest, saved, forked, gone back to. These are methods of `Machine`.

Reached from users' code, as ``vm.snapshot(folder)``. Nothing here is needed to boot, so that all
of it comes when it is first called. Read docs/snapshots.md, and `snapshot` for how it is done.
"""

from __future__ import annotations

from pykvm.errors import PykvmError
from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from typing import Any, TypeVar

    from pykvm.checkpoints import Checkpoints, Found, Predicate
    from pykvm.machine import Machine

    T = TypeVar("T")


def at_rest(machine: Machine, call: Callable[[], T]) -> T:
    """What `call` returns, made while the machine is at rest: no vCPU runs, no device serves.

    Any thread but a vCPU's, where a device's code runs: that one adds to `requests`.
    """
    from pykvm.snapshot.capture import at_rest

    def here() -> T:
        with at_rest(machine):
            return call()

    return machine.requests.answer(here)


def snapshot(machine: Machine, folder: str | os.PathLike[str], **options: Any) -> None:
    """Save the machine as it is now, running or not, and let it go on: see `snapshot.save`.

    From a vCPU's thread, add it to `requests`. Raises `ConfigError`, and `HostError` for a
    full disk.
    """
    from pykvm.snapshot.save import Save

    with Save(folder, **options) as save:
        machine.at_rest(lambda: save.capture(machine))
        save.commit()


def fork(machine: Machine, **changes: Any) -> Machine:
    """A machine of its own that goes on where this one is now; `changes` to its configuration.

    It costs no copy of the memory: both share what neither has written. Many forks from one
    moment share a template, which this takes when the machine has changed since the last.
    """
    from pykvm.snapshot.template import template_of

    return template_of(machine).machine(**changes)


def reset(machine: Machine) -> None:
    """Go back, in place, to where the last `fork` was taken from, or this machine began."""
    from pykvm.snapshot.reset import reset

    reset(machine)


def checkpoints(machine: Machine, every: float | str | None = None, **limits: int) -> Checkpoints:
    """Take checkpoints from now on, the first at once; those there were are forgotten.

    `every`: so many seconds that it runs, or "console:REGEX"; `limits`: `count` and `size`
    (bytes) of those that are kept. See `checkpoints`.
    """
    from pykvm.checkpoints import Checkpoints

    if machine.checkpointing is not None:
        machine.checkpointing.close()
    machine.checkpointing = Checkpoints(machine, every, **limits)
    return machine.checkpointing


def bisect(machine: Machine, predicate: Predicate, **changes: Any) -> Found:
    """Where ``predicate(vm)`` began to hold: the last checkpoint at which it does not, with a
    machine there that is ready to run, and the next one, at which it does.

    It is asked of machines that are made for it, with `changes` to the configuration (`disks`),
    about log2(n) times; as with git, it should hold for good once it does. It must hold now.
    """
    if machine.checkpointing is None:
        raise PykvmError("bisect: there are no checkpoints; begin with vm.checkpoints(every=1)")
    return machine.checkpointing.bisect(predicate, **changes)
