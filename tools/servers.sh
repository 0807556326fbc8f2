#!/bin/sh
# Installs the servers that the tests start by themselves; as services they neither start now nor at boot.
# With --if-possible, where that cannot be done it says what to run and goes on: the tests that need them skip.
set -eu

policy=/usr/sbin/policy-rc.d
before=$policy.before-holdfast
mark="# of holdfast, while it installs test servers: no service may start"
log=/dev/null

# What shows that a server is there (a command, or files), the Debian package that brings it, and the service to keep off.
servers="
redis-server                        redis-server          redis-server
redis-sentinel                      redis-sentinel        redis-sentinel
/usr/share/java/zookeeper.jar       libzookeeper-java
java                                default-jre-headless
etcd                                etcd-server           etcd
/usr/lib/postgresql/*/bin/postgres  postgresql            postgresql
/usr/*bin/pgbouncer                 pgbouncer             pgbouncer
"

say() { echo "holdfast: $*" >&2; }
has() { command -v "$1" >/dev/null 2>&1; }
is_there() {
    for sign in $1; do # a pattern becomes the files that match it
        has "$sign" || [ -e "$sign" ] && return 0
    done
    [ "$1" = redis-server ] && has valkey-server
}
missing() {
    echo "$servers" | while read -r sign package _; do
        [ -z "$sign" ] || is_there "$sign" || printf '%s ' "$package"
    done
}

cannot() {
    if [ "${mode:-}" = --if-possible ]; then
        say "not here: $wanted- the tests that need them skip. $1"
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
wanted=$(missing)
if [ -z "$wanted" ]; then
    [ "$mode" = --if-possible ] || say "the servers are there"
    exit 0
fi
if has apt-get; then
    [ "$(id -u)" = 0 ] || cannot "To install them, without their services: sudo make servers"
elif has brew; then
    cannot "To install them: brew install redis zookeeper etcd postgresql pgbouncer   (none starts by itself)"
else
    cannot "Install them with your package manager."
fi

say "installing, with their services off: $wanted"
no_service_starts
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
apt-get update -qq >"$log" 2>&1 || true # the lists at hand may do
for package in $wanted; do # one by one: where a release lacks one, the others still come
    if ! apt-get install -qq -y --no-install-recommends -o DPkg::Lock::Timeout=300 "$package" >>"$log" 2>&1; then
        cat "$log" >&2
        failed="${failed:-}$package "
    fi
done
echo "$servers" | while read -r _ package service; do
    case " $wanted" in *" ${package:-none} "*) [ -z "$service" ] || stay_off_at_boot "$service" ;; esac
done
[ -z "${failed:-}" ] || cannot "could not be installed (see above): $failed"
