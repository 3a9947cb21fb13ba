# Two commands do everything on a fresh machine: `make try` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CLAUDE_VERSION := 2.1.331
# most tests wait for real programs; each takes a core at most
WORKERS ?= 2

.PHONY: help try test test-scale quick check dist docs site clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /	/'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	 { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.engine: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[engine]"
	@touch $@

$(VENV)/.test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[engine,test]"
	@touch $@

try: $(VENV)/.engine ## the main job, for real: a file written by Claude Code on a local model
	@rm -f hello.txt
	@claude=$$(command -v claude || tools/claude.sh $(CLAUDE_VERSION)) && \
	 PATH="$$(dirname "$$claude"):$$PATH" \
	 $(BIN)/cclocal tiny -p "Create the file hello.txt with content: hello from my own machine"
	@printf 'hello.txt now says: '; cat hello.txt; echo

test: $(VENV)/.test ## every real loop once; with CI=true every engine, agent version and matrix
	PATH="$(CURDIR)/$(BIN):$$PATH" tools/parts.sh
	@if [ "$$CI" = true ]; then echo "The whole suite: about 40 minutes on two cores."; \
	 else echo "Every real loop once: about 20 minutes on two cores. CI=true runs the wide matrices too."; fi
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

quick: $(VENV)/.test ## what needs no engine and no agent, in under a minute
	$(BIN)/python -m pytest --numprocesses $(WORKERS) -m "not starts" -q

test-scale: $(VENV)/.test ## a real vLLM behind --url, on the processor: fetches 0.7 GB once, takes 2.6 GB, then two minutes
	@echo "vLLM 0.32 for processors: 0.7 GB are fetched once, 2.6 GB on disk; then some two minutes on two cores."
	PATH="$(CURDIR)/$(BIN):$$PATH" tools/vllm.sh
	CCLOCAL_SCALE=1 $(BIN)/python -m pytest tests/scale

check: $(VENV)/.test ## style, types, layers, docs in step with the code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/docs.py --check
	$(BIN)/python -m towncrier build --draft --version next >/dev/null

dist: $(VENV)/.test ## sdist and wheel, and the main job from the wheel in a bare environment
	tools/dist.sh $(CURDIR)/$(BIN)/python dist

docs: $(VENV)/.test ## write the generated parts of the docs anew
	$(BIN)/python tools/docs.py

site: $(VENV)/.test ## the documentation as a site with a search, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --config-file tools/mkdocs.yml
	@echo "site/index.html"

clean: ## remove what make made here
	rm -rf $(VENV) dist site hello.txt .mypy_cache .ruff_cache .pytest_cache
