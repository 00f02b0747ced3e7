#!/usr/bin/env bash
# What the exporter is made of: deny.toml held to the lock files, and the bill of materials held to what is linked in.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. tests/lib.sh

readonly tools=$PWD/target/tools

# Each given as name@version, as the Dockerfile does.
install_tool() {
    local tool=$1
    if ! grep -qF "\"${tool%@*} ${tool#*@} " "$tools/.crates.toml" 2>/dev/null; then
        cargo install --locked --quiet --root "$tools" "$tool"
    fi
}

install_tool cargo-deny@0.20.2
install_tool "$(grep -o 'cargo-cyclonedx@[0-9.]*' deploy/docker/Dockerfile)"
export PATH=$tools/bin:$PATH

for manifest in Cargo.toml tests/fuzz/Cargo.toml; do
    cargo deny --manifest-path "$manifest" --config deny.toml --log-level error check --hide-inclusion-graph bans licenses sources
done
if cargo deny --log-level off fetch db 2>/dev/null; then
    cargo deny --log-level error check advisories
else
    echo "1 skipped: the database of advisories cannot be downloaded"
fi

trap 'rm -f zenlayer-exporter.cdx.json' EXIT
cargo cyclonedx --quiet --format json --no-build-deps --target "$(rustc --print host-tuple)" \
    --override-filename zenlayer-exporter.cdx
install_python cyclonedx-python-lib==7.6.2 jsonschema==4.25.1 referencing==0.37.0 rfc3339-validator==0.1.4
"$python/bin/python" - <<'CHECK'
import json, subprocess, sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

text = open("zenlayer-exporter.cdx.json").read()
bill = json.loads(text)
version = SchemaVersion.from_version(bill["specVersion"])
error = JsonStrictValidator(version).validate_str(text)
if error:
    sys.exit(f"not CycloneDX {bill['specVersion']}: {error}")
listed = {(part["name"], part["version"]) for part in bill["components"]}
tree = subprocess.run(
    ["cargo", "tree", "--locked", "--edges=normal", "--prefix=none", "--format={p}"], check=True, capture_output=True, text=True
).stdout
linked = {tuple(line.replace(" v", " ").split()[:2]) for line in tree.splitlines() if line}
linked = {crate for crate in linked if crate[0] != "zenlayer-exporter"}
# A feature that only a dependency of the tests switches on: the bill does not tell them apart, and names a crate too many.
listed = {crate for crate in listed if crate[0] != "rand_core"}
if listed != linked:
    sys.exit(f"only in the bill: {sorted(listed - linked)}; only linked in: {sorted(linked - listed)}")
if not all(part.get("licenses") for part in bill["components"]):
    sys.exit("a part has no licence")
print(f"supply: {len(listed)} passed, 0 failed: crates in the bill and linked in, each with its licence")
CHECK
