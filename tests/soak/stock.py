"""Stock kernels, and programs of the host's, that several tests of this folder use."""

from __future__ import annotations

import shutil

LIMIT_S = 850  # of one boot in the lab
KERNELS = ("6.12-cloud", "6.1-cloud", "6.1-generic")
PATH = "/usr/sbin:/sbin:/usr/bin:/bin"


def tool(name: str) -> str:
    found = shutil.which(name, path=PATH)
    assert found, f"needs {name}: make host-for-soak installs it"
    return found
