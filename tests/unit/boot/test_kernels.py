from __future__ import annotations

import os
from pathlib import Path

import pytest
from fake_apt import FakeApt

from pykvm.boot import kernels
from pykvm.errors import ConfigError, HostError

CLOUD_6_1 = "linux-image-6.1.0-55-cloud-amd64"
CLOUD_6_12 = "linux-image-6.12.117+deb12-cloud-amd64"
PC_6_1 = "linux-image-6.1.0-55-amd64"
ALL = (
    CLOUD_6_1,
    "linux-image-6.1.0-9-cloud-amd64",
    CLOUD_6_12,
    PC_6_1,
    "linux-image-6.12-cloud-amd64",
    "linux-image-cloud-amd64",
    "linux-image-6.12.118+deb12-cloud-amd64-unsigned",
    "linux-image-6.12.118+deb12-cloud-amd64-dbg",
    "linux-image-6.12.118+deb12-rt-amd64",
)


def have(release: str) -> Path:
    """Put a kernel into the cache; return its image."""
    image = kernels.kernels_dir() / release / "boot" / f"vmlinuz-{release}"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"kernel")
    return image


def leftovers() -> list[str]:
    return [path.name for path in kernels.kernels_dir().iterdir() if path.name.startswith(".")]


# ── find ─────────────────────────────────────────────────────────────────────────────────────


def test_a_named_file_comes_before_all_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    have("6.1.0-55-cloud-amd64")
    monkeypatch.setenv("PYKVM_KERNEL", "6.1")
    image = tmp_path / "bzImage"
    image.touch()
    assert kernels.find(str(image)) == kernels.Kernel("bzImage", image)


def test_a_name_means_the_newest_match_in_the_cache() -> None:
    have("6.1.0-9-cloud-amd64")
    image = have("6.1.0-55-cloud-amd64")
    have("6.12.117+deb12-cloud-amd64")
    assert kernels.find("6.1-cloud").image == image


def test_the_environment_names_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    image = have("6.1.0-55-cloud-amd64")
    have("6.12.117+deb12-cloud-amd64")
    monkeypatch.setenv("PYKVM_KERNEL", str(image))
    assert kernels.find().image == image


def test_the_running_kernel_comes_before_the_cache() -> None:
    have("6.1.0-55-cloud-amd64")
    running = Path(kernels.BOOT, f"vmlinuz-{os.uname().release}")
    running.parent.mkdir()
    running.touch()
    assert kernels.find().image == running


def test_a_running_kernel_that_may_not_be_read_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running = Path(kernels.BOOT, f"vmlinuz-{os.uname().release}")
    running.parent.mkdir()
    running.touch()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != running)
    image = have("6.1.0-55-cloud-amd64")
    assert kernels.find().image == image


def test_the_newest_in_the_cache_comes_last() -> None:
    have("6.1.0-55-cloud-amd64")
    image = have("6.12.117+deb12-cloud-amd64")
    assert kernels.find().image == image


def test_without_any_kernel_the_error_says_how_to_fetch_one() -> None:
    with pytest.raises(HostError, match="pykvm kernel fetch"):
        kernels.find()


def test_finding_makes_no_cache_directory(tmp_path: Path) -> None:
    with pytest.raises(HostError):
        kernels.find()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["nosuch/file", "6.99", "."])
