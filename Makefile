# Every target works from a fresh clone and installs what it needs into $(VENV).
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
FOLDER ?= gpu-check
FUZZ_SECONDS ?= 300
SOAK_SECONDS ?= 1800
TORCH ?= 2.10.0
export MAX_JOBS ?= 2
# The date of all files in wheels and source distributions.
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 315532800)

BIN := $(VENV)/bin
BASE_PYTHON := $(shell command -v $(PYTHON))
# Makes the ninja and cmake of the virtual environment available.
export PATH := $(abspath $(BIN)):$(PATH)
VERSION := $(shell sed -n 's/__version__ = "\(.*\)"/\1/p' shape_roi_align/_version.py)
SOURCES := setup.py shape_roi_align/_version.py $(shell find csrc -type f)
CPP_SOURCES := $(shell find csrc tests examples fuzz scripts -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' -o -name '*.inl')

# Builds for one architecture only, to save time: that of this machine's GPU, or 9.0.
HERE := import torch; print(*torch.cuda.get_device_capability() if torch.cuda.is_available() else (9, 0), sep=".")
ONE_ARCHITECTURE = TORCH_CUDA_ARCH_LIST="$${TORCH_CUDA_ARCH_LIST:-$$($(BIN)/python -c '$(HERE)')}"

.PHONY: help demo study test test-fast fuzz soak docs lint format bench bench-check gpu-check wheel wheel-check clean
.PHONY: build-time demo-plan release-sdist release-wheel release-publish

help:
	@echo "make demo       train Mask R-CNN and MR R-CNN on generated data: a table and pictures"
	@echo "make study      the paper's tables over seeds on generated data; hours; ARGS='--help'"
	@echo "make test       all tests; ARGS='-k name' for some"
	@echo "make test-fast  the tests that are not marked slow, in under 2 minutes"
	@echo "make fuzz       random calls of all kernels under sanitizers; FUZZ_SECONDS=300; needs Clang"
	@echo "make soak       random calls with threads, workers, interrupts and faults; SOAK_SECONDS=1800"
	@echo "make docs       the documentation site, in build/docs/html; warnings are errors"
	@echo "make lint       ruff, mypy and clang-format; make format applies their fixes"
	@echo "make bench      a short benchmark; its rows go to benchmarks/results/"
	@echo "make bench-check  compare the speed-ups over peers with the recorded ones"
	@echo "make gpu-check  build, test, sanitize and measure on a GPU; the report goes to gpu-check/"
	@echo "make wheel      a wheel for every Python and all CUDA architectures, and a source distribution, in dist/"
	@echo "make build-time time a clean build without CUDA, and one with CUDA for one architecture"
	@echo "make wheel-check  build a wheel and test it under the torch releases of TORCH='2.10.0 2.11.0'"
	@echo "make clean      remove everything that these targets created"
	@echo "PYTHON=python3.12 and VENV=folder choose the interpreter and the virtual environment."

$(VENV)/dependencies: pyproject.toml
	$(BASE_PYTHON) -m venv $(VENV)
	$(BIN)/pip install "setuptools>=77" "pybind11>=2.13" ninja numpy "torch>=2.10"
	$(ONE_ARCHITECTURE) $(BIN)/pip install --no-build-isolation --editable ".[dev]"
	touch $@

$(VENV)/built: $(VENV)/dependencies $(SOURCES)
	$(ONE_ARCHITECTURE) $(BIN)/python setup.py build_ext --inplace
	touch $@

demo-plan:
	@[ -e $(VENV)/built ] || echo "Installing into $(VENV) and compiling first, once: a few minutes."

demo: demo-plan $(VENV)/built
	$(BIN)/python examples/train_mrrcnn.py $(ARGS)

study: $(VENV)/built
	$(BIN)/python examples/study_mrrcnn.py $(ARGS)

# Two processes of about the same running time: these, and all other tests.
ASIDE = tests/examples tests/test_build.py
# Threads that wait do not spin, because they would take the processors from the other process.
test: export OMP_WAIT_POLICY = PASSIVE
test: $(VENV)/built
ifneq ($(ARGS),)
	$(BIN)/python -m pytest $(ARGS)
else
	@mkdir -p build
	@echo "$(ASIDE): build/tests-aside.log; here, the others"
	@$(BIN)/python -m pytest $(ASIDE) > build/tests-aside.log 2>&1 & aside=$$!; \
	  $(BIN)/python -m pytest $(addprefix --ignore=,$(ASIDE)); others=$$?; \
	  wait $$aside; failed_aside=$$?; cat build/tests-aside.log; \
	  exit $$((others | failed_aside))
endif

test-fast: $(VENV)/built
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

# API pages import the package, so it is built first.
docs: $(VENV)/built $(VENV)/docs-tools
	rm -rf build/docs
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --builder html --conf-dir docs \
	  --doctree-dir build/docs/doctrees . build/docs/html
	@echo "build/docs/html/index.html: $$(find build/docs/html -name "*.html" | wc -l) pages," \
	  "$$(du -sh build/docs/html | cut -f1)"

# The package is installed already: pip adds the packages of the extra only.
$(VENV)/docs-tools: $(VENV)/dependencies
	$(BIN)/pip install "shape-roi-align[docs]"
	touch $@

# Needs no torch.
fuzz:
	$(BASE_PYTHON) fuzz/run.py --seconds $(FUZZ_SECONDS) $(ARGS)

soak: $(VENV)/built
	$(BIN)/python scripts/soak.py --seconds $(SOAK_SECONDS) $(ARGS)

lint: $(VENV)/dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP_SOURCES)
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
	$(BIN)/zizmor --offline --quiet .github/workflows

