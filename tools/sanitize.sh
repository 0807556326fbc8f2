#!/bin/sh
# tools/sanitize.sh PYTHON [SECONDS]: the kernel in C under the address and undefined-behaviour sanitizers: the suite
# that compares it with the one in Python, and a fuzz of so many seconds. Needs gcc, its sanitizers and Python.h.
set -eu

python=$1
seconds=${2:-30}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cp -r src/holdfast "$folder/"
rm -f "$folder"/holdfast/placement/_kernel*.so
include=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
gcc -std=c11 -Wall -Wextra -Wno-unused-parameter -Wno-missing-field-initializers -Wno-cast-function-type -Werror \
    -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all \
    -shared -fPIC -DPy_LIMITED_API=0x030B0000 -I"$include" \
    src/holdfast/placement/_kernel.c -o "$folder/holdfast/placement/_kernel.abi3.so"

# Python's own allocator would hide what is read beside a block; what it keeps to its end is no leak.
export PYTHONPATH="$folder" PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1
LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
export LD_PRELOAD
"$python" -c 'import sys, holdfast.placement._kernel as k; assert k.__file__.startswith(sys.argv[1])' "$folder"
"$python" -m pytest -q -p no:cacheprovider --timeout 600 tests/unit/test_kernel.py
"$python" tools/fuzz_kernel.py "$seconds"
