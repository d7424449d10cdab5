"""The commands of the two virtiofsd there are."""

from __future__ import annotations

import pytest

from pykvm.errors import HostError
from pykvm.virtiofsd import Virtiofsd, find, read_only

OLDER, NEWER = Virtiofsd("/bin/virtiofsd", False), Virtiofsd("/bin/virtiofsd", True)


@pytest.mark.parametrize(("user", "sandbox"), [(0, "chroot"), (1000, "none")])
def test_newer_virtiofsd_gets_its_options(
    monkeypatch: pytest.MonkeyPatch, user: int, sandbox: str
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: user)
    command = NEWER.command(5, "/a,b", "none")
    assert {"--shared-dir=/a,b", "--cache=never", f"--sandbox={sandbox}", "--fd=5"} <= set(command)


def test_older_virtiofsd_gets_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    command = OLDER.command(5, "/a,b", "always", submounts=False)
    assert command[:2] == ["/bin/virtiofsd", "--fd=5"]
    assert command[-1] == "source=/a\\,b,cache=always,sandbox=chroot,log_level=err"


def test_a_folder_is_made_read_only_around_any_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    command = read_only(["virtiofsd", "--fd=5"], "/a b")
    assert command[:2] == ["unshare", "--user"]
    assert command[-3:] == ["/a b", "virtiofsd", "--fd=5"]


def test_older_virtiofsd_is_refused_to_those_it_does_not_work_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: "/bin/true")  # prints no --shared-dir
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(HostError, match="root only"):
        find()
