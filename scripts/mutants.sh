#!/usr/bin/env bash
# Mutation check: each patch of testdata/mutants plants one bug in a copy of the
# tree, and the suites that it names must fail. Prints what caught what; with
# arguments only those mutants; with WRITE=1 it writes MUTANTS.md. A mutant that does
# not apply or compile is an error: it says nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD copy=$(mktemp -d) limit=${MUTANT_LIMIT:-600}
trap 'rm -rf "$copy"' EXIT
git ls-files -z --cached --others --exclude-standard | tar -c --null -T - | tar -x -C "$copy"
export ORCHESTRATE_BIN="${ORCHESTRATE_BIN:-$root/.cache/bin}"
unset ORCHESTRATE_LONG # what the short mode misses is missed by CI

names=("$@")
if [ ${#names[@]} = 0 ]; then
	for p in testdata/mutants/*.patch; do names+=("$(basename "$p" .patch)"); done
fi
caught=0 missed=() broken=() rows=""
for name in "${names[@]}"; do
	patch=$copy/testdata/mutants/$name.patch
	what=$(sed -n 1p "$patch") suites=$(sed -n 's/^Tests: //p' "$patch")
	if ! (cd "$copy" && git apply --recount "$patch" && go vet $suites) >"$copy.log" 2>&1; then
		broken+=("$name"); printf 'mutants: %-40s DOES NOT APPLY\n' "$name"; tail -5 "$copy.log"
		(cd "$copy" && git apply --recount -R "$patch") 2>/dev/null || true
		continue
	fi
	began=$SECONDS by=""
	for suite in $suites; do
		# The golden stories first: they take a moment, and catch most.
		status=0
		(cd "$copy" && timeout "$limit" go test -short -count=1 -failfast -run Stories "$suite" &&
			timeout "$limit" go test -short -count=1 -failfast "$suite") >"$copy.log" 2>&1 || status=$?
		if [ $status != 0 ] && [ $status != 124 ]; then # 124: out of time, which says nothing
			by=$(grep -m1 -oE '^(--- FAIL: [A-Za-z0-9_]+|panic: .{0,60}|fatal error: .*)' "$copy.log" || true)
			by="${by#--- FAIL: }"; by="${by:-a failure} in $suite"
			break
		fi
	done
	(cd "$copy" && git apply --recount -R "$patch")
	if [ -n "$by" ]; then
		caught=$((caught + 1)); verdict="$by"
	else
		missed+=("$name"); verdict="MISSED"
	fi
	printf 'mutants: %-40s %s (%d s)\n' "$name" "$verdict" $((SECONDS - began))
	rows+="| $name | $what | $verdict |"$'\n'
done
printf 'mutants: %d planted, %d caught, %d missed%s\n' "${#names[@]}" "$caught" "${#missed[@]}" "${missed:+: ${missed[*]}}"
rm -f "$copy.log"
if [ -n "${WRITE:-}" ]; then
	cat >MUTANTS.md <<-EOF
	# Mutation check

	Bugs that \`scripts/mutants.sh\` plants, one at a time, in a copy of the tree, and the
	test that failed first. Each is a patch in \`testdata/mutants\`, which names the suites
	that are to catch it; they run in their short mode, and must compile. \`make proof\`
	runs them all. Here $caught of ${#names[@]} were caught.

	| bug | what it does | caught by |
	|---|---|---|
	$rows
	EOF
fi
[ ${#broken[@]} = 0 ] || { printf 'mutants: %d do not apply: %s\n' "${#broken[@]}" "${broken[*]}"; exit 1; }
# At least 28 of 30.
[ $((caught * 30)) -ge $((28 * ${#names[@]})) ]
