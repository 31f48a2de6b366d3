# Two commands matter: "make demo" runs the main job, "make test" the tests.
# Both want root on Debian with Go, and get everything else themselves.

BIN := $(CURDIR)/.cache/bin
export ORCHESTRATE_BIN := $(BIN)

.PHONY: demo test setup bench proof

demo: setup
	@echo "demo: building examples/quickstart"
	@CGO_ENABLED=0 go build -trimpath -ldflags=-s -o $(BIN)/quickstart ./examples/quickstart
	@$(BIN)/quickstart

test: setup
	@scripts/test.sh

setup:
	@scripts/setup.sh

# Every benchmark, beside the peers it is compared with; see BENCHMARKS.md.
bench: setup
	@scripts/bench.sh

# The long mode of the tests: fuzzing, many more random cases, and crashes.
proof: setup
	@scripts/proof.sh
