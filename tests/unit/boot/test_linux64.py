"""The 64-bit Linux entry: registers, zero page, command line, initrd."""

from __future__ import annotations

import struct

import pytest
from images import Load, elf

from pykvm import boot, layout
from pykvm.boot.entry import BootSpec, CpuMode
from pykvm.errors import BootError
from pykvm.layout import GIB, MIB
from pykvm.memory import GuestMemory

KERNEL = elf(Load(16 * MIB, b"\xf4" * 4096, memory_size=4 * MIB))


def zero_page(memory: GuestMemory, offset: int, size: int) -> int:
    return int.from_bytes(memory.read(layout.ZERO_PAGE + offset, size), "little")


def test_a_vmlinux_is_entered_in_long_mode_with_rsi_at_the_zero_page() -> None:
    with GuestMemory(32 * MIB) as memory:
        entry = boot.load(KERNEL, memory, BootSpec())
        assert (entry.protocol, entry.mode, entry.rip) == ("linux64", CpuMode.LONG, 16 * MIB)
        assert entry.regs == {"rsi": layout.ZERO_PAGE}


def test_the_zero_page_has_a_header_that_linux_accepts() -> None:
    with GuestMemory(32 * MIB) as memory:
        boot.load(KERNEL, memory, BootSpec(rsdp=0xE0000))
        assert memory.read(layout.ZERO_PAGE + 0x202, 4) == b"HdrS"
        assert zero_page(memory, 0x1FE, 2) == 0xAA55
        assert zero_page(memory, 0x206, 2) >= 0x20C
        assert zero_page(memory, 0x210, 1) == 0xFF  # type_of_loader
        assert zero_page(memory, 0x1EF, 1) == 0  # sentinel
        assert zero_page(memory, 0x070, 8) == 0xE0000  # acpi_rsdp_addr


def test_the_zero_page_has_the_e820_map() -> None:
    with GuestMemory(4 * GIB) as memory:
        boot.load(KERNEL, memory, BootSpec())
        count = zero_page(memory, 0x1E8, 1)
        table = memory.read(layout.ZERO_PAGE + 0x2D0, count * 20)
        assert list(struct.iter_unpack("<QQI", table)) == [
            (0, layout.EBDA, 1),
            (layout.EBDA, MIB - layout.EBDA, 2),
            (MIB, 3 * GIB - MIB, 1),
            (4 * GIB, GIB, 1),
        ]


def test_the_command_line_is_passed_by_address() -> None:
    with GuestMemory(32 * MIB) as memory:
        boot.load(KERNEL, memory, BootSpec(cmdline=b"console=ttyS0"))
        assert memory.read(zero_page(memory, 0x228, 4), 14) == b"console=ttyS0\0"


def test_the_longest_command_line_fits_and_one_byte_more_is_refused() -> None:
    with GuestMemory(32 * MIB) as memory:
        boot.load(KERNEL, memory, BootSpec(cmdline=b"x" * 2047))
    with (
        GuestMemory(32 * MIB) as memory,
        pytest.raises(BootError, match=r"--append: .* 2048 bytes, this kernel reads 2047"),
    ):
        boot.load(KERNEL, memory, BootSpec(cmdline=b"x" * 2048))


def test_the_initrd_lies_at_the_top_of_low_memory() -> None:
    with GuestMemory(32 * MIB) as memory:
        boot.load(KERNEL, memory, BootSpec(initrd=b"archive"))
        gpa, size = zero_page(memory, 0x218, 4), zero_page(memory, 0x21C, 4)
        assert (gpa, size) == (32 * MIB - 4096, 7)
        assert memory.read(gpa, size) == b"archive"


def test_without_an_initrd_both_fields_are_zero() -> None:
    with GuestMemory(32 * MIB) as memory:
        boot.load(KERNEL, memory, BootSpec())
        assert zero_page(memory, 0x218, 8) == 0


def test_an_initrd_that_reaches_into_the_kernels_bss_is_refused() -> None:
    with (
        GuestMemory(32 * MIB) as memory,
        pytest.raises(BootError, match=r"--initrd: .* --memory 33M"),
    ):
        boot.load(KERNEL, memory, BootSpec(initrd=bytes(13 * MIB)))


def test_a_kernel_larger_than_memory_names_the_memory_it_needs() -> None:
    with GuestMemory(MIB) as memory, pytest.raises(BootError, match="--memory 20M"):
        boot.load(KERNEL, memory, BootSpec())


def test_a_kernel_over_the_zero_page_is_refused() -> None:
    low = elf(Load(layout.ZERO_PAGE), Load(MIB))
    with GuestMemory(4 * MIB) as memory, pytest.raises(BootError, match=r"boot_params .* overlaps"):
        boot.load(low, memory, BootSpec())


def test_a_32_bit_elf_is_refused() -> None:
    image = elf(bits=32, machine=3)
    with GuestMemory(4 * MIB) as memory, pytest.raises(BootError, match="needs a 64-bit ELF"):
        boot.load(image, memory, BootSpec(), "linux64")
