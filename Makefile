# The README's commands. Everything is set up by the project's own files, in .venv.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup system demo test lint pytest benchmarks example measurements clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "setting up $(VENV): a minute or two"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[train,serve,sign,ray,dev]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps nvidia-pytriton  # the Triton binary inside it, for tests
	touch $@

# What the tests need of the system. CI runs it first.
system:
	scripts/install-strace

demo: setup
	$(BIN)/splitveil demo --out runs/demo

test: lint pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# In the order of their names: by the number of their tests the files with the longest ones would come last, alone.
pytest: setup
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

benchmarks: setup
	$(BIN)/python benchmarks/factorise.py --out benchmarks/results/factorise.json
	$(BIN)/python benchmarks/training.py --out benchmarks/results/training.json
	$(BIN)/python benchmarks/adversaries.py --out benchmarks/results/adversaries.json
	$(BIN)/python benchmarks/edge.py --out benchmarks/results/edge.json
	$(BIN)/python benchmarks/serving.py --out benchmarks/results/serving.json

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

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
