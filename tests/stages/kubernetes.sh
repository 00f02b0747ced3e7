#!/usr/bin/env bash
# deploy/kubernetes: builds, schemas, the operator's types, checkov, goldens, and agreement with the exporter itself.
# `tests/stages/kubernetes.sh --write` regenerates the generated files: the PrometheusRule and the goldens.
#
# Building needs kubectl or kustomize, which Debian 12 lacks in a version that knows components: without, what was rendered
# before is looked at.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. tests/lib.sh

# A directory of its own, so that no package.json lies in the tree.
readonly models=$PWD/target/kubernetes-models
readonly npm_package=@kubernetes-models/prometheus-operator@6.0.0

install_python kubernetes-validate==1.34.1 PyYAML==6.0.3
if [ "${1-}" = --write ]; then
    exec "$python/bin/python" -B tests/kubernetes/manifests.py --write
fi
install_python checkov==3.3.30
install_prometheus
export MODELS=
if is_there npm && is_there node; then
    if [ ! -e "$models/complete" ]; then
        rm -rf "$models"
        mkdir -p "$models"
        npm install --silent --no-fund --no-audit --prefix "$models" "$npm_package" >/dev/null
        touch "$models/complete"
    fi
    MODELS=$models/node_modules
else
    echo "skipped: the types of prometheus-operator, for there is no npm"
fi
if [ -z "${EXPORTER-}" ]; then
    cargo build --locked --quiet
    EXPORTER=target/debug/zenlayer-exporter
fi
export EXPORTER
"$python/bin/python" -B tests/kubernetes/manifests.py
