# `make demo` and `make test` do all the set-up: they need Python 3.11 or newer and make, nothing else.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
JOBS ?= $(shell $(PYTHON) -c "import os; print(min(4, os.cpu_count()))")
export JOBS

.PHONY: help demo test check test-all lint bench docs clean

help:
	@echo "make demo      train a small language model on the standard library's source, beside the naive formula"
	@echo "make test      the test suite in .venv: four parameter cases of each test"
	@echo "make check     lint, types, and one case of every test that starts no process"
	@echo "make test-all  all other cases, lint, planted bugs, notebooks, docs, the oldest and newest supported jax (needs Python 3.13)"
	@echo "make docs      the documentation site, in docs/_build/html"
	@echo "make bench     the smoke suite of python -m benchmarks: speed, memory and errors on this machine"

$(VENV)/installed: pyproject.toml
	@start=$$(date +%s); \
	$(PYTHON) -m venv $(VENV) && $(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[test,demo]' && \
	touch $@ && echo "installation took $$(( $$(date +%s) - start )) s"

demo: $(VENV)/installed
	$(RUN) -m crossent_jax.demo

# Most programs compiled quickly; then those whose last bits or memory are tested, as users compile them. Four parameter cases
# of each test: the leg `cases` of tests.environments runs the others.
test: $(VENV)/installed
	CROSSENT_JAX_COMPILE=quick $(RUN) -m pytest -q -n $(JOBS) --dist loadfile --part first
	$(RUN) -m pytest -q -n $(JOBS) --dist loadfile --part first -m optimized

$(VENV)/lint: $(VENV)/installed
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[lint]' && touch $@

check: $(VENV)/lint
	$(RUN) -m ruff check . && $(RUN) -m ruff format --check . && $(RUN) -m pyright --pythonpath $(RUN)
	CROSSENT_JAX_COMPILE=quick $(RUN) -m pytest -q -n $(JOBS) --dist loadfile --cases 1 -m "not subprocess"

test-all: $(VENV)/installed
	$(RUN) -m tests.environments cases lint mutations peers frameworks notebooks docs benchmarks aot colab floor newest

lint: $(VENV)/installed
	$(RUN) -m tests.environments lint

docs: $(VENV)/installed
	$(RUN) -m tests.environments docs

$(VENV)/peers: $(VENV)/installed
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[peers]' && touch $@

bench: $(VENV)/peers
	$(RUN) -m benchmarks run

clean:
	rm -rf $(VENV) .venvs
