# make report   run every notebook on embedded real data into reports/quick (the main job)
# make test     all tests, among them every notebook at smoke size
# make lab      JupyterLab on the notebooks, on this machine only
# make bench    everything beside its peers, timed, as a table and a picture in reports/bench (15 minutes)
# make faults   kills, full disks, flipped bits and more dealt to real runs: half an hour, ends with a table
# make clean    remove reports (not reports/published), trained things and caches; make distclean: .venv too
#
# Each makes or updates .venv first if requirements.txt or pyproject.toml changed. PYTHON=... chooses the interpreter.

.PHONY: report test lab bench faults clean distclean
.DEFAULT_GOAL := report

RUN := .venv/bin/python
STAMP := .venv/installed
# Notebooks at a time: two on two cores are faster than one with two threads, the models being small.
JOBS ?= 2

report: $(STAMP)
	@$(RUN) -m dfkd_lib run --profile quick --out reports/quick --jobs $(JOBS)

test: $(STAMP)
	@$(RUN) -m pytest

lab: $(STAMP)
	@$(RUN) -m jupyterlab --ip=127.0.0.1 --LabApp.default_url=/lab/tree/notebooks --LabApp.news_url=None \
	    --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate --LabApp.extension_manager=readonly \
	    $(if $(filter 0,$(shell id -u)),--allow-root)

bench: $(STAMP)
	@$(RUN) -m dfkd_lib bench

faults: $(STAMP)
	@FAULTS=full $(RUN) -m pytest -q tests/test_faults.py

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

clean:
	@echo "removing reports (reports/published stays), data/artifacts and caches"
	@find reports -mindepth 1 -maxdepth 1 ! -name published -exec rm -rf {} +
	@rm -rf data/artifacts build *.egg-info .pytest_cache
	@find . -name .venv -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -print | xargs rm -rf

distclean: clean
	@rm -rf .venv
