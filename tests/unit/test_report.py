"""The parts of a report that need no machine: symbols of a real ELF, instructions, remedies."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm import report
from pykvm.outcome import Reason
from pykvm.report import Symbols

SOURCE = """
        .text
        .globl  _start
        .type   _start, @function
_start: nop
        nop
        ret
        .size   _start, . - _start
        .skip   16
        .type   helper, @function
helper: ret
        .size   helper, . - helper
bare:   ret                             # no type and no size: as assembly often is
"""


@pytest.fixture(scope="module")
def elf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An ELF file as the host's own tools make it: code at 0x100000."""
    folder = tmp_path_factory.mktemp("elf")
    (folder / "code.S").write_text(SOURCE)
    command = ["gcc", "-nostdlib", "-static", "-no-pie", "-Wl,-Ttext=0x100000", "-o"]
    subprocess.run([*command, folder / "code", folder / "code.S"], check=True)
    return (folder / "code").read_bytes()


@pytest.mark.parametrize(
    ("address", "name"),
    [
        (0x0F_FFFF, None),
        (0x10_0000, "_start"),
        (0x10_0002, "_start+0x2"),
        (0x10_0003, None),  # behind the end of _start
        (0x10_0013, "helper"),
        (0x10_0014, "bare"),
        (0x10_0015, "bare+0x1"),
        (0xFFFF_FFFF_FFFF_FFFF, None),
    ],
)
def test_address_has_the_name_of_its_function(elf: bytes, address: int, name: str | None) -> None:
    assert Symbols(elf).find(address) == name


def test_stripped_elf_has_no_names(elf: bytes, tmp_path: Path) -> None:
    (tmp_path / "code").write_bytes(elf)
    subprocess.run(["strip", tmp_path / "code"], check=True)
    assert Symbols((tmp_path / "code").read_bytes()).find(0x10_0000) is None


@pytest.mark.parametrize("image", [None, b"", b"\x7fELF", b"not an ELF file" * 100])
def test_image_without_symbols_has_no_names(image: bytes | None) -> None:
    assert Symbols(image).find(0x10_0000) is None


@given(data=st.data())
def test_damaged_elf_gives_names_or_none_but_never_fails(elf: bytes, data: st.DataObject) -> None:
    damaged = bytearray(elf)
    places = st.integers(0, len(elf) - 1)
    for at in data.draw(st.lists(places | st.integers(0, 63), max_size=8)):
        damaged[at] = data.draw(st.integers(0, 255))
    end = data.draw(st.none() | places)
    name = Symbols(bytes(damaged[:end])).find(0x10_0000)
    assert name is None or isinstance(name, str)


# ── instructions ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("code", "bits", "text"),
    [
        ("0f0b4889d8", 64, "0f 0b   ud2"),
        ("480fc70f90", 64, "48 0f c7 0f   cmpxchg16b xmmword ptr [rdi]"),
        ("b83412", 16, "b8 34 12   mov ax, 0x1234"),
        ("b834120000", 32, "b8 34 12 00 00   mov eax, 0x1234"),
        ("ebfe", 64, "eb fe   jmp 0x1000"),
        ("0f0aff", 64, "0f 0a ff   (no instruction)"),
    ],
)
def test_instruction_is_shown_with_its_bytes(code: str, bits: int, text: str) -> None:
    assert report._instruction(bytes.fromhex(code), 0x1000, bits) == text


# ── last words, remedies ─────────────────────────────────────────────────────────────────────────


def last_words(console: bytes) -> list[str]:
    machine: Any = SimpleNamespace(console_log=bytearray(console))
    return report._last_words(machine)


def test_last_lines_of_the_console_are_told_without_terminal_escapes() -> None:
    console = (
        b"".join(b"\x1b[1;31mline %d\x1b[0m\r\n\r\n" % i for i in range(100)) + b"half a l\xffne"
    )
    lines = last_words(console)
    assert len(lines) == 1 + report.LINES_KEPT
    assert lines[-2:] == ["  | line 99", "  | half a l�ne"]


def test_silence_is_told_too() -> None:
    assert last_words(b"\r\n \n") == ["  the console said nothing"]


@pytest.mark.parametrize(
    ("console", "remedy"),
    [
        (b"VFS: Unable to mount root fs on unknown-block(0,0)", "--initrd"),
        (b"Kernel panic - not syncing: No working init found.", "static"),
        (b"Initramfs unpacking failed: junk in compressed archive", "initrd is damaged"),
        (b"Out of memory: Killed process 1", "--memory"),
    ],
)
def test_what_the_kernel_complains_of_has_a_remedy(console: bytes, remedy: str) -> None:
    assert remedy in report._remedy(Reason.PANIC, console)


@pytest.mark.parametrize(
    "reason",
    [
        Reason.TRIPLE_FAULT,
        Reason.HALTED,
        Reason.HUNG,
        Reason.TIMEOUT,
        Reason.FAIL_ENTRY,
        Reason.INTERNAL_ERROR,
    ],
)
def test_every_bad_end_has_a_remedy_of_its_own(reason: Reason) -> None:
    assert report._remedy(reason, b"")
