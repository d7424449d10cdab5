"""What a machine costs inside a running process, up to its first exit: pykvm beside the raw ioctls.

    python bench/create.py [--rounds N] [--memory MIB] [--json FILE]

Both make the VM, memfd memory and its memslot, irqchip, PIT and a vCPU, and run a guest whose first
instructions are a port write (floor/exits.S): the same ioctls, but for two of pykvm's that ask for
a capability. pykvm's part includes its devices, ACPI tables and the vCPU's thread; "KVM layer" is
what `Kvm`, `Vm` and `Vcpu` alone add to the ioctls, and has no bar. All have made a machine in the
process before, and have kept what CPUID KVM supports. Once one after the other, once with half a
second's rest before each, because KVM waits for the kernel's other CPUs, and longer when it has not
done so for a while. What destroying a machine costs is told beside it.

Where the floor's time goes, of about 0.73 ms on one host: KVM_CREATE_VM 0.18, the memslot 0.16,
KVM_RUN to the first exit 0.08, KVM_CREATE_PIT2 0.07, KVM_CREATE_VCPU 0.07, KVM_SET_CPUID2 0.06,
KVM_CREATE_IRQCHIP 0.02, all else 0.07. pykvm's calls take as long; what it adds is Python. That is
less work than it seems: called again at once, the configuration takes 3 us, the fixed devices 20,
the loader 8, the ACPI tables 1. Here they take 40, 90, 45 and 23: each is called once, after a
machine's destruction or a rest, when neither its code nor its data is in the processor's caches.
Calls made on another thread meanwhile gain nothing: that thread and Python delay each other more
than they overlap (810 us one after the other, 888 at once, tried in C with 250 us of work).
"""

from __future__ import annotations

import subprocess
import time
from argparse import Namespace
from functools import partial

from measure import Bar, Samples, compiled, interleaved, main, options, ratio, table

from pykvm import Device, Machine, MachineConfig, cpuid, layout, x86
from pykvm._core import lib
from pykvm.boot.entry import CpuMode, Entry
from pykvm.errors import check
from pykvm.kvm import Kvm, Vm
from pykvm.memory import GuestMemory
from pykvm.vcpu import Vcpu

MARK = 0x540  # as in exits.S


class FirstExit(Device):
    """Takes the time of the guest's first exit, and ends the run."""

    time = 0.0

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def write(self, offset: int, size: int, value: int) -> None:
        self.time = time.perf_counter()
        self.machine.stop()


def pykvm_ms(guest: bytes, memory: int, rest_s: float) -> tuple[float, float]:
    """Milliseconds to create and to destroy a machine in this process."""
    time.sleep(rest_s)
    started = time.perf_counter()
    config = MachineConfig(kernel=guest, mode=CpuMode.PROTECTED, memory=memory)
    with Machine(config) as machine:
        first_exit = FirstExit(machine)
        machine.pio(MARK)(first_exit)
        machine.run()
        ended = time.perf_counter()
    destroyed = time.perf_counter()
    return (first_exit.time - started) * 1e3, (destroyed - ended) * 1e3


def layer_ms(guest: bytes, size: int, rest_s: float) -> tuple[float, float]:
    """The ioctls by pykvm's own classes, and nothing else of a machine's."""
    time.sleep(rest_s)
    bus = lib.pk_bus_create()
    started = time.perf_counter()
    with GuestMemory(size) as memory, Kvm() as kvm, Vm(kvm) as vm:
        vm.map_memory(memory)
        vm.create_irqchip()
        memory.write(layout.HIGH_MEMORY, guest)
        with Vcpu(kvm, vm, 0, bus) as vcpu:
            vcpu.set_cpuid(cpuid.packed(kvm.supported_cpuid(), "host", 0, 1, True))
            x86.set_memory_types(vcpu)
            x86.set_up_lapic(vcpu)
            x86.enter(vcpu, memory, Entry("flat", CpuMode.PROTECTED, layout.HIGH_MEMORY))
            check(lib.pk_vcpu_run(vcpu.handle), "KVM_RUN")
            ended = time.perf_counter()
            assert vcpu.handle.exit.addr == MARK
    destroyed = time.perf_counter()
    lib.pk_bus_destroy(bus)
    return (ended - started) * 1e3, (destroyed - ended) * 1e3


def raw_ms(command: list[str]) -> tuple[float, float]:
    """The same by the C program."""
    create_ns, destroy_ns = map(int, subprocess.check_output(command).split())
    return create_ns / 1e6, destroy_ns / 1e6


def run(args: Namespace) -> tuple[dict[str, Samples], list[Bar]]:
    """Two tables each: create, destroy."""
    guest = compiled("exits.S", "flat", COUNT=1, ACCESS="nop", ADDRESS=0)
    floor, memory = compiled("floor.c", "program"), args.memory << 20
    tables: dict[str, Samples] = {}
    bars = []
    for rest_s, when in ((0.0, "one after the other"), (0.5, "after a rest")):
        command = [str(floor), "create", str(guest), str(memory), str(int(rest_s * 1e6))]
        rivals = {
            "raw": partial(raw_ms, command),
            "KVM layer": partial(layer_ms, guest.read_bytes(), memory, rest_s),
            "pykvm": partial(pykvm_ms, guest.read_bytes(), memory, rest_s),
        }
        create, destroy = interleaved(rivals, args.rounds)
        for title, found in ((f"create {when}, ms", create), (f"destroy {when}, ms", destroy)):
            table(title, found, "raw")
            tables[title] = found
        bars.append(Bar(f"create {when}, pykvm / raw", ratio(create, "pykvm", "raw"), 1.2))
    return tables, bars


if __name__ == "__main__":
    parser = options("What a machine costs, up to its first exit.", rounds=30)
    parser.add_argument("--memory", type=int, default=256, metavar="MIB", help="default: 256")
    main(parser, run)
