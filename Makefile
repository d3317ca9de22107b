# SPDX-License-Identifier: MIT
# Two commands do everything: `make demo` (the main job) and `make test`.
# PYTHON names the interpreter the virtual environment is made from.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# layout.h is generated from the declarations in vscsi/wire.
CORE := $(filter-out %/layout.h,$(wildcard vscsi/ring/core/*.[ch]))
C_FILES := $(CORE) $(wildcard vscsi/bench/figures/*.c tests/fuzz/*.[ch] tests/ring/*.c)

.PHONY: help demo test test-lio fuzz figures lint format venv clean
help: ## what there is to make
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: venv ## a real ext4 image through all three rings, compared and captured (under two minutes)
	@sh scripts/packages.sh demo
	@$(BIN)/python scripts/demo.py

test: venv lint ## everything that proves it: lint, types and all tests, test-lio's among them
	@sh scripts/packages.sh demo test fuzz vm
	$(BIN)/python -m pytest

test-lio: venv ## the tests with LIO alone, on Debian's kernel in QEMU (VSCSI_COVERAGE=FILE: coverage)
	@sh scripts/packages.sh vm
	$(BIN)/python -m pytest tests/lio

fuzz: venv ## the C core against a hostile peer, FUZZ_S=600 seconds a target (docs/fuzzing.md)
	@sh scripts/packages.sh fuzz
	@$(BIN)/python -m tests.fuzz.run

figures: venv ## the figures that the issues name, each beside its limit (docs/performance.md), on a quiet machine
	@sh scripts/packages.sh figures
	@$(BIN)/python -m vscsi.bench.figures --page docs/performance.md

lint: venv ## ruff, mypy --strict, clang-format; the compiler's own warnings are errors in the build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(C_FILES)

format: venv ## rewrite the sources in house style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(C_FILES)

venv: $(VENV)/.ready ## the virtual environment in .venv, with the C core built

$(VENV)/.ready: pyproject.toml setup.py $(CORE) $(wildcard vscsi/wire/*.py)
	@sh scripts/packages.sh build
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[analysis,metrics,spark,test,lint]"
	@touch $@

clean: ## remove what was built here
	rm -rf $(VENV) .vm build dist demo *.egg-info vscsi/ring/_core*.so
