# Every target is one command; what it does is in e2e/ (`macvtap-cluster help`) or in Cargo.

HOST := $(shell rustc -vV | sed -n 's/^host: //p')
# The same profile and flags as the product's: what they share is compiled once.
STATIC := --locked --release --target $(HOST) --config images/static.toml
MDBOOK := target/docs/tools/bin/mdbook
CLUSTER := target/$(HOST)/release/macvtap-cluster

.DEFAULT_GOAL := help
.PHONY: help demo demo-kubevirt test test-unit test-kernel test-guest test-api test-cluster test-kube-ovn test-upgrade test-kubevirt bench bench-compare bench-data-path bench-migration bench-pods bench-report bench-idle bench-scale chaos soak faults fuzz fuzz-guided simulate plant mutants killed generate docs release images cluster-up cluster-down fmt deny lint tool

help: ## Show this
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | while IFS="$$(printf '\t')" read -r target about; do printf '  make %-14s %s\n' "$$target" "$$about"; done

demo: tool ## Install what is missing, build, start a cluster, let pods ping each other over macvtap
	@$(CLUSTER) demo

demo-kubevirt: tool ## The same with the real KubeVirt: a machine boots, answers pods, migrates; its first build takes a quarter of an hour
	@$(CLUSTER) demo --kubevirt

test: tool ## Everything that CI runs: format, lint, unit, kernel, guest, API, cluster and kube-ovn tests
	@$(CLUSTER) test

test-unit: tool ## Tests that need nothing
	@$(CLUSTER) test unit

test-kernel: tool ## Tests in network namespaces (root)
	@$(CLUSTER) test kernel

test-guest: tool ## Tests in virtual machines: bonds, VLANs, NICs that can be unplugged (emulated: 5 to 15 seconds to boot)
	@$(CLUSTER) test guest

test-api: tool ## Tests on a real API server
	@$(CLUSTER) test api

test-cluster: tool ## Tests on a real cluster (root), or on that of KUBECONFIG
	@$(CLUSTER) test cluster

test-kube-ovn: tool ## Tests with the real kube-ovn, which gives macvtaps their addresses (root)
	@$(CLUSTER) test kube-ovn

test-upgrade: tool ## Upgrade from the first release and back under running and starting pods (root); not part of make test: it builds that release
	@$(CLUSTER) test upgrade

test-kubevirt: tool ## Tests with the real KubeVirt (root); not part of make test: its first build takes a quarter of an hour
	@$(CLUSTER) test kubevirt

MIGRATIONS ?= 20
bench-migration: tool ## Move a machine of the real KubeVirt MIGRATIONS times each way under traffic, with the network's key and without, and print what each place loses (root)
	@MACVTAP_MIGRATIONS=$(MIGRATIONS) $(CLUSTER) test kubevirt --matching migration::

bench: tool ## Measure plugin and agent, each against a floor of the same run (root); results in target/bench
	@$(CLUSTER) bench

bench-data-path: tool ## Measure what guests get of each other through macvtaps, beside bridges and cables (root)
	@$(CLUSTER) bench-data-path

BASE ?= HEAD~1
bench-compare: tool ## Measure plugin and agent in the same rounds as those of the commit BASE; fails if a figure got worse by more than chance (root)
	@$(CLUSTER) bench-compare $(BASE)

bench-report: tool ## Write tables and plots of docs/benchmarks.md from what the benches recorded
	@$(CLUSTER) bench-report

bench-pods: tool ## Measure 64 pods with a macvtap on a cluster whose Multus is a daemon, beside a plugin that does nothing (root)
	@$(CLUSTER) bench-pods

bench-idle: tool ## Measure what an agent costs on a node with 512 links while others' pods come and go (root)
	@$(CLUSTER) bench-idle

bench-scale: tool ## Measure the operator with 5,000 simulated nodes and 20 pools, beside the API server's own limit
	@$(CLUSTER) bench-scale

MINUTES ?= 10
chaos: tool ## Random faults on a real cluster for MINUTES minutes (SEED=n repeats a run), with a judge that checks a model (root)
	@$(CLUSTER) chaos --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

CYCLES ?= 20000
soak: tool ## Make and remove CYCLES macvtaps for pods of a real cluster: memory, descriptors, files and links must not grow (root)
	@$(CLUSTER) soak --cycles $(CYCLES)

faults: tool ## Run the tests that inject one fault after the other with full counts (root); results in target/chaos
	@$(CLUSTER) faults

fuzz: ## Ten million hostile inputs for everything that each program reads from outside; make test tries some of them
	MACVTAP_FUZZ_INPUTS=10000000 cargo test --locked --release -p macvtap-cni --test fuzz -- --show-output
	MACVTAP_FUZZ_INPUTS=10000000 cargo test --locked --release -p macvtap-node-agent --test fuzz_agent -- --show-output
	MACVTAP_FUZZ_INPUTS=10000000 cargo test --locked --release -p macvtap-operator --test fuzz_operator -- --show-output

