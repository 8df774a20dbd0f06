# make demo | demo-segmentation | cluster-demo [KEEP=1] | test | test-slow | reliability | lint | lock | audit | bench | gpu-check | mlflow | screenshots | clean
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
READY   = $(VENV)/.ready
RUNS   ?= runs

.PHONY: demo demo-segmentation cluster-demo test test-slow reliability lint lock audit bench gpu-check mlflow screenshots clean
.DEFAULT_GOAL := help

help:
	@head -n 1 Makefile

# uv installs in seconds; constraints.txt pins what was tested together, lock.txt has the SHA-256 of each of its files,
# and nothing else is installed. What single targets add below is pinned, and compared where lock.txt has it.
$(READY): pyproject.toml constraints.txt lock.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed: make PYTHON=python3.11 ..."; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	sed -n '/^uv==/,/[^\\]$$/p' lock.txt > $(VENV)/uv.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(VENV)/uv.txt
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r lock.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --build-constraints lock.txt --no-deps -e .
	touch $(READY)

demo: $(READY)
	$(BIN)/python rayjobs/demo.py --storage '$(RUNS)'

demo-segmentation: $(READY)
	$(BIN)/python rayjobs/demo_segmentation.py --storage '$(RUNS)'

cluster-demo: $(READY)
	$(BIN)/python cluster/demo.py --storage '$(RUNS)' $(if $(KEEP),--keep)

# Two files of tests at a time, each in a process of its own.
test: $(READY)
	$(BIN)/python -m pytest -n auto --maxprocesses 2 --dist loadfile

test-slow: $(READY)
	$(BIN)/python -m pytest -m 'slow or chaos' --timeout 1800

reliability: $(READY)
	$(BIN)/python -m tests.reliability --json reliability.json

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: $(READY)
	echo uv | $(BIN)/uv pip compile --quiet --generate-hashes --universal --python-version 3.11 --extra dev -c constraints.txt \
	  --no-header --no-annotate --no-emit-index-url pyproject.toml - > $(VENV)/lock.txt
	{ head -n 1 lock.txt; cat $(VENV)/lock.txt; } > $(VENV)/lock && mv $(VENV)/lock lock.txt

# Looks every pinned version up; --strict: one that could not be looked up is a failure too.
audit: $(READY)
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -c lock.txt -e '.[dev,audit]'
	@$(BIN)/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip || { echo "audit: a version is known to be vulnerable, or could not be looked up (see above)"; exit 1; }

bench: $(READY)
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -c lock.txt -e '.[dev,bench]'
	for b in startup evaluation crop input memory shards dataset readout bagcams "step resnet50" "step vgg16" step_bcam step_compiled training trial study solving thousand; do \
	  set -- $$b; $(BIN)/python benchmarks/$$1.py $${2:+--backbone $$2} || exit 1; done

# Ten minutes on one GPU, and needs neither Ray nor MLflow there: GPU_CHECK="--data DIR --weights FILE" for the ranking.
gpu-check: $(READY)
	$(BIN)/python benchmarks/gpu_check.py --out '$(RUNS)/gpu-check' $(GPU_CHECK)

mlflow: $(READY)
	@$(BIN)/python -m wsol_pipeline.tracking.moved '$(RUNS)/mlflow.db'
	cd '$(RUNS)' && '$(abspath $(BIN))/mlflow' server --host 127.0.0.1 --port 5000 \
	  --backend-store-uri "sqlite:///$$PWD/mlflow.db" --artifacts-destination "$$PWD/mlflow-artifacts"

screenshots: $(READY)
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -c lock.txt -e '.[dev,screenshots]'
	$(BIN)/python docs/screenshots.py --storage '$(RUNS)'

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
