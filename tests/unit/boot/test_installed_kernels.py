"""The loaders on distribution kernels: those that `pykvm kernel fetch` left in the cache.

pyelftools, which the loaders do without, says what guest memory must hold.
"""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from pykvm import boot, layout
from pykvm.boot import kernels, payload, vmlinux
from pykvm.boot.entry import BootSpec, CpuMode
from pykvm.boot.setupheader import SetupHeader
from pykvm.layout import MIB
from pykvm.memory import GuestMemory

IMAGES = [kernel.image for kernel in kernels.installed()]

pytestmark = pytest.mark.skipif(not IMAGES, reason="no kernels here: pykvm kernel fetch")
every_kernel = pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)


@every_kernel
def test_memory_holds_the_segments_that_pyelftools_finds(path: Path) -> None:
    image = memoryview(path.read_bytes())
    data = vmlinux.find_payload(image, SetupHeader.parse(image))
    assert data is not None
    size = int.from_bytes(data[-4:], "little")
    plain = payload.decompress(data if payload.format_of(data) == "gzip" else data[:-4], size)
    kernel = ELFFile(io.BytesIO(plain))
    segments = [segment for segment in kernel.iter_segments() if segment["p_type"] == "PT_LOAD"]
    assert segments
    for attempt in ("decompressed", "from the cache"):
        with GuestMemory(256 * MIB) as memory:
            entry = boot.load(image, memory, BootSpec())
            assert (entry.protocol, entry.mode) == ("linux64", CpuMode.LONG), attempt
            assert entry.rip == kernel["e_entry"]
            for segment in segments:
                there = memory.read(segment["p_paddr"], segment["p_filesz"])
                assert there == segment.data(), attempt


@every_kernel
@pytest.mark.parametrize(
    ("protocol", "mode", "register"),
    [
        ("pvh", CpuMode.PROTECTED, {"rbx": layout.START_INFO}),
        ("bzimage64", CpuMode.LONG, {"rsi": layout.ZERO_PAGE}),
        ("linux32", CpuMode.PROTECTED, {"rsi": layout.ZERO_PAGE}),
        ("linux16", CpuMode.REAL, {"rsp": 0xE000}),
    ],
)
def test_every_other_entry_is_there_too(
    path: Path, protocol: str, mode: CpuMode, register: dict[str, int]
) -> None:
    with GuestMemory(256 * MIB) as memory:
        entry = boot.load(path.read_bytes(), memory, BootSpec(), protocol)
        assert (entry.protocol, entry.mode, entry.regs) == (protocol, mode, register)
