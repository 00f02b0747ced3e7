"""The files of deploy/docker, checked without a Docker engine: by linters, by the Compose specification's schema, by promtool,
and against the files that they name.
"""

import os
import re
import shutil
import subprocess
import tempfile
import tomllib
import unittest
from pathlib import Path
from urllib.parse import urlsplit

import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "deploy/docker"
TOOLS = Path(os.environ["PYTHON_BIN"])


def run(*args):
    done = subprocess.run([str(arg) for arg in args], capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, args))}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def compose(name="compose.yaml"):
    return yaml.safe_load((DOCKER / name).read_text())


def mounts(service):
    """Where each bind mount of a service is: path inside, path here. Named volumes are left out."""
    for volume in compose()["services"][service]["volumes"]:
        here, inside, *options = volume.split(":")
        if here.startswith("."):
            yield inside, (DOCKER / here).resolve(), options


class Dockerfile(unittest.TestCase):
    def test_hadolint_has_nothing_to_say(self):
        self.assertEqual(run(TOOLS / "hadolint", DOCKER / "Dockerfile"), "")

    def test_checkov_has_nothing_to_say(self):
        said = run(TOOLS / "checkov", "--skip-download", "--compact", "--framework", "dockerfile", "--file", DOCKER / "Dockerfile")
        self.assertRegex(said, r"Passed checks: [1-9]\d*, Failed checks: 0, Skipped checks: 0")


class Compose(unittest.TestCase):
    def test_follows_the_specification(self):
        for name in ("compose.yaml", "compose.account.yaml"):
            run(TOOLS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", DOCKER / name)

    def test_each_service_is_confined(self):
        for name, service in compose()["services"].items():
            with self.subTest(name):
                self.assertIs(service["read_only"], True)
                self.assertEqual(service["cap_drop"], ["ALL"])
                self.assertEqual(service["security_opt"], ["no-new-privileges:true"])
                self.assertRegex(service["mem_limit"], r"^\d+m$")
                self.assertGreater(service["pids_limit"], 0)
                self.assertRegex(service["image"], r":v?\d+\.\d+\.\d+$", "the version is pinned")
                for port in service["ports"]:
                    self.assertRegex(port, r"^127\.0\.0\.1:\d+:\d+$")

    def test_the_image_has_the_version_of_the_package(self):
        version = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]
        self.assertEqual(compose()["services"]["exporter"]["image"], f"zenlayer-exporter:{version}")
        self.assertIn(f"\nARG VERSION={version}\n", (DOCKER / "Dockerfile").read_text())

    def test_builds_what_the_dockerfile_says(self):
        build = compose()["services"]["exporter"]["build"]
        context = (DOCKER / build["context"]).resolve()
        self.assertEqual(context, ROOT)
        self.assertEqual(context / build["dockerfile"], DOCKER / "Dockerfile")
        arguments = set(re.findall(r"^ARG (\w+)", (DOCKER / "Dockerfile").read_text(), re.M))
        self.assertLessEqual(set(build["args"]), arguments)

    def test_mounts_what_is_there_and_nobody_writes_to_it(self):
        found = 0
        for service in ("prometheus", "grafana"):
            for inside, here, options in mounts(service):
                with self.subTest(inside):
                    found += 1
                    self.assertTrue(here.exists(), f"{here} is missing")
                    self.assertEqual(options, ["ro,z"])
        self.assertEqual(found, 4)

    def test_a_real_account_has_its_password_in_a_file(self):
        exporter = compose("compose.account.yaml")["services"]["exporter"]
        secret, = exporter["secrets"]
        self.assertEqual(exporter["command"], [f"--zenlayer.access-key-password-file=/run/secrets/{secret}"])
        self.assertEqual(list(exporter["environment"]), ["ZENLAYER_ACCESS_KEY_ID"])
        file = compose("compose.account.yaml")["secrets"][secret]["file"]
        ignored = run("git", "-c", f"safe.directory={ROOT}", "-C", ROOT, "check-ignore", DOCKER / file, DOCKER / ".env")
        self.assertEqual(len(ignored.split()), 2)

    def test_commands_are_settings_of_the_exporter(self):
        known = run(os.environ["STATIC_EXPORTER"], "--help")
        for name in ("compose.yaml", "compose.account.yaml"):
            for word in compose(name)["services"]["exporter"]["command"]:
                self.assertRegex(known, rf"(?m)^\s+{re.escape(word.split('=')[0])}\b")


class Prometheus(unittest.TestCase):
    def test_its_configuration_is_sound_with_our_rules(self):
        with tempfile.TemporaryDirectory() as directory:
            for inside, here, _ in mounts("prometheus"):
                self.assertEqual(os.path.dirname(inside), "/etc/prometheus")
                shutil.copy(here, Path(directory) / os.path.basename(inside))
            said = run("promtool", "check", "config", f"{directory}/prometheus.yml")
        self.assertRegex(said, r"SUCCESS: [1-9]\d* rules found")

    def test_it_scrapes_the_exporter_under_the_name_that_rules_and_dashboards_expect(self):
        jobs = {job["job_name"]: job for job in yaml.safe_load((DOCKER / "prometheus.yml").read_text())["scrape_configs"]}
        target, = jobs["zenlayer"]["static_configs"][0]["targets"]
        name, port = target.split(":")
        self.assertEqual([published.split(":")[2] for published in compose()["services"][name]["ports"]], [port])


class Grafana(unittest.TestCase):
    def setUp(self):
        self.service = compose()["services"]["grafana"]
        self.mounted = {inside: here for inside, here, _ in mounts("grafana")}

    def provisioned(self, kind):
        directory = self.mounted["/etc/grafana/provisioning"] / kind
        files = [yaml.safe_load(path.read_text()) for path in sorted(directory.glob("*.yaml"))]
        self.assertTrue(files, f"{directory} has no file")
        return files

    def test_its_datasource_is_the_prometheus_beside_it(self):
        for file in self.provisioned("datasources"):
            for source in file["datasources"]:
                url = urlsplit(self.with_environment(source["url"]))
                self.assertIn(url.hostname, compose()["services"])
                published, = compose()["services"][url.hostname]["ports"]
                self.assertEqual(str(url.port), published.split(":")[2])

    def test_its_dashboards_are_where_it_looks_for_them(self):
        for file in self.provisioned("dashboards"):
            for provider in file["providers"]:
                self.assertIn(self.with_environment(provider["options"]["path"]), self.mounted)

    def test_its_first_page_is_a_dashboard_of_ours(self):
        home = Path(self.service["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
        self.assertTrue((self.mounted[str(home.parent)] / home.name).is_file(), f"{home} is missing")

    def with_environment(self, text):
        return re.sub(r"\$\{?(\w+)\}?", lambda name: self.service["environment"][name[1]], text)

    def test_who_is_not_logged_in_only_looks(self):
        environment = self.service["environment"]
        self.assertEqual(environment["GF_AUTH_ANONYMOUS_ORG_ROLE"], "Viewer")
        self.assertEqual(environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"], "true")


if __name__ == "__main__":
    unittest.main()
