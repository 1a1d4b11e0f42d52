# Two commands: `make demo` and `make test`. Both install what they need into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= demo

.PHONY: install demo test test-all check clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	# compat: a plain path entry, so that a clone called distsparse beside a script does not hide the package.
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt \
		--config-settings editable_mode=compat -e '.[ray,fast,dev]'
	touch $@

demo: install
	$(BIN)/distsparse sweep tune_spaces/demo.yaml --output $(DEMO)
	$(BIN)/distsparse results $(DEMO)
	$(BIN)/distsparse pareto $(DEMO) --maximize accuracy --maximize sparsity --minimize latency_ms \
		--plot $(DEMO)/pareto.png --csv $(DEMO)/pareto.csv
	$(BIN)/distsparse report $(DEMO) --output $(DEMO)/report.html

test: install check
	$(BIN)/pytest -m 'not slow'

# Everything, the slow tests too: real Ray sessions, killed processes.
test-all: install check
	$(BIN)/pytest

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(DEMO)
