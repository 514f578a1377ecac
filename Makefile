# Every command sets up what it needs in .venv, once, and again only when pyproject.toml has changed.
# It takes Python >= 3.11 and nothing else. uv is used where it is installed.
#
#   make dev ARGS='--bind 127.0.0.1:9000'     ARGS goes to the command that the target runs
#   make test PYTHON=python3.12               PYTHON chooses the interpreter; another one makes .venv anew

VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
UNIT = $(BIN)/python -m pytest -n 2 tests/unit
PYTHON ?=
# Where pytest may keep nothing, each of its processes rewrites every test file at every run.
unexport PYTHONDONTWRITEBYTECODE
UV := $(shell uv --version >/dev/null 2>&1 && echo uv)
INSTALL = $(if $(UV),uv pip install --quiet --python $(BIN)/python,$(BIN)/python -m pip install --quiet --disable-pip-version-check)

.DEFAULT_GOAL := help
.PHONY: help dev serve test unit lint format chaos bench clean

help: ## list these targets
	@echo "make TARGET [ARGS='…'] [PYTHON=python3.12]"
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r target text; do \
		printf '  %-8s %s\n' "$$target" "$$text"; done

dev: $(VENV)/.installed ## serve this folder, reloading as files change, with tracebacks in the answers
	@exec $(BIN)/spaces dev . $(ARGS)

serve: $(VENV)/.installed-fast ## serve this folder as in production
	@exec $(BIN)/spaces serve . $(ARGS)

test: lint ## run all checks: lint, types, layers, then all tests (or those in ARGS)
	$(if $(ARGS),$(BIN)/python -m pytest $(ARGS),$(UNIT) && $(BIN)/python -m pytest -n 2 --dist loadfile tests --ignore=tests/unit)

unit: $(VENV)/.installed-dev ## run the unit tests, or the tests in ARGS: make unit ARGS='tests/unit/test_wire.py -k length'
	$(if $(ARGS),$(BIN)/python -m pytest $(ARGS),$(UNIT))

lint: $(VENV)/.installed-dev ## check style, types and layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --strict
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.installed-dev ## put the code into the house form
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

chaos: $(VENV)/.installed-dev ## kill a host twenty times under load: nothing that was accepted may be lost (minutes)
	KILLS=20 $(BIN)/python -m pytest tests/acceptance/test_chaos.py $(ARGS)

bench: $(VENV)/.installed-bench ## measure us beside our peers (long: keep the machine idle); results are explained in bench/README.md
	$(BIN)/python -m bench $(ARGS)

clean: ## remove what these commands made, except the state in .spaces
	rm -rf $(VENV) build dist bench/.peers .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- the virtual environment -------------------------------------------------------------------------

# A .venv whose Python is gone, or is not the one asked for, or that nothing can install into, is made anew.
STALE := $(shell test ! -e $(VENV)/pyvenv.cfg || $(BIN)/python -c '$(if $(UV),,import pip)' 2>/dev/null || echo stale)
ifneq ($(and $(PYTHON),$(wildcard $(BIN)/python)),)
VERSION := -c 'import sys; print(sys.version_info[:2])'
ifneq ($(shell $(PYTHON) $(VERSION) 2>&1),$(shell $(BIN)/python $(VERSION) 2>&1))
STALE := stale
endif
endif
ifneq ($(STALE),)
.PHONY: $(VENV)/pyvenv.cfg
endif

$(VENV)/pyvenv.cfg:
	@$(if $(UV),UV_VENV_CLEAR=1 uv venv --quiet --seed --python '$(if $(PYTHON),$(PYTHON),>=3.11)' $(VENV),$(make_venv))
	@echo "$(VENV): $$($(BIN)/python --version). Installing what is needed, once …"

define make_venv
bare=; for python in $(if $(PYTHON),$(PYTHON),python3.14 python3.13 python3.12 python3.11 python3); do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	"$$python" -c 'import ensurepip' 2>/dev/null || { bare=$${bare:-$$(basename "$$python")}; continue; }; \
	rm -rf $(VENV); "$$python" -m venv $(VENV) && exit 0; rm -rf $(VENV); exit 1; \
done; \
if [ -n "$$bare" ]; then \
	echo "$$bare cannot make a virtual environment: it has no ensurepip." \
		"On Debian and Ubuntu this installs it: apt-get install $$bare-venv"; \
else \
	echo "No Python >= 3.11 found$(if $(PYTHON), as '$(PYTHON)')." \
		"Install one (Debian, Ubuntu: apt-get install python3 python3-venv) or name one: make PYTHON=/path/to/python3"; \
fi >&2; exit 1
endef

$(VENV)/.installed: $(VENV)/pyvenv.cfg pyproject.toml
	@$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-fast: $(VENV)/pyvenv.cfg pyproject.toml
	@$(INSTALL) --editable '.[fast]'
	@touch $(VENV)/.installed $@

# Altair's client, which the tests call us with, needs another pydantic than the others: it has an environment of its own.
IOTS := $(VENV)/iots
INSTALL_IOTS = $(if $(UV),uv pip install --quiet --python $(IOTS)/bin/python,$(IOTS)/bin/python -m pip install --quiet --disable-pip-version-check)

# --group needs pip 25.1.
$(VENV)/.installed-dev: $(VENV)/pyvenv.cfg pyproject.toml
	@$(if $(UV),,$(INSTALL) --upgrade 'pip>=25.1')
	@$(INSTALL) --editable '.[classify,fast,oidc]' --group dev
	@$(if $(UV),UV_VENV_CLEAR=1 uv venv --quiet --python $(BIN)/python,$(BIN)/python -m venv --clear) $(IOTS)
	@$(INSTALL_IOTS) iots
	@touch $(VENV)/.installed $(VENV)/.installed-fast $@

$(VENV)/.installed-bench: $(VENV)/.installed-dev
	@$(INSTALL) --group bench
	@touch $@
