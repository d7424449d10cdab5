"""A machine that runs on a thread of its own, until it is stopped or ends.

Reached from `guest`. Read `pykvm.machine` for what a run is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from pykvm.debug.flight import FlightRecorder
from pykvm.run import RESUMABLE

if TYPE_CHECKING:
    from pykvm.machine import Machine
    from pykvm.outcome import Outcome

STOP_S: Final = 0.1  # before it is told again


class Runner:
    """Runs `machine`. Owned by one thread at a time; `on_end` is called on the runner's, when the
    machine can run no more."""

    def __init__(self, machine: Machine, on_end: Callable[[], None]) -> None:
        self._machine = machine
        self._on_end = on_end
        self.recorder = FlightRecorder()
        self._thread: threading.Thread | None = None
        self._outcome: Outcome | None = None  # of the last run
        self._error: BaseException | None = None

    def start(self) -> None:
        """Let it run, if it does not."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="guest", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        try:
            self._outcome = self._machine.run(tracer=self.recorder)
        except BaseException as error:  # raised by `stop`
            self._error = error
        if self._error is not None or self.ending:
            self._on_end()

    def stop(self) -> None:
        """Let it stand still, or find out how it ended. Raises what its run did."""
        while self._thread is not None:
            self._machine.stop()  # which counts for nothing while the run is about to begin
            self._thread.join(STOP_S)
            if not self._thread.is_alive():
                self._thread = None
        if self._error is not None:
            raise self._error

    @property
    def ending(self) -> str:
        """How the guest ended. Empty while it has not."""
        if self._outcome is None or self._outcome.reason in RESUMABLE:
            return ""
        return f"the guest ended: {self._outcome.reason.value}"

    @property
    def report(self) -> str:
        """What a bad end left."""
        return self._outcome.report if self._outcome is not None else ""
