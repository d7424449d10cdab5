"""What a test's marker may say of a machine, without booting one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pykvm.agent import cached, described
from pykvm.config import MachineConfig
from pykvm.errors import ConfigError

MIB = 1 << 20


@pytest.fixture
def boot(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Any:
    """As `described.boot`; returns the configuration, and the commands to run."""
    kernel = tmp_path / "vmlinuz"
    kernel.touch()
    monkeypatch.setattr(described, "BUSYBOX", str(kernel))
    monkeypatch.setattr(cached, "boot", lambda config, commands, timeout: (config, commands))

    def boot(**options: Any) -> tuple[MachineConfig, list[Any]]:
        return described.boot(False, print, kernel=str(kernel), **options)  # type: ignore[return-value]

    return boot


def test_options_are_those_of_a_boot_and_one_is_as_good_as_a_list(boot: Any) -> None:
    config, commands = boot(cpus=2, memory="64M", append="quiet", net="user", setup="true")
    assert (config.cpus, config.memory, config.cmdline) == (2, 64 * MIB, "quiet")
    assert [net.kind for net in config.nets] == ["user"]
    assert b"10.0.2.15/24 10.0.2.2 10.0.2.3" in config.initrd[0]
    assert commands[-1] == "true"


def test_disk_to_write_to_is_given_an_overlay_that_is_dropped(boot: Any) -> None:
    config, _ = boot(disks=["a.img", "b.img,ro", "c.img,overlay=kept"])
    assert [disk.overlay for disk in config.disks] == ["on", "", "kept"]


@pytest.mark.parametrize("net", ["tap=tap0", "socket=/tmp/s", "user,hostfwd=tcp:8080-:80"])
def test_network_that_only_one_machine_can_have_is_refused(boot: Any, net: str) -> None:
    with pytest.raises(ConfigError, match=r"net='.*no two machines can have.*'user' or"):
        boot(net=net)


def test_wrong_values_are_refused(boot: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="cpus='two' is no number"):
        boot(cpus="two")
    with pytest.raises(ConfigError, match="--memory: 'lots'"):
        boot(memory="lots")
    kernel = SimpleNamespace(name="6.12", modules="tree")
    monkeypatch.setattr("pykvm.boot.kernels.kernel_at", lambda path: kernel)
    monkeypatch.setattr("pykvm.boot.modules.unknown", lambda tree, names: list(names))
    with pytest.raises(ConfigError, match=r"modules: lopo: the kernel 6.12 has none.*insmod"):
        boot(modules="lopo")
