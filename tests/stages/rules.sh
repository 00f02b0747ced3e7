#!/usr/bin/env bash
# The Prometheus rules and scrape configurations: promtool on each, the unit tests of every alert, and a real Prometheus that
# runs them on exporters in demo mode.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. tests/lib.sh

readonly prometheus_3=$PWD/target/prometheus-3/usr/bin output=$PWD/target/rules
readonly rules=deploy/prometheus/rules.yaml
passed=0 failed=0

# One check: silent when it passes, all it printed when it does not.
check() {
    local said
    if said=$("$@" 2>&1); then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        printf 'FAILED %s\n%s\n' "$*" "$said"
    fi
}

# Debian 12's promtool is built without Kubernetes discovery, which it calls an unknown field.
knows_kubernetes() {
    local answer
    answer=$("$1" check config deploy/prometheus/scrape-kubernetes.yaml 2>&1 || true)
    ! grep -q 'field kubernetes_sd_configs not found' <<<"$answer"
}

# The files that it and the web config name are somebody's own: these will do to be checked.
check_https() {
    local files
    files=$(mktemp -d)
    cp deploy/prometheus/{scrape-https,rules,web-config.example}.yaml "$files"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=exporter.example.com -days 2 \
        -keyout "$files/tls.key" -out "$files/tls.crt" 2>/dev/null
    cp "$files/tls.crt" "$files/ca.crt"
    touch "$files/zenlayer-password"
    check "$1" check config "$files/scrape-https.yaml"
    check "$1" check web-config "$files/web-config.example.yaml"
    rm -r "$files"
}

run_promtool() {
    local promtool=$1 file
    shift
    check "$promtool" check rules "$@" "$rules"
    for file in tests/rules/*.yaml; do
        check "$promtool" test rules "$file"
    done
    check_https "$promtool"
    for file in deploy/prometheus/scrape-{static,kubernetes}.yaml; do
        if [[ $file != *kubernetes* ]] || knows_kubernetes "$promtool"; then
            check "$promtool" check config "$file"
        else
            echo "skipped: $file with a promtool that knows no Kubernetes; its relabelling is run all the same"
        fi
    done
}

run_prometheus() {
    local said counts
    rm -rf "$output"
    mkdir -p "$output"
    said=$("$python/bin/python" tests/rules/check.py "$EXPORTER" "$1" "$output" 2>&1) || true
    # Its last line has the counts. Without them it broke down, which is a failure too.
    counts=$(tail -n 1 <<<"$said")
    if [[ $counts =~ ^([0-9]+)\ ([0-9]+)$ ]]; then
        passed=$((passed + BASH_REMATCH[1]))
        failed=$((failed + BASH_REMATCH[2]))
        sed '$d' <<<"$said"
    else
        failed=$((failed + 1))
        printf 'FAILED tests/rules/check.py\n%s\n' "$said"
    fi
}

install_prometheus
is_there openssl || install_packages openssl
install_python PyYAML==6.0.3
if [ -z "${EXPORTER-}" ]; then
    cargo build --locked --quiet
    EXPORTER=$PWD/target/debug/zenlayer-exporter
fi

run_promtool promtool
run_prometheus prometheus
if [ -x "$prometheus_3/promtool" ]; then
    run_promtool "$prometheus_3/promtool" --lint=all
    run_prometheus "$prometheus_3/prometheus"
else
    echo "skipped: the same with Prometheus 3, which tests/run.sh real unpacks where it can be had"
fi

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
