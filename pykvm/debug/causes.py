"""Known causes of exits in a boot, and what takes them away.

Reached from `explain`. A cause is found by what its exits are called in a trace, or by the function
that samples were taken in. tests/linux/test_trace.py boots with some of the remedies.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple


class Cause(NamedTuple):
    """Why exits happen, and the remedy."""

    exits: str  # a pattern of their names in the trace
    why: str
    remedy: str
    option: str = r"(?!)"  # a pattern: where the command line has it, there is nothing to tell


CAUSES: Final = (
    Cause(
        r"(in|out) 0x3f[89a-f] ",
        "the serial console: two exits for every character, and the driver's set-up",
        "'quiet' or 'loglevel=4' in --append",
        r"quiet|loglevel=[0-4]",
    ),
    Cause(
        r"(in|out) 0x(2[ef][89a-f]|3e[89a-f]) ",
        "the serial driver looks for COM2 to COM4",
        "'8250.nr_uarts=1' in --append",
        r"8250\.nr_uarts=1",
    ),
    Cause(
        r"(in|out) 0x7[01] ",
        "the real-time clock's driver reads the time and the alarm, register by register",
        "'initcall_blacklist=cmos_init' in --append: kvmclock has the time of day already",
    ),
    Cause(
        r"(in|out) 0xcf[89a-f] reset control",
        "the kernel looks for a PCI bus on a machine that has none",
        "'pci=off' in --append",
    ),
    Cause(
        r"((in|out) 0xcf[89a-f]|(read|write) \w+) pci (configuration|ecam|window)",
        "PCI: the bus is scanned, each virtio device is set up",
        "'--transport mmio': no bus to scan, for kernels with CONFIG_VIRTIO_MMIO",
    ),
    Cause(
        r"out 0x80 ",
        "io_delay: a write to port 0x80 after each access to an old device",
        "'io_delay=none' in --append, or the CPUID feature kvm_nopiodelay",
    ),
)


def cause_of(name: str) -> Cause | None:
    """The known cause of exits called `name`."""
    return next((cause for cause in CAUSES if re.match(cause.exits, name)), None)
