# Each target sets up what it needs in .venv, from constraints.txt; nothing else on the machine is touched.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
KINDS := sanitize race
# Most tests keep one core busy, so several processes share them; more than four would need more memory than speed.
PARALLEL := -n auto --maxprocesses 4 --dist worksteal
# Built is what this machine runs, a wheel holds all: CUDA C++ where there is a GPU, the instruction sets of this processor.
HAS = $(shell grep -qsw $(1) /proc/cpuinfo && echo ,$(2))
MLPERF_FAST_CUDA ?= $(if $(shell command -v nvidia-smi),auto,0)
MLPERF_FAST_LEVELS ?= generic$(call HAS,avx2,avx2)$(call HAS,avx512bw,avx512)
SOURCES := $(wildcard $(addprefix csrc/,$(addprefix *.,cpp h cu cuh) $(addprefix */*.,cpp h cu cuh)))
FORMATTED := $(SOURCES) $(wildcard $(addprefix tests/emulate/,*.h *.cu */*.cu))

# What `make submission-demo` makes; with the DEMO of an earlier call it goes on where that was stopped.
ifndef DEMO
DEMO := runs/submission-demo-$(shell date +%Y%m%d-%H%M%S)
endif
SUBMITTER ?= demo
SYSTEM ?= this_machine

.PHONY: demo submission-demo test emulate ptxas lint format bench gpu clean

demo: $(READY)  ## train DLRM's demo to its target with the native kernels
	$(BIN)/mlperf-fast run dlrm --preset demo

submission-demo: $(READY)  ## DLRM's demo as a whole submission: runs, check, score, package, official verdict, report
	$(BIN)/mlperf-fast campaign dlrm --preset demo --runs official --out $(DEMO)/dlrm \
	    --set submission_org=$(SUBMITTER) --set submission_platform=$(SYSTEM) $(ARGS)
	$(BIN)/mlperf-fast check $(DEMO)/dlrm
	$(BIN)/mlperf-fast score $(DEMO)/dlrm
	$(BIN)/mlperf-fast package $(DEMO)/dlrm --submitter $(SUBMITTER) --division open --system-name $(SYSTEM) \
	    --allow-unknown --out $(DEMO)/package
	$(BIN)/mlperf-fast report $(DEMO)/package/$(SUBMITTER) -o $(DEMO)/report.html
	@echo
	@echo "Made in $(DEMO), division open, of made-up data: it shows the way, and claims nothing."
	@echo "  dlrm/          the runs: logs, configurations, output"
	@echo "  package/       the submission, which our check and the official package checker accept"
	@echo "  report.html    scores, curves and verdicts on one page, for a browser"

test: $(READY)  ## everything that needs no GPU; Triton's kernels run in its interpreter, CUDA's in the emulator
	$(BIN)/python -m pytest $(PARALLEL)
	TRITON_INTERPRET=1 $(BIN)/python -m pytest $(PARALLEL) tests/ops tests/loop -k triton
	$(MAKE) emulate

emulate: $(READY)  ## the CUDA kernels on the host; make emulate KINDS=race ARGS='-k "cuda and sgd" -x'
	for kind in $(KINDS); do $(BIN)/python tests/emulated.py $$kind $(PARALLEL) $(ARGS) || exit 1; done

ptxas: $(READY)  ## registers, spills and shared memory of every kernel against its budget; make ptxas UPDATE=1
	$(BIN)/python tests/budgets.py $(if $(UPDATE),--update)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(FORMATTED)
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(FORMATTED)

bench: $(READY)  ## make bench OP='sgd embedding_bag' ARGS=--quick; all ops without OP
	$(BIN)/mlperf-fast bench $(OP) $(ARGS)

gpu:  ## on a machine with a GPU: build, test and measure all that needs one, in nine minutes; no network needed
	$(PYTHON) -m benchmarks.gpu $(ARGS)

clean:
	rm -rf .venv build dist *.egg-info mlperf_fast/_C/*.so mlperf_fast/_cuda/*.so

$(READY): constraints.txt pyproject.toml setup.py $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	PIP_CONSTRAINT=constraints.txt MLPERF_FAST_CUDA=$(MLPERF_FAST_CUDA) MLPERF_FAST_LEVELS=$(MLPERF_FAST_LEVELS) \
	    $(BIN)/python -m pip install --quiet --editable '.[triton,dev,flights,report,bert,resnet,digits]'
	touch $(READY)
