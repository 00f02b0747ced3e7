"""Runs the base as rendered with podman play kube, against the simulated API, and looks at what is in force.

In a network and mount namespace of its own (tests/stages/pod.sh): its bridge, rules and leases end with it.
"""

import base64
import http.client
import json
import os
import pathlib
import re
import shutil
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
NAME = "zenlayer-exporter"
# Of the simulated API; its account is fixed.
KEY_ID, PASSWORD = "SIMULATEDKEYID", "simulated-password"
INSTANCES = 500
NETWORK, SUBNET, GATEWAY = "zenlayer", "10.89.77.0/24", "10.89.77.1"
HOST_PORT = 10981
CONTAINERS_CONF = """
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_config_dir = "{directory}/networks"
[containers]
log_driver = "k8s-file"
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
"""
CONTAINERFILE = f"""FROM scratch
COPY {NAME} /{NAME}
USER 65532:65532
ENTRYPOINT ["/{NAME}"]
"""


# Not the image under test: what does not run here must not hide an image that runs nowhere.
STAND_IN = "FROM scratch\nCOPY busybox /busybox\n"


class Unable(Exception):
    """Containers do not run on this machine, whatever is in them."""


def forward(port):
    """The simulated API listens on loopback alone: lets the pod in. Ends with the process."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            with socket.create_connection(("127.0.0.1", port)) as upstream:
                back = threading.Thread(target=copy, args=(upstream, self.request), daemon=True)
                back.start()
                copy(self.request, upstream)
                back.join()

    def copy(source, sink):
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    server = Server(("0.0.0.0", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1]


def rendered():
    """The base, and the example Secret with the simulator's key in it, as the API server would store it."""
    text = os.environ["RENDERED_BASE"]
    objects = {o["kind"]: o for o in yaml.safe_load_all(pathlib.Path(text).read_text())}
    secret = yaml.safe_load((ROOT / "deploy/kubernetes/secret.example.yaml").read_text())
    keys = secret.pop("stringData")
    assert set(keys) == {"access-key-id", "access-key-password"}, keys
    values = {"access-key-id": KEY_ID, "access-key-password": PASSWORD}
    secret["data"] = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
    return secret, objects["Deployment"]


def for_podman(deployment, endpoint):
    """What podman 4.3 and the simulated API need changed, and nothing else."""
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    # Images without a host name are looked for on the network.
    container["image"] = "localhost/" + container["image"]
    # There is no Service to reach it by.
    container["ports"][0].update(hostPort=HOST_PORT, hostIP="127.0.0.1")
    # Podman makes it a `curl` in a shell inside the container, which has neither. The test asks the paths itself.
    del container["livenessProbe"], container["readinessProbe"]
    # Podman keeps a Secret in one format, and reads variables from another: they get a secret of their own.
    for variable in container["env"]:
        variable["valueFrom"]["secretKeyRef"]["name"] += "-variables"
    container["env"] += [
        {"name": "ZENLAYER_ENDPOINT", "value": endpoint},
        {"name": "ZENLAYER_EXPORTER_ZENLAYER_ALLOW_PLAIN_HTTP", "value": "true"},
        {"name": "ZENLAYER_EXPORTER_POLL_INTERVAL", "value": "1s"},
    ]
    return deployment


def ask(path, port=HOST_PORT):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except OSError as error:
        return 0, str(error)
    finally:
        connection.close()


def until(what, condition, seconds=20):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s: {what}")


