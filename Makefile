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

# What is built is passed on (make dist): messages of failed assertions name source files without this machine's folders.
# cc-rs adds the second to its own flags. A make inside of this one must not add them again, or all is compiled anew.
ifeq ($(findstring remap-path-prefix,$(RUSTFLAGS)),)
export RUSTFLAGS += --remap-path-prefix=$(or $(CARGO_HOME),$(HOME)/.cargo)=cargo
export CXXFLAGS_x86_64_unknown_linux_gnu += -ffile-prefix-map=$(LIBTORCH)=libtorch
endif

.PHONY: help all libtorch header examples demo test check test-setup test-rust test-c test-cpp test-examples test-go bench \
	goldens model clean
.PHONY: godot-plugin test-godot
.DEFAULT_GOAL := help

help: ## This list
	@grep -hE '^[a-z_-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

all: $(LIBRARY) ## Build libdiffusion.so into build/lib

libtorch: $(LIBTORCH_READY) ## Fetch libtorch 2.11.0 (131 MB) into .libtorch

.libtorch/manifest: scripts/fetch_libtorch.py
	@$(PYTHON) scripts/fetch_libtorch.py
	@touch $@

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
EXAMPLES += build/examples/jobs build/examples/realtime

examples: $(EXAMPLES) build/examples/go_make_textures ## Build all examples into build/examples

build/examples/sample build/examples/jobs: build/examples/%: examples/c/%.c include/diffusion.h $(LIBRARY)
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
test: check test-setup test-rust test-c test-cpp test-faults test-threads test-soak test-examples test-go test-go-checks \
	test-server test-godot test-quality test-bench test-fuzz test-sanitize test-install test-crate ## Everything that CI runs
	@echo "all tests passed"

check: $(LIBTORCH_READY) ## Formatting and lints
	@scripts/ensure_tools.sh clang-format
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

# --- Nothing brings the host down: faults, threads, soak ---------------------------------------------------------------

.PHONY: test-faults test-faults-all test-threads test-soak soak

test-faults: $(LIBRARY) build/tests/test_exceptions ## Failing memory, disks and libtorch, kills, signals; nothing that it brings down
	tests/c/run.sh faults
	build/tests/test_exceptions

test-faults-all: export FAULTS := all
test-faults-all: test-faults ## The same with every allocation and 200 kills (an hour; not in make test)

test-threads: $(LIBRARY) ## 256 threads that do everything at once (THREADS_SECONDS: 8)
	tests/c/run.sh threads

test-soak: $(LIBRARY) ## 2,000 mixed jobs: memory, threads and files stay what they were
	tests/c/run.sh soak

soak: export SOAK_JOBS := 20000
soak: export THREADS_SECONDS := 60
soak: $(LIBRARY) ## The same with 20,000 jobs, and a minute of 256 threads (not in make test)
	tests/c/run.sh threads soak

test-examples: $(EXAMPLES) build/tests/fixtures ## The examples, as their users run them
	tests/examples/run.sh build
	tests/examples/readme.sh
	tests/examples/real_data.sh build

test-go: export DIFFUSION_LIB := $(CURDIR)/build/lib
test-go: $(LIBRARY) ## The Go binding and example, with the race detector and a nervous collector
	cd bindings/go && CGO_ENABLED=0 $(GO) build ./... && $(GO) test -race -count=1 ./...
	cd bindings/go && GOGC=1 $(GO) test -count=1 ./...
	cd examples/go/make_textures && $(GO) test -race -count=1 ./...

# --- CUDA (tests/cuda.rs is a part of test-rust too) ------------------------------------------------------------------

.PHONY: test-cuda check-cuda-names

test-cuda: $(LIBTORCH_READY) ## The GPU against the CPU, on a machine that has one; passes, and says so, where none is
	$(CARGO) test --release --locked --test cuda -- --nocapture --test-threads=1

check-cuda-names: $(LIBTORCH_READY) ## The names from CUDA that the build uses, against NVIDIA's own headers (2 MB)
	scripts/check_cuda_names.sh

# --- The Go texture service -----------------------------------------------------------------------------------------

.PHONY: serve test-go-checks test-server load-server
SERVER := examples/go/texture-server

