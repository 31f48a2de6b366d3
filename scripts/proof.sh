#!/usr/bin/env bash
# The long mode: each fuzz target for FUZZTIME (a minute), many more random
# cases and crashes. Prints what it ran.
set -euo pipefail
cd "$(dirname "$0")/.."
export ORCHESTRATE_BIN="$PWD/.cache/bin" ORCHESTRATE_LONG=1
fuzztime=${FUZZTIME:-60s}
for dir in $(git grep -l '^func Fuzz' -- '*_test.go' | xargs -n1 dirname | sort -u); do
	for target in $(grep -ho '^func Fuzz[A-Za-z0-9_]*' "$dir"/*_test.go | sed 's/^func //'); do
		printf 'proof: fuzzing %s in %s for %s\n' "$target" "$dir" "$fuzztime"
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$fuzztime" -fuzzminimizetime 10x "./$dir"
	done
done
printf 'proof: tests in their long mode\n'
go test -count=1 -v -timeout 120m ./... | grep -v '^=== \|^ *--- PASS\|^PASS'
