#!/usr/bin/env bash
# Each fuzz target for FUZZ_SECONDS seconds (5 unless set), from the seeds in tests/fuzz/corpus. A crash is left in
# target/fuzz/crashes; tests/fuzz/Cargo.toml says how to minimize it and keep it as a seed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. tests/lib.sh

seconds=${FUZZ_SECONDS-5}
[[ $seconds =~ ^[1-9][0-9]*$ ]] || fail "FUZZ_SECONDS=$seconds: expected a number of seconds, at least 1"

# What cargo-fuzz sets: coverage that libFuzzer follows. The variable lets a stable compiler instrument the code, and an
# explicit target keeps the flags away from build scripts.
target=$(rustc --print host-tuple)
coverage='-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing'
RUSTC_BOOTSTRAP=1 RUSTFLAGS=$(tr -s '\n ' ' ' <<<"$coverage") cargo build --locked --quiet --release --bins \
    --manifest-path tests/fuzz/Cargo.toml --target-dir target/fuzz --target "$target"

crashes=target/fuzz/crashes
mkdir -p "$crashes"
passed=0
for source in tests/fuzz/fuzz_targets/*.rs; do
    name=$(basename "$source" .rs)
    # What it finds goes to the first directory, which is new; the seeds stay as they are.
    found=$(mktemp -d)
    log=target/fuzz/$name.log
    "target/fuzz/$target/release/$name" -max_total_time="$seconds" -artifact_prefix="$crashes/$name-" \
        "$found" "tests/fuzz/corpus/$name" >"$log" 2>&1 || {
        tail -n 40 "$log" >&2
        rm -r "$found"
        fail "the fuzz target $name found a crash: see $crashes"
    }
    runs=$(sed -n 's/^Done \([0-9]*\) runs.*/\1/p' "$log")
    [ "${runs:-0}" -gt 0 ] || fail "the fuzz target $name did not run: see $log"
    echo "$name: $runs runs"
    rm -r "$found"
    passed=$((passed + 1))
done
echo "fuzz: $passed passed, 0 failed"
