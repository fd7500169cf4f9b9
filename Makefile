# Needs Python 3.11 or newer with pip, and make; the rest goes into .venv, at the versions and with the hashes of requirements/.
# Debian's python3-venv is not needed: the virtual environment is made bare, and the pip that is there fills it.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Side by side, but for those that need the machine: tests/parallel.py. ARGS="-n 0" runs one after the other.
PYTEST := $(BIN)/pytest -n auto
# Only errors: setuptools warns of every editable install.
INSTALL = $(PYTHON) -m pip --disable-pip-version-check --python
LOCKED := --require-hashes --requirement
WHEEL_TEST := .cache/wheel-test
LOWEST := .cache/lowest
TYPES := .cache/types
# The rooms whose every line and branch a unit test runs.
ROOMS := */fanout/*,*/history/*,*/broker/*,*/connection/*,*/cluster/*,*/control/*,*/presence/*,*/centrifugal/*,*/explain/*
ROOMS_FLOOR := 100
UV := UV_PYTHON_DOWNLOADS=never $(BIN)/uv
LOCK := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	--custom-compile-command "make lock" --no-emit-package fastapi-backplane

.PHONY: help demo brokers test test-unit chaos check coverage format docs docs-serve dashboard bench bench-full competitors types sdk wheel-test lowest lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.installed-demo ## Run the chat on four workers; ARGS="--port 9000 --url redis://localhost"
	$(BIN)/backplane demo $(ARGS)

brokers: $(VENV)/.installed-dev ## Start Redis, NATS, Kafka, PostgreSQL and RabbitMQ, and print where they are
	$(BIN)/python -m tests.brokers

test: $(VENV)/.installed-dev ## Run all tests; ARGS="-k redis -x"
	$(PYTEST) $(ARGS)

test-unit: $(VENV)/.installed-dev ## Run the unit tests
	$(PYTEST) tests/unit $(ARGS)

chaos: $(VENV)/.installed-dev ## Break brokers and links in every way there is, about five minutes; ARGS="-k redis"
	$(BIN)/pytest tests/chaos --chaos=full $(ARGS)

check: $(VENV)/.installed-dev ## Lint, check types and the direction of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/zizmor --offline --quiet .github

# What the processes that tests start do is not measured. `make test ARGS=--measured=rest` runs what this leaves out.
coverage: $(VENV)/.installed-dev ## Run the unit tests on one event loop, and check how much of the package they cover
	$(PYTEST) --cov --cov-report= --cov-fail-under=0 --measured=only tests/unit $(ARGS)
	$(BIN)/coverage report --skip-covered --show-missing
	$(BIN)/coverage report --skip-covered --show-missing --fail-under=$(ROOMS_FLOOR) --include='$(ROOMS)'

format: $(VENV)/.installed-dev ## Format, and mend what the linter can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(VENV)/.installed-dev ## Build the documentation site into site/; a dead link, a dead anchor or a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict $(ARGS)

dashboard: $(VENV)/.installed-dev ## Make the dashboard of examples/observability for Grafana anew
	$(BIN)/python examples/observability/grafana/dashboard.py

docs-serve: $(VENV)/.installed-dev ## Serve the documentation on port 8000, built anew at each change; ARGS="-a localhost:9000"
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve --watch backplane --watch adapters --watch mkdocs_hooks $(ARGS)

bench: $(VENV)/.installed-dev ## Measure for eight minutes; ARGS="--output benchmarks/results/today.json"
	$(BIN)/python -m benchmarks short $(ARGS)

bench-full: $(VENV)/.installed-dev competitors ## Measure every scenario on every adapter, beside floors and competitors
	$(BIN)/python -m benchmarks full $(ARGS)

competitors: $(VENV)/.installed-dev ## Install the products that backplane is compared with
	-$(BIN)/python -m benchmarks.competitors.install

sdk: $(VENV)/.installed-dev ## Install the SDKs that tests/sdk drives; needs Node and Go
	$(BIN)/python -m tests.sdk.install

# In an environment that holds the wheel alone and finds the rest in $(VENV), and in a folder where there are no sources.
types: $(VENV)/.installed-dev ## Check that the public interface is annotated, all of it, in the wheel
	rm -rf $(TYPES)
	$(BIN)/python -m build --no-isolation --outdir $(TYPES) >/dev/null
	$(BIN)/python -m venv --without-pip $(TYPES)/venv
	$(INSTALL) $(TYPES)/venv/bin/python install -qq --no-deps $(TYPES)/*.whl
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >$$(echo $(TYPES)/venv/lib/python*/site-packages)/rest.pth
	cd $(TYPES) && PATH="$$PWD/venv/bin:$$PATH" $(abspath $(BIN))/pyright --verifytypes backplane --ignoreexternal

wheel-test: $(VENV)/.installed-dev ## Build the wheel and run the unit tests on it, away from the sources
	rm -rf $(WHEEL_TEST)
	$(BIN)/python -m build --no-isolation --outdir $(WHEEL_TEST)/dist
	$(PYTHON) -m venv --without-pip $(WHEEL_TEST)/venv
	$(INSTALL) $(WHEEL_TEST)/venv/bin/python install -qq $(LOCKED) requirements/dev.txt
	$(INSTALL) $(WHEEL_TEST)/venv/bin/python install -qq --no-deps $(WHEEL_TEST)/dist/*.whl
	cp -R tests mkdocs_hooks pyproject.toml README.md $(WHEEL_TEST)
	cd $(WHEEL_TEST) && venv/bin/pytest -n auto tests/unit $(ARGS)

# Old versions use what the newest of their own dependencies warn of.
lowest: $(VENV)/.installed-dev ## Run the unit and conformance tests on the lowest versions that pyproject.toml allows
	$(UV) venv --quiet --clear --python $(BIN)/python $(LOWEST)
	VIRTUAL_ENV=$(LOWEST) $(UV) pip install --quiet --resolution lowest-direct --group test --editable ".[redis,nats,kafka,postgres,amqp,cli]"
	$(LOWEST)/bin/pytest -n auto -W ignore::DeprecationWarning -W ignore::ResourceWarning tests/unit tests/conformance $(ARGS)

lock: $(VENV)/.installed-dev ## Pin what pyproject.toml asks for, with hashes; ARGS=--upgrade takes the newest versions
	printf -- '-e .[all]\nsetuptools\n' | $(LOCK) $(ARGS) --output-file requirements/image.txt -
	printf -- '-e .\n' | $(LOCK) $(ARGS) --group dev --constraint requirements/image.txt --output-file requirements/dev.txt -

clean: ## Remove everything that was built, installed or cached
	rm -rf $(VENV) .cache build dist site *.egg-info .coverage .hypothesis .*_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Too old: make PYTHON=python3.11")'
	$(PYTHON) -m venv --without-pip $(VENV)
	@touch $@

# `demo` holds what the image holds, `dev` everything that the other targets need.
$(VENV)/.installed-demo: LOCK_FILE := requirements/image.txt
$(VENV)/.installed-dev: LOCK_FILE := requirements/dev.txt
$(VENV)/.installed-demo $(VENV)/.installed-dev: $(VENV)/.installed-%: pyproject.toml $(wildcard requirements/*.txt) $(VENV)/.made
	@echo "Installing $(LOCK_FILE) into $(VENV), about a minute ..."
	@$(INSTALL) $(BIN)/python install -qq $(LOCKED) $(LOCK_FILE)
	@$(INSTALL) $(BIN)/python install -qq --no-deps --no-build-isolation --editable .
	@touch $@
