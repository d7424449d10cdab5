"""``pykvm boot``: options to `MachineConfig`, `Outcome` to an exit code.

Reached from `cli`. What it decides itself: which kernel when none is named, which initrd when none
is given, and whether this host can run the guest at all. Read `cli_options` for the options there
are, `machine` for everything after.
"""

from __future__ import annotations

import os
import sys

from pykvm.boot import PROTOCOLS
from pykvm.boot.detect import is_linux, is_linux32, uncompressed
from pykvm.boot.entry import CpuMode
from pykvm.boot.files import open_image
from pykvm.cli import complain
from pykvm.cli_devices import initrds_of, nets_of, ports_of, storage_of, vsock_of
from pykvm.cli_options import BOOT, BOOT_USAGE
from pykvm.cli_terminal import on_terminal
from pykvm.config import CMDLINE_DEFAULT, CMDLINE_VIRTIO, PATIENCE_S, MachineConfig, parse_size
from pykvm.errors import ConfigError
from pykvm.lean import TYPE_CHECKING
from pykvm.options import describe, number, parse, seconds

if TYPE_CHECKING:
    from typing import Any

    from pykvm.machine import Machine
    from pykvm.virtio.config.storage import Storage


def main(words: list[str], command: list[str], name: str = "boot") -> int:
    """``pykvm boot WORDS -- COMMAND``, or ``shell``; returns the exit code."""
    args = parse(words, BOOT)
    if args.help:
        usage = BOOT_USAGE.replace("pykvm boot [", f"pykvm {name} [", 1)
        print(usage.format(options=describe(BOOT)))
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
    timeout = number(args.timeout, "--timeout", seconds)
    patience = PATIENCE_S if timeout is None else timeout
    if _is_followed(args):
        from pykvm.debug.follow import check

        check(args)
    kernel, command = args.kernel or args.image, args.command
    if "" in (args.kernel, args.image):
        raise ConfigError("KERNEL: its name is empty; name a file, or leave it out for the default")
    if args.kernel and args.image:
        raise ConfigError("--kernel: KERNEL is given twice; a guest's command comes after --")
    if kernel == "-":
        kernel = "/dev/stdin"
    if kernel is None or not os.path.exists(kernel):
        from pykvm.cli_kernel import find_or_fetch

        kernel = find_or_fetch(kernel)
    image: str | bytes = kernel
    if not os.path.isfile(kernel):  # a pipe, say: it can be read once
        image = bytes(open_image(kernel, patience).data)
    data = open_image(image).data
    if args.protocol != "flat" and (args.mode, args.load, args.entry) == (None, None, None):
        packed, data = data, uncompressed(data, parse_size(args.memory))
        if data is not packed and is_linux(data):
            image = bytes(data)
    linux = is_linux(data)
    if linux and not args.initrd and is_linux32(data):
        raise ConfigError(
            "KERNEL: a 32-bit Linux, which cannot run pykvm's own init, a 64-bit program; give it "
            "an initrd of its own with --initrd"
        )
    storage = storage_of(args, linux)
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
        cmdline=args.append if args.append is not None else _cmdline(args) if linux else "",
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
        console=args.console,
        transport=args.transport,
        patience=patience,
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
    # A KVM that runs no Linux emulates ring 0: iPXE unpacks itself for minutes there.
    problem = _host_problem(linux=True, lab=False)
    slow = f"; {problem}, and slowly: 'pykvm lab --' in front is faster" if problem else ""
    complain(
        "pykvm: the guest has not said a word yet; if it hangs, --timeout S ends it with a report; "
        f"if it need not, check console=ttyS0 in --append{slow}{where}"
    )


def _is_followed(args: Any) -> bool:
    return (args.trace, args.stats, args.plot) != (None, None, None)


# ── options ──────────────────────────────────────────────────────────────────────────────────────


def _cmdline(args: Any) -> str:
    """The kernel command line of a Linux guest whose user gives none."""
    return CMDLINE_VIRTIO if args.console == "virtio" else CMDLINE_DEFAULT


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
    inputs = [("KERNEL", kernel), *(("--initrd", path) for path in args.initrd)]
    for option, path in (*inputs, *(("--module", spec.split(" ")[0]) for spec in args.module)):
        if os.path.exists(path) and not os.path.isfile(path):
            raise ConfigError(
                f"{option}: {path} is no plain file, and the lab can read no other; copy it to one"
            )
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
