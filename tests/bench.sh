#!/usr/bin/env bash
# Measures the exporter against its goals, two baselines and nginx, in one run on this machine, and prints the tables of
# docs/performance.md. It takes about eight minutes; leave the machine alone meanwhile.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. tests/lib.sh

is_there wrk || install_packages wrk
is_there curl || install_packages curl
[ -x /usr/sbin/nginx ] || install_packages nginx-light
cargo build --release --locked --bins --examples
cargo bench --locked --bench pipeline --no-run
exec python3 benches/measure.py
