"""What KVM costs on this host: an exit, a VM, an instruction.

Reached from `doctor.examination`. Each figure is the median of several short tries, good to a few
percent on a quiet host; bench/ has the careful ones. Read guests/probe/debug.inc for the loops.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Final

from pykvm import layout
from pykvm._core import ffi
from pykvm.devices.base import Device
from pykvm.devices.serial import Serial
from pykvm.doctor.guest import MEMORY, ProbeGuest
from pykvm.errors import PykvmError
from pykvm.kvm import Kvm, Vm
from pykvm.memory import GuestMemory
from pykvm.vcpu import Vcpu

EXITS_PER_ROUND: Final = 256  # of the probe `exits`
ROUNDS: Final = 7
TRIES: Final = 5
LONG_ENOUGH_S: Final = 0.05  # a loop of that length drowns what surrounds it
LOOPS_MAX: Final = 1 << 28

# Key of the JSON output: what it is, with its unit.
LABELS: Final = {
    "vm_create_ms": "VM, irqchip, PIT, vCPU: create (ms)",
    "vm_destroy_ms": "the same: destroy (ms)",
    "exit_c_us": "exit served in C (µs)",
    "exit_python_us": "exit served in Python (µs)",
    "ring0_mips": "ring 0 (million instructions/s)",
    "ring3_mips": "ring 3 (million instructions/s)",
}


def measure(kvm: Kvm) -> dict[str, float | None]:
    """All of `LABELS`; None for what could not be measured."""
    create, destroy = _vm_ms(kvm)
    costs: dict[str, float | None] = {"vm_create_ms": create, "vm_destroy_ms": destroy}
    with ProbeGuest(kvm) as guest:
        serial = Serial(guest.c_bus, layout.PORT_COM1, -1, layout.IRQ_COM1)
        try:
            # The scratch register: C answers it, and reading it changes nothing.
            costs["exit_c_us"] = _exit_us(guest, layout.PORT_COM1 + 7)
        finally:
            serial.close()
        costs["exit_python_us"] = _exit_us(guest, layout.PORT_POST)
        costs["ring0_mips"] = _speed_mips(guest, "loop_in_ring0")
        costs["ring3_mips"] = _speed_mips(guest, "loop_in_ring3")
    return {key: value and round(value, 3) for key, value in costs.items()}


def _vm_ms(kvm: Kvm) -> tuple[float | None, float | None]:
    """Milliseconds to make a small VM that could run, and to take it down."""
    made, gone = [], []
    try:
        for _ in range(TRIES):
            began = time.perf_counter()
            with Vm(kvm) as vm, GuestMemory(MEMORY) as memory:
                vm.map_memory(memory)
                vm.create_irqchip()
                with Vcpu(kvm, vm, 0, ffi.NULL):
                    ready = time.perf_counter()
            made.append((ready - began) * 1e3)
            gone.append((time.perf_counter() - ready) * 1e3)
    except PykvmError:
        return None, None
    return median(made), median(gone)


class _Clock(Device):
    """Notes when a round of exits begins; answers reads for the exits that Python serves."""

    name = "clock"

    def __init__(self) -> None:
        self.times: list[float] = []

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        self.times.append(time.perf_counter())


def _exit_us(guest: ProbeGuest, port: int) -> float | None:
    clock = _Clock()
    guest.prepare("exits", rcx=ROUNDS, rdx=port)
    guest.run(ports={layout.PORT_POST: clock})
    rounds = [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)]
    return median(rounds) / EXITS_PER_ROUND * 1e6 if rounds else None


def _speed_mips(guest: ProbeGuest, probe: str) -> float | None:
    """Make the loop longer until its length can be trusted."""
    loops = 1 << 12
    while loops <= LOOPS_MAX:
        clock = _Clock()
        guest.prepare(probe, rcx=loops)
        answer = guest.run(ports={layout.PORT_POST: clock})
        if answer.value is None or not clock.times:
            return None
        seconds = time.perf_counter() - clock.times[0]
        if seconds >= LONG_ENOUGH_S:
            return 2 * loops / seconds / 1e6
        loops *= 4
    return None
