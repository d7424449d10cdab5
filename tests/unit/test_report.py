"""The parts of a report that need no machine: instructions, remedies."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pykvm import layout, report
from pykvm.memory import GuestMemory
from pykvm.outcome import Reason


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


def last_words(console: bytes, screen: bytes = b"") -> list[str]:
    with GuestMemory(1 << 20) as memory:
        memory.write(layout.VGA_TEXT, screen)
        machine: Any = SimpleNamespace(console_log=bytearray(console), memory=memory)
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


def test_what_a_silent_guest_wrote_to_a_screen_is_told() -> None:
    screen = bytearray(2 * 80 * 25)
    screen[0:10:2], screen[1:11:2] = b"Hello", b"\x1f" * 5
    screen[2 * 80 * 24 : 2 * 80 * 24 + 6 : 2] = b"\xc9, "
    lines = last_words(b"", bytes(screen))
    assert "the console said nothing; a screen" in lines[0]
    assert lines[1:] == ["  | Hello", "  | ╔,"]
    assert "Hello" not in str(last_words(b"words", bytes(screen)))


def test_what_is_no_text_is_no_screen() -> None:
    assert last_words(b"", b"t e x t \1 ") == ["  the console said nothing"]


@pytest.mark.parametrize(
    ("console", "remedy"),
    [
        (b"VFS: Unable to mount root fs on unknown-block(0,0)", "--initrd"),
        (b"Kernel panic - not syncing: No working init found.", "static"),
        (b"Initramfs unpacking failed: write error", "do not fit the guest's memory"),
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


def test_only_a_silent_guest_that_is_out_of_time_is_told_of_its_console() -> None:
    assert "console=ttyS0" in report._remedy(Reason.TIMEOUT, b"\r\n")
    assert "console=ttyS0" not in report._remedy(Reason.TIMEOUT, b"login: ")


def test_a_kernel_that_a_boot_loader_fetched_has_the_remedy_there() -> None:
    console = b"Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)"
    remedy = report._remedy(Reason.PANIC, console, by_loader=True)
    assert "--initrd" not in remedy
    assert "in iPXE" in remedy
    assert "--memory" in report._remedy(Reason.PANIC, b"Out of memory", by_loader=True)


def test_what_calls_itself_no_linux_is_a_loader() -> None:
    header = bytearray(0x400)
    header[0x202:0x206], header[0x20E:0x210] = b"HdrS", b"\0\x01"  # its version is at 0x300
    for version, is_loader in ((b"6.12.1 (someone) #1 SMP\0", False), (b"iPXE 1.21\0", True)):
        header[0x300 : 0x300 + len(version)] = version
        machine: Any = SimpleNamespace(config=SimpleNamespace(kernel=bytes(header)))
        assert report._is_loader(machine) is is_loader
