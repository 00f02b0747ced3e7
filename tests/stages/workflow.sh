#!/usr/bin/env bash
# .github/workflows/ci.yml: GitHub's schema for workflows. That it names every stage is held by tests/docs.rs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. tests/lib.sh

install_python check-jsonschema==0.39.0
"$python/bin/check-jsonschema" --builtin-schema vendor.github-workflows .github/workflows/ci.yml
echo "workflow: 1 passed, 0 failed"
