#!/usr/bin/env bash
# The fuzz targets still compile. Running them takes a nightly's time and cargo-fuzz: see tests/fuzz/Cargo.toml.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. tests/lib.sh

cargo check --locked --quiet --manifest-path tests/fuzz/Cargo.toml --target-dir target/fuzz
echo "fuzz: 1 passed, 0 failed"
