#!/usr/bin/env bash
# Every test. `tests/run.sh quick`: those that need nothing installed. `tests/run.sh`: these, then every stage with real
# tools, which it installs on Debian where they are missing. `tests/run.sh NAME`: that stage alone.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. tests/lib.sh

# In the order of what they cost; rules uses the Prometheus 3 that real unpacks.
readonly stages=(fuzz supply real rules systemd kubernetes dashboards page pod container)

quick() {
    cargo fmt --check
    cargo clippy --all-targets --locked -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --locked
    cargo test --locked
}

stage() {
    echo "== $1"
    "tests/stages/$1.sh"
}

case "$#,${1-}" in
    0,)
        quick
        for name in "${stages[@]}"; do stage "$name"; done
        ;;
    1,quick) quick ;;
    1,*)
        [ -x "tests/stages/$1.sh" ] || fail "no stage '$1': there are quick, ${stages[*]}"
        stage "$1"
        ;;
    *) fail "too many arguments: say tests/run.sh, or name one stage: quick, ${stages[*]}" ;;
esac
