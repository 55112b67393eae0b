# make train    install, then train and show the tiny model            (minutes)
# make check-1B install, then the whole way at the real shapes of 1B with random weights, on the CPU: is there memory, is the way open (minutes);
#               picture and result in runs/check-1B/
# make test     install, then run every notebook at smoke size, then pytest; both with one process per core
# make mutants  would the tests notice a mistake? Sixty drawn changes of one line, one at a time (some 15 minutes on one core; stopped, it goes on); score in runs/mutants/
# make kills    is a run that was killed, or whose disk was full, still the same? Thirty drawn strikes at small runs (some twenty minutes on one core; stopped, it goes on);
#               counts in runs/kills/
# make docs     install, then the documentation site in _site/: notebooks with their outputs, newest runs of runs/ where there are any, else what is quick at its smallest
#               size; fails on a broken link and on a picture without a text. No network, neither now nor when it is read
# make results  for maintainers: the results of the runs named by PUBLISH become the published ones, and figures/ and README's table are made anew; refuses a tree
#               that differs from its commit. Nothing else changes files that are committed
# make install  everything above needs, in .venv; does nothing when it is there already
# make clean    remove the environment, caches and test leftovers; runs/ and data/ stay

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
SIZE ?= tiny
PUBLISH ?= tiny
RUNS := $(or $(PERCEPTIO_HOME),.)/runs

.PHONY: install train check-1B docs results test mutants kills clean
.DEFAULT_GOAL := install

install: $(STAMP)

# sam2 and lmms-eval come last and alone: they would pull torchvision, which nothing here imports (beside a torch without CUDA it does not even load), and 800 MB of
# packages for tasks that nothing here runs. What they import for what is run is in pyproject.toml.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.version_info >= (3, 11) or sys.exit('Perceptio needs Python 3.11 or newer: make install PYTHON=/path/to/python3.11')"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev,eval,docs]'
	SAM2_BUILD_CUDA=0 $(BIN)/python -m pip install --no-deps --no-build-isolation --constraint constraints.txt sam2
	$(BIN)/python -m pip install --no-deps --constraint constraints.txt lmms-eval
	touch $@

train: install
	mkdir -p "$(RUNS)/$(SIZE)"
	$(BIN)/papermill nbs/train.ipynb "$(RUNS)/$(SIZE)/train.ipynb" -p size $(SIZE)

check-1B: export HF_HUB_OFFLINE = 1
check-1B: install
	mkdir -p "$(RUNS)"
	$(BIN)/papermill nbs/check_1B.ipynb "$(RUNS)/check-1B.ipynb" -p size 1B

docs: install
	$(BIN)/python docs/build_site.py

results: install
	mkdir -p "$(RUNS)"
	$(BIN)/papermill nbs/reproduce.ipynb "$(RUNS)/reproduce.ipynb" -p publish "$(PUBLISH)"

# Tests take nothing from a network, use no GPU, draw on no screen and use one thread per process: nbdev_test and pytest run one process per core.
test: export HF_HUB_OFFLINE = 1
test: export CUDA_VISIBLE_DEVICES =
test: export MPLBACKEND = agg
test: export OMP_NUM_THREADS = 1
test: install
	$(BIN)/nbdev_test && $(BIN)/pytest -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

mutants kills: export HF_HUB_OFFLINE = 1
mutants kills: export CUDA_VISIBLE_DEVICES =
mutants kills: export MPLBACKEND = agg
mutants kills: export OMP_NUM_THREADS = 1
mutants kills: export TOKENIZERS_PARALLELISM = false
mutants: install
	nice $(BIN)/python tests/mutants.py

kills: install
	nice $(BIN)/python tests/kills.py

clean:
	rm -rf .venv build _site .pytest_cache .ruff_cache *.egg-info
	find perceptio nbs tests -name __pycache__ -prune -exec rm -rf {} +
