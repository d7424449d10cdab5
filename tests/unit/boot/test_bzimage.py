"""bzImage: which entry is chosen, where the parts go, what the kernel is told."""

from __future__ import annotations

import struct

import pytest
from images import HLT, Load, bzimage, elf

from pykvm import boot, layout
from pykvm.boot import payload
from pykvm.boot.entry import BootSpec, CpuMode
from pykvm.errors import BootError
from pykvm.layout import MIB
from pykvm.memory import GuestMemory

VMLINUX = elf(Load(16 * MIB, b"vmlinux!" * 512))


def gzip_payload(data: bytes) -> bytes:
    import gzip

    return gzip.compress(data)  # its own trailer is the size field


def field(memory: GuestMemory, offset: int, size: int) -> int:
    return int.from_bytes(memory.read(layout.ZERO_PAGE + offset, size), "little")


def test_the_vmlinux_inside_is_loaded_and_entered() -> None:
    with GuestMemory(64 * MIB) as memory:
        entry = boot.load(bzimage(gzip_payload(VMLINUX)), memory, BootSpec())
        assert (entry.protocol, entry.rip) == ("linux64", 16 * MIB)
        assert memory.read(16 * MIB, 8) == b"vmlinux!"


def test_the_zero_page_gets_the_images_own_header() -> None:
    image = bytearray(bzimage(gzip_payload(VMLINUX)))
    image[0x1F2] = 0x7  # root_flags
    with GuestMemory(64 * MIB) as memory:
        boot.load(bytes(image), memory, BootSpec())
        assert field(memory, 0x1F2, 1) == 0x7
        assert field(memory, 0x206, 2) == 0x20F
        assert field(memory, 0x210, 1) == 0xFF
        assert field(memory, 0x26C, 1) == 0, "bytes past the header's end were copied"


def test_a_compression_without_a_library_falls_back_to_the_guests_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(data: memoryview, limit: int) -> bytes:
        raise payload.UnsupportedError("gzip needs Python's gzip: pip install gzip")

    formats = tuple((m, name, missing if name == "gzip" else f) for m, name, f in payload.FORMATS)
    monkeypatch.setattr(payload, "FORMATS", formats)
    image = bzimage(gzip_payload(VMLINUX))
    with GuestMemory(64 * MIB) as memory:
        entry = boot.load(image, memory, BootSpec())
        assert (entry.protocol, entry.mode, entry.rip) == (
            "bzimage64", CpuMode.LONG, 16 * MIB + 0x200,
        )  # fmt: skip
        assert "pip install gzip" in entry.notes[0]
        with pytest.raises(BootError, match="pip install gzip"):
            boot.load(image, memory, BootSpec(), "linux64")


def test_an_unknown_compression_falls_back_to_the_guests_own() -> None:
    with GuestMemory(64 * MIB) as memory:
        entry = boot.load(bzimage(b"????????????"), memory, BootSpec())
        assert entry.protocol == "bzimage64"
        assert "unknown compression" in entry.notes[0]


def test_a_damaged_payload_is_an_error_not_a_fallback() -> None:
    damaged = bytearray(gzip_payload(VMLINUX))
    damaged[30] ^= 0xFF
    with GuestMemory(64 * MIB) as memory, pytest.raises(BootError, match="damaged"):
        boot.load(bzimage(bytes(damaged)), memory, BootSpec())


@pytest.mark.parametrize(
    ("protocol", "mode", "rip"),
    [
        ("bzimage64", CpuMode.LONG, 16 * MIB + 0x200),
        ("linux32", CpuMode.PROTECTED, 16 * MIB),
    ],
)
def test_the_protected_mode_code_goes_where_it_prefers(
    protocol: str, mode: CpuMode, rip: int
) -> None:
    with GuestMemory(64 * MIB) as memory:
        entry = boot.load(bzimage(), memory, BootSpec(), protocol)
        assert (entry.mode, entry.rip, entry.regs) == (mode, rip, {"rsi": layout.ZERO_PAGE})
        assert memory.read(16 * MIB, 0x400) == HLT * 0x400
        assert field(memory, 0x214, 4) == 16 * MIB  # code32_start


