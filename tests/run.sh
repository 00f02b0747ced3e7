#!/usr/bin/env bash
# Runs the tests; `tests/run.sh --help` lists the stages.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. tests/lib.sh

# Ordered by cost; rules uses the Prometheus 3 that real unpacks.
readonly stages=(quick workflow fuzz supply real rules systemd kubernetes dashboards page pod container)
readonly logs=target/stages

usage() {
    cat <<'END'
Usage: tests/run.sh          run every stage
       tests/run.sh STAGE    run one stage

Each stage installs what it needs if it is missing: Debian packages as root or with sudo, Python packages into target/python.

  quick       formatting, lints, documentation, unit and integration tests; needs only Rust
  workflow    the workflow of GitHub Actions; needs Python
  fuzz        each fuzz target for FUZZ_SECONDS seconds (default 5); needs a C++ compiler
  supply      licences, sources and the bill of materials; needs cargo-deny, which it downloads
  real        the exporter with the vendor's SDK, Prometheus 2 and 3, promtool, curl, gzip and openssl
  rules       alert rules and scrape configurations; needs Prometheus and promtool
  systemd     the unit file; needs systemd-analyze
  kubernetes  manifests; needs kubectl or kustomize, and checkov
  dashboards  dashboards and their queries; needs Prometheus
  page        the status page in headless Chromium
  pod         the Kubernetes base in podman; needs root
  container   the Dockerfile with buildah and podman; needs root
END
}

# Runs one stage. Its output also goes to a file, from which the summary takes the counts.
stage() {
    local name=$1 started=$SECONDS outcome=passed
    echo "== $name"
    "tests/stages/$name.sh" 2>&1 | tee "$logs/$name.log" || outcome=failed
    printf '%-11s %6s  %s\n' "$name" "$((SECONDS - started))s" "$(counts "$name" "$outcome")" >>"$logs/summary"
    [ "$outcome" = passed ]
}

# What the stage printed: the sum over all test binaries of cargo, or else the last line with counts. A line may name skipped
# tests alone.
counts() {
    awk -v outcome="$2" '
        function add(line, word) {
            while (match(line, /[0-9]+ (passed|failed|skipped|ignored)/)) {
                split(substr(line, RSTART, RLENGTH), word, " ")
                sum[word[2]] += word[1]
                line = substr(line, RSTART + RLENGTH)
            }
        }
        /^test result:/ { by_cargo = 1; add($0); next }
        /[0-9] passed/ { last = $0; next }
        /[0-9] skipped/ { add($0) }
        END {
            if (!by_cargo) add(last)
            if (outcome == "failed" && !sum["failed"]) sum["failed"] = 1
            printf "%d passed, %d failed, %d skipped\n", sum["passed"], sum["failed"], sum["skipped"] + sum["ignored"]
        }' "$logs/$1.log"
}

run() {
    local name status=0
    mkdir -p "$logs"
    : >"$logs/summary"
    for name in "$@"; do
        stage "$name" || { status=1; break; }
    done
    echo "== summary"
    cat "$logs/summary"
    return "$status"
}

[ "$#" -le 1 ] || fail "too many arguments: expected one stage, or none for all"
case "${1-all}" in
    all) run "${stages[@]}" ;;
    -h | --help) usage ;;
    *)
        [[ " ${stages[*]} " == *" $1 "* ]] || fail "unknown stage '$1': expected one of ${stages[*]}"
        run "$1"
        ;;
esac
