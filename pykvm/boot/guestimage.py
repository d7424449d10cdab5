"""The default initrd of a Linux guest: pykvm's init, and what this guest needs beside it.

Reached from `cli_boot`, when the user gave no ``--initrd``. What init is to do lies below /pykvm in
the archive, a file for each task; guests/init/init.c lists them. Read `initrd` for the archive and
`modules` for where kernel modules come from.
"""

from __future__ import annotations

from pykvm.boot.initrd import build, host_files
from pykvm.guest_programs import path
from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence
    from typing import Final

    from pykvm.virtio.config.net import NetConfig

FSTAB: Final = "pykvm/fstab"


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


def _modules(kernel: str, names: list[str]) -> dict[str, bytes]:
    if not names:
        return {}
    from pathlib import Path

    from pykvm.boot.kernels import kernel_at
    from pykvm.boot.modules import initrd_files

    tree = kernel_at(Path(kernel)).modules
    return {} if tree is None else initrd_files(tree, names)
