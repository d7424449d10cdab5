"""The vhost-user protocol, with a back end that is right and with one that says anything."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_backend import FakeBackend
from hypothesis import given
from hypothesis import strategies as st

from pykvm import layout
from pykvm._core import ffi, lib
from pykvm.memory import GuestMemory
from pykvm.virtio.backend import Stranger
from pykvm.virtio.vhostuser import (
    HEADER,
    REPLY,
    VERSION,
    BackendError,
    Frontend,
    Protocol,
    Request,
)

SHORT_S = 0.05


@pytest.fixture
def backend() -> Iterator[FakeBackend]:
    backend = FakeBackend(config=bytes(range(60)))
    yield backend
    backend.close()


def test_features_are_agreed_on_first(backend: FakeBackend) -> None:
    frontend = Frontend(backend.socket)
    frontend.read_config(60)  # it is answered, so what went before has been taken
    assert backend.requests()[:-1] == [
        Request.SET_OWNER,
        Request.GET_FEATURES,
        Request.GET_PROTOCOL_FEATURES,
        Request.SET_PROTOCOL_FEATURES,
    ]
    assert frontend.features == backend.features
    assert frontend.has(Protocol.REPLY_ACK)


def test_protocol_features_that_we_do_not_have_are_declined(backend: FakeBackend) -> None:
    backend.protocol |= 1 << 12  # VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD
    Frontend(backend.socket).read_config(60)
    assert backend.messages[-2][1] == struct.pack("<Q", backend.protocol & ~(1 << 12))


def test_the_configuration_is_read_and_written(backend: FakeBackend) -> None:
    frontend = Frontend(backend.socket)
    assert frontend.read_config(60) == backend.config
    frontend.write_config(32, b"\1")
    assert backend.messages[-1] == (Request.SET_CONFIG, struct.pack("<III", 32, 1, 0) + b"\1")


def test_memory_is_handed_over_region_by_region(
    backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "MMIO_HOLE", 1 << 16)
    with GuestMemory(3 << 16) as memory:
        Frontend(backend.socket).set_memory(memory)
        hva = int(ffi.cast("uintptr_t", memory.handle.hva))
    low = (0, 1 << 16, hva, 0)
    high = (layout.MMIO_HOLE_END, 2 << 16, hva + (1 << 16), 1 << 16)
    assert backend.messages[-1][1] == struct.pack("<II8Q", 2, 0, *low, *high)


def test_a_queue_is_started_with_its_places_here(backend: FakeBackend) -> None:
    frontend = Frontend(backend.socket)
    with GuestMemory(1 << 16) as memory:
        values = {"mem": memory.handle, "size": 8, "desc_gpa": 0x1000, "avail_gpa": 0x2000}
        virtq = ffi.new("struct pk_virtq *", {**values, "used_gpa": 0x3000, "avail_idx": 5})
        assert lib.pk_virtq_start(virtq) == 0
        frontend.start_queue(1, virtq, 0, 0)
        hva = int(ffi.cast("uintptr_t", memory.handle.hva))
    sent = dict(backend.messages)
    assert sent[Request.SET_VRING_NUM] == struct.pack("<II", 1, 8)
    assert sent[Request.SET_VRING_BASE] == struct.pack("<II", 1, 5)
    places = hva + 0x1000, hva + 0x3000, hva + 0x2000
    assert sent[Request.SET_VRING_ADDR] == struct.pack("<IIQQQQ", 1, 0, *places, 0)
    assert sent[Request.SET_VRING_ENABLE] == struct.pack("<II", 1, 1)
    assert {request for request, _ in backend.fds} == {
        Request.SET_VRING_KICK,
        Request.SET_VRING_CALL,
    }


def test_a_refusal_is_an_error_that_names_the_request(backend: FakeBackend) -> None:
    frontend = Frontend(backend.socket)
    backend.refused = Request.SET_FEATURES
    with pytest.raises(BackendError, match="refused SET_FEATURES"):
        frontend.set_features(0)


def test_a_back_end_that_is_gone_is_an_error() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with pytest.raises(BackendError, match="gone"):
        Frontend(ours)


def test_a_back_end_that_says_nothing_is_an_error() -> None:
    ours, theirs = socket.socketpair()
    with theirs, pytest.raises(BackendError, match="does not answer GET_FEATURES"):
        Frontend(ours, SHORT_S)


answers = st.builds(
    lambda request, flags, size, payload: HEADER.pack(request, flags, size) + payload,
    st.sampled_from([*Request, 0, 99]),
    st.sampled_from([VERSION | REPLY, VERSION, REPLY, 0]),
    st.sampled_from([8, 0, 7, 1 << 31]) | st.integers(0, (1 << 32) - 1),
    st.binary(max_size=16),
)


@given(st.lists(answers | st.binary(max_size=40), max_size=6))
def test_any_bytes_of_a_back_end_end_in_an_error_or_in_sense(pieces: list[bytes]) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(b"".join(pieces))
        theirs.shutdown(socket.SHUT_WR)
        try:
            frontend = Frontend(ours)
            frontend.queue_max()
            frontend.read_config(60)
            frontend.stop_queue(0)
        except BackendError:
            assert ours.fileno() == -1
        finally:
            ours.close()


LISTENER = """
import socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print(flush=True)
sys.stdin.read()
"""


def test_a_back_end_of_the_users_has_settled_when_its_process_has_ended(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", LISTENER, path], **pipes) as process:
        process.stdout.readline()
        stranger = Stranger(path)
        settling = threading.Thread(target=stranger.settle)
        settling.start()
        process.stdin.close()
        settling.join()
        assert process.poll() == 0
        stranger.settle()  # there is nobody left to wait for
        stranger.close()
