"""A user at a terminal with ``pykvm boot --console virtio``; runs in the lab.

    python hvcsession.py FOLDER KERNEL TRANSPORT

Types, changes the terminal's size, asks for help, and lets FOLDER/saved be made; then goes on from
there at a terminal of another size. Prints what was on the screen, and ends with 0 when all was as
it should be.
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time

LIMIT_S = 150.0
PYKVM = [sys.executable, "-m", "pykvm"]
GUEST = """
b=/bin/busybox
echo terminal $($b tty), consoles $($b grep -c . /proc/consoles) end
$b cat /proc/consoles
while read word; do
  echo "heard $word, $($b stty size) end"
  [ $word = bye ] && exit 7
done
"""


class User:
    """Somebody at a terminal of `columns` and `rows`, with pykvm in its foreground."""

    def __init__(self, columns: int, rows: int, *words: str) -> None:
        self.keyboard, terminal = pty.openpty()
        self.resize(columns, rows)
        self.screen = b""
        self.process = subprocess.Popen(
            [*PYKVM, *words],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(terminal)
        self.end = time.monotonic() + LIMIT_S

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.keyboard, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def look(self, seconds: float) -> bool:
        """Read what has come to the screen, or comes in that time; False at the end."""
        if time.monotonic() > self.end:
            sys.exit(f"in vain: {self.screen!r}")
        if select.select([self.keyboard], [], [], seconds)[0]:
            try:
                data = os.read(self.keyboard, 4096)
            except OSError:  # the last process at the terminal has ended
                return False
            sys.stdout.buffer.write(data)
            sys.stdout.flush()
            self.screen += data
        return True

    def sees(self, text: bytes) -> bytes:
        """Wait for `text`; what was before it is returned."""
        while text not in self.screen:
            if not self.look(1):
                sys.exit(f"no {text!r} in {self.screen!r}")
        before, _, self.screen = self.screen.partition(text)
        return before

    def finds_window(self, columns: int, rows: int) -> None:
        """Ask the guest for its terminal's size until it is that: a change takes its time."""
        window = b""
        while window != b"%d %d" % (rows, columns):
            os.write(self.keyboard, b"size\r")
            self.sees(b"heard size, ")
            window = self.sees(b" end")

    def code(self) -> int:
        while self.look(1):
            pass
        return self.process.wait(60)


def main(folder: str, kernel: str, transport: str) -> None:
    with open(f"{folder}/script", "w") as file:
        file.write(GUEST)
    words = ["boot", kernel, "--console", "virtio", "--transport", transport, "--timeout", "120"]
    words += ["--add", "/bin/busybox", "--add", f"{folder}/script:/script"]
    words += ["--snapshot-at", "console:heard save", f"{folder}/saved"]
    user = User(100, 30, *words, "--", "busybox", "sh", "/script")
    os.write(user.keyboard, b"early\r")  # long before there is a driver
    user.sees(b"reached init after")
    user.sees(b"terminal /dev/hvc0, consoles 1 end")  # the boot console has left
    user.sees(b"hvc0")
    user.sees(b"heard early, ")
    user.finds_window(100, 30)
    user.resize(77, 33)
    user.finds_window(77, 33)
    os.write(user.keyboard, b"\x01h")
    user.sees(b"Ctrl-A x    end the machine")
    os.write(user.keyboard, b"save\r")
    user.sees(b"heard save, ")
    os.write(user.keyboard, b"bye\r")
    user.sees(b"heard bye, ")
    assert user.code() == 7, user.screen

    user = User(50, 20, "restore", f"{folder}/saved", "--timeout", "120")
    user.finds_window(50, 20)
    os.write(user.keyboard, b"\x01x")
    assert user.code() == 0, user.screen


if __name__ == "__main__":
    main(*sys.argv[1:])
