"""A guest without an operating system drives a network card, by each of the wires."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pykvm import guest_programs
from pykvm.config import MachineConfig
from pykvm.console import BytesConsole
from pykvm.machine import Machine
from pykvm.virtio.config.net import parse_net

TIMEOUT_S = 60
FLOOD = 500  # datagrams
OURS, GUEST = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])
MAC, OUR_MAC, EVERYBODY = bytes.fromhex("020000000002"), bytes.fromhex("020000000001"), b"\xff" * 6
ARP = struct.Struct("!HHBBH6s4s6s4s")
IP = struct.Struct("!BBHHHBBH4s4s")
ICMP, UDP = 1, 17


def inet_sum(data: bytes) -> int:
    """The sum that is 0xffff over what holds its own checksum (RFC 1071)."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def arp(operation: int, sender: tuple[bytes, bytes], target: tuple[bytes, bytes]) -> bytes:
    """A frame; sender and target are a MAC and an address. Requests go to everybody."""
    to = target[0] if operation == 2 else EVERYBODY
    packet = ARP.pack(1, 0x0800, 6, 4, operation, *sender, *target)
    return to + sender[0] + b"\x08\x06" + packet


def ip(protocol: int, data: bytes) -> bytes:
    """A frame of ours to the guest."""
    packet = IP.pack(0x45, 0, 20 + len(data), 0, 0, 64, protocol, 0, OURS, GUEST) + data
    return MAC + OUR_MAC + b"\x08\x00" + packet


def ping(payload: bytes) -> bytes:
    """An ICMP echo request with its checksum."""
    summed = inet_sum(struct.pack("!BBHHH", 8, 0, 0, 7, 7) + payload)
    return struct.pack("!BBHHH", 8, 0, 0xFFFF - summed, 7, 7) + payload


