from __future__ import annotations

import re
import tarfile
from pathlib import Path

import pytest
from fake_apt import FakeApt

from pykvm import cache
from pykvm.boot import kernel_build, kernels
from pykvm.errors import ConfigError, HostError

# make and merge_config.sh, as far as the build can tell. `lose` is an option Kconfig refuses.
MAKE = r"""#!/bin/sh
here=$(dirname "$0")
for word; do case $word in O=*) out=${word#O=} ;; esac; done
echo "make $*" >> $here/make-log
[ -z "$MAKEFLAGS" ] || exit 3
case " $* " in
*" tinyconfig "*) mkdir -p $out; echo "CONFIG_TINY=y" > $out/.config ;;
*" olddefconfig "*)
    if [ -e $here/lose ]; then
        grep -v "$(cat $here/lose)" $out/.config > $out/new
        mv $out/new $out/.config
    fi ;;
*" bzImage "*)
    echo "  CC      init/main.o"
    echo "  AS      arch/x86/entry.o"
    echo "  LD      vmlinux"
    [ ! -e $here/fail ] || { echo "main.c:1:1: error: no"; echo "make: *** Error 1"; exit 2; }
    mkdir -p $out/arch/x86/boot $out/include/config
    echo image > $out/arch/x86/boot/bzImage
    echo elf > $out/vmlinux
    echo map > $out/System.map
    echo 6.12.117-pykvm > $out/include/config/kernel.release ;;
esac
"""
MERGE = r"""#!/bin/sh
# merge_config.sh -m -Q -O OUTPUT CONFIG FRAGMENT...
out=$4; shift 5
for fragment; do
    sed -n 's/^\(CONFIG_[A-Z0-9_]*\)=.*/\1/p' "$fragment" > $out/names
    grep -vFf $out/names $out/.config > $out/rest || :
    cat $out/rest "$fragment" > $out/.config
done
"""


@pytest.fixture
def make(apt: FakeApt, monkeypatch: pytest.MonkeyPatch) -> FakeApt:
    """All that a build needs, beside the scripted apt."""
    for name in kernel_build.PROGRAMS:
        if name != "tar":
            (apt.here / name).write_text(MAKE if name == "make" else "#!/bin/sh\n")
            (apt.here / name).chmod(0o755)
    monkeypatch.delenv("MAKEFLAGS", raising=False)
    return apt


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "linux-source-6.12"
    merge = tree / "scripts/kconfig/merge_config.sh"
    merge.parent.mkdir(parents=True)
    merge.write_text(MERGE)
    merge.chmod(0o755)
    (tree / "Kconfig").touch()
    return tree


@pytest.fixture
def packaged(make: FakeApt, tree: Path) -> FakeApt:
    """`tree` as Debian's source package."""
    with tarfile.open(make.here / "source.tar", "w") as archive:
        archive.add(tree, tree.name)
    make.know("linux-source-6.1", "linux-source-6.12", "linux-source")
    make.tell("linux-source-6.12.show", "Size: 1000\nVersion: 6.12.117-1\n")
    return make


def test_a_built_kernel_is_in_the_cache_with_its_symbols(make: FakeApt, tree: Path) -> None:
    kernel = kernel_build.build(str(tree))
    assert kernels.installed() == [kernel]
    assert (kernel.name, kernel.modules) == ("6.12.117-pykvm", None)
    assert kernel.image.read_text() == "image\n"
    assert kernel.vmlinux is not None
    assert kernel.vmlinux.read_text() == "elf\n"
    assert kernel.config is not None
    assert "CONFIG_VIRTIO_BLK=y" in kernel.config.read_text()


def test_the_tree_is_left_as_it_was(make: FakeApt, tree: Path) -> None:
    before = sorted(tree.rglob("*"))
    kernel_build.build(str(tree))
    assert sorted(tree.rglob("*")) == before


def test_jobs_reach_make(make: FakeApt, tree: Path) -> None:
    kernel_build.build(str(tree), jobs=7)
    assert "-j7 bzImage vmlinux" in (make.here / "make-log").read_text()


def test_progress_counts_files_compiled(make: FakeApt, tree: Path) -> None:
    seen: list[tuple[int, int]] = []
    kernel_build.build(str(tree), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 0), (2, 0)]


def test_options_the_kernel_refuses_are_named(make: FakeApt, tree: Path) -> None:
    make.tell("lose", "CONFIG_VIRTIO_FS=")
    notes: list[str] = []
    kernel_build.build(str(tree), note=notes.append)
    assert "this kernel does not take over: CONFIG_VIRTIO_FS=y" in notes


