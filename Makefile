# `make demo` and `make test` set everything up by themselves; Python >= 3.11, make and git suffice.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
DEMO ?= runs/demo
# `make test ORACLES=` leaves the PyTorch oracles out; their tests are then skipped.
ORACLES ?= $(VENV)/.oracles-installed

SMOKE ?= runs/smoke

.PHONY: install demo smoke test check clean

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

# The study in small: phantom CT -> four pre-trainings -> fine-tuning from each and from scratch, at
# three training sizes with three seeds -> report. Repeating it goes on.
METHODS := spark moco swav byol
demo: install
	test -d data/phantom || $(RUN) -m data_prep.phantom --out=data/phantom
	set -e; for method in $(METHODS); do \
	  $(RUN) -m ctssl_jax.main --config=configs/$$method.py:demo --workdir=$(DEMO)/$$method; \
	done
	$(RUN) -m launch.sweep --config=configs/ablation.py:demo $(METHODS:%=--config.encoders=$(DEMO)/%) --workdir=$(DEMO)/ablation
	$(RUN) -m ctssl_jax.report $(DEMO) --out=$(DEMO)/report
	@echo "open $(DEMO)/report/report.html"

# Every kind of run for some steps, for a Python on which the tests are not run: what is missing in its
# versions of the libraries shows here.
smoke: install
	test -d data/phantom || $(RUN) -m data_prep.phantom --out=data/phantom
	set -e; for method in $(METHODS) simclr; do \
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
