"""The image of deploy/docker, built and run for real, in a container storage of its own that is gone afterwards.

No base image can be had offline, so the builder's is a stand-in: a shell, a `rustc` that knows the target, and a `cargo` that
demands the command line and the files of a real build, then delivers the static binary that STATIC_EXPORTER names. The
Dockerfile is built as it stands.
"""

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import tomllib
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "deploy/docker/Dockerfile"
STATIC = Path(os.environ["STATIC_EXPORTER"]).resolve()
TARGET = subprocess.run(["rustc", "--print", "host-tuple"], check=True, capture_output=True, text=True).stdout.strip()
REVISION = "0123456789ab"
MEMORY_LIMIT = 128 * 1024 * 1024
MANIFEST = tomllib.loads((ROOT / "Cargo.toml").read_text())
# Cargo reads no manifest that names a file which is not there.
NAMED = [target["path"] for target in MANIFEST["example"]] + [f"benches/{bench['name']}.rs" for bench in MANIFEST["bench"]]
CARGO = f"""#!/bin/sh
set -e
for file in Cargo.toml Cargo.lock build.rs src/main.rs {" ".join(NAMED)}; do [ -f "$file" ]; done
case "$1" in
    install) exit ;;
    cyclonedx) echo "{{}}" >zenlayer-exporter.cdx.json; exit ;;
esac
[ "$*" = "build --release --locked --target {TARGET}" ]
[ "$RUSTFLAGS" = "-C target-feature=+crt-static" ]
[ "$ZENLAYER_EXPORTER_REVISION" = "{REVISION}" ]
mkdir -p target/{TARGET}/release
cp /prebuilt target/{TARGET}/release/zenlayer-exporter
"""
RUSTC = f"#!/bin/sh\n[ \"$*\" = '--print host-tuple' ] && echo {TARGET}\n"
BUILDER = """FROM scratch
COPY busybox /bin/busybox
COPY prebuilt /prebuilt
COPY --chmod=755 cargo rustc /bin/
RUN ["/bin/busybox", "--install", "-s", "/bin"]
"""
HARDENED = ["--read-only", "--cap-drop=all", "--security-opt=no-new-privileges", "--memory=128m"]


def setUpModule():
    global storage, environment
    storage = Path(tempfile.mkdtemp(prefix="zenlayer-image-"))
    unittest.addModuleCleanup(shutil.rmtree, storage)
    (storage / "storage.conf").write_text(
        f'[storage]\ndriver = "vfs"\nrunroot = "{storage}/run"\ngraphroot = "{storage}/graph"\n'
    )
    # crun and systemd's cgroups are not to be had everywhere; the default ulimits are above some machines' own.
    (storage / "containers.conf").write_text(
        '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "none"\n'
        '[containers]\ndefault_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]\n'
    )
    environment = os.environ | {
        "CONTAINERS_STORAGE_CONF": str(storage / "storage.conf"),
        "CONTAINERS_CONF": str(storage / "containers.conf"),
    }
    base = re.search(r"^FROM (\S+) AS builder$", DOCKERFILE.read_text(), re.M)[1]
    builder = storage / "builder"
    builder.mkdir()
    for name, text in {"cargo": CARGO, "rustc": RUSTC, "Dockerfile": BUILDER}.items():
        (builder / name).write_text(text)
    shutil.copy(shutil.which("busybox"), builder / "busybox")
    shutil.copy(STATIC, builder / "prebuilt")
    build("--tag", f"docker.io/library/{base}", builder)
    # Docker's format: OCI's has no healthcheck.
    build("--format=docker", "--pull-never", f"--build-arg=REVISION={REVISION}", f"--file={DOCKERFILE}",
          "--tag=zenlayer-exporter", ROOT)
    global stand_in
    stand_in = f"docker.io/library/{base}"


def command(*args, check=True, **kwargs):
    done = subprocess.run([str(arg) for arg in args], env=environment, capture_output=True, text=True, timeout=120, **kwargs)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, args))}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def build(*args):
    return command("buildah", "bud", "--isolation=chroot", *args)


def podman(*args, **kwargs):
    return command("podman", *args, **kwargs).stdout.strip()


def until(condition, what):
    deadline = time.monotonic() + 20
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within 20 s: {what}")
        time.sleep(0.1)


