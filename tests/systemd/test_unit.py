"""The unit of deploy/systemd: what systemd-analyze says of it, and its command run as systemd would run it, for units cannot be
started where systemd is not the first process.
"""

import base64
import os
import re
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "deploy/systemd/zenlayer-exporter.service"
EXAMPLE = ROOT / "deploy/systemd/zenlayer-exporter.env.example"
DROP_IN = ROOT / "deploy/systemd/web-config.conf"
WEB_CONFIG = ROOT / "deploy/prometheus/web-config.example.yaml"
EXPORTER = Path(os.environ["EXPORTER"]).resolve()
INSTALLED = "/usr/local/bin/zenlayer-exporter"
# Of 100, and what it comes from: the network, which is the exporter's work; systemd's own socket; /proc/stat; the clock device,
# which ProtectClock= itself opens for reading; and no root directory of its own.
EXPOSURE = 11
OPEN = {
    "PrivateNetwork=", "IPAddressDeny=", "RestrictAddressFamilies=~AF_(INET|INET6)", "RestrictAddressFamilies=~AF_UNIX",
    "ProcSubset=", "DeviceAllow=", "RootDirectory=/RootImage=",
}
VENDOR = {"ZENLAYER_ENDPOINT", "ZENLAYER_ACCESS_KEY_ID", "ZENLAYERCLOUD_ACCESS_KEY_ID", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"}
SECRETS = {"ZENLAYER_ACCESS_KEY_SECRET", "ZENLAYERCLOUD_ACCESS_KEY_PASSWORD", "ZENLAYER_TOKEN"}


def settings(name):
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.M)


def drop_in(name):
    return re.findall(rf"^{name}=(.*)$", DROP_IN.read_text(), re.M)


def flags():
    said = subprocess.run([EXPORTER, "--help"], check=True, capture_output=True, text=True).stdout
    return set(re.findall(r"^\s+(?:-\w, )?(--[a-z][a-z.-]*)", said, re.M))


def example(line=r"#?"):
    """The variables of the example; with the pattern of the commented ones too, as they would be set."""
    return dict(re.findall(rf"^{line}([A-Z_]+)=(.*)$", EXAMPLE.read_text(), re.M))


def calls(words):
    """The system calls of a filter's words, sets and sets within sets resolved."""
    found = set()
    for word in words:
        if word.startswith("@"):
            listed = subprocess.run(["systemd-analyze", "syscall-filter", word], check=True, capture_output=True, text=True).stdout
            found |= calls(re.findall(r"^ +([@\w-]+)$", listed, re.M))
        else:
            found.add(word)
    return found


class Analysis(unittest.TestCase):
    def test_systemd_understands_all_of_it(self):
        with tempfile.TemporaryDirectory() as directory:
            copy = Path(directory) / UNIT.name
            copy.write_text(UNIT.read_text().replace(INSTALLED, str(EXPORTER)))
            beside = Path(directory) / f"{UNIT.name}.d"
            beside.mkdir()
            (beside / DROP_IN.name).write_text(DROP_IN.read_text())
            done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True)
        # It exits with 0 on a key that it does not know.
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "", ""))

    def test_it_is_exposed_no_more_than_it_must_be(self):
        done = subprocess.run(
            ["systemd-analyze", "security", "--no-pager", "--offline=true", f"--threshold={EXPOSURE}", UNIT],
            capture_output=True, text=True,
        )
        print(done.stdout.splitlines()[-1])
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertLessEqual(set(re.findall(r"^✗ (\S+)", done.stdout, re.M)), OPEN)

    def test_only_a_wrong_setting_is_not_tried_again(self):
        """And the exit code is the one that the unit names."""
        self.assertEqual((settings("Restart"), settings("RestartPreventExitStatus")), (["always"], ["64"]))
        done = subprocess.run([EXPORTER, "--poll.interval=never", "--demo"], capture_output=True)
        self.assertEqual(done.returncode, 64)


