# GNU make 3.81, as macOS has it, is enough. Every target does its own set-up.

VENV        ?= .venv
PYTHON      ?=
ENGINE      ?=
PYTEST_ARGS ?=
BENCH_ARGS  ?=
MINUTES     ?= 10

BIN  = $(VENV)/bin
CODE = src examples bench tools tests

ifneq ($(words $(VENV)),1)
$(error VENV='$(VENV)': make takes one folder, without spaces)
endif

EXTRAS_demo  = all
EXTRAS_test  = all,test
EXTRAS_check = all,test,dev
EXTRAS_bench = all,bench

# In CI nothing may be skipped; elsewhere pytest counts what was, and says why.
NO_SKIPS = $(if $(filter-out 0 false,$(CI)),-p tools.no_skips)
# Three at a time for two cores: most tests wait for something.
PYTEST   = $(BIN)/python -m pytest -n 3 --dist loadfile $(NO_SKIPS)

.PHONY: help venv demo test long sanitize servers check bench bench-placement bench-fleet storm docs clean
.NOTPARALLEL:

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  PYTHON=/path/to/python  VENV=folder  PYTEST_ARGS='-k fence'"

venv: $(VENV)/.ready-check ## a virtual environment with all that development needs

demo: $(VENV)/.ready-demo ## the main job on real files, with a worker killed and one paused (ENGINE=redis://…)
	@$(BIN)/holdfast demo $(if $(ENGINE),--engine '$(ENGINE)')

test: $(VENV)/.ready-test ## all tests but the slow ones, on two cores (PYTEST_ARGS=…)
	@sh tools/servers.sh --if-possible
	@$(PYTEST) -m "not slow" $(PYTEST_ARGS)

long: $(VENV)/.ready-test ## the slow tests
	@sh tools/servers.sh --if-possible
	@$(PYTEST) -m slow $(PYTEST_ARGS)

sanitize: $(VENV)/.ready-test ## the kernel in C under the sanitizers of gcc: its tests and a minute of fuzz
	@sh tools/sanitize.sh '$(BIN)/python' 60

servers: ## install the servers that tests start by themselves (their services stay off)
	@sh tools/servers.sh

check: $(VENV)/.ready-check ## style, format and types: ruff, mypy, pyright
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(VENV)/.ready-bench ## locks beside their peers, 20 minutes; writes docs/measured-locks.md (ENGINE=redis BENCH_ARGS=--quick)
	@$(BIN)/python -m bench $(if $(ENGINE),--engine '$(ENGINE)') $(BENCH_ARGS)

bench-placement: $(VENV)/.ready-bench ## placement beside its peers, some minutes; writes docs/measured-placement.md
	@$(BIN)/python -m bench.placement

bench-fleet: $(VENV)/.ready-bench ## leaders, partitions, a sale and a storm, 45 minutes; writes docs/measured-fleet.md (ENGINE=redis BENCH_ARGS='--part sale')
	@$(BIN)/python -m bench.fleet $(if $(ENGINE),--engine '$(ENGINE)') $(BENCH_ARGS)

storm: $(VENV)/.ready-test ## kills, pauses, cuts and restarts: do two own one thing at once? (MINUTES=10 ENGINE=redis)
	@$(BIN)/python -m bench.fleet.storm --minutes '$(MINUTES)' $(if $(ENGINE),--engine '$(ENGINE)')

docs: $(VENV)/.ready-demo ## see that every link in the docs leads somewhere
	@$(BIN)/python tools/links.py

clean: ## remove everything that was made here
	rm -rf $(VENV) build dist src/*.egg-info src/holdfast/placement/_kernel*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One environment; a stamp for each set of extras that was put into it.
$(VENV)/.ready-%: pyproject.toml setup.py tools/venv.sh $(wildcard src/holdfast/placement/_kernel*.[ch])
	@PYTHON='$(PYTHON)' sh tools/venv.sh '$(VENV)' '$(EXTRAS_$*)'
	@touch '$@'
