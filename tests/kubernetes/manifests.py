"""Holds deploy/kubernetes to Kubernetes' schemas, to the exporter's own words, and to what was rendered before.

With --write it regenerates the generated files: the PrometheusRule, of deploy/prometheus/rules.yaml, and the goldens.
"""

import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import kubernetes_validate
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
SOURCES = ROOT / "deploy/kubernetes"
HERE = ROOT / "tests/kubernetes"
GOLDEN = HERE / "golden"
RULES = ROOT / "deploy/prometheus/rules.yaml"
WEB_CONFIG = ROOT / "deploy/prometheus/web-config.example.yaml"
PROMETHEUS_RULE = SOURCES / "components/prometheus-operator/prometheusrule.yaml"
NAME, PORT = "zenlayer-exporter", 10980
RENDERED = {
    "base": "base",
    "demo": "overlays/examples/demo",
    "operator": "overlays/examples/operator",
    "prometheus-sidecar": "overlays/examples/prometheus-sidecar",
    "shards": "overlays/examples/shards",
    "web-config": "overlays/examples/web-config",
}
# From the first that has native sidecars to the newest that the package has.
VERSIONS = ["1.29", "1.31", "1.34"]
GENERATED = "# Made by `tests/stages/kubernetes.sh --write`, not by hand.\n"
PROMETHEUS_RULE_HEAD = f"""{GENERATED}# Its groups are those of deploy/prometheus/rules.yaml.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: {NAME}
  labels:
    app.kubernetes.io/name: {NAME}
spec:
"""
# What every container of the exporter runs under, wherever the manifest says it.
HARDENED = {
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "runAsGroup": 65532,
    "seccompProfile": {"type": "RuntimeDefault"},
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}

SMALL = {"requests": {"cpu": "5m", "memory": "16Mi"}, "limits": {"memory": "128Mi"}}
RESOURCES = {"shards": {"requests": {"cpu": "5m", "memory": "256Mi"}, "limits": {"memory": "512Mi"}}}

failures, passed = [], 0


def check(what, wrong):
    """`wrong` is what is wrong, or nothing."""
    global passed
    if wrong:
        failures.append(what)
        print(f"FAILED: {what}:\n{wrong}", file=sys.stderr)
    else:
        passed += 1


def unequal(seen, wanted):
    return "" if seen == wanted else f"  is     {seen!r}\n  not as {wanted!r}"


def builder():
    if shutil.which("kubectl"):
        return ["kubectl", "kustomize"]
    if shutil.which("kustomize"):
        return ["kustomize", "build"]
    return None


def build(directory):
    return subprocess.run([*builder(), str(directory)], text=True, capture_output=True, check=False)


def objects(text):
    return {(o["kind"], o["metadata"]["name"]): o for o in yaml.safe_load_all(text)}


def golden(name):
    return objects((GOLDEN / f"{name}.yaml").read_text())


