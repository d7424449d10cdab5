"""A network for users without rights: passt makes the guest's connections sockets of its own.

Reached from `net`, for ``--net user``. passt gets one end of a socket pair and leaves when the
other is closed, so it ends with us however we end. To the guest it is what QEMU's ``-netdev user``
is: 10.0.2.2 is the host, 10.0.2.3 its name server, and DHCP tells so. Read passt(1).
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack

from pykvm._core import lib
from pykvm.errors import ConfigError, HostError
from pykvm.lean import TYPE_CHECKING
from pykvm.net.wire import Wire
from pykvm.virtio.config.net import USER_MTU

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO, Final

    from pykvm.virtio.config.net import NetConfig

ROUTER_MAC: Final = "52:4b:0a:00:02:02"  # passt's own, as the guest sees it
READY: Final = "MAC:"  # the last part of its configuration that it tells; the ports are open then
# What it says of no consequence: there is no system logger, and root's rights are laid down.
NOISE: Final = ("Failed to send ", "Don't run as root")
SOCKET_BUFFER: Final = 1 << 20  # bytes under way; the kernel may allow fewer
END_S: Final = 5.0


def start_passt(config: NetConfig) -> Wire:
    """Start passt. Raises `HostError` without it, `ConfigError` when it refuses."""
    resources = ExitStack()
    try:
        ours, theirs = socket.socketpair()
        with theirs:
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
            process = _start(command(config, theirs.fileno()), theirs.fileno())
        ours.setblocking(False)
        resources.callback(_end, process)
        resources.enter_context(ours)  # closed first, which ends passt
        lines = _lines(process.stderr)
        _wait_until_ready(lines)
        threading.Thread(target=_show, args=(lines,), name="passt", daemon=True).start()
    except BaseException:
        resources.close()
        raise
    return Wire(
        lib.PK_NET_STREAM,
        [ours.fileno()],
        name="user",
        mtu=config.mtu,
        knows_connections=True,
        resources=resources,
    )


def command(config: NetConfig, fd: int) -> list[str]:
    """passt's command line, for a guest at the other end of `fd`."""
    address, gateway, dns = config.settings
    words = ["passt", "--foreground", "--stderr", "--fd", str(fd), "--ipv4-only"]
    words += ["--mac-addr", ROUTER_MAC, "--mtu", str(config.mtu or USER_MTU)]
    words += ["--address", str(address.ip), "--netmask", str(address.network.prefixlen)]
    words += ["--gateway", str(gateway), "--dns-forward", str(dns), "--dns", str(dns)]
    if not _has_default_route():  # else it would look for one; this host's own ports are reached
        words += ["--interface", "lo"]
    for forward in config.forwards:
        place = f"{forward.address}/" if forward.address else ""
        option = "--tcp-ports" if forward.protocol == "tcp" else "--udp-ports"
        words += [option, f"{place}{forward.port}:{forward.guest_port}"]
    return words


def _has_default_route() -> bool:
    with contextlib.suppress(OSError), open("/proc/net/route") as table:
        return any(line.split()[1] == "00000000" for line in table.readlines()[1:])
    return False


def _start(words: list[str], fd: int) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            pass_fds=[fd],
        )
    except FileNotFoundError:
        raise HostError("--net user: passt is not installed; apt-get install passt") from None
    except OSError as error:
        raise HostError(f"--net user: passt cannot be run: {error.strerror}") from None


def _end(process: subprocess.Popen[str]) -> None:
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _lines(stderr: IO[str] | None) -> Iterator[str]:
    assert stderr is not None
    with stderr:
        for line in stderr:
            if not line.startswith(NOISE) and line.strip():
                yield line.rstrip()


def _wait_until_ready(lines: Iterator[str]) -> None:
    said = []
    for line in lines:
        if line.startswith(READY):
            return
        said.append(line)
    reason = "; ".join(said) or "it says nothing"
    if "Failed to bind" in reason:
        reason += "; the port is in use, or not yours to listen at: choose another for hostfwd="
    raise ConfigError(f"--net user: passt refuses: {reason}")


def _show(lines: Iterator[str]) -> None:
    """Pass on what it has to say while it runs; the rest of its configuration is no news."""
    for line in lines:
        if not line.startswith(" ") and line not in ("DHCP:", "DNS:", "NDP/DHCPv6:"):
            print(f"pykvm: passt: {line}", file=sys.stderr)
