"""gdb's ``monitor`` commands: what no register and no packet tells.

Reached from `target`, while the machine stands still. Answers are text for people.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pykvm.debug.draw import hexdump
from pykvm.debug.pagewalk import Paging, walk
from pykvm.debug.registers import PLACES, RegisterFile
from pykvm.memory import GuestMemoryError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.debug.control import RunControl
    from pykvm.machine import Machine

TEXT: Final = "_text"  # a Linux kernel's first symbol
PHYS_MAX: Final = 1024  # bytes of one `monitor phys`


class _UsageError(Exception):
    """The command was not given what it needs."""


def answer(machine: Machine, control: RunControl, vcpu: int, command: str) -> str:
    """Carry out ``monitor COMMAND``; returns lines, each ended."""
    name, *words = command.split() or ["help"]
    found = COMMANDS.get(name)
    if found is None:
        return f"{name!r} is unknown; 'monitor help' lists the commands\n"
    usage, _, action = found
    try:
        return action(machine, control, vcpu, words).rstrip("\n") + "\n"
    except (_UsageError, ValueError):
        return f"usage: monitor {usage}\n"


def _help(machine: Machine, control: RunControl, vcpu: int, words: list[str]) -> str:
    return "\n".join(f"{usage:16} {gloss}" for usage, gloss, _ in COMMANDS.values())


def _page_tables(machine: Machine, control: RunControl, vcpu: int, words: list[str]) -> str:
    (address,) = words
    paging = Paging.of(control.files[vcpu].structure("sregs"))
    return repr(walk(machine.memory, paging, _address(control.files[vcpu], address)))


def _physical(machine: Machine, control: RunControl, vcpu: int, words: list[str]) -> str:
    gpa, size = _number(words[0]) if words else _usage(), _number(words[1]) if words[1:] else 64
    if not 0 < size <= PHYS_MAX:
        return f"monitor phys shows 1 to {PHYS_MAX} bytes at a time"
    try:
        data = bytearray(machine.memory.read(gpa, size))
    except GuestMemoryError as error:
        return str(error)
    control.breakpoints.hide(gpa, data)
    return hexdump(gpa, data)


def _registers(machine: Machine, control: RunControl, vcpu: int, words: list[str]) -> str:
    from pykvm.report import where

    lines = []
    for each in machine.vcpus:
        lines += where(machine, each)
        file = control.files[each.id]
        lines += [
            f"{name:4} selector={file.get(name):04x} base={file.get(f'{name}_base'):016x} "
            f"limit={file.get(f'{name}_limit'):08x}"
            for name in ("cs", "ss", "ds", "es", "fs", "gs", "tr", "ldt")
        ]
        lines += [
            f"{name:4} base={file.get(f'{name}_base'):016x} limit={file.get(f'{name}_limit'):04x}"
            for name in ("gdt", "idt")
        ]
    return "\n".join(lines)


def _msr(machine: Machine, control: RunControl, vcpu: int, words: list[str]) -> str:
    (word,) = words
    number = _number(word)
    values = machine.vcpus[vcpu].get_msrs([number]) if number < 1 << 32 else {}
    if number not in values:
        return f"vCPU {vcpu} has no MSR {number:#x} that KVM would tell"
    return f"MSR {number:#x} of vCPU {vcpu} = {values[number]:#x}"


def _devices(machine: Machine, control: RunControl, vcpu: int, words: list[str]) -> str:
    lines = []
    for bus, digits in ((machine.pio_bus, 4), (machine.mmio_bus, 9)):
        for base, end, device in bus:
            place = f"[{base:0{digits}x}, {end:0{digits}x})"
            lines.append(f"{bus.space:5} {place:24} {device.name}")
    return "\n".join(lines)


def _kaslr(machine: Machine, control: RunControl, vcpu: int, words: list[str]) -> str:
    """Linux Documentation/arch/x86/boot.rst has the decompressor choose where the kernel runs."""
    from pykvm.boot.files import open_image
    from pykvm.debug.symbols import read_kernel

    linked = {name: at for at, _, name in read_kernel(open_image(machine.config.kernel))}
    if TEXT not in linked:
        return "the image is no Linux kernel with kallsyms"
    if TEXT not in machine.symbols:
        return "the kernel is not in memory yet: ask again when it has begun to run"
    offset = machine.symbols[TEXT] - linked[TEXT]
    if not offset:
        return "the kernel runs where it is linked"
    return (
        f"the kernel runs {offset:#x} above where it is linked; for gdb:\n"
        f"symbol-file -o {offset:#x} FILE"
    )


def _reset(machine: Machine, control: RunControl, vcpu: int, words: list[str]) -> str:
    if machine.template is None:
        return (
            "this machine cannot be taken back: --fs, and --disk with format= or vhost-user=, are "
            "served by\nother programs. Kill it, and start pykvm again with --wait-gdb"
        )
    machine.reset()
    control.start_over()
    return (
        "all is as it was before the machine ran, but for what was written to its disks. gdb shows "
        "it after\nmaintenance flush register-cache"
    )


def _usage() -> int:
    raise _UsageError


def _address(file: RegisterFile, word: str) -> int:
    """A number, or a register's value: gdb hands ``$pc`` on as it was typed."""
    name = word.removeprefix("$")
    if name in ("pc", "rip", "eip"):
        return file.pc
    return file.get(name) if name in PLACES else _number(word)


def _number(word: str) -> int:
    value = int(word, 0)
    if not 0 <= value < 1 << 64:
        raise ValueError
    return value


COMMANDS: Final[
    dict[str, tuple[str, str, Callable[[Machine, RunControl, int, list[str]], str]]]
] = {
    "help": ("help", "this list", _help),
    "pt": ("pt ADDR", "how the page tables translate an address, level by level", _page_tables),
    "phys": ("phys ADDR [LEN]", "bytes at a guest-physical address", _physical),
    "regs": ("regs", "every vCPU: where it is, its segments and control registers", _registers),
    "msr": ("msr N", "a model-specific register", _msr),
    "devices": ("devices", "the devices, by port and by address", _devices),
    "kaslr": ("kaslr", "how far from where it was linked a Linux kernel runs", _kaslr),
    "reset": ("reset", "the machine as it was before it ran, or was restored", _reset),
}