def test_an_own_fragment_has_the_last_word(make: FakeApt, tree: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.config"
    own.write_text("CONFIG_NR_CPUS=4\nCONFIG_OWN=y\n")
    notes: list[str] = []
    kernel = kernel_build.build(str(tree), config=own, note=notes.append)
    assert kernel.config is not None
    lines = kernel.config.read_text().splitlines()
    assert "CONFIG_OWN=y" in lines
    assert [line for line in lines if "NR_CPUS=" in line] == ["CONFIG_NR_CPUS=4"]
    assert not any("does not take over" in note for note in notes)


def test_the_flags_of_an_outer_make_stay_out(
    make: FakeApt, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAKEFLAGS", "--jobserver-auth=3,4")
    assert kernel_build.build(str(tree)).name == "6.12.117-pykvm"


def test_a_build_that_fails_names_the_error_and_the_log(make: FakeApt, tree: Path) -> None:
    make.tell("fail")
    log = cache.cache_dir() / kernel_build.LOG
    with pytest.raises(HostError, match=re.escape(f"main.c:1:1: error: no; see {log}")):
        kernel_build.build(str(tree))
    assert kernels.installed() == []
    assert list((cache.cache_dir() / "build").iterdir()) == []
    assert "  CC      init/main.o" in log.read_text()


def test_what_a_killed_build_left_goes_with_the_next(make: FakeApt, tree: Path) -> None:
    left = cache.cache_dir() / "build/tmp1234/out"
    left.mkdir(parents=True)
    kernel_build.build(str(tree))
    assert list((cache.cache_dir() / "build").iterdir()) == []


def test_the_newest_source_package_is_built(packaged: FakeApt) -> None:
    seen: list[tuple[int, int]] = []
    kernel = kernel_build.build(progress=lambda done, total: seen.append((done, total)))
    assert kernel.name == "6.12.117-pykvm"
    assert "download linux-source-6.12" in packaged.asked()
    assert seen == [(255, 1000), (1000, 1000), (1, 0), (2, 0)]


@pytest.mark.parametrize("source", ["6.12", "linux-source-6.12"])
def test_a_source_package_can_be_named(packaged: FakeApt, source: str) -> None:
    kernel_build.build(source)
    assert "download linux-source-6.12" in packaged.asked()


def test_a_source_package_is_downloaded_once(packaged: FakeApt) -> None:
    kernel_build.build()
    packaged.forget()
    kernel_build.build()
    assert "apt-get" not in packaged.asked()


def test_a_newer_source_package_replaces_the_old(packaged: FakeApt) -> None:
    kernel_build.build()
    packaged.tell("linux-source-6.12.show", "Size: 1000\nVersion: 6.12.118-1\n")
    kernel_build.build()
    kept = [path.name for path in (cache.cache_dir() / "sources").iterdir()]
    assert kept == ["linux-source-6.12_6.12.118-1.deb"]


def test_a_source_package_in_the_cache_serves_offline(packaged: FakeApt) -> None:
    kernel_build.build()
    packaged.know()
    packaged.tell("offline")
    assert kernel_build.build().name == "6.12.117-pykvm"
    assert kernel_build.build("6.12").name == "6.12.117-pykvm"


def test_a_source_package_that_is_not_there_is_the_users_error(packaged: FakeApt) -> None:
    with pytest.raises(ConfigError, match=r"linux-source-5\.10; .* packaged are 6\.1, 6\.12$"):
        kernel_build.build("5.10")


def test_a_package_without_a_tree_is_an_error(packaged: FakeApt) -> None:
    (packaged.here / "source.tar").write_bytes(b"not an archive")
    with pytest.raises(HostError, match="has no kernel source tree"):
        kernel_build.build()


def test_missing_programs_are_named_with_the_line_that_installs_them(
    make: FakeApt, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(make.here))
    make.untell("flex")
    make.untell("xz")
    with pytest.raises(HostError, match=r"apt-get install flex tar xz-utils$"):
        kernel_build.build(str(tree))


def test_missing_headers_are_named(make: FakeApt, tree: Path) -> None:
    make.tell("gcc", '#!/bin/sh\ncase "$*" in *gelf.h*) exit 1 ;; esac\n')
    with pytest.raises(HostError, match=r"apt-get install libelf-dev$"):
        kernel_build.build(str(tree))


def test_no_jobs_is_the_users_error() -> None:
    with pytest.raises(ConfigError, match="--jobs: 0"):
        kernel_build.build(jobs=0)


def test_a_fragment_that_cannot_be_read_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*nosuch"):
        kernel_build.build(config=tmp_path / "nosuch")


def test_a_directory_that_is_no_kernel_tree_is_the_users_error(
    make: FakeApt, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="is not a kernel source tree"):
        kernel_build.build(str(tmp_path))


def test_every_line_of_the_fragment_is_an_option_or_a_comment() -> None:
    lines = kernel_build._fragment().read_text().splitlines()
    strange = [line for line in lines if line and not line.startswith(("#", "CONFIG_"))]
    assert strange == []
    options = [line for line in lines if "CONFIG_" in line]
    assert len(kernel_build._options(["\n".join(lines)])) == len(options)
