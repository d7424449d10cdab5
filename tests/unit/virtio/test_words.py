"""How the value of an option is taken apart."""

from __future__ import annotations

import pytest

from pykvm.errors import ConfigError
from pykvm.virtio.config.words import number, split

USAGE = "--thing FIRST[,on][,count=N]"


def parts(text: str) -> tuple[str, dict[str, object]]:
    return split(text, USAGE, flags=("on",), values={"count": number})


def test_flags_and_values_are_found_by_name() -> None:
    assert parts("a,on,count=3") == ("a", {"on": True, "count": 3})


def test_a_comma_written_twice_is_meant() -> None:
    assert parts("a,,b,on") == ("a,b", {"on": True})


@pytest.mark.parametrize("word", ["off", "on=1", "count", "count=", "count=x", "count=-1", ""])
def test_a_word_that_does_not_fit_is_refused_with_the_usage(word: str) -> None:
    with pytest.raises(ConfigError, match=r"^--thing: .*write --thing FIRST"):
        parts(f"a,{word}")
