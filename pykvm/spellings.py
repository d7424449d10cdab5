"""What to write in place of an option that does not exist: one mistyped, or one of QEMU's.

Reached from `options`, when a command line has such a word.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection

# QEMU's words (its man page, qemu-system-x86_64(1)) that are not ours with another dash.
QEMU: Final = {
    "-accel": "leave it out: there is KVM alone",
    "-bios": "leave it out: kernels are booted without firmware",
    "-chardev": "write --serial WHERE or --port NAME=WHERE",
    "-daemonize": "leave it out, and let the shell do it: … &",
    "-device": "write --disk, --net, --fs, --rng, --vsock, --port or --balloon",
    "-display": "leave it out: there is a console alone",
    "-drive": "write --disk FILE[,format=NAME]",
    "-enable-kvm": "leave it out: there is KVM alone",
    "-fsdev": "write --fs HOSTDIR,tag=NAME",
    "-gdb": "write --gdb [HOST:]PORT",
    "-hda": "write --disk FILE",
    "-incoming": "write pykvm restore DIR",
    "-M": "leave it out: there is one machine",
    "-machine": "leave it out: there is one machine",
    "-monitor": "leave it out: gdb's monitor command is the one there is, with --gdb",
    "-netdev": "write --net user, --net tap=NAME or another",
    "-nic": "write --net user, --net tap=NAME or another",
    "-no-reboot": "leave it out: a reboot ends the machine",
    "-nodefaults": "leave it out: nothing is there but what is asked for",
    "-nographic": "leave it out: the guest's console is here",
    "-s": "write --gdb 1234",
    "-S": "write --wait-gdb, with --gdb 1234",
    "-smp": "write --cpus N",
    "-vga": "leave it out: there is a console alone",
    "-virtfs": "write --fs HOSTDIR,tag=NAME",
}


def instead(word: str, names: Collection[str]) -> str:
    """A remedy for `word`, where there are options of these `names`; "" when none is known."""
    if word in QEMU:
        return QEMU[word]
    wanted = f"--{word.lstrip('-')}"
    begun = sorted(name for name in names if name.startswith(wanted))
    for name in begun[:1] or get_close_matches(wanted, names, 1):
        return f"write {name}"
    return ""
