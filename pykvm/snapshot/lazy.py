"""Memory that is read, piece by piece, when the guest first needs it: ``--lazy``.

Reached from `load`, which makes a `Source`, and `template`, whose machines' memory each get a
`Loader` of it. Read csrc/lazy.c beside it. Each piece is compared with its checksum before anybody
sees it, so nothing of the file need be read before the guest goes on, not even of a copy.
"""

from __future__ import annotations

import errno
import os

from pykvm._core import ffi, lib
from pykvm.errors import ConfigError, HostError, check
from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Self

    from pykvm.memory import GuestMemory
    from pykvm.vcpu import Vcpu

_REMEDIES = {
    errno.EPERM: "this user may not handle the page faults of KVM: be root, say sysctl "
    "vm.unprivileged_userfaultfd=1, or get the right to open /dev/userfaultfd",
    errno.ENOSYS: "this kernel has no userfaultfd for such memory (it takes Linux 4.11 with "
    "CONFIG_USERFAULTFD)",
}


class Source:
    """The memory of a full snapshot: the file `fd`, and in a memfd what of it was needed so far, by
    any machine. Owns descriptors of its own. Raises one of `chain.NONSENSE` for a wrong `entry`,
    the head's of the file."""

    def __init__(self, folder: str, fd: int, entry: dict[str, Any]) -> None:
        size, self.piece = int(entry["size"]), int(entry["piece"])
        crcs = {int(number): int(crc) for number, crc in entry["crc32"].items()}
        count = -(-size // self.piece)
        if self.piece <= 0 or self.piece % 4096 or not crcs.keys() <= set(range(count)):
            raise ValueError(f"pieces of {self.piece} bytes")
        self.folder = folder
        self.size = size
        self._crcs = ffi.new("int64_t[]", [crcs.get(number, -1) for number in range(count)])
        self.fd = os.dup(fd)
        self.cache_fd = os.memfd_create("lazy-memory", os.MFD_CLOEXEC)
        os.truncate(self.cache_fd, size)

    def copy(self) -> Self:
        """The same, with descriptors of its own."""
        same = object.__new__(type(self))
        same.__dict__.update(self.__dict__, fd=os.dup(self.fd), cache_fd=os.dup(self.cache_fd))
        return same

    def load(self, memory: GuestMemory) -> None:
        """Let `memory`, a private copy of the memfd, be loaded from here. Raises `ConfigError`
        where this user or host cannot."""
        memory.loader = Loader(self.copy(), memory)

    def close(self) -> None:
        """Close the descriptors. Safe to call twice."""
        if self.fd >= 0:
            os.close(self.fd)
            os.close(self.cache_fd)
            self.fd = self.cache_fd = -1

    def config(self) -> Any:
        """A `struct pk_lazy_source`, good as long as this is."""
        fields = {"fd": self.fd, "cache_fd": self.cache_fd, "piece": self.piece}
        return ffi.new("struct pk_lazy_source *", {**fields, "crcs": self._crcs})


class Loader:
    """What brings one machine's memory; its thread ends with it. Owns `source`."""

    def __init__(self, source: Source, memory: GuestMemory) -> None:
        self.source = source
        handle = ffi.new("struct pk_lazy **")
        result = lib.pk_lazy_create(memory.handle, source.config(), handle)
        if result < 0:
            source.close()
            if remedy := _REMEDIES.get(-result):
                raise ConfigError(f"--lazy: {remedy}; or leave --lazy out")
            check(result, "userfaultfd for guest memory")
        self._handle = handle[0]

    @property
    def fd(self) -> int:
        """The file with all of the memory; not to be closed."""
        return self.source.fd

    @property
    def pieces(self) -> int:
        """How many pieces were read for this machine; others have some that it shares."""
        return int(lib.pk_lazy_pieces(self._handle))

    def guard(self, vcpus: Iterable[Vcpu]) -> None:
        """Let `vcpus` run no further once a piece cannot be had."""
        for vcpu in vcpus:
            lib.pk_lazy_add_vcpu(self._handle, vcpu.handle)

    def check(self) -> None:
        """Raise `HostError` when a piece could not be had: what was read since is not true."""
        offset = ffi.new("uint64_t *")
        lost = -lib.pk_lazy_lost(self._handle, offset)
        if lost == 0:
            return
        why = f"cannot be read ({os.strerror(lost)})"
        if lost == errno.EBADMSG:
            why = "does not match its checksum"
        elif os.fstat(self.fd).st_size < self.source.size:
            why = "is gone: the file has become shorter"
        raise HostError(
            f"snapshot {self.source.folder}: its memory at {offset[0]:#x}, which the guest needed "
            f"now, {why}; the machine has ended, as without it any other would be a wrong one"
        )

    def close(self) -> None:
        """End. Nobody may use the memory any more. Safe to call twice."""
        if self._handle is not None:
            lib.pk_lazy_destroy(self._handle)
            self._handle = None
            self.source.close()