def test_before_protocol_2_10_it_goes_to_code32_start() -> None:
    image = bzimage(version=0x207, code32_start=2 * MIB)
    with GuestMemory(8 * MIB) as memory:
        entry = boot.load(image, memory, BootSpec())
        assert (entry.protocol, entry.rip) == ("linux32", 2 * MIB)


@pytest.mark.parametrize(
    "image",
    [
        bzimage(version=0x207, code32_start=0),  # as iPXE's
        bzimage(version=0x203),  # as memdisk's and GRUB's
    ],
)
def test_an_image_without_a_32_bit_entry_starts_in_real_mode(image: bytes) -> None:
    with GuestMemory(8 * MIB) as memory:
        entry = boot.load(image, memory, BootSpec(cmdline=b"quiet", initrd=b"archive"))
        segment = layout.SETUP_CODE >> 4
        assert (entry.protocol, entry.mode, entry.rip) == ("linux16", CpuMode.REAL, 0)
        assert entry.segments["cs"] == segment + 0x20
        assert {entry.segments[name] for name in ("ds", "es", "fs", "gs", "ss")} == {segment}
        assert memory.read(MIB, 0x400) == HLT * 0x400

        setup = memory.read(layout.SETUP_CODE, 0x300)
        loadflags, heap_end = setup[0x211], struct.unpack_from("<H", setup, 0x224)[0]
        assert loadflags & 0x81 == 0x81
        assert 0x300 < heap_end < entry.regs["rsp"] < 0x1_0000
        cmdline = struct.unpack_from("<I", setup, 0x228)[0]
        assert memory.read(cmdline, 6) == b"quiet\0"
        ramdisk, size = struct.unpack_from("<II", setup, 0x218)
        assert memory.read(ramdisk, size) == b"archive"


def test_init_size_is_room_the_initrd_keeps_out_of() -> None:
    image = bzimage(init_size=40 * MIB)
    with GuestMemory(64 * MIB) as memory:
        boot.load(image, memory, BootSpec(initrd=bytes(8 * MIB)))
    with (
        GuestMemory(64 * MIB) as memory,
        pytest.raises(BootError, match=r"--initrd: .*--memory 65M"),
    ):
        boot.load(image, memory, BootSpec(initrd=bytes(8 * MIB + 1)))


def test_an_old_kernel_reads_255_bytes_of_command_line() -> None:
    image = bzimage(version=0x205)
    with GuestMemory(8 * MIB) as memory, pytest.raises(BootError, match="this kernel reads 255"):
        boot.load(image, memory, BootSpec(cmdline=b"x" * 256))


@pytest.mark.parametrize(
    ("image", "protocol", "message"),
    [
        (bzimage()[:0x240], None, "truncated"),
        (bzimage()[:-32], None, "truncated: its header promises"),
        (bzimage(gzip_payload(VMLINUX))[:-64], None, "truncated: its payload ends"),
        (bzimage()[:0x1FE] + b"xx" + bzimage()[0x200:], None, "damaged or truncated"),
        (bzimage(pref_address=1 << 40), None, "3 GiB"),
        (bzimage(pref_address=1 << 63), None, "3 GiB"),
        (bzimage(init_size=0xFFFF_FFFF), None, "3 GiB"),
        (bzimage(init_size=512 * MIB), None, "--memory 528M"),
        (bzimage(), "linux64", "no vmlinux inside"),
        (bzimage(), "pvh", "no vmlinux inside"),
        (bzimage(gzip_payload(VMLINUX)), "pvh", "no PVH entry"),
        (bzimage(xloadflags=0), "bzimage64", "no 64-bit entry"),
        (bzimage(loadflags=0), "linux32", "a zImage"),
        (bzimage(loadflags=0), "linux16", "a zImage"),
        (bzimage(version=0x201), "linux16", "boot protocol 2.01 is older than 2.02"),
        (bzimage(setup_sects=100), "linux16", "51712 bytes of setup code"),
    ],
)
def test_images_that_cannot_work_are_refused(
    image: bytes, protocol: str | None, message: str
) -> None:
    with GuestMemory(64 * MIB) as memory, pytest.raises(BootError, match=message):
        boot.load(image, memory, BootSpec(), protocol)
