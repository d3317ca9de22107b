# SPDX-License-Identifier: MIT
# Two commands do everything: `make demo` (the main job) and `make test`.
# PYTHON names the interpreter the virtual environment is made from.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CORE := $(wildcard vscsi/ring/core/*.[ch])

.PHONY: help demo test test-lio lint format venv clean
help: ## what there is to make
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: venv ## a real ext4 image through all three rings, compared and captured (under two minutes)
	@sh scripts/packages.sh demo
	@$(BIN)/python scripts/demo.py

test: venv lint ## everything that proves it: lint, types and all tests but test-lio's
	@sh scripts/packages.sh demo test vm
	$(BIN)/python -m pytest --ignore=tests/lio
	$(BIN)/python -m pytest tests/lio/test_kernel.py

test-lio: venv ## the tests with LIO, on Debian's kernel in QEMU: in the making (VSCSI_COVERAGE=FILE: coverage)
	@sh scripts/packages.sh vm
	$(BIN)/python -m pytest tests/lio

lint: venv ## ruff, mypy --strict, clang-format; the compiler's own warnings are errors in the build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CORE)

format: venv ## rewrite the sources in house style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(CORE)

venv: $(VENV)/.ready ## the virtual environment in .venv, with the C core built

$(VENV)/.ready: pyproject.toml setup.py $(CORE)
	@sh scripts/packages.sh build
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[test,lint]"
	@touch $@

clean: ## remove what was built here
	rm -rf $(VENV) .vm build dist demo *.egg-info vscsi/ring/_core*.so
