"""Headers of a kernel for modules, with a scripted apt."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_apt import FakeApt

from pykvm import cache
from pykvm.boot.headers import headers
from pykvm.boot.kernels import Kernel
from pykvm.errors import ConfigError, HostError

RELEASE = "6.12.117+deb12-cloud-amd64"
PACKAGE = f"linux-headers-{RELEASE}"
KERNEL = Kernel(RELEASE, Path("vmlinuz"))
DEPENDS = (
    "Depends: linux-base, linux-headers-6.12.117+deb12-common (= 6.12.117-1), "
    "linux-kbuild-6.12.117+deb12, gcc-12\n"
)


@pytest.fixture
def known(apt: FakeApt) -> FakeApt:
    apt.know(PACKAGE)
    apt.tell(f"{PACKAGE}.show", DEPENDS)
    return apt


def test_three_packages_become_one_folder_that_names_itself(known: FakeApt) -> None:
    folder = headers(KERNEL)
    home = cache.cache_dir() / "headers" / RELEASE
    assert folder == home / "usr" / "src" / PACKAGE
    found = (folder / "Makefile").read_text()
    assert found == f"include {home}/usr/src/linux-headers-common/Makefile\n"
    downloads = [line.split()[-1] for line in known.asked().splitlines() if "download" in line]
    assert downloads == [
        PACKAGE,
        "linux-headers-6.12.117+deb12-common",
        "linux-kbuild-6.12.117+deb12",
    ]
    known.forget()
    assert headers(KERNEL) == folder
    assert known.asked() == ""


def test_kernel_without_such_a_package_is_refused(apt: FakeApt) -> None:
    apt.know("linux-headers-6.1.0-56-cloud-amd64")
    with pytest.raises(ConfigError, match=f"no package {PACKAGE.replace('+', '.')}.*newest"):
        headers(KERNEL)


def test_fetch_that_fails_leaves_nothing(known: FakeApt) -> None:
    known.tell("broken")
    with pytest.raises(HostError, match="short read"):
        headers(KERNEL)
    assert list((cache.cache_dir() / "headers").iterdir()) == []
    known.untell("broken")
    assert headers(KERNEL).is_dir()
