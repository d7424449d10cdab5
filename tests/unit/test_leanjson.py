from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm import leanjson

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=30
)
TEXTS = (
    *("", " ", "{", "[1,]", "[1] 2", "1 ", "\t[1]\n", '{"a":1,}', '{"a" : NaN}', "-Infinity"),
    *('"\\ud800"', '"\x01"', "01", "1e999", "nul", "{1:2}", '{"a":1}\x00', "\ufeff1"),
)


@given(VALUES)
def test_values_are_written_and_read_as_by_json(value: object) -> None:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    assert leanjson.dumps(value) == text
    assert leanjson.loads(text.encode()) == json.loads(text)
    spread = json.dumps(value, indent=2)
    assert leanjson.loads(spread.encode()) == json.loads(spread)


@given(st.sampled_from(TEXTS) | st.text(alphabet='{}[]",:0123456789.eE+-truefalsn\\u \n\x00é'))
def test_other_texts_are_refused_as_by_json(text: str) -> None:
    try:
        wanted = json.loads(text)
    except ValueError:
        with pytest.raises(ValueError):  # noqa: PT011 - json's has many messages
            leanjson.loads(text.encode())
    else:
        assert repr(leanjson.loads(text.encode())) == repr(wanted)


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(ValueError, match="utf-8"):
        leanjson.loads(b'"\xff"')


def test_too_deep_a_nesting_is_refused() -> None:
    with pytest.raises(RecursionError):
        leanjson.loads(b"[" * 100_000)


def test_what_json_cannot_have_is_refused() -> None:
    with pytest.raises(TypeError):
        leanjson.dumps({"a": b"bytes"})


def test_without_the_c_code_json_itself_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leanjson, "_json", False)
    assert leanjson.loads(b' {"b": [1], "a": null} ') == {"b": [1], "a": None}
    assert leanjson.dumps({"b": [1], "a": None}) == '{"a":null,"b":[1]}'
