#!/usr/bin/env bash
# Every test, with the race detector, as root and on real containers. Fails if
# anything is left on the machine.
set -euo pipefail
cd "$(dirname "$0")/.."
export ORCHESTRATE_BIN="$PWD/.cache/bin" CGO_ENABLED=1

say() { printf 'test: %s\n' "$*"; }

say "gofmt and go vet"
unformatted=$(gofmt -l $(git ls-files '*.go'))
[ -z "$unformatted" ] || { say "not gofmt-ed: $unformatted" >&2; exit 1; }
go vet ./...
go tool -n gofail >/dev/null # the test that uses it has no way to the module proxy

go build -o .cache/bin/testreport ./internal/testreport
go build -o .cache/bin/leftovers ./internal/leak/leftovers
.cache/bin/leftovers -save .cache/before.json

say "go test -race ./..."
status=0
tested() { go test -json -timeout 40m "$@" | .cache/bin/testreport || status=1; }
# Two packages at a time: what they share of the machine they keep apart by namespaces
# and names. Those that only reckon come later, beside the storm.
reckoning='/(internal/control|scheduler|scheduler/schedulertest)$'
tested -race -p 2 $(go list ./... | grep -vE "$reckoning")

say "the comparison module, at its smallest"
(cd bench && go vet ./... && go test -timeout 10m ./...) || status=1

say "the quickstart, on real containers"
CGO_ENABLED=0 go build -trimpath -ldflags=-s -o .cache/bin/quickstart ./examples/quickstart
.cache/bin/quickstart || status=1

say "a canary, on real containers"
CGO_ENABLED=0 go build -trimpath -ldflags=-s -o .cache/bin/rollout ./examples/rollout
.cache/bin/rollout || status=1

say "a database as a stateful service, on real containers"
CGO_ENABLED=0 go build -trimpath -ldflags=-s -o .cache/bin/database ./examples/database
.cache/bin/database || status=1

say "three hundred short tasks as one job, on real containers"
CGO_ENABLED=0 go build -trimpath -ldflags=-s -o .cache/bin/batch ./examples/batch
.cache/bin/batch -tasks 300 || status=1

# The storm waits for most of its time, and what it measures is time; the planner and
# the scheduler are processor time alone, and yield to it. The planner's walks are of
# one goroutine: they run whole without the detector, which would take ten times as
# long over them.
say "five minutes of faults on six machines, and the planner's walks beside them"
{
	nice -n 19 go test -json -race -short -timeout 40m ./internal/control || true # the report has it
	nice -n 19 go test -json -timeout 40m ./internal/control || true
	nice -n 19 go test -json -race -timeout 40m ./scheduler ./scheduler/schedulertest || true
} >.cache/walks.json &
ORCHESTRATE_STORM=${ORCHESTRATE_STORM:-5m} tested -count=1 -run '^TestStorm$' ./cluster
wait $!
.cache/bin/testreport <.cache/walks.json || status=1

say "a cluster of six machines that loses two of them, on real containers"
CGO_ENABLED=0 go build -trimpath -ldflags=-s -o .cache/bin/cluster ./examples/cluster
.cache/bin/cluster || status=1

say "a strategy on a simulated week, drawn into .cache/week.svg"
go test -count=1 -v ./examples/simulation -svg "$PWD/.cache/week.svg" | grep simulated || status=1
say "simulations are the same however they are built"
ORCHESTRATE_LONG=1 go test -count=1 -v -run TestBuildsAreTheSame ./orchestratetest | grep 'the hash is' || status=1

.cache/bin/leftovers -check .cache/before.json || status=1
if [ $status = 0 ]; then say "all passed, and nothing is left on the machine"; fi
exit $status
