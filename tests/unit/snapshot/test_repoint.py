"""What a copy's devices are when it is said where they are now, and what is refused."""

from __future__ import annotations

from ipaddress import IPv4Interface
from typing import Any

import pytest

from pykvm.config import MachineConfig
from pykvm.errors import ConfigError
from pykvm.snapshot.repoint import repoint
from pykvm.virtio.config.console import PortConfig
from pykvm.virtio.config.disk import DiskConfig
from pykvm.virtio.config.net import NetConfig, parse_net
from pykvm.virtio.config.vsock import VsockConfig

HOST = IPv4Interface("10.0.0.1/24")
GUEST = IPv4Interface("10.0.0.2/24")
DISKS = (DiskConfig("a", serial="one", queues=2), DiskConfig("b", cache="none", overlay=""))
NETS = (
    NetConfig("tap", "t0", queues=2, address=GUEST, host_address=HOST),
    NetConfig("user", mac=b"\2\0\0\0\0\1"),
)
ORIGIN = MachineConfig(
    kernel=b"",
    disks=DISKS,
    nets=NETS,
    vsock=VsockConfig("/v", cid=9),
    ports=(PortConfig("one", "file:/x"), PortConfig("two", "unix:/y")),
    gdb="1234",
    wait_gdb=True,
)


def copy(**changes: Any) -> MachineConfig:
    return repoint(ORIGIN, changes)[0]


def test_what_is_not_said_of_a_disk_stays() -> None:
    config, unnamed = repoint(ORIGIN, {"disks": ("c,serial=two",)})
    assert config.disks == (DISKS[0]._replace(path="c", serial="two"), DISKS[1])
    assert unnamed == {1}


def test_a_disk_is_named_as_the_guest_names_it_and_the_next_text_is_for_the_next() -> None:
    config, unnamed = repoint(ORIGIN, {"disks": ("vdb=c", "d")})
    assert [disk.path for disk in config.disks] == ["d", "c"]
    assert unnamed == set()


def test_records_are_taken_as_they_are_and_are_for_all() -> None:
    given = (DiskConfig("c"), DiskConfig("d"))
    assert copy(disks=given).disks == given
    with pytest.raises(ConfigError, match="--disk: 1 are given, and the machine has 2"):
        copy(disks=given[:1])


def test_another_tap_keeps_what_the_guest_knows_and_its_own_end() -> None:
    (first, second) = copy(nets=("tap=t1",)).nets
    assert first == NETS[0]._replace(where="t1")
    assert second == NETS[1]


def test_another_kind_of_cable_has_another_end_and_the_guest_the_same_card() -> None:
    (_, second) = copy(nets=("eth1=tap=t1,ip=10.0.0.3/24",)).nets
    assert second == parse_net("tap=t1,mac=2:0:0:0:0:1,ip=10.0.0.3/24")
    one_queue = ORIGIN._replace(nets=(NETS[0]._replace(queues=1), NETS[1]))
    (first, _) = repoint(one_queue, {"nets": ("user,hostfwd=tcp:80-:80",)})[0].nets
    assert first == parse_net("user,ip=10.0.0.2/24,hostfwd=tcp:80-:80")


def test_a_cable_that_cannot_serve_the_card_is_refused() -> None:
    with pytest.raises(ConfigError, match="only a TAP has several queues"):
        copy(nets=("user",))


def test_sockets_and_ports_move_by_their_names() -> None:
    assert copy(vsock="/w").vsock == VsockConfig("/w", cid=9)
    assert copy(vsock="/w,cid=10").vsock == VsockConfig("/w", cid=10)
    assert copy(ports=("two=stdout",)).ports == (ORIGIN.ports[0], PortConfig("two", "stdout"))


def test_a_debugger_belongs_to_one_machine() -> None:
    assert (copy(vsock="/w").gdb, copy(vsock="/w").wait_gdb) == (None, False)
    assert copy(gdb="99").gdb == "99"


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"disks": ("a", "b", "c")}, "--disk: 3 are given, and the machine has 2"),
        ({"disks": ("vdc=a",)}, "the machine has no vdc; it has vda, vdb"),
        ({"disks": ("vda=a", "vda=b")}, "--disk: vda is named twice"),
        ({"nets": ("eth2=user",)}, "--net: the machine has no eth2; it has eth0, eth1"),
        ({"nets": ("user=x",)}, "--net: 'user=x'"),
        ({"ports": ("three=stdout",)}, "--port: the machine has no port 'three'; it has one, two"),
        ({"vsock": "/w,port=1"}, "--vsock: 'port=1' is unknown"),
    ],
)
def test_what_the_machine_does_not_have_is_refused(changes: dict[str, Any], refusal: str) -> None:
    with pytest.raises(ConfigError, match=refusal):
        repoint(ORIGIN, changes)


def test_a_machine_without_the_device_says_so() -> None:
    plain = MachineConfig(kernel=b"")
    for changes in ({"disks": ("a",)}, {"nets": ("user",)}, {"vsock": "/v"}):
        with pytest.raises(ConfigError, match="the machine has 0"):
            repoint(plain, changes)
    with pytest.raises(ConfigError, match="the machine has no vda; it has none"):
        repoint(plain, {"disks": ("vda=a",)})
