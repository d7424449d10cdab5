"""What can be refused without a host is refused, with the option's name and a remedy."""

from __future__ import annotations

import contextlib
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.config import MEMORY_MIN, MachineConfig, parse_size
from pykvm.errors import ConfigError
from pykvm.layout import GIB, KIB, MIB


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("256", 256 * MIB),
        ("256M", 256 * MIB),
        ("256m", 256 * MIB),
        ("256MB", 256 * MIB),
        ("256MiB", 256 * MIB),
        (" 2G ", 2 * GIB),
        ("1.5g", 1536 * MIB),
        ("1048576K", GIB),
        ("1T", 1024 * GIB),
        ("0", 0),
    ],
)
def test_size_is_read_as_people_write_it(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "junk", "M", "12X", "1..5G", "0x10", "nan", "inf", "-inf", "1e400", "1M2"]
)
def test_text_that_is_no_size_names_the_option(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--memory: .* is not a size; try"):
        parse_size(text)


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_refused(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert isinstance(parse_size(text), int)


@given(st.integers(0, 1 << 40), st.sampled_from("KMG"))
def test_whole_numbers_are_exact(number: int, unit: str) -> None:
    assert parse_size(f"{number}{unit}") == number * {"K": KIB, "M": MIB, "G": GIB}[unit]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"memory": 0}, r"--memory: 0 bytes is less than .* try --memory"),
        ({"memory": -GIB}, r"--memory"),
        ({"memory": MEMORY_MIN - 4096}, r"--memory: .* is less than"),
        ({"mode": "protected"}, r"--mode: 'protected' is no CpuMode; write .*CpuMode.PROTECTED"),
        ({"memory": MEMORY_MIN + 1}, r"--memory: .* is not a whole number of 4 KiB pages; try"),
        ({"cpus": 0}, r"--cpus: 0 is less than 1; try --cpus 1"),
        ({"cpus": -1}, r"--cpus"),
        ({"console": "vga"}, r"--console: 'vga' is unknown; write serial or virtio"),
        ({"cmdline": "quiet\0evil"}, r"--append: .* NUL byte"),
    ],
)
def test_value_that_works_on_no_host_is_refused(
    options: dict[str, int | str], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        MachineConfig(kernel=b"\xf4", **options)  # type: ignore[arg-type]


def test_smallest_memory_is_allowed() -> None:
    assert MachineConfig(kernel=b"\xf4", memory=MEMORY_MIN).memory == MEMORY_MIN


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"memory": "256M"}, "memory='256M' is not a number of bytes: 256 << 20"),
        ({"memory": 1e8}, "memory=100000000.0 is not a number of bytes"),
        ({"cpus": "2"}, "cpus='2' is not a number"),
        ({"cmdline": b"quiet"}, "cmdline=b'quiet' is not a text"),
        ({"initrd": "root.cpio"}, "initrd='root.cpio' is not a list of paths"),
        ({"initrd": b"root"}, "initrd=b'root' is not a list of paths"),
        ({"kernel": None}, "kernel=None is not a path"),
        ({"disks": "a.img"}, "disks='a.img' is not a list of DiskConfig"),
        ({"disks": ["a.img"]}, "'a.img' is not a DiskConfig, NetConfig"),
        ({"vsock": "/tmp/v"}, "vsock='/tmp/v' is not a VsockConfig"),
        ({"gdb": 1234}, "gdb=1234 is not a text: '1234'"),
    ],
)
def test_what_the_command_line_would_take_is_refused_where_it_is_no_value(
    fields: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=f"^MachineConfig: {re.escape(complaint)}"):
        MachineConfig(**{"kernel": "kernel", **fields})
