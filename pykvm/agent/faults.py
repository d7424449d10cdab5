"""What a Linux kernel says of its own faults: warnings, oopses, stalls, what sanitizers find.

Reached from `GuestMachine.faults`. They go to the console as long as the console takes warnings
(kernel.printk, 5 or more). Read Linux Documentation/admin-guide/bug-hunting.rst, and the sources of
`__warn`, `die` and `watchdog_timer_fn` for the words.
"""

from __future__ import annotations

import re
from typing import Final

from pykvm.health import STAMP

# At the start of a line, behind the time, if that is told. "BUG: " is KASAN's, too; a line that
# begins with no more than "WARNING: " may be any program's.
FAULT: Final = re.compile(
    rb"^" + STAMP + rb"(?:"
    rb"(?<=\] )WARNING: |WARNING: CPU: |BUG: |watchdog: BUG: |kernel BUG at |UBSAN: |Oops|"
    rb"general protection fault|stack segment: |double fault: |INFO: task .* blocked for more|"
    rb"(?:rcu: )?INFO: rcu_\w+ (?:self-)?detected|unregister_netdevice: waiting for|"
    rb"Kernel panic - not syncing).*",
    re.MULTILINE,
)


def faults(console: bytes | bytearray) -> list[str]:
    """The first line of each, in their order."""
    return [line.decode(errors="replace").rstrip("\r") for line in FAULT.findall(console)]
