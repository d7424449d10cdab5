"""Guest memory: checked reads and writes at guest-physical addresses.

Reached from the boot loaders, devices and the API (`vm.memory`). The bytes live in one memfd,
mapped once (csrc/mem.c); KVM sees the same pages through memslots. Read `layout` for the map.
"""

from __future__ import annotations

import os

from pykvm import layout
from pykvm._core import ffi, lib
from pykvm.errors import ConfigError, PykvmError, check
from pykvm.lean import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from typing import Final, Self

# From this size on, writing to the memfd is twice as fast as to its mapping: no page faults.
PWRITE_SIZE: Final = 1 << 20


GPA_MAX = (1 << 64) - 1  # what fits the uint64_t of csrc/api.h


class GuestMemoryError(PykvmError, IndexError):
    """A guest-physical range that is not (all) guest memory."""


class Region(Record):
    """A contiguous range of guest memory: `gpa` of the first byte, `size` in bytes."""

    gpa: int
    size: int

    @property
    def end(self) -> int:
        return self.gpa + self.size


class GuestMemory:
    """`size` bytes of guest memory, at most 3 GiB of them below 4 GiB (`layout.MMIO_HOLE`).

    Owned by one `Machine`; any thread may read and write. Closing unmaps it: views must be gone.
    """

    def __init__(self, size: int) -> None:
        if size <= 0 or size % 4096:
            raise ConfigError(
                f"--memory: {size} bytes is not a positive multiple of 4096; try --memory 256M"
            )
        if size > GPA_MAX:
            raise ConfigError(f"--memory: {size} bytes is more than a PC can address; try less")
        self.handle = ffi.new("struct pk_mem *")
        result = lib.pk_mem_create(size, layout.MMIO_HOLE, layout.MMIO_HOLE_END, self.handle)
        check(result, f"memfd of {size} bytes for guest memory", "try a smaller --memory")
        self.size = size

    @property
    def regions(self) -> tuple[Region, ...]:
        """Low memory and, when there is any, high memory."""
        low = Region(0, self.handle.low_size)
        high = Region(self.handle.high_base, self.size - low.size)
        return (low, high) if high.size else (low,)

    @property
    def low_end(self) -> int:
        """The first gpa after low memory."""
        return int(self.handle.low_size)

    def contains(self, gpa: int, size: int = 1) -> bool:
        """Whether all of [gpa, gpa + size) is guest memory."""
        return any(r.gpa <= gpa and gpa + size <= r.end for r in self.regions)

    def view(self, gpa: int, size: int) -> memoryview:
        """A writable view of the guest's bytes, no copy. Raises `GuestMemoryError`."""
        fits = 0 <= gpa <= GPA_MAX and 0 <= size <= GPA_MAX
        hva = lib.pk_mem_ptr(self.handle, gpa, size) if fits else ffi.NULL
        if hva == ffi.NULL:
            raise GuestMemoryError(f"[{gpa:#x}, {gpa + size:#x}) is not guest memory")
        return memoryview(ffi.buffer(hva, size)).cast("B")

    def read(self, gpa: int, size: int) -> bytes:
        """Copy `size` bytes out. Raises `GuestMemoryError`."""
        return bytes(self.view(gpa, size))

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Copy `data` in. Raises `GuestMemoryError`, having written nothing."""
        view = self.view(gpa, len(data))
        if len(data) >= PWRITE_SIZE:
            written = os.pwrite(self.handle.fd, data, self._offset(gpa))
            view, data = view[written:], data[written:]
        view[:] = data

    def write_from(self, gpa: int, file: int, offset: int, size: int) -> None:
        """Copy `size` bytes at `offset` of the file descriptor `file` in: the fastest way for many.

        No other thread may do so at the same time. Raises `GuestMemoryError`, and `OSError` when
        the file ends before.
        """
        self.view(gpa, size)  # raises when it is not all there
        os.lseek(self.handle.fd, self._offset(gpa), os.SEEK_SET)
        while size:
            try:
                sent = os.sendfile(self.handle.fd, file, offset, size)
            except OSError:  # not every file system has it
                piece = os.pread(file, min(size, PWRITE_SIZE), offset)
                sent = os.write(self.handle.fd, piece)
            if not sent:
                raise OSError(f"the file ends {size} bytes too soon")
            offset, size = offset + sent, size - sent

    def _offset(self, gpa: int) -> int:
        """Where the byte at `gpa` is in the memfd."""
        return gpa if gpa < self.low_end else gpa - int(self.handle.high_base) + self.low_end

    def close(self) -> None:
        """Unmap. Safe to call twice."""
        lib.pk_mem_destroy(self.handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
