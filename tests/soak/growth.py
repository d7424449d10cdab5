"""Runs a command and tells how much it grew: descriptors, threads, KiB of memory.

    python growth.py FIRST LAST COMMAND…

What COMMAND has open is looked at when it prints a line that contains FIRST, and again at one with
LAST. The difference is the last line of the output.
"""

from __future__ import annotations

import os
import subprocess
import sys


def measure(pid: int) -> tuple[int, int, int]:
    with open(f"/proc/{pid}/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    memory = int(fields["RssAnon"].split()[0])
    return len(os.listdir(f"/proc/{pid}/fd")), int(fields["Threads"]), memory


def main() -> None:
    first, last, *command = sys.argv[1:]
    before = after = None
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as p:
        assert p.stdout is not None
        for line in p.stdout:
            print(line, end="", flush=True)
            if first in line and before is None:
                before = measure(p.pid)
            if last in line:
                after = measure(p.pid)
    if before is None or after is None:
        sys.exit(f"no line with {last if before else first}")
    print("grew by", *(b - a for a, b in zip(before, after, strict=True)))
    sys.exit(p.returncode)


if __name__ == "__main__":
    main()
