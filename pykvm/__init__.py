"""pykvm: a hypervisor you can read.

The Python API in one line: ``with Machine(MachineConfig(kernel="vmlinuz")) as vm: vm.run()``.
Names are imported on first use, so that the command line starts fast. Read `machine` first.
"""

from __future__ import annotations

from pykvm.lean import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from typing import Any

    from pykvm.agent import GuestMachine as GuestMachine
    from pykvm.boot.entry import CpuMode as CpuMode
    from pykvm.config import MachineConfig as MachineConfig
    from pykvm.debug.trace import Tracer as Tracer
    from pykvm.devices.base import Device as Device
    from pykvm.errors import BootError as BootError
    from pykvm.errors import ConfigError as ConfigError
    from pykvm.errors import HostError as HostError
    from pykvm.errors import KvmError as KvmError
    from pykvm.errors import PykvmError as PykvmError
    from pykvm.machine import Machine as Machine
    from pykvm.outcome import Outcome as Outcome
    from pykvm.outcome import Reason as Reason
    from pykvm.virtio.config.console import PortConfig as PortConfig
    from pykvm.virtio.config.disk import DiskConfig as DiskConfig
    from pykvm.virtio.config.net import NetConfig as NetConfig
    from pykvm.virtio.config.share import ShareConfig as ShareConfig
    from pykvm.virtio.config.vsock import VsockConfig as VsockConfig

_HOMES = {
    "Machine": "machine",
    "GuestMachine": "agent",
    "MachineConfig": "config",
    "DiskConfig": "virtio.config.disk",
    "NetConfig": "virtio.config.net",
    "PortConfig": "virtio.config.console",
    "ShareConfig": "virtio.config.share",
    "VsockConfig": "virtio.config.vsock",
    "Outcome": "outcome",
    "Reason": "outcome",
    "Device": "devices.base",
    "CpuMode": "boot.entry",
    "Tracer": "debug.trace",
    "PykvmError": "errors",
    "ConfigError": "errors",
    "BootError": "errors",
    "KvmError": "errors",
    "HostError": "errors",
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pykvm' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"pykvm.{_HOMES[name]}"), name)
