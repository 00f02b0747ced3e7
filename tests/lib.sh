# What the stages share: installing what they need. Sourced, from the root of the repository.
# shellcheck shell=bash
set -euo pipefail

readonly python=$PWD/target/python

fail() {
    printf 'tests/run.sh: %s\n' "$*" >&2
    exit 1
}

is_there() {
    command -v "$1" >/dev/null
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif is_there sudo; then
        sudo "$@"
    else
        fail "'$*' needs root: run it yourself as root, or install sudo"
    fi
}

apt_is_fresh=

install_packages() {
    is_there apt-get || fail "install $* by hand: there is no apt-get on this machine"
    # Offline, systemctl starts no service that a package brings: the tests run the programs themselves.
    local apt=(as_root env DEBIAN_FRONTEND=noninteractive SYSTEMD_OFFLINE=1 apt-get -qq -o Dpkg::Use-Pty=0)
    if [ -z "$apt_is_fresh" ]; then
        "${apt[@]}" update
        apt_is_fresh=yes
    fi
    "${apt[@]}" install --yes --no-install-recommends "$@" >/dev/null
}

install_prometheus() {
    if ! is_there prometheus || ! is_there promtool; then
        install_packages prometheus
    fi
}

make_environment() {
    # One that was left half made is of no use.
    python3 -m venv --clear "$python" >/dev/null 2>&1
}

# Installs PyPI packages, each given as name==version, beside those that are there already.
install_python() {
    if [ ! -x "$python/bin/pip" ] && ! make_environment; then
        install_packages python3-venv
        make_environment || fail "python3 -m venv $python does not work: try it by hand"
    fi
    local installed package
    installed=$("$python/bin/pip" list --format=freeze --disable-pip-version-check)
    for package in "$@"; do
        if ! grep -qixF "$package" <<<"$installed"; then
            "$python/bin/pip" install --quiet --disable-pip-version-check "$package"
        fi
    done
}

# Runs the ignored tests of one file under tests/, all or those whose names match; each must run.
run_ignored() {
    local file=$1 listed passed log=target/$1.log
    shift
    listed=$(cargo test --locked --quiet --test "$file" -- --ignored --list "$@" | grep -c ': test$' || true)
    cargo test --locked --test "$file" -- --ignored "$@" | tee "$log"
    passed=$(sed -n 's/^test result: ok\. \([0-9]*\) passed.*/\1/p' "$log")
    if [ "$listed" -eq 0 ] || [ "$passed" != "$listed" ]; then
        fail "$listed tests of tests/$file.rs need real tools, ${passed:-none} ran: look for what skips them"
    fi
}