def test_a_name_that_means_nothing_is_the_users_error(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^KERNEL: "):
        kernels.find(name)


def test_a_wrong_environment_is_named_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    have("6.1.0-55-cloud-amd64")
    monkeypatch.setenv("PYKVM_KERNEL", "6.99")
    with pytest.raises(ConfigError, match=r"^PYKVM_KERNEL: .*6\.1\.0-55-cloud-amd64"):
        kernels.find()


# ── what a kernel comes with ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("where", ["lib/modules", "usr/lib/modules"])
def test_modules_and_configuration_are_found_beside_the_image(where: str) -> None:
    image = have("6.1.0-55-cloud-amd64")
    tree = image.parent.parent / where / "6.1.0-55-cloud-amd64"
    tree.mkdir(parents=True)
    config = image.with_name("config-6.1.0-55-cloud-amd64")
    config.touch()
    assert kernels.installed() == [
        kernels.Kernel("6.1.0-55-cloud-amd64", image, modules=tree, config=config)
    ]


def test_modules_of_a_release_come_from_the_cache() -> None:
    tree = have("6.1.0-55-cloud-amd64").parent.parent / "lib/modules/6.1.0-55-cloud-amd64"
    tree.mkdir(parents=True)
    assert kernels.modules_dir("6.1.0-55-cloud-amd64") == tree


def test_a_release_nobody_has_has_no_modules() -> None:
    assert kernels.modules_dir("0.0.0-none") is None


def test_symbols_are_found_beside_a_built_kernel() -> None:
    elf = have("6.12.117-pykvm").with_name("vmlinux-6.12.117-pykvm")
    assert kernels.find("pykvm").vmlinux is None
    elf.touch()
    assert kernels.find("pykvm").vmlinux == elf


# ── fetch ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("pattern", "package"),
    [
        (None, CLOUD_6_12),
        ("6.1-cloud", CLOUD_6_1),
        ("6.1", CLOUD_6_1),
        ("6.1-generic", PC_6_1),
        ("6.1.0-55-amd64", PC_6_1),
        (PC_6_1, PC_6_1),
    ],
)
def test_fetch_takes_the_newest_package_that_matches(
    apt: FakeApt, pattern: str | None, package: str
) -> None:
    apt.know(*ALL)
    kernel = kernels.fetch(pattern)
    assert kernel.name == package.removeprefix("linux-image-")
    assert kernel.image.read_text() == f"{package}\n"
    assert kernel.modules is not None


def test_fetch_follows_a_metapackage(apt: FakeApt) -> None:
    apt.know(*ALL, "linux-image-amd64")
    apt.tell(
        "linux-image-cloud-amd64.show",
        f"Package: linux-image-cloud-amd64\nDepends: base, {CLOUD_6_1} (= 6.1.192-1)\n",
    )
    kernels.fetch("6.12-cloud")  # matches the pattern "cloud-amd64", and is newer
    assert kernels.fetch("linux-image-cloud-amd64").name == "6.1.0-55-cloud-amd64"


def test_a_metapackage_without_a_kernel_matches_nothing(apt: FakeApt) -> None:
    apt.know(*ALL)
    with pytest.raises(ConfigError, match="no kernel package matches"):
        kernels.fetch("linux-image-cloud-amd64")


def test_fetch_reports_bytes(apt: FakeApt) -> None:
    apt.know(*ALL)
    seen: list[tuple[int, int]] = []
    kernels.fetch(progress=lambda done, total: seen.append((done, total)))
    assert seen == [(255, 1000), (1000, 1000)]


def test_a_second_fetch_downloads_nothing(apt: FakeApt) -> None:
    apt.know(*ALL)
    first = kernels.fetch("6.1")
    apt.forget()
    assert kernels.fetch("6.1") == first
    assert "apt-get" not in apt.asked()


def test_a_second_fetch_of_a_release_does_not_even_start_apt(apt: FakeApt) -> None:
    apt.know(*ALL)
    first = kernels.fetch("6.1.0-55-amd64")
    apt.forget()
    assert kernels.fetch("6.1.0-55-amd64") == first
    assert apt.asked() == ""


def test_fetch_offline_takes_what_the_cache_has(apt: FakeApt) -> None:
    image = have("6.1.0-55-cloud-amd64")
    apt.know(*ALL)
    apt.tell("offline")
    notes: list[str] = []
    assert kernels.fetch(note=notes.append).image == image
    assert "taking 6.1.0-55-cloud-amd64 from the cache" in notes[-1]


def test_fetch_without_package_lists_takes_what_the_cache_has(apt: FakeApt) -> None:
    image = have("6.1.0-55-cloud-amd64")
    assert kernels.fetch().image == image
    assert "apt-get" not in apt.asked()


def test_fetch_without_apt_takes_what_the_cache_has(monkeypatch: pytest.MonkeyPatch) -> None:
    image = have("6.1.0-55-cloud-amd64")
    monkeypatch.setenv("PATH", "/nowhere")
    assert kernels.fetch().image == image


def test_a_kernel_in_the_cache_that_does_not_match_is_no_answer(apt: FakeApt) -> None:
    have("6.12.117-pykvm")
    apt.know(CLOUD_6_1)
    assert kernels.fetch().name == "6.1.0-55-cloud-amd64"


