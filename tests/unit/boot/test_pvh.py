"""PVH: the note's entry and start_info."""

from __future__ import annotations

import struct

import pytest
from images import Load, elf, note, pvh_elf

from pykvm import boot, layout
from pykvm.boot.entry import BootSpec, CpuMode
from pykvm.errors import BootError
from pykvm.layout import MIB
from pykvm.memory import GuestMemory

ENTRY = MIB + 16


def start_info(memory: GuestMemory) -> tuple[int, ...]:
    return struct.unpack("<IIIIQQQQII", memory.read(layout.START_INFO, 56))


@pytest.mark.parametrize("bits", [32, 64])
def test_a_kernel_that_is_not_linux_is_entered_where_its_note_says(bits: int) -> None:
    with GuestMemory(4 * MIB) as memory:
        entry = boot.load(pvh_elf(ENTRY, bits=bits), memory, BootSpec())
        assert (entry.protocol, entry.mode, entry.rip) == ("pvh", CpuMode.PROTECTED, ENTRY)
        assert entry.regs == {"rbx": layout.START_INFO}


@pytest.mark.parametrize("of_linux", [note(b"Linux", 256, b"\0"), note(b"Xen", 6, b"linux\0")])
def test_linux_is_entered_in_64_bit_mode_unless_pvh_is_forced(of_linux: bytes) -> None:
    image = pvh_elf(ENTRY, of_linux)
    with GuestMemory(4 * MIB) as memory:
        assert boot.load(image, memory, BootSpec()).protocol == "linux64"
    with GuestMemory(4 * MIB) as memory:
        assert boot.load(image, memory, BootSpec(), "pvh").protocol == "pvh"


def test_start_info_names_command_line_tables_map_and_modules() -> None:
    spec = BootSpec(
        cmdline=b"quiet", initrd=b"archive", modules=((b"extra", b"name"),), rsdp=0xE0000
    )
    with GuestMemory(4 * MIB) as memory:
        boot.load(pvh_elf(ENTRY), memory, spec)
        info = start_info(memory)
        magic, version, flags, module_count, modules, cmdline, rsdp, map_gpa, map_count, _ = info
        assert (magic, version, flags) == (0x336EC578, 1, 0)
        assert memory.read(cmdline, 6) == b"quiet\0"
        assert rsdp == 0xE0000

        entries = list(struct.iter_unpack("<QQII", memory.read(map_gpa, map_count * 24)))
        assert entries[-1] == (MIB, 3 * MIB, 1, 0)

        assert module_count == 2
        first, second = struct.iter_unpack("<QQQQ", memory.read(modules, 64))
        assert memory.read(first[0], first[1]) == b"archive"
        assert first[2] == 0
        assert memory.read(second[0], second[1]) == b"extra"
        assert memory.read(second[2], 5) == b"name\0"


def test_without_an_initrd_there_is_no_module_list() -> None:
    with GuestMemory(4 * MIB) as memory:
        boot.load(pvh_elf(ENTRY), memory, BootSpec())
        assert start_info(memory)[3:5] == (0, 0)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (elf(), "no PVH entry"),
        (pvh_elf(0x1234), "PVH entry 0x1234 lies in no loadable segment"),
        (elf(Load(MIB), Load(0, note(b"Xen", 18, b"\0"), type=4)), "no PVH entry"),
    ],
)
def test_images_that_cannot_work_are_refused(image: bytes, message: str) -> None:
    with GuestMemory(4 * MIB) as memory, pytest.raises(BootError, match=message):
        boot.load(image, memory, BootSpec(), "pvh")


def test_more_modules_than_start_info_has_room_for_are_refused() -> None:
    with GuestMemory(4 * MIB) as memory, pytest.raises(BootError, match="--module"):
        boot.load(pvh_elf(ENTRY), memory, BootSpec(modules=((b"x", b"y" * 100),) * 40))
