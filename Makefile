# Everything a reader or developer starts: `make` lists it. Works on a bare machine with Python >= 3.11.
PYTHON ?= python3
PROFILE ?= quick
NOTEBOOKS ?=
BIN := .venv/bin
READY := .venv/.installed

.PHONY: help tutorial test unit nbval lab refresh bench site record check clean
.DELETE_ON_ERROR:

help:  ## list what can be made
	@echo "make TARGET [PYTHON=python3.11] [PROFILE=quick|full|paper] [NOTEBOOKS='01 03']"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1|\2/p' Makefile | column -t -s '|' 2>/dev/null || sed -n 's/^\([a-z]*\):.*## /  \1: /p' Makefile

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "$(PYTHON) is `$(PYTHON) --version 2>&1 || true`; mr2ct needs Python 3.11 or newer. Install one, then: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "Installing the exact versions of constraints.txt into .venv; the first time takes some minutes"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { \
	  echo "$(PYTHON) cannot make a virtual environment; on Debian or Ubuntu install python3-venv first" >&2; exit 1; }
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[notebooks,test]'
	@touch $@

tutorial: $(READY)  ## run the notebooks in a profile; leaves runs/PROFILE/report.html
	@echo "Running the notebooks in profile $(PROFILE); results go to runs/$(PROFILE)"
	@$(BIN)/python -m tools.tutorial --profile $(PROFILE) $(NOTEBOOKS)

test: unit nbval  ## unit tests, doctests, notebook hygiene, and every notebook against its stored outputs

unit: $(READY)  ## unit tests, doctests and notebook hygiene only
	@echo "Running unit tests, doctests and notebook hygiene"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

nbval: $(READY)  ## every notebook against its stored outputs
	@echo "Running every notebook and comparing what it prints with what is stored"
	@env -u MPLBACKEND $(BIN)/python -m pytest -n auto --maxprocesses 2 --dist loadfile \
	  --nbval --nbval-current-env --nbval-cell-timeout=1200 --nbval-sanitize-with notebooks/sanitize.cfg $(if $(NOTEBOOKS),$(foreach n,$(NOTEBOOKS),$(wildcard notebooks/$(n)*.ipynb)),notebooks/)

lab: $(READY)  ## open working copies of the notebooks in JupyterLab
	@echo "Opening JupyterLab; its notebooks are copies in lab/"
	@$(BIN)/python -m tools.lab $(NOTEBOOKS)

refresh: $(READY)  ## run the notebooks and store their outputs (the only way to do so)
	@echo "Running the notebooks and storing their outputs"
	@$(BIN)/python -m tools.refresh $(NOTEBOOKS)

bench: $(READY)  ## measure speed ratios within one run
	@echo "Measuring the benchmarks"
	@$(BIN)/python -m benchmarks

record: $(READY)  ## train, measure and record what is missing in results/ (PROFILE=full, BUDGET=minutes)
	@echo "Recording the experiments that are missing in results/; an interrupted training continues next time"
	@$(BIN)/python -m tools.record --profile $(if $(filter command line,$(origin PROFILE)),$(PROFILE),full) $(if $(BUDGET),--budget $(BUDGET))

site: $(READY)  ## the website: notebooks, docs, results and library, in site/
	@echo "Building the website in site/; nothing is executed"
	@$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[site]'
	@$(BIN)/python -m tools.site

check: $(READY)  ## ruff and the unit tests, before a commit
	@echo "Checking style, then running the unit tests"
	@$(BIN)/ruff check .
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests

clean:  ## remove .venv, runs/, lab/ and site/
	@echo "Removing .venv, runs, lab and site"
	@rm -rf .venv runs lab site site_build
