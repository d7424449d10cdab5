"""Errors of the host: the call, the errno, and what the user can do."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pykvm.errors import BootError, ConfigError, HostError, KvmError, PykvmError, check
from pykvm.kvm import Kvm


def test_results_that_are_not_negative_pass_through() -> None:
    assert [check(result, "ioctl") for result in (0, 1, 1 << 40)] == [0, 1, 1 << 40]


def test_negative_result_is_an_os_error_with_the_calls_name() -> None:
    with pytest.raises(OSError, match=r"^KVM_RUN: Bad address \(look there\)$") as caught:
        check(-errno.EFAULT, "KVM_RUN", "look there")
    assert isinstance(caught.value, KvmError)
    assert (caught.value.errno, caught.value.call) == (errno.EFAULT, "KVM_RUN")


def test_every_error_is_a_pykvm_error_and_the_kinds_are_apart() -> None:
    assert issubclass(BootError, ConfigError)
    assert all(issubclass(kind, PykvmError) for kind in (ConfigError, KvmError, HostError))
    assert not issubclass(KvmError, ConfigError)


def test_host_without_kvm_is_sent_to_the_lab() -> None:
    with pytest.raises(KvmError, match=r"open /nonexistent.*pykvm lab --") as caught:
        Kvm("/nonexistent")
    assert caught.value.errno == errno.ENOENT


def test_file_that_is_no_kvm_is_refused_and_closed() -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(KvmError, match="/dev/null"):
        Kvm("/dev/null")
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_kvm_that_the_user_may_not_open_names_the_remedy(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    device.touch(mode=0)
    drop = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]  # root may, otherwise
    code = f"from pykvm.kvm import Kvm; Kvm({str(device)!r})"
    command = [*(drop if os.getuid() == 0 else []), sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "usermod -aG kvm" in done.stderr.splitlines()[-1]
