"""``pykvm boot``: options to `MachineConfig`, `Outcome` to an exit code.

Reached from `cli`. What it decides itself: which kernel when none is named, which initrd when none
is given, and whether this host can run the guest at all. Read `machine` for everything after that.
"""

from __future__ import annotations

import gc
import os
import sys

from pykvm.boot import PROTOCOLS
from pykvm.boot.entry import CpuMode
from pykvm.cli import complain
from pykvm.cli_devices import initrds_of, nets_of, ports_of, storage_of, vsock_of
from pykvm.config import CMDLINE_DEFAULT, MEMORY_DEFAULT, MachineConfig, parse_size
from pykvm.errors import ConfigError
from pykvm.layout import MIB
from pykvm.lean import TYPE_CHECKING, signal
from pykvm.options import Option, describe, parse

if TYPE_CHECKING:
    from typing import Any

    from pykvm.debug.follow import Follower
    from pykvm.machine import Machine
    from pykvm.outcome import Outcome
    from pykvm.virtio.config.storage import Storage

HELP = """\
usage: pykvm boot [options] [KERNEL] [-- COMMAND…]

Boot KERNEL: bzImage, vmlinux, PVH, multiboot or flat, found by its magic. It is a path or a name
from 'pykvm kernel ls'; without one, $PYKVM_KERNEL, the running kernel's /boot/vmlinuz, the newest
fetched one, else one is fetched. COMMAND is what pykvm's own init runs in a Linux guest; its exit
code becomes ours.

options:
{options}

exit codes:
  0      the guest powered off or rebooted
  n      the guest left with its own code (isa-debug-exit at 0xf4, plain code at 0x5f8)
  124    --timeout
  125    pykvm or the host's KVM failed
  255    the guest crashed: kernel panic, triple fault, dead halt
  128+n  pykvm was ended by signal n

On a terminal, Ctrl-A x ends the machine and Ctrl-A h tells the other keys."""


