# make         the whole story on the embedded data; PRESET, DATASET, DATA, SEED, DEVICE choose:
#              make run PRESET=smoke DATASET=bcss-wsss DATA=folder SEED=1
# make quick   the tests of the kernels, in about a minute
# make check   style and types
# make test    every test, the notebooks too
# make lab     JupyterLab on your own copies of the notebooks; RESET=03: a fresh copy of 03
# make site    notebooks, glossary and docs as pages, in site/
# make browser JupyterLab, report and site, tried in Chromium
# make mutants small faults in the kernels: do their tests notice? MODULE="matching maps": those
# make fuzz    a million broken inputs; make soak: a hundred kills, each run resumed to its end
# make offline OUT=/media/stick   all that a room without network needs, for machines like this one;
#              there: make lab WHEELS=/media/stick/wheels
# make clean   undo the install
# Each of them first builds .venv from requirements.lock when it is missing or older than the lock.
# make CPU=1 installs torch without CUDA, a few GB less; only where .venv is built anew.
# The first Python 3.11 to 3.13 found is used; another one: make PYTHON=/path/to/python3.12

PYTHON   = python3.11 python3.12 python3.13 python3
IN_RANGE = import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
UV       = .venv/bin/uv pip install --quiet --python .venv/bin/python $(OFFLINE)

# WHEELS: a folder that `make offline` filled; nothing is asked of the network
ifdef WHEELS
OFFLINE = --no-index --find-links "$(abspath $(WHEELS))"
endif

# Every test, kernel and subprocess reads compiled modules from one folder: a machine that writes
# none compiles torch and all the rest again in each process, 15 s of CPU instead of 6.
export PYTHONPYCACHEPREFIX = $(CURDIR)/.venv/pycache
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test quick check lab site browser mutants fuzz soak offline notebooks badges clean

run: .venv/ready
	.venv/bin/python -m protolib run $(if $(PRESET),--preset $(PRESET)) \
	    $(if $(DATASET),--dataset $(DATASET)) $(if $(DATA),--data "$(DATA)") \
	    $(if $(SEED),--seed $(SEED)) $(if $(DEVICE),--device $(DEVICE)) $(ARGS)

# Two processes of one thread each, fed file by file in the order of collection: all notebooks are
# one file, see tests/conftest.py. More cores: make test ARGS="-n 4".
TWO = OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: .venv/ready
	$(TWO) $(ARGS)

# what builds an environment, runs notebooks, kills processes or trains is marked slow
quick: .venv/ready
	$(TWO) -q -m "not slow" -p no:cacheprovider tests

check: .venv/ready
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/python -m pytest -q -p no:cacheprovider tests/test_style.py

# your own copies of the notebooks, in work/, which git does not see; RESET=03: a fresh 03
lab: .venv/ready
	.venv/bin/python -m protolib lab $(if $(RESET),--reset $(RESET)) $(ARGS)

# notebooks as committed, glossary and docs as pages, in site/
site: .venv/ready
	.venv/bin/python -m protolib site site

# every wheel of the lock, checked by its hash, and the kit as git has it
offline: .venv/ready
	@if [ -z "$(OUT)" ]; then echo "say where to: make offline OUT=/media/stick" >&2; exit 1; fi
	mkdir -p "$(OUT)/wheels" "$(OUT)/protolib"
	.venv/bin/python -m pip download --quiet --disable-pip-version-check --no-deps \
	    --only-binary :all: --require-hashes -r requirements.lock --dest "$(OUT)/wheels"
	git ls-files -z | xargs -0 cp --parents --target-directory "$(OUT)/protolib"
	@echo "there: cp -r $(OUT)/protolib . && cd protolib && make lab WHEELS=$(OUT)/wheels"

# in Debian's Chromium: notebooks 00 and 02 from JupyterLab's menu, a slider, report.html, the site;
# pictures of all in runs/browser/
browser: .venv/ready
	.venv/bin/python -m pytest tests/browser.py $(ARGS)

# what would tests not notice? One small fault after the other; most of an hour for all modules, or
# a part of each: make mutants MODULE="--sample 60"
mutants: .venv/ready
	OMP_NUM_THREADS=1 .venv/bin/python tests/mutate.py $(MODULE)

# labels, TOML, matrices, manifests, results and archives as nobody should write them
fuzz: .venv/ready
	.venv/bin/python tests/fuzz.py $(ARGS)

