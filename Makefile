# The two commands a newcomer needs: make demo and make test. Everything else is for developers.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TEST_PACKAGES := fio attr acl postgresql sqlite3 iproute2 openssl strace etcd-server xfsprogs nftables \
	qemu-system-x86 busybox-static qemu-guest-agent libvirt-daemon libvirt-clients libvirt-daemon-driver-qemu
DEMO_PACKAGES := qemu-system-x86 busybox-static
KERNEL_PACKAGE := linux-image-cloud-amd64
BENCH_PACKAGES := fio glusterfs-server glusterfs-client qemu-system-x86 qemu-utils qemu-block-extra qemu-system-common gcc libc6-dev openssl iproute2
SOURCES := pyproject.toml $(shell find hotpair actors cluster replication hyperv -name '*.py')

.PHONY: demo test lint types unit packages bench-packages bench bench-failover test-long torture torture-servers mutants code-mutants protocol-mutants clean

# The main job, shown on this machine: a power cut, the take-over, the return, a swap.
demo: $(VENV)/installed $(VENV)/kernel
	$(BIN)/hotpair demo --kernel $(VENV)/kernel $(DEMO_ARGUMENTS)

test: packages lint types unit

# Debian packages, where that is possible: root, and apt. The tests that need one say so when it is missing.
packages: $(VENV)/packages
$(VENV)/packages: $(VENV)/installed
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  missing=$$(for p in $(TEST_PACKAGES); do dpkg -s $$p >/dev/null 2>&1 || echo $$p; done); \
	  if [ -n "$$missing" ]; then apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; fi; \
	else echo "not root, or no apt: system packages are not installed ($(TEST_PACKAGES))"; fi
	@touch $@

# What the demonstration's guest is made of: QEMU, busybox, and a kernel that is unpacked here and installed nowhere.
# Where they cannot be had the demonstration says so, and runs a plain process.
$(VENV)/kernel: | $(VENV)/created
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then ( set -e; \
	  apt-cache show $(KERNEL_PACKAGE) >/dev/null 2>&1 || apt-get update -qq; \
	  missing=$$(for p in $(DEMO_PACKAGES); do dpkg -s $$p >/dev/null 2>&1 || echo $$p; done); \
	  [ -z "$$missing" ] || DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; \
	  kernel=$$(apt-cache depends $(KERNEL_PACKAGE) | sed -n 's/.*Depends: \(linux-image-[^ ]*\)/\1/p' | head -n 1); \
	  rm -rf $@.part; mkdir $@.part; cd $@.part; \
	  apt-get download -qq $$kernel; dpkg -x linux-image-*.deb .; rm linux-image-*.deb; \
	  mv $(CURDIR)/$@.part $(CURDIR)/$@ ) || echo "no guest for the demonstration: its packages cannot be had"; \
	else echo "no guest for the demonstration: not root, or no apt ($(DEMO_PACKAGES), $(KERNEL_PACKAGE))"; fi

bench-packages: $(VENV)/installed
	@missing=$$(for p in $(BENCH_PACKAGES); do dpkg -s $$p >/dev/null 2>&1 || echo $$p; done); \
	if [ -n "$$missing" ]; then apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; fi

# Debian splits venv from python; without it the environment is made with what there is
$(VENV)/created:
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { apt-get update -qq && apt-get install -y -qq python3-venv python3-pip; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check "setuptools>=77,<85" wheel
	@touch $@

$(VENV)/dependencies: pyproject.toml | $(VENV)/created
	$(BIN)/pip install -q --disable-pip-version-check --no-build-isolation ".[dev]"
	@touch $@

# The package itself, installed and not linked: what the tests and mypy see is what users get
$(VENV)/installed: $(SOURCES) | $(VENV)/created $(VENV)/dependencies
	$(BIN)/pip install -q --disable-pip-version-check --no-build-isolation --no-deps --force-reinstall .
	@rm -rf build *.egg-info
	@touch $@

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed
	cd $(VENV) && bin/mypy --config-file ../pyproject.toml -p hotpair

# The compiled tests are kept: each worker would compile all of them
unit test-long: export PYTHONDONTWRITEBYTECODE :=

unit: $(VENV)/installed packages
	$(BIN)/pytest -n 6 --dist worksteal

# What the tests above do in a smaller number, in its full size
test-long: $(VENV)/installed packages
	$(BIN)/pytest -n 3 --dist worksteal -m long -o timeout=1800 $(TEST_ARGUMENTS)

bench: bench-packages
	$(BIN)/python -m bench $(BENCH_ARGUMENTS)

# What two servers cost, and how fast they fail over
bench-failover: $(VENV)/installed packages
	$(BIN)/python -m bench.failover $(BENCH_ARGUMENTS)

torture: $(VENV)/installed packages
	$(BIN)/pytest tests/torture.py -m long -o timeout=86400 $(TORTURE_ARGUMENTS)

torture-servers: $(VENV)/installed packages
	$(BIN)/pytest tests/torture_servers.py -m long -o timeout=1800 -s $(TORTURE_ARGUMENTS)

# Bugs made on purpose, and what notices each: tests those of the mirror, simulated lives those of the protocol
mutants: code-mutants protocol-mutants

code-mutants: $(VENV)/installed packages
	$(BIN)/python tests/mutants.py $(MUTANT_ARGUMENTS)

protocol-mutants: $(VENV)/installed
	$(BIN)/python -P -c 'import sys; sys.path.append("."); from tests.protocol_mutants import main; sys.exit(main(sys.argv[1:]))' \
	  $(MUTANT_ARGUMENTS)

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
