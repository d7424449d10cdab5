from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.boot.release import age_key, is_complete, matches

PC = "6.1.0-55-amd64"
CLOUD = "6.1.0-55-cloud-amd64"
NEW_CLOUD = "6.12.117+deb12-cloud-amd64"


@pytest.mark.parametrize(
    ("pattern", "release"),
    [
        (PC, PC),
        ("6.1", CLOUD),
        ("6", CLOUD),
        ("6.1.0", CLOUD),
        ("6.1.0-55", CLOUD),
        ("6.1-cloud", CLOUD),
        ("6.1-cloud-amd64", CLOUD),
        ("cloud", NEW_CLOUD),
        ("6.12.117", NEW_CLOUD),
        ("6.12.117+deb12-cloud", NEW_CLOUD),
        ("6.1-generic", PC),
        ("6.1-amd64", PC),
        ("amd64", PC),
        ("6.8-generic", "6.8.0-31-generic"),
        ("rt", "6.1.0-55-rt-amd64"),
        ("cloud", "6.1.0-0.deb11.21-cloud-amd64"),
        ("pykvm", "6.12.117-pykvm"),
        ("6.1.0-55-amd64-unsigned", "6.1.0-55-amd64-unsigned"),
    ],
)
def test_pattern_means_release(pattern: str, release: str) -> None:
    assert matches(pattern, release)


@pytest.mark.parametrize(
    ("pattern", "release"),
    [
        ("6.1", NEW_CLOUD),
        ("6.1.0-5", CLOUD),
        ("6.1", PC),
        ("6.1-cloud", PC),
        ("6.1-generic", CLOUD),
        ("6.2", CLOUD),
        ("cloud", "6.12.117-pykvm"),
        ("cloud", "6.1.0-55-cloud-amd64-dbg"),
        ("cloud", "6.1.0-55-cloud-amd64-unsigned"),
        ("amd64", "6.1.0-55-rt-amd64"),
        ("cloud", "6.1.0-55-cloud-arm64"),
        ("6x1", CLOUD),
        ("!", CLOUD),
        ("", PC),
    ],
)
def test_pattern_does_not_mean_release(pattern: str, release: str) -> None:
    assert not matches(pattern, release)


@given(st.text(max_size=20), st.text(max_size=20))
def test_any_pattern_and_release_have_an_answer(pattern: str, release: str) -> None:
    assert matches(pattern, release) in (True, False)


def test_metapackages_are_not_complete_releases() -> None:
    names = ["cloud-amd64", "6.12-cloud-amd64", "6.12.117+deb12-cloud-amd64", PC]
    assert [name for name in names if is_complete(name)] == names[2:]


# Debian Policy §5.6.12's own examples among them, oldest first.
OLD_TO_NEW = [
    "6.1~~",
    "6.1~~a",
    "6.1~",
    "6.1",
    "6.1a",
    "6.1+deb12",
    "6.1.0-0.deb11.21-cloud-amd64",
    "6.1.0-5-cloud-amd64",
    "6.1.0-55-cloud-amd64",
    "6.9.7+bpo-cloud-amd64",
    "6.12.9-amd64",
    "6.12.117-pykvm",
    "6.12.117+deb12-cloud-amd64",
    "6.12.117+deb13-cloud-amd64",
    "10.0.0",
]


def test_releases_sort_as_debian_sorts_versions() -> None:
    shuffled = random.Random(1).sample(OLD_TO_NEW, len(OLD_TO_NEW))
    assert sorted(shuffled, key=age_key) == OLD_TO_NEW


@given(st.text(max_size=20), st.text(max_size=20))
def test_any_two_releases_compare(left: str, right: str) -> None:
    assert (age_key(left) < age_key(right)) + (age_key(left) > age_key(right)) <= 1