class Settings(unittest.TestCase):
    def test_every_flag_is_one_of_the_exporter(self):
        command, = settings("ExecStart")
        program, *arguments = shlex.split(command)
        self.assertEqual(program, INSTALLED)
        self.assertTrue(arguments)
        named = {argument.split("=")[0] for argument in arguments} | set(re.findall(r"--[a-z][a-z.-]+\b", EXAMPLE.read_text()))
        self.assertLessEqual(named - {"--help"}, flags())

    def test_every_variable_is_one_of_the_exporter_and_none_is_a_secret(self):
        derived = {"ZENLAYER_EXPORTER_" + re.sub(r"[.-]", "_", flag[2:]).upper() for flag in flags()}
        self.assertIn("ZENLAYER_EXPORTER_POLL_INTERVAL", derived)
        self.assertLessEqual(set(example()), derived | VENDOR)
        self.assertLessEqual({setting.split("=")[0] for setting in drop_in("Environment")}, derived)
        self.assertEqual(SECRETS & set(example()), set())

    def test_every_value_of_the_example_is_a_good_one(self):
        with tempfile.TemporaryDirectory() as directory:
            password = Path(directory) / "password"
            password.write_text("secret\n")
            # Nothing listens on the proxy's address here: the one request fails, which comes after the settings.
            done = subprocess.run(
                [EXPORTER, "--config.check", f"--zenlayer.access-key-password-file={password}"], capture_output=True, text=True,
                env=example() | {"HTTPS_PROXY": "http://127.0.0.1:1"}, timeout=60,
            )
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertNotIn("invalid settings", done.stderr)

    def test_files_are_where_the_unit_looks_for_them(self):
        name, path = settings("LoadCredential")[0].split(":")
        self.assertIn(f"=%d/{name}", settings("ExecStart")[0])
        for file in (path, settings("EnvironmentFile")[0].removeprefix("-")):
            self.assertRegex(UNIT.read_text(), rf"(?m)^#   .*sudo install -m 600 .* {re.escape(file)}$")


