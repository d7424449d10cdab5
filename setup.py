"""What pyproject.toml cannot say: the cffi extension, and the guest programs built with it."""

from setuptools import setup

setup(cffi_modules=["csrc/build_ffi.py:ffi"])