OPTIONS = (
    Option("--kernel", "KERNEL", "the same as KERNEL, as an option"),
    Option("--initrd", "FILE", "several are joined", repeated=True),
    Option(
        "--append",
        "TEXT",
        f"the kernel command line, taken as given (default: {CMDLINE_DEFAULT!r} for Linux)",
    ),
    Option(
        "--add",
        "FILE[:GUESTPATH]",
        "put a host file, with the libraries it needs, into pykvm's own initrd",
        repeated=True,
    ),
    Option("--module", "'FILE ARGS'", "a multiboot module with its command line", repeated=True),
    Option("-m --memory", "SIZE", "256M, 2G …", f"{MEMORY_DEFAULT // MIB}M"),
    Option("-c --cpus", "N", "number of vCPUs (default: 1)", "1"),
    Option("--cpu", "host[,+NAME,-NAME…]", "CPU features to add, remove", "host"),
    Option(
        "--protocol",
        "NAME",
        "force how the image is entered: "
        + "; ".join(f"{name} ({gloss})" for name, gloss in PROTOCOLS.items()),
    ),
    Option("--mode", "MODE", "flat binaries: real, protected or long"),
    Option("--load", "GPA", "flat binaries: load address"),
    Option("--entry", "GPA", "flat binaries: first instruction (default: --load)"),
    Option(
        "--serial",
        "WHERE",
        "stdio, none, pty, file:PATH or unix:PATH (default: stdio; with --pipe: none)",
    ),
    Option(
        "--pipe",
        "",
        "COMMAND's standard input, output and error are pykvm's own, byte for byte, without a "
        "terminal; the kernel's last lines are shown when the guest crashes",
    ),
    Option(
        "--port",
        "NAME=WHERE",
        "a byte channel, /dev/virtio-ports/NAME in the guest; WHERE is unix:PATH (a socket to "
        "connect to), file:PATH (output), stdio, stdin, stdout or stderr",
        repeated=True,
    ),
    Option(
        "--disk",
        "FILE[,format=NAME][,ro][,serial=TEXT][,cache=MODE][,queues=N][,bps=N][,iops=N]"
        "[,overlay=on|PATH][,mount=PATH[,partition=N][,fstype=NAME]]",
        "a file or block device as the next virtio disk; NAME is raw, or qcow2 and others that "
        "qemu-storage-daemon has; in place of FILE, vhost-user=SOCKET is a back end of your own; "
        "MODE is writeback, none (O_DIRECT) or unsafe (a flush does nothing); bps and iops limit "
        "bytes and requests a second, bps_max and iops_max say how much may pass at once; with "
        "overlay= FILE is only read and may be shared; what the guest writes goes to PATH, or is "
        "dropped at the end (on); pykvm's own init mounts it, or its partition N, at PATH",
        repeated=True,
    ),
    Option(
        "--net",
        "tap=NAME|bridge=NAME|user|socket=PATH[,…]",
        "the next virtio network card, on a TAP (made, as root, if there is none), a bridge, passt "
        "(no rights needed; hostfwd=tcp:8080-:80) or a unix socket (QEMU's stream, or dgram with "
        "peer=PATH); mac=, mtu=, queues=, offload=off; ip=ADDR/BITS, gw=, dns= are what the "
        "guest's init sets, hostip=ADDR/BITS is for a TAP that is made; bps=, iops= as for --disk",
        repeated=True,
    ),
    Option(
        "--fs",
        "HOSTDIR,tag=NAME[,ro][,cache=MODE][,mount=PATH]",
        "a folder of the host, which pykvm's own init mounts at /mnt/NAME or PATH; MODE is auto, "
        "none or always",
        repeated=True,
    ),
    Option(
        "--root",
        "WHAT",
        "the guest's root: a disk, as --disk takes it, a folder or the tag of a --fs; its own init "
        "runs, or COMMAND",
    ),
    Option("--rng", "", "a virtio entropy source"),
    Option(
        "--vsock",
        "PATH[,cid=N]",
        "sockets between host and guest: a host program connects to the unix socket PATH and says "
        "'CONNECT port'; the guest's connections to port P of CID 2 go to PATH_P",
    ),
    Option("--transport", "NAME", "how virtio devices are reached: pci (default) or mmio", "pci"),
    Option(
        "--balloon",
        "[=SIZE]",
        "a virtio balloon, through which the guest gives back what it has no use for; it does "
        "without SIZE at once",
    ),
    Option("--snapshot", "DIR", "where the guest's own request and Ctrl-A s save to"),
    Option(
        "--snapshot-at",
        "console:REGEX DIR",
        "save to DIR when the console says what REGEX matches; see 'pykvm restore'",
        repeated=True,
        words=2,
    ),
    Option(
        "--trace",
        "FILE",
        "every exit, interrupt, kick and console line with its time: .json for ui.perfetto.dev, "
        "or .csv; 'pykvm explain' reads it",
    ),
    Option(
        "--trace-hz",
        "N",
        "how often a vCPU that stays in the guest is looked at, in a trace (default: 100)",
        "100",
    ),
    Option("--stats", "[=live]", "at the end, or while it runs, a table of exits and their cost"),
    Option("--plot", "FILE.svg", "a picture of the boot: its timeline, the guest's memory"),
    Option(
        "--gdb",
        "[HOST:]PORT|unix:PATH",
        "listen for a gdb (target remote); HOST is 127.0.0.1 unless given, port 0 a free one",
    ),
    Option("--wait-gdb", "", "run no instruction before gdb says so"),
    Option("--timeout", "S", "end the guest after S seconds, with code 124"),
    Option(
        "--lab",
        "",
        "where this host's KVM cannot run the guest, boot it in the lab (pykvm lab)",
    ),
    Option(
        "--any-host",
        "",
        "boot Linux here even where 'pykvm doctor' says that this host's KVM cannot",
    ),
    Option("-h --help", "", "this help"),
)


def main(words: list[str], command: list[str], name: str = "boot") -> int:
    """``pykvm boot WORDS -- COMMAND``, or ``shell``; returns the exit code."""
    args = parse(words, OPTIONS)
    if args.help:
        print(HELP.format(options=describe(OPTIONS)).replace("pykvm boot [", f"pykvm {name} [", 1))
        return 0
    args.words, args.command = [name, *words], command
    args.image = args.operands.pop(0) if args.operands else None
    if args.operands:
        raise ConfigError(
            f"KERNEL: {args.operands[0]!r} is one too many; a guest's command comes after --"
        )
    return run(args)


