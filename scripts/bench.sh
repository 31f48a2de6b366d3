#!/usr/bin/env bash
# Every benchmark of the repository, each beside what it is compared with.
set -euo pipefail
cd "$(dirname "$0")/.."
export ORCHESTRATE_BIN="$PWD/.cache/bin"
go test -run '^$' -bench . -benchtime "${BENCHTIME:-1s}" -timeout 60m ./...
(cd bench && go run -tags kube .)
