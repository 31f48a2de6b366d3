#!/usr/bin/env bash
# Packs a database server, Debian's Redis, into .cache/redis: a folder that
# examples/database builds its image from. The packages are unpacked and not
# installed, and of their files only the programs and the libraries that these
# need are kept. Does nothing twice.
set -euo pipefail
cd "$(dirname "$0")/.."
root="$PWD/.cache/redis"
programs="redis-server redis-cli redis-check-aof"

say() { printf 'database: %s\n' "$*"; }
if [ -x "$root/usr/bin/redis-server" ]; then exit 0; fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
mkdir "$work/all"
[ -n "$(apt-cache show redis-server 2>/dev/null)" ] || apt-get update -qq

# The packages of libraries that redis-tools depends on, and these on, level by
# level.
packages=(redis-server redis-tools)
level=(redis-tools)
while [ ${#level[@]} -gt 0 ]; do
	next=()
	for name in $(apt-cache depends "${level[@]}" | sed -n 's/^ *|\{0,1\}\(Pre\)\{0,1\}Depends: \(lib[^ <>]*\)$/\2/p' | sort -u); do
		[[ " ${packages[*]} " == *" $name "* ]] || { packages+=("$name") next+=("$name"); }
	done
	level=(${next[@]+"${next[@]}"})
done
say "packing ${packages[*]}"
get() { (cd "$work" && apt-get download -qq -o APT::Sandbox::User=root "${packages[@]}"); }
# A package list that is out of date names files that the server has no more.
get 2>/dev/null || { apt-get update -qq && get; }
for deb in "$work"/*.deb; do dpkg-deb -x "$deb" "$work/all"; done

mkdir -p "$work/root/usr/bin" "$work/root/lib" "$work/root/etc" "$work/root/tmp"
for program in $programs; do cp -L "$work/all/usr/bin/$program" "$work/root/usr/bin/"; done
ln -s lib "$work/root/lib64" # where the dynamic linker is looked for
needs() { find "$work/root" -type f -exec readelf -d {} + 2>/dev/null | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | sort -u; }
more=true
while $more; do
	more=false
	for name in $(needs) ld-linux-x86-64.so.2 ld-linux-aarch64.so.1; do
		if [ -e "$work/root/lib/$name" ]; then continue; fi
		file=$(find "$work/all" -name "$name" | head -n 1)
		case "$file,$name" in
		,ld-linux-*) continue ;; # another processor's
		,*) say "no package has $name" >&2; exit 1 ;;
		esac
		# A link may lead to an absolute path, which is one of the packages' too.
		while [ -L "$file" ]; do
			to=$(readlink "$file")
			case "$to" in /*) file="$work/all$to" ;; *) file="$(dirname "$file")/$to" ;; esac
		done
		cp "$file" "$work/root/lib/$name"
		more=true
	done
done
printf 'root:x:0:0:root:/:/sbin/nologin\nredis:x:999:999:redis:/data:/sbin/nologin\n' >"$work/root/etc/passwd"
printf 'root:x:0:\nredis:x:999:\n' >"$work/root/etc/group"
chmod 1777 "$work/root/tmp"
rm -rf "$root"
mkdir -p "$(dirname "$root")"
cp -a "$work/root" "$root"
say "$(chroot "$root" /usr/bin/redis-server --version)"
