"""Back, in place, to the template: only what was written since is copied back.

Reached from `Machine.reset`. No VM, vCPU, device or thread is made anew. Which pages were written
is what the kernel's copy-on-write knows (csrc/cow.c): by the guest, by KVM, by devices, by Python,
so that nothing has to keep a record. The time it takes depends on their number, not on the memory's
size.
"""

from __future__ import annotations

from pykvm.errors import PykvmError
from pykvm.lean import TYPE_CHECKING
from pykvm.snapshot import capture, overlays

if TYPE_CHECKING:
    from typing import Final

    from pykvm.machine import Machine
    from pykvm.snapshot.template import Template

# A page that was written once keeps its copy and is written over at every reset: faster than to
# give it up, which costs a page fault when the guest comes back to it. Every so often all are given
# up, so that pages which are not written any more do not count for ever.
KEPT_FOR: Final = 64


def reset(machine: Machine) -> int:
    """Take a machine that does not run back; returns how many pages were copied."""
    template = machine.template
    if template is None:
        raise PykvmError(
            "reset: there is nothing to go back to; fork the machine at the place first"
        )
    return machine.at_rest(lambda: _take_back(machine, template))


def _take_back(machine: Machine, template: Template) -> int:
    machine.resets += 1
    copied = machine.memory.revert(drop=machine.resets % KEPT_FOR == 0)
    template.overlay(machine.memory)
    devices = capture.devices_of(machine)
    capture.apply(machine, devices, template.parts, template.settings(machine))
    overlays.assign(machine, template.overlays)
    machine.generation_id.replace()  # its own, again; a fork of its origin is told of it as then
    machine.forget_run()
    return copied