format: $(VENV)/dependencies
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_SOURCES)

bench: $(VENV)/built
	$(BIN)/python benchmarks/bench_roi_align.py --quick $(ARGS)
	$(BIN)/python benchmarks/bench_multiscale.py --quick $(ARGS)

bench-check: $(VENV)/built
	$(BIN)/python benchmarks/check_ratios.py $(ARGS)

# Machines with GPUs often have no network. If PYTHON has torch with CUDA, nothing is installed.
gpu-check:
	@if $(BASE_PYTHON) -c "import torch; raise SystemExit(not torch.cuda.is_available())" 2>/dev/null; then \
	  scripts/gpu_check.sh $(BASE_PYTHON) $(FOLDER); \
	else \
	  $(MAKE) $(VENV)/dependencies && scripts/gpu_check.sh $(BIN)/python $(FOLDER); \
	fi

# Builds the wheel from the source distribution, in a separate folder, for every Python and for the
# oldest Linux that torch supports.
wheel: $(VENV)/dependencies
	rm -rf build/release
	$(BIN)/python scripts/link_stubs.py build/link-stubs
	SHAPE_ROI_ALIGN_CUDA=0 $(BIN)/python -m build --sdist --no-isolation --outdir build/release
	$(BIN)/python scripts/reproducible.py build/release/*.tar.gz
	mkdir build/release/source
	tar -xzf build/release/*.tar.gz -C build/release/source --strip-components=1
	SHAPE_ROI_ALIGN_CUDA=$${SHAPE_ROI_ALIGN_CUDA-1} SHAPE_ROI_ALIGN_PYTHON=0 \
	  LDFLAGS="$(LDFLAGS) -L$(abspath build/link-stubs)" \
	  $(BIN)/python -m build --wheel --no-isolation --outdir build/release build/release/source
	$(BIN)/python scripts/repair_wheel.py build/release/*.whl dist
	mv build/release/*.tar.gz dist
	$(BIN)/python scripts/check_fat_binary.py "$$(ls -t dist/*.whl | head -1)"

wheel-check: wheel
	$(BIN)/python scripts/test_wheel.py "$$(ls -t dist/*.whl | head -1)" --torch $(TORCH)

# Builds copies of the working tree.
build-time: $(VENV)/dependencies
	@for cuda in 0 1; do \
	  rm -rf build/timed && mkdir -p build/timed && \
	  cp -r setup.py pyproject.toml README.md LICENSE licenses csrc shape_roi_align build/timed && \
	  rm -f build/timed/shape_roi_align/*.so && start=$$(date +%s) && \
	  (cd build/timed && SHAPE_ROI_ALIGN_CUDA=$$cuda TORCH_CUDA_ARCH_LIST=$${TORCH_CUDA_ARCH_LIST:-9.0} \
	    $(abspath $(BIN))/python setup.py --quiet build_ext > build.log 2>&1) || exit 1; \
	  echo "SHAPE_ROI_ALIGN_CUDA=$$cuda: $$(($$(date +%s) - start)) s with MAX_JOBS=$(MAX_JOBS)"; \
	done; rm -rf build/timed

# The targets of .github/workflows/release.yml. The wheel is built in torch's own build image, which
# needs Docker. A tag, if there is one, must equal the version.
release-sdist: $(VENV)/release-tools
	@[ "$${GITHUB_REF_NAME:-v$(VERSION)}" = "v$(VERSION)" ] || \
	  { echo "tag $$GITHUB_REF_NAME is not v$(VERSION), of shape_roi_align/_version.py"; exit 1; }
	$(BIN)/python -m build --sdist
	$(BIN)/python scripts/reproducible.py dist/*.tar.gz

release-wheel: $(VENV)/release-tools
	$(BIN)/cibuildwheel --output-dir dist

# Uses trusted publishing in the workflow, and a token elsewhere.
release-publish: $(VENV)/release-tools
	$(BIN)/twine check --strict dist/*
	$(BIN)/twine upload --non-interactive dist/*

$(VENV)/release-tools:
	$(BASE_PYTHON) -m venv $(VENV)
	$(BIN)/pip install build "cibuildwheel>=3" "twine>=6.1"
	touch $@

clean:
	rm -rf $(VENV) build dist gpu-check *.egg-info shape_roi_align/*.so
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
