"""The emulated machine: which programs, with which options, and their lives.

Reached from `supervisor`, which owns it, and from `client` for the `Spec`. What comes up inside is
guests/lab-agent/boot.c. QEMU's TCG emulates AMD's SVM, so the lab needs no /dev/kvm and no rights;
the host's file system comes in through virtiofsd.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Final

from pykvm.errors import ConfigError, HostError
from pykvm.virtiofsd import PACKAGES, Virtiofsd
from pykvm.virtiofsd import find as find_virtiofsd

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence

    from pykvm.boot.apt import Progress
    from pykvm.boot.kernels import Note

KERNEL: Final = "6.12-cloud"  # has virtio-pci, virtiofs and virtio-console built in
QEMU: Final = "qemu-system-x86_64"
CPUS_MAX: Final = 32
CPUS_DEFAULT: Final = 4  # or as many as the host has: each is a thread of QEMU
MEMORY_MIN_MIB: Final = 512
MEMORY_DEFAULT_MIB: Final = 4096  # or half of what the host has

# The host's / comes twice, by tag. In the first the lab asks once for what it has seen, which makes
# programs start two to three times faster; but it does not notice what the host changes meanwhile.
# So the directories that both write come from the second, which asks again after a second.
SHARES: Final = {"host": "always", "shared": "auto"}

# The lab's kernel command line.
CMDLINE: Final = (
    "console=ttyS0",
    "quiet",
    "panic=-1",  # reboot at once; QEMU is told to end then
    "mitigations=off",
    # Clear every page before use. virtiofsd writes to memory behind QEMU's back, which would go on
    # running its translation of the code a page held before; a store of the lab's own drops that.
    "init_on_alloc=1",
    "tsc=reliable",  # time is read without leaving to QEMU; its clock is never in doubt
    "no_timer_check",  # nor is the timer, nor are CPUs, however late a busy host lets them run
    "nowatchdog",
)


def _default_cpus() -> int:
    return min(CPUS_DEFAULT, len(os.sched_getaffinity(0)))


def _default_memory_mib() -> int:
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    return max(MEMORY_MIN_MIB, min(MEMORY_DEFAULT_MIB, host // 2))


@dataclass(frozen=True, slots=True)
class Spec:
    """What may be chosen about a lab."""

    cpus: int = field(default_factory=_default_cpus)
    memory_mib: int = field(default_factory=_default_memory_mib)  # taken as the lab touches it
    kernel: str = KERNEL  # as `pykvm kernel fetch` takes it

    def __post_init__(self) -> None:
        if not 1 <= self.cpus <= CPUS_MAX:
            raise ConfigError(f"--cpus {self.cpus}: a lab has 1 to {CPUS_MAX} CPUs")
        if self.memory_mib < MEMORY_MIN_MIB:
            raise ConfigError(
                f"--memory {self.memory_mib}M: a lab needs {MEMORY_MIN_MIB}M at least"
            )


@dataclass(frozen=True, slots=True)
class Plan:
    """A `Spec` and what of this host's it takes: all that is needed to start the machine."""

    spec: Spec
    qemu: str
    virtiofsd: Virtiofsd
    kernel: str
    initrd: str

    @classmethod
    def make(cls, spec: Spec, progress: Progress | None = None, note: Note | None = None) -> Plan:
        """Find or fetch everything. Raises `HostError` naming what is missing."""
        from pykvm.boot import kernels, release
        from pykvm.lab import images

        programs = find_programs()
        # Any that matches will do; to look for a newer one would make every start slower.
        cached = (each for each in kernels.installed() if release.matches(spec.kernel, each.name))
        kernel = next(cached, None) or kernels.fetch(spec.kernel, progress, note)
        image, initrd = images.make_kernel(kernel), images.make_initrd(kernel)
        return cls(spec, *programs, str(image), str(initrd))

    def dumps(self) -> str:
        """Return it as text, for another process's `loads`."""
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> Plan:
        """Return what `dumps` was given."""
        fields = json.loads(text)
        spec, virtiofsd = Spec(**fields["spec"]), Virtiofsd(*fields["virtiofsd"])
        return cls(**fields | {"spec": spec, "virtiofsd": virtiofsd})

    def qemu_command(self, port_fd: int, share_fds: Sequence[int]) -> list[str]:
        """Return the command of the emulated machine; its console is QEMU's stdout."""
        shares: list[str] = []
        for tag, fd in zip(SHARES, share_fds, strict=True):
            shares += ["-chardev", f"socket,id={tag},fd={fd}"]
            shares += ["-device", f"vhost-user-fs-pci,chardev={tag},tag={tag}"]
        size = f"{self.spec.memory_mib}M"
        return [
            self.qemu,
            *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
            *("-machine", "q35,memory-backend=ram", "-accel", "tcg,thread=multi"),
            *("-cpu", "max,la57=off"),  # page tables of four levels are walked faster than of five
            *("-smp", str(self.spec.cpus), "-m", size),
            *("-object", f"memory-backend-memfd,id=ram,size={size},share=on"),
            # The port comes first, so that its device is virtio0 and its name in the lab vport0p1.
            *("-chardev", f"socket,id=port,fd={port_fd}"),
            *("-device", "virtio-serial-pci,max_ports=2", "-device", "virtserialport,chardev=port"),
            *shares,
            *("-serial", "stdio"),
            *("-kernel", self.kernel, "-initrd", self.initrd, "-append", " ".join(CMDLINE)),
        ]


def find_programs() -> tuple[str, Virtiofsd]:
    """Return the path of QEMU, and virtiofsd."""
    import shutil

    qemu, virtiofsd = shutil.which(QEMU), find_virtiofsd()
    if qemu is None or virtiofsd is None:
        missing = [name for name, path in ((QEMU, qemu), ("virtiofsd", virtiofsd)) if path is None]
        raise HostError(
            f"no {' and no '.join(missing)} on this host: the lab needs the packages "
            f"qemu-system-x86 and {PACKAGES}"
        )
    return qemu, virtiofsd


class Machine:
    """A running emulated machine. Owned by the supervisor's one thread."""

    def __init__(self, plan: Plan) -> None:
        """Start it. It ends with the calling thread, however that ends."""
        from socket import socketpair

        from pykvm.virtio.backend import unnamed_sockets

        self._processes: list[subprocess.Popen[bytes]] = []
        self.port, port = socketpair()  # the agent's frames
        out, console = os.pipe()
        self.console = open(out, "rb", buffering=0)  # noqa: SIM115 - what they all print
        with ExitStack() as stack:  # what only they need
            stack.enter_context(port)
            stack.callback(os.close, console)
            share_fds = []
            for cache in SHARES.values():
                listener, connected = map(stack.enter_context, unnamed_sockets())
                # An overlay over it would show announced mount points empty.
                command = plan.virtiofsd.command(listener.fileno(), "/", cache, submounts=False)
                self._start(command, console, [listener.fileno()])
                share_fds.append(connected.fileno())
            command = plan.qemu_command(port.fileno(), share_fds)
            self._start(command, console, [port.fileno(), *share_fds])

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self.console.close()

    def close(self) -> None:
        """End it and wait until it has ended. `console` still has what was not read."""
        self.port.close()
        for process in reversed(self._processes):
            process.kill()
            process.wait()

    def _start(self, command: list[str], console: int, fds: Sequence[int]) -> None:
        import subprocess

        self._processes.append(
            subprocess.Popen(
                # prctl(PR_SET_PDEATHSIG) by a program: no Python between fork and exec
                ["setpriv", "--pdeathsig=KILL", "--", *command],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                pass_fds=fds,
            )
        )
