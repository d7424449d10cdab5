"""What holds for every device: no access raises, and its state survives a snapshot."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.devices import testdev
from pykvm.devices.base import Device
from pykvm.devices.cmos import Cmos
from pykvm.devices.crtc import Crtc
from pykvm.devices.debugexit import DebugExit, ExitCode
from pykvm.devices.fwcfg import FwCfg
from pykvm.devices.i8042 import I8042
from pykvm.devices.pm import PowerManagement
from pykvm.devices.post import Post
from pykvm.devices.pvpanic import PvPanic
from pykvm.devices.reset import ResetControl


def ignore(*_: object) -> None:
    pass


DEVICES: dict[str, Callable[[], Device]] = {
    "crtc": Crtc,
    "cmos": lambda: Cmos(256 << 20, ignore, now=lambda: 1e9),
    "debugexit": lambda: DebugExit(ignore),
    "exitcode": lambda: ExitCode(ignore),
    "fwcfg": lambda: FwCfg(2, 256 << 20),
    "i8042": lambda: I8042(ignore, ignore),
    "pm": lambda: PowerManagement(ignore, ignore),
    "post": Post,
    "pvpanic": lambda: PvPanic(ignore),
    "reset": lambda: ResetControl(ignore),
    "test lines": lambda: testdev.Lines(ignore),
    "test memory": testdev.Memory,
    "test ports": testdev.Register,
}

ACCESS = st.tuples(
    st.integers(0, 15),
    st.sampled_from([1, 2, 4, 8]),
    st.none() | st.integers(0, 255) | st.integers(0, (1 << 64) - 1),
)
ACCESSES = st.lists(ACCESS, max_size=60)


def apply(device: Device, accesses: list[tuple[int, int, int | None]]) -> list[int]:
    """Make the accesses, None being a read; return what was read."""
    answers = []
    for offset, size, value in accesses:
        if value is None:
            answers.append(device.read(offset, size))
        else:
            device.write(offset, size, value & ((1 << (8 * size)) - 1))
    return answers


@pytest.mark.parametrize("make", DEVICES.values(), ids=DEVICES.keys())
@given(accesses=ACCESSES)
def test_no_sequence_of_accesses_raises_or_answers_more_than_was_asked(
    make: Callable[[], Device], accesses: list[tuple[int, int, int | None]]
) -> None:
    device = make()
    try:
        answers = apply(device, accesses)
        sizes = [size for _, size, value in accesses if value is None]
        assert all(0 <= a < 1 << (8 * size) for a, size in zip(answers, sizes, strict=True))
    finally:
        device.reset()


@pytest.mark.parametrize("make", DEVICES.values(), ids=DEVICES.keys())
@given(before=ACCESSES, after=ACCESSES)
def test_a_restored_device_goes_on_as_the_saved_one_does(
    make: Callable[[], Device],
    before: list[tuple[int, int, int | None]],
    after: list[tuple[int, int, int | None]],
) -> None:
    saved, restored = make(), make()
    try:
        apply(saved, before)
        restored.restore(saved.state())
        assert apply(restored, after) == apply(saved, after)
    finally:
        saved.reset()
        restored.reset()


@pytest.mark.parametrize("make", DEVICES.values(), ids=DEVICES.keys())
@given(accesses=ACCESSES)
def test_reset_is_the_state_a_device_starts_in(
    make: Callable[[], Device], accesses: list[tuple[int, int, int | None]]
) -> None:
    device = make()
    apply(device, accesses)
    device.reset()
    if not isinstance(device, Cmos):  # whose RAM has a battery
        assert device.state() == make().state()
