"""A configuration survives the head of a snapshot, whatever the options were."""

from __future__ import annotations

import json

import pytest

from pykvm.config import MachineConfig
from pykvm.snapshot.format import decode_config, encode_config
from pykvm.virtio.config.console import PIPE, parse_port
from pykvm.virtio.config.disk import parse_disk
from pykvm.virtio.config.net import parse_net
from pykvm.virtio.config.vsock import parse_vsock


@pytest.mark.parametrize(
    "config",
    [
        MachineConfig(kernel=b"", cpus=2, rng=True, balloon=1 << 20, transport="mmio"),
        MachineConfig(
            kernel=b"", disks=(parse_disk("a,ro,serial=x,bps=1M"), parse_disk("b,overlay=on"))
        ),
        MachineConfig(
            kernel=b"",
            nets=(
                parse_net("tap=t,mac=2:0:0:0:0:1,ip=10.0.0.2/24,gw=10.0.0.1,hostip=10.0.0.1/24"),
                parse_net("user,dns=9.9.9.9,hostfwd=tcp:127.0.0.1:80-:8080,mtu=1500"),
            ),
        ),
        MachineConfig(
            kernel=b"",
            vsock=parse_vsock("/v,cid=9"),
            ports=(*PIPE, parse_port("one=unix:/x")),
        ),
    ],
)
def test_a_configuration_survives_being_saved(config: MachineConfig) -> None:
    assert decode_config(json.loads(json.dumps(encode_config(config)))) == config
