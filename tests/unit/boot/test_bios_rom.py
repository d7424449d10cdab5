"""The BIOS as bytes: vectors, data area, ROM, and the way of an entry through it."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from pykvm import layout
from pykvm.boot import bios
from pykvm.boot.entry import CpuMode, Entry
from pykvm.memory import GuestMemory

SECTOR = Entry(
    "flat", CpuMode.REAL, 0x7C00, {"rax": 0x1234, "rdx": 0x80}, {"cs": 0, "ds": 5, "ss": 6}
)
FAR_JUMP = 0xEA


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(2 << 20) as memory:
        yield memory


def test_every_vector_leads_into_the_rom() -> None:
    rom, vectors, _ = bios.build_rom(SECTOR)
    assert len(vectors) == 256
    assert all(v >> 16 == bios.ROM_SEGMENT and v & 0xFFFF < len(rom) for v in vectors)


def test_each_service_pushes_its_number_and_goes_to_the_common_stub() -> None:
    rom, vectors, _ = bios.build_rom(SECTOR)
    targets = set()
    for number in bios.SERVICES:
        at = vectors[number] & 0xFFFF
        push, pushed, jump, distance = struct.unpack_from("<BBBh", rom, at)
        assert (push, pushed, jump) == (0x6A, number, 0xE9)
        targets.add(at + 5 + distance)
    assert [rom[at : at + len(bios.CALL)] for at in targets] == [bios.CALL]


def test_the_stub_exits_through_the_layouts_port() -> None:
    assert b"\xba" + struct.pack("<H", layout.PORT_BIOS_CALL) + b"\x66\xef" in bios.CALL


def test_the_entry_is_reached_with_its_own_registers(memory: GuestMemory) -> None:
    entry = bios.install(memory, SECTOR)
    assert entry.segments == {"cs": bios.ROM_SEGMENT, "ds": 5, "ss": 6}
    assert entry.regs == SECTOR.regs
    rom = memory.read(layout.BIOS_ROM, 0x200)
    code = rom[entry.rip :]
    assert code[: 4 * len(bios.BOARD_SETUP) : 4] == b"\xb0" * len(bios.BOARD_SETUP)
    end = struct.pack("<BBIBBHH", 0x66, 0xB8, 0x1234, 0xFB, FAR_JUMP, 0x7C00, 0)
    assert code[4 * len(bios.BOARD_SETUP) :].startswith(end)


def test_a_multiboot_guest_keeps_its_entry_and_finds_the_bios(memory: GuestMemory) -> None:
    entry = Entry("multiboot", CpuMode.PROTECTED, 0x10_0000, {"rax": 0x2BADB002})
    assert bios.install(memory, entry) == entry
    vector = struct.unpack("<HH", memory.read(0x15 * 4, 4))
    assert vector[1] == bios.ROM_SEGMENT
    # Where Xen looks for the end of conventional memory.
    assert struct.unpack("<H", memory.read(0x40E, 2))[0] << 4 == layout.EBDA
    assert struct.unpack("<H", memory.read(0x413, 2))[0] == layout.EBDA // 1024


def test_a_bzimage_is_entered_with_interrupts_off() -> None:
    entry = Entry("linux16", CpuMode.REAL, 0, {}, {"cs": 0x1020})
    rom, _, _ = bios.build_rom(entry)
    assert rom.endswith(struct.pack("<BBIBHH", 0x66, 0xB8, 0, FAR_JUMP, 0, 0x1020))


def test_the_reset_vector_is_a_far_jump_and_the_model_byte_an_ats(memory: GuestMemory) -> None:
    bios.install(memory, SECTOR)
    top = memory.read(0xF_FFF0, 16)
    assert (top[0], struct.unpack("<H", top[3:5])) == (FAR_JUMP, (bios.ROM_SEGMENT,))
    assert top[14] == 0xFC


@pytest.mark.parametrize("gpa", [0x0000, 0x046C, 0xF_0000, 0xF_FFF0])
def test_an_image_where_the_bios_belongs_brings_its_own(memory: GuestMemory, gpa: int) -> None:
    memory.write(gpa, b"x")
    assert bios.install(memory, SECTOR) is SECTOR
    assert not any(memory.read(0x10, 0x300))


def test_memory_too_small_for_a_rom_goes_without() -> None:
    with GuestMemory(64 << 10) as memory:
        assert bios.install(memory, SECTOR) is SECTOR


@pytest.mark.parametrize(("low_end", "kib"), [(1 << 20, 639), (256 << 10, 256)])
def test_the_data_area_tells_conventional_memory(low_end: int, kib: int) -> None:
    area = bios.build_data_area(low_end)
    assert struct.unpack_from("<H", area, 0x13) == (kib,)
    assert struct.unpack_from("<H", area, 0x00) == (layout.PORT_COM1,)