class Cable:
    """The other end, in QEMU's framings."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end
        self.stream = end.type == socket.SOCK_STREAM
        end.settimeout(TIMEOUT_S)

    def send(self, frame: bytes) -> None:
        self.end.sendall((struct.pack("!I", len(frame)) if self.stream else b"") + frame)

    def receive(self) -> bytes:
        if not self.stream:
            return self.end.recv(1 << 17)
        (size,) = struct.unpack("!I", self._exactly(4))
        return self._exactly(size)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.end.recv(size - len(data))
            assert piece, "the machine has hung up"
            data += piece
        return data


@contextlib.contextmanager
def cable(folder: Path, kind: str) -> Iterator[tuple[str, Callable[[], Cable]]]:
    """What ``--net`` is given, and what connects to the machine once it runs."""
    path, ours = folder / "cable", folder / "ours"
    if kind == "stream":
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(str(path))
            end.listen()
            end.settimeout(TIMEOUT_S)
            yield f"socket={path}", lambda: Cable(end.accept()[0])
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(ours))

        def connect() -> Cable:
            end.connect(str(path))
            return Cable(end)

        yield f"socket={path},peer={ours}", connect


@pytest.mark.parametrize("kind", ["stream", "dgram"])
def test_a_guest_answers_its_neighbours(tmp_path: Path, kind: str) -> None:
    with cable(tmp_path, kind) as (net, connect):
        command = [sys.executable, "-m", "pykvm", "boot", guest_programs.path("network")]
        command += ["--net", f"{net},mac={MAC.hex(':')}", "--append", "count=3"]
        with subprocess.Popen(
            [*command, "--timeout", str(TIMEOUT_S)], stdout=subprocess.PIPE, text=True
        ) as machine:
            assert machine.stdout is not None
            said: list[str] = []
            for line in machine.stdout:
                said.append(line)
                if "answers as" in line:
                    break
            far = connect()
            far.send(arp(1, (OUR_MAC, OURS), (bytes(6), bytes([10, 0, 0, 9]))))  # not the guest
            far.send(arp(1, (OUR_MAC, OURS), (bytes(6), GUEST)))
            assert far.receive() == arp(2, (MAC, GUEST), (OUR_MAC, OURS))
            for payload in (b"ping", bytes(range(250)) * 250):  # 62,500 bytes
                far.send(ip(ICMP, ping(payload)))
                answer = far.receive()
                assert answer[:12] == OUR_MAC + MAC
                assert answer[26:34] == GUEST + OURS
                assert answer[34] == 0
                assert answer[42:] == payload
                assert inet_sum(answer[34:]) == 0xFFFF
            far.send(ip(UDP, struct.pack("!HHHH", 1000, 7, 8 + 5, 0) + b"hello"))
            assert far.receive()[34:] == struct.pack("!HHHH", 7, 1000, 8 + 5, 0) + b"hello"
            said += machine.stdout.readlines()
    assert machine.returncode == 0
    assert said[-1] == "3 answered\n"
    assert not any("FAILED" in line for line in said)


def test_frames_come_whole_however_they_are_cut(tmp_path: Path) -> None:
    """And the next ones, whatever comes between: what is no frame, not for us, or too long."""
    chance = random.Random(1)
    sent, wanted = [], []
    for number in range(FLOOD):
        size = chance.choice((0, 1, 100, 1458, 9000, 40000, 65507 - 4)) if number % 5 == 0 else 200
        datagram = struct.pack("!HHHHI", 1000, 7, 12 + size, 0, number) + bytes(size)
        answer = struct.pack("!HHHHI", 7, 1000, 12 + size, 0, number) + bytes(size)
        sent += [ip(UDP, datagram), bytes(chance.choice((0, 1, 13, 14, 60, 65553)))]
        wanted.append(answer)
    stream = b"".join(struct.pack("!I", len(frame)) + frame for frame in sent)

    def flood(end: socket.socket) -> None:
        at = 0
        while at < len(stream):
            size = chance.choice((1, 3, 5, 100, 5000, 32768, 100_000))
            end.sendall(stream[at : at + size])
            at += size

    with cable(tmp_path, "stream") as (net, connect), ThreadPoolExecutor() as pool:
        config = MachineConfig(
            kernel=guest_programs.path("network"),
            memory=16 << 20,
            cmdline=f"count={FLOOD}",
            nets=(parse_net(net),),
        )
        with Machine(config) as vm:
            outcome = pool.submit(vm.run, timeout=TIMEOUT_S, console=BytesConsole(b""))
            far = connect()
            flooding = pool.submit(flood, far.end)
            for answer in wanted:
                assert far.receive()[34:] == answer
            assert outcome.result().code == 0
            flooding.exception()  # the last of it may be for nobody


def in_namespace(script: str, *words: str) -> str:
    """What a shell script says, as root of a network namespace of its own. $@: a boot's words."""
    namespace = [shutil.which("unshare") or "unshare", "--net"]
    if os.geteuid() != 0:
        namespace += ["--map-root-user"]
    boot = [sys.executable, "-m", "pykvm", "boot", guest_programs.path("network")]
    command = [*namespace, "sh", "-c", script, "sh", *boot, "--timeout", str(TIMEOUT_S), *words]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=2 * TIMEOUT_S
    )
    if "unshare failed" in done.stdout and os.environ.get("CI") != "true":
        pytest.skip(f"no network namespaces: {done.stdout}")
    return done.stdout


PING = """
"$@" --append count=10 --net tap=t0,hostip=10.0.0.1/24,mtu=65521 | while read line; do
    echo "$line"
    case "$line" in *" answers as "*)
        busybox ping -q -c 5 -i 0.1 10.0.0.2
        busybox ping -q -c 5 -i 0.1 -s 65000 10.0.0.2;;
    esac
done
ip link show t0
"""


def test_a_guest_answers_the_hosts_ping_through_a_tap() -> None:
    """In one frame each: a TAP that we make takes packets of up to 65,521 bytes."""
    said = in_namespace(PING)
    assert said.count(" 5 packets received, 0% packet loss") == 2, said
    assert "10 answered" in said
    assert '"t0" does not exist' in said


REFUSALS = """
try() { "$@"; echo "code $?"; }
ip link add br0 type bridge
ip tuntap add t9 mode tap
try setpriv --bounding-set=-net_admin --inh-caps=-net_admin "$@" --net tap=t0
try setpriv --bounding-set=-net_admin --inh-caps=-net_admin "$@" --net bridge=br0
try "$@" --net bridge=br1
try "$@" --net bridge=lo
try "$@" --net tap=lo
try "$@" --net tap=t0,mtu=65530
try "$@" --net tap=t9,queues=2
try "$@" --net tap=t9,hostip=10.0.0.1/24
ip -o link
"""