def test_fetch_keeps_a_kernel_newer_than_the_package_lists(apt: FakeApt) -> None:
    image = have("6.16.1+deb13-cloud-amd64")
    apt.know(*ALL)
    assert kernels.fetch().image == image


def test_fetch_gets_private_lists_where_there_are_none(apt: FakeApt, tmp_path: Path) -> None:
    apt.tell("new-names", CLOUD_6_1)
    assert kernels.fetch().name == "6.1.0-55-cloud-amd64"
    private = tmp_path / "cache/pykvm/apt/private"
    assert f"-c {private}/apt.conf update" in apt.asked()
    assert f'Dir::State "{private}/state";' in (private / "apt.conf").read_text()


def test_update_prefers_new_lists(apt: FakeApt) -> None:
    have("6.1.0-55-cloud-amd64")
    apt.know(CLOUD_6_1)
    apt.tell("new-names", f"{CLOUD_6_1}\n{CLOUD_6_12}\n")
    assert kernels.fetch().name == "6.1.0-55-cloud-amd64"
    assert kernels.fetch(update=True).name == "6.12.117+deb12-cloud-amd64"


def test_fetch_offline_with_an_empty_cache_gives_apts_reason(apt: FakeApt) -> None:
    apt.know(*ALL)
    apt.tell("offline")
    with pytest.raises(HostError, match=r"cannot download linux-image-6.*: .*no route; check"):
        kernels.fetch()


def test_fetch_offline_without_lists_gives_apts_reason(apt: FakeApt) -> None:
    apt.tell("offline")
    with pytest.raises(HostError, match="package lists: Failed to fetch: no route; check"):
        kernels.fetch()


def test_fetch_without_apt_names_the_other_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(HostError, match=r"apt-get is not here.*--kernel FILE"):
        kernels.fetch()


def test_a_pattern_without_match_lists_the_newest(apt: FakeApt) -> None:
    apt.know(*ALL)
    with pytest.raises(ConfigError) as error:
        kernels.fetch("6.99")
    assert str(error.value) == (
        "no kernel package matches '6.99'; the newest are "
        "6.1.0-55-cloud-amd64, 6.1.0-55-amd64, 6.12.117+deb12-cloud-amd64"
    )


def test_a_package_without_a_kernel_is_refused(apt: FakeApt) -> None:
    apt.know("linux-image-1.2.3-empty")
    with pytest.raises(ConfigError, match=r"linux-image-1\.2\.3-empty has no kernel in /boot"):
        kernels.fetch("linux-image-1.2.3-empty")
    assert kernels.installed() == []


# ── whole or not at all ──────────────────────────────────────────────────────────────────────


def test_an_unpacking_that_fails_leaves_nothing(apt: FakeApt) -> None:
    apt.know(*ALL)
    apt.tell("broken")
    with pytest.raises(HostError, match=r"cannot unpack .*short read"):
        kernels.fetch()
    assert kernels.installed() == []
    assert leftovers() == []


def test_an_interrupted_download_leaves_nothing(apt: FakeApt) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    apt.know(*ALL)
    with pytest.raises(KeyboardInterrupt):
        kernels.fetch(progress=interrupt)
    assert kernels.installed() == []
    assert leftovers() == []


def test_what_a_killed_fetch_left_is_not_a_kernel_and_goes_with_the_next(apt: FakeApt) -> None:
    half = kernels.kernels_dir() / ".unpacking-x/root/boot/vmlinuz-6.12.117+deb12-cloud-amd64"
    half.parent.mkdir(parents=True)
    half.touch()
    outer = half.parent.parent
    (kernels.kernels_dir() / ".unpacking-y/boot").mkdir(parents=True)
    (kernels.kernels_dir() / ".unpacking-y/boot/vmlinuz-1").touch()
    assert kernels.installed() == []
    apt.know(*ALL)
    kernels.fetch()
    assert not outer.exists()
    assert leftovers() == []


def test_putting_a_release_again_replaces_it(tmp_path: Path) -> None:
    have("1.2.3-x")
    work = kernels.kernels_dir().parent / "work"
    new = work / "root/boot/vmlinuz-1.2.3-x"
    new.parent.mkdir(parents=True)
    new.write_bytes(b"new")
    assert kernels.put(work / "root", "1.2.3-x").image.read_bytes() == b"new"
