# What a person types. `make` alone lists it.

PYTHON ?= python3
PROMPT ?= Explain in three sentences why the sky is blue.
SECONDS ?= 60
RUNS    ?=
SANITIZER ?= address
TARGETS ?=
MAX_LEN ?= 4096
REGISTRY ?= models.json
MODEL  ?= $(shell $(PYTHON) scripts/models.py --print-path smollm2)

CARGO := cargo
ORION := $(CARGO) run --quiet --release -p orion-cli --
# nextest runs each test in a process of its own and prints a summary; without it cargo's own runner serves.
TEST  := $(shell cargo nextest --version >/dev/null 2>&1 && echo nextest run || echo test --lib --bins --tests --examples)
TEST_OF := $(subst --lib --bins --tests --examples,--tests,$(TEST))

.DEFAULT_GOAL := help
# Of the targets that write models.
OUTPUT ?=
LEVEL  ?= q4
TEXT   ?= benches/data/licences.txt
METHOD ?= linear
SHARDS ?= 4
# What the example- targets write.
DEMO   := target/demo
# Python packages that checks against other programs need.
TOOLS  := target/tools
LARGE  ?=
MORE   ?=
# What `make coverage` looks at, and `make mutants`.
OF     ?= --workspace
CRATE  ?= orion-resilience
SHARD  ?=

# Of the benches: what they are saved as, and what they are compared with.
NAME   ?= latest
BASE   ?=
BUILT  := $${CARGO_TARGET_DIR:-target}

ONE_CORE := $(shell command -v taskset >/dev/null 2>&1 && echo taskset -c 0)

EXAMPLES := quickstart stream agents helpdesk responsive progressive batch resilient async_stream \
  custom_source custom_gate custom_catalog custom_router custom_runtime custom_observer
BENCHES := core parse blocks products decoder read pipeline text registry logging overhead router
CONSUMERS := facade registry router resilience loader runtime logging pipeline

.PHONY: $(shell sed -n 's/^\([a-z][a-z0-9-]*\):.*/\1/p' $(firstword $(MAKEFILE_LIST)))

help: ## List the targets
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@ / { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z][a-z0-9-]*:.*## / { sub(/:.*/, "", $$1); printf "  make %-17s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

##@ Use
run: models ## Let a real model answer: make run PROMPT="…"
	$(CARGO) build --release -p orion-cli
	$(ORION) generate --model "$(MODEL)" --prompt "$(PROMPT)"

chat: models ## Talk to it
	$(CARGO) build --release -p orion-cli
	$(ORION) chat --model "$(MODEL)"

models: ## Fetch SmolLM2 and MiniLM (177 MB, once), verified, into a cache outside the repository
	$(PYTHON) scripts/models.py

models-gemma: ## Fetch Gemma 3 270M (240 MB, once); the Gemma terms of use apply
	$(PYTHON) scripts/models.py gemma

registry-validate: ## Check models.json, or another registry: make registry-validate [REGISTRY=FILE]
	$(ORION) registry validate --registry "$(REGISTRY)"

router-data: ## Take the router's data sets from a folder: make router-data FROM=DIR
	$(PYTHON) scripts/router_data.py "$(FROM)"

##@ Make models smaller
quantize-model: ## Quantise: make quantize-model MODEL=IN OUTPUT=OUT.gguf [LEVEL=q4]
	$(ORION) quantize "$(MODEL)" "$(OUTPUT)" --level $(LEVEL)

imatrix-model: ## Measure importances: make imatrix-model MODEL=IN TEXT=FILE OUTPUT=OUT.gguf
	$(ORION) imatrix --model "$(MODEL)" --file "$(TEXT)" --out "$(OUTPUT)"

merge-models: ## Merge: make merge-models MODELS="A B" RATIOS="0.6 0.4" OUTPUT=OUT [METHOD=linear]
	$(ORION) merge "$(OUTPUT)" --models $(MODELS) --ratios $(RATIOS) --method $(METHOD)

shard-model: ## Shard: make shard-model MODEL=IN OUTPUT=DIR [SHARDS=4]
	$(ORION) shard "$(MODEL)" "$(OUTPUT)" --shards $(SHARDS) --pack

optimize-model: ## Quantise, pack and shard: make optimize-model MODEL=IN OUTPUT=DIR [LEVEL=q4]
	$(ORION) optimize "$(MODEL)" "$(OUTPUT)" --level $(LEVEL)

