# Two commands do all set-up on a fresh machine: `make study` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Without bytecode: one module in five is ever imported, and compiled then.
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check \
	--constraint constraints.txt
# The pip that comes with Python 3.11 takes three times as long to find versions.
VENV_WITH_PIP := $(PYTHON) -m venv $(VENV) && $(PIP) --upgrade pip

# What one process compiles, the others read.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: study test test-fast test-slow test-older-torch lint bench clean system notebooks

study: $(VENV)/.installed
	$(BIN)/isoflop quickstart

# Side by side: the tests take what the linters leave of the cores.
test: $(VENV)/.installed-dev
	$(MAKE) --jobs=2 lint test-fast

test-fast: $(VENV)/.installed-dev
	$(BIN)/pytest -q -n auto --dist worksteal -m "not slow"

# A worker more than cores: a third of the time, tests wait for clusters, signals and leases.
test-slow: $(VENV)/.installed-slow system
	$(BIN)/pytest -q -n $$(($$(nproc) + 1)) -m slow

# What touches torch, with the torch, triton and NumPy of many GPU images. No part of CI: this torch
# is built for GPUs and takes 5 GB (CONTRIBUTING.md).
OLDER := .venv-older-torch
test-older-torch: $(OLDER)/.installed
	PYTHONPATH=.:kernels OMP_NUM_THREADS=1 $(OLDER)/bin/python -m pytest -q -n auto --dist worksteal \
		tests/model tests/families tests/kernels tests/train

$(OLDER)/.installed: constraints.txt
	$(PYTHON) -m venv $(OLDER)
	grep -vE '^(torch|triton|numpy|setuptools)==' constraints.txt > $(OLDER)/constraints.txt
	$(OLDER)/bin/python -m pip install --quiet --no-compile --disable-pip-version-check \
		--constraint $(OLDER)/constraints.txt torch==2.11.0 triton==3.6.0 'numpy<2.4' \
		click filelock hypothesis jinja2 matplotlib pandas pyarrow pydantic pytest pytest-timeout \
		pytest-xdist rich safetensors scipy submitit typing-extensions
	touch $@

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/vulture

# The distribution's packages that slow tests need; without root or apt-get (code 3) those tests skip.
system:
	slurm/dev_cluster/install.sh || [ $$? -eq 3 ]
	slurm/dev_cluster/apt.sh chromium chromedriver -- chromium chromium-driver || [ $$? -eq 3 ]

# Executes every notebook in place, to commit what it shows.
notebooks: $(VENV)/.installed-dev
	$(BIN)/isoflop data prepare synthetic:tiny:0
	cd notebooks && OMP_NUM_THREADS=1 ../$(BIN)/jupyter execute --inplace *.ipynb

# Ratios against a named baseline, printed; never part of the tests.
bench: $(VENV)/.installed-dev
	$(PIP) --editable '.[bench]'
	$(BIN)/python tests/benchmarks/cli_startup.py
	$(BIN)/python tests/benchmarks/files_entered.py
	$(BIN)/python tests/benchmarks/plan_size.py
	$(BIN)/python tests/benchmarks/import_rows.py
	$(BIN)/python -m isoflop_kernels.bench
	$(BIN)/python tests/benchmarks/estimates_cpu.py
	$(BIN)/python tests/benchmarks/memory_cpu.py
	$(BIN)/python tests/benchmarks/tokens_per_s.py
	$(BIN)/python tests/benchmarks/head_memory.py
	$(BIN)/python tests/benchmarks/precision_modes.py
	$(BIN)/python tests/benchmarks/chaos.py
	$(BIN)/python tests/benchmarks/data_throughput.py
	$(BIN)/python tests/benchmarks/recording.py
	$(BIN)/python tests/benchmarks/parametric.py
	$(BIN)/python tests/benchmarks/coverage.py
	$(BIN)/python tests/benchmarks/methods.py
	$(BIN)/python tests/benchmarks/predictions.py
	$(BIN)/python tests/benchmarks/fit_time.py
	$(BIN)/python tests/benchmarks/import_wandb.py
	@if PATH="$$PATH:/usr/sbin" command -v slurmctld >/dev/null; \
	then $(BIN)/python tests/benchmarks/submit_scale.py; fi

$(VENV)/.installed: pyproject.toml constraints.txt
	$(VENV_WITH_PIP)
	$(PIP) --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt
	$(VENV_WITH_PIP)
	$(PIP) --editable '.[data,gpt2,dev]'
	touch $(VENV)/.installed $@

# What only slow tests need is half a gigabyte.
$(VENV)/.installed-slow: $(VENV)/.installed-dev
	$(PIP) --editable '.[hf,jax,wandb]'
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
