# The newcomer's two commands are `make demo` and `make test`. All that they install goes into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
TINY := tests/configs/tiny-llama

export HF_HUB_OFFLINE = 1

.PHONY: demo test test-fast lint format docs coverage completions benchmark boards clean

demo: $(VENV)/installed  ## list, plan and load, on a tiny model with random weights
	@printf '\n$$ devctl list\n'
	@$(BIN)/devctl list
	@printf '\n$$ devctl plan $(TINY) --max-memory cpu=12MiB > map.json\n'
	@$(BIN)/devctl plan $(TINY) --max-memory cpu=12MiB > $(VENV)/map.json
	@cat $(VENV)/map.json
	@printf '\n$$ devctl load $(TINY) --map map.json --load-format dummy\n'
	@$(BIN)/devctl load $(TINY) --map $(VENV)/map.json --load-format dummy

test: $(VENV)/installed-test lint  ## everything that CI runs
	$(BIN)/python -m pytest -n 2

test-fast: $(VENV)/installed-test  ## without the sweeps of minutes
	$(BIN)/python -m pytest -n 2 -m "not slow"

lint: $(VENV)/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/installed-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/installed-test  ## what README.md and docs/ show, written anew; look at the difference
	$(BIN)/python -m tests.docs --write

coverage: $(VENV)/installed-test  ## which lines the fast tests run; what they start as other processes does not count
	$(PIP) install pytest-cov
	$(BIN)/python -m pytest -n 2 -m "not slow" --cov --cov-report=term:skip-covered

completions: $(VENV)/installed  ## what TAB knows of the command line, and the scripts in completions/
	@$(BIN)/python -m devctl.cli.described > $(VENV)/commands.json
	@cp $(VENV)/commands.json devctl/completion/commands.json
	@for shell in bash zsh fish pwsh; do \
		case $$shell in bash) file=devctl.bash;; zsh) file=_devctl;; fish) file=devctl.fish;; pwsh) file=devctl.ps1;; esac; \
		$(BIN)/devctl completion $$shell > completions/$$file || exit; \
	done

# `list` is not among them: it is held against nvitop and gpustat, which are not installed here
BENCHMARKS := start completion plan again load memory optimal hosts truth engine

benchmark: $(VENV)/installed-test  ## what CONTRIBUTING.md has figures of; some minutes, on a machine with nothing else to do
	@for script in $(BENCHMARKS); do \
		printf '\n$$ python -m tests.benchmarks.%s\n' $$script; \
		$(BIN)/python -m tests.benchmarks.$$script || exit; \
	done

boards: $(VENV)/installed-test  ## eight minutes of claims held against the boards of this machine; again for the next eight
	$(BIN)/python -m tests.boards

clean:
	rm -rf $(VENV) build dist .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) install --constraint constraints.txt --editable .
	@touch $@

$(VENV)/installed-test: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) install --constraint constraints.txt --editable '.[test]'
	@touch $@ $(VENV)/installed
