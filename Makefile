# What a person types. `make` alone lists it.

PYTHON ?= python3
PROMPT ?= Explain in three sentences why the sky is blue.
SECONDS ?= 60
MODEL  ?= $(shell $(PYTHON) scripts/models.py --print-path smollm2)

CARGO := cargo
ORION := $(CARGO) run --quiet --release -p orion-cli --
# nextest runs each test in a process of its own and prints a summary; without it cargo's own runner serves.
TEST  := $(shell cargo nextest --version >/dev/null 2>&1 && echo nextest run || echo test --lib --bins --tests --examples)

.DEFAULT_GOAL := help
.PHONY: help run chat models models-gemma router-data build test test-unit fuzz check lint lint-fix format doc deny bench bench-peers bench-ttft eval

help: ## List the targets
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@ / { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

##@ Use
run: models ## Let a real model answer: make run PROMPT="…"
	$(ORION) generate --model "$(MODEL)" --prompt "$(PROMPT)"

chat: models ## Talk to it
	$(ORION) chat --model "$(MODEL)"

models: ## Fetch SmolLM2 and MiniLM (177 MB, once), verified, into a cache outside the repository
	$(PYTHON) scripts/models.py

models-gemma: ## Fetch Gemma 3 270M (240 MB, once); the Gemma terms of use apply
	$(PYTHON) scripts/models.py gemma

router-data: ## Take the router's data sets from a folder: make router-data FROM=DIR
	$(PYTHON) scripts/router_data.py "$(FROM)"

##@ Build and test
build: ## Build everything, optimised
	$(CARGO) build --release --workspace --all-targets

test: models ## Run every test, the doctests too
	$(CARGO) $(TEST) --release --workspace
	$(CARGO) test --quiet --release --workspace --doc
	$(PYTHON) scripts/test_models.py

test-unit: ## Run the tests inside the crates only; needs no model
	$(CARGO) test --quiet --release --workspace --lib --bins

fuzz: ## Fuzz every parser, SECONDS (60) each
	@$(CARGO) fuzz --version >/dev/null 2>&1 || $(CARGO) install cargo-fuzz --locked --debug
	for target in $$($(CARGO) fuzz list); do \
	  RUSTC_BOOTSTRAP=1 $(CARGO) fuzz run $$target -- -max_total_time=$(SECONDS) || exit 1; \
	done

##@ Measure
bench: models ## Tokens per second, load time and memory of MODEL
	$(ORION) bench --model "$(MODEL)"

bench-peers: models ## The same beside llama.cpp (a prebuilt one, fetched once with npm), in turns
	$(CARGO) build --quiet --release -p orion-cli
	$(PYTHON) scripts/bench_peers.py "$(MODEL)"

bench-ttft: models ## Time to first token of MODEL while it arrives: predicted against measured
	$(CARGO) bench --quiet --bench ttft -- --model "$(MODEL)" --responder

eval: models ## Perplexity of MODEL on benches/data/licences.txt, beside llama.cpp's in benches/data/README.md
	$(ORION) eval --model "$(MODEL)" --file benches/data/licences.txt --ctx 512

##@ Before a commit
check: lint doc deny test ## Everything CI checks: format, clippy, docs, dependencies, tests

lint: ## Check format and clippy, warnings refused
	$(CARGO) fmt --all --check
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