example-quantize: models ## SmolLM2 as Q4_0, with perplexity and KL divergence
	mkdir -p $(DEMO)
	$(ORION) quantize "$(MODEL)" $(DEMO)/quantized.gguf --type Q4_0 --allow-requantize --force --verify benches/data/licences.txt

example-merge: models ## SmolLM2 and its Q4_0 form, half and half
	mkdir -p $(DEMO)
	$(ORION) quantize "$(MODEL)" $(DEMO)/other.gguf --type Q4_0 --allow-requantize --force
	$(ORION) merge $(DEMO)/merged.gguf --models "$(MODEL)" $(DEMO)/other.gguf --ratios 0.5 0.5 --method slerp --force

example-optimize: models ## SmolLM2 as a packed shard set, then an answer from it
	mkdir -p $(DEMO)
	$(ORION) optimize "$(MODEL)" $(DEMO)/optimized --level q4 --allow-requantize --force --verify benches/data/licences.txt
	$(ORION) generate --model $(DEMO)/optimized --prompt "$(PROMPT)"

shard-check: example-optimize ## Write a shard set, read it back whole, and compare it bit for bit
	$(ORION) quantize "$(MODEL)" $(DEMO)/whole.gguf --level q4 --allow-requantize --force
	$(ORION) unshard $(DEMO)/optimized $(DEMO)/again.gguf --force
	cmp $(DEMO)/whole.gguf $(DEMO)/again.gguf && echo "the shard set holds every bit"

##@ Build and test
build: ## Build everything, optimised
	$(CARGO) build --release --workspace --all-targets

test: models ## Run every test, the doctests too
	$(CARGO) $(TEST) --release --workspace
	$(CARGO) test --quiet --release --workspace --doc
	$(PYTHON) scripts/test_models.py

test-unit: ## Run the tests inside the crates only; needs no model
	$(CARGO) test --quiet --release --workspace --lib --bins

test-e2e: models ## Run the tests of the program and of the engine with real models
	$(CARGO) $(TEST_OF) --release -p orion-cli -p orion-engine

test-all: test test-references examples consumer each-feature ## Run everything that can fail, on more models and every feature

test-watch: ## Run the tests inside the crates again whenever a source changes
	$(PYTHON) scripts/watch.py $(CARGO) test --quiet --release --workspace --lib --bins

consumer: models ## Build and run programs that depend on ORION from outside: on the facade, and on each crate alone
	cp Cargo.lock tests/consumer/Cargo.lock
	$(CARGO) build --quiet --release --manifest-path tests/consumer/Cargo.toml --target-dir "$(BUILT)"
	for name in $(CONSUMERS); do "$(BUILT)/release/consumer-$$name" "$(MODEL)" || exit 1; done

each-feature: ## Check every crate by itself with each feature alone
	$(PYTHON) scripts/each_feature.py $(CARGO)

api: ## Write the public API of every crate to docs/api, one item per line
	@$(CARGO) public-api --version >/dev/null 2>&1 || $(CARGO) install cargo-public-api --locked --debug
	$(PYTHON) scripts/api.py $(CARGO)

api-check: ## Show what in the public API differs from docs/api
	@$(CARGO) public-api --version >/dev/null 2>&1 || $(CARGO) install cargo-public-api --locked --debug
	$(PYTHON) scripts/api.py --check $(CARGO)

package: ## Package every crate as a registry would take it
	$(CARGO) package --quiet --workspace --exclude orion-testkit --no-verify --allow-dirty

test-references: models models-gemma ## Tests that need more files: Gemma, and the vocabularies of 20 families (320 MB, once)
	$(PYTHON) scripts/vocabs.py
	$(CARGO) test --release -p orion-runtime --test vocabs
	$(CARGO) test --release -p orion-runtime --test vocab_memory -- --nocapture
	$(CARGO) test --release -p orion-runtime --test twin -- --include-ignored

NEON := aarch64-unknown-linux-gnu
test-neon: export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER := aarch64-linux-gnu-gcc
test-neon: export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER := qemu-aarch64 -L /usr/aarch64-linux-gnu
test-neon: ## Run the tests of the kernels as an Arm CPU would (Debian: gcc-aarch64-linux-gnu, libc6-dev-arm64-cross, qemu-user)
	rustup target add $(NEON)
	$(CARGO) test --release -p orion-kernels --target $(NEON) --tests