def run(args: Any) -> int:
    """Carry out ``pykvm boot``; returns the exit code."""
    timeout = number(args.timeout, "--timeout", float)
    if _is_followed(args):
        from pykvm.debug.follow import check

        check(args)
    kernel, command = args.kernel or args.image, args.command
    if args.kernel and args.image:
        raise ConfigError("--kernel: KERNEL is given twice; a guest's command comes after --")
    if kernel is None or not os.path.exists(kernel):
        from pykvm.cli_kernel import find_or_fetch

        kernel = find_or_fetch(kernel)
    image: str | bytes = kernel
    if not os.path.isfile(kernel):  # a pipe, say: it can be read once
        from pykvm.boot.files import open_image

        image = bytes(open_image(kernel).data)
    linux = is_linux(image)
    storage = storage_of(args)
    problem = None if args.any_host else _host_problem(linux, args.lab)
    if problem is not None:
        if args.lab:
            return _boot_in_lab(args, kernel, problem, storage)
        raise ConfigError(f"{problem}; put 'pykvm lab --' in front of the command, or add --lab")
    ports = ports_of(args)
    config = MachineConfig(
        kernel=image,
        initrd=initrds_of(args, kernel, command, linux, storage, ports),
        modules=tuple(args.module),
        cmdline=args.append if args.append is not None else CMDLINE_DEFAULT if linux else "",
        memory=parse_size(args.memory),
        cpus=number(args.cpus, "--cpus", int),
        cpu=args.cpu,
        protocol=_protocol(args.protocol),
        mode=_mode(args.mode),
        load=number(args.load, "--load", _address),
        entry=number(args.entry, "--entry", _address),
        disks=storage.disks if storage else (),
        shares=storage.shares if storage else (),
        nets=nets_of(args.net),
        rng=args.rng,
        vsock=vsock_of(args.vsock),
        balloon=None if args.balloon is None else parse_size(args.balloon or "0", "--balloon"),
        ports=ports,
        transport=args.transport,
        gdb=args.gdb,
        wait_gdb=args.wait_gdb,
    )
    if args.words[0] == "shell":
        from pykvm.cli_shell import interact

        return interact(config)
    return boot(config, args, timeout)


def boot(config: MachineConfig, args: Any, timeout: float | None) -> int:
    """Boot on the terminal; returns the exit code."""
    from pykvm.machine import Machine

    def make() -> Machine:
        machine = Machine(config)
        machine.on_silence = _tell_of_silence
        return machine

    if not _is_followed(args):
        return on_terminal(make(), args, timeout)
    from pykvm.debug.follow import Follower

    with Follower(args, number(args.trace_hz, "--trace-hz", int)) as follower:
        return on_terminal(make(), args, timeout, follower)


def _tell_of_silence(where: str) -> None:
    complain(
        "pykvm: the guest has not said a word yet; if it hangs, --timeout S ends it with a report; "
        f"if it need not, check console=ttyS0 in --append{where}"
    )


def _is_followed(args: Any) -> bool:
    return (args.trace, args.stats, args.plot) != (None, None, None)


def on_terminal(
    machine: Machine, args: Any, timeout: float | None, follower: Follower | None = None
) -> int:
    """Run a machine on the terminal: notes before, report after. Returns the exit code."""
    from pykvm.console import open_console

    with machine:
        gc.enable()  # see `cli.script`
        for note in machine.entry.notes:
            complain(f"pykvm: {note}")
        if args.snapshot or args.snapshot_at:
            from pykvm.snapshot.trigger import arm

            arm(machine, args.snapshot, args.snapshot_at)
        if machine.debugger:
            waiting = "; the guest waits for it" if machine.config.wait_gdb else ""
            print(
                f"pykvm: gdb: target remote {machine.debugger.where}{waiting}",
                file=sys.stderr,
                flush=True,
            )
        console = open_console(args.serial)
        try:
            _catch_signals(machine)
            outcome = machine.run(timeout, console, follower.tracer if follower else None)
        finally:
            console.close()
    if follower is not None:
        follower.report()
    _tell(outcome)
    return outcome.code


