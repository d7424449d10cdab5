"""A machine as a test's marker describes it: with busybox's commands, prepared, at rest.

Reached from `pykvm.pytest`. Read `config` for what every machine with an agent has, and `cached`
for how it is booted once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from pykvm.errors import ConfigError

if TYPE_CHECKING:
    from pykvm.agent.cached import Note
    from pykvm.agent.guest import GuestMachine
    from pykvm.virtio.config.disk import DiskConfig
    from pykvm.virtio.config.net import NetConfig

BUSYBOX: Final = "/bin/busybox"
INSTALL: Final = (BUSYBOX, "--install", "-s", "/bin")
# Warnings go to the console, where `faults` looks for them; 'quiet' leaves them out.
WARN: Final = "read level rest </proc/sys/kernel/printk; [ $level -ge 5 ] || dmesg -n 5"


def boot(
    cache: bool,
    note: Note,
    *,
    kernel: str | None = None,
    cpus: int = 1,
    memory: str | int = "256M",
    append: str | None = None,
    add: str | Sequence[str] = (),
    modules: str | Sequence[str] = (),
    disks: str | Sequence[str] = (),
    net: str | Sequence[str] = (),
    setup: str | Sequence[str] = (),
) -> GuestMachine:
    """From the cache, or booted; `note` is told why it is not kept. Raises as `GuestMachine.start`
    and `run`."""
    from pykvm.agent import cached
    from pykvm.agent.config import configure
    from pykvm.agent.guest import BOOT_S
    from pykvm.config import CMDLINE_DEFAULT, parse_size

    if not isinstance(cpus, int):
        raise ConfigError(f"cpus={cpus!r} is no number; write cpus=2")
    image = _find_kernel(kernel)
    _check_modules(image, listed(modules))
    config = configure(
        image,
        add=(BUSYBOX, *listed(add)),
        modules=listed(modules),
        cpus=cpus,
        memory=parse_size(memory) if isinstance(memory, str) else memory,
        cmdline=CMDLINE_DEFAULT if append is None else append,
        disks=tuple(map(_disk, listed(disks))),
        nets=tuple(map(_net, listed(net))),
    )
    commands = (INSTALL, WARN, *listed(setup))
    if not cache:
        return cached.boot(config, commands, BOOT_S)
    return cached.boot_once(config, commands, BOOT_S, note)


def _check_modules(image: str, names: Sequence[str]) -> None:
    from pathlib import Path

    from pykvm.boot.kernels import kernel_at
    from pykvm.boot.modules import unknown

    found = kernel_at(Path(image))
    wrong = unknown(found.modules, names) if found.modules is not None else []
    if wrong:
        raise ConfigError(
            f"modules: {', '.join(wrong)}: the kernel {found.name} has none of that name; one of "
            "your own is brought by add= and loaded by insmod in setup="
        )


def listed(value: str | Sequence[str]) -> tuple[str, ...]:
    """One is as good as a list of one."""
    return (value,) if isinstance(value, str) else tuple(value)


def _disk(spec: str) -> DiskConfig:
    """What ``--disk`` is given. What a test writes goes to an overlay that ends with its `vm`."""
    from pykvm.virtio.config.disk import DROPPED, parse_disk

    disk = parse_disk(spec)
    return disk if disk.read_only or disk.overlay else disk._replace(overlay=DROPPED)


def _net(spec: str) -> NetConfig:
    """What ``--net`` is given. Raises `ConfigError` for a cable that no two machines can have."""
    from pykvm.virtio.config.net import parse_net

    net = parse_net(spec)
    if net.kind in ("tap", "socket") or net.forwards:
        raise ConfigError(
            f"net={spec!r}: no two machines can have that, and each test has one of its own; write "
            "'user' or 'bridge=NAME', and give a machine what only one can have with "
            "vm.fork(nets=[…])"
        )
    return net


def _find_kernel(kernel: str | None) -> str:
    from pykvm.cli_kernel import find_or_fetch

    return kernel if kernel is not None and os.path.exists(kernel) else find_or_fetch(kernel)


def why_not() -> str | None:
    """Why there can be no such machine here, and what to do; None where there can."""
    from pykvm.doctor import why_not_linux
    from pykvm.errors import KvmError

    try:
        problem = why_not_linux()
    except KvmError as error:
        problem = str(error)
    if problem is not None:
        return f"{problem}; put 'pykvm lab --' in front of pytest"
    if not os.path.exists(BUSYBOX):
        return f"{BUSYBOX} is missing; install busybox-static"
    return None
