# `make demo` and `make test` set everything up by themselves; Python >= 3.11, make and git suffice.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
DEMO ?= runs/demo
HELLO ?= runs/hello
# `make test ORACLES=` leaves the PyTorch oracles out; their tests are then skipped.
ORACLES ?= $(VENV)/.oracles-installed

SMOKE ?= runs/smoke

.PHONY: install hello demo smoke test check clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml requirements.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python >= 3.11 is needed: make PYTHON=python3.11')"
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

$(VENV)/.oracles-installed: requirements-oracles.txt $(VENV)/.installed
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-oracles.txt
	touch $@

# SparK for some steps on artificial chest scans: what it makes of the patches that it does not see.
hello: install
	$(RUN) -m ctssl_jax.main --config=configs/spark.py:demo --config.epochs=2.0 --workdir=$(HELLO)
	@echo "look at $$(ls $(HELLO)/figures/reconstruction_*.png | tail -n 1)"

# The study in small: artificial chest scans -> three pre-trainings of SimCLR -> fine-tuning from each
# and from scratch, on 8 and 24 annotated scans, three times -> new scans are predicted -> report.
# Repeating it goes on. How its numbers were chosen: docs/reproduce.md.
NEW := $(DEMO)/new
demo: install
	set -e; for seed in 0 1 2; do \
	  $(RUN) -m ctssl_jax.main --config=configs/simclr.py:demo --config.seed=$$seed --workdir=$(DEMO)/simclr-$$seed; \
	  echo "what it sees: $(DEMO)/simclr-$$seed/figures/views.png"; \
	done
	$(RUN) -m launch.sweep --config=configs/ablation.py:demo --workdir=$(DEMO)/ablation \
	  --config.encoders=$(DEMO)/simclr-0 --config.encoders=$(DEMO)/simclr-1 --config.encoders=$(DEMO)/simclr-2
	test -d $(NEW) || $(RUN) -m data_prep.phantom --patients=12 --slices=2 --size=96 --nodules=8 --seed=3 \
	  --out=$(NEW)/dataset --dicom=$(NEW)/dicom
	test -d $(DEMO)/predictions || $(RUN) -m ctssl_jax.predict --run=$$(ls -d $(DEMO)/ablation/chest_nodules-simclr@*-n24-seed0 | head -n 1) \
	  --source=$(NEW)/dicom --labels=$(NEW)/dicom/labels.csv --out=$(DEMO)/predictions --pictures=12
	$(RUN) -m ctssl_jax.report $(DEMO) --out=$(DEMO)/report
	@echo "new scans, called and drawn: $(DEMO)/predictions/cases.csv and pictures/"
	@echo "open $(DEMO)/report/report.html"

# Every kind of run for some steps, for a Python on which the tests are not run: what is missing in its
# versions of the libraries shows here.
smoke: install
	test -d data/phantom || $(RUN) -m data_prep.phantom --out=data/phantom
	set -e; for method in spark moco swav byol simclr; do \
	  $(RUN) -m ctssl_jax.main --config=configs/$$method.py:smoke --workdir=$(SMOKE)/$$method; \
	done
	$(RUN) -m launch.sweep --config=configs/ablation.py:smoke --config.frozen=true --config.encoders=$(SMOKE)/simclr --workdir=$(SMOKE)/ablation
	$(RUN) -m ctssl_jax.main --config=configs/finetune_cases.py:smoke --workdir=$(SMOKE)/cases
	$(RUN) -m ctssl_jax.predict --run=$(SMOKE)/cases --data=data/phantom_scans --out=$(SMOKE)/predictions --pictures=1
	$(RUN) -m ctssl_jax.report $(SMOKE) --out=$(SMOKE)/report
	$(RUN) -m pytest tests/test_jax_interface.py

test: install $(ORACLES)
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Lint, format and types.
check: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# What is small runs on the CPU, also where there is a GPU: `make JAX_PLATFORMS=cuda demo` takes that.
export JAX_PLATFORMS ?= cpu

clean:
	rm -rf $(VENV) build *.egg-info
