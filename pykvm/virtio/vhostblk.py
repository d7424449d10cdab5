"""A disk that a vhost-user back end serves: images in QEMU's formats, through its storage daemon.

Reached from `attach`, for a ``--disk`` with a ``format=`` or ``vhost-user=``. The formats are
qemu-storage-daemon's business; we start it, and end it. Read `vhost` for the device, `blk` for the
disk we serve ourselves. Source: virtio 1.2 §5.2 Block Device.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import struct

from pykvm.errors import ConfigError
from pykvm.lean import TYPE_CHECKING
from pykvm.virtio.backend import Program, Stranger
from pykvm.virtio.blk import CONFIG, WRITEBACK, BlkFeature, lock_file, open_file
from pykvm.virtio.vhost import VhostDevice
from pykvm.virtio.vhostuser import BackendError, Protocol

if TYPE_CHECKING:
    from typing import Any, Final

    from pykvm.memory import GuestMemory
    from pykvm.virtio.config.disk import DiskConfig
    from pykvm.virtio.config.limits import Limits
    from pykvm.virtio.queue import Chain
    from pykvm.virtio.vhostuser import Frontend

DAEMON: Final = "qemu-storage-daemon"
PACKAGE: Final = "qemu-system-common"

IOERR: Final = b"\1"  # §5.2.6 Device Operation: VIRTIO_BLK_S_IOERR
HEADER: Final = struct.Struct("<IIQ")  # type, reserved, sector
KINDS: Final = (0, 1, 4, 8, 11, 13)  # in, out, flush, get id, discard, write zeroes
QUEUES_AT: Final = 34  # §5.2.4 Device configuration layout: num_queues


class VhostBlk(VhostDevice):
    """A disk in another process. Raises `ConfigError` when that cannot serve it."""

    device_id = 2

    def __init__(self, memory: GuestMemory, config: DiskConfig) -> None:
        self.name = f"disk {config.path or config.vhost_user}"
        self.config = config
        self._file = -1
        if config.vhost_user:
            super().__init__(
                memory,
                f"--disk: vhost-user={config.vhost_user}",
                lambda: Stranger(config.vhost_user),
                config.reconnect,
            )
            return
        daemon = shutil.which(DAEMON)
        if daemon is None:
            raise ConfigError(
                f"--disk: format={config.format} needs {DAEMON}; install it (Debian: {PACKAGE}), "
                "or convert the image with qemu-img convert -O raw"
            )
        self._file = open_file(config)  # says what is wrong with it better than the daemon
        try:
            lock_file(self._file, config)
            super().__init__(
                memory,
                f"--disk: {config.path}",
                lambda: Program(DAEMON, lambda fd: _command(daemon, config, fd)),
            )
        except BaseException:
            os.close(self._file)
            raise

    def learn(self, frontend: Frontend) -> None:
        if not frontend.has(Protocol.CONFIG):
            raise BackendError("the back end does not tell of its configuration")
        self._space = frontend.read_config(CONFIG.size)
        queues = int.from_bytes(self._space[QUEUES_AT : QUEUES_AT + 2], "little")
        self.queue_count = max(1, min(self.config.queues, frontend.queue_max(), queues))

    def read_config(self) -> bytes:
        count = self.queue_count.to_bytes(2, "little")
        return self._space[:QUEUES_AT] + count + self._space[QUEUES_AT + 2 :]

    def write_config(self, offset: int, data: bytes) -> None:
        if offset == WRITEBACK and len(data) == 1 and self.has_feature(BlkFeature.CONFIG_WCE):
            self._set_writeback(bool(data[0]))

    def _set_writeback(self, on: bool) -> None:
        self._space = self._space[:WRITEBACK] + bytes([on]) + self._space[WRITEBACK + 1 :]
        self._tell_config(WRITEBACK, bytes([on]))

    def start(self) -> None:
        # §5.2.6.2: a driver that cannot flush gets a disk that need not be flushed.
        if not self.has_feature(BlkFeature.FLUSH) and self.features & BlkFeature.CONFIG_WCE:
            self._set_writeback(False)
        super().start()

    def reset(self) -> None:
        super().reset()
        if self.features & BlkFeature.CONFIG_WCE and not self._space[WRITEBACK]:
            self._set_writeback(True)

    def state(self) -> bytes:
        return self._space[WRITEBACK : WRITEBACK + 1] + super().state()

    def restore(self, state: bytes) -> None:
        super().restore(state[1:])
        self._set_writeback(bool(state[0]))

    def is_waiting(self, chain: Chain) -> bool:
        if not chain.out or not chain.in_ or chain.out[0][1] < HEADER.size:
            return False
        kind, _, _ = HEADER.unpack(self.memory.read(chain.out[0][0], HEADER.size))
        return kind in KINDS  # the status does not tell: a driver need not clear it before

    def fail(self, chain: Chain) -> int:
        if chain.in_:
            gpa, size = chain.in_[-1]
            self.memory.write(gpa + size - 1, IOERR)
        return 1 if chain.in_ else 0

    def close(self) -> None:
        super().close()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _command(daemon: str, config: DiskConfig, listen_fd: int) -> list[str]:
    """The storage daemon with this one disk, for the one who connects to `listen_fd`."""
    cache = {"direct": config.cache == "none", "no-flush": config.cache == "unsafe"}
    common = {"read-only": config.read_only, "cache": cache, "discard": "unmap"}
    kind = "host_device" if stat.S_ISBLK(os.stat(config.path).st_mode) else "file"
    file = {"driver": kind, "filename": os.path.abspath(config.path), **common}
    node = {"driver": config.format, "node-name": "disk", "file": file, **common}
    export: dict[str, Any] = {
        "type": "vhost-user-blk",
        "id": "export",
        "node-name": "disk",
        "addr": {"type": "fd", "str": str(listen_fd)},
        "writable": not config.read_only,
        "num-queues": config.queues,
    }
    command = [daemon, "--blockdev", json.dumps(node)]
    if limits := _limits(config.limits):
        group = {"qom-type": "throttle-group", "id": "limits", "limits": limits}
        node = {"driver": "throttle", "node-name": "limited", "throttle-group": "limits"}
        command = [daemon, "--object", json.dumps(group), *command[1:]]
        command += ["--blockdev", json.dumps({**node, "file": "disk"})]
        export["node-name"] = "limited"
    return [*command, "--export", json.dumps(export)]


def _limits(limits: Limits) -> dict[str, int]:
    """`limits` in the daemon's words."""
    words = {
        **{"bps-total": limits.bps, "bps-total-max": limits.bps_max},
        **{"iops-total": limits.iops, "iops-total-max": limits.iops_max},
    }
    return {word: value for word, value in words.items() if value}
