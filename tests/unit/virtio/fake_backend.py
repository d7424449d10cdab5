"""A back end for tests: speaks vhost-user over a socket pair, remembers all, serves nothing."""

from __future__ import annotations

import array
import os
import socket
import struct
import threading

from pykvm.virtio.backend import Backend
from pykvm.virtio.vhostuser import (
    HEADER,
    NEED_REPLY,
    PROTOCOL_FEATURES,
    REPLY,
    VERSION,
    Protocol,
    Request,
)

VERSION_1, EVENT_IDX, INDIRECT = 1 << 32, 1 << 29, 1 << 28


class FakeBackend(Backend):
    """`bases` is what GET_VRING_BASE answers, by queue; `refused` is a request it refuses."""

    name = "fake"

    def __init__(
        self,
        features: int = VERSION_1 | EVENT_IDX | INDIRECT | PROTOCOL_FEATURES,
        protocol: int = Protocol.MQ | Protocol.REPLY_ACK | Protocol.CONFIG,
        config: bytes = bytes(60),
    ) -> None:
        self.features, self.protocol, self.config = features, protocol, config
        self.messages: list[tuple[Request, bytes]] = []
        self.fds: dict[tuple[Request, int], int] = {}  # (request, queue): an eventfd it was given
        self.bases = {0: 0, 1: 0}
        self.refused: Request | None = None
        self.socket, self.theirs = socket.socketpair()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def requests(self) -> list[Request]:
        return [request for request, _ in self.messages]

    def die(self) -> None:
        """End as a process does that is killed."""
        self.theirs.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def close(self) -> None:
        super().close()
        self._thread.join()
        self.theirs.close()
        for fd in self.fds.values():
            os.close(fd)
        self.fds = {}

    def _serve(self) -> None:
        while True:
            header, fds = self._take(HEADER.size)
            if not header:
                return
            number, flags, size = HEADER.unpack(header)
            payload, more = self._take(size) if size else (b"", [])
            self._answer(Request(number), flags, payload, fds + more)

    def _take(self, size: int) -> tuple[bytes, list[int]]:
        try:
            data, ancillary, _, _ = self.theirs.recvmsg(size, 1024)
        except OSError:
            return b"", []
        fds = array.array("i")
        for _, _, content in ancillary:
            fds.frombytes(content)
        return data, list(fds)

    def _answer(self, request: Request, flags: int, payload: bytes, fds: list[int]) -> None:
        self.messages.append((request, payload))
        if request in (Request.SET_VRING_KICK, Request.SET_VRING_CALL):
            key = request, payload[0]
            if key in self.fds:
                os.close(self.fds[key])
            self.fds[key] = fds[0]
        else:
            for fd in fds:
                os.close(fd)
        answer: bytes | None = None
        match request:
            case Request.GET_FEATURES:
                answer = struct.pack("<Q", self.features)
            case Request.GET_PROTOCOL_FEATURES:
                answer = struct.pack("<Q", self.protocol)
            case Request.GET_QUEUE_NUM:
                answer = struct.pack("<Q", 2)
            case Request.GET_CONFIG:
                answer = payload[:12] + self.config
            case Request.GET_VRING_BASE:
                index = payload[0]
                answer = struct.pack("<II", index, self.bases[index])
            case _ if flags & NEED_REPLY:
                answer = struct.pack("<Q", request == self.refused)
        if answer is not None:
            header = HEADER.pack(request, VERSION | REPLY, len(answer))
            self.theirs.sendall(header + answer)
