"""A machine for one question: it runs a probe of guests/probe/ and brings back the answer.

Reached from `doctor.checks` and `doctor.costs`. No boot, no devices but those a check brings along.
Whatever a broken KVM does to the probe is an `Answer`, not an error. Read guests/probe/probe.S.
"""

from __future__ import annotations

import enum
import struct
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Final, NamedTuple, Self

from pykvm import cpuid, layout, x86
from pykvm._core import lib
from pykvm.boot.entry import CpuMode, Entry
from pykvm.bus import Bus
from pykvm.devices.base import Device
from pykvm.errors import KvmError
from pykvm.guest_programs import path
from pykvm.kvm import Kvm, Vm, pack_cpuid
from pykvm.memory import GuestMemory
from pykvm.vcpu import Vcpu

MEMORY: Final = 2 * layout.MIB  # one large page; little, because a memslot costs by its size
LIMIT_S: Final = 3.0  # a probe takes milliseconds, on a busy emulated host a hundred times that

EXCEPTION: Final = 0x100  # + vector: an answer (guests/probe/probe.S)
INTERRUPT: Final = 0x200  # + vector
_EXCEPTIONS: Final = {
    **{0: "#DE", 1: "#DB", 2: "NMI", 3: "#BP", 6: "#UD", 7: "#NM", 8: "#DF", 10: "#TS"},
    **{11: "#NP", 12: "#SS", 13: "#GP", 14: "#PF", 16: "#MF", 17: "#AC", 19: "#XM", 21: "#CP"},
}
_ENTRY: Final = struct.Struct("<Q24s")  # the probe's table: address, name
assert _ENTRY.size == 32


class Code(enum.IntEnum):
    """What a probe says, as guests/probe/probe.S has it."""

    YES = 1
    WRONG = 2
    NOT_RING0 = 3
    NOT_RING3 = 4


_MEANINGS: Final[dict[int, str]] = {
    Code.YES: "yes",
    Code.WRONG: "wrong result",
    Code.NOT_RING0: "does not enter ring 0",
    Code.NOT_RING3: "does not run in ring 3",
}


class Answer(NamedTuple):
    """What a probe said or, without a `value`, how it ended instead."""

    value: int | None
    end: str
    regs: Any  # the boot vCPU's `struct kvm_regs` afterwards

    @property
    def text(self) -> str:
        """The answer in a few words."""
        value = self.value
        if value is None:
            return self.end
        if value in _MEANINGS:
            return _MEANINGS[value]
        if value & EXCEPTION:
            return _EXCEPTIONS.get(value & 0xFF, f"exception {value & 0xFF}")
        return f"interrupt {value & 0xFF:#x}" if value & INTERRUPT else f"answer {value:#x}"


class _Run(Device):
    """One run of a probe: its answer port, and what else may end it."""

    name = "answer"

    def __init__(self, vcpus: list[Vcpu], on_debug: Callable[[int], bool] | None) -> None:
        self.value: int | None = None
        self.end = ""
        self.over = False
        self._vcpus = vcpus
        self._on_debug = on_debug

    def write(self, offset: int, size: int, value: int) -> None:
        self.finish(value=value)

    def finish(self, end: str = "", value: int | None = None) -> None:
        """End the run, from any thread; the first call counts."""
        if not self.over:
            self.value, self.end, self.over = value, end, True
        for vcpu in self._vcpus:
            vcpu.kick()

    def on_exit(self, vcpu: Vcpu, exit: Any) -> bool:
        match exit.kind:
            case lib.PK_EXIT_KICK:
                pass  # perhaps one that came late for the run before
            case lib.PK_EXIT_DEBUG:
                if self._on_debug is None or not self._on_debug(exit.addr):
                    self.finish("debug exit")
            case lib.PK_EXIT_INTERNAL:
                unknown = ": not emulated" if exit.data == lib.KVM_INTERNAL_ERROR_EMULATION else ""
                self.finish(f"KVM_EXIT_INTERNAL_ERROR, suberror {exit.data}{unknown}")
            case lib.PK_EXIT_FAIL_ENTRY:
                self.finish(f"KVM_EXIT_FAIL_ENTRY, reason {exit.data:#x}")
            case lib.PK_EXIT_SHUTDOWN:
                self.finish("triple fault")
            case _:
                self.finish(f"exit reason {exit.reason}")
        return not self.over

    def thread(self, vcpu: Vcpu, pio: Bus, mmio: Bus) -> None:
        try:
            vcpu.run(pio, mmio, self.on_exit)
        except KvmError as error:
            self.finish(str(error))


