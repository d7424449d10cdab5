"""The ACPI tables: their structure by reading them back, their content by Intel's own compiler."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm import acpi, aml, layout
from pykvm.errors import ConfigError

ROOM = layout.ACPI_TABLES_END - layout.ACPI_TABLES
VIRTIO = ((0xD000_0000, 0x1000, 5), (0x40_0000_0000, 0x1000, 23))


def at(blob: bytes, gpa: int) -> bytes:
    """The table at `gpa`, by its own length."""
    start = gpa - layout.ACPI_TABLES
    (size,) = struct.unpack_from("<I", blob, start + 4)
    return blob[start : start + size]


def tables(blob: bytes) -> dict[str, bytes]:
    """Every table a kernel finds from the RSDP, by signature."""
    (rsdt_gpa, xsdt_gpa) = struct.unpack_from("<I4xQ", blob, 16)
    xsdt = at(blob, xsdt_gpa)
    found = [at(blob, rsdt_gpa), xsdt]
    found += [at(blob, gpa) for (gpa,) in struct.iter_unpack("<Q", xsdt[36:])]
    facs, dsdt = struct.unpack_from("<II", next(t for t in found if t[:4] == b"FACP"), 36)
    found += [at(blob, facs), at(blob, dsdt)]
    return {table[:4].decode(): table for table in found}


def madt_entries(blob: bytes) -> list[bytes]:
    body = tables(blob)["APIC"][44:]
    entries = []
    while body:
        entries.append(body[: body[1]])
        body = body[body[1] :]
    return entries


def test_every_table_sums_to_zero() -> None:
    blob = acpi.build(3, virtio_mmio=VIRTIO)
    assert sum(blob[:20]) % 256 == sum(blob[:36]) % 256 == 0
    found = tables(blob)
    assert set(found) == {"RSDT", "XSDT", "FACP", "APIC", "FACS", "DSDT"}
    assert [name for name, t in found.items() if sum(t) % 256 and name != "FACS"] == []


def test_rsdt_and_xsdt_name_the_same_tables() -> None:
    found = tables(acpi.build(1))
    assert struct.unpack("<2I", found["RSDT"][36:]) == struct.unpack("<2Q", found["XSDT"][36:])


def test_fadt_names_the_ports_of_the_layout() -> None:
    fadt = tables(acpi.build(1))["FACP"]
    assert struct.unpack_from("<H", fadt, 46) == (layout.IRQ_SCI,)
    assert struct.unpack_from("<I", fadt, 56) == (layout.PORT_PM1A_EVENT,)
    assert struct.unpack_from("<I", fadt, 64) == (layout.PORT_PM1A_CONTROL,)
    assert struct.unpack_from("<I", fadt, 80) == (layout.PORT_GPE0,)
    assert fadt[92] == 2  # GPE0_BLK_LEN: status and enable
    assert struct.unpack_from("<BBBBQ", fadt, 220) == (1, 16, 0, 1, layout.PORT_GPE0)
    assert struct.unpack_from("<BBBBQB", fadt, 116) == (1, 8, 0, 1, layout.PORT_RESET, 6)


def test_dsdt_names_the_generation_id_and_its_event() -> None:
    dsdt = tables(acpi.build(1))["DSDT"]
    gpa = aml.integer(layout.VM_GENERATION_ID)
    assert aml.name("ADDR", aml.package(gpa, aml.integer(0))) in dsdt
    assert b"VM_Gen_Counter\0" in dsdt
    assert aml.method("_E00", aml.notify("_SB", "VGEN", 0x80)) in dsdt


def test_facs_is_aligned_to_64_bytes() -> None:
    (facs,) = struct.unpack_from("<I", tables(acpi.build(1))["FACP"], 36)
    assert facs % 64 == 0


def test_without_pci_devices_there_is_no_pci_bus() -> None:
    bridge = aml.eisa_id("PNP0A03")
    assert bridge not in acpi.build(1, virtio_mmio=VIRTIO)
    assert bridge in acpi.build(1, pci=())


@pytest.mark.parametrize("cpus", [1, 2, 255, 256, 1024])
def test_madt_lists_each_cpu_once_with_the_entry_its_id_needs(cpus: int) -> None:
    short, long = [], []
    for entry in madt_entries(acpi.build(cpus)):
        if entry[0] == acpi.Madt.LOCAL_APIC:
            short.append(struct.unpack("<BBI", entry[2:]))
        elif entry[0] == acpi.Madt.LOCAL_X2APIC:
            long.append(struct.unpack("<2xIII", entry[2:]))
    assert short == [(n, n, 1) for n in range(min(cpus, 255))]
    assert long == [(n, 1, n) for n in range(255, cpus)]


def test_madt_gives_the_apic_ids_it_was_told() -> None:
    entries = madt_entries(acpi.build(3, apic_ids=(0, 4, 300)))
    assert [e[3] for e in entries if e[0] == acpi.Madt.LOCAL_APIC] == [0, 4]
    assert [e[4:8] for e in entries if e[0] == acpi.Madt.LOCAL_X2APIC] == [b"\x2c\x01\0\0"]


def test_madt_overrides_the_sci_alone() -> None:
    overrides = [e for e in madt_entries(acpi.build(1)) if e[0] == 2]
    assert overrides == [struct.pack("<BBBBIH", 2, 10, 0, 9, 9, 0x0D)]


def test_1024_cpus_and_32_devices_fit() -> None:
    devices = tuple((0xD000_0000 + n * 0x1000, 0x1000, 5 + n % 8) for n in range(32))
    assert len(acpi.build(1024, virtio_mmio=devices)) <= ROOM


def test_too_many_cpus_are_the_users_mistake() -> None:
    with pytest.raises(ConfigError, match="--cpus"):
        acpi.build(4096)


@given(st.integers(0, 1 << 20))
def test_package_length_counts_itself(size: int) -> None:
    encoded = aml.package_length(size)
    assert len(encoded) == 1 + (encoded[0] >> 6)
    low = encoded[0] & (0xF if len(encoded) > 1 else 0x3F)
    assert low | int.from_bytes(encoded[1:], "little") << 4 == size + len(encoded)


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, b"\x00"),
        (1, b"\x01"),
        (0xFF, b"\x0a\xff"),
        (0x100, b"\x0b\x00\x01"),
        (0x1_0000, b"\x0c\x00\x00\x01\x00"),
        (1 << 63, b"\x0e\x00\x00\x00\x00\x00\x00\x00\x80"),
    ],
)
def test_integers_take_the_shortest_form(value: int, encoded: bytes) -> None:
    assert aml.integer(value) == encoded


def test_eisa_ids_are_big_endian_five_bit_letters() -> None:
    assert aml.eisa_id("PNP0501") == b"\x0c\x41\xd0\x05\x01"


@pytest.mark.skipif(
    shutil.which("iasl") is None and "CI" not in os.environ,
    reason="needs iasl: apt-get install acpica-tools",
)
@pytest.mark.parametrize("cpus", [1, 300])
def test_iasl_decodes_and_recompiles_every_table_without_complaint(
    cpus: int, tmp_path: Path
) -> None:
    blob = acpi.build(cpus, virtio_mmio=VIRTIO, pci=((1, 16), (2, 17)))
    for name, data in tables(blob).items():
        (tmp_path / f"{name}.dat").write_bytes(data)
        log = iasl(tmp_path, "-d", f"{name}.dat")
        source = (tmp_path / f"{name}.dsl").read_text()
        assert not re.search(r"warning|error|invalid|\*\*\*\*", source, re.IGNORECASE), source
        log += iasl(tmp_path, f"{name}.dsl")
        assert not re.search(r"[1-9]\d* (Errors|Warnings|Remarks)", log), log
        recompiled = (tmp_path / f"{name}.aml").read_bytes()
        # iasl signs its work in the header's creator fields, hence another checksum.
        assert recompiled[36:] == data[36:]


def iasl(folder: Path, *args: str) -> str:
    result = subprocess.run(
        ["iasl", *args],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout
