"""A machine, from its configuration to its outcome. Read it top to bottom: it is a boot.

Reached from `cli` and from users' code::

    with Machine(MachineConfig(kernel="vmlinuz")) as vm:
        outcome = vm.run(timeout=60)

Threads: one per vCPU (`Vcpu.run`), and the caller's own, which moves console bytes, keeps time and
watches (`watch`). A vCPU thread ends the run by `_finish`; the caller's thread joins them all.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from _thread import start_new_thread
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack

from pykvm import acpi, boot, cpuid, layout, x86
from pykvm._core import lib
from pykvm.boot.entry import BootSpec, CpuMode, Entry
from pykvm.boot.files import open_image, read_initrds, read_modules
from pykvm.bus import Bus
from pykvm.config import MachineConfig
from pykvm.console import Console
from pykvm.devices.base import Device, FunctionDevice
from pykvm.devices.cmos import Cmos
from pykvm.devices.debugexit import DebugExit, ExitCode
from pykvm.devices.fwcfg import FwCfg
from pykvm.devices.i8042 import I8042
from pykvm.devices.pm import GPE_NEW_ID, PowerManagement
from pykvm.devices.post import Post
from pykvm.devices.pvpanic import PanicEvent, PvPanic
from pykvm.devices.reset import ResetControl
from pykvm.devices.serial import Serial
from pykvm.devices.snapshotport import SnapshotPort
from pykvm.devices.vmgenid import GenerationId
from pykvm.errors import ConfigError, KvmError, PykvmError
from pykvm.health import HALT, RESTART, PanicWatch, kernel_says
from pykvm.kvm import Kvm, Vm
from pykvm.lean import TYPE_CHECKING, Record
from pykvm.memory import GuestMemory
from pykvm.outcome import CODES, Outcome, Reason, Stats
from pykvm.parking import Parking
from pykvm.requests import Requests
from pykvm.vcpu import Vcpu
from pykvm.watch import Watcher

if TYPE_CHECKING:
    from typing import Any, Self, TypeVar

    from pykvm.checkpoints import Checkpoints, Found, Predicate
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

# After these the guest is where it was, and may go on.
RESUMABLE = frozenset({Reason.TIMEOUT, Reason.QUIT, Reason.SIGNAL, Reason.DEBUGGER})
LEAVE_S = 60.0  # for a kicked vCPU to leave the guest: microseconds, but for a sick host
PATIENCE_S = 1.0  # for a reader of the console that does not read, when the user has ended the run
XAPIC_IDS = 255  # APIC ids that fit 8 bits, the broadcast id left out


_abandoned: list[ExitStack] = []  # what vCPUs use that have not left the guest and never may


class _Ending(Record):
    """Why the run ends; the first one counts."""

    reason: Reason
    code: int
    vcpu: Vcpu | None


class Machine:
    """A virtual machine with a guest loaded. Raises `ConfigError`, `BootError`, `KvmError`.

    Constructed: ready to run, registers and memory set. Devices may be added until `run`. Owned by
    the thread that made it; a context manager, closed in reverse order of opening.
    """

    def __init__(self, config: MachineConfig, template: Template | None = None) -> None:
        """Boots what `config` says; with a `template`, goes on from there instead."""
        self.config = config
        self.pio_bus: Bus
        self.mmio_bus = Bus("mmio")
        self.virtio: list[MmioTransport | PciTransport] = []  # the devices, as the guest finds them
        self.virtio_console: VirtioConsole | None = None  # with ``--port``
        self.hvc: Hvc | None = None  # with ``--console virtio``
        self.vcpus: list[Vcpu] = []
        self.tracer: Tracer | FlightRecorder | None = None  # of the run
        self.console_log = bytearray()
        self.unread_input = bytearray()  # from the console; the guest has no room for it yet
        self._ending: _Ending | None = None
        self._error: BaseException | None = None
        self._lock = threading.RLock()  # _ending and _error; reentrant: stop() in a signal handler
        self.parking = Parking(self.vcpus)
        self.control: RunControl | None = None  # a debugger's, when there is one
        self.debugger: Server | None = None
        self._symbols: SymbolTable | None = None
        self.panic = PanicWatch()
        self._watcher: Watcher | None = None
        self.template: Template | None = None  # what `fork` and `reset` go back to
        self.captured_at = -1  # `changes` when it was taken of this machine
        self.lineage: Lineage = {}  # the snapshots that it goes on from, or that were taken of it
        self.checkpointing: Checkpoints | None = None
        self.resets = 0
        self.generation = 0  # how often it was restored or forked since it was booted
        self.keeps_identity = False  # its MACs and CID are those of the machine it is a copy of
        self.vcpu_format: VcpuFormat | None = None  # see `snapshot.capture`
        self._unclaimed: dict[str, bytes] = {}  # states of devices that are still to be attached
        self.on_silence: Callable[[str], None] | None = None  # told where the vCPUs are, once
        self.balloon: Balloon | None = None  # with ``--balloon``
        self.pci: PciBus | None = None  # with virtio devices on one
        self.on_snapshot_key: Callable[[], None] | None = None  # Ctrl-A s
        self.console_triggers: list[ConsoleTrigger | Checkpoints] = []
        self.on_snapshot_request: Callable[[], None] | None = None  # the guest's own, by a port
        self._resources = ExitStack()
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
        config = self.config
        cpuid.parse_model(config.cpu)  # before anything is made: it may be wrong
        image = open_image(config.kernel)
        spec = BootSpec(
            name=image.name,
            stamp=image.stamp,
            cmdline=config.cmdline.encode(errors="surrogateescape"),
            initrd=read_initrds(config.initrd),
            modules=read_modules(config.modules),
            rsdp=layout.ACPI_TABLES,
            mode=config.mode,
            load=config.load,
            entry=config.entry,
        )
        places = self._build(GuestMemory(config.memory))
        acpi.place(self.memory, config.cpus, **places)
        self.generation_id.place()
        self.entry = boot.load(image.data, self.memory, spec, config.protocol)
        if _calls_bios(self.entry):
            from pykvm.boot import bios

            self._add_bios()
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
            self._add_bios()
        self._create_vcpus(template.cpuid)
        self._unclaimed = template.fill(self)

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
        self._add_devices()
        return self._add_virtio()

    def _check_cpus(self) -> None:
        # Every KVM gives one: it need not be asked.
        if self.config.cpus > 1 and self.config.cpus > (most := self.kvm.max_vcpus):
            raise ConfigError(
                f"--cpus: {self.config.cpus} is more than the {most} vCPUs that this host's KVM "
                f"gives a machine; try --cpus {min(most, os.cpu_count() or 1)}"
            )

    def _add_devices(self) -> None:
        """The fixed devices, at the ports that `layout` gives them."""
        self._c_bus = lib.pk_bus_create()
        self._resources.callback(lib.pk_bus_destroy, self._c_bus)
        self.serial = Serial(self._c_bus, layout.PORT_COM1, self.vm.fd, layout.IRQ_COM1)
        self._resources.callback(self.serial.close)

        def line(gsi: int) -> Callable[[int], None]:
            return lambda level: self.vm.irq_line(gsi, level)

        self.power = PowerManagement(
            on_poweroff=lambda: self._finish(Reason.POWEROFF), irq=line(layout.IRQ_SCI)
        )
        low = self.memory.low_end
        clock = Cmos(low, line(layout.IRQ_RTC), high_memory_size=self.memory.size - low)
        self._resources.callback(clock.close)
        self.fw_cfg = FwCfg(self.config.cpus, self.memory.size)
        self.pio_bus = Bus(
            "port",
            [
                (layout.PORT_I8042, 5, I8042(self._on_reset, line(layout.IRQ_KEYBOARD))),
                (layout.PORT_RTC, 2, clock),
                (layout.PORT_POST, 1, Post()),
                (layout.PORT_DEBUG_EXIT, 4, DebugExit(self._on_exit_code)),
                (layout.PORT_COM1, 8, self.serial),
                (layout.PORT_PVPANIC, 1, PvPanic(self._on_panic_event)),
                (layout.PORT_FW_CFG, 2, self.fw_cfg),
                (layout.PORT_EXIT_CODE, 1, ExitCode(self._on_exit_code)),
                (layout.PORT_SNAPSHOT, 1, SnapshotPort(self._on_snapshot_request, self)),
                (layout.PORT_PM1A_EVENT, 8, self.power),
            ],
        )
        self.generation_id = GenerationId(self.memory, lambda: self.power.raise_event(GPE_NEW_ID))

    def _add_virtio(self) -> dict[str, Any]:
        """The virtio devices asked for, and a PCI bus if they are on one; returns where they are,
        as `acpi.place` wants it."""
        reset = ResetControl(self._on_reset)
        if not self.config.has_virtio:
            self.pio_bus.add(layout.PORT_PCI_CONFIG, 8, reset)
            return {}
        from pykvm.virtio.attach import attach

        return attach(self, self._c_bus, self._resources, reset)

    def _add_bios(self) -> None:
        """The BIOS that real-mode guests call and multiboot guests know to have been there."""
        from pykvm.boot.e820 import memory_map
        from pykvm.devices.bios import Bios

        services = Bios(
            self.memory,
            self.serial,
            memory_map(self.memory),
            on_end=lambda: self._finish(Reason.HALTED),
            pci=self.pci,
        )
        self.pio_bus.add(layout.PORT_BIOS_CALL, 4, services)

    def _cpuid(self) -> Iterator[bytes]:
        """What CPUID tells the guest, one table for each vCPU."""
        supported, config = self.kvm.supported_cpuid(), self.config
        tsc_deadline = bool(self.kvm.check_extension(lib.KVM_CAP_TSC_DEADLINE_TIMER))
        for index in range(config.cpus):
            yield cpuid.packed(supported, config.cpu, index, config.cpus, tsc_deadline)

    def _create_vcpus(self, cpuids: Iterable[bytes]) -> None:
        for index, table in enumerate(cpuids):
            vcpu = Vcpu(self.kvm, self.vm, index, self._c_bus)
            self._resources.callback(vcpu.close)
            vcpu.set_cpuid(table)
            x86.set_memory_types(vcpu)
            self.vcpus.append(vcpu)
        self.memory.vcpu = self.vcpus[0]

    # ── devices of the user's own ────────────────────────────────────────────────────────────

    def pio(self, port: int, size: int = 1) -> Callable[[Any], Any]:
        """``@vm.pio(0x510, size=2)``: the device below answers at `size` ports from `port`.

        It is a `Device`, a class of devices, or a function ``f(offset, size, value)`` (see
        `FunctionDevice`). It takes the place of what was there. Raises `ConfigError` for COM1's
        ports: those are C's, and no access to them gets this far.
        """
        if port < layout.PORT_COM1 + 8 and port + size > layout.PORT_COM1:
            raise ConfigError(
                f"port {port:#x}: COM1 is at {layout.PORT_COM1:#x}, and C answers for it; "
                "choose another port"
            )
        return lambda thing: self._attach(self.pio_bus, port, size, thing)

    def mmio(self, gpa: int, size: int) -> Callable[[Any], Any]:
        """``@vm.mmio(0xd0000000, 0x1000)``: the device below answers in that range of memory.

        As `pio`. Raises `ConfigError` where guest memory is: KVM would never ask us.
        """
        for region in self.memory.regions:
            if gpa < region.end and region.gpa < gpa + size:
                raise ConfigError(
                    f"mmio {gpa:#x}: guest memory is there, up to {region.end:#x}; "
                    f"choose an address from {layout.MMIO_HOLE:#x}"
                )
        return lambda thing: self._attach(self.mmio_bus, gpa, size, thing)

    def _attach(self, bus: Bus, base: int, size: int, thing: Any) -> Any:
        device = thing() if isinstance(thing, type) else thing
        if not isinstance(device, Device):
            device = FunctionDevice(device)
        bus.replace(base, size, device)
        saved = self._unclaimed.pop(f"{bus.space}/{base:#x}", None)
        if saved:
            device.restore(saved)
        return thing

    # ── running ──────────────────────────────────────────────────────────────────────────────

    def run(
        self,
        timeout: float | None = None,
        console: Console | None = None,
        tracer: Tracer | FlightRecorder | None = None,
    ) -> Outcome:
        """Run the guest until it ends, `timeout` seconds passed or `stop` was called.

        `console` is where the serial port leads (default: nowhere but `Outcome.console`), `tracer`
        notes what happens (see `debug.trace`). After a
        timeout or a stop it may be called again and the guest goes on. Raises `KvmError` when the
        host fails, and whatever a device of the user's raised.
        """
        if self._ending is not None and self._ending.reason not in RESUMABLE:
            raise PykvmError(f"the machine has ended ({self._ending.reason.value}); make a new one")
        if self._unclaimed:
            missing = ", ".join(self._unclaimed)
            raise ConfigError(
                f"the machine was captured with devices of its user's at {missing}; attach them "
                "with vm.pio or vm.mmio before it runs"
            )
        self._ending = self._error = None
        self.requests.begin()
        self.serial.resume()
        self._watcher = Watcher(self, console or Console(), timeout)
        self.tracer = tracer
        if tracer is not None:
            tracer.start(self)
        if self.debugger and self.config.wait_gdb:
            self.debugger.wait()
        started = time.monotonic()
        try:
            self._start_vcpus()
            self._watcher.watch()
        finally:
            self._finish(Reason.QUIT)  # only counts when an exception brought us here
            self.parking.release(range(len(self.vcpus)))  # those that a debugger holds
            self.serial.stop_waiting()
            self._join()
            if tracer is not None:
                tracer.stop()
            self.requests.end()
        by_user = self._ending is not None and self._ending.reason in RESUMABLE
        for device in (self.hvc, self.virtio_console):
            if device is not None and not by_user and self._error is None:
                device.flush(self.requests.wake_fd, self._watcher.make_room)
        self._watcher.finish(PATIENCE_S if by_user or self._error else None)
        if self._error is not None:
            raise self._error
        if self.debugger:
            self.debugger.let_go()
        outcome = self._outcome(time.monotonic() - started)
        if self.debugger:
            self.debugger.say_goodbye(outcome.code)
        return outcome

    def stop(self, reason: Reason = Reason.QUIT, code: int | None = None) -> None:
        """End the run from any thread, a device or a signal handler."""
        self._finish(reason, code)

    def _start_vcpus(self) -> None:
        """Start a thread for each vCPU; `parking` knows when they have ended.

        Not `threading.Thread`, whose `start` waits until the thread has begun: that would be a
        tenth of the time from a machine's configuration to its first exit.
        """
        for vcpu in self.vcpus:
            self.parking.enter()
            try:
                start_new_thread(self._vcpu_thread, (vcpu,))
            except RuntimeError:  # the host has no room for it
                self.parking.leave()
                raise

    def _join(self) -> None:
        """Wait for vCPU threads that have been kicked. Raises as `_expect_vcpus`."""
        kicked = time.monotonic()
        while not self.parking.is_empty(wait_s=1.0):
            self._expect_vcpus(kicked)

    def _expect_vcpus(self, kicked: float) -> None:
        """Raise `KvmError` when a vCPU is in the guest long after it was kicked, at `kicked`: else
        neither `--timeout` nor a signal would end such a machine."""
        if time.monotonic() - kicked < LEAVE_S:
            return
        stuck = [vcpu.id for vcpu in self.vcpus if vcpu.handle.tid]
        if not stuck:
            return  # a device of the user's takes its time
        _abandoned.append(self._resources.pop_all())
        raise KvmError(
            "KVM_RUN",
            errno.ETIME,
            f"vCPU {stuck[0]} was told to leave the guest {LEAVE_S:.0f} s ago and has not: this "
            "host is overloaded or its KVM at fault; try the lab: pykvm lab -- pykvm boot …",
        )

    def _vcpu_thread(self, vcpu: Vcpu) -> None:
        try:
            vcpu.run(self.pio_bus, self.mmio_bus, self._on_exit)
        except BaseException as error:  # handed to the caller of run()
            with self._lock:
                self._error = self._error or error
            self._finish(Reason.INTERNAL_ERROR, vcpu=vcpu)
        finally:
            self.parking.leave()

    def _on_exit(self, vcpu: Vcpu, exit: Any) -> bool:
        """Every exit that is no access. True: go on. On the vCPU's thread."""
        if self.control is not None and self.control.on_exit(vcpu, exit):
            self.parking.park(vcpu, lambda: self.ended)
            return not self.ended
        match exit.kind:
            case lib.PK_EXIT_KICK:
                self.parking.park(vcpu, lambda: self.ended)
            case lib.PK_EXIT_SHUTDOWN:
                self._finish(Reason.TRIPLE_FAULT, vcpu=vcpu)
            case lib.PK_EXIT_FAIL_ENTRY:
                self._finish(Reason.FAIL_ENTRY, vcpu=vcpu)
            case lib.PK_EXIT_SYSTEM if exit.data == lib.KVM_SYSTEM_EVENT_SHUTDOWN:
                self._finish(Reason.POWEROFF, vcpu=vcpu)
            case lib.PK_EXIT_SYSTEM if exit.data == lib.KVM_SYSTEM_EVENT_RESET:
                self._on_reset()
            case lib.PK_EXIT_SYSTEM:
                self._finish(Reason.PANIC, vcpu=vcpu)
            case _:
                self._finish(Reason.INTERNAL_ERROR, vcpu=vcpu)
        return self._ending is None

    def _finish(self, reason: Reason, code: int | None = None, vcpu: Vcpu | None = None) -> None:
        """End the run; the first call counts. Any thread; the guest runs no further instruction
        on the calling vCPU's thread, because a kicked vCPU does not enter it again."""
        with self._lock:
            if self._ending is None:
                self._ending = _Ending(reason, CODES[reason] if code is None else code, vcpu)
        for each in self.vcpus:
            each.kick()
        self.requests.wake()

    def _on_exit_code(self, code: int) -> None:
        self._finish(Reason.EXIT, code)

    def _on_reset(self) -> None:
        self._finish(Reason.REBOOT)

    def _on_snapshot_request(self) -> None:
        """On a vCPU's thread: the guest asks, and goes no further until it was answered."""
        answer = self.on_snapshot_request
        if answer is not None:
            self.requests.add(answer, pause=True)

    def _on_panic_event(self, event: PanicEvent) -> None:
        if event & PanicEvent.PANICKED:
            self.panic.seen = True

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
                if self._watcher:  # a vCPU may be waiting for room in the console
                    self._watcher.make_room()
                self._expect_vcpus(kicked)
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
        if self._watcher is not None:
            self._watcher.make_room()
            return
        self.console_log += self.serial.take()
        while self.hvc and (data := self.hvc.take()):
            self.console_log += data

    def forget_run(self) -> None:
        """As if it had not run: for a machine that was taken back to where it had not."""
        self._ending = self._error = None
        self.panic = PanicWatch()
        self.console_log.clear()
        self.unread_input.clear()

    def at_rest(self, call: Callable[[], T]) -> T:
        """What `call` returns, made while the machine is at rest: no vCPU runs, no device serves.

        Any thread but a vCPU's, where a device's code runs: that one adds to `requests`.
        """
        from pykvm.snapshot.capture import at_rest

        def here() -> T:
            with at_rest(self):
                return call()

        return self.requests.answer(here)

    # ── snapshots ────────────────────────────────────────────────────────────────────────────

    def snapshot(self, folder: str | os.PathLike[str], **options: Any) -> None:
        """Save the machine as it is now, running or not, and let it go on: see `snapshot.save`.

        From a vCPU's thread, add it to `requests`. Raises `ConfigError`, and `HostError` for a
        full disk.
        """
        from pykvm.snapshot.save import Save

        with Save(folder, **options) as save:
            self.at_rest(lambda: save.capture(self))
            save.commit()

    @classmethod
    def restore(cls, folder: str | os.PathLike[str], **options: Any) -> Self:
        """A machine that goes on where the one saved in `folder` was: see `snapshot.load`."""
        from pykvm.snapshot.load import load

        with load(folder, **options) as template:
            return cls(template.config, template)

    def fork(self, **changes: Any) -> Machine:
        """A machine of its own that goes on where this one is now; `changes` to its configuration.

        It costs no copy of the memory: both share what neither has written. Many forks from one
        moment share a template, which this takes when the machine has changed since the last.
        """
        from pykvm.snapshot.template import template_of

        return template_of(self).machine(**changes)

    def reset(self) -> None:
        """Go back, in place, to where the last `fork` was taken from, or this machine began."""
        from pykvm.snapshot.reset import reset

        reset(self)

    def checkpoints(self, every: float | str | None = None, **limits: int) -> Checkpoints:
        """Take checkpoints from now on, the first at once; those there were are forgotten.

        `every`: so many seconds that it runs, or "console:REGEX"; `limits`: `count` and `size`
        (bytes) of those that are kept. See `checkpoints`.
        """
        from pykvm.checkpoints import Checkpoints

        if self.checkpointing is not None:
            self.checkpointing.close()
        self.checkpointing = Checkpoints(self, every, **limits)
        return self.checkpointing

    def bisect(self, predicate: Predicate, **changes: Any) -> Found:
        """Where ``predicate(vm)`` began to hold: the last checkpoint at which it does not, with a
        machine there that is ready to run, and the next one, at which it does.

        It is asked of machines that are made for it, with `changes` to the configuration (`disks`),
        about log2(n) times; as with git, it should hold for good once it does. It must hold now.
        """
        if self.checkpointing is None:
            raise PykvmError("bisect: there are no checkpoints; begin with vm.checkpoints(every=1)")
        return self.checkpointing.bisect(predicate, **changes)

    # ── the end ──────────────────────────────────────────────────────────────────────────────

    @property
    def ended(self) -> bool:
        """Whether the run is over, or about to be."""
        return self._ending is not None

    @property
    def changes(self) -> int:
        """Grows whenever vCPUs run, or anything but memory and devices is set."""
        own = self.vm.changes + self.parking.releases
        return own + sum([vcpu.changes for vcpu in self.vcpus])

    @property
    def exits(self) -> int:
        """How often a vCPU left the guest so far."""
        return sum(vcpu.exits for vcpu in self.vcpus)

    def _outcome(self, seconds: float) -> Outcome:
        ending = self._ending
        assert ending is not None
        reason, code = self._verdict(ending)
        report = ""
        if code != 0 and reason not in (Reason.EXIT, Reason.QUIT, Reason.SIGNAL):
            from pykvm.report import describe

            report = describe(self, reason, ending.vcpu)
        stats = Stats(self.exits, int(lib.pk_bus_count(self._c_bus)), seconds)
        return Outcome(reason, code, bytes(self.console_log), stats, report)

    def _verdict(self, ending: _Ending) -> tuple[Reason, int]:
        """What the ending means, with the console's last words in view."""
        reason, code = ending.reason, ending.code
        if self.panic.seen and reason in (Reason.REBOOT, Reason.TRIPLE_FAULT, Reason.HALTED):
            reason = Reason.PANIC  # the kernel died, then did what panic= asks
        elif reason is Reason.TRIPLE_FAULT and kernel_says(self.console_log, *RESTART):
            reason = Reason.REBOOT  # Linux's reboot=triple
        elif reason is Reason.HALTED and kernel_says(self.console_log, *HALT):
            reason = Reason.POWEROFF  # Linux's halt, on a machine that stays on
        return (reason, code) if reason is ending.reason else (reason, CODES[reason])

    def close(self) -> None:
        """Destroy the machine. Safe to call twice."""
        self.vcpus.clear()
        self._resources.close()
        if self.checkpointing is not None:
            self.checkpointing.close()
        if self.template is not None:
            self.template.close()
            self.template = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _calls_bios(entry: Entry) -> bool:
    return entry.mode is CpuMode.REAL or entry.protocol == "multiboot"