def templates(rendered):
    for o in rendered.values():
        if o["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "Job"):
            yield o, o["spec"]["template"]


def exporters(rendered):
    """Each exporter: its pod's spec and its container."""
    for _, template in templates(rendered):
        spec = template["spec"]
        for container in spec.get("initContainers", []) + spec["containers"]:
            if container["name"] == NAME:
                yield spec, container


def write_generated():
    groups = RULES.read_text().splitlines()
    start = groups.index("groups:")
    body = "".join(f"  {line}\n" if line else "\n" for line in groups[start:])
    PROMETHEUS_RULE.write_text(PROMETHEUS_RULE_HEAD + body)
    if not builder():
        sys.exit("the goldens need kubectl or kustomize")
    for name, directory in RENDERED.items():
        built = build(SOURCES / directory)
        if built.returncode:
            sys.exit(f"{directory}: {built.stderr}")
        (GOLDEN / f"{name}.yaml").write_text(GENERATED + built.stdout)


def check_builds():
    """Builds each kustomization, and holds it to its golden. Parsed: kustomize's layout differs by version."""
    used = set()
    for kustomization in sorted(SOURCES.rglob("kustomization.yaml")):
        directory = kustomization.parent
        content = yaml.safe_load(kustomization.read_text())
        named = content.get("resources", []) + content.get("components", [])
        named += [patch["path"] for patch in content.get("patches", []) if "path" in patch]
        named += [file for made in content.get("configMapGenerator", []) for file in made["files"]]
        used |= {(directory / entry).resolve() for entry in named} | {kustomization}
        if content["kind"] == "Kustomization":
            name = directory.name
            check(f"{name} has a golden", "" if RENDERED.get(name) == str(directory.relative_to(SOURCES)) else name)
    for name, directory in RENDERED.items():
        built = build(SOURCES / directory)
        check(f"{name} builds", built.stderr)
        if not built.returncode:
            seen, wanted = objects(built.stdout), golden(name)
            check(f"{name} has the objects of its golden", unequal(sorted(seen), sorted(wanted)))
            for key in seen.keys() & wanted.keys():
                check(f"{name}: {' '.join(key)} is as in its golden", unequal(seen[key], wanted[key]))
    components = {p.parent for p in SOURCES.glob("components/*/kustomization.yaml")}
    check("each component is in an overlay", unequal(components - used, set()))
    files = {p for p in SOURCES.rglob("*") if p.is_file()} - {SOURCES / "secret.example.yaml"}
    check("each file is in a kustomization", unequal(files - used, set()))


def check_foreign_workloads():
    """The sidecar component on workloads of other kinds, with an image from elsewhere, and on one not annotated."""
    kinds = {"StatefulSet": "apps/v1", "DaemonSet": "apps/v1", "Job": "batch/v1", "Deployment": "apps/v1"}
    workloads = []
    for kind, version in kinds.items():
        pod = {"containers": [{"name": "own", "image": "own"}], "volumes": [{"name": "own", "emptyDir": {}}]}
        metadata = {"name": kind.lower()}
        if kind != "Deployment":
            metadata["annotations"] = {f"{NAME}/sidecar": "true"}
        workloads.append({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": {"template": {"spec": pod}}})
    # Annotated, but with its pod template elsewhere.
    cron_job = {"schedule": "0 0 * * *", "jobTemplate": {"spec": {"template": {"spec": pod}}}}
    workloads.append({"apiVersion": "batch/v1", "kind": "CronJob", "spec": cron_job,
                      "metadata": {"name": "cronjob", "annotations": {f"{NAME}/sidecar": "true"}}})
    with tempfile.TemporaryDirectory(dir=HERE) as directory:
        directory = pathlib.Path(directory)
        (directory / "workloads.yaml").write_text(yaml.safe_dump_all(workloads))
        (directory / "kustomization.yaml").write_text(yaml.safe_dump({
            "resources": ["workloads.yaml"],
            "components": ["../../../deploy/kubernetes/components/sidecar"],
            "images": [{"name": NAME, "newName": "registry.example/elsewhere", "newTag": "v9"}],
        }))
        built = build(directory)
        check("the sidecar component builds on other workloads", built.stderr)
        if built.returncode:
            return
        specs = {kind: o["spec"] for (kind, _), o in objects(built.stdout).items()}
    check("a CronJob is left alone", unequal(specs.pop("CronJob"), cron_job))
    seen = {kind: spec["template"]["spec"] for kind, spec in specs.items()}
    check("a workload without the annotation is left alone", unequal(seen.pop("Deployment"), pod))
    [(_, wanted)] = exporters(golden("prometheus-sidecar"))
    wanted = wanted | {"image": "registry.example/elsewhere:v9"}
    for kind, spec in seen.items():
        check(f"a {kind} gets the sidecar", unequal(spec.get("initContainers"), [wanted]))
        check(f"a {kind} keeps its containers", unequal(spec["containers"], pod["containers"]))
        check(f"a {kind} keeps its volumes", unequal(spec["volumes"][1:], pod["volumes"]))


def check_schemas(rendered):
    for name, content in rendered.items():
        for (kind, label), o in content.items():
            if "monitoring.coreos.com" in o["apiVersion"]:
                continue
            for version in VERSIONS:
                what = f"{name}: {kind} {label} is valid in Kubernetes {version}"
                try:
                    kubernetes_validate.validate(o, version, strict=True)
                    check(what, "")
                except kubernetes_validate.ValidationError as error:
                    check(what, f"{error.message} at {list(error.path)}")


def check_settings(rendered, flags):
    """Every flag and variable in a manifest is the exporter's."""
    variables = {f"{NAME}-{flag[2:]}".upper().translate(str.maketrans("-.", "__")) for flag in flags}
    variables |= {"ZENLAYER_ACCESS_KEY_ID", "HOSTNAME"}
    seen = 0
    for name, content in rendered.items():
        for spec, container in exporters(content):
            probes = [container[p]["exec"]["command"][1:] for p in ("startupProbe", "livenessProbe", "readinessProbe")
                      if "exec" in container.get(p, {})]
            for argument in container.get("args", []) + [a for command in probes for a in command]:
                seen += 1
                check(f"{name}: {argument} is a flag", "" if argument.split("=")[0] in flags else "see --help")
            for variable in container.get("env", []):
                seen += 1
                check(f"{name}: {variable['name']} is read", "" if variable["name"] in variables else "see docs/configuration.md")
    check("flags and variables were looked at", "" if seen > 5 else str(seen))


def check_agreement(rendered):
    """Names, ports and paths mean the same everywhere."""
    version = re.search(r'^version = "(.*)"$', (ROOT / "Cargo.toml").read_text(), re.M)[1]
    secret = yaml.safe_load((SOURCES / "secret.example.yaml").read_text())
    check("the example Secret holds placeholders alone",
          unequal(secret["stringData"], {"access-key-id": "your-key-id", "access-key-password": "your-key-password"}))
    for name, content in rendered.items():
        found = list(exporters(content))
        check(f"{name} has one exporter", unequal(len(found), 1))
        for spec, container in found:
            check(f"{name}: the image is this version", unequal(container["image"], f"{NAME}:{version}"))
            hardened = spec.get("securityContext", {}) | container["securityContext"]
            check(f"{name}: hardened", unequal({k: hardened.get(k) for k in HARDENED}, HARDENED))
            check(f"{name}: no token of the cluster", unequal(spec.get("automountServiceAccountToken"), False))
            resources = container["resources"]
            check(f"{name}: resources", unequal(resources, RESOURCES.get(name, SMALL)))
            mounts = {m["name"]: m for m in container.get("volumeMounts", [])}
            volumes = {v["name"]: v["secret"] for v in spec.get("volumes", []) if "secret" in v}
            check(f"{name}: its secrets are mounted", unequal(set(mounts), set(volumes)))
            files = {f"{mounts[v]['mountPath']}/{item['path']}": (s["secretName"], item["key"])
                     for v, s in volumes.items() for item in s["items"]}
            named = [a.split("=")[1] for a in container["args"]
                     if a.startswith(("--zenlayer.access-key-password-file=", "--web.config.file="))]
            secured = any(a.startswith("--web.config.file=") for a in container["args"])
            tls = yaml.safe_load(WEB_CONFIG.read_text())["tls_server_config"]
            # Relative to the file that names them.
            named += [f"{os.path.dirname(named[-1])}/{tls[key]}" for key in ("cert_file", "key_file") if secured]
            check(f"{name}: the files that are named are mounted", unequal(named, list(files)))
            own = {key for key in files.values() if key[0] == secret["metadata"]["name"]}
            used = own | {(r["name"], r["key"]) for v in container.get("env", [])
                                          if (r := v.get("valueFrom", {}).get("secretKeyRef"))}
            keys = {(secret["metadata"]["name"], key) for key in secret["stringData"]}
            check(f"{name}: the Secret is the example's", unequal(used, set() if "--demo" in container["args"] else keys))
        labels = [template["metadata"]["labels"] for _, template in templates(content)]
        if ("Service", NAME) not in content:
            continue
        [(_, container)] = found
        ports = {p["name"]: p["containerPort"] for p in container["ports"]}
        check(f"{name}: the port", unequal(ports, {"metrics": PORT}))
        service = content["Service", NAME]["spec"]
        served = [(p["name"], p["port"], ports.get(p["targetPort"])) for p in service["ports"]]
        check(f"{name}: the Service's port", unequal(served, [("metrics", PORT, PORT)]))
        policy = content["NetworkPolicy", NAME]["spec"]
        check(f"{name}: the NetworkPolicy lets the port in",
              unequal([ports.get(p["port"]) for rule in policy["ingress"] for p in rule["ports"]], [PORT]))
        check(f"{name}: and DNS and the API out",
              unequal([p["port"] for rule in policy["egress"] for p in rule["ports"]], [53, 53, 443]))
        selectors = {"Service": service["selector"], "NetworkPolicy": policy["podSelector"]["matchLabels"]}
        if ("PodMonitor", NAME) in content:
            monitor = content["PodMonitor", NAME]["spec"]
            selectors["PodMonitor"] = monitor["selector"]["matchLabels"]
            [endpoint] = monitor["podMetricsEndpoints"]
            check(f"{name}: the PodMonitor's port", unequal(ports.get(endpoint["port"]), PORT))
            schemes = (endpoint.get("scheme"), "tlsConfig" in endpoint, "basicAuth" in endpoint)
            check(f"{name}: the PodMonitor's scheme", unequal(schemes, ("https", True, True) if secured else (None, False, False)))
            jobs = [r["replacement"] for r in endpoint["relabelings"] if r["targetLabel"] == "job"]
            check(f"{name}: the PodMonitor's job", unequal(jobs, ["zenlayer"]))
        for kind, selector in selectors.items():
            check(f"{name}: the {kind} selects the pod",
                  unequal([selector.items() <= pod.items() for pod in labels], [True]))
        scheme = {"scheme": "HTTPS"} if secured else {}
        check(f"{name}: probes need no password", unequal("--web.open-health" in container["args"], secured))
        for probe, path in {"livenessProbe": "/healthz", "readinessProbe": "/readyz"}.items():
            check(f"{name}: {probe}", unequal(container[probe]["httpGet"], {"path": path, "port": "metrics"} | scheme))
    [(_, template)] = templates(rendered["demo"])
    check("the annotations name port and path",
          unequal({k: v for k, v in template["metadata"]["annotations"].items() if k.startswith("prometheus.io/")},
                  {"prometheus.io/scrape": "true", "prometheus.io/port": str(PORT), "prometheus.io/path": "/metrics"}))


def check_sidecar(content):
    [(spec, sidecar)] = exporters(content)
    check("the sidecar is a native one", unequal(sidecar.get("restartPolicy"), "Always"))
    check("the sidecar's probes do not wait for the API",
          unequal([k for k in sidecar if k.endswith("Probe")], ["livenessProbe", "startupProbe"]))
    check("init containers of the workload are kept",
          unequal([c["name"] for c in spec["initContainers"]], [NAME, "check-config"]))
    [config] = [o["data"]["prometheus.yml"] for o in content.values() if o["kind"] == "ConfigMap"]
    listen = {v["name"]: v.get("value") for v in sidecar["env"]}["ZENLAYER_EXPORTER_WEB_LISTEN_ADDRESS"]
    jobs = {c["job_name"]: [t for s in c["static_configs"] for t in s["targets"]]
            for c in yaml.safe_load(config)["scrape_configs"]}
    check("Prometheus scrapes where the sidecar listens", unequal(jobs, {"zenlayer": [listen]}))
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
        file.write(config)
        file.flush()
        done = subprocess.run(["promtool", "check", "config", file.name], text=True, capture_output=True, check=False)
        check("promtool takes the sidecar's prometheus.yml", done.returncode and done.stdout + done.stderr)


def check_shards(content):
    """Each replica is a shard, there is no other, and each is a target."""
    check("the shards are no Deployment", unequal([o["kind"] for o, _ in templates(content)], ["StatefulSet"]))
    spec = content["StatefulSet", NAME]["spec"]
    [(_, container)] = exporters(content)
    flags = dict(argument.split("=") for argument in container["args"])
    check("there are as many replicas as shards",
          unequal((flags.get("--shard"), flags.get("--total-shards")), ("auto", str(spec["replicas"]))))
    [host] = [v.get("valueFrom") for v in container["env"] if v["name"] == "HOSTNAME"]
    check("a shard's number is its pod's", unequal(host, {"fieldRef": {"fieldPath": "metadata.name"}}))
    check("the pods start side by side", unequal(spec["podManagementPolicy"], "Parallel"))
    service = content["Service", spec["serviceName"]]["spec"]
    check("the Service does not choose among the shards", unequal(service.get("clusterIP"), "None"))
    check("all shards are scraped", "" if ("PodMonitor", NAME) in content else "there is no PodMonitor")


def check_rules():
    rule = yaml.safe_load(PROMETHEUS_RULE.read_text())
    wanted = yaml.safe_load(RULES.read_text())["groups"] if RULES.exists() else f"no file {RULES.relative_to(ROOT)}"
    check("the PrometheusRule's groups are those of deploy/prometheus/rules.yaml: tests/stages/kubernetes.sh --write",
          unequal(rule["spec"]["groups"], wanted))


def check_checkov(name):
    with tempfile.TemporaryDirectory() as directory:
        shutil.copy(GOLDEN / f"{name}.yaml", directory)
        done = subprocess.run(
            [pathlib.Path(sys.executable).parent / "checkov", "--skip-download", "--framework", "kubernetes", "--quiet",
             "--compact", "--config-file", HERE / "checkov.yaml", "--directory", directory],
            text=True, capture_output=True, check=False, env=os.environ | {"LOG_LEVEL": "ERROR"})
    counted = re.search(r"Passed checks: (\d+), Failed checks: 0", done.stdout)
    # With nothing to say --quiet says nothing at all.
    check(f"{name}: checkov", done.returncode and not counted and done.stdout + done.stderr)


def check_monitoring(content, models):
    own = [o for o in content.values() if o["apiVersion"] == "monitoring.coreos.com/v1"]
    done = subprocess.run(["node", HERE / "monitoring.mjs", models], input=json.dumps(own), text=True, capture_output=True,
                          check=False)
    valid = re.findall(r"^valid: (\w+)", done.stdout, re.M)
    check("the operator's objects are valid", done.stderr or unequal(sorted(valid), ["PodMonitor", "PrometheusRule"]))


def check_demo(content, exporter):
    """The demo's arguments and the probes' paths, by the exporter itself."""
    [(_, container)] = exporters(content)
    with tempfile.TemporaryFile("w+") as log:
        demo = subprocess.Popen([exporter, *container["args"], "--web.listen-address=127.0.0.1:0"], stderr=log)
        try:
            end, listening = time.monotonic() + 20, None
            while not listening and time.monotonic() < end and demo.poll() is None:
                time.sleep(0.1)
                log.seek(0)
                listening = re.search(r"message=listening address=127\.0\.0\.1:(\d+)", log.read())
            check("the demo starts", "" if listening else "it does not listen")
            if not listening:
                return
            for path in [container["livenessProbe"]["httpGet"]["path"], container["readinessProbe"]["httpGet"]["path"],
                         "/metrics"]:
                status = None
                while status != 200 and time.monotonic() < end:
                    connection = http.client.HTTPConnection("127.0.0.1", int(listening[1]), timeout=5)
                    connection.request("GET", path)
                    status = connection.getresponse().status
                    connection.close()
                    time.sleep(0.1)
                check(f"the exporter answers {path}", unequal(status, 200))
        finally:
            demo.send_signal(signal.SIGTERM)
            demo.wait()


def main():
    if sys.argv[1:] == ["--write"]:
        write_generated()
        print("written: the PrometheusRule and the goldens")
        return
    exporter = os.environ["EXPORTER"]
    text = subprocess.run([exporter, "--help"], text=True, capture_output=True, check=True).stdout
    flags = set(re.findall(r"^\s+(?:-\w, )?(--[a-z][a-z.-]*)", text, re.M))
    if builder():
        check_builds()
        check_foreign_workloads()
    else:
        print("skipped: building the kustomizations, for there is neither kubectl nor kustomize: "
              "the rest looks at what was rendered before")
    rendered = {name: golden(name) for name in RENDERED}
    check_schemas(rendered | {"secret.example.yaml": objects((SOURCES / "secret.example.yaml").read_text())})
    check_settings(rendered, flags)
    check_agreement(rendered)
    check_sidecar(rendered["prometheus-sidecar"])
    check_shards(rendered["shards"])
    check_rules()
    check_demo(rendered["demo"], exporter)
    for name in RENDERED:
        check_checkov(name)
    if models := os.environ.get("MODELS"):
        check_monitoring(rendered["operator"], models)
        check_monitoring(rendered["web-config"], models)
    print(f"kubernetes: {passed} passed, {len(failures)} failed")
    sys.exit(bool(failures))


main()
