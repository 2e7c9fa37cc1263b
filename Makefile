# The README's commands. Everything is set up by the project's own files, in .venv.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
RELEASE := .venv-release

.PHONY: setup system demo test lint pytest fuzz fuzz-quick benchmarks example measurements lock audit release-check clean

setup: $(VENV)/.installed

# Nothing is installed whose hash is not in requirements/. The CPU build of torch is taken where pip finds it; the
# default build for Linux needs CUDA's libraries.
$(VENV)/.installed: pyproject.toml $(wildcard requirements/*.txt)
	@echo "setting up $(VENV): a minute or two"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes --no-deps --requirement requirements/cpu.txt 2>/dev/null || \
		echo "pip finds no CPU build of torch for this machine; taking the default one"
	$(BIN)/pip install --quiet --require-hashes --no-deps --requirement requirements/setup.txt
	$(BIN)/python -c 'import torch' 2>/dev/null || \
		$(BIN)/pip install --quiet --require-hashes --no-deps --requirement requirements/cuda.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# What the tests need of the system. CI runs it first.
system:
	scripts/install-strace

demo: setup
	$(BIN)/splitveil demo --out runs/demo

test: lint pytest fuzz-quick

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# In the order of their names: by the number of their tests the files with the longest ones would come last, alone.
pytest: setup
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

# Ten million cases, about an hour on two cores; Ctrl-C, and it goes on at the next call. Rows go to tests/fuzz/runs.csv.
fuzz: setup
	$(BIN)/python tests/fuzz mix --cases 10000000 --record

# A million, about two minutes.
fuzz-quick: setup
	$(BIN)/python tests/fuzz mix --cases 1000000

benchmarks: setup
	$(BIN)/python benchmarks/factorise.py --out benchmarks/results/factorise.json
	$(BIN)/python benchmarks/training.py --out benchmarks/results/training.json
	$(BIN)/python benchmarks/adversaries.py --out benchmarks/results/adversaries.json
	$(BIN)/python benchmarks/edge.py --out benchmarks/results/edge.json
	$(BIN)/python benchmarks/serving.py --out benchmarks/results/serving.json
	$(BIN)/python benchmarks/attacks.py --out benchmarks/results/attacks.json

# A residual network of one's own, see docs/own-model.md: prints what is measured, and keeps it in runs/own/report.json.
example: export OMP_NUM_THREADS = 1
example: setup
	rm -rf runs/own
	$(BIN)/python examples/own_residual_network.py --out runs/own
	for m in 32 8; do for method in server-aware distilled; do \
		rm -rf runs/own/run && \
		$(BIN)/splitveil obfuscate runs/own/model.pt2 --split layer1 --images runs/own/images --m $$m \
			--method $$method --classes runs/own/classes.txt --out runs/own/run && \
		$(BIN)/python examples/own_residual_network.py --out runs/own --check runs/own/run || exit; \
	done; done

measurements: setup example
	mkdir -p results/own-model && cp runs/own/report.json results/own-model/report.json
	$(BIN)/splitveil reproduce tuning
	$(BIN)/splitveil reproduce weights
	$(BIN)/splitveil reproduce ablation
	$(BIN)/splitveil reproduce all
	$(BIN)/splitveil reproduce frontier
	$(BIN)/python benchmarks/tables.py

$(RELEASE)/.installed: requirements/release.txt
	$(PYTHON) -m venv $(RELEASE)
	$(RELEASE)/bin/pip install --quiet --require-hashes --no-deps --requirement requirements/release.txt
	touch $@

# requirements/*.txt from pyproject.toml and constraints.txt.
lock: $(RELEASE)/.installed
	PATH="$(CURDIR)/$(RELEASE)/bin:$$PATH" $(RELEASE)/bin/python scripts/lock.py

# Known vulnerabilities of what is pinned.
audit: $(RELEASE)/.installed
	PATH="$(CURDIR)/$(RELEASE)/bin:$$PATH" $(RELEASE)/bin/python scripts/audit.py

# dist/: wheel, source distribution and bill of materials, checked as an index and a user would see them.
release-check: setup $(RELEASE)/.installed
	PATH="$(CURDIR)/$(RELEASE)/bin:$$PATH" $(RELEASE)/bin/python scripts/release_check.py $(BIN)/python

clean:
	rm -rf $(VENV) $(RELEASE) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
