"""The Python view of a machine that stands still: registers, steps, instructions.

Reached from `Machine` and `Vcpu`, for a REPL or a notebook, on the thread that owns the machine and
while `run` does not run. Read `control`, which gdb's stub uses too.
"""

from __future__ import annotations

import os
from html import escape
from typing import TYPE_CHECKING, Any, Final

from pykvm.debug.breakpoints import Kind
from pykvm.debug.control import Stop
from pykvm.debug.description import flags
from pykvm.debug.registers import PLACES, RegisterFile
from pykvm.errors import ConfigError
from pykvm.layout import MIB
from pykvm.lean import Record
from pykvm.outcome import Outcome, Reason
from pykvm.report import where

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.debug.control import RunControl
    from pykvm.machine import Machine
    from pykvm.vcpu import Vcpu

SHOWN = (
    ("rax", "rbx", "rcx", "rdx"),
    ("rsi", "rdi", "rbp", "rsp"),
    ("r8", "r9", "r10", "r11"),
    ("r12", "r13", "r14", "r15"),
    ("rip", "rflags", "cr2", "cr3"),
    ("cr0", "cr4", "efer", "cs"),
)
SPELLED: Final = {"rflags": "i386_eflags", "cr0": "cr0", "cr4": "cr4", "efer": "efer"}  # bits named


class Registers:
    """``vm.vcpus[0].regs``: every register an attribute, read from the vCPU and written to it."""

    _vcpu: Vcpu

    def __init__(self, vcpu: Vcpu) -> None:
        object.__setattr__(self, "_vcpu", vcpu)

    def __getattr__(self, name: str) -> int:
        if name not in PLACES:
            raise AttributeError(f"no register is called {name!r}")
        return RegisterFile(self._vcpu).get(name)

    def __setattr__(self, name: str, value: int) -> None:
        if name not in PLACES:
            raise AttributeError(f"no register is called {name!r}")
        if value.bit_length() > 8 * PLACES[name].size:
            raise ValueError(f"{name} has {8 * PLACES[name].size} bits: {value:#x} does not fit")
        RegisterFile(self._vcpu).set(name, value)

    def __dir__(self) -> list[str]:
        return sorted(PLACES)

    def __repr__(self) -> str:
        file = RegisterFile(self._vcpu)
        rows = ["  ".join(f"{n:>6} {file.get(n):016x}" for n in row) for row in SHOWN]
        return "\n".join([*rows, "  ".join(f"{n:>6} [{bits}]" for n, bits in _spelled(file))])

    def _repr_html_(self) -> str:
        file = RegisterFile(self._vcpu)
        rows = "".join(
            "<tr>" + "".join(f"<th>{n}</th><td><code>{file.get(n):x}</code></td>" for n in row)
            for row in SHOWN
        )
        rows += "".join(
            f"<tr><th>{n}</th><td colspan=7>{bits}</td></tr>" for n, bits in _spelled(file)
        )
        return f"<table>{rows}</table>"


def _spelled(file: RegisterFile) -> list[tuple[str, str]]:
    """The registers of bits, with the names of those that are set."""
    return [(name, flags(kind, file.get(name))) for name, kind in SPELLED.items()]


class Instruction(Record):
    """One instruction of a `Listing`."""

    address: int
    code: bytes
    text: str
    symbol: str | None  # at or before it


class Listing(tuple[Instruction, ...]):
    """Instructions, shown one a line."""

    def __repr__(self) -> str:
        return "\n".join(
            f"{i.address:#018x} {f'<{i.symbol}>' if i.symbol else '':28} {i.code.hex(' '):30} "
            f"{i.text}"
            for i in self
        )

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td><code>{i.address:#x}</code></td><td>{escape(i.symbol or '')}</td>"
            f"<td><code>{i.code.hex(' ')}</code></td><td><code>{i.text}</code></td></tr>"
            for i in self
        )
        return f"<table>{rows}</table>"


