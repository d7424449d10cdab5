"""A scripted apt-get, apt-cache and dpkg-deb, so that tests need neither Debian nor a network.

Reached from conftest.py beside it, which puts it first on PATH.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

# What it is told lies in files beside it: `names` (a package per line), `PACKAGE.show` (apt-cache
# show), `new-names` (what update brings), `offline`, `broken` (packages cannot be unpacked),
# `source.tar` (packages hold this kernel source).
APT = """\
#!/bin/sh
here={here}
echo "$(basename "$0") $*" >> $here/log
for last; do :; done
case " $* " in
*" pkgnames "*) cat $here/names 2>/dev/null ;;
*" show "*) cat $here/$last.show 2>/dev/null || echo "Size: 1000" ;;
*" update "*)
    if [ -e $here/offline ]; then echo "W: Failed to fetch: no route" >&2; exit 0; fi
    [ ! -e $here/new-names ] || mv $here/new-names $here/names ;;
*" download "*)
    if [ -e $here/offline ]; then echo "E: Failed to fetch: no route" >&2; exit 100; fi
    fd=${{*#*Status-Fd=}}
    printf 'dlstatus:1:25.5:one\\ndlstatus:1:100.0:one\\n' > /dev/fd/"${{fd%% *}}"
    echo "$last" > "${{last}}_1_all.deb" ;;
*" --extract "*)
    package=$(cat "$2")
    if [ -e $here/broken ]; then mkdir -p "$3/boot"; echo "E: short read" >&2; exit 2; fi
    if [ -e $here/source.tar ]; then
        mkdir -p "$3/usr/src"
        cp $here/source.tar "$3/usr/src/linux-source-6.12.tar.xz"
        exit
    fi
    case $package in linux-headers-*)
        mkdir -p "$3/usr/src/$package"
        echo "include /usr/src/linux-headers-common/Makefile" > "$3/usr/src/$package/Makefile"
        exit ;;
    esac
    release=${{package#linux-image-}}
    mkdir -p "$3/boot" "$3/lib/modules/$release"
    [ "$package" = linux-image-1.2.3-empty ] || echo "$package" > "$3/boot/vmlinuz-$release" ;;
esac
"""


class FakeApt:
    """Writes what the scripted apt is told, and reads what it was asked."""

    def __init__(self, here: Path) -> None:
        self.here = here

    def tell(self, name: str, text: str = "") -> None:
        (self.here / name).write_text(textwrap.dedent(text))

    def untell(self, name: str) -> None:
        (self.here / name).unlink()

    def know(self, *packages: str) -> None:
        self.tell("names", "\n".join(packages))

    def asked(self) -> str:
        log = self.here / "log"
        return log.read_text() if log.exists() else ""

    def forget(self) -> None:
        self.tell("log")
