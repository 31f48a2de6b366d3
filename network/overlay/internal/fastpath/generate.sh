#!/bin/sh
# Builds fastpath.o of fastpath.c; it wants clang, llvm and libbpf-dev. One compiler
# builds the same in any folder. A test compares the hash in it with the source's.
set -eu
cd "$(dirname "$0")"
hash=$(sha256sum fastpath.c | cut -c 1-64)
clang -ffile-compilation-dir=. -O2 -g -Wall -Werror -target bpfel "-I/usr/include/$(uname -m)-linux-gnu" "-DSOURCE=\"$hash\"" -c fastpath.c -o fastpath.o
llvm-strip -g fastpath.o
