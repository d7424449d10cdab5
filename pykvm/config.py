"""What a machine is made of, checked: the options of the command line and of the API alike.

Reached from `cli` and from users' code; consumed by `machine`. Everything that can be refused
without touching the host is refused here, with the option's name and the remedy.
"""

from __future__ import annotations

import os

from pykvm.boot.entry import CpuMode
from pykvm.errors import ConfigError
from pykvm.layout import GIB, KIB, MIB
from pykvm.lean import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from typing import Any

    from pykvm.virtio.config.console import PortConfig
    from pykvm.virtio.config.disk import DiskConfig
    from pykvm.virtio.config.net import NetConfig
    from pykvm.virtio.config.share import ShareConfig
    from pykvm.virtio.config.vsock import VsockConfig

MEMORY_DEFAULT = 256 * MIB
MEMORY_MIN = 1 * MIB
PATIENCE_S = 60.0  # without a byte, in a pipe
CMDLINE_DEFAULT = "console=ttyS0 quiet panic=-1"
# With hvc0: until the kernel has it, its boot console is the serial port; quiet first, or that says
# all that was said before it came (Linux admin-guide/kernel-parameters.txt, earlycon=).
CMDLINE_VIRTIO = "quiet earlycon=uart8250,io,0x3f8 console=hvc0 panic=-1"

TRANSPORTS = ("pci", "mmio")
CONSOLES = ("serial", "virtio")

# What a field may be. To write what the command line takes there is an easy mistake, and the error
# that it ends in far from it.
_KINDS: Any = (
    ("kernel", (str, bytes, os.PathLike), "a path, or the image itself as bytes"),
    ("initrd", (tuple, list), "a list of paths, or of bytes"),
    ("modules", (tuple, list), "a list of texts, 'FILE ARGUMENTS'"),
    ("cmdline", str, "a text"),
    ("memory", int, "a number of bytes: 256 << 20"),
    ("cpus", int, "a number"),
    ("cpu", str, "a text: 'host,-avx'"),
    ("disks", (tuple, list), "a list of DiskConfig"),
    ("nets", (tuple, list), "a list of NetConfig"),
    ("shares", (tuple, list), "a list of ShareConfig"),
    ("ports", (tuple, list), "a list of PortConfig"),
    ("vsock", (tuple, type(None)), "a VsockConfig"),
    ("balloon", (int, type(None)), "a number of bytes"),
    ("gdb", (str, type(None)), "a text: '1234'"),
)

_UNITS = {"": MIB, "K": KIB, "M": MIB, "G": GIB, "T": 1024 * GIB}


def parse_size(text: str, option: str = "--memory") -> int:
    """Bytes from ``512M``, ``1.5G``, ``2g``, ``1048576K``; a bare number is MiB, as QEMU has it.

    Raises `ConfigError` naming `option`.
    """
    number = text.strip().upper().removesuffix("IB").removesuffix("B")
    unit = number[-1:] if number[-1:] in ("K", "M", "G", "T") else ""
    try:
        size = float(number.removesuffix(unit)) * _UNITS[unit]
        return int(size)
    except (ValueError, OverflowError):
        raise ConfigError(f"{option}: {text!r} is not a size; try 256M or 2G") from None


class MachineConfig(Record):
    """A machine to be. Raises `ConfigError` when a value cannot work on any host."""

    kernel: str | os.PathLike[str] | bytes  # a path, or the image itself
    initrd: tuple[str | os.PathLike[str] | bytes, ...] = ()  # joined in this order
    modules: tuple[str, ...] = ()  # multiboot modules: "FILE ARGUMENTS…"
    cmdline: str = ""  # taken as given
    memory: int = MEMORY_DEFAULT  # bytes
    cpus: int = 1
    cpu: str = "host"  # host[,+FEATURE][,-FEATURE]…
    protocol: str | None = None  # one of boot.PROTOCOLS; None: found by magic
    mode: CpuMode | None = None  # flat binaries
    load: int | None = None  # flat binaries: gpa
    entry: int | None = None  # flat binaries: gpa
    disks: tuple[DiskConfig, ...] = ()  # /dev/vda, /dev/vdb …
    nets: tuple[NetConfig, ...] = ()  # eth0, eth1 …
    shares: tuple[ShareConfig, ...] = ()  # folders of the host's
    rng: bool = False  # a virtio entropy source
    vsock: VsockConfig | None = None  # sockets between host and guest
    balloon: int | None = None  # bytes the guest does without at first; None: no balloon
    ports: tuple[PortConfig, ...] = ()  # byte channels: /dev/virtio-ports/NAME
    console: str = "serial"  # what the guest talks to its user by: one of CONSOLES
    transport: str = "pci"  # how virtio devices are reached: one of TRANSPORTS
    patience: float = PATIENCE_S  # seconds without a byte, of a kernel or initrd that is a pipe

    @property
    def has_virtio(self) -> bool:
        """Whether any virtio device is asked for."""
        devices = (self.disks, self.nets, self.shares, self.rng, self.vsock, self.ports)
        return any(devices) or self.balloon is not None or self.console == "virtio"

    gdb: str | None = None  # where to listen for gdb: [HOST:]PORT or unix:PATH
    wait_gdb: bool = False  # no instruction before a gdb says so

    def __post_init__(self) -> None:
        for name, kinds, wanted in _KINDS:
            value = getattr(self, name)
            if not isinstance(value, kinds):
                raise ConfigError(f"MachineConfig: {name}={value!r} is not {wanted}")
        for each in (*self.disks, *self.nets, *self.shares, *self.ports):
            if not isinstance(each, Record):
                raise ConfigError(
                    f"MachineConfig: {each!r} is not a DiskConfig, NetConfig, ShareConfig or "
                    "PortConfig; make one of it"
                )
        if self.memory < MEMORY_MIN:
            raise ConfigError(
                f"--memory: {self.memory} bytes is less than the {MEMORY_MIN // MIB} MiB that any "
                f"guest needs; try --memory {MEMORY_DEFAULT // MIB}M"
            )
        if self.memory % 4096:
            raise ConfigError(
                f"--memory: {self.memory} bytes is not a whole number of 4 KiB pages; "
                f"try --memory {self.memory // MIB + 1}M"
            )
        if self.cpus < 1:
            raise ConfigError(f"--cpus: {self.cpus} is less than 1; try --cpus 1")
        if self.mode is not None and not isinstance(self.mode, CpuMode):
            names = ", ".join(f"CpuMode.{mode.name}" for mode in CpuMode)
            raise ConfigError(f"--mode: {self.mode!r} is no CpuMode; write one of {names}")
        if self.transport not in TRANSPORTS:
            raise ConfigError(
                f"--transport: {self.transport!r} is unknown; write {' or '.join(TRANSPORTS)}"
            )
        if self.console not in CONSOLES:
            raise ConfigError(
                f"--console: {self.console!r} is unknown; write {' or '.join(CONSOLES)}"
            )
        if self.ports:
            from pykvm.virtio.config.console import check_ports

            check_ports(self.ports)
        if self.nets:
            from pykvm.virtio.config.net import check_nets

            check_nets(self.nets)
        if self.wait_gdb and self.gdb is None:
            raise ConfigError("--wait-gdb: there is nobody to wait for; add --gdb 1234")
        if "\0" in self.cmdline:
            raise ConfigError("--append: the command line contains a NUL byte; remove it")
