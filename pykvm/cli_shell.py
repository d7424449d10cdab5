"""``pykvm shell``: Python, with a machine that stands before its first instruction.

Reached from `cli_boot`, whose options it takes. IPython where it is installed, else Python's own
prompt. Read `debug.view` for what can be done there.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.config import MachineConfig

BANNER = """\
vm is the machine, before its first instruction. Try:
  vm.vcpus[0].regs    vm.disassemble()    vm.step()    vm.run_until("start_kernel")
  vm.memory.walk(0x100000)    vm.symbols.search("panic")    vm.run(timeout=10).console
A Device of your own, or a function of offset, size, value, answers after vm.pio(0x510)(it)."""


def interact(config: MachineConfig) -> int:
    """Open the prompt; returns the exit code once it is left, and the machine is gone."""
    from pykvm.devices.base import Device
    from pykvm.machine import Machine

    gc.enable()  # see `cli.script`
    with Machine(config) as vm:
        names = {"vm": vm, "Device": Device}
        try:
            from IPython import start_ipython  # type: ignore[import-not-found,unused-ignore]
        except ImportError:
            import code

            note = "(for completion and colours: pip install 'pykvm-vmm[shell]')"
            code.interact(f"{BANNER}\n{note}", local=names, exitmsg="")
        else:
            print(BANNER)
            start_ipython(argv=["--no-banner", "--no-confirm-exit"], user_ns=names)
    return 0