class Image(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.image = json.loads(podman("image", "inspect", "zenlayer-exporter"))[0]
        cls.config = cls.image["Config"]

    def test_holds_the_binary_and_its_licence_and_nothing_else(self):
        tree = storage / "tree"
        tree.mkdir()
        podman("save", "--quiet", f"--output={storage}/image.tar", "zenlayer-exporter")
        command("tar", "-xf", storage / "image.tar", "-C", tree)
        layers = json.loads((tree / "manifest.json").read_text())[0]["Layers"]
        files = []
        for layer in layers:
            files += command("tar", "-tf", tree / layer).stdout.split()
        # A builder whose directories are copied along may add no more than these.
        self.assertEqual(sorted(files), ["LICENSE", "zenlayer-exporter", "zenlayer-exporter.cdx.json"])

    def test_is_small(self):
        size = self.image["Size"]
        print(f"image: {size} bytes, of which the binary is {STATIC.stat().st_size}")
        self.assertLess(size, 10_000_000)

    def test_runs_the_binary_as_a_number(self):
        self.assertEqual(self.config["User"], "65532:65532")
        self.assertEqual(self.config["Entrypoint"], ["/zenlayer-exporter"])
        self.assertNotIn("Cmd", self.config)
        self.assertEqual(list(self.config["ExposedPorts"]), ["10980/tcp"])

    def test_asks_the_binary_for_its_health(self):
        self.assertEqual(self.image["Healthcheck"]["Test"], ["CMD", "/zenlayer-exporter", "--healthcheck"])

    def test_says_what_it_is(self):
        package = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]
        ours = {
            name.removeprefix("org.opencontainers.image."): value
            for name, value in self.config["Labels"].items()
            if name.startswith("org.opencontainers.image.")
        }
        self.assertEqual(ours, {
            "title": package["name"],
            "description": package["description"],
            "licenses": package["license"],
            "version": package["version"],
            "revision": REVISION,
        })

    def test_is_built_with_the_oldest_toolchain_that_is_supported(self):
        package = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]
        self.assertEqual(stand_in, f"docker.io/library/rust:{package['rust-version']}-bookworm")

    def test_is_built_from_nothing_but_what_the_dockerfile_copies(self):
        """A stray file, such as a key, is not even sent to the builder."""
        context = storage / "context"
        (context / "src").mkdir(parents=True)
        (context / "benches").mkdir()
        (context / "deploy/docker").mkdir(parents=True)
        wanted = ["Cargo.toml", "Cargo.lock", "build.rs", "LICENSE", "src/main.rs", "benches/pipeline.rs"]
        for name in [*wanted, ".env", "deploy/docker/access-key-password", "stray"]:
            (context / name).write_text("")
        probe = storage / "Probe"
        probe.write_text("FROM scratch\nCOPY . /\n")
        build(f"--ignorefile={DOCKERFILE}.dockerignore", f"--file={probe}", "--tag=probe", context)
        container = command("buildah", "from", "probe").stdout.strip()
        mounted = Path(command("buildah", "mount", container).stdout.strip())
        copied = sorted(str(path.relative_to(mounted)) for path in mounted.rglob("*") if path.is_file())
        command("buildah", "rm", container)
        self.assertEqual(copied, sorted(wanted))