def test_what_the_host_has_not_is_refused_and_nothing_is_left() -> None:
    said = in_namespace(REFUSALS)
    assert said.count("code 125\n") == 8, said
    for reason in (
        "tap=t0: to make a TAP takes root; let root run 'ip tuntap add t0 mode tap user",
        "bridge=br0: to make a TAP takes root; or use --net user",
        "there is no bridge 'br1'; 'ip link add br1 type bridge' makes one",
        "there is no bridge 'lo'",
        "lo is no TAP; choose another name",
        "mtu=65530 is more than a TAP takes: 65521",
        "t9 has one queue; make it with 'ip tuntap add t9 mode tap multi_queue'",
        "hostip= is for one that is made; 'ip addr add 10.0.0.1/24 dev t9', or leave hostip= out",
    ):
        assert reason in said
    links = [line.split(": ")[1] for line in said.rpartition("code 125\n")[2].splitlines()]
    assert sorted(links) == ["br0", "lo", "t9"]


FOUND = """
ip tuntap add t1 mode tap
ip addr add 10.0.0.1/24 dev t1
ip link set t1 up
{ "$@" --net tap=t1,hostip=10.0.0.1/24 & echo "pid $!"; wait $!; echo "code $?"; } 2>&1 |
while read first second rest; do
    echo "$first $second $rest"
    case "$first $second $rest" in
        "pid "*) pid=$second;;
        *" answers as "*) busybox ping -q -c 1 10.0.0.2; ip link del t1;;
        *"the other end is gone") kill $pid;;
    esac
done
"""


def test_a_machine_outlives_a_tap_that_was_there_before_it() -> None:
    said = in_namespace(FOUND)
    assert "1 packets received, 0% packet loss" in said
    assert "pykvm: net t1: the other end is gone" in said
    assert f"code {128 + signal.SIGTERM}" in said


def free_port() -> int:
    """A UDP port of the host's that nobody has, for now."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        end.bind(("127.0.0.1", 0))
        return int(end.getsockname()[1])


def test_datagrams_go_through_passt_and_back() -> None:
    sizes = (1, 1000, 9000, 60000)
    port = free_port()
    command = [sys.executable, "-m", "pykvm", "boot", guest_programs.path("network")]
    command += ["--net", f"user,hostfwd=udp:127.0.0.1:{port}-:7", "--timeout", str(TIMEOUT_S)]
    command += ["--append", f"ip=10.0.2.15 count={len(sizes)}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as machine:
        assert machine.stdout is not None
        next(line for line in machine.stdout if "answers as" in line)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
            end.settimeout(TIMEOUT_S)
            end.connect(("127.0.0.1", port))
            for size in sizes:
                datagram = os.urandom(size)
                end.send(datagram)
                assert end.recv(1 << 16) == datagram
        assert machine.stdout.readlines()[-1] == f"{len(sizes)} answered\n"
    assert machine.returncode == 0


def test_a_machine_outlives_passt() -> None:
    command = [sys.executable, "-m", "pykvm", "boot", guest_programs.path("network")]
    command += ["--net", "user", "--timeout", str(TIMEOUT_S)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as machine:
        assert machine.stdout is not None
        assert machine.stderr is not None
        next(line for line in machine.stdout if "answers as" in line)
        children = Path(f"/proc/{machine.pid}/task/{machine.pid}/children").read_text()
        os.kill(int(children), signal.SIGKILL)
        line = next(line for line in machine.stderr if "net user" in line)
        assert line == "pykvm: net user: the other end is gone\n"
        assert machine.poll() is None
        machine.terminate()
    assert machine.returncode == 128 + signal.SIGTERM


def test_a_port_in_use_is_not_forwarded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        command = [sys.executable, "-m", "pykvm", "boot", guest_programs.path("network")]
        command += ["--net", f"user,hostfwd=tcp:127.0.0.1:{port}-:80"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 125
    assert f"/{port}:80'" in done.stderr
    assert "choose another for hostfwd=" in done.stderr
