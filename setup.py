"""What pyproject.toml cannot say: the cffi extension, the guest programs, and the wheel's tag."""

import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # pip runs this file without its folder on the path

from guests.build import build_guests, pack_course  # noqa: E402


class BuildExtensionAndGuests(build_ext):
    """Build the guest programs where the extension goes: into the wheel, or beside the sources."""

    def run(self) -> None:
        root = ROOT if self.inplace else Path(self.build_lib)
        build_guests(root / "pykvm" / "guests", force=bool(self.force))
        if not self.inplace:  # beside the sources, the course is read from there
            pack_course(root / "pykvm" / "guests" / "course")
        super().run()


setup(
    cffi_modules=["csrc/build_ffi.py:ffi"],
    cmdclass={"build_ext": BuildExtensionAndGuests},
    # The extension keeps to the stable ABI (cffi sees to that): one wheel for 3.11 and later.
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