class Container(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        # The stand-in, not the image under test: what does not run here must not hide an image that runs nowhere.
        cls.trial = command("podman", "run", "--rm", "--network=none", stand_in, "/bin/true", check=False)

    def setUp(self):
        if self.trial.returncode != 0:
            self.skipTest(f"this machine runs no containers: {self.trial.stderr.strip()}")

    def start(self, *args):
        container = podman("run", "--detach", *HARDENED, "--network=none", "zenlayer-exporter", *args)
        self.addCleanup(podman, "rm", "--force", "--time=0", container)
        pid = podman("inspect", "--format={{.State.Pid}}", container)
        return container, pid

    def ask(self, pid, path):
        """Without a network, only what is in the container's own namespace can ask."""
        done = command("nsenter", "--target", pid, "--net", "curl", "--silent", "--max-time", "5", "--write-out",
                       "\n%{http_code}", f"http://127.0.0.1:10980{path}", check=False)
        body, _, code = done.stdout.rpartition("\n")
        return code, body

    def test_serves_without_root_rights_or_network_or_a_place_to_write(self):
        container, pid = self.start("--demo")
        until(lambda: self.ask(pid, "/readyz")[0] == "200", "/readyz is 200")
        code, metrics = self.ask(pid, "/metrics")
        self.assertEqual(code, "200")
        self.assertIn("\nzenlayer_up 1\n", metrics)
        self.assertEqual(metrics.count("\nzenlayer_instance_status{"), 500)
        self.assertEqual(self.ask(pid, "/healthz"), ("200", "ok\n"))

        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        self.assertEqual(status["Uid"], "\t".join(["65532"] * 4))
        self.assertEqual(status["Gid"], "\t".join(["65532"] * 4))
        self.assertEqual({int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")}, {0})
        self.assertEqual(status["NoNewPrivs"], "1")
        root = [line.split() for line in Path(f"/proc/{pid}/mounts").read_text().splitlines() if line.split()[1] == "/"]
        self.assertIn("ro", root[0][3].split(","))
        interfaces = [line.split(":")[0].strip() for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]]
        self.assertEqual([name for name in interfaces if name == "lo"], ["lo"])
        self.assertEqual(podman("inspect", "--format={{.HostConfig.Memory}}", container), str(MEMORY_LIMIT))
        # Its file is named thus by cgroups' second version, or by the first.
        limits = [path.read_text().strip() for name in ("memory.max", "memory.limit_in_bytes")
                  for path in Path("/sys/fs/cgroup").rglob(f"*{container}*/{name}")]
        self.assertEqual(set(limits), {str(MEMORY_LIMIT)})
        resident = re.search(r"^process_resident_memory_bytes (\S+)$", metrics, re.M)[1]
        print(f"container: {resident} bytes resident of {MEMORY_LIMIT} with 500 instances")

    def test_is_healthy_by_its_own_word(self):
        container, pid = self.start("--demo")
        until(lambda: self.ask(pid, "/healthz")[0] == "200", "/healthz is 200")
        podman("exec", container, "/zenlayer-exporter", "--healthcheck")
        podman("healthcheck", "run", container)

    def test_is_unhealthy_where_nothing_answers(self):
        elsewhere = "--web.listen-address=:10981"
        container, pid = self.start("--demo", elsewhere)
        until(lambda: self.ask(pid, "/healthz")[0] == "000" and "listening" in command("podman", "logs", container).stderr,
              "it listens elsewhere")
        self.assertNotEqual(command("podman", "healthcheck", "run", container, check=False).returncode, 0)

    def test_ends_well_when_it_is_told_to(self):
        container, pid = self.start("--demo")
        until(lambda: self.ask(pid, "/healthz")[0] == "200", "/healthz is 200")
        podman("stop", "--time=10", container)
        self.assertEqual(podman("inspect", "--format={{.State.ExitCode}}", container), "0")
        self.assertIn("signal=SIGTERM", command("podman", "logs", container).stderr)

    def test_refuses_bad_settings(self):
        done = command("podman", "run", "--rm", *HARDENED, "--network=none", "zenlayer-exporter", check=False)
        self.assertEqual(done.returncode, 64)
        self.assertIn("no credentials: set one of", done.stderr)

    def test_finds_names_and_reads_a_mounted_secret(self):
        """A static glibc once needed shared libraries to look up a name."""
        password = storage / "password"
        password.write_text("secret\n")
        password.chmod(0o400)
        os.chown(password, 65532, 65532)
        names = subprocess.Popen(
            ["unshare", "--net", shutil.which("python3"), "-B", str(ROOT / "tests/container/names.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        self.addCleanup(names.kill)
        self.assertEqual(names.stdout.readline(), "ready\n")
        for host in ("api.example", "hosted.example"):
            metrics = podman(
                "run", "--rm", *HARDENED, f"--network=ns:/proc/{names.pid}/ns/net", "--dns=127.0.0.1", "--dns-search=.",
                "--add-host=hosted.example:127.0.0.1", f"--volume={password}:/run/secrets/password:ro",
                "--env=ZENLAYER_ACCESS_KEY_ID=id", "zenlayer-exporter", "--once", "--zenlayer.allow-plain-http",
                f"--zenlayer.endpoint=http://{host}:8080",
                "--zenlayer.access-key-password-file=/run/secrets/password",
            )
            self.assertIn('zenlayer_instance_status{instanceId="1",status="RUNNING"} 1', metrics)
        asked, _ = names.communicate(timeout=10)
        self.assertEqual(json.loads(asked), ["api.example"])


if __name__ == "__main__":
    unittest.main()
