"""Guest memory: checked reads and writes at guest-physical addresses.

Reached from the boot loaders, devices and the API (`vm.memory`). The bytes live in one memfd,
mapped once (csrc/mem.c); KVM sees the same pages through memslots. A restored or forked machine's
memory is a private copy of a file, made page by page as pages are written (csrc/cow.c). Read
`layout` for the map.
"""

from __future__ import annotations

import os

from pykvm import layout
from pykvm._core import ffi, lib
from pykvm.errors import ConfigError, PykvmError, check
from pykvm.lean import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any, Final, Self

    from pykvm.bus import Bus
    from pykvm.debug.memorymap import MemoryMap
    from pykvm.debug.pagewalk import Walk
    from pykvm.snapshot.lazy import Loader
    from pykvm.vcpu import Vcpu

# From this size on, writing to the memfd is twice as fast as to its mapping: no page faults.
PWRITE_SIZE: Final = 1 << 20


RANGES: Final = 256  # of changed pages, asked for at a time
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

    def __init__(self, size: int, base: int | None = None) -> None:
        """`base` is a file descriptor whose `size` bytes the memory begins with; whatever is
        written stays in this process."""
        if size <= 0 or size % 4096:
            raise ConfigError(
                f"--memory: {size} bytes is not a positive multiple of 4096; try --memory 256M"
            )
        if size > GPA_MAX:
            raise ConfigError(f"--memory: {size} bytes is more than a PC can address; try less")
        self.handle = ffi.new("struct pk_mem *")
        hole = (layout.MMIO_HOLE, layout.MMIO_HOLE_END)
        if base is None:
            result = lib.pk_mem_create(size, *hole, self.handle)
        else:
            result = lib.pk_mem_map(base, size, *hole, self.handle)
        check(result, f"memfd of {size} bytes for guest memory", "try a smaller --memory")
        self.size = size
        self.low_end = int(self.handle.low_size)  # the first gpa after low memory
        self.placed: list[tuple[int, int, str]] = []  # what the loader put where: gpa, end, what
        self.vcpu: Vcpu | None = None  # whose page tables `walk` follows unless told
        self.devices: Bus | None = None  # what answers where memory is not, for `map`
        self.laid: list[Region] = []  # pages of another file than the one beneath: see `lay`
        self.epoch = 0  # grows when the file beneath is another one
        self.loader: Loader | None = None  # what brings its pages, when they are read lazily

    @property
    def is_private(self) -> bool:
        """Whether it is a private copy of a file: then no other process can share it."""
        return bool(self.handle.fd < 0)

    @property
    def regions(self) -> tuple[Region, ...]:
        """Low memory and, when there is any, high memory."""
        low = Region(0, self.handle.low_size)
        high = Region(self.handle.high_base, self.size - low.size)
        return (low, high) if high.size else (low,)

    def contains(self, gpa: int, size: int = 1) -> bool:
        """Whether all of [gpa, gpa + size) is guest memory."""
        return any(r.gpa <= gpa and gpa + size <= r.end for r in self.regions)

    def walk(self, gva: int, vcpu: Vcpu | None = None) -> Walk:
        """How the page tables translate `gva`, level by level; shows as a drawing."""
        from pykvm.debug.pagewalk import Paging, walk

        which = vcpu or self.vcpu
        assert which is not None  # a machine's memory has one
        return walk(self, Paging.of(which.get_sregs()), gva)

    def map(self) -> MemoryMap:
        """What is where in the guest's physical addresses: memory, what the boot put there, holes,
        devices. ``print`` shows lines, a notebook a picture, which ``map().svg()`` returns."""
        from pykvm.debug.memorymap import MemoryMap

        return MemoryMap.of(self)

    def view(self, gpa: int, size: int) -> memoryview:
        """A writable view of the guest's bytes, no copy. Raises `GuestMemoryError`."""
        return memoryview(ffi.buffer(self._hva(gpa, size), size)).cast("B")

    def _hva(self, gpa: int, size: int) -> Any:
        """The host's address of the guest's bytes. Raises `GuestMemoryError`."""
        fits = 0 <= gpa <= GPA_MAX and 0 <= size <= GPA_MAX
        hva = lib.pk_mem_ptr(self.handle, gpa, size) if fits else ffi.NULL
        if hva == ffi.NULL:
            raise GuestMemoryError(f"[{gpa:#x}, {gpa + size:#x}) is not guest memory")
        return hva

    def read(self, gpa: int, size: int) -> bytes:
        """Copy `size` bytes out. Raises `GuestMemoryError`, and `HostError` when lazy memory cannot
        be had."""
        data = bytes(self.view(gpa, size))
        self.check()
        return data

    def check(self) -> None:
        """Raise `HostError` when some of lazy memory could not be had."""
        if self.loader is not None:
            self.loader.check()

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Copy `data` in. Raises `GuestMemoryError`, having written nothing."""
        hva = self._hva(gpa, len(data))
        if len(data) >= PWRITE_SIZE and not self.is_private:
            written = os.pwrite(self.handle.fd, data, self._offset(gpa))
            hva, data = hva + written, data[written:]
        ffi.memmove(hva, data, len(data))

    def write_from(self, gpa: int, file: int, offset: int, size: int) -> None:
        """Copy `size` bytes at `offset` of the file descriptor `file` in: the fastest way for many.

        No other thread may do so at the same time. Raises `GuestMemoryError`, and `OSError` when
        the file ends before.
        """
        view = self.view(gpa, size)  # raises when it is not all there
        if self.is_private:
            while view:
                got = os.preadv(file, [view[:PWRITE_SIZE]], offset)
                if not got:
                    raise OSError(f"the file ends {len(view)} bytes too soon")
                view, offset = view[got:], offset + got
            return
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

    def discard(self, gpa: int, size: int) -> None:
        """Give the host back the whole pages [gpa, gpa + size), whose bytes nobody needs. They read
        as zeros then, or as the file beneath private memory. Raises `GuestMemoryError`."""
        self.view(gpa, size)  # raises
        check(lib.pk_mem_discard(self.handle, gpa, size), "giving back guest memory")

    def _offset(self, gpa: int) -> int:
        """Where the byte at `gpa` is in the memfd."""
        return gpa if gpa < self.low_end else gpa - int(self.handle.high_base) + self.low_end

    # ── private memory ───────────────────────────────────────────────────────────────────────

    def freeze(self) -> int:
        """Go on as a private copy of the memory as it is now, in no time: what is there now stays
        as it is in the file that is returned, a descriptor of the caller's own.

        No vCPU runs and no device serves. Raises `KvmError` when another process shares it.
        """
        hint = "another process, such as a vhost-user back end, shares the guest's memory"
        check(lib.pk_mem_freeze(self.handle), "seal of guest memory", hint)
        self.epoch += 1
        return os.dup(self.handle.base_fd)

    def rebase(self, file: int) -> None:
        """Private memory: go on as a private copy of `file`, which holds what is there now."""
        check(lib.pk_mem_rebase(self.handle, file), "mmap of guest memory")
        self._end_loading()
        self.laid.clear()
        self.epoch += 1

    def lay(self, file: int, ranges: Sequence[Region], *, copied: bool = False) -> None:
        """Private memory: let `ranges` be what `file`, which nobody writes, has at the same places:
        as part of what is beneath, or `copied`, and then they are changes."""
        entries = ffi.new("struct pk_mem_range[]", [tuple(region) for region in ranges])
        result = lib.pk_mem_lay(self.handle, file, entries, len(ranges), copied)
        check(result, "mapping the pages of a differential snapshot")
        if not copied:
            self.laid += ranges

    def prefault(self) -> None:
        """Private memory: read and map all of it now. No page gets a copy of its own by that."""
        check(lib.pk_mem_prefault(self.handle), "madvise(MADV_POPULATE_READ) of guest memory")

    def changes(self) -> Iterator[Region]:
        """Private memory: the pages written since it was made, whoever wrote them, as ranges of
        the file beneath, lowest first. Pages written back to what they were are among them."""
        ranges = ffi.new("struct pk_mem_range[]", RANGES)
        count, end = RANGES, 0
        while count == RANGES:
            count = lib.pk_mem_private_ranges(self.handle, end, RANGES, ranges)
            check(count, "read of /proc/self/pagemap")
            for entry in ranges[0:count]:
                yield Region(entry.offset, entry.size)
                end = entry.offset + entry.size

    def revert(self, *, drop: bool = False) -> int:
        """Private memory: undo all that was written. Returns how many pages that were.

        They keep their place and are written over, or are given up (`drop`), always where pages of
        several files are beneath.
        """
        drop = drop or bool(self.laid)
        return check(lib.pk_mem_revert(self.handle, drop), "copying pages back")

    @property
    def file(self) -> int:
        """The file with all that the memory began with, not to be closed: it is a mapping of that,
        or a private copy."""
        if self.loader is not None:
            return self.loader.fd
        return int(self.handle.base_fd if self.is_private else self.handle.fd)

    def at_offset(self, offset: int, size: int) -> memoryview:
        """A writable view of the bytes by their place in the file, not in the guest."""
        return memoryview(ffi.buffer(self.handle.hva + offset, size)).cast("B")

    def close(self) -> None:
        """Unmap. Safe to call twice."""
        self._end_loading()
        lib.pk_mem_destroy(self.handle)

    def _end_loading(self) -> None:
        if self.loader is not None:
            self.loader.close()
            self.loader = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
