# `make help` lists the targets. Everything is installed into .venv, nothing outside this folder.
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO := runs/smollm2
RECIPE := recipes/smollm2/solar_dus.yml
PIPELINE := recipes/smollm2/pipeline.yml

export PATH := $(CURDIR)/$(BIN):$(PATH)
export AXOLOTL_DO_NOT_TRACK := 1
# The demo and the tests need no Hub; without this, each lookup waits for a network that may not exist.
export HF_HUB_OFFLINE := 1
# accelerate's default is one thread per training process.
export OMP_NUM_THREADS ?= $(shell nproc)
# Waiting threads yield their core; otherwise a busy machine takes nearly twice as long (7.0 s per step against 4.3 s).
export OMP_WAIT_POLICY ?= passive
# The tests use one thread per process. Workers take entire files, because the tests of a file share fixtures, in the
# order of tests/conftest.py: slow ones first.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: dist help setup demo maths-demo pipeline gallery test test-fast test-nightly bench study docs lint fix clean architectures gpu-check gpu-check-data

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: $(INSTALLED)  ## create .venv with Python >= 3.12 and install the package with everything that demo and tests need

$(INSTALLED): pyproject.toml
	@python=; for candidate in "$(PYTHON)" $(BIN)/python python3.12 python3.13 python3 python \
	    $$HOME/.pyenv/versions/3.12*/bin/python $$HOME/.pyenv/versions/3.13*/bin/python; do \
	  if [ -n "$$candidate" ] && "$$candidate" -c 'import sys, venv; sys.exit(not (3, 12) <= sys.version_info < (3, 14))' 2>/dev/null; \
	  then python="$$candidate"; break; fi; done; \
	if [ -z "$$python" ]; then \
	  echo "Error: found no Python 3.12 or 3.13 with venv, which Axolotl 0.21 needs. Install one, or give its path: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12"; exit 1; fi; \
	free=$$(df -Pk . | awk 'NR == 2 {print int($$4 / 1048576)}'); \
	if [ ! -d $(VENV) ] && [ "$$free" -lt 12 ]; then \
	  echo "Error: $$free GB free in $(CURDIR); the installation takes 9 GB (torch brings its CUDA libraries) and the demo 3 GB. Free some space"; exit 1; fi; \
	echo "Installing with $$("$$python" --version) into $(VENV); this takes a few minutes"; \
	[ -x $(BIN)/python ] || "$$python" -m venv $(VENV) || exit 1; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[all,dev]' || { \
	  echo "Error: pip could not install the package (see its message above). It needs a package index: check the network, or pip's index settings"; exit 1; }
	@touch $@

demo: $(INSTALLED)  ## upscale a real 135M model from 30 to 48 layers by two plans, train both, write a report: about 14 minutes on two cores
	@$(BIN)/python recipes/smollm2/prepare.py --directory $(DEMO)
	@$(BIN)/solar run $(PIPELINE) --only dus --only probe_plan
	@$(BIN)/solar report $(RECIPE) recipes/smollm2/solar_probe_plan.yml --output $(DEMO)/report.html

maths-demo: $(INSTALLED)  ## math data from that model, served on this machine: 100 answers, every check, a report; about 8 minutes
	@$(BIN)/python recipes/smollm2/prepare.py --directory $(DEMO)
	@$(BIN)/python recipes/smollm2/maths_demo.py

pipeline: $(INSTALLED)  ## every stage on that model, up to DPO and merging, and a report: about 30 minutes on two cores; resumes
	@$(BIN)/python recipes/smollm2/prepare.py --directory $(DEMO)
	@$(BIN)/solar run $(PIPELINE)
	@$(BIN)/solar report $(PIPELINE) --output $(DEMO)/report.html

test: $(INSTALLED)  ## run the tests, including those of the real model, with line coverage: about 15 minutes on two cores
	$(PYTEST) -m "not nightly" --cov --cov-report=term:skip-covered

test-fast: $(INSTALLED)  ## run the fast tests, which start neither Axolotl nor mergekit and measure no models
	$(PYTEST) -m "not slow and not network and not nightly"

test-nightly: $(INSTALLED)  ## run all tests, including those that repeat others with more cases
	$(PYTEST) --cov --cov-report=term:skip-covered

bench: $(INSTALLED)  ## benchmark against mergekit-yaml and cp, write docs/bench.* and, as root, docs/sharing-blocks.*: about 30 minutes, 25 GB of disk
	$(BIN)/python scripts/benchmarks/bench.py
	$(BIN)/python scripts/benchmarks/file_systems.py

dist: $(INSTALLED)  ## build the source archive and, from it, the wheel, into dist/
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist

study: $(INSTALLED)  ## compare plans in 43 short trainings of that model, write docs/study.*: about 1.5 hours on two cores; resumes
	@$(BIN)/python recipes/smollm2/prepare.py --directory $(DEMO)
	PYTHONPATH=tests $(BIN)/python scripts/study/study.py $(DEMO) docs/study.json
	PYTHONPATH=tests $(BIN)/python scripts/study/study_page.py docs/study.json docs/study.md

gpu-check: $(INSTALLED)  ## on an 80 GB GPU: 7B upscaling, QLoRA, memory, tokens per second, recovery; writes docs/gpu/
	$(BIN)/python scripts/gpu_check/gpu_check.py

gpu-check-data: $(INSTALLED)  ## fetch the small model and the text for gpu-check; needs no GPU
	@$(BIN)/python recipes/smollm2/prepare.py --directory $(DEMO)
	$(BIN)/python scripts/gpu_check/gpu_texts.py

architectures: $(INSTALLED)  ## compare every decoder of transformers with its modules, write docs/architectures.md
	SOLAR_WRITE_DOCS=1 $(BIN)/python -m pytest tests/unit/decoders

gallery: $(INSTALLED)  ## write the page of all recipes, build/gallery.html, and its picture, docs/gallery.png, with Chromium
	$(BIN)/solar recipes gallery --output build/gallery.html
	chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --blink-settings=preferredColorScheme=1 \
	    --force-device-scale-factor=1.3 --window-size=1440,890 --screenshot=docs/gallery.png file://$(CURDIR)/build/gallery.html

docs: $(INSTALLED)  ## build the docs site in build/docs; any warning is an error, including dead links
	$(BIN)/python -m sphinx -W --keep-going -n -q docs build/docs
	@echo "build/docs/index.html"

lint: $(INSTALLED)  ## run ruff, mypy and import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: $(INSTALLED)  ## let ruff fix what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove what demo, tests and builds wrote; keeps .venv
	rm -rf .coverage* runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