build/examples/texture-server: $(wildcard $(SERVER)/*.go $(SERVER)/web/* $(SERVER)/go.* bindings/go/*) $(LIBRARY)
	@mkdir -p $(@D)
	cd $(SERVER) && $(GO) build -o $(CURDIR)/$@ .

serve test-go-checks test-server load-server: export DIFFUSION_LIB := $(CURDIR)/build/lib

serve: build/examples/texture-server ## The texture service on http://127.0.0.1:8080 (SERVE_FLAGS: its options)
	build/examples/texture-server $(SERVE_FLAGS)

# Go's own link line leaves out libstdc++, which the address sanitizer looks for exception handling in when it starts.
test-go-checks: $(LIBRARY) ## The Go binding under the address sanitizer and cgo's pointer checks (minutes)
	cd bindings/go && GOEXPERIMENT=cgocheck2 $(GO) test -count=1 ./...
	cd bindings/go && CGO_LDFLAGS="-Wl,--no-as-needed -lstdc++" $(GO) test -asan -vet=off -count=1 ./...

test-server: build/examples/texture-server ## The texture service over loopback, its page in Chromium, its manifests
	cd $(SERVER) && $(GO) vet ./... && $(GO) test -race -count=1 ./...
	chromium=$$(scripts/ensure_browser.sh) && cd $(SERVER)/tests && $(GO) vet ./... && \
		CHROMIUM=$$chromium TEXTURE_SERVER=$(CURDIR)/build/examples/texture-server $(GO) test -count=1 ./...

load-server: $(LIBRARY) ## The texture service with thousands of clients (not in make test)
	cd $(SERVER) && TEXTURE_VISITORS=$(or $(VISITORS),5000) $(GO) test -count=1 -timeout 1h -run TestCrowd -v .

# --- The Godot plugin -----------------------------------------------------------------------------------------------

GODOT_SOURCES := $(wildcard examples/godot/src/*.[ch])
GODOT_PLUGIN := examples/godot/addons/diffusion/bin/libdiffusion_godot.so

godot-plugin: $(GODOT_PLUGIN) ## Fill examples/godot/addons/diffusion, which a Godot project takes as its addons/diffusion

# Godot itself writes the header of its extensions.
build/godot/gdextension_interface.h:
	@mkdir -p $(@D)
	@godot="$$(scripts/ensure_godot.sh)" && cd $(@D) && \
		"$$(printf '%s' "$$godot" | sed -n 's/^godot=//p')" --headless --dump-gdextension-interface >godot.log

# Not linked with libdiffusion: examples/godot/src/library.h says why. Godot may unload the plugin while a thread of it ends.
build/godot/libdiffusion_godot.so: $(GODOT_SOURCES) include/diffusion.h build/godot/gdextension_interface.h
	$(CC) $(CFLAGS) -std=gnu11 $(WARNINGS) -fPIC -fvisibility=hidden -Iinclude -isystem build/godot -shared \
		-Wl,-z,nodelete,-z,defs $(filter %.c,$^) -ldl -pthread -o $@

$(GODOT_PLUGIN): build/godot/libdiffusion_godot.so $(LIBRARY) scripts/godot_plugin.sh
	scripts/godot_plugin.sh build/godot/libdiffusion_godot.so $(LIBRARY)

test-godot: $(LIBRARY) ## The Godot plugin, headless and on a virtual screen; passes, and says so, where no Godot can be had
	tests/godot/run.sh

# --- Figures, models, goldens ---------------------------------------------------------------------------------------

build/benches/%: benches/%.cpp $(CXX_HEADERS) $(LIBRARY)
	@mkdir -p $(@D)
	$(CXX) $(CXXFLAGS) -std=c++17 $(WARNINGS) -Wconversion $< $(LINK) -pthread -o $@

.venv-bench/installed: tools/bench/requirements.txt tools/bench/requirements-test.txt
	test -d .venv-bench || $(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install -q -r tools/bench/requirements.txt
	@touch $@

# A part, for a look: make bench BENCH_FLAGS="--quick --cases 'step-cifar10-*-1'"
bench: build/benches/contestant build/benches/peak build/benches/calls .venv-bench/installed ## Ours beside its peers (5 GB into .venv-bench); keep the machine idle
	.venv-bench/bin/python tools/bench $(BENCH_FLAGS)

.venv-bench-test/installed: tools/bench/requirements-test.txt
	$(PYTHON) -m pip install -q --disable-pip-version-check --upgrade --target .venv-bench-test -r $<
	@touch $@

.PHONY: bench-calls test-bench
test-bench: .venv-bench-test/installed ## The bench's figures, tables, protocol and counts; needs no PyTorch
	PYTHONPATH=$(CURDIR)/.venv-bench-test $(PYTHON) -m unittest discover -s tests/bench

bench-calls: export OMP_WAIT_POLICY := active
bench-calls: build/benches/calls ## What a call costs, as ratios; keep the machine idle
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

# --- Fuzzing and sanitizers (docs/TESTING.md) -------------------------------------------------------------------------

.PHONY: fuzz test-fuzz sanitize test-sanitize test-tsan test-miri
SANITIZED := build/sanitize/libdiffusion.so

$(SANITIZED): $(RUST_SOURCES) scripts/build_sanitized.sh $(LIBTORCH_READY)
	scripts/build_sanitized.sh build/sanitize
	@touch -h $@

build/fuzz/%: tests/fuzz/%.cpp tests/fuzz/harness.hpp include/diffusion.h $(SANITIZED)
	@mkdir -p $(@D)
	clang++-19 -g -O1 -std=c++17 $(WARNINGS) -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -Iinclude $< \
		-Lbuild/sanitize -ldiffusion -Wl,-rpath,$(CURDIR)/build/sanitize -o $@

test-fuzz: build/fuzz/abi build/fuzz/checkpoint ## Two minutes of fuzzing through the C ABI and of damaged checkpoints
	tests/fuzz/run.sh 100

fuzz: build/fuzz/abi build/fuzz/checkpoint ## An hour of it (FUZZ_SECONDS: another time)
	tests/fuzz/run.sh $(or $(FUZZ_SECONDS),3600)

test-sanitize: $(SANITIZED) ## C tests and library under the address and undefined-behaviour sanitizers: those of seconds
	tests/sanitize/run.sh short

sanitize: $(SANITIZED) $(LIBRARY) ## All C and C++ tests so, valgrind, the thread sanitizer, Miri with many schedules (half an hour)
	tests/sanitize/run.sh long
	scripts/tsan.sh 500
	scripts/miri.sh 64

test-tsan: $(LIBTORCH_READY) ## Handles and the engine's threads under the thread sanitizer
	scripts/tsan.sh 50

test-miri: $(LIBTORCH_READY) ## The boundary, the handles and the engine's threads under Miri
	scripts/miri.sh 4

# --- Installing and releasing (docs/INSTALL.md) -----------------------------------------------------------------------

PREFIX ?= /usr/local
DESTDIR ?=
VERSION := $(shell sed -n 's/^version = "\(.*\)"$$/\1/p' Cargo.toml | head -n 1)
RELEASE := libdiffusion-$(VERSION)-linux-x86_64

.PHONY: install dist test-install test-crate

install: $(LIBRARY) ## Install into PREFIX (/usr/local), below DESTDIR if that is set
	scripts/install.sh "$(DESTDIR)$(PREFIX)" share/diffusion

# The same sources make the same bytes: names sorted, nobody's user, the time of the last commit.
dist: $(LIBRARY) ## Make the relocatable tarball in build/dist
	rm -rf build/dist
	scripts/install.sh build/dist/$(RELEASE) .
	tar -C build/dist --sort=name --owner=0 --group=0 --numeric-owner \
		--mtime=@$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct 2>/dev/null || date +%s)} -cf - $(RELEASE) | \
		gzip -n >build/dist/$(RELEASE).tar.gz.part
	mv build/dist/$(RELEASE).tar.gz.part build/dist/$(RELEASE).tar.gz
	rm -r build/dist/$(RELEASE)
	@ls -sh build/dist/$(RELEASE).tar.gz

test-install: dist ## The tarball, unpacked in a strange folder and moved, as C, C++ and Go programs use it
	scripts/ensure_tools.sh cmake pkg-config
	tests/install/run.sh build/dist/$(RELEASE).tar.gz

test-crate: $(LIBRARY) ## The crate as cargo would publish it, added to a new project
	tests/install/crate.sh

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
