"""What the modules that ``pykvm boot`` loads have in place of slow parts of the standard library.

Reached from all of them. To import typing, dataclasses, re and argparse takes longer than to make a
virtual machine and run its first instruction, so that way does without. mypy believes any name
TYPE_CHECKING to be true, and sees the real classes: NamedTuple where `Record` stands.
"""

from __future__ import annotations

__all__ = ["TYPE_CHECKING", "IntEnum", "IntFlag", "Record"]

TYPE_CHECKING = False

if TYPE_CHECKING:
    from enum import IntEnum, IntFlag
    from typing import NamedTuple as Record
else:

    class IntFlag:
        """Names for bits: plain integers. enum's members are objects, each made at import."""

        def __new__(cls, value):
            return value

    class IntEnum(IntFlag):
        """Names for values, the same way."""

    class Record(tuple):
        """A tuple whose fields have the names annotated in the subclass, with their defaults.

        As in dataclasses, `__post_init__` may refuse the values.
        """

        def __init_subclass__(cls):
            cls._fields = tuple(cls.__annotations__)
            cls._field_defaults = {n: getattr(cls, n) for n in cls._fields if n in cls.__dict__}
            for index, name in enumerate(cls._fields):
                setattr(cls, name, property(lambda self, index=index: self[index]))

        def __new__(cls, *values, **named):
            if named or len(values) != len(cls._fields):
                fields = dict(zip(cls._fields, values, strict=False))
                if fields.keys() & named.keys() or len(fields) < len(values):
                    raise TypeError(f"{cls.__name__}: too many values")
                fields = cls._field_defaults | fields | named
                if fields.keys() != set(cls._fields):
                    wrong = ", ".join(sorted(fields.keys() ^ set(cls._fields)))
                    raise TypeError(f"{cls.__name__}: missing or unknown: {wrong}")
                values = [fields[name] for name in cls._fields]
            self = super().__new__(cls, values)
            self.__post_init__()
            return self

        def __post_init__(self):
            pass

        def __getnewargs__(self):
            return tuple(self)

        def __repr__(self):
            fields = zip(self._fields, self, strict=True)
            return f"{type(self).__name__}({', '.join(f'{n}={v!r}' for n, v in fields)})"

        def _replace(self, **changes):
            return type(self)(**dict(zip(self._fields, self, strict=True)) | changes)
