"""The vhost-user protocol, our side: messages to a process that serves a device's queues.

Reached from `vhost`, once per boot; requests never pass here. The other process, the back end, maps
guest memory (its memfd travels with SET_MEM_TABLE), reads the kick eventfds and writes the call
eventfds itself. Source: QEMU docs/interop/vhost-user.rst, "Vhost-user Protocol"; its section titles
are quoted.

::

    message   request, flags, size of the payload: 3 x u32   payload   [descriptors: SCM_RIGHTS]
"""

from __future__ import annotations

import enum
import socket
import struct
import time

from pykvm._core import ffi
from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Final

    from pykvm.memory import GuestMemory

    CData = Any

TIMEOUT_S: Final = 20.0  # for one answer, on a busy host: a back end that takes longer is stuck
PAYLOAD_MAX: Final = 4096  # far more than any answer has


class Request(enum.IntEnum):
    """ "Front-end message types"."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    GET_CONFIG = 24
    SET_CONFIG = 25


class Protocol(enum.IntFlag):
    """ "Protocol features": those that are used when the back end has them."""

    MQ = 1 << 0
    REPLY_ACK = 1 << 3
    CONFIG = 1 << 9


PROTOCOL_FEATURES: Final = 1 << 30  # VHOST_USER_F_PROTOCOL_FEATURES, among the virtio features
WANTED: Final = Protocol.MQ | Protocol.REPLY_ACK | Protocol.CONFIG

VERSION: Final = 1  # "Header": the two low bits of the flags
VERSION_MASK: Final = 3
REPLY: Final = 1 << 2
NEED_REPLY: Final = 1 << 3

HEADER: Final = struct.Struct("<III")
U64: Final = struct.Struct("<Q")
VRING_STATE: Final = struct.Struct("<II")  # index, num
VRING_ADDR: Final = struct.Struct("<IIQQQQ")  # index, flags, descriptor, used, available, log
REGION_COUNT: Final = struct.Struct("<II")  # and padding
REGION: Final = struct.Struct("<QQQQ")  # guest address, size, user address, mmap offset
CONFIG: Final = struct.Struct("<III")  # offset, size, flags


class BackendError(Exception):
    """The back end ended, does not answer, or answers nonsense. The message says which."""


class Frontend:
    """A connection to a back end. Any thread, one at a time. Raises `BackendError`, and is closed
    after that."""

    def __init__(self, sock: socket.socket, timeout_s: float = TIMEOUT_S) -> None:
        """Agree on what both can. `sock` is ours from now on."""
        self.socket = sock
        self._timeout_s = timeout_s
        self._protocol = 0
        try:
            self._send(Request.SET_OWNER)
            self.features = self._ask_u64(Request.GET_FEATURES)
            if self.features & PROTOCOL_FEATURES:
                self._protocol = self._ask_u64(Request.GET_PROTOCOL_FEATURES) & WANTED
                # Not yet in force: the answer to this one message is never asked for.
                acknowledge, self._protocol = self._protocol, 0
                self._send(Request.SET_PROTOCOL_FEATURES, U64.pack(acknowledge))
                self._protocol = acknowledge
        except BackendError:
            sock.close()
            raise

    def has(self, feature: Protocol) -> bool:
        """Whether both sides have a protocol feature."""
        return bool(self._protocol & feature)

    def queue_max(self) -> int:
        """How many queues the back end can serve; one when it does not say."""
        return self._ask_u64(Request.GET_QUEUE_NUM) if self.has(Protocol.MQ) else 1

    # ── the device's configuration ───────────────────────────────────────────────────────────

    def read_config(self, size: int) -> bytes:
        """`size` bytes of the configuration space. Needs `Protocol.CONFIG`."""
        answer = self._ask(Request.GET_CONFIG, CONFIG.pack(0, size, 0) + bytes(size))
        if len(answer) != CONFIG.size + size:
            raise self._failed(f"gave {len(answer)} bytes for a configuration of {size}")
        return answer[CONFIG.size :]

    def write_config(self, offset: int, data: bytes) -> None:
        """Write to the configuration space, as the driver did. Needs `Protocol.CONFIG`."""
        self._set(Request.SET_CONFIG, CONFIG.pack(offset, len(data), 0) + data)

    # ── starting and stopping ────────────────────────────────────────────────────────────────

    def set_features(self, features: int) -> None:
        """What the driver accepted."""
        self._set(Request.SET_FEATURES, U64.pack(features | self.features & PROTOCOL_FEATURES))

    def set_memory(self, memory: GuestMemory) -> None:
        """Hand guest memory over: each region's place in the guest, here and in the memfd."""
        hva = _address(memory.handle.hva)
        table, offset = REGION_COUNT.pack(len(memory.regions), 0), 0
        for region in memory.regions:
            table += REGION.pack(region.gpa, region.size, hva + offset, offset)
            offset += region.size
        self._set(Request.SET_MEM_TABLE, table, [memory.handle.fd] * len(memory.regions))

    def start_queue(self, index: int, virtq: CData, kick_fd: int, call_fd: int) -> None:
        """Let the back end serve a queue, checked by `pk_virtq_start`, from its `avail_idx` on."""
        self._set(Request.SET_VRING_NUM, VRING_STATE.pack(index, virtq.size))
        self._set(Request.SET_VRING_BASE, VRING_STATE.pack(index, virtq.avail_idx))
        places = (_address(part) for part in (virtq.desc, virtq.used, virtq.avail))
        self._set(Request.SET_VRING_ADDR, VRING_ADDR.pack(index, 0, *places, 0))
        self.set_call(index, call_fd)
        self._set(Request.SET_VRING_KICK, U64.pack(index), [kick_fd])
        if self.features & PROTOCOL_FEATURES:
            self._set(Request.SET_VRING_ENABLE, VRING_STATE.pack(index, 1))

    def set_call(self, index: int, call_fd: int) -> None:
        """The eventfd that the back end writes when it has used a queue's buffers."""
        self._set(Request.SET_VRING_CALL, U64.pack(index), [call_fd])

    def stop_queue(self, index: int) -> int:
        """Let the back end take no more from a queue; returns where in the available ring it is."""
        asked = VRING_STATE.pack(index, 0)
        answer = self._ask(Request.GET_VRING_BASE, asked, VRING_STATE.size)
        number, base = VRING_STATE.unpack(answer)
        if number != index:
            raise self._failed(f"answered for queue {number}, not {index}")
        return int(base) & 0xFFFF

    def close(self) -> None:
        """End the connection. Safe to call twice."""
        self.socket.close()

    # ── messages ─────────────────────────────────────────────────────────────────────────────

    def _failed(self, why: str) -> BackendError:
        self.close()
        return BackendError(why)

    def _set(self, request: Request, payload: bytes, fds: Sequence[int] = ()) -> None:
        """Send what has no answer of its own, and wait until the back end has done it if it can
        say so ("VHOST_USER_PROTOCOL_F_REPLY_ACK")."""
        if not self.has(Protocol.REPLY_ACK):
            self._send(request, payload, fds)
            return
        self._send(request, payload, fds, NEED_REPLY)
        if any(self._receive(request, U64.size)):
            raise self._failed(f"refused {request.name}")

    def _ask_u64(self, request: Request) -> int:
        return int(U64.unpack(self._ask(request, b"", U64.size))[0])

    def _ask(self, request: Request, payload: bytes, size: int | None = None) -> bytes:
        self._send(request, payload)
        return self._receive(request, size)

    def _send(
        self, request: Request, payload: bytes = b"", fds: Sequence[int] = (), flags: int = 0
    ) -> None:
        message = HEADER.pack(request, VERSION | flags, len(payload)) + payload
        try:
            self.socket.settimeout(self._timeout_s)
            sent = socket.send_fds(self.socket, [message], fds)
        except TimeoutError:
            raise self._failed(f"takes no {request.name}") from None
        except OSError as error:
            raise self._failed(f"is gone ({error.strerror})") from None
        if sent != len(message):
            raise self._failed(f"took half of {request.name}")

    def _receive(self, request: Request, size: int | None) -> bytes:
        """The answer to `request`: `size` bytes, or any number for None."""
        deadline = time.monotonic() + self._timeout_s
        number, flags, length = HEADER.unpack(self._read(request, HEADER.size, deadline))
        sound = number == request and flags & VERSION_MASK == VERSION and flags & REPLY
        if not sound or length > PAYLOAD_MAX or (size is not None and length != size):
            raise self._failed(f"answered {request.name} with a message that is none")
        return self._read(request, length, deadline)

    def _read(self, request: Request, size: int, deadline: float) -> bytes:
        """Exactly `size` bytes. Descriptors that come with them are dropped: recv() takes none."""
        data = b""
        try:
            while len(data) < size:
                self.socket.settimeout(max(0.001, deadline - time.monotonic()))
                piece = self.socket.recv(size - len(data))
                if not piece:
                    raise ConnectionError(0, "it ended the connection")
                data += piece
        except OSError as error:
            late = isinstance(error, TimeoutError)
            why = f"does not answer {request.name}" if late else f"is gone ({error.strerror})"
            raise self._failed(why) from None
        return data


def _address(pointer: CData) -> int:
    return int(ffi.cast("uintptr_t", pointer))
