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

.PHONY: help all libtorch header demo test check clean
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