class Pod:
    def __init__(self, directory):
        self.directory = directory
        self.options = ["--root", f"{directory}/root", "--runroot", f"{directory}/run", "--storage-driver", "vfs"]
        self.environment = os.environ | {"CONTAINERS_CONF": f"{directory}/containers.conf"}
        (directory / "containers.conf").write_text(CONTAINERS_CONF.format(directory=directory))
        (directory / "networks").mkdir()
        # Podman takes a directory or file of the image's name beside it for what to build the image from.
        (directory / "empty").mkdir()
        self.container = None

    def tool(self, *command, stdin=None, check=True):
        command = [command[0], *self.options, *command[1:]]
        done = subprocess.run(command, input=stdin, text=True, capture_output=True, check=False,
                              env=self.environment, cwd=self.directory / "empty", timeout=120)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}: {done.stderr}")
        return done

    def build(self, name, binary, containerfile, tag, *command):
        """An image of one binary, and a first run of it."""
        context = self.directory / name
        context.mkdir()
        shutil.copy(binary, context / name)
        (context / "Dockerfile").write_text(containerfile)
        self.tool("buildah", "bud", "--isolation", "chroot", "--quiet", "-t", f"localhost/{tag}", str(context))
        self.tool("podman", "run", "--rm", "--network", "none", f"localhost/{tag}", *command)

    def try_out(self):
        try:
            self.build("busybox", shutil.which("busybox"), STAND_IN, "stand-in", "/busybox", "true")
        except AssertionError as error:
            raise Unable(error) from None

    def play(self, secret, deployment):
        self.tool("podman", "network", "create", "--subnet", SUBNET, "--gateway", GATEWAY, NETWORK)
        self.tool("podman", "secret", "create", f"{NAME}-variables", "-", stdin=json.dumps(secret["data"]))
        manifest = self.directory / "manifest.yaml"
        manifest.write_text(yaml.safe_dump_all([secret, deployment]))
        self.tool("podman", "play", "kube", "--network", NETWORK, str(manifest))
        names = self.tool("podman", "ps", "--format", "{{.Names}}").stdout.split()
        [self.container] = [name for name in names if name.endswith(f"-{NAME}")]

    def inspect(self):
        [facts] = json.loads(self.tool("podman", "inspect", self.container).stdout)
        return facts

    def password_file(self, mount_path):
        [mount] = [m for m in self.inspect()["Mounts"] if m["Destination"] == mount_path]
        assert not mount["RW"], mount
        return pathlib.Path(mount["Source"]) / "access-key-password"

    def end(self):
        self.tool("podman", "pod", "rm", "--all", "--force", "--time", "5", check=False)


def memory_limit(pid):
    """As the kernel has it, in bytes; None where the control group is out of sight."""
    for line in pathlib.Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            file = pathlib.Path("/sys/fs/cgroup/memory" + path) / "memory.limit_in_bytes"
        elif controllers == "":
            file = pathlib.Path("/sys/fs/cgroup" + path) / "memory.max"
        else:
            continue
        if file.exists():
            return int(file.read_text())
    return None


