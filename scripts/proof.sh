#!/usr/bin/env bash
# The long mode: each fuzz target for FUZZTIME (a minute), many more random
# cases and crashes. Prints what it ran.
set -euo pipefail
cd "$(dirname "$0")/.."
export ORCHESTRATE_BIN="$PWD/.cache/bin" ORCHESTRATE_LONG=1
fuzztime=${FUZZTIME:-60s}
log=$(mktemp)
trap 'rm -f "$log" "$log.fuzz"' EXIT
for dir in $(git grep -l '^func Fuzz' -- '*_test.go' | xargs -n1 dirname | sort -u); do
	for target in $(grep -ho '^func Fuzz[A-Za-z0-9_]*' "$dir"/*_test.go | sed 's/^func //'); do
		printf 'proof: fuzzing %s in %s for %s\n' "$target" "$dir" "$fuzztime"
		if ! go test -run '^$' -fuzz "^$target\$" -fuzztime "$fuzztime" -fuzzminimizetime 10x "./$dir" | tee "$log"; then
			# Go's fuzzer may take the end of its own time for a failure.
			grep -q '^ *context deadline exceeded$' "$log" && ! grep -q 'Failing input' "$log" || exit 1
		fi
		printf '%s in %s: %s inputs\n' "$target" "$dir" "$(sed -n 's/.*execs: \([0-9]*\).*/\1/p' "$log" | tail -n 1)" >>"$log.fuzz"
	done
done
printf 'proof: tests in their long mode\n'
go build -o .cache/bin/testreport ./internal/testreport
status=0
go test -json -count=1 -timeout 240m ./... | .cache/bin/testreport || status=1
printf 'proof: planted bugs, of which the suites are to catch 28 of 30\n'
scripts/mutants.sh || status=1
printf 'proof: %s fuzz targets had %s each\n' "$(wc -l <"$log.fuzz")" "$fuzztime"
sed 's/^/  /' "$log.fuzz"
exit $status
