#!/usr/bin/env bash
# Gets what the fleets of this machine need and Debian with Go does not have:
# containerd's shim and runc, built from their Go modules into .cache/bin, and
# the C compiler and headers that runc's build wants, and the makers of file
# systems that volumes and their tests use. Does nothing twice.
set -euo pipefail
cd "$(dirname "$0")/.."
bin="$PWD/.cache/bin"
containerd=v2.4.2
runc=v1.5.2

say() { printf 'setup: %s\n' "$*"; }

[ "$(id -u)" = 0 ] || { say "run this as root: namespaces, mounts and nftables need it" >&2; exit 1; }
command -v go >/dev/null || { say "Go is not on PATH; install it first" >&2; exit 1; }

missing=()
for package in gcc libc6-dev pkg-config libseccomp-dev e2fsprogs xfsprogs binutils; do
	dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
	say "installing ${missing[*]}"
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -qq
	apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

# A build is kept as long as the version and the Go release are the same.
build() { # name, package@version, environment and flags for go install
	local name=$1 package=$2 stamp
	shift 2
	stamp="$package $(go version) $*"
	if [ -x "$bin/$name" ] && [ "$(cat "$bin/$name.stamp" 2>/dev/null)" = "$stamp" ]; then
		return
	fi
	say "building $name from $package"
	mkdir -p "$bin"
	(cd / && env GOBIN="$bin" GOFLAGS= "$@" "$package")
	printf '%s' "$stamp" >"$bin/$name.stamp"
}
build containerd-shim-runc-v2 "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2@$containerd" \
	CGO_ENABLED=0 go install -trimpath -ldflags=-s
build runc "github.com/opencontainers/runc@$runc" \
	CGO_ENABLED=1 go install -trimpath -tags seccomp -ldflags=-s
scripts/database.sh
say "containerd-shim-runc-v2 $containerd and runc $runc are in .cache/bin"
