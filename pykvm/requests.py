"""Calls that other threads want made by the thread that runs the machine.

Reached from `machine`, which owns one `Requests`: snapshots, forks and what a guest asks for come
this way. The thread of `Machine.run` finds them by `wake_fd`, which it polls (`watch`).
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable

from pykvm.lean import TYPE_CHECKING
from pykvm.parking import Parking

if TYPE_CHECKING:
    from concurrent.futures import Future
    from typing import TypeVar

    T = TypeVar("T")


class Requests:
    """A queue of calls, and the eventfd that wakes the thread that makes them."""

    def __init__(self, parking: Parking) -> None:
        self._parking = parking
        self.wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._calls: deque[tuple[Callable[[], None], bool]] = deque()
        self._runner: int | None = None  # the thread of `run`
        self._lock = threading.RLock()  # _runner; reentrant: a signal handler may ask

    def begin(self) -> None:
        """This thread makes the calls from now on."""
        self._runner = threading.get_ident()

    def end(self) -> None:
        """Make the calls that are left; then no thread does."""
        with self._lock:
            self._runner = None
        self.serve()

    def wake(self) -> None:
        """Have the running thread look up. Any thread, and a signal handler."""
        os.eventfd_write(self.wake_fd, 1)

    def add(self, call: Callable[[], None], *, pause: bool = False) -> None:
        """Have `call` made. Any thread. With `pause` the guest does not go on before."""
        self._calls.append((call, pause))
        if pause:
            self._parking.begin_pause()
        self.wake()

    def serve(self) -> None:
        """Make the calls that were added."""
        self._clear()
        while self._calls:
            call, pause = self._calls.popleft()
            try:
                call()
            finally:
                if pause:
                    self._parking.end_pause()

    def answer(self, call: Callable[[], T]) -> T:
        """What `call` returns, made by the thread that runs the machine, or here if none does."""
        with self._lock:  # `end` must not come in between
            answer = self._ask(call)
        return call() if answer is None else answer.result()

    def _ask(self, call: Callable[[], T]) -> Future[T] | None:
        if self._runner in (None, threading.get_ident()):
            return None
        from concurrent.futures import Future

        answer: Future[T] = Future()

        def give() -> None:
            try:
                answer.set_result(call())
            except BaseException as error:  # raised where it was asked for
                answer.set_exception(error)

        self.add(give)
        return answer

    def _clear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.wake_fd)

    def close(self) -> None:
        """Close the eventfd. Safe to call twice."""
        if self.wake_fd >= 0:
            os.close(self.wake_fd)
            self.wake_fd = -1