class Command(unittest.TestCase):
    """ExecStart under the unit's system call rules, with the sockets and variables that systemd would hand to it."""

    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        credentials = Path(directory.name) / "credentials"
        credentials.mkdir()
        (credentials / "access-key-password").write_text("secret\n")
        self.systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.systemd.close)
        self.systemd.bind(f"{directory.name}/notify")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.environment = example(line="") | {
            "NOTIFY_SOCKET": f"{directory.name}/notify",
            "WATCHDOG_USEC": "2000000",
            "CREDENTIALS_DIRECTORY": str(credentials),
            "ZENLAYER_EXPORTER_WEB_LISTEN_ADDRESS": self.address,
            # A name, so that it is looked up under the rules, where nothing listens.
            "ZENLAYER_ENDPOINT": "https://localhost:1",
        }
        self.command = [
            word.replace("%d", str(credentials)).replace(INSTALLED, str(EXPORTER))
            for word in shlex.split(settings("ExecStart")[0])
        ]

    def confined(self, command=None):
        allowed, *denied = settings("SystemCallFilter")
        names = calls(allowed.split())
        for words in denied:
            self.assertTrue(words.startswith("~"))
            names -= calls(words[1:].split())
        self.assertIn("epoll_wait", names)
        families, = settings("RestrictAddressFamilies")
        rules = [",".join(families.split()), ",".join(sorted(names))]
        process = subprocess.Popen(
            [sys.executable, "-B", ROOT / "tests/systemd/confine.py", *rules, *(command or self.command)],
            env=self.environment, stderr=subprocess.PIPE, text=True,
        )
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def told(self, seconds):
        """What systemd was told within these seconds."""
        messages, deadline = [], time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.systemd.settimeout(left)
            try:
                messages += self.systemd.recv(4096).decode().split("\n")
            except TimeoutError:
                break
        return messages

    def test_it_serves_tls_with_the_drop_in(self):
        credentials = Path(self.environment["CREDENTIALS_DIRECTORY"])
        files = dict(value.split(":") for value in drop_in("LoadCredential"))
        self.assertEqual(sorted(files), ["tls.crt", "tls.key", "web-config.yaml"])
        for name, path in files.items():
            self.assertEqual(path, f"/etc/zenlayer-exporter/web/{name}")
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
             "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=CA:FALSE",
             "-keyout", credentials / "tls.key", "-out", credentials / "tls.crt"],
            check=True, capture_output=True,
        )
        # A hash at a low cost, of the password "open sesame".
        known = re.sub(r"\$2y\$.*", "$2b$04$LPDYL8RggqjEmZkZis0SRu3dIGIpou6a.pzhWjKql91NFQlAsTZ6G", WEB_CONFIG.read_text())
        (credentials / "web-config.yaml").write_text(known)
        for setting in drop_in("Environment"):
            name, value = setting.split("=", 1)
            self.environment[name] = value.replace("%d", str(credentials))
        process = self.confined()
        context = ssl.create_default_context(cafile=credentials / "tls.crt")
        login = {"Authorization": "Basic " + base64.b64encode(b"prometheus:open sesame").decode()}

        def status(headers):
            request = urllib.request.Request(f"https://{self.address}/healthz", headers=headers)
            try:
                return urllib.request.urlopen(request, context=context, timeout=5).status
            except urllib.error.HTTPError as error:
                return error.code

        deadline = time.monotonic() + 20
        while True:
            try:
                seen = status(login)
                break
            except OSError:
                self.assertLess(time.monotonic(), deadline, "it does not listen")
                time.sleep(0.1)
        self.assertEqual((seen, status({})), (200, 401))
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=10)
        self.assertEqual(process.returncode, 0, log)

    def get(self, path):
        with urllib.request.urlopen(f"http://{self.address}{path}", timeout=5) as answer:
            return answer.read().decode()

    def wait_for_its_first_poll(self):
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                if re.search(r'(?m)^zenlayer_exporter_polls_total\{outcome="\w+"\} [1-9]', metrics := self.get("/metrics")):
                    return metrics
            except OSError:
                pass
            time.sleep(0.1)
        self.fail("no poll within 20 s")

    def test_it_works_under_the_rules_of_the_unit(self):
        process = self.confined()
        metrics = self.wait_for_its_first_poll()
        # The key was read and the name found: what failed is the connection.
        self.assertIn('zenlayer_exporter_polls_total{outcome="connect"} 1\n', metrics)
        # With ProcSubset=pid, which is not in force here, it would be 0.
        self.assertRegex(metrics, r"(?m)^process_start_time_seconds [1-9]")
        self.assertEqual(settings("ProcSubset"), ["all"])
        self.assertEqual(self.get("/healthz"), "ok\n")
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=10)
        self.assertEqual(process.returncode, 0, log)
        self.assertNotIn("secret", log)

    def test_a_reload_is_logged_and_polls_at_once(self):
        reload, = settings("ExecReload")
        self.environment["ZENLAYER_EXPORTER_POLL_INTERVAL"] = "1h"
        self.environment["ZENLAYER_EXPORTER_POLL_MAX_STALENESS"] = "2h"
        process = self.confined()
        self.wait_for_its_first_poll()
        self.assertEqual(subprocess.run(shlex.split(reload.replace("$MAINPID", str(process.pid)))).returncode, 0)
        deadline = time.monotonic() + 20
        while 'zenlayer_exporter_polls_total{outcome="connect"} 2\n' not in self.get("/metrics"):
            self.assertLess(time.monotonic(), deadline, "it does not poll again")
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=10)
        self.assertEqual(process.returncode, 0, log)
        self.assertIn("signal=SIGHUP", log)

    def test_the_rules_are_in_force(self):
        """Else the test above would show nothing."""
        def end(program):
            process = self.confined([sys.executable, "-c", program])
            _, said = process.communicate(timeout=10)
            return process.returncode, said

        self.assertEqual(end("import os; os.getppid()"), (0, ""))
        self.assertEqual(end("import os; os.setpriority(os.PRIO_PROCESS, 0, 5)")[0], -signal.SIGSYS)
        self.assertEqual(end("import mmap; mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)")[0], -signal.SIGSYS)
        code, said = end("import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)")
        self.assertEqual(code, 1)
        self.assertIn("Address family not supported", said)

    def test_it_says_when_it_is_ready_alive_and_stopping(self):
        self.assertEqual(settings("Type"), ["notify"])
        self.assertTrue(settings("WatchdogSec"))
        process = self.confined()
        messages = self.told(5)
        self.assertIn("READY=1", messages)
        self.assertLess(messages.index("READY=1"), messages.index("WATCHDOG=1") if "WATCHDOG=1" in messages else 1 << 30)
        # Once every half of the watchdog's time is what systemd asks for, so four in 5 s, and one may be late.
        self.assertGreaterEqual(messages.count("WATCHDOG=1"), 3)
        self.get("/healthz")
        process.send_signal(signal.SIGTERM)
        self.assertIn("STOPPING=1", self.told(5))
        self.assertEqual(process.wait(timeout=10), 0)


if __name__ == "__main__":
    unittest.main()
