#!/usr/bin/env bash
# deploy/kubernetes/base run for real: podman plays the Deployment and the Secret as rendered, against the simulated API.
#
# STATIC_EXPORTER names a static binary that is there already. What this cannot show: the Service, the NetworkPolicy and
# the probes as a kubelet asks them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. tests/lib.sh

for tool in buildah podman runc conmon busybox; do
    is_there "$tool" || {
        install_packages buildah podman runc conmon containernetworking-plugins catatonit busybox-static
        break
    }
done
is_there ip || install_packages iproute2
install_python PyYAML==6.0.3

if [ -z "${STATIC_EXPORTER-}" ]; then
    target=$(rustc --print host-tuple)
    RUSTFLAGS='-C target-feature=+crt-static' cargo build --release --locked --quiet --target "$target"
    STATIC_EXPORTER=target/$target/release/zenlayer-exporter
fi
# The simulated API is one more of the same.
EXPORTER=${EXPORTER-$STATIC_EXPORTER}
STATIC_EXPORTER=$(realpath "$STATIC_EXPORTER") EXPORTER=$(realpath "$EXPORTER")

rendered=$(mktemp)
trap 'rm -f "$rendered"' EXIT
if is_there kubectl; then
    kubectl kustomize deploy/kubernetes/base >"$rendered"
elif is_there kustomize; then
    kustomize build deploy/kubernetes/base >"$rendered"
else
    # The stage kubernetes holds it to the sources, wherever it can build them.
    cp tests/kubernetes/golden/base.yaml "$rendered"
fi

# Containers need root. The network's rules and leases must be gone afterwards, so it is one apart.
# shellcheck disable=SC2016 # The inner shell expands it.
as_root env PATH="$PATH:/usr/sbin:/sbin" EXPORTER="$EXPORTER" STATIC_EXPORTER="$STATIC_EXPORTER" RENDERED_BASE="$rendered" \
    unshare --net --mount sh -c '
        ip link set lo up && mkdir -p /var/lib/cni && mount -t tmpfs none /var/lib/cni && exec "$@"
    ' sh "$python/bin/python" -B tests/kubernetes/pod.py