test-outputs: models ## Open what ORION writes in llama.cpp and in the package safetensors (fetched once), and compare perplexity
	$(CARGO) build --quiet --release -p orion-cli
	test -x $(TOOLS)/bin/python || { $(PYTHON) -m venv $(TOOLS) && $(TOOLS)/bin/pip install --quiet numpy safetensors; }
	mkdir -p $(DEMO)
	WORK="$${WORK:-$$PWD/$(DEMO)}" $(TOOLS)/bin/python scripts/check_outputs.py "$(BUILT)/release/orion" "$(MODEL)" \
	  benches/data/licences.txt $(DEMO)

examples: models ## Run every example that runs by itself
	$(CARGO) build --quiet --release --workspace --examples
	for name in $(EXAMPLES); do echo "example $$name"; "$(BUILT)/release/examples/$$name" >/dev/null || exit 1; done

fuzz: ## Fuzz every parser, or TARGETS, for SECONDS (60) or RUNS inputs each; SANITIZER=none is faster, and then memory is held to 256 MB
	@$(CARGO) fuzz --version >/dev/null 2>&1 || $(CARGO) install cargo-fuzz --locked --debug
	for target in $(or $(TARGETS),$$($(CARGO) fuzz list)); do \
	  RUSTC_BOOTSTRAP=1 $(CARGO) fuzz run -s $(SANITIZER) $$target -- $(if $(RUNS),-runs=$(RUNS),-max_total_time=$(SECONDS)) \
	    -max_len=$(MAX_LEN) -timeout=10 $(if $(filter none,$(SANITIZER)),-rss_limit_mb=256) \
	    -entropic_scale_per_exec_time=1 -print_final_stats=1 || exit 1; \
	done

fuzz-cmin: ## Keep of what the fuzzers found one input for each branch that is reached
	for target in $(or $(TARGETS),$$($(CARGO) fuzz list)); do \
	  RUSTC_BOOTSTRAP=1 $(CARGO) fuzz cmin -s none $$target -- -max_len=$(MAX_LEN) -use_counters=0 || exit 1; \
	done

##@ Measure
bench: models ## Run the Criterion benches of all crates: make bench [NAME=latest] writes target/bench/NAME.md and .svg
	$(CARGO) bench --quiet --workspace $(addprefix --bench ,$(BENCHES)) -- --save-baseline $(NAME)
	$(PYTHON) scripts/bench_report.py "$(BUILT)/criterion" $(NAME) --out "$(BUILT)/bench"

bench-compare: ## Compare two of them: make bench-compare BASE=before [NAME=latest]
	$(PYTHON) scripts/bench_report.py "$(BUILT)/criterion" $(NAME) --base "$(BASE)" --out "$(BUILT)/bench"

bench-model: models ## Tokens per second, load time and memory of MODEL
	$(ORION) bench --model "$(MODEL)"

bench-peers: models ## The same beside llama.cpp (a prebuilt one, fetched once with npm), in turns; MORE=--more adds a busy neighbour, a long context, streams
	$(CARGO) build --quiet --release -p orion-cli
	$(CARGO) build --quiet --release -p orion-kernels --example limits
	$(PYTHON) scripts/bench_peers.py "$(MODEL)" $(MORE)

scorecard: models ## The headline figures in one table: MODEL as halves, and optimised
	$(CARGO) build --quiet --release -p orion-cli
	$(CARGO) build --quiet --release -p orion-engine --example responsive
	mkdir -p $(DEMO)
	$(PYTHON) scripts/scorecard.py "$(BUILT)/release/orion" "$(MODEL)" benches/data/licences.txt $(DEMO) \
	  "$(BUILT)/release/examples/responsive" target/coverage/coverage.json

bench-pipeline: models ## Seconds and memory of quantising and merging, beside llama.cpp's; LARGE=--large adds a 4 GB model
	$(CARGO) build --quiet --release -p orion-cli
	mkdir -p $(DEMO)
	$(PYTHON) scripts/bench_pipeline.py "$(BUILT)/release/orion" "$(MODEL)" $(DEMO) $(LARGE)

bench-engine: models ## What the engine costs besides the model, and what it saves
	$(CARGO) bench --quiet --bench engine

bench-switch: models ## First token of a model that is not in memory, beside llama.cpp; MORE=--gemma: between SmolLM2 and Gemma
	mkdir -p $(DEMO)
	WORK="$${WORK:-$$PWD/$(DEMO)}" PYTHON="$(PYTHON)" $(CARGO) bench --quiet --bench switch -- $(MORE)

soak: SECONDS = 120
soak: models ## Clients, cancels and faults for SECONDS (120): nothing is lost, memory does not grow
	SECONDS=$(SECONDS) $(CARGO) bench --quiet --workspace --bench soak