# kills at random moments of a small run, which is resumed each time: the same results?
soak: .venv/ready
	.venv/bin/python tests/soak.py $(ARGS)

# a bar or a widget is blank without its kernel
define DROP_WIDGETS
import glob, nbformat
WIDGET = "application/vnd.jupyter.widget-view+json"
for path in glob.glob("notebooks/*.ipynb"):
    book = nbformat.read(path, 4)
    for cell in book.cells:
        if cell.cell_type == "code":
            kept = [o for o in cell.outputs if WIDGET not in o.get("data", {})]
            cell.outputs = [o for o in kept if o.get("name") != "stderr"]  # it names our folders
    nbformat.write(book, path)
endef
export DROP_WIDGETS

# badges, the cells at both ends, and in each head the memory that the run just took
STAMP = from pathlib import Path; from protolib.teach import heads; heads.stamp_all(Path())
export STAMP

# for maintainers, before a commit that changes numbers or figures: outputs of preset quick, clean
# of bars and widget state
notebooks: .venv/ready
	.venv/bin/jupyter nbconvert --to notebook --execute --inplace notebooks/*.ipynb
	.venv/bin/python -c "$$DROP_WIDGETS"
	.venv/bin/jupyter nbconvert --to notebook --inplace --TagRemovePreprocessor.enabled=True \
	    --TagRemovePreprocessor.remove_all_outputs_tags=nbval-ignore-output notebooks/*.ipynb
	$(MAKE) badges
	$(STRIP) notebooks/*.ipynb

# after a change of the address in pyproject.toml: badges and first cells say the new one
badges: .venv/ready
	.venv/bin/python -c "$$STAMP"

STRIP = .venv/bin/nbstripout --keep-output --keep-count --keep-id --extra-keys "metadata.papermill \
    metadata.widgets metadata.language_info cell.metadata.papermill cell.metadata.execution"

# runs/ stays: it holds results, not something that make can build again as it was
clean:
	rm -rf .venv protolib.egg-info .pytest_cache .mypy_cache .ruff_cache
	find protolib tests notebooks -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf

# CPU=1: torch's build without CUDA, which PyPI does not have for Linux. uv knows PyTorch's own
# index and locks that build with its hashes here, every other package at the lock's version.
LOCK   = true
LOCKED = requirements.lock
ifdef CPU
LOCKED  = .venv/cpu.lock
BACKEND = --torch-backend cpu
LOCK    = sed -n 's/^\([a-z0-9._-]*==[^ ]*\).*/\1/p' requirements.lock > .venv/versions.txt && \
    .venv/bin/uv pip compile pyproject.toml --quiet --all-extras --generate-hashes $(BACKEND) \
    --python .venv/bin/python --constraints .venv/versions.txt --output-file $(LOCKED) \
    || { echo "CPU=1 takes torch from PyTorch's own package index, and that failed as said above;" \
    "where it cannot be reached, run make without CPU=1: 4 GB of disk more." >&2; exit 1; }
endif

# .venv/ready is written last, so an install that was interrupted starts again.
# uv installs all the rest in seconds; its own version and hashes stand in the lock too, and pip
# installs it. uv does not read pip's settings, so a mirror that pip was told of is passed on.
.venv/ready: requirements.lock
	@for python in $(PYTHON); do \
	    "$$python" -B -c "$(IN_RANGE)" 2>/dev/null && break || python=; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "protolib needs Python 3.11, 3.12 or 3.13 with its venv module," \
	        "and none of these is one: $(PYTHON)." >&2; \
	    echo "Install it (Debian, Ubuntu: apt install python3.11-venv)" \
	        "or say where it is: make PYTHON=/path/to/python3.11" >&2; \
	    exit 1; \
	fi; \
	echo "building .venv with $$("$$python" --version), about a minute the first time ..."; \
	rm -rf .venv && "$$python" -B -m venv .venv
	@sed -n '/^uv==/,/# via/p' requirements.lock > .venv/uv.lock
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check $(OFFLINE) \
	    --require-hashes -r .venv/uv.lock
	@mirror=$$(.venv/bin/python -m pip config list \
	    | sed -n "s/^[^=]*\.index-url='\(.*\)'$$/\1/p" | head -n 1); \
	if [ -n "$$mirror" ]; then export UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX:-$$mirror}"; fi; \
	$(LOCK) && $(UV) $(BACKEND) --require-hashes -r $(LOCKED)
	@$(UV) --no-deps --no-build-isolation -e .
	@touch .venv/ready
