"""QEMU's firmware configuration device, as little of it as small kernels ask for.

Reached from the bus at `layout.PORT_FW_CFG`: a 16-bit selector, and a data port one byte further.
kvm-unit-tests learn their number of CPUs here, and pykvm's init in a copy of a machine what its
network cards are now (`virtio.attach`). Source: QEMU docs/specs/fw_cfg.rst.
"""

from __future__ import annotations

import struct

from pykvm.devices.base import Device
from pykvm.lean import TYPE_CHECKING, IntEnum

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final


class Key(IntEnum):
    """Selector values. All integers are little-endian but those in FILE_DIR."""

    SIGNATURE = 0x00  # "QEMU"
    ID = 0x01  # interface: bit 0 traditional, bit 1 DMA
    RAM_SIZE = 0x03  # bytes, 64 bits
    NB_CPUS = 0x05  # CPUs at boot, 16 bits
    MAX_CPUS = 0x0F  # CPUs that may ever be, 16 bits
    FILE_DIR = 0x19  # named items: their number, 32 bits big-endian, and one record each
    FILE_FIRST = 0x20  # the first named item


_FILE: Final = struct.Struct(">IHH56s")  # of the directory: size, selector, reserved, name
_STATE: Final = struct.Struct("<HI")
DATA: Final = 1  # offset of the data port


class FwCfg(Device):
    """Serves items byte by byte. Past an item's end, and for an unknown key: 0."""

    name = "fw_cfg"

    def __init__(self, cpus: int, memory_size: int) -> None:
        self._cpus = cpus
        self._memory_size = memory_size
        self._files: list[tuple[str, Callable[[], bytes]]] = []
        self._key = 0
        self._at = 0

    def add_file(self, name: str, content: Callable[[], bytes]) -> None:
        """Serve what `content` gives at the time, under a name of at most 55 bytes."""
        self._files.append((name, content))

    def read(self, offset: int, size: int) -> int:
        """Take the next byte. Other sizes and the selector read as 0, as on QEMU."""
        if (offset, size) != (DATA, 1):
            return 0
        item = self._item()
        at = self._at
        if at >= len(item):
            return 0
        self._at = at + 1
        return item[at]

    def _item(self) -> bytes:
        """What is selected."""
        match self._key:
            case Key.SIGNATURE:
                return b"QEMU"
            case Key.ID:
                return struct.pack("<I", 1)
            case Key.RAM_SIZE:
                return struct.pack("<Q", self._memory_size)
            case Key.NB_CPUS | Key.MAX_CPUS:
                return struct.pack("<H", self._cpus)
            case Key.FILE_DIR:
                return self._directory()
            case key if 0 <= key - Key.FILE_FIRST < len(self._files):
                return self._files[key - Key.FILE_FIRST][1]()
            case _:
                return b""

    def _directory(self) -> bytes:
        records = [
            _FILE.pack(len(content()), Key.FILE_FIRST + number, 0, name.encode())
            for number, (name, content) in enumerate(self._files)
        ]
        return struct.pack(">I", len(records)) + b"".join(records)

    def write(self, offset: int, size: int, value: int) -> None:
        """Select an item and go to its start. Data writes are not supported."""
        if (offset, size) == (0, 2):
            self._key, self._at = value & 0xFFFF, 0

    def reset(self) -> None:
        self._key = self._at = 0

    def state(self) -> bytes:
        return _STATE.pack(self._key, self._at)

    def restore(self, state: bytes) -> None:
        self._key, self._at = _STATE.unpack(state)
