"""No image makes the loaders raise anything but `BootError`, or work without an end.

Sound images are cut, flipped and overwritten, and headers made of whole random numbers; each is
loaded by every protocol into a small guest.
"""

from __future__ import annotations

import gzip
import struct

from hypothesis import given, settings
from hypothesis import strategies as st
from images import HLT, Load, bzimage, elf, multiboot_header, note, pvh_elf

from pykvm import boot
from pykvm.boot.entry import BootSpec, CpuMode
from pykvm.errors import BootError
from pykvm.layout import MIB
from pykvm.memory import GuestMemory

MEMORY = 24 * MIB
VMLINUX = elf(Load(16 * MIB, HLT * 900), Load(0, note(b"Xen", 18, b"\0\0\0\1"), type=4))
SOUND = (
    VMLINUX,
    elf(symbols=True),
    pvh_elf(MIB + 16, bits=32),
    elf(Load(MIB, multiboot_header(3) + HLT * 64), bits=32, machine=3),
    multiboot_header(1 << 16, MIB, MIB, MIB + 100, MIB + 8192, MIB + 32) + HLT * 100,
    bzimage(),
    bzimage(gzip.compress(VMLINUX)),
    bzimage(version=0x203),
    gzip.compress(VMLINUX),
)
INTERESTING = st.sampled_from(
    [0, 1, 0x7C00, 0xFFFF, MIB, 16 * MIB, 0x7FFF_FFFF, 0xFFFF_FFFF, (1 << 63) - 1, (1 << 64) - 1]
)
numbers = INTERESTING | st.integers(0, (1 << 64) - 1)
protocols = st.sampled_from([None, *boot.PROTOCOLS])
specs = st.builds(
    BootSpec,
    cmdline=st.binary(max_size=40),
    initrd=st.sampled_from([b"", b"archive", bytes(7 * MIB), bytes(MEMORY)]),
    modules=st.sampled_from([(), ((b"module", b"name"),)]),
    rsdp=st.sampled_from([None, 0xE0000]),
    mode=st.none() | st.sampled_from(list(CpuMode)),
    load=st.none() | numbers,
    entry=st.none() | numbers,
    stamp=st.just(""),  # of no file: the images here come and go
)


OPTIONS = (
    "KERNEL", "--initrd", "--append", "--memory", "--load", "--entry", "--mode", "--module",
    "--protocol",
)  # fmt: skip
PLAIN = BootSpec()


def load(image: bytes, spec: BootSpec = PLAIN, protocol: str | None = None) -> None:
    with GuestMemory(MEMORY) as memory:
        try:
            entry = boot.load(image, memory, spec, protocol)
        except BootError as error:
            message = str(error)
        else:
            rip = entry.rip + (entry.segments.get("cs", 0) << 4)
            assert memory.contains(rip), "the entry is not in guest memory"
            return
    assert message.startswith(OPTIONS), f"the message names no option: {message}"


@given(st.binary(max_size=2000), specs, protocols)
def test_random_bytes(image: bytes, spec: BootSpec, protocol: str | None) -> None:
    load(image, spec, protocol)


@settings(max_examples=300)
@given(st.sampled_from(SOUND), st.data(), protocols)
def test_truncated_images(image: bytes, data: st.DataObject, protocol: str | None) -> None:
    load(image[: data.draw(st.integers(0, len(image)))], protocol=protocol)


@settings(max_examples=500)
@given(
    st.sampled_from(SOUND),
    st.lists(st.tuples(st.integers(0, 0x2FF), numbers, st.sampled_from([1, 2, 4, 8])), max_size=6),
    specs,
    protocols,
)
def test_overwritten_headers(
    image: bytes, writes: list[tuple[int, int, int]], spec: BootSpec, protocol: str | None
) -> None:
    damaged = bytearray(image)
    for at, number, size in writes:
        damaged[at : at + size] = (number & ((1 << size * 8) - 1)).to_bytes(size, "little")
    load(bytes(damaged), spec, protocol)


@settings(max_examples=300)
@given(
    st.lists(st.tuples(*[numbers] * 5, st.sampled_from([1, 4])), min_size=1, max_size=8),
    numbers,
    protocols,
)
def test_program_headers_of_random_numbers(
    headers: list[tuple[int, ...]], entry: int, protocol: str | None
) -> None:
    image = bytearray(elf(*[Load(MIB)] * len(headers), entry=entry))
    for i, (offset, vaddr, paddr, file_size, memory_size, kind) in enumerate(headers):
        struct.pack_into(
            "<IIQQQQQQ", image, 64 + 56 * i, kind, 0, offset, vaddr, paddr, file_size, memory_size,
            0,
        )  # fmt: skip
    load(bytes(image), protocol=protocol)


def test_65535_segments_over_the_whole_file_end_soon() -> None:
    count = 0xFFFF
    one = elf(Load(MIB, b"", memory_size=1))
    header = one[:56] + struct.pack("<H", count) + one[58:64]
    segment = struct.pack("<IIQQQQQQ", 1, 0, 0, MIB, MIB, MIB, MIB, 0)
    image = header + segment * count
    load(image)
    load(bzimage(gzip.compress(image, 1)))
