# `make report` runs the notebooks, `make test` checks everything, `make quick` the unit tests alone, `make strict` the
# notebooks' outputs as other processors compute them, `make floors` the lowest versions of what is installed, `make lab`
# opens JupyterLab, `make site` writes a static site, `make practical` the notebooks of the practical session.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# They run side by side, one on each core, the longest first.
LONGEST = 03_conv_vae 02_mlp_vae 05_latent_exploration
# A copy (01_theory_and_kl-Copy1, with a space, ...) is its maker's own affair.
NOTEBOOKS = $(LONGEST) $(filter-out $(LONGEST),$(sort $(shell ls notebooks | sed -n 's/^\([A-Za-z0-9_]*\)\.ipynb$$/\1/p')))
CORES ?= $(shell nproc 2> /dev/null || sysctl -n hw.ncpu)
# So many bytes of what a step frees, glibc keeps for the next one: new pages take up to a tenth of a convolutional step.
export MALLOC_MMAP_THRESHOLD_ ?= 33554432
export MALLOC_TRIM_THRESHOLD_ ?= 268435456
export PRACTICAL_VENV ?= $(VENV)-practical
HANDOUT ?= practical/handout
comma := ,

.PHONY: report test quick strict floors lab site practical $(NOTEBOOKS:%=run-%)

report: $(VENV)/ready
	@rm -rf $(VENV)/report && mkdir $(VENV)/report
	+@$(MAKE) --no-print-directory --jobs=$(CORES) $(NOTEBOOKS:%=run-%)
	@echo 'The report stands in notebooks/ with its new outputs, its figures in figures/. Read it with: make lab'

# One notebook, also by hand: make run-02_mlp_vae
$(NOTEBOOKS:%=run-%): run-%: $(VENV)/ready
	@mkdir -p $(VENV)/report; start=$$(date +%s); log=$(VENV)/report/$*.log; echo "$*: begins"; \
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/jupyter nbconvert --to notebook --execute --inplace --log-level=ERROR \
		--ExecutePreprocessor.record_timing=False --ExecutePreprocessor.store_widget_state=False \
		--ExecutePreprocessor.startup_timeout=180 notebooks/$*.ipynb > $$log 2>&1 \
		|| { tail -n 40 $$log; echo "$*: failed; run it alone with: make run-$*"; exit 1; }; \
	touch $(VENV)/report/$*.done; left=$$(($(words $(NOTEBOOKS)) - $$(ls $(VENV)/report/*.done | wc -l))); \
	echo "$*: done in $$(($$(date +%s) - start)) s, $$left left"

test: $(VENV)/ready $(PRACTICAL_VENV)/ready
	$(BIN)/pytest --nbval

quick: $(VENV)/ready
	$(BIN)/pytest tests --ignore=tests/test_browser.py --ignore=tests/test_site.py \
		--deselect=tests/test_practical.py::test_the_sliders_decode_in_jupyterlab_by_the_model_just_trained

# The notebooks' outputs must hold on other processors too: without vector instructions, and with two threads.
strict: $(VENV)/ready
	ATEN_CPU_CAPABILITY=default $(BIN)/pytest --nbval notebooks
	OMP_NUM_THREADS=2 $(BIN)/pytest --nbval -n 1 notebooks

# The lowest versions that pyproject.toml allows, best with the oldest Python (make floors PYTHON=python3.10), among
# today's of all else, of which old libraries warn. The outputs of notebook 05 are compared as ever.
FLOOR = $(VENV)-floor
floors:
	$(PYTHON) -m venv --clear $(FLOOR)
	$(FLOOR)/bin/pip install --quiet uv
	$(FLOOR)/bin/uv pip install --quiet --python $(FLOOR)/bin/python --resolution lowest-direct --editable .
	$(FLOOR)/bin/uv pip install --quiet --python $(FLOOR)/bin/python nbval pytest-xdist hypothesis playwright
	$(FLOOR)/bin/pytest -W ignore::DeprecationWarning -W ignore::pytest.PytestUnraisableExceptionWarning \
		--nbval notebooks/05_latent_exploration.ipynb tests \
		$(patsubst %,--ignore=tests/test_%.py,browser site practical project notebooks)

lab: $(VENV)/ready
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks

site: $(VENV)/ready
	$(BIN)/python -m tools.site site

# The practical session as a student, a teacher and whoever corrects it get it, by jupytext-notebook-helper. The tool
# draws the cells' names anew at each run; numbers in their place make the same source the same file.
practical: $(foreach who,student solution teacher,$(foreach where,local colab,$(HANDOUT)/$(who)/$(where)/vae.ipynb))
	@echo 'The notebooks of the practical stand in $(HANDOUT)/.'

$(HANDOUT)/%/vae.ipynb: practical/vae.py practical/checks.py $(PRACTICAL_VENV)/ready
	@mkdir -p $(@D)
	@NOTEBOOK_OUTPUT=notebook $(PRACTICAL_VENV)/bin/python -m jupytext_notebook_helper.filter --src-root . \
		$(if $(findstring solution/,$*),--solution) $(if $(findstring teacher/,$*),--teacher) \
		--exclude $(if $(findstring local,$*),colab,not-colab)$(if $(findstring teacher/,$*),,$(comma)teacher) \
		practical/vae.py > $@.partial 2> $@.log || { cat $@.log; exit 1; }
	@awk 'sub(/^   "id": "[0-9a-f]+"/, "   \"id\": \"cell-" n + 0 "\"") { n++ } 1' $@.partial > $@
	@rm $@.partial $@.log

# An environment of its own, for the tool and jupytext alone, in which PyTorch is not needed. What else the tool asks
# for draws in a terminal, which is not done here: it stays out, and with it a package without a wheel.
$(PRACTICAL_VENV)/ready: pyproject.toml
	$(PYTHON) -m venv --clear $(PRACTICAL_VENV)
	set -- $$($(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["practical"])'); \
	$(PRACTICAL_VENV)/bin/pip install --quiet "$$1" && $(PRACTICAL_VENV)/bin/pip install --quiet --no-deps "$$2"
	touch $@

# The environment: exact versions from environment.yml, the package itself in editable mode. uv installs them in a third
# of pip's time; where it cannot be had, pip does. Both compile to bytecode at once: where Python may write none later, as
# in many containers, each process would compile PyTorch anew. An interrupted installation has no `ready` and begins again.
$(VENV)/ready: environment.yml pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; choose one with: make PYTHON=...")'
	$(PYTHON) -m venv --clear $(VENV)
	sed -n 's/^      - //p' environment.yml > $(VENV)/requirements.txt
	$(BIN)/pip install --quiet uv || echo 'uv is not to be had: pip installs'
	if [ -x $(BIN)/uv ]; then $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python \
		--requirement $(VENV)/requirements.txt; \
	else $(BIN)/pip install --quiet --requirement $(VENV)/requirements.txt; fi
	touch $@