def summary(machine: Machine) -> str:
    """What `machine` is and where it stands, in a line: its repr."""
    config = machine.config
    kernel = f"{len(config.kernel)} bytes" if isinstance(config.kernel, bytes) else config.kernel
    vcpus = f"{config.cpus} vCPU{'s' * (config.cpus > 1)}"
    what = f"{os.path.basename(kernel)}, {vcpus}, {config.memory // MIB} MiB"
    if not machine.vcpus:
        return f"<Machine {what}: closed>"
    if not machine.parking.is_empty():
        return f"<Machine {what}: running>"
    places = "; ".join(where(machine, vcpu)[0] for vcpu in machine.vcpus)
    return f"<Machine {what}: {places}>"


def disassemble(machine: Machine, gva: int | str | None, count: int, vcpu: int) -> Listing:
    """`count` instructions at `gva` (default: where the vCPU is), fewer where memory ends."""
    import capstone

    file = RegisterFile(machine.vcpus[vcpu])
    start = address(machine, gva) if gva is not None else file.pc
    mode = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}[file.bits]
    control = machine.run_control()
    control.forget()
    code = b""
    for at in range(start, start + 15 * count):
        gpa = control.find(at, vcpu).gpa
        if gpa is None or not machine.memory.contains(gpa):
            break
        code += machine.memory.read(gpa, 1)
    symbols = machine.symbols
    found = capstone.Cs(capstone.CS_ARCH_X86, mode).disasm(code, start, count)
    return Listing(
        Instruction(i.address, bytes(i.bytes), f"{i.mnemonic} {i.op_str}".rstrip(),
                    symbols.find(i.address))
        for i in found
    )  # fmt: skip


def address(machine: Machine, place: int | str) -> int:
    """An address, or a symbol's. Raises `KeyError` for a name that is none."""
    return machine.symbols[place] if isinstance(place, str) else place


def _control(machine: Machine) -> RunControl:
    if machine.debugger is not None:
        raise ConfigError("--gdb: this machine is gdb's; make one without it to step from Python")
    control = machine.run_control()
    control.notify = lambda: machine.stop(Reason.DEBUGGER)
    control.forget()
    return control


def _run(
    machine: Machine, control: RunControl, plan: dict[int, bool], timeout: float | None
) -> Stop | Outcome:
    """Run by `plan` until something stops it: that, or how the run ended instead."""
    machine.parking.hold(range(len(machine.vcpus)))
    control.resume(plan)
    try:
        while True:
            stop = control.collect()  # it may be over already
            if stop is not None:
                return stop
            outcome = machine.run(timeout)
            stop = control.collect()
            if stop is not None:
                return stop
            if outcome.reason is not Reason.DEBUGGER:
                return outcome
            # One has stepped over the breakpoint that it stood at. Now the others may go too.
            machine.parking.hold(set(range(len(machine.vcpus))) - control.running)
    finally:
        control.next_step = lambda vcpu: False
        control.disarm()


def step(machine: Machine, count: int, vcpu: int) -> Stop | Outcome:
    """`count` instructions of one vCPU; the others stand still."""
    control, left = _control(machine), count

    def more(_: Vcpu) -> bool:
        nonlocal left
        left -= 1
        return left > 0

    control.next_step = more
    return _run(machine, control, {vcpu: True}, None)


def run_until(
    machine: Machine,
    place: int | str | Callable[[Machine], Any],
    timeout: float | None,
    vcpu: int,
) -> Stop | Outcome:
    """Until an instruction at `place` is next, or `place(machine)` is true after one of vCPU's."""
    control = _control(machine)
    plan = dict.fromkeys(range(len(machine.vcpus)), False)
    if callable(place):
        plan[vcpu] = True
        control.next_step = lambda _: not place(machine)
    else:
        control.breakpoints.insert(Kind.SOFTWARE, address(machine, place), 1)
    return _run(machine, control, plan, timeout)