SECONDS ?= 60
fuzz-guided: ## The same targets for SECONDS seconds each, guided by coverage (TARGET=agent/ selects; KEEP=1 chooses again what make test tries)
	@.ci/compiler
	@KEEP=$(KEEP) .ci/fuzz-guided $(SECONDS) $(TARGET)

SEEDS ?= 10000
simulate: ## SEEDS simulated nodes with random faults; a seed that fails is printed, MACVTAP_SIMULATION_SEED repeats it
	MACVTAP_SIMULATION_SEEDS=$(SEEDS) cargo test --locked --config .ci/optimised.toml -p macvtap-node-agent --lib simulation -- --show-output

plant: ## Plant the faults of .ci/planted (NAME=x: those whose names begin so) in a copy: the test that each names must find it in a minute
	@.ci/plant $(NAME)

# In place: a copy would be compiled as a whole. Nobody reads the debug information of a mutant.
MUTATED = $(addprefix --file ,$(FILE))
mutants: ## Change one decision after the other in FILE=path (one or several): the unit tests of its crate must fail; MUTANTS=--list only counts
	@command -v cargo-mutants >/dev/null || cargo install cargo-mutants --locked
	@[ -n "$(FILE)" ] || { echo "FILE=path names the modules to change" >&2; exit 1; }
	@git diff --quiet HEAD || { echo "commit your changes first: files are changed in place" >&2; exit 1; }
	@mkdir -p target
	CARGO_INCREMENTAL=1 CARGO_PROFILE_DEV_DEBUG=0 MACVTAP_SIMULATION_SEEDS=3 cargo mutants --in-place --baseline skip \
		--timeout 60 --output target/mutants $(MUTATED) $(MUTANTS) -- --locked --lib

killed: ## Ten thousand pairs of ADD and DEL in 16 processes, a third of them killed (root); make test tries some of them
	MACVTAP_KILLED_PAIRS=10000 REQUIRE_ROOT=1 cargo test --locked -p macvtap-cni --test plugin killed:: -- --show-output

generate: tool ## Write the CRDs and the API reference from their Rust types, and the chart's README from its values
	cargo run --locked -p macvtap-crds --bin crdgen
	@$(CLUSTER) chart-readme

# The links of the pages are relative to the repository, so the site's source has its shape.
docs: ## Build the documentation site into target/docs/site
	@[ -x $(MDBOOK) ] || cargo install mdbook --version 0.5.4 --locked --no-default-features --features search --root target/docs/tools
	@rm -rf target/docs/source target/docs/site
	@mkdir -p target/docs/source
	@cp -r README.md ARCHITECTURE.md CONTRIBUTING.md CHANGELOG.md SECURITY.md LICENSE docs examples charts images target/docs/source
	@sed -e 's,](../,](@,' -e 's,](\([^@]\),](docs/\1,' -e 's,](@,](,' docs/SUMMARY.md > target/docs/source/SUMMARY.md
	@rm target/docs/source/docs/SUMMARY.md
	@$(MDBOOK) build
	@for page in . charts/macvtap-operator; do cp target/docs/site/$$page/index.html target/docs/site/$$page/README.html; done

release: tool ## Write a release to dist/: programs and images for amd64 and arm64, chart, manifests, checksums
	@$(CLUSTER) release

images: tool ## Build the container images and print their sizes
	@$(CLUSTER) images

cluster-up: tool ## Start the demo's cluster, or repair it
	@$(CLUSTER) up

cluster-down: tool ## End the demo's cluster and leave nothing of it
	@$(CLUSTER) down

FUZZING := $(wildcard fuzz/*.rs fuzz/fuzz_targets/*.rs)
fmt: ## Format all Rust code
	cargo fmt --all -- $(FUZZING)

# `make test` checks licences, bans and sources by the same deny.toml. Advisories change without a commit and need the
# network: they are a job of their own in continuous integration, which caches the tool.
deny: ## Check licences, bans, sources and advisories of all dependencies; make test checks all but advisories
	@command -v cargo-deny >/dev/null || cargo install cargo-deny --locked
	cargo deny --locked check

lint: ## Check format and lints
	cargo fmt --all --check -- $(FUZZING)
	cargo clippy --locked --workspace --all-targets -- -D warnings

tool:
	@.ci/compiler
	@[ -e $(CLUSTER) ] || echo "building macvtap-cluster, the tool that does the rest: about a minute" >&2
	@cargo build --quiet $(STATIC) -p e2e --bin macvtap-cluster
