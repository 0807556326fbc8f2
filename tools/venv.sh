#!/bin/sh
# tools/venv.sh FOLDER EXTRAS: a virtual environment with holdfast from here, editable, and these extras.
# Takes $PYTHON, else the newest Python that runs; uv where no Python fits or venv is missing.
set -eu

venv=$1
extras=$2

say() { echo "holdfast: $*" >&2; }
fail() { say "$@"; exit 1; }
has() { command -v "$1" >/dev/null 2>&1; }

# A name on the PATH proves nothing: shims of version managers exist and fail, macOS has a stub. So each is run.
fits() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' </dev/null >/dev/null 2>&1; }
whole() { "$1" -c 'import ensurepip, ssl, venv' </dev/null >/dev/null 2>&1; }

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        set -- "$PYTHON"
    else
        set -- python3.14 python3.13 python3.12 python3.11 python3 python
    fi
    python=
    for name; do
        fits "$name" || continue
        [ -n "$python" ] || python=$name # the first that fits, unless one comes that has all of it
        if whole "$name"; then
            python=$name
            return
        fi
    done
}

apt_install() {
    apt-get update -qq >/dev/null || true # the lists at hand may do
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$1" >/dev/null
}

create() {
    find_python
    if [ -z "$python" ] && [ -n "${PYTHON:-}" ]; then
        fail "PYTHON=$PYTHON does not run, or is older than 3.11."
    fi
    if [ -n "$python" ] && ! whole "$python" && ! has uv; then
        package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
        has apt-get || fail "$python has no venv module, and there is no uv. Install either, then run this again."
        [ "$(id -u)" = 0 ] || fail "$python has no venv module. Run: sudo apt-get install $package   (or install uv)"
        say "installing $package"
        apt_install "$package" || fail "$package could not be installed (see above)."
        whole "$python" || fail "$python still has no venv module, though $package is installed: name another PYTHON=…"
    fi
    if [ -n "$python" ] && whole "$python"; then
        say "making $venv with $("$python" -V) ($(command -v "$python"))"
        "$python" -m venv --clear "$venv"
    elif has uv; then
        say "making $venv with uv"
        uv venv --quiet --seed --clear --python "${PYTHON:->=3.11}" "$venv"
    elif has apt-get; then
        fail "no Python 3.11 or newer was found. Run: sudo apt-get install python3 python3-venv   (or install uv)"
    elif has brew; then
        fail "no Python 3.11 or newer was found. Run: brew install python   (or install uv)"
    else
        fail "no Python 3.11 or newer was found. Install one (or uv), or name it: make PYTHON=/path/to/python …"
    fi
}

if ! fits "$venv/bin/python"; then
    create
fi
say "putting holdfast[$extras] into $venv"
rm -f src/holdfast/placement/_kernel*.so # made anew, or else its absence is told below
if "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".[$extras]"
elif has uv; then
    uv pip install --quiet --python "$venv/bin/python" --editable ".[$extras]"
else
    fail "$venv has no pip. Remove it (make clean) and run this again."
fi || fail "the packages could not be installed (see above); a network is needed the first time."
kernel=$("$venv/bin/python" -c 'from holdfast.placement import kernel; print(kernel())')
[ "$kernel" = c ] ||
    say "the kernel in C was not built (is there a cc, and Python.h?): placements run in plain Python, ten times slower"
