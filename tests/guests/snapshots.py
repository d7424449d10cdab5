"""What the tests of snapshots share: a guest to save, a chain of snapshots, damage to files."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from hypothesis import strategies as st

from pykvm import guest_programs
from pykvm.config import MachineConfig
from pykvm.machine import Machine
from pykvm.outcome import Outcome, Reason
from pykvm.snapshot import chain, format
from pykvm.snapshot.load import load

TIMEOUT_S = 60.0
PAGE = 4096
FILES = (format.HEAD, format.STATE, format.MEMORY)

CHAIN_MEMORY = 9 << 20  # of the machine of `take_chain`: as much as the guest touches
HOST_WRITES = 0x60_0000  # gpa where nothing of the guest's is


def machine(cmdline: str = "rounds=2", **options: object) -> Machine:
    """A machine with the guest that knows what it is; it stops where it asks for a snapshot."""
    kernel = guest_programs.path("snapshot")
    options = {"memory": CHAIN_MEMORY, **options}
    vm = Machine(MachineConfig(kernel=kernel, cmdline=cmdline, **options))
    vm.on_snapshot_request = vm.stop
    return vm


def take_chain(folder: Path) -> Path:
    """A folder with `full`, `one` on it and `two` on `one`, each with a page of the host's more.

    It is not where they were taken, so that no copy finds a base there."""
    with machine("rounds=4 ask=2 touch=4") as vm:
        vm.run(timeout=TIMEOUT_S)
        vm.memory.write(HOST_WRITES, b"zero")
        vm.memory.write(HOST_WRITES + 8 * PAGE, b"to be wiped")
        vm.snapshot(folder / "full")
        vm.memory.write(HOST_WRITES, b"once")
        vm.memory.write(HOST_WRITES + 8 * PAGE, bytes(PAGE))
        vm.snapshot(folder / "one", base=folder / "full")
        vm.memory.write(HOST_WRITES + PAGE, b"again")
        vm.memory.write(HOST_WRITES + 32 * PAGE, bytes(range(256)) * 16 * 32)
        vm.snapshot(folder / "two", base=folder / "one")
    return folder.rename(folder.with_name(f"moved-{folder.name}"))


def passed(outcome: Outcome) -> bool:
    return outcome.reason is Reason.EXIT and outcome.code == 0 and b"FAILED" not in outcome.console


def nonces(outcome: Outcome) -> set[bytes]:
    return set(re.findall(rb"nonce (\w+)", outcome.console))


# ── what is in a snapshot ────────────────────────────────────────────────────────────────────────


def memory_of(folder: Path) -> bytes:
    with load(folder) as template, template.memory() as memory:
        return memory.read(0, memory.size)


def content(folder: Path) -> tuple[object, ...]:
    """All that a machine made of the snapshot would have."""
    with load(folder) as template, template.memory() as memory:
        return template.config, template.entry, template.parts, memory.read(0, memory.size)


def pages_in(folder: Path) -> int:
    """How many pages a differential snapshot has."""
    link = chain.Link(str(folder), chain.read_head(str(folder)))
    return sum(region.size for region in link.ranges) // PAGE


def is_full(folder: Path) -> bool:
    return "base" not in chain.read_head(str(folder))


# ── damage ───────────────────────────────────────────────────────────────────────────────────────


def flip(at: float, mask: bytes) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        start = int(at * (len(data) - 1))
        end = min(start + len(mask), len(data))
        changed = bytes(a ^ b for a, b in zip(data[start:end], mask, strict=False))
        return data[:start] + changed + data[end:]

    return change


CHANGES = st.one_of(
    st.builds(flip, st.floats(0, 1), st.binary(min_size=1, max_size=64)),
    st.floats(0, 1).map(lambda part: lambda data: data[: int(part * (len(data) - 1))]),
    st.binary(min_size=1, max_size=9000).map(lambda more: lambda data: data + more),
)


# ── processes and what they hold ─────────────────────────────────────────────────────────────────


def pykvm(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pykvm", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)


def open_files() -> list[str]:
    """What each descriptor leads to, of those that machines have, other tests' gone."""
    gc.collect()
    links = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    return sorted(link for link in links if re.search("anon_inode|memfd|/dev/|pytest", link))
