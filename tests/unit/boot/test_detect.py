"""What an image is taken for; and what is said of one that is none."""

from __future__ import annotations

import gzip
import lzma

import pytest
from images import HLT, Load, bzimage, elf, multiboot_header

from pykvm import boot
from pykvm.boot.detect import is_linux32
from pykvm.boot.entry import BootSpec, CpuMode
from pykvm.errors import BootError
from pykvm.layout import MIB
from pykvm.memory import GuestMemory

MULTIBOOT2 = bytes.fromhex("d65052e8") + bytes(12)


@pytest.mark.parametrize(
    ("image", "protocol"),
    [
        (elf(), "linux64"),
        (elf(Load(MIB, multiboot_header() + HLT), bits=32, machine=3), "multiboot"),
        (multiboot_header(1 << 16, MIB, MIB, 0, 0, MIB) + HLT * 20, "multiboot"),
        (bzimage(), "bzimage64"),
        (bzimage(xloadflags=0), "linux32"),
        (bzimage(xloadflags=0, code32_start=0), "linux16"),
    ],
)
def test_the_protocol_is_found_by_magic(image: bytes, protocol: str) -> None:
    with GuestMemory(64 * MIB) as memory:
        entry = boot.load(image, memory, BootSpec())
        assert entry.protocol == protocol
        assert protocol in boot.PROTOCOLS


@pytest.mark.parametrize(
    ("image", "is_32_bit"),
    [
        (bzimage(), False),
        (bzimage(xloadflags=0), True),
        (bzimage(xloadflags=0, version=0x20B), False),  # that old, a kernel does not say
        (elf(), False),
    ],
)
def test_a_kernel_for_32_bit_programs_only_says_so(image: bytes, is_32_bit: bool) -> None:
    assert is_linux32(memoryview(image)) is is_32_bit


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress])
def test_a_compressed_elf_is_unpacked_first(compress: type[bytes]) -> None:
    with GuestMemory(4 * MIB) as memory:
        assert boot.load(compress(elf()), memory, BootSpec()).protocol == "linux64"


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"", "the file is empty"),
        (b"\xf4", "1 bytes without a known magic; .*--mode real"),
        (bytes(510) + b"\x55\xaa", "a boot sector; .* --mode real"),
        (bytes(510) + b"\x55\xaa" + bytes(512), "a disk image, .* --root FILE,partition=1"),
        (b"\xf4" * 4096, "no known magic: .*--mode real"),
        (b"#!/bin/sh\n" * 100, "this is a script"),
        (b"just some words\n" * 100, "a text file"),
        (bytes(0x38) + b"ARM\x64" + bytes(600), "an arm64 kernel image"),
        (b"MZ" + bytes(1000), "an EFI application"),
        (b"MZ" + bytes(62) + multiboot_header(), "an EFI application.*xen.gz"),
        (b"\x55\xaa\x4d" + bytes(1000), "an option ROM"),
        (bytes(0x1FFF0) + bytes.fromhex("ea5be000f0") + b"01/01/26\0\xfc\0", "firmware"),
        (b"QFI\xfb" + bytes(1000), "a qcow2 disk image"),
        (bytes(0x438) + b"\x53\xef" + bytes(1000), "an ext2/3/4 file system"),
        (bytes(0x8001) + b"CD001" + bytes(1000), "an ISO 9660 image"),
        (gzip.compress(b"070701" + bytes(1000), mtime=0), "pass it with --initrd"),
        (elf(machine=243), "an ELF file for RISC-V"),
        (elf(Load(MIB, MULTIBOOT2 + HLT), bits=32, machine=3, pad=4), "multiboot 2 only"),
        (MULTIBOOT2 + bytes(600), "multiboot 2 only"),
        (elf(bits=32, machine=3), "without a multiboot header or a PVH note"),
        (gzip.compress(elf(), mtime=0)[:-9], "payload is (damaged|truncated)"),
        (gzip.compress(bytes(5 * MIB), mtime=0), "--memory: the kernel decompresses to more than"),
    ],
)
def test_an_image_that_is_no_kernel_is_named_for_what_it_is(image: bytes, message: str) -> None:
    with GuestMemory(4 * MIB) as memory, pytest.raises(BootError, match=message):
        boot.load(image, memory, BootSpec())


@pytest.mark.parametrize("protocol", sorted(set(boot.PROTOCOLS) - {"flat", "linux64"}))
def test_a_forced_protocol_that_the_image_lacks_is_refused(protocol: str) -> None:
    with GuestMemory(4 * MIB) as memory, pytest.raises(BootError, match="KERNEL"):
        boot.load(elf(), memory, BootSpec(), protocol)


def test_an_unknown_protocol_is_refused_with_the_known_ones() -> None:
    with GuestMemory(MIB) as memory, pytest.raises(BootError, match=r"--protocol: 'x'.*multiboot"):
        boot.load(elf(), memory, BootSpec(), "x")


def test_modules_for_a_protocol_without_any_are_refused() -> None:
    spec = BootSpec(modules=((b"data", b"name"),))
    with GuestMemory(4 * MIB) as memory, pytest.raises(BootError, match="--module"):
        boot.load(elf(), memory, spec)


def test_mode_for_a_bzimage_is_refused() -> None:
    with GuestMemory(4 * MIB) as memory, pytest.raises(BootError, match="a Linux bzImage"):
        boot.load(bzimage(), memory, BootSpec(mode=CpuMode.LONG))
