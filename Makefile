# `make report` runs the notebooks, `make test` checks everything, `make strict` checks the notebooks' outputs as other
# processors compute them, `make lab` opens JupyterLab, `make site` writes the report as a static site.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
NOTEBOOKS = $(sort $(wildcard notebooks/*.ipynb))

.PHONY: report test strict lab site

report: $(VENV)/ready
	@for notebook in $(NOTEBOOKS); do \
		start=$$(date +%s); printf '%s ... ' "$$notebook"; \
		$(BIN)/jupyter nbconvert --to notebook --execute --inplace --log-level=ERROR \
			--ExecutePreprocessor.record_timing=False --ExecutePreprocessor.store_widget_state=False \
			"$$notebook" || exit 1; \
		echo "done in $$(($$(date +%s) - start)) s"; \
	done
	@echo 'The report stands in notebooks/ with its new outputs, its figures in figures/. Read it with: make lab'

test: $(VENV)/ready
	$(BIN)/pytest --nbval

# The notebooks' outputs must hold on other processors too: without vector instructions, and with one thread.
strict: $(VENV)/ready
	ATEN_CPU_CAPABILITY=default $(BIN)/pytest --nbval notebooks
	OMP_NUM_THREADS=1 $(BIN)/pytest --nbval notebooks

lab: $(VENV)/ready
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks

site: $(VENV)/ready
	$(BIN)/python -m tools.site site

# The environment: exact versions from environment.yml, the package itself in editable mode.
$(VENV)/ready: environment.yml pyproject.toml
	$(PYTHON) -m venv $(VENV)
	sed -n 's/^      - //p' environment.yml > $(VENV)/requirements.txt
	$(BIN)/pip install --quiet --requirement $(VENV)/requirements.txt
	touch $@
