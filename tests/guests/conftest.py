"""For tests that run guests: a skip where there is no KVM, and a machine in one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pykvm import guest_programs
from pykvm.config import MachineConfig
from pykvm.console import BytesConsole
from pykvm.errors import PykvmError
from pykvm.kvm import Kvm
from pykvm.machine import Machine
from pykvm.outcome import Outcome

MEMORY = 16 << 20
TIMEOUT_S = 20.0  # far more than any guest takes; a machine shared with others may be slow

RunGuest = Callable[..., Outcome]


@pytest.fixture(scope="session", autouse=True)
def _kvm() -> None:
    try:
        Kvm().close()
    except PykvmError as error:
        pytest.skip(f"no usable KVM: {error}")


@pytest.fixture
def run_guest() -> RunGuest:
    """``run_guest("smp", cpus=2)``: run a guest of guests/ to its end; options as MachineConfig's.

    `typed` is what the guest reads from its serial port, `timeout` the seconds it has.
    """

    def run(name: str, typed: bytes = b"", timeout: float = TIMEOUT_S, **options: Any) -> Outcome:
        options = {"memory": MEMORY, "cmdline": "", **options}
        config = MachineConfig(kernel=guest_programs.path(name), **options)
        with Machine(config) as vm:
            return vm.run(timeout=timeout, console=BytesConsole(typed))

    return run
