# Two commands are enough: `make demo` and `make test`. `make help` lists the rest.
#
# libtorch 2.11.0 is fetched into .libtorch/ unless LIBTORCH names one (an absolute path).

ifeq ($(LIBTORCH),)
export LIBTORCH := $(CURDIR)/.libtorch
LIBTORCH_READY := .libtorch/manifest
endif

LIBRARY := build/lib/libdiffusion.so
MAJOR := 0
CARGO ?= cargo
GO ?= go
PYTHON ?= python3
CFLAGS ?= -O2
CXXFLAGS ?= -O2
WARNINGS := -Wall -Wextra -Wpedantic -Werror
LINK := -Iinclude -Ibindings/cpp -Lbuild/lib -ldiffusion -Wl,-rpath,$(CURDIR)/build/lib

-include .deps/flags.mk

.PHONY: help all libtorch header examples demo test check test-setup test-rust test-c test-cpp test-examples test-go bench \
	goldens model clean
.DEFAULT_GOAL := help

help: ## This list
	@grep -hE '^[a-z_-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

all: $(LIBRARY) ## Build libdiffusion.so into build/lib

libtorch: $(LIBTORCH_READY) ## Fetch libtorch 2.11.0 (131 MB) into .libtorch

.libtorch/manifest: scripts/fetch_libtorch.py
	@$(PYTHON) scripts/fetch_libtorch.py

RUST_SOURCES := $(shell find src -type f) build.rs cbindgen.toml Cargo.toml Cargo.lock

# The file has the SONAME's name and the link name points to it, as in an installation.
$(LIBRARY): $(RUST_SOURCES) $(LIBTORCH_READY)
	$(CARGO) build --release --locked --lib
	@mkdir -p build/lib
	@cp target/release/libdiffusion.so build/lib/libdiffusion.so.$(MAJOR)
	@ln -sf libdiffusion.so.$(MAJOR) $@
	@touch -h $@

header: $(LIBTORCH_READY) ## Regenerate include/diffusion.h (and the Go binding's copy) from src/capi
	$(CARGO) build --release --lib
	@cp "$$(ls -t target/release/build/libdiffusion-*/out/diffusion.h | head -n 1)" include/diffusion.h
	@cp include/diffusion.h bindings/go/diffusion.h

# --- Examples -------------------------------------------------------------------------------------------------------

.deps/flags.mk: scripts/ensure_native_deps.sh
	@scripts/ensure_native_deps.sh

