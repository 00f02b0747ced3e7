#!/usr/bin/env bash
# The tests of tests/real.rs and tests/scrapes.rs that need others' programs: the vendor's SDK, Prometheus, promtool, curl,
# gzip, openssl, each as Debian and PyPI have it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. tests/lib.sh

# The version whose requests the tests were last held against: a release of the vendor's must not turn them red.
readonly sdk=zenlayercloud-sdk-python==2.0.77
readonly prometheus_3=$PWD/target/prometheus-3 next_release=forky

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

install_prometheus
is_there curl || install_packages curl
is_there openssl || install_packages openssl
install_python "$sdk" prometheus-client==0.26.0 requests==2.32.5
export ZENLAYER_EXPORTER_TEST_PYTHON=$python/bin/python
prometheus --version 2>&1 | sed -n '1s/ (.*//p'
run_ignored scrapes
run_ignored real
if [ -d "$prometheus_3" ] || unpack_prometheus_3; then
    PATH=$prometheus_3/usr/bin:$PATH run_ignored real prometheus promtool
else
    echo "skipped: the same tests with Prometheus 3, which cannot be had here"
fi
