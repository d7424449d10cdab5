"""What --net means, what is refused, and what the card then tells its driver."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Interface
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import pytest

from pykvm._core import lib
from pykvm.boot.guestnetwork import settings
from pykvm.errors import ConfigError
from pykvm.memory import GuestMemory
from pykvm.net import open_wire
from pykvm.net.passt import command
from pykvm.net.tap import host_mac
from pykvm.virtio.config import net as config
from pykvm.virtio.config.limits import Limits
from pykvm.virtio.config.net import Forward, NetConfig, parse_net
from pykvm.virtio.device import Status
from pykvm.virtio.interrupt import CONFIG as CONFIG_CHANGED
from pykvm.virtio.interrupt import Interrupt
from pykvm.virtio.net import CONFIG, Net, default_mac
from pykvm.virtio.netfeatures import NetFeature

ADDRESS = IPv4Interface("10.0.0.2/24")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("tap=tap0", NetConfig("tap", "tap0")),
        ("bridge=br0,mtu=9000", NetConfig("bridge", "br0", mtu=9000)),
        ("tap=t,queues=4,offload=off", NetConfig("tap", "t", queues=4, offload=False)),
        ("tap=t,offload=on", NetConfig("tap", "t")),
        (
            "tap=t,ip=10.0.0.2/24,gw=10.0.0.1,dns=9.9.9.9,hostip=10.0.0.1/24",
            NetConfig(
                "tap",
                "t",
                address=ADDRESS,
                gateway=IPv4Address("10.0.0.1"),
                dns=IPv4Address("9.9.9.9"),
                host_address=IPv4Interface("10.0.0.1/24"),
            ),
        ),
        ("user", NetConfig("user")),
        (
            "user,hostfwd=tcp:8080-:80,hostfwd=udp:127.0.0.1:53-:5353,hostfwd=tcp::1-:2",
            NetConfig(
                "user",
                forwards=(
                    Forward("tcp", "", 8080, 80),
                    Forward("udp", "127.0.0.1", 53, 5353),
                    Forward("tcp", "", 1, 2),
                ),
            ),
        ),
        ("socket=/tmp/a,,b", NetConfig("socket", "/tmp/a,b")),
        ("socket=a,peer=b", NetConfig("socket", "a", peer="b")),
        ("user,mac=2:0:00:aB:1:ff", NetConfig("user", mac=bytes.fromhex("020000ab01ff"))),
        ("user,bps=1M,iops=10", NetConfig("user", limits=Limits(bps=1 << 20, iops=10))),
        ("tap=t,queues=2,bps=1M", NetConfig("tap", "t", queues=2, limits=Limits(bps=1 << 20))),
    ],
)
def test_a_card_is_where_its_cable_leads_and_options(text: str, meant: NetConfig) -> None:
    assert parse_net(text) == meant


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tap",
        "tap=",
        "user=me",
        "wifi=0",
        "tap=a name",
        "tap=sixteen-letters-",
        "tap=a/b",
        "tap=..",
        "user,mac=02:00:00:00:00",
        "user,mac=01:00:00:00:00:00",
        "user,mac=00:00:00:00:00:00",
        "user,mac=02:00:00:00:00:000",
        "user,mtu=67",
        "user,mtu=65536",
        "tap=t,queues=0",
        "tap=t,queues=9",
        "user,queues=2",
        "user,offload=maybe",
        "tap=t,ip=10.0.0.2",
        "tap=t,ip=10.0.0.256/24",
        "tap=t,gw=10.0.0.1",
        "user,hostip=10.0.0.1/24",
        "bridge=b,hostip=10.0.0.1/24",
        "user,peer=x",
        "tap=t,hostfwd=tcp:1-:2",
        "user,hostfwd=tcp:1:2",
        "user,hostfwd=icmp:1-:2",
        "user,hostfwd=tcp:0-:2",
        "user,hostfwd=tcp:1-:65536",
        "user,hostfwd=tcp:nowhere:1-:2",
        "user,hostfwd=tcp:1-10.0.2.15:2",
        f"socket={'x' * 108}",
        "user,speed=fast",
    ],
)
def test_wrong_options_are_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match="--net"):
        parse_net(text)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("tap=t", "tap=t"),
        ("tap=t,mac=2:0:0:0:0:1", "user,mac=02:00:00:00:00:01"),
        ("user,hostfwd=tcp:80-:80", "user,hostfwd=tcp:80-:81"),
    ],
)
def test_two_cards_do_not_share_what_only_one_can_have(one: str, other: str) -> None:
    with pytest.raises(ConfigError, match="--net: two cards have"):
        config.check_nets([parse_net(one), parse_net(other)])
    config.check_nets([parse_net(one), parse_net("socket=a"), parse_net("socket=a")])


def test_limits_in_c_and_here_are_the_same() -> None:
    assert config.PAIRS_MAX == lib.PK_NET_PAIRS_MAX


def test_init_is_told_a_line_a_card() -> None:
    nets = [NetConfig("tap", "t", address=ADDRESS), NetConfig("tap", "u"), NetConfig("user")]
    assert settings(nets) == b"10.0.0.2/24 - - -\n- - - -\n10.0.2.15/24 10.0.2.2 10.0.2.3 65520\n"
    assert settings(nets[1:2], [b"\2RK\0\xab\1"]) == b"- - - - 02:52:4b:00:ab:01\n"


def test_passt_is_told_what_the_guest_is_told() -> None:
    words = command(parse_net("user,ip=192.168.7.9/16,hostfwd=tcp:127.0.0.1:8080-:80"), 7)
    pairs = dict(pairwise(words))
    assert (pairs["--address"], pairs["--netmask"]) == ("192.168.7.9", "16")
    assert (pairs["--gateway"], pairs["--dns-forward"]) == ("192.168.0.2", "192.168.0.3")
    assert pairs["--tcp-ports"] == "127.0.0.1/8080:80"
    assert pairs["--fd"] == "7"


def test_a_default_address_is_stable_local_and_of_one_card() -> None:
    assert default_mac("tap0 0") == default_mac("tap0 0") != default_mac("tap1 0")
    assert default_mac("tap0 0")[0] & 3 == 2


def test_a_taps_own_address_is_stable_local_and_above_a_cards() -> None:
    assert host_mac("tap0") == host_mac("tap0") != host_mac("tap1")
    assert host_mac("tap0")[0] == 0xFE


def test_copies_of_a_card_have_addresses_of_their_own() -> None:
    assert default_mac("tap0 0") != default_mac("tap0 0", b"1") != default_mac("tap0 0", b"2")


# ── cards on sockets ─────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(1 << 16) as memory:
        yield memory


def make(memory: GuestMemory, text: str) -> Net:
    net = Net(memory, parse_net(text))
    net.interrupt = Interrupt()
    return net


def close(net: Net) -> None:
    net.close()
    net.interrupt.close()


def test_the_first_listens_and_the_second_connects(memory: GuestMemory, tmp_path: Path) -> None:
    path = tmp_path / "cable"
    first, second = (make(memory, f"socket={path}") for _ in range(2))
    assert CONFIG.unpack(first.read_config())[1] == 0  # nobody was accepted yet
    assert CONFIG.unpack(second.read_config())[1] == 1
    assert first.mac != second.mac
    close(second)
    close(first)
    assert not path.exists()


def test_the_socket_of_a_machine_that_was_killed_is_replaced(
    memory: GuestMemory, tmp_path: Path
) -> None:
    path = tmp_path / "cable"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    net = make(memory, f"socket={path}")
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(str(path))
    close(net)


def test_a_path_in_the_way_is_the_users_mistake(memory: GuestMemory, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file", tmp_path / "missing/socket", tmp_path):
        for peer in ("", ",peer=x"):
            with pytest.raises(ConfigError, match=r"--net socket=.*(something else|No such file)"):
                Net(memory, parse_net(f"socket={path}{peer}"))
    assert (tmp_path / "file").exists()


@pytest.mark.parametrize(
    ("reason", "remedy"), [(errno.EACCES, "chmod 666 /dev/net/tun"), (errno.ENOENT, "modprobe tun")]
)
def test_without_taps_the_remedy_is_what_is_missing_or_passt(reason: int, remedy: str) -> None:
    with (
        patch("pykvm.net.tap.os.open", side_effect=OSError(reason, os.strerror(reason))),
        pytest.raises(ConfigError, match=f"{remedy}', or use --net user"),
    ):
        open_wire(parse_net("tap=pykvmtest0"))


def test_a_bridge_that_is_not_there_is_the_users_mistake(memory: GuestMemory) -> None:
    with pytest.raises(ConfigError, match="ip link add nobridge type bridge"):
        Net(memory, parse_net("bridge=nobridge"))


def test_a_socket_takes_checksums_and_leaves_none(memory: GuestMemory, tmp_path: Path) -> None:
    net = make(memory, f"socket={tmp_path}/s,mtu=9000,mac=2:0:0:0:0:1")
    assert net.features & NetFeature.CSUM
    assert not net.features & (NetFeature.GUEST_CSUM | NetFeature.HOST_TSO4 | NetFeature.CTRL_VQ)
    assert CONFIG.unpack(net.read_config()) == (b"\2\0\0\0\0\1", 0, 1, 9000)
    assert net.queue_count == 2
    close(net)
    net = make(memory, f"socket={tmp_path}/s,offload=off")
    assert not net.features & (NetFeature.CSUM | NetFeature.MTU)
    close(net)


def test_state_survives_restoring_and_nothing_is_left_open(
    memory: GuestMemory, tmp_path: Path
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    net = make(memory, f"socket={tmp_path}/s")
    net.accept_half(1, 1)
    status = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK
    net.set_status(status)
    for number, queue in enumerate(net.queues):
        queue.desc, queue.avail, queue.used = (0x1000 * (3 * number + n) for n in range(3))
        queue.ready, queue.size = True, 16
    net.set_status(status | Status.DRIVER_OK)
    assert not net.status & Status.NEEDS_RESET
    state = net.state()
    net.set_status(0)
    net.restore(state)
    assert net.state() == state
    assert net.status == status | Status.DRIVER_OK
    memory.write(0x1000, struct.pack("<HH", 0, 0))
    close(net)
    assert len(os.listdir("/proc/self/fd")) == before


def copy_of(state: bytes, memory: GuestMemory, text: str, identity: bytes | None) -> Net:
    net = Net(memory, parse_net(text), identity=identity)
    net.interrupt = Interrupt()
    net.freeze()
    net.restore(state)
    net.thaw()
    return net


def test_a_copys_driver_is_told_of_an_address_that_is_not_its_origins(
    memory: GuestMemory, tmp_path: Path
) -> None:
    net = make(memory, f"socket={tmp_path}/a")
    net.accept_half(1, 1)
    net.set_status(Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK)
    state, mac = net.state(), net.mac
    close(net)
    kept = copy_of(state, memory, f"socket={tmp_path}/b", None)
    assert (kept.mac, kept.interrupt.pending) == (mac, 0)
    close(kept)
    for text, identity in (
        (f"socket={tmp_path}/b", b"1"),
        (f"socket={tmp_path}/b,mac=2:0:0:0:0:1", None),
    ):
        other = copy_of(state, memory, text, identity)
        assert other.mac != mac
        assert other.interrupt.pending == CONFIG_CHANGED
        close(other)


def test_a_card_does_not_go_on_where_less_can_be_left_to_it(
    memory: GuestMemory, tmp_path: Path
) -> None:
    net = make(memory, f"socket={tmp_path}/a,mtu=9000")
    for half, bits in ((0, NetFeature.CSUM | NetFeature.MTU), (1, 1)):
        net.accept_half(half, bits)
    net.set_status(Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK)
    state = net.state()
    close(net)
    close(copy_of(state, memory, f"socket={tmp_path}/b", b"1"))  # without an MTU
    less = make(memory, f"socket={tmp_path}/b,offload=off")
    with pytest.raises(ValueError, match="lacks CSUM, which the guest uses"):
        less.restore(state)
    close(less)
