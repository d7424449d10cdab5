"""Ioctls made in one go, again and again: all that sets a machine's state but its devices.

Reached from `capture`, which makes the list for a template. Read csrc/calls.c beside it.
"""

from __future__ import annotations

from pykvm._core import ffi, lib
from pykvm.errors import check
from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any, Final

    from pykvm.machine import Machine

VM: Final = 0  # whose descriptor a call is made on: the VM's, or that of vCPU number - 1


class Calls:
    """A list of ioctls, the same for every machine of a kind. Any thread may make them."""

    def __init__(self) -> None:
        self._calls: list[tuple[int, int, Any]] = []
        self._names: list[str] = []
        self._ready: Any = None  # the list as C has it

    def add(self, on: int, request: int, argument: bytes, name: str) -> None:
        """Add an ioctl to the end, on `VM` or on vCPU number `on` - 1; `name` is for the error."""
        self._calls.append((on, request, ffi.from_buffer(argument)))
        self._names.append(name)

    def make(self, machine: Machine) -> None:
        """Make them all, in order. Raises `KvmError` at the first that fails."""
        if self._ready is None:
            self._ready = ffi.new("struct pk_call[]", self._calls)
        fds = [machine.vm.fd, *(vcpu.fd for vcpu in machine.vcpus)]
        done = ffi.new("uint32_t *")
        result = lib.pk_calls_make(fds, self._ready, len(self._calls), done)
        if result < 0:
            check(result, self._names[done[0]])
