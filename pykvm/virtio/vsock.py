"""The socket device: what the driver is told of it. Its bytes move in csrc/virtio_vsock.c.

Reached from `attach` (``--vsock``). A program in the guest opens AF_VSOCK sockets; on the host they
are unix sockets, in Firecracker's convention (its docs/vsock.md). Source: virtio 1.2 §5.10 Socket
Device.
"""

from __future__ import annotations

import contextlib
import enum
import os
import struct

from pykvm._core import ffi, lib
from pykvm.errors import check
from pykvm.lean import TYPE_CHECKING
from pykvm.unixsocket import UnixListener
from pykvm.virtio.config.vsock import CID_FIRST, CID_LAST
from pykvm.virtio.device import VirtioDevice

if TYPE_CHECKING:
    from typing import Final

    from pykvm.memory import GuestMemory
    from pykvm.virtio.config.vsock import VsockConfig

EVENT_QUEUE: Final = 2  # §5.10.2 Virtqueues: rx, tx, event
CONFIG: Final = struct.Struct("<Q")  # §5.10.4 Device configuration layout: guest_cid


class VsockFeature(enum.IntFlag):
    """§5.10.3 Feature bits: those that are offered."""

    STREAM = 1 << 0


class Vsock(VirtioDevice):
    """A socket device. Its unix socket is there as long as it is, and clients wait for a driver.

    Raises `ConfigError` when the socket's path is taken or cannot be one.
    """

    device_id = 19
    name = "vsock"
    queue_count = 3
    features = VsockFeature.STREAM
    feature_names = VsockFeature

    def __init__(
        self, memory: GuestMemory, config: VsockConfig, identity: bytes | None = b""
    ) -> None:
        """`identity` (see `attach`) is what the CID is made of where the user gave none."""
        self.config = config
        self._takes_over = identity is None and config.cid is None
        self.cid = config.cid or default_cid(identity or b"")
        self._listener = UnixListener(config.path, "--vsock")
        out = ffi.new("struct pk_vsock **")
        options = {
            "cid": self.cid,
            "listen_fd": self._listener.fileno(),
            "path": os.fsencode(config.path),
        }
        try:
            result = lib.pk_vsock_create(ffi.new("struct pk_vsock_config *", options), out)
            check(result, "memory and descriptors for a socket device")
        except BaseException:
            self._listener.close()
            raise
        self._handle = out[0]
        _allow_many_files()
        super().__init__(memory)

    def read_config(self) -> bytes:
        return CONFIG.pack(self.cid)

    def start(self) -> None:
        check(lib.pk_vsock_start(self._handle, *self._c_args()), "a thread for a socket device")

    def stop(self) -> None:
        lib.pk_vsock_stop(self._handle)

    def reset(self) -> None:
        super().reset()
        lib.pk_vsock_forget(self._handle)

    def state(self) -> bytes:
        return CONFIG.pack(self.cid) + super().state()

    def restore(self, state: bytes) -> None:
        """As `VirtioDevice.restore`. The connections of then are gone, and the driver is told:
        VIRTIO_VSOCK_EVENT_TRANSPORT_RESET (§5.10.6.7 Device Events). It reads its CID again."""
        with self.lock:
            (cid,) = CONFIG.unpack_from(state)
            self.reset()
            if self._takes_over:
                self.cid = cid
                lib.pk_vsock_set_cid(self._handle, cid)
            super().restore(state[CONFIG.size :])
            lib.pk_vsock_announce_reset(self._handle)
            self.kick(EVENT_QUEUE)

    def close(self) -> None:
        super().close()
        if self._handle != ffi.NULL:
            lib.pk_vsock_destroy(self._handle)
            self._handle = ffi.NULL
        self._listener.close()


def default_cid(identity: bytes) -> int:
    """The first that a guest may have; for copies of a machine one of their own."""
    if not identity:
        return CID_FIRST
    return CID_FIRST + int.from_bytes(identity[:8], "little") % (CID_LAST + 1 - CID_FIRST)


def _allow_many_files() -> None:
    """Let this process have as many files as it may: every connection is one."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
