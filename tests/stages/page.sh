#!/usr/bin/env bash
# The page at / in headless Chromium; pictures of it are left in tests/output.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. tests/lib.sh

if ! is_there chromium || ! is_there chromedriver; then
    install_packages chromium chromium-driver fonts-dejavu-core
fi
run_ignored page
