# Every target sets up .venv by itself (about 2 minutes the first time). Settings, each after the target's name:
#   WORKERS=2       processes that train or test at the same time (default: one a core, at most 8)
#   STUDY=smoke     which params/STUDY.yaml `make study` runs
#   PYTHON=python3  the Python (3.10 to 3.14) that .venv is made from

STUDY ?= smoke
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); [ "$$n" -le 8 ] || n=8; echo "$$n")

PY := .venv/bin/python
READY := .venv/.installed

# Another environment that is active in the caller's shell must not leak into ours.
unexport VIRTUAL_ENV CONDA_PREFIX CONDA_DEFAULT_ENV PYTHONHOME PYTHONPATH PYTHONSTARTUP
unexport PIP_USER PIP_TARGET PIP_PREFIX PIP_REQUIRE_VIRTUALENV MPLBACKEND

.DEFAULT_GOAL := help
.PHONY: help setup book test study results lab lint clean bench FORCE
# `make -j book test` still does one after the other: both use all the cores.
.NOTPARALLEL:

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' Makefile
	@sed -n '2,4s/^#/ /p' Makefile

book: $(READY) ## run the smoke study and build the book (6 minutes on 2 cores, then seconds)
	@.venv/bin/eestudy book params/smoke.yaml --workers $(WORKERS)

# One thread a process: two that share the cores with two threads each wait for one another, up to twenty times as long.
test: $(READY) ## all tests, and every committed notebook through nbval
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --nbval --nbval-current-env --nbval-sanitize-with tests/nbval_sanitize.cfg \
	  tests book/chapters book/run.ipynb

study: $(READY) ## run params/$(STUDY).yaml; what is done already is not trained again
	@.venv/bin/eestudy run "params/$(STUDY).yaml" --workers $(WORKERS)

lab: $(READY) ## open JupyterLab on the notebooks
	@$(PY) -m jupyter lab book

lint: $(READY) ## formatter, linter, type checker
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

results: $(READY) ## for maintainers: rerun the committed studies, chapters and the README's table
	@for study in smoke small; do .venv/bin/eestudy run "params/$$study.yaml" --workers $(WORKERS) || exit; done
	@.venv/bin/eestudy refresh

bench: $(READY) ## speed and memory; wants a quiet machine (benchmarks/README.md has more)
	@for file in step overhead; do echo "== benchmarks/$$file.py"; $(PY) "benchmarks/$$file.py" || exit; done

clean: ## remove the built book and caches; training results in runs/ stay
	rm -rf _build build dist .pytest_cache .mypy_cache .ruff_cache eestudy.egg-info
	@find . -name .venv -prune -o -name runs -prune -o -type d \
	  \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
	@echo "Kept: .venv (the environment) and runs/ (training results)."

setup: $(READY) ## only set up .venv
	@echo "Ready: .venv"

# Out of date: a package list changed, the checkout was moved or copied, or the Python below .venv has gone.
ifneq "$(shell cat $(READY) 2>/dev/null)" "$(CURDIR)"
$(READY): FORCE
else ifeq "$(wildcard $(PY))" ""
$(READY): FORCE
endif
$(READY): pyproject.toml constraints.txt
	@PYTHON="$(PYTHON)" sh .ci/setup
