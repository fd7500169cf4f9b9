# Needs Python 3.11 or newer with pip, and make; the rest goes into .venv. Debian's python3-venv is not needed: the virtual
# environment is made bare, and the pip that is there fills it.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Side by side, but for those that need the machine: tests/parallel.py. ARGS="-n 0" runs one after the other.
PYTEST := $(BIN)/pytest -n auto
# Only errors: setuptools warns of every editable install.
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check
WHEEL_TEST := .cache/wheel-test

.PHONY: help demo brokers test test-unit chaos check format bench bench-full competitors wheel-test clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.installed-demo ## Run the chat on four workers; ARGS="--port 9000 --url redis://localhost"
	$(BIN)/backplane demo $(ARGS)

brokers: $(VENV)/.installed-test ## Start Redis, NATS and Kafka, and print where they are
	$(BIN)/python -m tests.brokers

test: $(VENV)/.installed-test ## Run all tests; ARGS="-k redis -x"
	$(PYTEST) $(ARGS)

test-unit: $(VENV)/.installed-test ## Run the unit tests
	$(PYTEST) tests/unit $(ARGS)

chaos: $(VENV)/.installed-test ## Break brokers and links in every way there is, about five minutes; ARGS="-k redis"
	$(BIN)/pytest tests/chaos --chaos=full $(ARGS)

check: $(VENV)/.installed-check ## Lint, check types and the direction of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.installed-check ## Format, and mend what the linter can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/.installed-bench ## Measure for five minutes; ARGS="--output benchmarks/results/today.json"
	$(BIN)/python -m benchmarks short $(ARGS)

bench-full: $(VENV)/.installed-bench competitors ## Measure every scenario on every adapter, beside floors and competitors
	$(BIN)/python -m benchmarks full $(ARGS)

competitors: $(VENV)/.installed-bench ## Install the products that backplane is compared with
	-$(BIN)/python -m benchmarks.competitors.install

wheel-test: $(VENV)/.installed-check ## Build the wheel and run the unit tests on it, away from the sources
	rm -rf $(WHEEL_TEST)
	$(BIN)/python -m build --outdir $(WHEEL_TEST)/dist
	$(PYTHON) -m venv --without-pip $(WHEEL_TEST)/venv
	$(BIN)/python -m pip --python $(WHEEL_TEST)/venv/bin/python install --quiet --group test $(WHEEL_TEST)/dist/*.whl
	cp -R tests pyproject.toml README.md $(WHEEL_TEST)
	cd $(WHEEL_TEST) && venv/bin/pytest -n auto tests/unit $(ARGS)

clean: ## Remove everything that was built, installed or cached
	rm -rf $(VENV) .cache build dist *.egg-info .coverage .hypothesis .*_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/.pip:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Too old: make PYTHON=python3.11")'
	$(PYTHON) -m venv --without-pip $(VENV)
	$(PYTHON) -m pip --python $(BIN)/python install --quiet "pip>=25.1"
	@touch $@

$(VENV)/.installed-demo: pyproject.toml $(VENV)/.pip
	@echo "Installing the demo into $(VENV) ..."
	@$(INSTALL) --editable ".[cli]"
	@touch $@

# The groups of [dependency-groups] in pyproject.toml.
$(VENV)/.installed-%: pyproject.toml $(VENV)/.pip
	@echo "Installing into $(VENV) what '$*' needs, about a minute ..."
	@$(INSTALL) --group $* --editable .
	@touch $@
