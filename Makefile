# The targets, and what each does: make help
#
# Each makes or updates .venv first if requirements.txt or pyproject.toml changed. PYTHON=... chooses the interpreter.

.PHONY: help install report night test test-slow lint hooks lab bench faults fuzz audit clean distclean
.DEFAULT_GOAL := report

RUN := .venv/bin/python
STAMP := .venv/installed
# Notebooks at a time: two on two cores are faster than one with two threads, the models being small.
JOBS ?= 2

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' Makefile

install: $(STAMP)  ## what all need, into .venv, and nothing else
	@$(RUN) -m dfkd_lib list > /dev/null  # so that a typo is answered at once from now on
	@echo "installed. Next: make lab opens the notebooks, make report runs all of them into reports/quick,"
	@echo ".venv/bin/dfkd list 30 shows what notebook 30 may be told, make help what else there is."

report: $(STAMP)  ## run every notebook on embedded data into reports/quick (the main job)
	@$(RUN) -m dfkd_lib run --profile quick --out reports/quick --jobs $(JOBS)

night: $(STAMP)  ## the same over one night on two cores, at paper A's numbers of images, into reports/night
	@$(RUN) -m dfkd_lib run --profile night --out reports/night --jobs $(JOBS)

# A worker of pytest takes one thread and whole files, so that what a module sets up is set up once.
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile
SLOW := slow or browser or faults or fuzz or processes

test: $(STAMP)  ## the tests that a contributor waits for
	@$(PYTEST) -m "not ($(SLOW))"

test-slow: $(STAMP)  ## the other tests: browser, faults, fuzz, several processes, notebooks at smoke size
	@$(PYTEST) -m "$(SLOW)"

lint: $(STAMP)  ## ruff, notebooks without outputs, and mypy on core, losses, attention, metrics and training
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m nbstripout --verify --keep-id notebooks/*.ipynb
	@$(RUN) -m mypy

hooks: $(STAMP)  ## let git run ruff and nbstripout before each commit
	@$(RUN) -m pre_commit install

# What JupyterLab writes into a notebook that it has run is no change: git does not see outputs, counts and versions.
LANGUAGE := codemirror_mode file_extension mimetype nbconvert_exporter pygments_lexer version
STRIP := $(RUN) -m nbstripout --keep-id --extra-keys "$(addprefix metadata.language_info.,$(LANGUAGE))"

lab: $(STAMP)  ## JupyterLab on the notebooks, on this machine only, at notebook 00
	@git config filter.notebooks.clean '$(STRIP)' 2>/dev/null || true
	@$(RUN) -m jupyterlab --ip=127.0.0.1 --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb --LabApp.news_url=None \
	    --FileContentsManager.post_save_hook=dfkd_lib.pipeline.lab.refresh \
	    --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate --LabApp.extension_manager=readonly \
	    $(if $(filter 0,$(shell id -u)),--allow-root)

bench: $(STAMP)  ## everything beside its peers, timed, as a table in reports/bench (20 minutes)
	@PYTHONPATH=tests $(RUN) -m bench

faults: $(STAMP)  ## kills, full disks, flipped bits and more injected into real runs: an hour
	@FAULTS=full $(RUN) -m pytest -v tests/robustness/test_faults.py

# More bad input than the tests try, from a new seed; FUZZ=100 tries a hundred times as much.
FUZZ ?= 10
fuzz: $(STAMP)  ## ten times the bad input that the tests try, from a new seed
	@DFKD_FUZZ=$(FUZZ) $(RUN) -m pytest tests/robustness/test_fuzz.py -s

# pip-audit passes over what a database does not know, and ends with 0: --strict makes that an error, told apart below.
audit: $(STAMP)  ## known vulnerabilities of the pinned packages (needs the network)
	@grep -E '^[A-Za-z0-9._-]+==' requirements.txt > .venv/pins.txt; \
	$(RUN) -c 'import pip_audit' 2>/dev/null || { echo "installing pip-audit into .venv (once)"; \
	  PIP_REQUIRE_VIRTUALENV=1 $(RUN) -m pip install --disable-pip-version-check --quiet -c .venv/pins.txt -e '.[audit]' || exit 2; }; \
	for database in pypi osv; do \
	  $(RUN) -m pip_audit --strict --disable-pip --no-deps --progress-spinner off -s $$database -r .venv/pins.txt \
	    > .venv/audit.txt 2>&1 && { cat .venv/audit.txt; exit 0; }; \
	  grep -q 'Found .* known vulnerabilit' .venv/audit.txt && { cat .venv/audit.txt; exit 1; }; \
	  echo "$$database: $$(grep . .venv/audit.txt | tail -1 | cut -c1-200)" >&2; \
	done; \
	echo "no vulnerability database could be asked about every pinned package: nothing can be said of them" >&2; exit 2

# The stamp holds a checksum of both files: a fresh checkout changes their dates but not what is installed.
$(STAMP): requirements.txt pyproject.toml
	@sum=$$(cat requirements.txt pyproject.toml | cksum); \
	if $(RUN) -c '' 2>/dev/null && [ "$$(cat $(STAMP) 2>/dev/null)" = "$$sum" ]; then touch $(STAMP); exit 0; fi; \
	python=; for p in $(PYTHON) python3.11 python3.12 python3.13 python3; do \
	  if command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then python=$$p; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "Python 3.11 or newer is needed; found $$(python3 --version 2>&1). Install it, or: make PYTHON=/path/to/python3" >&2; \
	  exit 1; \
	fi; \
	$(RUN) -c '' 2>/dev/null || $$python -m venv --clear .venv || exit 1; \
	echo "installing the pinned requirements into .venv (once; some minutes)"; \
	$(RUN) -m pip install --disable-pip-version-check --quiet -r requirements.txt || exit 1; \
	echo "$$sum" > $(STAMP)

clean:  ## remove reports (not reports/published), trained things and caches
	@echo "removing reports (reports/published stays), data/artifacts and caches"
	@find reports -mindepth 1 -maxdepth 1 ! -name published -exec rm -rf {} +
	@rm -rf data/artifacts build *.egg-info .mypy_cache .pytest_cache .ruff_cache
	@find . -name .venv -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -print | xargs rm -rf

distclean: clean  ## the same, and .venv
	@rm -rf .venv
