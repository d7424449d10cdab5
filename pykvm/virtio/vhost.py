"""A virtio device whose queues another process serves: a vhost-user back end.

Reached from `vhostblk` and `fs`, its two kinds. While the driver is ready the back end has the
queues, the kick eventfds (ioeventfds of KVM's) and the call eventfds (irqfds, or csrc/relay.c); we
only watch whether it lives. When it ends, this module serves the queues itself, with errors: no
request of the guest's hangs. A driver that then resets the device gets a new back end.

::

    set up      Frontend: features, configuration
    DRIVER_OK   start(): memory, rings, eventfds       the back end serves
    reset       stop(): where in the rings it was; what it has taken is finished first
    it dies     _lose(), _adopt(): answer what it has taken, and all that comes, with an error
    … and `reconnect_s`: what can be given to its successor waits for that, as all that comes does

The thread here does what is not a vCPU's: it waits for the back end's end and shows what it says.
Lock order: `lock` alone; everything below is done with it held.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from contextlib import suppress

from pykvm._core import ffi, lib
from pykvm.errors import ConfigError, check
from pykvm.lean import TYPE_CHECKING
from pykvm.virtio import abandoned
from pykvm.virtio.device import COMMON, Feature, VirtioDevice
from pykvm.virtio.queue import Queue, QueueError, Ring
from pykvm.virtio.vhostuser import TIMEOUT_S, BackendError, Frontend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, Final

    from pykvm.memory import GuestMemory
    from pykvm.virtio.backend import Backend
    from pykvm.virtio.queue import Chain

KIND_FEATURES: Final = (1 << 24) - 1  # §6: those that each kind of device defines
LOOK_S: Final = 0.001  # between looks at a ring that somebody else is to change
SETTLE_S: Final = 1.0  # for a driver to take what it was given back, if it shows that at all


class VhostDevice(VirtioDevice):
    """A device served by what `launch` starts. Raises `ConfigError`, with `option` in front, when
    that fails."""

    def __init__(
        self,
        memory: GuestMemory,
        option: str,
        launch: Callable[[], Backend],
        reconnect_s: int = 0,
    ) -> None:
        """`reconnect_s` is how often to look for a successor of one that ended; 0: never."""
        self._launch = launch
        self._reconnect_s = reconnect_s
        self._frontend: Frontend | None = None  # None: lost
        self._live = False  # the back end has the queues,
        self._orphaned = False  # or had them until it ended,
        self._errors: dict[int, Queue] = {}  # or we have these, and answer with errors
        self._revive = self._closing = False
        self._relay: Any = ffi.NULL
        self._backend: Backend | None = None
        try:
            self._connect()
            self.learn(self._connected)
        except BackendError as error:
            if self._backend is not None:
                self._backend.close()
            raise ConfigError(f"{option}: {error}") from None
        super().__init__(memory)
        eventfd = os.EFD_CLOEXEC | os.EFD_NONBLOCK
        self._call_fds = [os.eventfd(0, eventfd) for _ in range(self.queue_count)]
        self._wake_fd = os.eventfd(0, eventfd)
        self._thread = threading.Thread(target=self._watch, name="vhost-watch", daemon=True)
        self._thread.start()

    # ── for the kinds of devices ─────────────────────────────────────────────────────────────

    def learn(self, frontend: Frontend) -> None:
        """Set `queue_count` and what the configuration is made of. Raises `BackendError`."""
        raise NotImplementedError

    def is_waiting(self, chain: Chain) -> bool:
        """Whether a chain holds a request, to judge by its bytes, that was not answered yet."""
        raise NotImplementedError

    def fail(self, chain: Chain) -> int:
        """Answer a request with an error; returns how many bytes were written."""
        raise NotImplementedError

    # ── the back end ─────────────────────────────────────────────────────────────────────────

    @property
    def _connected(self) -> Frontend:
        if self._frontend is None:
            raise BackendError("it has ended")
        return self._frontend

    def _connect(self) -> None:
        """Start the back end, and agree with it."""
        backend = self._launch()
        try:
            frontend = Frontend(backend.socket)
            features = frontend.features & (KIND_FEATURES | COMMON)
            if not features & Feature.VERSION_1 or self.features & ~features:
                raise BackendError("lacks features it needs")
        except BackendError as error:
            why = backend.why()
            backend.close()
            raise BackendError(f"{backend.name}: {why or error}") from None
        self.features = features
        self._backend, self._frontend = backend, frontend

    @property
    def device_features(self) -> int:
        return self.features

    # ── the queues' life ─────────────────────────────────────────────────────────────────────

    def _served(self) -> Iterator[tuple[int, Any]]:
        """The queues that the driver made ready, and made well: number, struct pk_virtq."""
        for number, (queue, c_queue) in enumerate(zip(self.queues, self.c_queues, strict=True)):
            if queue.ready and not c_queue.virtq.fault:
                yield number, c_queue.virtq

    def start(self) -> None:
        out = ffi.new("struct pk_relay **")
        fds = ffi.new("int[]", self._call_fds)
        check(lib.pk_relay_create(self.interrupt.handle, fds, self.queue_count, out), "a thread")
        self._relay = out[0]
        self.interrupt.on_move = self._move_call
        if self._frontend is None:
            self._serve_without()
            return
        try:
            self._hand_over()
        except BackendError as error:
            self._lose(str(error))

    def _hand_over(self) -> None:
        frontend = self._connected
        self._live = True
        frontend.set_features(self.driver_features)
        frontend.set_memory(self.memory)
        for number, virtq in self._served():
            frontend.start_queue(number, virtq, self.kick_fds[number], self._call_fd(number))
            self.kick(number)  # for what was made available before

    def stop(self) -> None:
        try:
            if self._live:
                self._take_back()
        except BackendError as error:
            self._lose(str(error))
        if self._orphaned:
            self._adopt()
        for number, queue in self._errors.items():
            virtq = self.c_queues[number].virtq
            virtq.avail_idx, virtq.used_idx = queue.avail_idx, queue.used_idx
        self._errors = {}
        self.interrupt.on_move = None
        lib.pk_relay_destroy(self._relay)

    def _take_back(self) -> None:
        """Have the back end finish what it has taken, and take no more."""
        for number, virtq in self._served():
            base = self._connected.stop_queue(number)
            # Not every back end has finished when it answers.
            deadline = time.monotonic() + TIMEOUT_S
            while (used := self._queue(number).load_used_idx()) != base:
                if time.monotonic() > deadline:
                    raise BackendError("does not finish what it has taken")
                time.sleep(LOOK_S)
            virtq.avail_idx = virtq.used_idx = used
        self._live = False

    def reset(self) -> None:
        super().reset()
        if self._frontend is None:
            self._revive = True
            os.eventfd_write(self._wake_fd, 1)

    def _tell_config(self, offset: int, data: bytes) -> None:
        """Pass on what the driver wrote to the configuration."""
        try:
            if self._frontend is not None:
                self._frontend.write_config(offset, data)
        except BackendError as error:
            self._lose(str(error))

    # ── interrupts ───────────────────────────────────────────────────────────────────────────

    def _call_fd(self, number: int) -> int:
        """What the back end writes to interrupt for a queue: the vector's eventfd where that is
        enough, else the relay's."""
        fd = self.interrupt.message_fd(1 + number)
        return fd if fd >= 0 else self._call_fds[number]

    def _move_call(self, cause: int) -> None:
        """The driver gave a queue another vector."""
        number = cause - 1
        with self.lock:
            if not self._live or number not in dict(self._served()):
                return
            try:
                self._connected.set_call(number, self._call_fd(number))
            except BackendError as error:
                self._lose(str(error))

    # ── without a back end ───────────────────────────────────────────────────────────────────

    def _lose(self, why: str) -> None:
        """The back end is gone, or is to go: answer for it from now on."""
        backend, self._backend, self._frontend = self._backend, None, None
        if backend is not None:
            with suppress(OSError):
                backend.socket.close()
            text = backend.why() or why
            backend.close()
            backend.settle()  # it must not write to the guest any more
            now = "waits until it is back" if self._reconnect_s else "fails now"
            print(
                f"pykvm: {self.name}: {backend.name}: {text}; what the guest asks of it {now}",
                file=sys.stderr,
            )
        self._orphaned, self._live = self._orphaned or self._live, False
        os.eventfd_write(self._wake_fd, 1)

    def _queue(self, number: int) -> Queue:
        """A queue as the driver set it up, at the indices where it was started."""
        virtq = self.c_queues[number].virtq
        places = (virtq.size, virtq.desc_gpa, virtq.avail_gpa, virtq.used_gpa)
        queue = Queue(self.memory, Ring(*places, bool(virtq.indirect), bool(virtq.event_idx)))
        queue.avail_idx, queue.used_idx = virtq.avail_idx, virtq.used_idx
        return queue

    def _settle(self) -> None:
        """Let the driver take what the back end gave back before it ended. Without the lock: the
        driver may want a register."""
        with self.lock:
            queues = [self._queue(number) for number, _ in self._served()]
            for number, _ in self._served():
                self.interrupt.notify(1 + number)
        deadline = time.monotonic() + SETTLE_S
        while not all(map(abandoned.is_settled, queues)) and time.monotonic() < deadline:
            time.sleep(LOOK_S)

    def _adopt(self) -> None:
        """Answer what the back end has taken, and serve the queues from then on."""
        self._orphaned = False
        for number, virtq in self._served():
            queue = self._queue(number)
            queue.used_idx = queue.load_used_idx()
            queue.avail_idx = queue.load_avail_idx()
            heads = abandoned.find(queue, self.is_waiting)
            if self._reconnect_s and heads == abandoned.last(queue):
                queue.avail_idx = queue.used_idx  # for its successor
            else:
                self._fail_all(queue, heads)
            virtq.avail_idx, virtq.used_idx = queue.avail_idx, queue.used_idx
            self.interrupt.notify(1 + number)
        self._serve_without()

    def _fail_all(self, queue: Queue, heads: list[int]) -> None:
        for head in heads:
            with suppress(QueueError):
                queue.push(head, self.fail(queue.follow(head)))
        if missing := queue.avail_idx - queue.used_idx & 0xFFFF:
            print(f"pykvm: {self.name}: {missing} requests are lost", file=sys.stderr)

    def _serve_without(self) -> None:
        """Serve the queues with errors, or let them wait for a successor."""
        if self._reconnect_s:
            return
        self._errors = {number: self._queue(number) for number, _ in self._served()}
        for number in list(self._errors):
            self._answer(number)
        os.eventfd_write(self._wake_fd, 1)

    def _answer(self, number: int) -> None:
        """Answer all there is in a queue."""
        queue = self._errors[number]
        try:
            while True:
                while chain := queue.pop():
                    queue.push(chain.head, self.fail(chain))
                if queue.wants_interrupt():
                    self.interrupt.notify(1 + number)
                if not queue.ask_kicks():
                    return
        except QueueError as error:
            del self._errors[number]
            self.c_queues[number].virtq.fault = error.fault
            self.interrupt.notify(0)

    # ── the thread that watches ──────────────────────────────────────────────────────────────

    def _watch(self) -> None:
        while not self._closing:
            poll = select.poll()
            poll.register(self._wake_fd, select.POLLIN)
            with self.lock:
                backend = self._backend
                if backend is not None:
                    poll.register(backend.socket, select.POLLRDHUP)
                    if backend.log_fd >= 0:
                        poll.register(backend.log_fd, select.POLLIN)
                for number in self._errors:
                    poll.register(self.kick_fds[number], select.POLLIN)
                gone_fd = backend.socket.fileno() if backend is not None else -1
                looks = self._reconnect_s and backend is None and not self._orphaned
            ready = dict(poll.poll(1000 * self._reconnect_s if looks else None))
            with self.lock:
                if self._wake_fd in ready:
                    os.eventfd_read(self._wake_fd)
                if self._closing:
                    return
                if backend is not None and backend is self._backend:
                    if gone_fd in ready:
                        self._lose("it ended the connection")
                    else:
                        backend.tell()
                for number in list(self._errors):
                    if self.kick_fds[number] in ready:
                        with suppress(BlockingIOError):
                            os.eventfd_read(self.kick_fds[number])
                        self._answer(number)
                if self._revive or (looks and not ready):
                    self._start_again()
                orphaned = self._orphaned
            if orphaned:
                self._settle()
                with self.lock:
                    if self._orphaned:
                        self._adopt()

    def _start_again(self) -> None:
        """The driver reset the device, or a successor may be there: have another back end. On this
        thread, because the program ends with the thread that starts it."""
        self._revive = False
        try:
            self._connect()
        except (BackendError, ConfigError) as error:
            if not self._reconnect_s:
                print(f"pykvm: {self.name}: {error}", file=sys.stderr)
            return
        if self._reconnect_s and self._backend is not None:
            print(f"pykvm: {self.name}: {self._backend.name} is back", file=sys.stderr)
        if self._running:  # the driver was faster, or need not know
            self.stop()
            self.start()

    # ── the end ──────────────────────────────────────────────────────────────────────────────

    def close(self) -> None:
        """Stop, and end the back end. Safe to call twice."""
        if self._wake_fd < 0:
            return
        with self.lock:
            os.eventfd_write(self._wake_fd, 1)  # while it polls the socket, that is not closed
            super().close()
            if self._backend is not None:
                self._backend.close()
                self._backend = None
            self._closing = True
        # It ends only now: a program that it has started would be killed with it.
        self._thread.join()
        for fd in (*self._call_fds, self._wake_fd):
            os.close(fd)
        self._wake_fd = -1
