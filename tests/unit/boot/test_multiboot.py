"""Multiboot 1: both ways to load, and the information a guest is given."""

from __future__ import annotations

import struct

import pytest
from images import HLT, Load, elf, multiboot_header

from pykvm import boot, layout
from pykvm.boot.entry import BootSpec, CpuMode
from pykvm.errors import BootError
from pykvm.layout import KIB, MIB
from pykvm.memory import GuestMemory

ADDRESSES = 1 << 16


def elf32(flags: int = 0, **options: bool) -> bytes:
    return elf(Load(4 * MIB, multiboot_header(flags) + HLT * 64), bits=32, machine=3, **options)


def information(memory: GuestMemory) -> dict[str, int]:
    """The fields by their names in §3.3, "Boot information format"."""
    offsets = {
        "flags": 0, "lower": 4, "upper": 8, "cmdline": 16, "mods_count": 20, "mods_addr": 24,
        "mmap_length": 44, "mmap_addr": 48, "loader_name": 64,
    }  # fmt: skip
    raw = memory.read(layout.MULTIBOOT_INFO, 116)
    return {name: struct.unpack_from("<I", raw, at)[0] for name, at in offsets.items()}


def string(memory: GuestMemory, gpa: int) -> bytes:
    return memory.read(gpa, 256).split(b"\0")[0]


def modules(memory: GuestMemory) -> list[tuple[bytes, bytes]]:
    info = information(memory)
    found = []
    for i in range(info["mods_count"]):
        entry = memory.read(info["mods_addr"] + i * 16, 16)
        start, end, name, reserved = struct.unpack("<4I", entry)
        assert (start % 4096, reserved) == (0, 0)
        found.append((memory.read(start, end - start), string(memory, name)))
    return found


def test_an_elf_kernel_is_entered_in_protected_mode_with_both_registers() -> None:
    with GuestMemory(16 * MIB) as memory:
        entry = boot.load(elf32(), memory, BootSpec())
        assert (entry.protocol, entry.mode, entry.rip) == (
            "multiboot", CpuMode.PROTECTED, 4 * MIB,
        )  # fmt: skip
        assert entry.regs == {"rax": 0x2BADB002, "rbx": layout.MULTIBOOT_INFO}
        assert memory.read(4 * MIB + 12, 64) == HLT * 64


def test_the_command_line_begins_with_the_kernels_name() -> None:
    with GuestMemory(16 * MIB) as memory:
        boot.load(elf32(), memory, BootSpec(name=b"test.flat", cmdline=b"smp 4"))
        info = information(memory)
        assert info["flags"] & 1 << 2
        assert string(memory, info["cmdline"]) == b"test.flat smp 4"


def test_memory_sizes_and_map_describe_the_memory() -> None:
    with GuestMemory(16 * MIB) as memory:
        boot.load(elf32(), memory, BootSpec())
        info = information(memory)
        assert info["flags"] & (1 << 0 | 1 << 6) == 1 << 0 | 1 << 6
        assert (info["lower"], info["upper"]) == (639, 15 * KIB)
        raw = memory.read(info["mmap_addr"], info["mmap_length"])
        entries = list(struct.iter_unpack("<IQQI", raw))
        assert [entry[0] for entry in entries] == [20, 20, 20]
        assert entries[0][1:] == (0, layout.EBDA, 1)
        assert entries[2][1:] == (MIB, 15 * MIB, 1)


def test_the_loader_names_itself() -> None:
    with GuestMemory(16 * MIB) as memory:
        boot.load(elf32(), memory, BootSpec())
        info = information(memory)
        assert info["flags"] & 1 << 9
        assert string(memory, info["loader_name"]) == b"pykvm"


def test_modules_follow_the_kernel_on_page_boundaries_the_initrd_first() -> None:
    spec = BootSpec(initrd=b"archive", modules=((b"a" * 5000, b"first x"), (b"", b"empty")))
    with GuestMemory(16 * MIB) as memory:
        boot.load(elf32(), memory, spec)
        assert information(memory)["flags"] & 1 << 3
        assert modules(memory) == [
            (b"archive", b"initrd"), (b"a" * 5000, b"first x"), (b"", b"empty"),
        ]  # fmt: skip


def test_without_modules_the_flag_is_clear() -> None:
    with GuestMemory(16 * MIB) as memory:
        boot.load(elf32(), memory, BootSpec())
        assert not information(memory)["flags"] & 1 << 3


