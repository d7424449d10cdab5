"""ELF: headers, entries, notes; segments in guest memory."""

from __future__ import annotations

import pytest
from images import HLT, Load, elf, note

from pykvm.boot import elf as loader
from pykvm.boot.claims import Claims
from pykvm.boot.entry import BootSpec, CpuMode
from pykvm.errors import BootError
from pykvm.layout import MIB
from pykvm.memory import GuestMemory


def load(image: bytes, memory: GuestMemory) -> loader.Elf:
    kernel = loader.parse(memoryview(image))
    loader.load_segments(kernel, memory, Claims(memory, BootSpec(), CpuMode.REAL))
    return kernel


@pytest.mark.parametrize("bits", [32, 64])
def test_segments_land_at_their_physical_addresses(bits: int) -> None:
    image = elf(
        Load(MIB, b"text", vaddr=0x8000_0000), Load(2 * MIB, b"data", memory_size=99), bits=bits
    )
    with GuestMemory(4 * MIB) as memory:
        kernel = load(image, memory)
        assert kernel.bits == bits
        assert memory.read(MIB, 5) == b"text\0"
        assert memory.read(2 * MIB, 5) == b"data\0"


def test_a_physical_entry_stays_and_a_virtual_one_is_translated() -> None:
    linked = Load(MIB, HLT * 64, vaddr=0xFFFF_FFFF_8000_0000)
    for entry in (MIB + 16, 0xFFFF_FFFF_8000_0010):
        kernel = loader.parse(memoryview(elf(linked, entry=entry)))
        assert kernel.physical_entry() == MIB + 16


def test_an_entry_outside_every_segment_is_refused() -> None:
    kernel = loader.parse(memoryview(elf(entry=0x42)))
    with pytest.raises(BootError, match="entry point 0x42 lies in no loadable segment"):
        kernel.physical_entry()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (elf(Load(MIB, memory_size=8)), "0x40 bytes in the file but only 0x8 in memory"),
        (elf(Load(MIB), Load(MIB + 63)), "segment 0 .* overlaps the kernel's ELF segment 1"),
        (elf(Load(MIB, file_size=4096)), "truncated: ELF segment 0 ends at byte 4216 of 184"),
        (elf(Load(64 * MIB)), "--memory 65M"),
        (elf(Load(8 * MIB), Load(32 * MIB), Load(16 * MIB)), "--memory 33M"),
        (elf(Load(MIB, memory_size=1 << 40)), "3 GiB"),
        (elf(Load(MIB, memory_size=(1 << 64) - 1)), "3 GiB"),
        (elf(Load(MIB, b"")), "no loadable segment"),
    ],
)
def test_segments_that_cannot_be_loaded_are_refused(image: bytes, message: str) -> None:
    with GuestMemory(4 * MIB) as memory:
        with pytest.raises(BootError, match=message):
            load(image, memory)
        assert not any(memory.read(0, 4 * MIB)), "refused, but something was written"


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"\x7fELF", "only the beginning"),
        (elf()[:60], "truncated"),
        (elf(Load(MIB), Load(2 * MIB))[:130], "program headers are truncated"),
        (elf(machine=183), "an ELF file for arm64; pykvm boots kernels for x86"),
        (elf(Load(MIB), Load(0, b"/lib64/ld.so", type=3)), "a Linux program, not a kernel"),
        (elf(machine=999), "an ELF file for machine 999"),
        (elf().replace(b"ELF\2\1", b"ELF\2\2"), "another kind"),
        (elf()[:56] + b"\0\0" + elf()[58:], "no program headers"),
        (elf()[:54] + b"\1\0" + elf()[56:], "program headers of 1 bytes, not 56"),
    ],
)
def test_headers_that_make_no_sense_are_refused(image: bytes, message: str) -> None:
    with pytest.raises(BootError, match=message):
        loader.parse(memoryview(image))


@pytest.mark.parametrize("bits", [32, 64])
def test_the_image_is_kept_for_reports_only_when_it_has_symbols(bits: int) -> None:
    assert loader.parse(memoryview(elf(bits=bits))).symbols is None
    image = elf(bits=bits, symbols=True)
    assert loader.parse(memoryview(image)).symbols == image


def test_damaged_section_headers_do_not_keep_a_kernel_from_booting() -> None:
    assert loader.parse(memoryview(elf(symbols=True)[:-1])).symbols is None


def test_notes_are_read_until_the_first_malformed_one() -> None:
    good = note(b"Xen", 18, b"\x10\0\0\0") + note(b"Linux", 256, b"\1")
    broken = note(b"Xen", 6, b"x" * 16)[:-4]
    kernel = loader.parse(memoryview(elf(Load(MIB), Load(0, good + broken, type=4))))
    assert list(kernel.notes()) == [(b"Xen", 18, b"\x10\0\0\0"), (b"Linux", 256, b"\1")]


def test_reading_notes_ends_however_many_an_image_has() -> None:
    many = Load(0, bytes(12 * 1000), type=4)
    kernel = loader.parse(memoryview(elf(Load(MIB), *[many] * 3)))
    assert len(list(kernel.notes())) == loader.NOTES_MAX
