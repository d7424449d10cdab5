"""``python -m pykvm``: the same as the `pykvm` command."""

from pykvm.cli import script

script()
