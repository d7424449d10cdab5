"""What makes ``pykvm boot`` and ``pykvm restore`` take a snapshot: a key, the guest, its console.

Reached from `cli_boot` and `cli_restore`. A snapshot that fails is told, and the guest goes on.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from pykvm.errors import ConfigError, PykvmError
from pykvm.snapshot.save import check_target

if TYPE_CHECKING:
    from pykvm.machine import Machine

FOLDER: Final = "pykvm-snapshot"  # of Ctrl-A s, when --snapshot names none
CONSOLE: Final = "console:"


class ConsoleTrigger:
    """Calls `then` once, when the console has said what `pattern` matches within a line."""

    def __init__(self, pattern: re.Pattern[bytes], then: Callable[[], None]) -> None:
        self._pattern = pattern
        self._then: Callable[[], None] | None = then
        self._line_start = 0  # everything before it was looked at

    def feed(self, log: bytearray, dropped: int = 0) -> None:
        """Look at what `log` has gained; `dropped` bytes were cut from its front."""
        self._line_start = max(0, self._line_start - dropped)
        new = bytes(log[self._line_start :])
        self._line_start += new.rfind(b"\n") + 1
        if self._then is not None and self._pattern.search(new):
            then, self._then = self._then, None
            then()


def arm(
    machine: Machine,
    folder: str | None,
    at: list[tuple[str, str]],
    base: str | None = None,
    *,
    disks: bool = False,
) -> None:
    """Take snapshots of `machine`: to `folder` (``--snapshot``) when the guest or Ctrl-A s asks; to
    each folder of `at` when what is before it comes true (``--snapshot-at``). They are differential
    when a `base` is given (``--diff``), but for the one that goes there itself. With `disks` they
    have copies of those that the guest may write to (``--snapshot-disks``)."""

    targets = map(os.path.realpath, [folder or FOLDER, *(target for _, target in at)])
    base = base and os.path.realpath(base)
    if base is not None and not machine.lineage and base not in targets:
        raise ConfigError(
            f"--diff: nothing saves to {base} before, and a machine that boots stands on no "
            f"snapshot; add --snapshot-at 'console:REGEX' {base}"
        )

    def taking(target: str, *, check: bool = True) -> Callable[[], None]:
        if check:
            check_target(target)
        own = None if os.path.realpath(target) == base else base
        return lambda: take(machine, target, own, disks=disks)

    machine.on_snapshot_key = taking(folder) if folder else taking(FOLDER, check=False)
    if folder:
        machine.on_snapshot_request = taking(folder)
    for condition, target in at:
        pattern = compile_pattern(condition, "--snapshot-at", "'console:REGEX', then the folder")
        then = taking(target)
        trigger = ConsoleTrigger(pattern, lambda then=then: machine.requests.add(then))  # type: ignore[misc]
        machine.console_triggers.append(trigger)


def take(machine: Machine, folder: str, base: str | None = None, *, disks: bool = False) -> None:
    """Save `machine`, and say so."""
    try:
        machine.snapshot(folder, base=base, disks=disks)
    except PykvmError as error:
        print(f"pykvm: {error}", file=sys.stderr)
    else:
        print(f"pykvm: saved to {folder}; 'pykvm restore {folder}' goes on there", file=sys.stderr)


def compile_pattern(condition: str, option: str, form: str) -> re.Pattern[bytes]:
    """What a line of the console must match. Raises `ConfigError`, which says the right `form`."""
    if not condition.startswith(CONSOLE):
        raise ConfigError(f"{option}: {condition!r} is unknown; write {form}")
    try:
        return re.compile(condition.removeprefix(CONSOLE).encode(), re.MULTILINE)
    except re.error as error:
        raise ConfigError(f"{option}: {condition!r}: {error}") from None
