# All set-up goes through `make venv`: a virtual environment in .venv, from a bare clone, with only Python (3.10 or
# later), pip and make on the machine. Nothing outside this folder is changed but pip's own download cache, and by
# `make test` as root on a Debian: a browser and tesseract are installed for the tests that drive them.
#
#   make demo    see the product work: no network beyond the package index, no GPU, no account
#   make lab     everything published about the lab, made again from an edition (hours; see benchmarks/make_lab.py)
#   make test    lint, types, import contract, then the whole test suite (what CI runs)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := dev,study,pages
# A worker that crashes ends the run: replaced by another, it left files untaken and the run waiting for ever.
PYTEST_ARGS ?= -n 2 --dist loadfile --max-worker-restart 0

# The demo and the tests never need the Hub; a wrong turn to it must fail at once and not after a time-out.
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false

.PHONY: venv demo lab test lint format clean
.DEFAULT_GOAL := venv

venv: $(STAMP)

# Debian's Python comes without ensurepip; then pip is put there by the pip that is on the machine.
$(STAMP): pyproject.toml constraints.txt build_backend.py lm_eval_kinject/_startup.py
	@echo "== [1/3] virtual environment: $(VENV)"
	@test -x $(BIN)/python && $(BIN)/python -m pip --version >/dev/null 2>&1 \
	  || $(PYTHON) -m venv $(VENV) 2>/dev/null \
	  || { rm -rf $(VENV) && $(PYTHON) -m venv --without-pip $(VENV) \
	       && $(PYTHON) -m pip --python $(BIN)/python install pip; }
	@echo "== [2/3] packages of constraints.txt (the first time some minutes: torch and its friends)"
	$(BIN)/python -m pip install --disable-pip-version-check --no-input -c constraints.txt -e '.[$(EXTRAS)]'
	@echo "== [3/3] check"
	@$(BIN)/python -m pip check
	@touch $@

demo: venv
	$(OFFLINE) $(BIN)/python -m lm_eval_kinject.demo

lab: venv
	$(OFFLINE) $(BIN)/python benchmarks/make_lab.py $(LAB_ARGS)

lint: venv
	@echo "== ruff"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@echo "== mypy"
	$(BIN)/mypy
	@echo "== import contract"
	$(BIN)/lint-imports

test: lint
	@tests/tools.sh
	@echo "== pytest"
	$(OFFLINE) $(BIN)/python -m pytest $(PYTEST_ARGS)

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
