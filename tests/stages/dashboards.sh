#!/usr/bin/env bash
# The dashboards of grafana/: their structure, Grafana's own types, and each query against a real Prometheus that
# scraped a real exporter in demo mode, once with each value of --metrics.status-series, once with names.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. tests/lib.sh

readonly types=("@grafana/schema@13.2.3" "typescript@7.0.2")
readonly work=$PWD/target/dashboards
# Long enough for changes of status, and for what looks back 30 seconds.
readonly seconds=75

servers=()
stop_servers() {
    for server in "${servers[@]}"; do kill "$server" 2>/dev/null || true; done
    wait
}
trap stop_servers EXIT

start() {
    local log=$1
    shift
    "$@" >"$log" 2>&1 &
    servers+=("$!")
}

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

install_types() {
    is_there npm || install_packages nodejs npm
    local installed package
    mkdir -p "$work"
    echo '{"private": true, "type": "module"}' >"$work/package.json"
    for package in "${types[@]}"; do
        installed=$work/node_modules/${package%@*}/package.json
        installed=$(sed -n 's/^ *"version": "\(.*\)",*$/\1/p' "$installed" 2>/dev/null || true)
        if [ "$installed" != "${package##*@}" ]; then
            (cd "$work" && npm install --loglevel=error --no-audit --no-fund --no-save "${types[@]}" >/dev/null)
            return
        fi
    done
}

# Both in one Prometheus, as two jobs.
start_everything() {
    rm -rf "$work/prometheus" && mkdir -p "$work/prometheus"
    echo 'scrape_configs:' >"$work/prometheus/prometheus.yml"
    for series in current all; do
        local port more=()
        # Names in one of the jobs alone: every panel has to do without, too.
        if [ "$series" = current ]; then more=(--collector.instance-info); fi
        port=$(free_port)
        start "$work/$series.log" "$exporter" --demo --poll.interval=1s "--metrics.status-series=$series" "${more[@]}" \
            --web.listen-address="127.0.0.1:$port"
        cat >>"$work/prometheus/prometheus.yml" <<EOF
  - job_name: zenlayer-$series
    scrape_interval: 1s
    static_configs: [{targets: ["127.0.0.1:$port"]}]
EOF
    done
    local port
    port=$(free_port)
    prometheus_url=http://127.0.0.1:$port
    start "$work/prometheus.log" prometheus --config.file="$work/prometheus/prometheus.yml" \
        --storage.tsdb.path="$work/prometheus/data" --web.listen-address="127.0.0.1:$port"
}

# Runs what ends with a line that begins with the number of its checks, and adds them up.
passed=0
say() {
    local said
    said=$("$@")
    printf '%s\n' "$said"
    passed=$((passed + ${said%% *}))
}

scraped() {
    "$python/bin/python" - "$prometheus_url" "$1" <<'EOF'
import json, sys, urllib.parse, urllib.request
query = urllib.parse.urlencode({"query": f"count(zenlayer_up offset {sys.argv[2]}s == 1)"})
try:
    result = json.load(urllib.request.urlopen(f"{sys.argv[1]}/api/v1/query?{query}", timeout=5))["data"]["result"]
except OSError:
    result = []
sys.exit(not result or result[0]["value"][1] != "2")
EOF
}

wait_until_scraped_for() {
    for _ in $(seq "$(($1 + 60))"); do
        for server in "${servers[@]}"; do
            kill -0 "$server" 2>/dev/null || fail "a server ended: its log is in $work"
        done
        if scraped "$1"; then return; fi
        sleep 1
    done
    fail "Prometheus has not scraped both exporters for $1 seconds: its log is in $work"
}

install_prometheus
install_python PyYAML==6.0.3
exporter=${EXPORTER-}
if [ -z "$exporter" ]; then
    cargo build --locked --quiet
    exporter=target/debug/zenlayer-exporter
fi
start_everything

say "$python/bin/python" tests/dashboards/structure.py
install_types
"$python/bin/python" tests/dashboards/typescript.py "$work"
(cd "$work" && node_modules/.bin/tsc --noEmit --strict --skipLibCheck --module nodenext --moduleResolution nodenext \
    dashboards.ts)
say echo "$(grep -c ' satisfies ' "$work/dashboards.ts") checks of Grafana's types"

wait_until_scraped_for "$((seconds + 5))"
say "$python/bin/python" tests/dashboards/queries.py "$prometheus_url" zenlayer-current zenlayer-all "$seconds"
# The one with every status, the second that was started.
kill "${servers[1]}"
say "$python/bin/python" tests/dashboards/down.py "$prometheus_url" zenlayer-all
echo "dashboards: $passed passed, 0 failed"
