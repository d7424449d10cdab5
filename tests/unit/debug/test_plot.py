from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from traces import boot, write

from pykvm.debug.plot import BINS, _runs, _step, kind_of, plot
from pykvm.debug.traceread import Trace

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def picture(tmp_path: Path) -> ET.Element:
    return ET.fromstring(plot(Trace(write(tmp_path / "trace.json", boot()))))


def texts(picture: ET.Element) -> list[str]:
    return [element.text or "" for element in picture.iter(f"{SVG}text")]


def test_the_picture_names_kernel_phases_lanes_and_memory(picture: ET.Element) -> None:
    found = texts(picture)
    for text in ("vmlinuz-6.12", "vCPU 0", "serial", "CMOS/RTC", "virtqueue kicks", "2,000"):
        assert text in found
    assert any("built-in drivers (initcalls), 5 s" in text for text in found)
    assert "kernel's <segment>" in found
    assert "virtio-mmio rng" in found


def test_everything_is_inside_the_picture(picture: ET.Element) -> None:
    width, height = float(picture.get("width", "0")), float(picture.get("height", "0"))
    for shape in list(picture.iter(f"{SVG}rect"))[1:]:
        x, y, w, h = (float(shape.get(name, "0")) for name in ("x", "y", "width", "height"))
        assert 0 <= x <= x + w <= width
        assert 0 <= y <= y + h <= height


def test_a_trace_without_machine_and_without_exits_has_a_picture(tmp_path: Path) -> None:
    events = [event for event in boot() if event["cat"] == "console"]
    assert texts(ET.fromstring(plot(Trace(write(tmp_path / "trace.json", events)))))


@given(st.dictionaries(st.integers(0, BINS - 1), st.integers(1, 1 << 40)))
def test_runs_cover_the_bins_that_have_something(lane: dict[int, int]) -> None:
    runs = _runs(Counter(lane), max(lane.values(), default=1))
    covered = [place for start, end, _ in runs for place in range(start, end)]
    assert covered == sorted(lane)


@pytest.mark.parametrize(("seconds", "step"), [(12.0, 2.0), (0.03, 0.005), (1.0, 0.2), (350, 50)])
def test_ticks_are_round(seconds: float, step: float) -> None:
    assert _step(seconds) == pytest.approx(step)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("out 0x3f8 serial", "serial"),
        ("read 0xd0000000 virtio-mmio disk /a", "virtio-mmio disk /a"),
        ("in 0x2f9", "nothing there"),
        ("SHUTDOWN", "SHUTDOWN"),
    ],
)
def test_lanes_are_devices(name: str, kind: str) -> None:
    assert kind_of(name) == kind
