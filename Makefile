# What a person types. `make` alone lists the targets.

CARGO = cargo

.PHONY: help check clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/make \1|\2/p' Makefile | column -t -s '|' 2>/dev/null || \
	    sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/make \1: \2/p' Makefile

check: ## before a push, without QEMU: format, lints, unit tests
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --all-features -- -D warnings
	$(CARGO) test --workspace --exclude pullfs-tests --all-features --lib --bins
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny check; \
	    else echo "check: cargo-deny is not installed, deny.toml was not checked"; fi

clean: ## what was built
	$(CARGO) clean
