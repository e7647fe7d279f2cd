# Plover: `make demo` and `make test` need a Debian 12 (or newer) machine, cargo and root.
# Both install what is missing by themselves (`make deps`).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help deps build demo test fuzz sim soak perf perf-build perf-check lint clean

# A debug build is compiled with opt-level 1, its dependencies with 2 (see Cargo.toml): fast
# enough to protect a VM under load, and twice as fast to build as a release.
PROFILE ?= dev
target_dir := $(or $(CARGO_TARGET_DIR),target)
bin := $(target_dir)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
RUNS ?= 20
BOOTS ?= 12
RANDOM_SEED ?= $(shell echo $$RANDOM)
SECONDS ?= 60

help:
	@echo "make demo   protect a VM, kill its host, show what it cost"
	@echo "make test   every check and every test"
	@echo "make fuzz   what a guest, a VMM or a peer may send, $(SECONDS) s a target (SECONDS=n, TARGETS=...)"
	@echo "make sim    a simulated group: SEED=n with its trace, or SEEDS=n many (FROM=n)"
	@echo "make soak   $(RUNS) kills at moments that seeds draw (RUNS=n), then $(BOOTS) groups under faults"
	@echo "            whose clients' histories must be linearizable (BOOTS=n, RANDOM_SEED=first seed)"
	@echo "make perf   what the parts cost, A against B in one run (ONLY=datapath|hasher|replication,"
	@echo "            PERF=\"--quick\"); make perf-check holds it against what is promised"
	@echo "make lint   formatting, clippy, licenses and advisories"
	@echo "make deps   install what is missing (Debian packages)"
	@echo "make clean  remove what dead demo runs left behind"

deps:
	@.ci/deps

build: deps
	cargo build --workspace --bins --profile $(PROFILE)

demo: build
	$(bin)/plover demo $(DEMO)

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --profile $(PROFILE) -- -D warnings
	@if command -v cargo-deny > /dev/null; then cargo deny check; \
	else echo "cargo-deny is not installed: licenses and advisories are not checked"; fi

# The binaries first: the end-to-end tests start them. The runner's summary comes last.
test: build lint
	@if command -v cargo-nextest > /dev/null; then \
		cargo nextest run --workspace --cargo-profile $(PROFILE) --no-fail-fast; \
	else \
		cargo test --workspace --profile $(PROFILE) --no-fail-fast; \
	fi

fuzz: deps
	.ci/fuzz $(SECONDS) $(TARGETS)

# Needs nothing but cargo.
SEEDS ?= 5000
sim:
	cargo run -p plover-sim --profile $(PROFILE) -- $(if $(SEED),--seed $(SEED),--coverage \
		--count $(SEEDS) --threads $(shell nproc) $(if $(FROM),--from $(FROM)))

# Moments by seed; then one kill inside each step of a sync; then kills, cuts and standstills under
# clients whose histories are judged; then a card without replication whose VMM and backend die 100
# times each.
soak: build
	.ci/soak $(bin)/plover $(RUNS)
	PLOVER_LINEAR_BOOTS=$(BOOTS) PLOVER_SEED=$(RANDOM_SEED) cargo test -p plover-tests \
		--profile $(PROFILE) --test linearizability -- --nocapture --test-threads 1
	PLOVER_RECONNECTS=100 PLOVER_SEED=$(RANDOM_SEED) cargo test -p plover-tests --profile $(PROFILE) \
		--test reconnect -- --nocapture --test-threads 1
	$(MAKE) sim SEEDS=100000
	cargo test -p plover-sim --profile $(PROFILE) --features planted-bugs --test planted -- --nocapture

# Figures for docs/performance.md, always of a release build: into target/perf/results.json.
results := $(target_dir)/perf/results.json
perf_bin := $(target_dir)/release/plover-perf
only := $(if $(ONLY),--only $(ONLY))
etcd_dir := $(abspath $(target_dir))/perf/etcd

perf-build: deps
	cargo build --release --bin plover --bin plover-perf

perf: perf-build
	.ci/etcd $(etcd_dir)
	PATH="$$PATH:$(etcd_dir)/usr/bin" $(perf_bin) run $(only) --results $(results) $(PERF)

# Exits non-zero when a promise does not hold or a row is missing.
perf-check: perf-build
	$(perf_bin) check $(only) --results $(results)

clean: build
	$(bin)/plover demo --clean
