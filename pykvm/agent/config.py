"""The machine that a guest with an agent needs: its initrd, its port.

Reached from `guest` and `cached`. Read `boot.guestimage` for the initrd.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from pykvm.boot.guestimage import default_initrd
from pykvm.boot.modules import KINDS, TRANSPORTS
from pykvm.config import CMDLINE_DEFAULT, MachineConfig
from pykvm.virtio.config.console import PortConfig

if TYPE_CHECKING:
    from pykvm.agent.link import Link

PORT: Final = "pykvm.agent"


def configure(
    kernel: str | os.PathLike[str],
    *,
    add: Iterable[str] = (),
    modules: Iterable[str] = (),
    **options: Any,
) -> MachineConfig:
    """What `GuestMachine.boot` boots, but for where its port leads."""
    fields: dict[str, Any] = {"cmdline": CMDLINE_DEFAULT, **options}
    nets = fields.get("nets", ())
    kinds = ["ports"] + ["disk"] * bool(fields.get("disks")) + ["net"] * bool(nets)
    names = [TRANSPORTS.get(fields.get("transport", "pci"), "")]
    names += [name for kind in kinds for name in KINDS[kind]]
    initrd = default_initrd(
        os.fspath(kernel), add=add, modules=[*names, *modules], nets=nets, ports=[PORT]
    )
    return MachineConfig(
        **fields, kernel=kernel, initrd=(initrd,), ports=(PortConfig(PORT, "fd:0"),)
    )


def with_port(config: MachineConfig, link: Link) -> MachineConfig:
    """The same, with its agent's port led to `link`."""
    ports = [port if port.name != PORT else PortConfig(PORT, link.port) for port in config.ports]
    return config._replace(ports=tuple(ports))


def saved_config(folder: str) -> MachineConfig:
    """Of the machine that was saved there. Raises `ConfigError`."""
    from pykvm.snapshot.chain import NONSENSE, read_head
    from pykvm.snapshot.format import damaged, decode_config

    try:
        config: MachineConfig = decode_config(read_head(folder)["config"])
    except NONSENSE as error:
        raise damaged(folder, repr(error)) from None
    return config