bench-ttft: models ## Time to first token of MODEL while it arrives: predicted against measured
	$(CARGO) bench --quiet --bench ttft -- --model "$(MODEL)" --responder

eval: models ## Perplexity of MODEL on benches/data/licences.txt, beside llama.cpp's in benches/data/README.md
	$(ORION) eval --model "$(MODEL)" --file benches/data/licences.txt --ctx 512

bench-routing: models ## Time per decision by the committed head, alone and beside a stream
	$(CARGO) bench --quiet --bench routing

bench-outage: ## A simulated outage, with and without what orion-resilience offers
	$(CARGO) bench --quiet -p orion-resilience --bench outage

router-head: models ## Train models.head.safetensors, the head for the agents of models.json, on their examples
	$(ORION) router train --encoder "$(shell $(PYTHON) scripts/models.py --print-path minilm)" --depth 3 --grams letters \
	  --data orion-router/data/agents.en.csv --data orion-router/data/agents.fr.csv --out models.head.safetensors

router-reach: models ## Accuracy of the router on data it has not seen (minutes); first make router-data FROM=DIR
	$(CARGO) test --release -p orion-router --test reach -- --ignored --nocapture --test-threads 1

# Run on one core, and with counters kept in registers within loops: threads that count the same line slow each other down.
coverage: export CARGO_TARGET_DIR := $(CURDIR)/target/coverage
coverage: export RUSTFLAGS := -C llvm-args=--do-counter-promotion
coverage: models ## Line coverage of the tests, per crate (an hour); make coverage [OF="-p orion-core"]
	@$(CARGO) llvm-cov --version >/dev/null 2>&1 || $(CARGO) install cargo-llvm-cov --locked --debug
	eval "$$($(CARGO) llvm-cov show-env --sh --no-cfg-coverage 2>/dev/null)" && $(CARGO) llvm-cov clean --profraw-only && \
	  $(CARGO) $(TEST) --release $(OF) --no-run && $(ONE_CORE) $(CARGO) $(TEST) --release $(OF) && \
	  $(CARGO) llvm-cov report --release --no-default-ignore-filename-regex --lcov --output-path "$$CARGO_TARGET_DIR/lcov.info"
	$(PYTHON) scripts/coverage.py "$$CARGO_TARGET_DIR/lcov.info" --json "$$CARGO_TARGET_DIR/coverage.json"

mutants: ## Change CRATE in small ways, and count which changes its tests catch (hours; goes on where it stopped); SHARD=0/8 tries an eighth
	@$(CARGO) mutants --version >/dev/null 2>&1 || $(CARGO) install cargo-mutants --locked
	CARGO_PROFILE_DEV_DEBUG=0 CARGO_PROFILE_TEST_DEBUG=0 $(CARGO) mutants --package $(CRATE) --iterate --timeout 30 \
	  $(if $(filter nextest,$(TEST)),--test-tool nextest --cargo-test-arg=--max-fail=1:immediate) --jobs 1 --output target/mutants/$(CRATE) \
	  $(if $(SHARD),--shard $(SHARD) --sharding round-robin)

##@ Before a commit
check: lint doc deny package test examples consumer soak ## Everything CI checks: format, clippy, docs, dependencies, packages, tests, examples, consumers, a soak

lint: ## Check format and clippy, warnings refused
	$(CARGO) fmt --all --check
	$(CARGO) fmt --all --check --manifest-path tests/consumer/Cargo.toml
	$(CARGO) clippy --release --workspace --all-targets -- -D warnings

lint-fix: ## Let clippy repair what it can, then format
	$(CARGO) clippy --release --workspace --all-targets --fix --allow-dirty --allow-staged
	$(CARGO) fmt --all

format: ## Format the code
	$(CARGO) fmt --all

doc: ## Build the documentation, warnings refused
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --release --workspace --no-deps

deny: ## Check licences and sources of the dependencies, and that none is banned
	@$(CARGO) deny --version >/dev/null 2>&1 || scripts/install-deny.sh
	$(CARGO) deny --log-level error --workspace check bans licenses sources

deploy-check: ## Run everything that must hold before a release, and print the list with what came of it
	$(PYTHON) scripts/deploy_check.py "$(MAKE)"

##@ Clean up
clean: ## Remove what was built
	$(CARGO) clean
	rm -rf fuzz/target tests/consumer/target tests/consumer/Cargo.lock

clean-all: clean ## Remove what was built and the models that were fetched
	for model in smollm2 minilm gemma; do rm -rf "$$($(PYTHON) scripts/models.py --print-path $$model)"; done
