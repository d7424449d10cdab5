"""A Linux guest that does what it is asked: commands, files. `GuestMachine` is the way in.

Reached from `pykvm.pytest` and from users' code::

    with GuestMachine.boot("vmlinuz", add=["/bin/busybox"]) as vm:
        print(vm.run(["busybox", "uname", "-a"]).stdout)

`wire` has the protocol, `link` one request of it, `guest` the machine, `cached` one that is booted
once and kept on disk. The guest's end is guests/init/agent.c.
"""

from pykvm.agent.errors import CommandError, CommandTimeoutError, GuestEndedError, OutputError
from pykvm.agent.guest import GuestMachine
from pykvm.agent.link import Completed

__all__ = [
    "CommandError",
    "CommandTimeoutError",
    "Completed",
    "GuestEndedError",
    "GuestMachine",
    "OutputError",
]
