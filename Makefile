# make quickstart   set up, train, find the circuits, draw them     (minutes)
# make test         set up and run the tests
PYTHON ?= python3
PY := .venv/bin/python
READY := .venv/.ready
VARIABLES := a2 minus_b2 a_plus_b a_minus_b

.PHONY: quickstart test lint

quickstart: $(READY)
	$(PY) train_algorithmic_models.py --config configs/Quickstart/train.yaml
	$(PY) circuit_probing.py --config $(VARIABLES:%=configs/Quickstart/circuit_probing/%.yaml)
	$(PY) analysis/summarize_disambiguation.py --results Results/Quickstart

test: $(READY)
	HF_HUB_OFFLINE=1 $(PY) -m pytest

lint: $(READY)
	$(PY) -m ruff check .

$(READY): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@
