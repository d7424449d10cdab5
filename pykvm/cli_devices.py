"""The devices that ``pykvm boot``'s options ask for, and the initrd that drives them.

Reached from `cli_boot`. Each option's own text is parsed in `pykvm.virtio.config`, imported when
the option is given. Read `boot.guestimage` for what the initrd is made of.
"""

from __future__ import annotations

from pykvm.config import parse_size
from pykvm.errors import ConfigError
from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from pykvm.virtio.config.storage import Storage


def storage_of(args: Any, linux: bool = False) -> Storage | None:
    """The machine's disks and shares, or None when there are none. What the kernel of a Linux calls
    its root is it, with our own init, too."""
    named = linux and not args.initrd and not args.root and "root=" in (args.append or "")
    if not (args.disk or args.fs or args.root or named):
        return None
    from pykvm.virtio.config.storage import parse_storage, with_named_root

    storage = parse_storage(args.disk, args.fs, args.root)
    return with_named_root(storage, args.append) if named else storage


def nets_of(specs: list[str]) -> tuple[Any, ...]:
    if not specs:
        return ()
    from pykvm.virtio.config.net import parse_net

    return tuple(map(parse_net, specs))


def vsock_of(spec: str | None) -> Any:
    if spec is None:
        return None
    from pykvm.virtio.config.vsock import parse_vsock

    return parse_vsock(spec)


def ports_of(args: Any) -> tuple[Any, ...]:
    """The ports of --port and --pipe; settles where the serial port leads."""
    if args.serial is None:
        args.serial = "none" if args.pipe else "stdio"
    if args.pipe and not args.command:
        raise ConfigError("--pipe: there is no COMMAND to connect; write it after --")
    if not args.pipe and not args.port:
        return ()
    from pykvm.virtio.config.console import PIPE, parse_port

    ports = (*(PIPE if args.pipe else ()), *map(parse_port, args.port))
    shared = [port.where for port in ports if port.where in ("stdio", "stdin", "stdout")]
    if shared and args.serial == "stdio":
        raise ConfigError(
            f"--serial: stdio is what a port leads to ({shared[0]}); write --serial none or "
            "--serial file:PATH"
        )
    return ports


def initrds_of(
    args: Any,
    kernel: str,
    command: list[str],
    linux: bool,
    storage: Storage | None,
    ports: tuple[Any, ...],
) -> tuple[str | bytes, ...]:
    """The user's initrds, or pykvm's own with `command` in it."""
    mounts = storage is not None and storage.asks_for_mounts
    if args.initrd:
        if command or args.add:
            raise ConfigError(
                "--initrd: a COMMAND and --add need pykvm's own initrd; leave --initrd out, or "
                "give the command to your init with --append '… -- COMMAND'"
            )
        if mounts:
            raise ConfigError(
                "--initrd: --root and mount= need pykvm's own initrd; leave --initrd out, or let "
                "yours mount /dev/vda with --append 'root=/dev/vda'"
            )
        return tuple(args.initrd)
    if not linux:
        if command or args.add:
            raise ConfigError("COMMAND: only a Linux guest can run one; remove it")
        if mounts:
            raise ConfigError("--root, mount=: only a Linux guest mounts anything; remove it")
        return ()
    from pykvm.boot.guestimage import check_room, default_initrd

    nets, fstab = nets_of(args.net), storage.fstab() if storage else ""
    modules = _modules(args, storage)
    names = [port.name for port in ports]
    console = "hvc0" if args.console == "virtio" else ""
    archive = default_initrd(kernel, command, args.add, modules, nets, fstab, names, console)
    if args.add:
        check_room(archive, parse_size(args.memory), args.append or "")
    return (archive,)


def _modules(args: Any, storage: Storage | None) -> list[str]:
    """The kernel modules that the guest needs for the devices asked for."""
    kinds = [kind for kind in ("net", "rng", "vsock") if getattr(args, kind)]
    kinds += ["balloon"] if args.balloon is not None else []
    kinds += ["disk"] if storage and storage.disks else []
    kinds += ["ports"] if args.pipe or args.port else []
    kinds += ["console"] if args.console == "virtio" else []
    kinds += ["fs"] if storage and storage.shares else []
    if not kinds:
        return []
    from pykvm.boot.modules import FILE_SYSTEMS, KINDS, TRANSPORTS

    names = [TRANSPORTS.get(args.transport, ""), *(name for kind in kinds for name in KINDS[kind])]
    for file_system in storage.file_systems() if storage else ():
        names += FILE_SYSTEMS.get(file_system, (file_system,))
    return names
