"""What to tell when a guest ends badly: what happened, where, its last words, the likely remedy.

Reached from `machine` after the vCPUs have stopped, so registers and memory are as the guest left
them. Nothing here may raise: a report that fails leaves out what it could not find.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from pykvm import layout
from pykvm._core import lib
from pykvm.boot.detect import is_linux
from pykvm.boot.files import open_image
from pykvm.errors import PykvmError
from pykvm.health import PANIC
from pykvm.memory import GuestMemoryError
from pykvm.outcome import Reason

if TYPE_CHECKING:
    from pykvm.machine import Machine
    from pykvm.vcpu import Vcpu

LINES_KEPT = 12
LINE_MAX = 200  # characters of a line, its last
ESCAPE_SEQUENCE: Final = rb"\x1b\[[0-9;?]*[A-Za-z]|\r"  # ECMA-48 CSI, as terminals obey
VGA_COLUMNS, VGA_ROWS = 80, 25
VGA_CHARACTERS: Final = frozenset((0, *range(32, 127), *range(128, 256)))
INSTRUCTION_MAX = 15  # bytes, Intel SDM vol. 2A §2.3.11

# What the console says, and what the user can do about it. The first that matches is told.
REMEDIES: Final = (
    (
        rb"Unable to mount root fs|VFS: Cannot open root device",
        "the kernel found no root file system: give --initrd FILE, or a root= that a driver "
        "built into this kernel can reach",
    ),
    (
        rb"No working init found|Requested init .* failed|Failed to execute /init",
        "the initrd has no program that the kernel can start as /init: check that it is there, is "
        "executable, is static or has its libraries, and is for x86-64",
    ),
    (
        rb"Initramfs unpacking failed: write error",
        "the initrd's files do not fit the guest's memory, so the last of them are missing: give "
        "it more with --memory",
    ),
    (
        rb"Initramfs unpacking failed|invalid magic at start of compressed archive|junk in",
        "the initrd is damaged or compressed in a way this kernel was not built for",
    ),
    (
        rb"Attempted to kill init! exitcode=0x0*([0-9a-f]+)",
        "the first program ended, which it never may: let it power the machine off instead",
    ),
    (rb"Out of memory|System is deadlocked on memory", "give the guest more with --memory"),
)
SILENT: Final = (
    "give it longer with --timeout; if it never says anything, check --append: console=ttyS0 is "
    "what Linux calls this console, and others have words of their own"
)
BY_LOADER: Final = (
    "the kernel that the boot loader fetched found no root file system, or no init there: give it "
    "an initrd in the loader ('initrd FILE' in iPXE), or a root= among its arguments"
)
REMEDIES_BY_REASON: Final = {
    Reason.TRIPLE_FAULT: (
        "an exception could not be delivered, nor the double fault that follows: look at the "
        "instruction, the IDT and the stack; a kernel this early may be damaged, or be entered in "
        "the wrong way (--protocol)"
    ),
    Reason.FAIL_ENTRY: "the CPU refused the guest's state: a register set is inconsistent",
    Reason.INTERNAL_ERROR: (
        "this host's KVM could not go on: 'pykvm doctor' shows what it can do, and 'pykvm lab --' "
        "in front of the command runs it where KVM is complete"
    ),
    Reason.HALTED: (
        "nothing can wake the machine. A guest that is done should say so: power off through ACPI, "
        "or write its exit code to port 0x5f8"
    ),
    Reason.HUNG: "the guest jumps to itself with interrupts off and will do so for ever",
    Reason.TIMEOUT: "give it longer with --timeout, or see in the last lines what it waits for",
}


def describe(machine: Machine, reason: Reason, vcpu: Vcpu | None) -> str:
    """The report, in lines without a final newline."""
    lines = [_headline(reason, vcpu)]
    panic = re.search(PANIC + rb": *([^\r\n]*)", machine.console_log)
    if reason is Reason.PANIC and panic:
        lines[0] += f": {panic[1].decode(errors='replace')}"
    for each in [vcpu] if vcpu else machine.vcpus[:4]:
        lines += [f"  {text}" for text in where(machine, each, reason)]
    lines += _last_words(machine)
    remedy = _remedy(reason, bytes(machine.console_log), _is_loader(machine))
    if remedy:
        lines.append(f"  remedy: {remedy}")
    return "\n".join(lines)


def _headline(reason: Reason, vcpu: Vcpu | None) -> str:
    text = f"the guest ended: {reason.value}"
    if vcpu is None:
        return text
    exit = vcpu.handle.exit
    if reason is Reason.INTERNAL_ERROR:
        if exit.kind != lib.PK_EXIT_INTERNAL:
            return f"{text} (exit reason {exit.reason} is not one pykvm knows)"
        kind = {
            1: "KVM could not emulate an instruction",
            2: "an exception while delivering another",
            3: "an exit while delivering an exception",
            4: "an exit reason KVM does not expect",
        }.get(exit.data, "unknown")
        return f"{text}, suberror {exit.data}: {kind}"
    if reason is Reason.FAIL_ENTRY:
        return f"{text}, hardware reason {exit.data:#x}"
    return text


def where(machine: Machine, vcpu: Vcpu, reason: Reason | None = None) -> list[str]:
    """Where a stopped vCPU is: mode, address, symbol, instruction, registers. Some lines."""
    try:
        regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
    except PykvmError as error:
        return [f"vCPU {vcpu.id}: {error}"]
    rip = regs.rip
    lines = []
    if reason is Reason.TRIPLE_FAULT and _was_reset(rip, sregs):
        rip = vcpu.handle.exit.last_rip
        lines.append(
            f"vCPU {vcpu.id}: this CPU forgets its state in a triple fault (AMD APM vol. 2 "
            f"§15.14.3 Shutdown Intercept); the last exit before it was at {_place(machine, rip)}"
        )
        return lines
    bits = 64 if sregs.efer >> 10 & 1 and sregs.cs.l else 32 if sregs.cs.db else 16
    address = rip + (sregs.cs.base if bits != 64 else 0)
    ring = sregs.cs.dpl if sregs.cr0 & 1 else 0
    lines.append(
        f"vCPU {vcpu.id}: at {_place(machine, address)}, {bits}-bit code, ring {ring}, interrupts "
        f"{'on' if regs.rflags >> 9 & 1 else 'off'}"
    )
    code = _bytes_at(machine, vcpu, address)
    lines.append(f"instruction: {_instruction(code, address, bits)}" if code else "not mapped")
    names = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp")
    for row in (names[:4], names[4:]):
        lines.append("  ".join(f"{name}={getattr(regs, name):016x}" for name in row))
    lines.append(
        f"cr0={sregs.cr0:x}  cr2={sregs.cr2:x}  cr3={sregs.cr3:x}  cr4={sregs.cr4:x}  "
        f"efer={sregs.efer:x}  rflags={regs.rflags:x}"
    )
    return lines


def _was_reset(rip: int, sregs: object) -> bool:
    """Whether the registers are those of a CPU just out of INIT: SVM leaves no others."""
    return rip == 0xFFF0 and getattr(sregs, "cs").selector == 0xF000  # noqa: B009


def _place(machine: Machine, address: int) -> str:
    from pykvm.debug import symbols

    name = symbols.place(machine, address)
    return f"{address:#x} <{name}>" if name else f"{address:#x}"


def _bytes_at(machine: Machine, vcpu: Vcpu, address: int) -> bytes:
    """Up to 15 bytes at a guest-virtual address, fewer at the end of what is mapped."""
    code = b""
    for gva in range(address, address + INSTRUCTION_MAX):
        try:
            gpa = vcpu.translate(gva)
            code += machine.memory.read(gpa, 1) if gpa is not None else b""
        except (GuestMemoryError, PykvmError):
            break
        if gpa is None:
            break
    return code


def _instruction(code: bytes, address: int, bits: int) -> str:
    """The bytes and, where capstone is installed, the instruction they begin with."""
    try:
        import capstone
    except ImportError:
        return code.hex(" ")
    mode = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}[bits]
    for found in capstone.Cs(capstone.CS_ARCH_X86, mode).disasm(code, address, 1):
        return f"{code[: found.size].hex(' ')}   {found.mnemonic} {found.op_str}".rstrip()
    return f"{code.hex(' ')}   (no instruction)"


def _last_words(machine: Machine) -> list[str]:
    text = re.sub(ESCAPE_SEQUENCE, b"", bytes(machine.console_log[-8192:])).decode(errors="replace")
    words = [line for line in text.split("\n") if line.strip()][-LINES_KEPT:]
    if words:
        return ["  last console lines:", *(f"  | {line[-LINE_MAX:]}" for line in words)]
    screen = _screen(machine)
    if not screen:
        return ["  the console said nothing"]
    return [
        "  the console said nothing; a screen, which there is none of, would have shown:",
        *(f"  | {line}" for line in screen),
    ]


def _screen(machine: Machine) -> list[str]:
    """What lies in a PC's text screen, as many small kernels write it: characters, each with its
    colours (IBM VGA Technical Reference, "Alphanumeric Modes"). Nothing unless it is text."""
    try:
        cells = machine.memory.read(layout.VGA_TEXT, 2 * VGA_COLUMNS * VGA_ROWS)
    except GuestMemoryError:
        return []
    if not set(cells[::2]) <= VGA_CHARACTERS:
        return []
    text = cells[::2].replace(b"\0", b" ").decode("cp437")
    rows = [text[at : at + VGA_COLUMNS].rstrip() for at in range(0, len(text), VGA_COLUMNS)]
    return [row for row in rows if row][-LINES_KEPT:]


def _remedy(reason: Reason, console: bytes, by_loader: bool = False) -> str:
    for pattern, remedy in REMEDIES:
        if re.search(pattern, console):
            return BY_LOADER if by_loader and "initrd" in remedy else remedy
    if reason is Reason.TIMEOUT and not console.strip():
        return SILENT
    return REMEDIES_BY_REASON.get(reason, "")


def _is_loader(machine: Machine) -> bool:
    """Whether pykvm booted what then loads a kernel, as iPXE does: options are not the kernel's."""
    try:
        return not is_linux(open_image(machine.config.kernel, 0).data)
    except PykvmError:  # a restored machine's, and it is there no more
        return False
