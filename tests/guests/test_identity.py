"""Copies of a machine have MACs and CIDs of their own, and those that the user chose."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pykvm import guest_programs
from pykvm.config import MachineConfig
from pykvm.errors import ConfigError
from pykvm.machine import Machine
from pykvm.virtio.config.net import parse_net
from pykvm.virtio.config.vsock import parse_vsock

CHOSEN = "02:00:00:00:00:07"


def identity(vm: Machine) -> tuple[bytes, int]:
    """MAC of the first card, and CID, as their drivers read them."""
    card, _, sockets = (each.device for each in vm.virtio)
    return card.read_config()[:6], int.from_bytes(sockets.read_config(), "little")


def elsewhere(folder: Path, number: int) -> dict[str, object]:
    """Places of its own for a copy's devices."""
    nets = (f"eth0=socket={folder}/a{number}", f"eth1=socket={folder}/b{number}")
    return {"nets": nets, "vsock": f"{folder}/v{number}"}


@pytest.fixture(params=["pci", "mmio"])
def vm(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    config = MachineConfig(
        kernel=guest_programs.path("snapshot"),
        memory=4 << 20,
        transport=request.param,
        nets=(parse_net(f"socket={tmp_path}/a"), parse_net(f"socket={tmp_path}/b,mac={CHOSEN}")),
        vsock=parse_vsock(f"{tmp_path}/v"),
    )
    with Machine(config) as machine:
        yield machine


def test_every_copy_has_its_own_and_the_first_machine_keeps_its(
    vm: Machine, tmp_path: Path
) -> None:
    own = identity(vm)
    assert own[1] == 3
    vm.snapshot(tmp_path / "snap")
    found = [own]
    with (
        Machine.restore(tmp_path / "snap", **elsewhere(tmp_path, 1)) as first,
        Machine.restore(tmp_path / "snap", **elsewhere(tmp_path, 2)) as second,
        vm.fork(**elsewhere(tmp_path, 3)) as third,
    ):
        found += [identity(copy) for copy in (first, second, third)]
        for copy in (first, second, third):
            chosen = copy.virtio[1].device.read_config()[:6]
            assert chosen.hex(":") == CHOSEN
        third.reset()
        assert identity(third) == found[3]
        first.snapshot(tmp_path / "again")
    assert len({mac for mac, _ in found}) == 4
    assert len({cid for _, cid in found}) == 4
    assert identity(vm) == own
    with Machine.restore(tmp_path / "again", identity="keep", **elsewhere(tmp_path, 4)) as kept:
        assert identity(kept) == found[1]
        kept.snapshot(tmp_path / "last")
    with Machine.restore(tmp_path / "last", **elsewhere(tmp_path, 5)) as new:
        assert identity(new) not in found  # to keep is no choice of an address


def test_a_copys_init_is_told_by_the_firmware_configuration(vm: Machine, tmp_path: Path) -> None:
    vm.snapshot(tmp_path / "snap")
    places = elsewhere(tmp_path, 1)
    places["nets"] = (f"socket={tmp_path}/a1,ip=10.0.0.3/24,gw=10.0.0.1", f"socket={tmp_path}/b1")
    with Machine.restore(tmp_path / "snap", **places) as copy:
        fw_cfg = copy.fw_cfg
        fw_cfg.write(0, 2, 0x19)  # the directory
        directory = bytes(fw_cfg.read(1, 1) for _ in range(4 + 64))
        assert int.from_bytes(directory[:4], "big") == 1
        size, selector = (int.from_bytes(directory[at : at + 4], "big") for at in (4, 8))
        assert directory[12:].rstrip(b"\0") == b"opt/pykvm/network"
        fw_cfg.write(0, 2, selector >> 16)
        text = bytes(fw_cfg.read(1, 1) for _ in range(size)).decode()
        assert fw_cfg.read(1, 1) == 0
        mac = identity(copy)[0].hex(":")
    assert text == f"10.0.0.3/24 10.0.0.1 - - {mac}\n- - - - {CHOSEN}\n"


def test_an_address_that_is_chosen_anew_is_the_copys(vm: Machine, tmp_path: Path) -> None:
    vm.snapshot(tmp_path / "snap")
    places = elsewhere(tmp_path, 1) | {"vsock": f"{tmp_path}/v1,cid=99"}
    mac = "02:00:00:00:00:08"
    places["nets"] = (f"eth0=socket={tmp_path}/a1,mac={mac}", f"eth1=socket={tmp_path}/b1")
    with Machine.restore(tmp_path / "snap", identity="keep", **places) as copy:
        assert identity(copy) == (bytes.fromhex(mac.replace(":", "")), 99)
    with pytest.raises(ConfigError, match="--identity: 'other' is unknown; write new or keep"):
        Machine.restore(tmp_path / "snap", identity="other")


def test_a_copy_whose_place_is_taken_says_what_to_do(vm: Machine, tmp_path: Path) -> None:
    vm.snapshot(tmp_path / "snap")
    places = elsewhere(tmp_path, 1)
    del places["vsock"]
    with pytest.raises(ConfigError, match=f"--vsock: {tmp_path}/v is in use"):
        Machine.restore(tmp_path / "snap", **places)
