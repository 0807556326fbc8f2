#!/bin/sh
# Installs the servers that the tests start by themselves; as services they neither start now nor at boot.
# With --if-possible, where that cannot be done it says what to run and goes on: the tests that need them skip.
set -eu

policy=/usr/sbin/policy-rc.d
before=$policy.before-holdfast
mark="# of holdfast, while it installs test servers: no service may start"
log=/dev/null

say() { echo "holdfast: $*" >&2; }
has() { command -v "$1" >/dev/null 2>&1; }
missing() { ! has redis-server && ! has valkey-server; }

cannot() {
    if [ "${mode:-}" = --if-possible ]; then
        say "no redis-server here: the tests that need one skip. $1"
        exit 0
    fi
    say "$1"
    exit 1
}

restore() {
    [ "$log" = /dev/null ] || rm -f "$log"
    if [ -e "$before" ]; then
        mv -f "$before" "$policy"
    else
        rm -f "$policy"
    fi
}

no_service_starts() {
    # A file with our mark is left from a run that was killed; what it put aside still waits in $before.
    if [ -e "$policy" ] && ! grep -qF "$mark" "$policy"; then
        mv -f "$policy" "$before"
    fi
    trap restore EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    printf '#!/bin/sh\n%s\nexit 101\n' "$mark" >"$policy"
    chmod 755 "$policy"
}

stay_off_at_boot() {
    if has systemctl; then
        systemctl disable --quiet "$1.service" >/dev/null 2>&1 || true
    elif has deb-systemd-helper; then
        deb-systemd-helper disable "$1.service" >/dev/null 2>&1 || true
    fi
    update-rc.d "$1" disable >/dev/null 2>&1 || true
}

mode=${1:-}
if ! missing; then
    [ "$mode" = --if-possible ] || say "the servers are there: $(command -v redis-server || command -v valkey-server)"
    exit 0
fi
if has apt-get; then
    [ "$(id -u)" = 0 ] || cannot "To install it, without its service: sudo make servers"
elif has brew; then
    cannot "To install it: brew install redis   (it does not start by itself)"
else
    cannot "Install redis-server or valkey-server with your package manager."
fi

say "installing redis-server, with its service off"
no_service_starts
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
if ! {
    apt-get update -qq || true # the lists at hand may do
    apt-get install -qq -y --no-install-recommends -o DPkg::Lock::Timeout=300 redis-server
} >"$log" 2>&1; then
    cat "$log" >&2
    cannot "redis-server could not be installed (see above)."
fi
stay_off_at_boot redis-server
