"""A machine, from its configuration to its outcome. Read it top to bottom: it is a boot.

Reached from `cli` and from users' code::

    with Machine(MachineConfig(kernel="vmlinuz")) as vm:
        outcome = vm.run(timeout=60)

Threads: one per vCPU (`run`), and the caller's own, which moves console bytes, keeps time and
watches (`watch`). The fixed devices are in `board`; what a snapshot is, in `snapshot`.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack

from pykvm import board, layout, moments, x86
from pykvm._core import lib
from pykvm.boot.entry import BootSpec, CpuMode, Entry
from pykvm.bus import Bus
from pykvm.config import MachineConfig
from pykvm.console import Console
from pykvm.errors import ConfigError
from pykvm.health import PanicWatch
from pykvm.kvm import Kvm, Vm
from pykvm.lean import TYPE_CHECKING
from pykvm.memory import GuestMemory
from pykvm.outcome import Outcome, Reason
from pykvm.parking import Parking
from pykvm.requests import Requests
from pykvm.run import Run
from pykvm.vcpu import Vcpu

if TYPE_CHECKING:
    from typing import Any, Self, TypeVar

    from pykvm.checkpoints import Checkpoints
    from pykvm.devices.fwcfg import FwCfg
    from pykvm.devices.pm import PowerManagement
    from pykvm.devices.serial import Serial
    from pykvm.devices.vmgenid import GenerationId
    from pykvm.snapshot.diff import Lineage
    from pykvm.snapshot.template import Template
    from pykvm.snapshot.trigger import ConsoleTrigger
    from pykvm.snapshot.vcpu import VcpuFormat

    T = TypeVar("T")

    from pykvm.debug.control import RunControl, Stop
    from pykvm.debug.flight import FlightRecorder
    from pykvm.debug.server import Server
    from pykvm.debug.symbols import SymbolTable
    from pykvm.debug.trace import Tracer
    from pykvm.debug.view import Listing
    from pykvm.pci import PciBus
    from pykvm.virtio.balloon import Balloon
    from pykvm.virtio.console import VirtioConsole
    from pykvm.virtio.hvc import Hvc
    from pykvm.virtio.mmio import MmioTransport
    from pykvm.virtio.pci import PciTransport

XAPIC_IDS = 255  # APIC ids that fit 8 bits, the broadcast id left out


class Machine:
    """A virtual machine with a guest loaded. Raises `ConfigError`, `BootError`, `KvmError`.

    Constructed: ready to run, registers and memory set. Devices may be added until `run`. Owned by
    the thread that made it; a context manager, closed in reverse order of opening.
    """

    # What it is made of, set by `_build` and by `board`.
    memory: GuestMemory
    kvm: Kvm
    vm: Vm
    c_bus: Any  # the devices in C: a struct pk_bus
    pio_bus: Bus
    serial: Serial
    power: PowerManagement
    fw_cfg: FwCfg
    generation_id: GenerationId
    requests: Requests
    entry: Entry  # where the boot vCPU began
    pci: PciBus | None = None  # with virtio devices on one
    hvc: Hvc | None = None  # with ``--console virtio``
    virtio_console: VirtioConsole | None = None  # with ``--port``
    balloon: Balloon | None = None  # with ``--balloon``

    # Who looks on, and what is to be told.
    tracer: Tracer | FlightRecorder | None = None  # of the run
    control: RunControl | None = None  # a debugger's, when there is one
    debugger: Server | None = None
    _symbols: SymbolTable | None = None
    on_silence: Callable[[str], None] | None = None  # told where the vCPUs are, once
    on_snapshot_key: Callable[[], None] | None = None  # Ctrl-A s
    on_snapshot_request: Callable[[], None] | None = None  # the guest's own, by a port

    # Snapshots, forks and checkpoints.
    template: Template | None = None  # what `fork` and `reset` go back to
    captured_at = -1  # `changes` when it was taken of this machine
    checkpointing: Checkpoints | None = None
    resets = 0
    generation = 0  # how often it was restored or forked since it was booted
    keeps_identity = False  # its MACs and CID are those of the machine it is a copy of
    vcpu_format: VcpuFormat | None = None  # see `snapshot.capture`

    def __init__(self, config: MachineConfig, template: Template | None = None) -> None:
        """Boots what `config` says; with a `template`, goes on from there instead."""
        self.config = config
        self.mmio_bus = Bus("mmio")
        self.virtio: list[MmioTransport | PciTransport] = []  # the devices, as the guest finds them
        self.vcpus: list[Vcpu] = []
        self.parking = Parking(self.vcpus)
        self.console_log = bytearray()
        self.unread_input = bytearray()  # from the console; the guest has no room for it yet
        self.panic = PanicWatch()
        self.console_triggers: list[ConsoleTrigger | Checkpoints] = []
        self.lineage: Lineage = {}  # the snapshots that it goes on from, or that were taken of it
        self.unclaimed: dict[str, bytes] = {}  # states of devices that are still to be attached
        self._resources = ExitStack()
        self._run = Run(self, self._resources)
        try:
            if template is None:
                self._boot()
            else:
                self._go_on(template)
            if config.gdb is not None:
                from pykvm.debug.server import Server

                server = Server(self, self.run_control(), config.gdb)
                self.debugger = self._resources.enter_context(server)
        except BaseException:
            self.close()
            raise

    # ── the boot, in order ───────────────────────────────────────────────────────────────────

    def _boot(self) -> None:
        from pykvm import acpi, boot, cpuid  # what no restored machine needs
        from pykvm.boot.files import open_image, read_initrds, read_modules

        config = self.config
        cpuid.parse_model(config.cpu)  # before anything is made: it may be wrong
        image = open_image(config.kernel, config.patience)
        spec = BootSpec(
            name=image.name,
            stamp=image.stamp,
            cmdline=config.cmdline.encode(errors="surrogateescape"),
            initrd=read_initrds(config.initrd, config.patience),
            modules=read_modules(config.modules, config.patience),
            rsdp=layout.ACPI_TABLES,
            mode=config.mode,
            load=config.load,
            entry=config.entry,
        )
        places = self._build(GuestMemory(config.memory))
        acpi.place(self.memory, config.cpus, **places)
        self.generation_id.place()
        self.entry = boot.load(image.data, self.memory, spec, config.protocol)
        if self.entry.protocol not in ("pvh", "flat"):
            from pykvm import mptable

            mptable.place(self.memory, config.cpus)
        if _calls_bios(self.entry):
            from pykvm.boot import bios

            board.add_bios(self)
            self.entry = bios.install(self.memory, self.entry)
        self._create_vcpus(self._cpuid())
        x86.set_up_lapic(self.vcpus[0])
        x86.enter(self.vcpus[0], self.memory, self.entry)

    def _go_on(self, template: Template) -> None:
        """Instead of a boot: memory, devices and vCPUs as they are in `template`."""
        self.generation = template.generation + 1
        self.keeps_identity = template.identity == "keep"
        self._build(template.memory())
        self.entry = template.entry
        if _calls_bios(self.entry):
            board.add_bios(self)
        self._create_vcpus(template.cpuid)
        self.unclaimed = template.fill(self)

    def _build(self, memory: GuestMemory) -> dict[str, Any]:
        """All but what a kernel brings along; returns where the virtio devices are."""
        own = self._resources.callback
        self.memory = memory
        own(memory.close)
        self.memory.devices = self.mmio_bus
        self.kvm = Kvm()
        own(self.kvm.close)
        self._check_cpus()
        self.vm = Vm(self.kvm)
        own(self.vm.close)
        self.vm.map_memory(self.memory)
        self.vm.create_irqchip()
        if self.config.cpus > XAPIC_IDS:
            self.vm.enable_x2apic_ids()
        self.requests = Requests(self.parking)
        own(self.requests.close)
        board.add_fixed(self, self._resources)
        return board.add_virtio(self, self._resources)

    def _check_cpus(self) -> None:
        # Every KVM gives one: it need not be asked.
        if self.config.cpus > 1 and self.config.cpus > (most := self.kvm.max_vcpus):
            raise ConfigError(
                f"--cpus: {self.config.cpus} is more than the {most} vCPUs that this host's KVM "
                f"gives a machine; try --cpus {min(most, os.cpu_count() or 1)}"
            )

    def _cpuid(self) -> Iterator[bytes]:
        """What CPUID tells the guest, one table for each vCPU."""
        from pykvm import cpuid

        supported, config = self.kvm.supported_cpuid(), self.config
        tsc_deadline = bool(self.kvm.check_extension(lib.KVM_CAP_TSC_DEADLINE_TIMER))
        for index in range(config.cpus):
            yield cpuid.packed(supported, config.cpu, index, config.cpus, tsc_deadline)

    def _create_vcpus(self, cpuids: Iterable[bytes]) -> None:
        for index, table in enumerate(cpuids):
            vcpu = Vcpu(self.kvm, self.vm, index, self.c_bus)
            self._resources.callback(vcpu.close)
            vcpu.set_cpuid(table)
            x86.set_memory_types(vcpu)
            self.vcpus.append(vcpu)
        self.memory.vcpu = self.vcpus[0]

    pio = board.pio  # devices of the user's own: ``@vm.pio(0x510, size=2)``
    mmio = board.mmio

    # ── running ──────────────────────────────────────────────────────────────────────────────

    def run(
        self,
        timeout: float | None = None,
        console: Console | None = None,
        tracer: Tracer | FlightRecorder | None = None,
    ) -> Outcome:
        """Run the guest until it ends, `timeout` seconds passed or `stop` was called.

        `console` is where the serial port leads (default: nowhere but `Outcome.console`), `tracer`
        notes what happens (see `debug.trace`). After a timeout or a stop it may be called again and
        the guest goes on. Raises `KvmError` when the host fails, and whatever a device of the
        user's raised.
        """
        if self.unclaimed:
            missing = ", ".join(self.unclaimed)
            raise ConfigError(
                f"the machine was captured with devices of its user's at {missing}; attach them "
                "with vm.pio or vm.mmio before it runs"
            )
        return self._run.go(timeout, console or Console(), tracer)

    def stop(self, reason: Reason = Reason.QUIT, code: int | None = None) -> None:
        """End the run from any thread, a device or a signal handler."""
        self._run.finish(reason, code)

    # ── pausing ──────────────────────────────────────────────────────────────────────────────

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """All vCPUs outside the guest and still, so that their state may be read and set.

        On the thread that called `run` (a watcher), or while nothing runs.
        """
        self.parking.begin_pause()
        try:
            kicked = time.monotonic()
            while not self.parking.all_parked(wait_s=0.05):
                if self._run.watcher:  # a vCPU may be waiting for room in the console
                    self._run.watcher.make_room()
                self._run.expect_vcpus(kicked)
            yield
        finally:
            self.parking.end_pause()

    def run_control(self) -> RunControl:
        """What stops and steps vCPUs, for a debugger; made when first asked for."""
        if self.control is None:
            from pykvm.debug.control import RunControl

            self.control = RunControl(self)
        return self.control

    # ── looking inside: see `debug.view` ─────────────────────────────────────────────────────

    @property
    def symbols(self) -> SymbolTable:
        """The guest's names and their addresses; looked for again while there are none."""
        if not self._symbols:
            from pykvm.debug import symbols

            self._symbols = symbols.of(self)
        return self._symbols

    def step(self, count: int = 1, vcpu: int = 0) -> Stop | Outcome:
        """Run `count` instructions of one vCPU, the others standing still. While nothing runs."""
        from pykvm.debug import view

        return view.step(self, count, vcpu)

    def run_until(
        self,
        where: int | str | Callable[[Machine], Any],
        timeout: float | None = None,
        vcpu: int = 0,
    ) -> Stop | Outcome:
        """Run to an address or a symbol, or until ``where(vm)`` is true: that is asked after every
        single instruction of `vcpu`, so it is slow. The answer says where and why it stopped, or
        is the `Outcome` of a run that ended before."""
        from pykvm.debug import view

        return view.run_until(self, where, timeout, vcpu)

    def disassemble(self, gva: int | str | None = None, n: int = 10, vcpu: int = 0) -> Listing:
        """`n` instructions at an address or a symbol; by default where the vCPU is."""
        from pykvm.debug import view

        return view.disassemble(self, gva, n, vcpu)

    def empty_console(self) -> None:
        """Move what the guest has sent out of its console: it is no part of its state."""
        if self._run.watcher is not None:
            self._run.watcher.make_room()
            return
        self.console_log += self.serial.take()
        while self.hvc and (data := self.hvc.take()):
            self.console_log += data

    def forget_run(self) -> None:
        """As if it had not run: for a machine that was taken back to where it had not."""
        self._run.forget()
        self._symbols = None  # KASLR may put a kernel elsewhere next time
        self.panic = PanicWatch()
        self.console_log.clear()
        self.unread_input.clear()

    # ── its moments: see `moments`, which documents these methods ────────────────────────────

    at_rest = moments.at_rest
    snapshot = moments.snapshot
    fork = moments.fork
    reset = moments.reset
    checkpoints = moments.checkpoints
    bisect = moments.bisect

    @classmethod
    def restore(cls, folder: str | os.PathLike[str], **options: Any) -> Self:
        """A machine that goes on where the one saved in `folder` was: see `snapshot.load`."""
        from pykvm.snapshot.load import load

        with load(folder, **options) as template:
            return cls(template.config, template)

    # ── the end ──────────────────────────────────────────────────────────────────────────────

    @property
    def ended(self) -> bool:
        """Whether the run is over, or about to be."""
        return self._run.ending is not None

    @property
    def changes(self) -> int:
        """Grows whenever vCPUs run, or anything but memory and devices is set."""
        own = self.vm.changes + self.parking.releases
        return own + sum([vcpu.changes for vcpu in self.vcpus])

    @property
    def exits(self) -> int:
        """How often a vCPU left the guest so far."""
        return sum(vcpu.exits for vcpu in self.vcpus)

    def close(self) -> None:
        """Destroy the machine. Safe to call twice."""
        self.vcpus.clear()
        self._resources.close()
        if self.checkpointing is not None:
            self.checkpointing.close()
        if self.template is not None:
            self.template.close()
            self.template = None

    def __repr__(self) -> str:
        from pykvm.debug import view

        return view.summary(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _calls_bios(entry: Entry) -> bool:
    return entry.mode is CpuMode.REAL or entry.protocol == "multiboot"
