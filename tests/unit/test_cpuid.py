"""The CPUID table: KVM's offer, the vCPU's place in the package, the user's changes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.cpuid import FEATURES, Bit, build, parse_model
from pykvm.errors import ConfigError
from pykvm.kvm import CpuidEntry

# A small processor: leaf 1 with APIC and SSE2, caches on two levels, the extended leaves.
SUPPORTED = [
    CpuidEntry(0x0, 0, 0, 0xD, 0x68747541, 0x444D4163, 0x69746E65),
    CpuidEntry(0x1, 0, 0, 0x00A20F10, 0x00010800, 1 << 0 | 1 << 21, 1 << 9 | 1 << 26),
    CpuidEntry(0x4, 0, 1, 1 | 1 << 5, 0, 0, 0),
    CpuidEntry(0x4, 3, 1, 3 | 3 << 5, 0, 0, 0),
    CpuidEntry(0x4, 4, 1, 0, 0, 0, 0),
    CpuidEntry(0x7, 0, 1, 0, 1 << 5, 0, 0),
    CpuidEntry(0xB, 0, 1, 9, 9, 9, 9),
    CpuidEntry(0x4000_0001, 0, 0, 1 << 3, 0, 0, 0),
    CpuidEntry(0x8000_0001, 0, 0, 0, 0, 0, 1 << 11 | 1 << 29),
    CpuidEntry(0x8000_0008, 0, 0, 48, 0, 0xFFFF_FFFF, 0),
    CpuidEntry(0x8000_001E, 0, 0, 9, 9, 9, 0),
]


def table(
    apic_id: int = 0, cpus: int = 1, cpu: str = "host", tsc_deadline: bool = False
) -> dict[tuple[int, int], CpuidEntry]:
    entries = build(
        SUPPORTED,
        apic_id=apic_id,
        cpus=cpus,
        features=parse_model(cpu),
        tsc_deadline=tsc_deadline,
    )
    rows = {(entry.function, entry.index): entry for entry in entries}
    assert len(rows) == len(entries), "no function and index twice"
    return rows


# ── --cpu ────────────────────────────────────────────────────────────────────────────────────────


def test_host_alone_changes_nothing() -> None:
    assert parse_model("host") == {}


def test_features_are_added_and_removed_by_name() -> None:
    assert parse_model("host,+avx2,-sse2,-x2apic") == {"avx2": True, "sse2": False, "x2apic": False}


@pytest.mark.parametrize("text", ["", "bad", "qemu64,+avx2", "HOST", "+avx2", ",host"])
def test_unknown_model_names_the_option(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--cpu: the model .* is unknown; write --cpu host"):
        parse_model(text)


@pytest.mark.parametrize("change", ["avx2", "+", "-", "", "+nosuch", "*avx2", "+AVX2", "+ avx2"])
def test_unknown_feature_names_the_option(change: str) -> None:
    with pytest.raises(ConfigError, match=r"--cpu: .* is not \+NAME or -NAME"):
        parse_model(f"host,{change}")


def test_misspelt_feature_is_told_its_neighbours() -> None:
    with pytest.raises(ConfigError, match=r"did you mean .*avx2"):
        parse_model("host,+avx22")


@given(st.text(alphabet="host,+-avx2 ", max_size=20))
def test_any_text_is_understood_or_refused(text: str) -> None:
    try:
        wanted = parse_model(text)
    except ConfigError:
        return
    assert set(wanted) <= set(FEATURES)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("fpu", Bit(0x1, 0, "edx", 0)),
        ("pbe", Bit(0x1, 0, "edx", 31)),
        ("pni", Bit(0x1, 0, "ecx", 0)),
        ("vmx", Bit(0x1, 0, "ecx", 5)),
        ("x2apic", Bit(0x1, 0, "ecx", 21)),
        ("tsc_deadline_timer", Bit(0x1, 0, "ecx", 24)),
        ("xsave", Bit(0x1, 0, "ecx", 26)),
        ("hypervisor", Bit(0x1, 0, "ecx", 31)),
        ("avx2", Bit(0x7, 0, "ebx", 5)),
        ("smap", Bit(0x7, 0, "ebx", 20)),
        ("avx512vl", Bit(0x7, 0, "ebx", 31)),
        ("la57", Bit(0x7, 0, "ecx", 16)),
        ("rdpid", Bit(0x7, 0, "ecx", 22)),
        ("fsrm", Bit(0x7, 0, "edx", 4)),
        ("arch_capabilities", Bit(0x7, 0, "edx", 29)),
        ("ssbd", Bit(0x7, 0, "edx", 31)),
        ("kvmclock_stable", Bit(0x4000_0001, 0, "eax", 24)),
        ("svm", Bit(0x8000_0001, 0, "ecx", 2)),
        ("topoext", Bit(0x8000_0001, 0, "ecx", 22)),
        ("syscall", Bit(0x8000_0001, 0, "edx", 11)),
        ("nx", Bit(0x8000_0001, 0, "edx", 20)),
        ("lm", Bit(0x8000_0001, 0, "edx", 29)),
        ("3dnow", Bit(0x8000_0001, 0, "edx", 31)),
        ("constant_tsc", Bit(0x8000_0007, 0, "edx", 8)),
        ("ibpb", Bit(0x8000_0008, 0, "ebx", 12)),
        ("virt_ssbd", Bit(0x8000_0008, 0, "ebx", 25)),
    ],
)
def test_feature_is_at_the_bit_the_manuals_give(name: str, place: Bit) -> None:
    assert FEATURES[name] == place


def test_no_row_of_features_is_longer_than_a_register() -> None:
    assert max(place.bit for place in FEATURES.values()) == 31


# ── the table ────────────────────────────────────────────────────────────────────────────────────


def test_removed_feature_is_gone_and_the_rest_stays() -> None:
    before, after = table(), table(cpu="host,-sse2,-avx2")
    assert before[0x1, 0].edx ^ after[0x1, 0].edx == 1 << 26
    assert after[0x7, 0].ebx == 0


def test_added_feature_that_kvm_offers_is_there() -> None:
    assert table(cpu="host,+avx2")[0x7, 0].ebx == 1 << 5


def test_added_feature_that_kvm_does_not_offer_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--cpu: \+avx512f: this host's KVM does not offer it"):
        table(cpu="host,+avx512f")


def test_tsc_deadline_timer_is_there_when_kvm_has_the_capability() -> None:
    assert not table()[0x1, 0].ecx >> 24 & 1
    assert table(tsc_deadline=True)[0x1, 0].ecx >> 24 & 1


def test_tsc_deadline_timer_can_be_removed() -> None:
    assert not table(tsc_deadline=True, cpu="host,-tsc_deadline_timer")[0x1, 0].ecx >> 24 & 1


@given(st.integers(1, 1024), st.data())
def test_every_leaf_tells_the_same_place(cpus: int, data: st.DataObject) -> None:
    apic_id = data.draw(st.integers(0, cpus - 1))
    rows = table(apic_id=apic_id, cpus=cpus)
    assert rows[0x1, 0].ebx >> 24 == apic_id & 0xFF
    assert rows[0x1, 0].edx >> 28 & 1 == (cpus > 1)  # HTT
    levels = [rows[0xB, index] for index in range(3)]
    assert {level.edx for level in levels} == {apic_id}  # x2APIC id
    assert [level.ecx >> 8 & 0xFF for level in levels] == [1, 2, 0]  # SMT, core, end
    assert levels[1].ebx == cpus
    assert apic_id >> levels[1].eax == 0  # the package id: there is one package
    assert rows[0x8000_001E, 0].eax == apic_id
    assert 1 << (rows[0x8000_0008, 0].ecx >> 12 & 0xF) >= cpus


def test_cpus_of_one_package_have_different_apic_ids() -> None:
    assert [table(i, 8)[0xB, 0].edx for i in range(8)] == list(range(8))


def test_first_level_cache_is_a_cores_own_and_the_last_is_shared() -> None:
    rows = table(cpus=4)
    assert [rows[0x4, index].eax >> 14 & 0xFFF for index in (0, 3)] == [0, 3]
    assert rows[0x4, 0].eax >> 26 == 3
    assert rows[0x4, 4].eax == 0  # no cache: left alone


def test_other_leaves_are_passed_through() -> None:
    rows = table(3, 4)
    assert rows[0x0, 0] == SUPPORTED[0]
    assert rows[0x4000_0001, 0] == SUPPORTED[7]


def test_what_fits_eight_bits_is_not_exceeded_by_many_cpus() -> None:
    rows = table(apic_id=1000, cpus=1024)
    assert rows[0x1, 0].ebx >> 16 & 0xFF == 0xFF
    assert rows[0x8000_0008, 0].ecx & 0xFF == 0xFF
