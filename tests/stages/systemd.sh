#!/usr/bin/env bash
# deploy/systemd: the unit as systemd-analyze sees it, and its command under its system call rules. Not shown: the unit started
# by systemd, which has to be the first process for that.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. tests/lib.sh

is_there systemd-analyze || install_packages systemd
ldconfig -p 2>/dev/null | grep -q 'libseccomp\.so\.2' || install_packages libseccomp2
is_there openssl || install_packages openssl
is_there python3 || install_packages python3
if [ -z "${EXPORTER-}" ]; then
    cargo build --locked --quiet
    EXPORTER=target/debug/zenlayer-exporter
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
EXPORTER="$EXPORTER" python3 -B -m unittest discover --verbose --start-directory tests/systemd 2>&1 | tee "$log" || {
    failed=$(sed -n 's/^FAILED (\(.*\))$/\1/p' "$log")
    fail "systemd: ${failed:-it did not come to an end}"
}
ran=$(sed -n 's/^Ran \([0-9]*\) tests.*/\1/p' "$log")
[ "${ran:-0}" -gt 0 ] || fail "systemd: no test ran"
echo "systemd: $ran passed, 0 failed"
