# The README's two commands. Everything they need they fetch, once: run them again and again.
#
#   make demo    boot a Linux guest to its init, in the lab where this host's KVM cannot
#   make test    check the code's form and run every test: what CI runs
#   make fuzz    search for inputs that break the C core, FUZZ_S seconds a target (default: 60)
#   make soak    the tests that take hours; SOAK names one file or several of tests/soak
#   make docs    write the documentation as a site to build/site
#   make clean   remove what both made in this folder

PYTHON ?= python3
BIN := .venv/bin
# By a path in a .pth file. setuptools' usual way, an import hook of Python, would take a quarter of the
# time that a `pykvm boot` needs to its guest's first instruction.
EDITABLE := $(BIN)/pip install -q --config-settings editable_mode=compat -e

# What pip has to build again when it changes.
BUILD_INPUTS := setup.py pyproject.toml $(filter-out csrc/_core.c, $(wildcard csrc/*)) \
                $(wildcard guests/*.py guests/[!_]*/*)
C_FILES := $(filter-out csrc/_core.c, $(wildcard csrc/*.[ch] guests/*/*.[ch] tests/c/*.[ch] tests/guests/*.c tests/linux/*.c bench/*/*.[ch]))

# What must be there, and the Debian package that brings it: COMMAND-OR-FILE=PACKAGE.
python_path = $(shell $(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("$(1)"))')
DEMO_NEEDS := gcc=gcc /usr/include/stdio.h=libc6-dev qemu-system-x86_64=qemu-system-x86 \
              $(call python_path,include)/Python.h=python3-dev \
              $(call python_path,stdlib)/ensurepip/__init__.py=python3-venv
TEST_NEEDS := clang=clang iasl=acpica-tools cpio=cpio git=git qemu-img=qemu-utils \
              qemu-storage-daemon=qemu-system-common busybox=busybox-static passt=passt gdb=gdb ip=iproute2
SOAK_NEEDS := fio=fio kexec=kexec-tools lspci=pciutils node=nodejs debootstrap=debootstrap mke2fs=e2fsprogs \
              iperf3=iperf3 sfdisk=fdisk mkfs.xfs=xfsprogs mkfs.btrfs=btrfs-progs mkfs.vfat=dosfstools \
              mksquashfs=squashfs-tools dmsetup=dmsetup stress-ng=stress-ng lldb=lldb
FUZZ_NEEDS = $(shell clang -print-resource-dir)/lib/linux/libclang_rt.fuzzer-x86_64.a=libclang-rt-dev

.PHONY: demo test fuzz soak docs clean host-for-demo host-for-test host-for-soak host-for-fuzz

demo: .venv/for-demo
	$(BIN)/pykvm boot --lab -c 2

test: .venv/for-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(C_FILES)
	$(BIN)/pytest -n 2 --ignore=tests/linux
	$(BIN)/pytest tests/linux

fuzz: .venv/for-test host-for-fuzz
	$(BIN)/python tests/c/fuzz.py $(or $(FUZZ_S),60)

soak: .venv/for-soak host-for-soak
	$(BIN)/pytest $(or $(SOAK),tests/soak)

docs: .venv/for-docs
	$(BIN)/mkdocs build --quiet --strict

clean:
	rm -rf .venv build *.egg-info pykvm/*.so pykvm/guests csrc/_core.c
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache

.venv/for-demo: $(BUILD_INPUTS) | host-for-demo
	$(PYTHON) -m venv .venv
	$(EDITABLE) .
	$(BIN)/python -m compileall -q pykvm  # an editable install does not
	touch $@

.venv/for-test: $(BUILD_INPUTS) | host-for-test
	$(PYTHON) -m venv .venv
	$(EDITABLE) '.[test,lint]'
	$(BIN)/python -m compileall -q pykvm  # an editable install does not
	touch $@

.venv/for-soak: pyproject.toml | .venv/for-test
	$(EDITABLE) '.[soak]'
	touch $@

.venv/for-docs: pyproject.toml | .venv/for-demo
	$(EDITABLE) '.[docs]'
	touch $@

host-for-demo:
	@$(call install_missing,$(DEMO_NEEDS))

host-for-test:
	@$(call install_missing,$(DEMO_NEEDS) $(TEST_NEEDS))

host-for-soak:
	@$(call install_missing,$(SOAK_NEEDS))

host-for-fuzz:
	@$(call install_missing,$(FUZZ_NEEDS))

# virtiofsd is a package of its own since Debian 13 and comes with QEMU before.
define install_missing
missing=; \
for need in $(1); do \
	command -v "$${need%=*}" >/dev/null || [ -e "$${need%=*}" ] || missing="$$missing $${need#*=}"; \
done; \
[ -e /usr/libexec/virtiofsd ] || [ -e /usr/lib/qemu/virtiofsd ] || missing="$$missing virtiofsd"; \
[ -z "$$missing" ] && exit 0; \
if [ "$$(id -u)" != 0 ]; then \
	echo "These Debian packages are missing; install them as root:$$missing" >&2; exit 1; \
fi; \
export DEBIAN_FRONTEND=noninteractive; \
apt-get update -q; \
apt-cache show virtiofsd >/dev/null 2>&1 || missing="$${missing%virtiofsd}"; \
apt-get install -y -q --no-install-recommends $$missing
endef
