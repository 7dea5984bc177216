# The project's commands. `make demo` and `make test` each need nothing but Python 3.11 (with venv) and make.
# XV6=DIR adds the guests of an xv6-public tree that you have built to the tests and the benchmarks:  make test bench XV6=DIR
# GUESTS=DIR names the folder of downloaded Debian guests (default: guests/, see tools/fetch_guests.py).

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/installed

ifdef XV6
export XV6
endif
ifdef GUESTS
export VMM_GUESTS := $(GUESTS)
endif

.PHONY: help setup demo test check lint types unit bench fuzz fuzz-pv isolation eight torture soak guests clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo    set up, boot two bundled kernels under binary translation, and compare the techniques'
	@echo 'make test    set up, then run all tests (XV6=DIR adds xv6)'
	@echo 'make check   ruff, mypy --strict and the unit tests: before each commit'
	@echo 'make fuzz    generated guests on the bare machine and under bt, until Ctrl-C (FUZZ="--programs 20000" ends it)'
	@echo 'make isolation   500 wild guests beside others on one machine'
	@echo 'make eight   eight VMs with shares of their own for 30 s of CPU time, each running bundled kernels (EIGHT=300 for longer)'
	@echo 'make fuzz-pv random hypercalls, and guests that make them, for an hour (FUZZ="--minutes 5": for five minutes)'
	@echo 'make torture     kill -9 of a writer of disks and snapshots at 1,000 moments'
	@echo 'make soak        Linux under binary translation for 30 minutes, busy all the time (SOAK=120 for two)'
	@echo 'make bench   the measurements behind docs/PERFORMANCE.md (XV6=DIR adds xv6)'
	@echo 'make guests  build the bundled kernels again (needs gcc -m32)'
	@echo 'make clean   remove .venv and all caches'

setup: $(STAMP)

# A venv that stopped half-way has no stamp, so it is made again.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo '$(PYTHON): Python 3.11 or later is needed; name one with make PYTHON=...' >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo '$(PYTHON): no venv and ensurepip; on Debian: apt-get install python3-venv (or name another with make PYTHON=...)' >&2; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	@$(PY) -m compileall -q bt vmm tools guest_kernels  # where Python is told to keep no bytecode, each start would compile all again
	@touch $@

demo: setup
	$(VENV)/bin/vmm run hello
	$(VENV)/bin/vmm run rings --stats
	$(VENV)/bin/vmm compare --short --rounds 1

test: setup
	$(PY) -m pytest -n 2 --dist worksteal -rs

# The three parts side by side: the whole is to stay under 20 s on two cores.
check: setup
	@$(MAKE) --no-print-directory --output-sync=target --jobs=2 lint types unit

lint: setup
	$(VENV)/bin/ruff check .

types: setup
	$(VENV)/bin/mypy --strict $(wildcard bt vmm tools guest_kernels)

unit: setup
	$(PY) -m pytest -q -rs -m 'not slow' $(wildcard tests/unit) tests/test_*.py

fuzz-pv: setup
	$(PY) -m tests.machine.hypercall_fuzz $(FUZZ)

fuzz: setup
	$(PY) -m tests.oracle.fuzz $(FUZZ)

torture: setup
	$(PY) -m tests.machine.torture --moments 1000

isolation: setup
	$(PY) -m tests.guests.isolation 0 500

eight: setup
	$(PY) -m tests.guests.eight $(or $(EIGHT),30)

soak: setup
	$(PY) -m tests.guests.soak $(or $(SOAK),1800)

bench: setup
	$(PY) -m pytest -q -rs --timeout=1800 -o python_files='bench_*.py' tests/bench --write

guests:
	$(MAKE) -C guest_kernels

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
