"""The default initrd of a Linux guest: pykvm's init, and what this guest needs beside it.

Reached from `cli_boot`, when the user gave no ``--initrd``. What init is to do lies below /pykvm in
the archive, a file for each task; guests/init/init.c lists them. Read `initrd` for the archive and
`modules` for where kernel modules come from.
"""

from __future__ import annotations

from pykvm.boot.initrd import build, host_files
from pykvm.errors import ConfigError
from pykvm.guest_programs import path
from pykvm.layout import MIB
from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence
    from typing import Final

    from pykvm.virtio.config.net import NetConfig

FSTAB: Final = "pykvm/fstab"
KERNEL_NEEDS: Final = 96 * MIB  # for itself: a distribution's, so early


def default_initrd(
    kernel: str,
    command: Sequence[str] = (),
    add: Iterable[str] = (),
    modules: Iterable[str] = (),
    nets: Sequence[NetConfig] = (),
    fstab: str = "",
    ports: Iterable[str] = (),
    console: str = "",
) -> bytes:
    """The archive for `kernel`, a path: `command` is what init runs, each of `add` what ``--add``
    names, `modules` the kernel modules to load first, with their dependencies, `nets` the cards
    whose addresses init sets, `fstab` what it mounts then, `ports` the virtio ports
    to wait for, by their names, `console` the terminal to run on, if that is not the kernel's.

    A kernel without a module tree gets none. Raises `BootError`.
    """
    files: dict[str, bytes | os.PathLike[str]] = {}
    for spec in add:
        files |= host_files(spec)
    files |= _modules(kernel, list(modules))
    if nets:
        from pykvm.boot.guestnetwork import FILE, settings

        files[FILE] = settings(nets)
    if fstab:
        files[FSTAB] = fstab.encode()
    if names := "".join(f"{name}\n" for name in ports):
        files["pykvm/ports"] = names.encode()
    if console:
        files["pykvm/console"] = console.encode()
    with open(path("init"), "rb") as init:
        return build(init.read(), files, argv=command)


def check_room(archive: bytes, memory: int, cmdline: str) -> None:
    """Raise `ConfigError` when a guest of `memory` bytes cannot unpack `archive`.

    It holds the archive and the files at once; without a root= the files go to a tmpfs, which takes
    half of what is left (Linux init/initramfs.c, mm/shmem.c). What the kernel needs for itself is
    not known here, and comes on top: one that says it could not unpack all is reported at the end.
    """
    tmpfs = not any(word.startswith(("root=", "rootfstype=")) for word in cmdline.split())
    needed = len(archive) * (3 if tmpfs else 2)
    if needed > memory:
        raise ConfigError(
            f"--add: {-(-len(archive) // MIB)} MiB of files are too many for --memory "
            f"{memory // MIB}M: Linux holds them twice while it unpacks them; try --memory "
            f"{-(-(needed + KERNEL_NEEDS) // (64 * MIB)) * 64}M or more, or --fs for a folder"
        )


def _modules(kernel: str, names: list[str]) -> dict[str, bytes]:
    if not names:
        return {}
    from pathlib import Path

    from pykvm.boot.kernels import kernel_at
    from pykvm.boot.modules import initrd_files

    tree = kernel_at(Path(kernel)).modules
    return {} if tree is None else initrd_files(tree, names)