class ProbeGuest:
    """A VM with the probes in its memory. Owned by the thread that made it.

    Raises `KvmError` when the host cannot even make one. Between two calls the vCPU and the boot
    tables are reset, the interrupt controllers are not.
    """

    def __init__(
        self,
        kvm: Kvm,
        *,
        cpus: int = 1,
        log_dirty: bool = False,
        features: dict[str, bool] | None = None,
    ) -> None:
        with open(path("probe"), "rb") as file:
            image = file.read()
        self._addresses = _addresses(image)
        self._image = image
        self._resources = ExitStack()
        own = self._resources
        try:
            self.vm = own.enter_context(Vm(kvm))
            self.memory = own.enter_context(GuestMemory(MEMORY))
            self.vm.map_memory(self.memory, log_dirty=log_dirty)
            self.vm.create_irqchip()
            self.c_bus = lib.pk_bus_create()
            own.callback(lib.pk_bus_destroy, self.c_bus)
            self.vcpus = [
                own.enter_context(Vcpu(kvm, self.vm, index, self.c_bus)) for index in range(cpus)
            ]
            supported = kvm.supported_cpuid()
            self.cpuid = [
                cpuid.build(
                    supported, apic_id=index, cpus=cpus, features=features or {}, tsc_deadline=False
                )
                for index in range(cpus)
            ]
            for vcpu, table in zip(self.vcpus, self.cpuid, strict=True):
                vcpu.set_cpuid(pack_cpuid(table))
            self._sregs = self.vcpus[0].get_sregs()
            self._events = self.vcpus[0].get_events()
        except BaseException:
            self.close()
            raise

    @property
    def vcpu(self) -> Vcpu:
        """The boot vCPU."""
        return self.vcpus[0]

    def address(self, name: str) -> int:
        """Where a probe, or a label in one, is."""
        return self._addresses[name]

    def prepare(self, probe: str, mode: CpuMode = CpuMode.LONG, **regs: int) -> None:
        """Put the boot vCPU at the beginning of `probe`, with these general registers."""
        self.memory.write(layout.PROBES, self._image)
        self.vcpu.set_sregs(self._sregs)
        self.vcpu.set_events(self._events)
        self.vcpu.set_mp_state(lib.KVM_MP_STATE_RUNNABLE)
        entry = Entry(protocol="probe", mode=mode, rip=self.address(probe), regs=regs)
        x86.enter(self.vcpu, self.memory, entry)

    def run(
        self,
        *,
        limit_s: float = LIMIT_S,
        ports: dict[int, Device] | None = None,
        memory: dict[int, Device] | None = None,
        on_debug: Callable[[int], bool] | None = None,
    ) -> Answer:
        """Run what was prepared until it answers or ends otherwise.

        `ports` and `memory` are devices by address, 16 bytes each; `on_debug` is told where each
        debug exit happened and says whether to go on.
        """
        run = _Run(self.vcpus, on_debug)
        pio, mmio = Bus("port"), Bus("mmio")
        pio.add(layout.PORT_EXIT_CODE, 4, run)
        for bus, devices in ((pio, ports), (mmio, memory)):
            for base, device in (devices or {}).items():
                bus.add(base, 16, device)
        watch = threading.Timer(limit_s, run.finish, [f"no answer in {limit_s:g} s"])
        others = [
            threading.Thread(target=run.thread, args=(vcpu, pio, mmio)) for vcpu in self.vcpus[1:]
        ]
        for thread in (watch, *others):
            thread.daemon = True
            thread.start()
        run.thread(self.vcpu, pio, mmio)
        watch.cancel()
        for thread in (watch, *others):
            thread.join()
        return Answer(run.value, run.end, self.vcpu.get_regs())

    def call(self, probe: str, mode: CpuMode = CpuMode.LONG, **regs: int) -> Answer:
        """`prepare` and `run`, for a probe that needs nothing else."""
        self.prepare(probe, mode, **regs)
        return self.run()

    def close(self) -> None:
        """Destroy it. Safe to call twice."""
        self.vcpus = []
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _addresses(image: bytes) -> dict[str, int]:
    """The table at the front of the probes: names and addresses, ended by an address of 0."""
    found: dict[str, int] = {}
    for offset in range(0, len(image) - _ENTRY.size, _ENTRY.size):
        address, name = _ENTRY.unpack_from(image, offset)
        if address == 0:
            break
        found[name.rstrip(b"\0").decode()] = address
    return found
