#!/usr/bin/env bash
# Every test. `tests/run.sh quick`: those that need nothing installed. `tests/run.sh`: these, then those with the real
# tools, which it installs on Debian where they are missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# The version whose requests the tests were last held against: a release of the vendor's must not turn them red.
readonly sdk=zenlayercloud-sdk-python sdk_version=2.0.77
readonly python=$PWD/target/python
readonly prometheus_3=$PWD/target/prometheus-3 next_release=forky

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

sdk_is_there() {
    "$python/bin/python" -c "
import importlib.metadata, sys, zenlayercloud
sys.exit(importlib.metadata.version('$sdk') != '$sdk_version')" >/dev/null 2>&1
}

install_sdk() {
    if sdk_is_there; then
        return
    fi
    if ! make_environment; then
        install_packages python3-venv
        make_environment || fail "python3 -m venv $python does not work: try it by hand"
    fi
    "$python/bin/pip" install --quiet --disable-pip-version-check "$sdk==$sdk_version"
}

quick() {
    cargo fmt --check
    cargo clippy --all-targets --locked -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --locked
    cargo test --locked
}

# The tests with real tools whose names match, or all.
real_tests() {
    cargo test --locked --test real -- --ignored "$@"
}

run_real_tests() {
    local listed passed log=target/real.log
    prometheus --version 2>&1 | sed -n '1s/ (.*//p'
    listed=$(real_tests "$@" --list | grep -c ': test$' || true)
    real_tests "$@" | tee "$log"
    passed=$(sed -n 's/^test result: ok\. \([0-9]*\) passed.*/\1/p' "$log")
    if [ "$listed" -eq 0 ] || [ "$passed" != "$listed" ]; then
        fail "$listed tests need real tools, ${passed:-none} ran: look for what skips them in tests/real.rs"
    fi
}

# Debian's next release, read with settings and lists apart from the machine's own; nothing is installed.
apt_of_next_release() {
    local mirror
    # shellcheck disable=SC2016 # apt-get expands it.
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | sed -n 1p)
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $next_release main" >sources
    mkdir -p state/lists/partial cache/archives/partial
    apt-get -qq -o Dir::State="$PWD/state" -o Dir::State::status=/dev/null -o Dir::Cache="$PWD/cache" \
        -o Dir::Etc::sourcelist="$PWD/sources" -o Dir::Etc::sourceparts=- -o APT::Sandbox::User=root \
        -o Acquire::Languages=none "$@"
}

# Runs as a condition, where `set -e` has no effect: hence the chain.
unpack_prometheus_3() (
    rm -rf "$prometheus_3.part" &&
        mkdir -p "$prometheus_3.part" &&
        cd "$prometheus_3.part" &&
        apt_of_next_release update &&
        apt_of_next_release download prometheus promtool &&
        for package in *.deb; do dpkg-deb -x "$package" root || exit; done &&
        root/usr/bin/prometheus --version | grep '^prometheus, version 3' &&
        root/usr/bin/promtool --version >/dev/null &&
        mv root "$prometheus_3" &&
        rm -r "$prometheus_3.part"
) >/dev/null 2>&1

real() {
    install_prometheus
    install_sdk
    export ZENLAYER_EXPORTER_TEST_PYTHON=$python/bin/python
    run_real_tests
    if [ -d "$prometheus_3" ] || unpack_prometheus_3; then
        PATH=$prometheus_3/usr/bin:$PATH run_real_tests prometheus promtool
    else
        echo "skipped: the same tests with Prometheus 3, which cannot be had here"
    fi
}

case "$#,${1-}" in
    0,)
        quick
        real
        ;;
    1,quick) quick ;;
    *) fail "unknown argument '$*': say tests/run.sh quick, or tests/run.sh alone for every test" ;;
esac