def _tell(outcome: Outcome) -> None:
    if outcome.report:
        if outcome.console and not outcome.console.endswith(b"\n"):
            complain("")
        complain(f"pykvm: {outcome.report}")


def _catch_signals(machine: Machine) -> None:
    """SIGINT, SIGTERM, SIGHUP: end the machine in order, with the code a shell would show."""
    from pykvm.outcome import Reason

    def end(number: int, _frame: object) -> None:
        machine.stop(Reason.SIGNAL, 128 + number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, end)


# ── options ──────────────────────────────────────────────────────────────────────────────────────


def number(text: str | None, option: str, parse: Any) -> Any:
    if text is None:
        return None
    try:
        value = parse(text)
        if not 0 <= value < float("inf"):
            raise ValueError
    except (ValueError, OverflowError):
        example = {"--timeout": "60", "--cpus": "2"}.get(option, "0x100000")
        raise ConfigError(
            f"{option}: {text!r} is not a number that fits; try {option} {example}"
        ) from None
    return value


def _address(text: str) -> int:
    return int(text, 0)


def _protocol(name: str | None) -> str | None:
    if name is not None and name not in PROTOCOLS:
        raise ConfigError(f"--protocol: {name!r} is unknown; write one of {', '.join(PROTOCOLS)}")
    return name


def _mode(name: str | None) -> CpuMode | None:
    try:
        return None if name is None else CpuMode(name)
    except ValueError:
        raise ConfigError(f"--mode: {name!r} is unknown; write real, protected or long") from None


def is_linux(kernel: str | bytes) -> bool:
    """Whether the image calls itself Linux: memtest86+ and iPXE have its setup header too."""
    from pykvm.boot.files import open_image

    data = open_image(kernel).data
    if bytes(data[0x202:0x206]) == b"HdrS":
        # boot.rst: kernel_version points, less 0x200, to a text such as "6.1.0 (builder) #1 SMP"
        at = int.from_bytes(data[0x20E:0x210], "little") + 0x200
        major, _, rest = bytes(data[at : at + 256]).partition(b".")
        return major.isdigit() and rest[:1].isdigit() and b" #" in rest
    is_elf64 = bytes(data[:5]) == b"\x7fELF\x02"
    mapping: Any = data.obj
    return is_elf64 and mapping.find(b"Linux version ") >= 0


def _host_problem(linux: bool, lab: bool) -> str | None:
    """Why this host's KVM cannot run the guest, or None when it can, as far as is known."""
    from pykvm.errors import KvmError

    try:
        if linux:
            from pykvm.doctor import why_not_linux

            return why_not_linux()
        if lab:
            from pykvm.kvm import Kvm

            Kvm().close()
    except KvmError as error:
        if not lab:
            raise
        return str(error)
    return None


def _boot_in_lab(args: Any, kernel: str, problem: str, storage: Storage | None) -> int:
    """``pykvm lab``, with our own words and the kernel that was found, in place of this process."""
    complain(f"pykvm: {problem}; booting in the lab")
    pykvm = [sys.executable, "-m", "pykvm"]
    words = [word for word in args.words if word != "--lab"]
    if args.kernel is None and args.image is None:
        words.insert(1, f"--kernel={kernel}")
    folders: set[str] = set()
    if storage is not None:
        files = [disk.written_path for disk in storage.disks if disk.written_path]
        folders = {os.path.dirname(os.path.abspath(path)) for path in files}
        folders |= {os.path.abspath(each.path) for each in storage.shares if not each.read_only}
    if _is_followed(args):
        from pykvm.debug.follow import folders as followed

        folders |= followed(args)
    lab = [*pykvm, "lab", *(f"--write={folder}" for folder in sorted(folders))]
    os.execv(sys.executable, [*lab, "--", *pykvm, *words, "--", *args.command])
