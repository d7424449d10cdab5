"""What the modules that ``pykvm boot`` loads have in place of slow parts of the standard library.

Reached from all of them. To import typing, enum, dataclasses, re and argparse takes longer than to
make a virtual machine and run its first instruction, so that way does without. mypy believes any
name TYPE_CHECKING to be true, and sees the real things: NamedTuple where `Record` stands.
"""

from __future__ import annotations

__all__ = ["TYPE_CHECKING", "Enum", "IntEnum", "IntFlag", "Record", "signal"]

TYPE_CHECKING = False

if TYPE_CHECKING:
    import signal
    from enum import Enum, IntEnum, IntFlag
    from typing import NamedTuple as Record
else:
    import _signal as signal  # signal itself, before it makes enums of its constants
    from operator import itemgetter

    class _Members(type):
        def __iter__(cls):
            return iter(cls._members.values())

    class Enum(metaclass=_Members):
        """A fixed set of objects, each with a name and a value; found by value, iterable."""

        def __init_subclass__(cls):
            cls._members = {}
            for name, value in list(vars(cls).items()):
                if not name.startswith("_"):
                    member = object.__new__(cls)
                    member.name, member.value = name, value
                    cls._members[value] = member
                    setattr(cls, name, member)

        def __new__(cls, value):
            if value not in cls._members:
                raise ValueError(f"{value!r} is not a {cls.__name__}")
            return cls._members[value]

        def __reduce__(self):
            return type(self), (self.value,)

        def __repr__(self):
            return f"{type(self).__name__}.{self.name}"

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
            cls._names = frozenset(cls._fields)
            cls._field_defaults = {n: getattr(cls, n) for n in cls._fields if n in cls.__dict__}
            for index, name in enumerate(cls._fields):
                setattr(cls, name, property(itemgetter(index)))

        def __new__(cls, *values, **named):
            if named or len(values) != len(cls._fields):
                count = len(values)
                given = cls._field_defaults | named
                values += tuple([given[name] for name in cls._fields[count:] if name in given])
                twice = named and any(name in named for name in cls._fields[:count])
                if len(values) != len(cls._fields) or twice or not named.keys() <= cls._names:
                    raise TypeError(f"{cls.__name__} has other fields: {', '.join(cls._fields)}")
            self = super().__new__(cls, values)
            self.__post_init__()
            return self

        # From an iterable, without __post_init__.
        _make = classmethod(tuple.__new__)

        def __post_init__(self):
            pass

        def __getnewargs__(self):
            return tuple(self)

        def __repr__(self):
            fields = zip(self._fields, self, strict=True)
            return f"{type(self).__name__}({', '.join(f'{n}={v!r}' for n, v in fields)})"

        def _replace(self, **changes):
            values = [changes.pop(n, v) for n, v in zip(self._fields, self, strict=True)]
            return type(self)(*values, **changes)
