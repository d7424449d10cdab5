"""The errors pykvm raises, and nothing else.

Reached from everywhere. Three kinds, never mixed (see docs/architecture.md, "Errors")::

    PykvmError
     ├─ ConfigError        the user's option is wrong: names the option and the remedy
     │   └─ BootError      the user's kernel, initrd or command line is wrong
     ├─ KvmError(OSError)  the host refused: names the ioctl and the errno
     └─ HostError          the host lacks a program, a package or a file pykvm needs

The guest's misbehaviour is none of these: it is answered (all ones, an error status, a report in
the `Outcome`), never raised.
"""

from __future__ import annotations

import os


class PykvmError(Exception):
    """Base of every error pykvm raises on purpose."""


class ConfigError(PykvmError):
    """An option's value cannot work. The message names the option and the remedy."""


class BootError(ConfigError):
    """The kernel image, initrd or command line cannot be booted. The message says why."""


class HostError(PykvmError):
    """The host lacks something pykvm needs. The message says what to install or change."""


class KvmError(PykvmError, OSError):
    """A system call on /dev/kvm, a VM or a vCPU failed: `errno`, and `call` names the ioctl."""

    def __init__(self, call: str, errno: int, hint: str = "") -> None:
        text = f"{call}: {os.strerror(errno)}"
        OSError.__init__(self, errno, f"{text} ({hint})" if hint else text)
        self.call = call

    def __str__(self) -> str:
        return str(self.strerror)


def check(result: int, call: str, hint: str = "") -> int:
    """Return `result` when it is not negative; raise `KvmError` for a ``-errno`` from C."""
    if result < 0:
        raise KvmError(call, -result, hint)
    return result