def prove(pod, secret, deployment, endpoint):
    spec = deployment["spec"]["template"]["spec"]
    # A copy of what the manifest says, before podman's changes.
    wanted = json.loads(json.dumps(spec["containers"][0]))
    request, memory = (int(re.fullmatch(r"(\d+)Mi", wanted["resources"][of]["memory"])[1]) << 20
                       for of in ("requests", "limits"))
    mount = wanted["volumeMounts"][0]["mountPath"]
    user, group = spec["securityContext"]["runAsUser"], spec["securityContext"]["runAsGroup"]
    pod.try_out()
    pod.build(NAME, os.environ["STATIC_EXPORTER"], CONTAINERFILE, wanted["image"], "--version")
    pod.play(secret, for_podman(deployment, endpoint))
    passed = []

    def proved(what, holds, seen=""):
        assert holds, f"{what}: {seen}"
        passed.append(what)
        print(f"ok: {what}" + (f" ({seen})" if seen else ""))

    liveness, readiness = wanted["livenessProbe"]["httpGet"], wanted["readinessProbe"]["httpGet"]
    ports = {port["name"]: port["containerPort"] for port in wanted["ports"]}
    proved("the probes ask the port that is published", ports[liveness["port"]] == ports[readiness["port"]] == 10980)
    until("liveness answers", lambda: ask(liveness["path"])[0] == 200)
    proved("the liveness probe answers 200", True)

    password = pod.password_file(mount)
    if password.read_text() != PASSWORD:
        # Podman 4.3 mounts the values as they stand in `data:`, not decoded: the wrong password, for the exporter.
        assert base64.b64decode(password.read_text()).decode() == PASSWORD, "podman mounts something else"
        until("readiness says no", lambda: ask(readiness["path"])[0] == 503)
        proved("with a refused key the readiness probe answers 503, liveness 200", ask(liveness["path"])[0] == 200)
        password.write_text(PASSWORD)
    until("readiness answers 200", lambda: ask(readiness["path"])[0] == 200)
    proved("with the right key the readiness probe answers 200", True)

    def metrics():
        return ask("/metrics")[1]

    served = len(re.findall(r"^zenlayer_instance_status\{", metrics(), re.M))
    proved("every simulated instance is served", served == INSTANCES, f"{served} of {INSTANCES}")
    password.write_text("wrong")
    until("zenlayer_up 0", lambda: "\nzenlayer_up 0\n" in metrics())
    password.write_text(PASSWORD)
    until("zenlayer_up 1", lambda: "\nzenlayer_up 1\n" in metrics())
    facts = pod.inspect()
    proved("a changed password is read without a restart", facts["RestartCount"] == 0)

    host, pid = facts["HostConfig"], facts["State"]["Pid"]
    process = pathlib.Path(f"/proc/{pid}")
    status = dict(re.findall(r"^(\w+):\s*(.*)$", (process / "status").read_text(), re.M))
    proved("podman's memory limit is the manifest's", host["Memory"] == memory, f"{host['Memory']} bytes")
    limit = memory_limit(pid)
    if limit is None:
        print("skipped: the kernel's memory limit, which cannot be seen here")
    else:
        proved("so is the kernel's", limit == memory, f"{limit} bytes")
    peak = int(status["VmHWM"].split()[0])
    proved("the peak stays below the request", peak << 10 <= request, f"{peak} kB")
    proved("user and group", status["Uid"].split()[0] == str(user) and status["Gid"].split()[0] == str(group),
           f"{user}:{group}")
    proved("no capability is left", {status[f"Cap{s}"] for s in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16})
    proved("no privilege can be gained", status["NoNewPrivs"] == "1")
    proved("a seccomp filter is in force", status["Seccomp"] == "2")
    mounts = [line.split() for line in (process / "mountinfo").read_text().splitlines()]
    flags = {m[4]: m[5].split(",") for m in mounts}
    proved("the root file system is read-only", host["ReadonlyRootfs"] and "ro" in flags["/"])
    proved("so is the key", "ro" in flags[mount])
    healthy = pod.tool("podman", "exec", pod.container, f"/{NAME}", "--healthcheck", check=False)
    proved("the sidecar's probe command works in the image", healthy.returncode == 0, healthy.stderr.strip())

    pod.tool("podman", "stop", "--time", "10", pod.container)
    code = pod.inspect()["State"]["ExitCode"]
    proved("SIGTERM ends it with exit code 0", code == 0)
    return passed


def main():
    with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)
        log = directory / "demo.log"
        with log.open("w") as stderr:
            demo = subprocess.Popen([os.environ["EXPORTER"], f"--demo={INSTANCES}", "--web.listen-address=127.0.0.1:0"],
                                    stderr=stderr)
        pod = Pod(directory)
        try:
            until("the simulated API's address", lambda: re.search(r"api=http://127\.0\.0\.1:(\d+)", log.read_text()))
            port = int(re.search(r"api=http://127\.0\.0\.1:(\d+)", log.read_text())[1])
            endpoint = f"http://{GATEWAY}:{forward(port)}"
            passed = prove(pod, *rendered(), endpoint)
            print(f"pod: {len(passed)} passed, 0 failed")
        except Unable as reason:
            print(f"pod: 0 passed, 0 failed, skipped: no container runs on this machine: {reason}")
        except AssertionError as error:
            if pod.container:
                print(pod.tool("podman", "logs", "--tail", "20", pod.container, check=False).stderr, file=sys.stderr)
            sys.exit(f"pod: {error}")
        finally:
            pod.end()
            demo.terminate()
            demo.wait()


main()
