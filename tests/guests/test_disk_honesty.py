"""A disk never lies: what a guest was told is on the disk is there, and what failed is said to."""

from __future__ import annotations

import ctypes
import os
import random
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pykvm import guest_programs

SECTORS = 256
KILLS = int(os.environ.get("PYKVM_KILLS", "4"))
LIMIT_S = 60


@contextmanager
def journal(
    disk: Path, options: str, cmdline: str, *prefix: str
) -> Iterator[subprocess.Popen[str]]:
    """`pykvm boot` of a guest that writes numbers to the disk until it is killed."""
    boot = [*prefix, sys.executable, "-m", "pykvm", "boot", guest_programs.path("virtqueue")]
    boot += ["--disk", f"{disk}{options}", "--transport", "mmio", "--timeout", str(LIMIT_S)]
    boot += ["--append", f"journal=1 {cmdline}"]
    with subprocess.Popen(
        boot, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def lines_until(process: subprocess.Popen[str], text: str) -> list[str]:
    """What the guest says, up to a line with `text`."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError(f"{lines} {process.stderr and process.stderr.read()}")


def empty_disk(path: Path) -> Path:
    path.write_bytes(bytes(SECTORS * 512))
    return path


def overlaid(disk: Path, overlay: Path) -> bytes:
    """What the next machine finds: pykvm/virtio/overlay.py says where all is."""
    data, found = overlay.read_bytes(), bytearray(disk.read_bytes())
    bitmap, data = data[4096:8192], data[8192:]
    for cluster in range(len(found) // 4096):
        if bitmap[cluster // 8] >> cluster % 8 & 1:
            found[cluster * 4096 : (cluster + 1) * 4096] = data[cluster * 4096 :][:4096]
    return bytes(found)


@pytest.mark.parametrize("options", [",cache=writeback", ",cache=none", ",overlay="])
@pytest.mark.parametrize("seed", range(KILLS))
def test_what_was_flushed_survives_a_kill(tmp_path: Path, options: str, seed: int) -> None:
    disk, overlay = empty_disk(tmp_path / "disk"), tmp_path / "overlay"
    wanted = random.Random(seed).randrange(1, 60)
    said = ""
    options += str(overlay) if options.endswith("=") else ""
    with journal(disk, options, "batch=3") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        while said.count("flushed") < wanted and (line := process.stdout.readline()):
            said += line
        process.send_signal(signal.SIGKILL)  # in the middle of whatever it does now
        said += process.stdout.read()
        if "O_DIRECT" in process.stderr.read():
            pytest.skip("no O_DIRECT here")
    flushed = int(re.findall(r"^flushed (\d+)\n", said, re.MULTILINE)[-1])
    assert flushed >= 3 * wanted
    found_bytes = overlaid(disk, overlay) if overlay.exists() else disk.read_bytes()
    found = [struct.unpack("<128I", part) for part in sectors(found_bytes)]
    for n in range(max(1, flushed - SECTORS + 1), flushed + 1):
        (value,) = set(found[n % SECTORS])  # a sector is written as a whole
        assert value >= n  # this write, or a later one to the same sector
        assert value % SECTORS == n % SECTORS


def sectors(data: bytes) -> list[bytes]:
    return [data[at : at + 512] for at in range(0, len(data), 512)]


# ── is a flush one? ──────────────────────────────────────────────────────────────────────────────


def dirty_pages(path: Path) -> int:
    """Pages of the file that the host has not yet written (cachestat(2), Linux 6.5)."""

    class Range(ctypes.Structure):
        _fields_ = (("off", ctypes.c_uint64), ("len", ctypes.c_uint64))

    class Pages(ctypes.Structure):
        _fields_ = tuple(
            (name, ctypes.c_uint64)
            for name in ("cache", "dirty", "writeback", "evicted", "recently_evicted")
        )

    pages, whole = Pages(), Range(0, 0)
    fd = os.open(path, os.O_RDONLY)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syscall(451, fd, ctypes.byref(whole), ctypes.byref(pages), 0) < 0:
            pytest.skip(f"cachestat: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(fd)
    return int(pages.dirty + pages.writeback)


@pytest.mark.parametrize(
    ("options", "cmdline"),
    [
        ("", "batch=40"),  # a driver that flushes after all of its writes,
        ("", "flush=0"),  # one that cannot: each write is on the disk when it is answered
    ],
)
def test_a_flush_leaves_nothing_in_the_page_cache(
    tmp_path: Path, options: str, cmdline: str
) -> None:
    disk = empty_disk(tmp_path / "disk")
    if dirty_pages(disk) == 0:
        pytest.skip("a file system that does not know dirty pages")
    with journal(disk, options, f"writes=40 {cmdline}") as process:
        lines_until(process, "written")
        assert dirty_pages(disk) == 0
    assert sectors(disk.read_bytes())[40] == struct.pack("<I", 40) * 128


# ── errors ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("options", ["", ",overlay="])
def test_a_full_file_system_is_an_error_that_says_which_request(
    tmp_path: Path, options: str
) -> None:
    small, disk = tmp_path / "small", tmp_path / "small/disk"
    small.mkdir()
    if options:
        disk, options = empty_disk(tmp_path / "disk"), f"{options}{small}/overlay"
    # A file system of 64 KiB, of a mount namespace's own; 16 sectors more than it holds.
    mount = f'mount -t tmpfs -o size=64k none {small} && truncate -s 72K {small}/disk && exec "$@"'
    prefix = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this host gives no mount namespace")
    with journal(disk, options, "writes=143", *prefix) as process:
        lines = lines_until(process, "written")
        process.kill()
        assert process.stderr is not None
        log = process.stderr.read()
    failed = [line for line in lines if "status 1" in line]
    first = 8 * (16 - 1 if options else 16)  # an overlay's header has a page of its own
    assert 1 <= len(failed) <= 143 - first + 1
    assert f"{disk}{options}: write, sector {first}, 512 bytes: No space left on device" in log


@pytest.mark.parametrize("options", ["", ",overlay=on"])
def test_a_file_that_became_shorter_is_an_error_that_says_which_request(
    tmp_path: Path, options: str
) -> None:
    disk = empty_disk(tmp_path / "disk")
    boot = [sys.executable, "-m", "pykvm", "boot", guest_programs.path("virtqueue")]
    boot += ["--disk", f"{disk}{options}", "--transport", "mmio", "--timeout", str(LIMIT_S)]
    with subprocess.Popen(
        [*boot, "--append", "count=100000"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        lines_until(process, "sectors")
        os.truncate(disk, 0)
        out, log = process.communicate(timeout=LIMIT_S)
    assert "FAILED: sector 0 is read" in out
    assert f"{disk}{options}: read, sector 0, 512 bytes: Input/output error" in log
    assert log.count("Input/output error") <= 10  # a bad disk does not fill the log