CXX_HEADERS := include/diffusion.h bindings/cpp/diffusion.hpp $(wildcard examples/cpp/*.hpp)
EXAMPLES := build/examples/sample build/examples/make_textures build/examples/train_textures

examples: $(EXAMPLES) build/examples/go_make_textures ## Build all examples into build/examples

build/examples/sample: examples/c/sample.c include/diffusion.h $(LIBRARY)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -std=c99 $(WARNINGS) $< $(LINK) -lm -o $@

# The C++ examples use libpng, CLI11 and barkeep, found or fetched by scripts/ensure_native_deps.sh.
build/examples/%: examples/cpp/%.cpp $(CXX_HEADERS) $(LIBRARY) .deps/flags.mk
	@mkdir -p $(@D)
	$(CXX) $(CXXFLAGS) -std=c++20 -Wall -Wextra $(NATIVE_CXXFLAGS) $< $(LINK) $(NATIVE_LDFLAGS) $(NATIVE_LDLIBS) -pthread -o $@

build/examples/go_make_textures: $(wildcard examples/go/make_textures/*.go bindings/go/*) $(LIBRARY)
	@mkdir -p $(@D)
	cd examples/go/make_textures && $(GO) build -o $(CURDIR)/$@ .

demo: build/examples/make_textures ## Sample 16 textures from the model in models/textures into out/textures.png
	@mkdir -p out
	build/examples/make_textures --model models/textures --count 16 --columns 8 --seed 7 --out out/textures.png

# --- Tests: what CI runs --------------------------------------------------------------------------------------------

# OpenMP threads that spin while they wait bring a shared CI machine to a crawl.
export OMP_WAIT_POLICY ?= passive

# Each target below can be run alone.
test: check test-setup test-rust test-c test-cpp test-examples test-go ## Everything that CI runs
	@echo "all tests passed"

check: $(LIBTORCH_READY) ## Formatting and lints
	@scripts/ensure_check_tools.sh
	$(CARGO) fmt --check
	$(CARGO) clippy --release --locked --all-targets -- -D warnings
	.venv/bin/clang-format --dry-run --Werror $(shell find src bindings/cpp examples benches tests -name '*.[ch]' -o -name '*.[ch]pp' | sort)
	@unformatted=$$(gofmt -l bindings/go examples/go); test -z "$$unformatted" || { echo "gofmt: $$unformatted"; exit 1; }
	cd bindings/go && $(GO) vet ./...
	cd examples/go/make_textures && $(GO) vet ./...

test-setup: ## The set-up scripts, on small made-up packages
	$(PYTHON) -m unittest discover -s tests/setup

test-rust: $(LIBTORCH_READY) ## The crate, against goldens from diffusers and formulas
	$(CARGO) test --release --locked --no-fail-fast

test-c: $(LIBRARY) build/examples/sample ## The C ABI, the header and the exported symbols
	tests/c/run.sh

build/tests/%: tests/cpp/%.cpp $(CXX_HEADERS) $(LIBRARY)
	@mkdir -p $(@D)
	$(CXX) $(CXXFLAGS) -std=c++17 $(WARNINGS) -Wconversion $< $(LINK) -pthread -o $@

build/tests/fixtures: tests/examples/fixtures.cpp $(CXX_HEADERS) .deps/flags.mk
	@mkdir -p $(@D)
	$(CXX) $(CXXFLAGS) -std=c++20 -Iexamples/cpp $(NATIVE_CXXFLAGS) $< $(NATIVE_LDFLAGS) $(NATIVE_LDLIBS) -o $@

test-cpp: build/tests/test_binding ## The C++ binding
	build/tests/test_binding

test-examples: $(EXAMPLES) build/tests/fixtures ## The examples, as their users run them
	tests/examples/run.sh build
	tests/examples/readme.sh
	tests/examples/real_data.sh build

test-go: export DIFFUSION_LIB := $(CURDIR)/build/lib
test-go: $(LIBRARY) ## The Go binding and example, with the race detector and a nervous collector
	cd bindings/go && CGO_ENABLED=0 $(GO) build ./... && $(GO) test -race -count=1 ./...
	cd bindings/go && GOGC=1 $(GO) test -count=1 ./...
	cd examples/go/make_textures && $(GO) test -race -count=1 ./...

# --- Figures, models, goldens ---------------------------------------------------------------------------------------

build/benches/%: benches/%.cpp $(CXX_HEADERS) $(LIBRARY)
	@mkdir -p $(@D)
	$(CXX) $(CXXFLAGS) -std=c++17 $(WARNINGS) -Wconversion $< $(LINK) -pthread -o $@

bench: export OMP_WAIT_POLICY := active
bench: build/benches/calls ## What a call costs, as ratios; keep the machine idle
	build/benches/calls

goldens: ## Make tests/goldens afresh from PyTorch and diffusers (5 GB into .venv-goldens) and compare
	test -d .venv-goldens || $(PYTHON) -m venv .venv-goldens
	.venv-goldens/bin/python -m pip install -q torch==2.11.0 diffusers==0.42.1 safetensors==0.8.0 numpy==2.4.6
	.venv-goldens/bin/python scripts/make_goldens.py --check

data/freedoom/SOURCE.txt: scripts/freedoom_textures.py
	$(PYTHON) scripts/freedoom_textures.py

model: build/examples/train_textures data/freedoom/SOURCE.txt ## Train models/textures (an hour on two cores)
	build/examples/train_textures --png data/freedoom/flats data/freedoom/walls $(MODEL_FLAGS) --out out/textures \
		--export models/textures

# What models/textures was trained with.
MODEL_FLAGS := --scale-down 2 --size 32 --hidden-dims 32,64,128 --augment wrap,flip --steps 4000 --batch 32 \
	--learning-rate 0.0005 --warmup 200 --cosine-decay --ema 0.999 --clip 1 --prediction velocity --precision bf16 --seed 1

# --- Quality and Python ---------------------------------------------------------------------------------------------

# A marker of its own for each list of packages: what it needs is installed again only when the list changes.
.venv-quality/installed: tools/quality/requirements.txt tools/quality/requirements-test.txt
	test -d .venv-quality || $(PYTHON) -m venv .venv-quality
	.venv-quality/bin/python -m pip install -q -r tools/quality/requirements.txt
	@touch $@

.venv-quality-test/installed: tools/quality/requirements-test.txt
	$(PYTHON) -m pip install -q --disable-pip-version-check --upgrade --target .venv-quality-test -r $<
	@touch $@

.PHONY: quality test-quality test-python check-diffusers

# More samples and evaluations: make quality QUALITY_FLAGS="--count 256 --evaluations 5,10,20,50,100"
quality: build/examples/make_textures data/freedoom/SOURCE.txt .venv-quality/installed ## Quality of each solver: docs/QUALITY.md (5 GB into .venv-quality)
	.venv-quality/bin/python tools/quality plot --textures data/freedoom/flats data/freedoom/walls --scale-down 2 --size 32 \
		--model models/textures $(QUALITY_FLAGS)

QUALITY_FLAGS := --count 64 --evaluations 5,10,20

test-quality: .venv-quality-test/installed ## The quality tool's statistics and errors; needs no PyTorch
	PYTHONPATH=$(CURDIR)/.venv-quality-test $(PYTHON) -m unittest discover -s tests/quality

test-python: .venv-quality/installed ## examples/python: diffusers samples from models/textures
	@mkdir -p out
	.venv-quality/bin/python examples/python/sample.py models/textures out/python.png

build/tests/write_checkpoints: tests/diffusers/write_checkpoints.cpp $(CXX_HEADERS) $(LIBRARY)
	@mkdir -p $(@D)
	$(CXX) $(CXXFLAGS) -std=c++17 $(WARNINGS) -Wconversion $< $(LINK) -pthread -o $@

check-diffusers: build/tests/write_checkpoints .venv-quality/installed ## diffusers opens every schedule that diffusion_save writes
	rm -rf build/tests/diffusers
	build/tests/write_checkpoints build/tests/diffusers models/textures
	.venv-quality/bin/python scripts/check_in_diffusers.py build/tests/diffusers

clean: ## Remove what was built, not what was fetched
	rm -rf build out target