def test_header_addresses_load_part_of_the_file_and_leave_room_for_bss() -> None:
    header = multiboot_header(ADDRESSES, MIB + 32, MIB, MIB + 128, MIB + 8192, MIB + 64)
    image = b"junk" * 4 + bytes(32) + header + HLT * 200
    with GuestMemory(4 * MIB) as memory:
        entry = boot.load(image, memory, BootSpec(modules=((b"m", b""),)))
        assert entry.rip == MIB + 64
        assert memory.read(MIB, 128) == image[16:144]
        assert not any(memory.read(MIB + 128, 64)), "bytes past load_end_addr were loaded"
        start = struct.unpack("<I", memory.read(information(memory)["mods_addr"], 4))[0]
        assert start >= MIB + 8192, "the module lies in the bss"


def test_header_addresses_of_zero_mean_the_whole_file_and_no_bss() -> None:
    image = multiboot_header(ADDRESSES, MIB, MIB, 0, 0, MIB + 32) + HLT * 100
    with GuestMemory(4 * MIB) as memory:
        boot.load(image, memory, BootSpec())
        assert memory.read(MIB, len(image)) == image


def test_header_addresses_win_over_elf_headers() -> None:
    header = multiboot_header(ADDRESSES, 2 * MIB, 2 * MIB, 0, 0, 2 * MIB + 32)
    image = elf(Load(MIB, header + HLT * 100), bits=32, machine=3)
    with GuestMemory(4 * MIB) as memory:
        assert boot.load(image, memory, BootSpec()).rip == 2 * MIB + 32


def test_a_64_bit_elf_with_a_multiboot_header_is_entered_in_32_bit_mode_all_the_same() -> None:
    image = elf(Load(MIB, multiboot_header() + HLT * 64))
    with GuestMemory(4 * MIB) as memory:
        assert boot.load(image, memory, BootSpec()).mode is CpuMode.PROTECTED


def test_a_request_for_video_boots_with_a_note() -> None:
    with GuestMemory(16 * MIB) as memory:
        (note,) = boot.load(elf32(flags=0b111), memory, BootSpec()).notes
        assert "video" in note


def test_symbols_are_handed_on() -> None:
    with GuestMemory(16 * MIB) as memory:
        assert boot.load(elf32(symbols=True), memory, BootSpec()).symbols is not None


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (elf32(flags=1 << 5), r"requires features \(0x0020\)"),
        (multiboot_header() + HLT * 99, "without load addresses, and the file is not ELF"),
        (multiboot_header(ADDRESSES, MIB), "header is truncated"),
        (multiboot_header(ADDRESSES, MIB, 2 * MIB, 0, 0, MIB), "contradict"),
        (multiboot_header(ADDRESSES, MIB + 4, MIB, 0, 0, MIB), "contradict"),
        (multiboot_header(ADDRESSES, MIB, MIB, 2 * MIB, 0, MIB), "before its multiboot load_end"),
        (multiboot_header(ADDRESSES, MIB, MIB, 0, 0, MIB - 1), "entry_addr 0xfffff is outside"),
        (multiboot_header(ADDRESSES, MIB, MIB, 0, 1 << 30, MIB), "--memory 1024M"),
        (multiboot_header(ADDRESSES, 0x30000, 0x30000, 0, 0, 0x30000), "multiboot information"),
    ],
)
def test_images_that_cannot_work_are_refused(image: bytes, message: str) -> None:
    with GuestMemory(16 * MIB) as memory, pytest.raises(BootError, match=message):
        boot.load(image, memory, BootSpec())


def test_a_wrong_checksum_or_a_header_past_8_kib_is_no_header() -> None:
    header = multiboot_header(ADDRESSES, MIB, MIB, 0, 0, MIB)
    damaged = header[:8] + b"\0" + header[9:]
    with GuestMemory(4 * MIB) as memory:
        for image in (damaged + HLT * 64, bytes(8192) + header, b"\x90" + header):
            with pytest.raises(BootError, match="no multiboot header"):
                boot.load(image, memory, BootSpec(), "multiboot")


def test_a_header_in_the_last_bytes_of_the_8_kib_is_found() -> None:
    image = elf(
        Load(MIB, multiboot_header() + HLT * 64), bits=32, machine=3, pad=8192 - 12 - 52 - 32
    )
    with GuestMemory(4 * MIB) as memory:
        assert boot.load(image, memory, BootSpec()).protocol == "multiboot"


def test_a_module_that_does_not_fit_is_refused() -> None:
    with GuestMemory(8 * MIB) as memory, pytest.raises(BootError, match=r"'big' .*--memory 13M"):
        boot.load(elf32(), memory, BootSpec(modules=((bytes(8 * MIB), b"big"),)))


def test_a_command_line_without_room_is_refused() -> None:
    with GuestMemory(16 * MIB) as memory, pytest.raises(BootError, match=r"--append: .*65536"):
        boot.load(elf32(), memory, BootSpec(cmdline=b"x" * 65536))
