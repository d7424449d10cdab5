"""A folder of the host's, shared with the guest: virtiofsd serves it, a vhost-user back end.

Reached from `attach`, one `Fs` for each ``--fs``. We start virtiofsd, and end it. Read `vhost` for
the device, `pykvm.virtiofsd` for the program. Sources: virtio 1.2 §5.11 File System Device; Linux
include/uapi/linux/fuse.h for the headers of requests.
"""

from __future__ import annotations

import errno
import os
import struct

from pykvm.errors import ConfigError, HostError
from pykvm.lean import TYPE_CHECKING
from pykvm.virtio.backend import Program
from pykvm.virtio.vhost import VhostDevice
from pykvm.virtiofsd import PACKAGES, find, read_only

if TYPE_CHECKING:
    from typing import Final

    from pykvm.memory import GuestMemory
    from pykvm.virtio.config.share import ShareConfig
    from pykvm.virtio.queue import Chain
    from pykvm.virtio.vhostuser import Frontend

CONFIG: Final = struct.Struct("<36sI")  # §5.11.4: tag, num_request_queues
IN_HEADER: Final = struct.Struct("<IIQQIIII")  # len, opcode, unique, nodeid, uid, gid, pid, …
OUT_HEADER: Final = struct.Struct("<IiQ")  # len, error, unique
assert (IN_HEADER.size, OUT_HEADER.size) == (40, 16)


class Fs(VhostDevice):
    """A shared folder. Two queues: one for requests that must not wait (FORGET), one for the
    others. Raises `ConfigError` when it cannot be shared."""

    device_id = 26
    queue_count = 2

    def __init__(self, memory: GuestMemory, config: ShareConfig) -> None:
        self.name = f"folder {config.path}"
        self._space = CONFIG.pack(config.tag.encode(), self.queue_count - 1)
        option, folder = f"--fs: {config.path}", os.path.realpath(config.path)
        if not os.path.isdir(folder):
            raise ConfigError(f"{option} is no folder of this host's")
        try:
            virtiofsd = find()
        except HostError as error:
            raise ConfigError(f"--fs: {error}") from None
        if virtiofsd is None:
            raise ConfigError(f"--fs: no virtiofsd on this host; install it (Debian: {PACKAGES})")

        def command(listen_fd: int) -> list[str]:
            words = virtiofsd.command(listen_fd, folder, config.cache)
            return read_only(words, folder) if config.read_only else words

        super().__init__(memory, option, lambda: Program("virtiofsd", command))

    def learn(self, frontend: Frontend) -> None:
        pass  # all of the configuration is ours

    def read_config(self) -> bytes:
        return self._space

    def is_waiting(self, chain: Chain) -> bool:
        if not chain.out or chain.out[0][1] < IN_HEADER.size:
            return False
        size, _, unique, *_ = IN_HEADER.unpack(self.memory.read(chain.out[0][0], IN_HEADER.size))
        if size != sum(length for _, length in chain.out):
            return False
        if not chain.in_ or chain.in_[0][1] < OUT_HEADER.size:
            return True
        answer = self.memory.read(chain.in_[0][0], OUT_HEADER.size)
        return bool(OUT_HEADER.unpack(answer)[2] != unique)

    def fail(self, chain: Chain) -> int:
        sizes = [length for _, length in (*chain.out[:1], *chain.in_[:1])]
        if len(sizes) < 2 or sizes[0] < IN_HEADER.size or sizes[1] < OUT_HEADER.size:
            return 0  # FORGET has no answer
        request = self.memory.read(chain.out[0][0], IN_HEADER.size)
        unique = IN_HEADER.unpack(request)[2]
        self.memory.write(chain.in_[0][0], OUT_HEADER.pack(OUT_HEADER.size, -errno.EIO, unique))
        return OUT_HEADER.size
