# LeNet-5 from Fashion-MNIST to production. `make` alone prints the targets.
#
# Each target does what it needs first, and nothing twice: `make serve` on a fresh clone sets up, finds the data, trains,
# exports and serves; the second time it serves at once. Settings go in as `make train ARGS="--seeds 3"`.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# The last thing that a finished training writes; a broken-off one has a checkpoint too.
TRAINED := artifacts/checkpoint/classes.csv
# Written anew by every export, after the version it announces is whole.
EXPORTED := artifacts/models/lenet5/config.pbtxt

# A host where nvidia-smi answers gets the GPU's extras; `make setup RUNTIME=serve` overrules it.
comma := ,
RUNTIME ?= $(shell nvidia-smi --list-gpus >/dev/null 2>&1 && echo gpu || echo serve)
EXTRAS ?= $(RUNTIME),$(if $(filter gpu,$(RUNTIME)),tensorrt$(comma))train,export,load,bulk,playground,audit,dev
SETUP := $(VENV)/.set-up-$(RUNTIME)
INSTALL = $(RUN) -m pip install --disable-pip-version-check
# hdrhistogram alone has no wheel for arm64, and is compiled there.
WHEELS := --only-binary :all:$(if $(filter aarch64,$(shell uname -m)), --no-binary hdrhistogram)
# Of these extras what requirements/ pins, and nothing whose hash is not there. Ours is built with what build.txt pins.
PINNED = $(RUN) -m atelier.installing $(RUN) --require-hashes $(WHEELS) $(patsubst %,--requirement requirements/%.txt,$(1))
BUILD = PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(INSTALL) --no-deps --no-build-isolation
# The native front end: built by cargo, and without it left out.
NATIVE := $(VENV)/.native
NATIVE_SOURCES := $(wildcard native/src/*.rs native/src/*/*.rs native/src/*/*/*.rs native/src/*/*.json native/protos/*.proto protos/*.proto) native/build.rs \
  native/Cargo.toml native/pyproject.toml native/pins.lock
export CARGO_TARGET_DIR := $(CURDIR)/.cache/native
# Where a shell has it set, every process of hundreds would compile our sources anew.
unexport PYTHONDONTWRITEBYTECODE
CARGO := $(shell command -v cargo 2>/dev/null)
CARGO_DENY := $(shell command -v cargo-deny 2>/dev/null)
CARGO_TEST := $(if $(CARGO),$(RUN) native/pins.py restore && cd native && cargo test --quiet --locked --lib)
# A file's tests stay together, for they share servers; who has none left takes from the end of another's.
PYTEST := $(RUN) -m pytest --numprocesses 3 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup data train curves export serve classify sbom audit pins test test-all check loadtest attack restarts soak reliability reliability-full bench ladder runtimes look gpu-report clean
.NOTPARALLEL:

help: ## print the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

setup: $(SETUP) $(NATIVE) ## make .venv, install the pinned versions (with the GPU's where nvidia-smi answers), build the native front end

$(SETUP): pyproject.toml $(wildcard requirements/*.txt) hatch_build.py $(wildcard protos/*.proto)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: BAD_PYTHON: $(PYTHON) is $$($(PYTHON) --version 2>&1) (Python 3.11 or later: make setup PYTHON=python3.12)" >&2; exit 78; }
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "error: NO_VENV: $(PYTHON) cannot make a virtual environment (Debian and Ubuntu: apt-get install python3-venv)" >&2; exit 69; }
	@$(RUN) -m pip uninstall --quiet --yes onnxruntime onnxruntime-gpu 2>/dev/null; rm -f $(VENV)/.set-up-*
	$(INSTALL) --quiet --require-hashes --only-binary :all: --requirement requirements/build.txt
	@$(INSTALL) --quiet --require-hashes --only-binary :all: --requirement requirements/uv.txt || echo "note: without uv, for the reason above: pip takes four times as long"
	$(call PINNED,$(filter-out tensorrt,$(subst $(comma), ,$(EXTRAS))))
	$(BUILD) --editable .
	$(if $(findstring tensorrt,$(EXTRAS)),$(INSTALL) --constraint constraints.txt tensorrt)
	$(call PINNED,rtx) || echo "note: without TensorRT for RTX, for the reason above: make export leaves its engine out (make --always-make setup tries again)"
	@touch $@

ifeq ($(CARGO),)
$(NATIVE): | $(SETUP)
	@echo "note: without cargo there is no native front end; serving goes on with grpcio (rustup or apt-get install cargo, 1.88 or later, then: make setup)"
else
$(NATIVE): $(NATIVE_SOURCES) | $(SETUP)
	@echo "building the native front end: some minutes the first time"
	@$(RUN) native/pins.py restore && $(BUILD) --quiet ./native && touch $@ \
	  || echo "warning: the native front end was not built, for the reason above; serving goes on with grpcio"
endif

data: $(SETUP) ## find Fashion-MNIST, or fetch it, and check its digests
	$(RUN) -m training.dataset $(ARGS)

train: $(SETUP) ## train LeNet-5 on the 60,000 images: artifacts/checkpoint/; make train RECIPE=classic, or modern
	$(RUN) -m training $(if $(RECIPE),--recipe $(RECIPE)) $(ARGS)

curves: $(SETUP) ## watch a training, in the browser: TensorBoard on localhost:6006
	$(RUN) -m tensorboard.main --logdir artifacts/checkpoint $(ARGS)

$(TRAINED): | $(SETUP)
	$(RUN) -m training --resume

export: $(TRAINED) ## write a new version to artifacts/models/lenet5/, once every runtime gives the same answers
	$(RUN) -m export $(ARGS)

$(EXPORTED): $(TRAINED)
	$(RUN) -m export

serve: $(EXPORTED) $(NATIVE) ## answer Classify over gRPC on localhost:50051
	$(RUN) -m serving $(ARGS)

classify: $(SETUP) ## ask the running server: make classify FILES="shirt.png bag.jpg"; without FILES, 16 test images
	$(RUN) -m $(if $(FILES),atelier.classify $(FILES),loadtest.samples) $(ARGS)

sbom: $(SETUP) ## write bills of materials in CycloneDX: Python, Rust and the newest version of the model: artifacts/sbom/
	$(RUN) -m export.sbom $(ARGS)

audit: $(SETUP) ## ask the advisory databases about every pinned package and crate
	$(RUN) requirements/audit.py $(ARGS)
	$(if $(CARGO_DENY),$(RUN) native/pins.py restore && cd native && cargo deny check,@echo "note: the crates were not looked at: cargo install --locked cargo-deny, then: make audit")

pins: $(SETUP) ## pin again what setup installs, with hashes: requirements/; newest versions by ARGS=--upgrade
	$(RUN) requirements/pin.py $(ARGS)

test: $(SETUP) $(NATIVE) ## run the tests that are fast, in three minutes (no GPU needed)
	$(CARGO_TEST)
	$(PYTEST) -m "not slow and not timing" $(ARGS)

test-all: $(SETUP) $(NATIVE) ## run all tests, in a quarter of an hour; those that measure time come last, one at a time
	$(CARGO_TEST)
	$(PYTEST) -m "not timing"
	$(RUN) -m pytest -m timing $$(grep -rl --include='test_*.py' mark.timing tests)

check: $(SETUP) ## lint, format and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(if $(CARGO),$(RUN) native/pins.py restore && cd native && cargo fmt --check && cargo clippy --quiet --locked --all-targets -- -D warnings)

loadtest: $(EXPORTED) $(NATIVE) ## the served model under load, beside PyTorch and the raw runtime: verdict, report.html
	$(RUN) -m loadtest $(ARGS)

attack: $(EXPORTED) $(NATIVE) ## attack a server of one's own in 24 ways, an honest client beside each: see docs/attacks.md
	$(RUN) -m loadtest.attack $(ARGS)

restarts: $(EXPORTED) $(NATIVE) ## stop and kill a server under load, give it new versions good and bad, and account for every request
	$(RUN) -m loadtest.restarts $(ARGS)

soak: $(EXPORTED) $(NATIVE) ## a fault every second for ten minutes, kills and broken files among them, and every request accounted for
	$(RUN) -m loadtest.soak $(ARGS)

reliability: $(EXPORTED) $(NATIVE) ## measure the goals G1 to G26 of reliability, at the gate's size: see docs/reliability.md
	$(RUN) -m tests.reliability $(ARGS)

reliability-full: $(EXPORTED) $(NATIVE) ## the same at a release's size, in hours; goes on where it was stopped
	$(RUN) -m tests.reliability --full $(ARGS)

bench: $(EXPORTED) $(NATIVE) ## serving beside echo servers and raw ONNX Runtime, in one run; PEERS=1 adds other model servers
	$(RUN) -m loadtest.bench $(if $(PEERS),--measure peers$(comma)overload$(comma)training) $(ARGS)

ladder: $(TRAINED) ## what each precision costs in accuracy and gains in speed: fp32, tf32, fp16, bf16, int8
	$(RUN) -m export.ladder $(ARGS)

runtimes: $(EXPORTED) ## the served model in 13 other frameworks and runtimes: answers, speed, size; ARGS="--only openvino,tract"
	$(RUN) -m export.runtimes $(ARGS)

look: $(EXPORTED) ## look at the exported graph in Netron, in the browser
	$(RUN) -m export.look $(ARGS)

gpu-report: $(SETUP) ## measure every claim about GPUs here, in 10 minutes: reports/gpu-<name>-<date>.md; without a GPU, rehearse
	$(RUN) -m loadtest.gpu_report $(ARGS)

clean: ## remove what was made here, but not the data
	rm -rf $(VENV) .cache artifacts build dist .mypy_cache .ruff_cache .pytest_cache atelier/wire/*_pb2.py atelier/wire/*_pb2.pyi
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
