"""The lab: the same commands, on an emulated AMD machine whose /dev/kvm works.

Reached from `cli` (``pykvm lab``), from tests and from programs::

    with Lab() as lab:  # a private one; Lab(keep=True) finds the kept one, or starts it
        result = lab.run(["pykvm", "boot"], timeout=60)  # a subprocess.CompletedProcess

For hosts whose KVM is missing or partial: no /dev/kvm is needed. What a command finds there:

====================  ==========================================================================
files                 this host's. What is written vanishes with the lab, except below the
                      current directory, ``--write`` directories and pykvm's own cache: these are
                      the host's own. / as current directory is never shared so.
/proc /sys /dev       the lab's; /dev/kvm, /dev/net/tun, /dev/vhost-net, /dev/vhost-vsock work
user                  root, whose rights on the host's files are yours
environment, umask    yours, and ``PYKVM_LAB=1``
processes             ended when the command ends, those in the background included
network               loopback only
====================  ==========================================================================

A lab reads a host's file once: outside the directories above, a kept lab may not notice what has
changed on the host since. The way of a command: `cli` → `foreground` → `client` → `supervisor` →
guests/lab-agent in the `machine`; `wire` is what they say to each other.
"""

from __future__ import annotations

from pykvm.lab.cli import add_parser
from pykvm.lab.client import Lab, LabEndedError
from pykvm.lab.machine import Spec
from pykvm.lab.start import stop_kept

__all__ = ["Lab", "LabEndedError", "Spec", "add_parser", "stop_kept"]
