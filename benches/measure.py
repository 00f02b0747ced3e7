"""Measures the exporter against its goals, everything in turns within one run, and prints the result as Markdown.

Run by tests/bench.sh, from the root of the repository, once everything is built. Progress goes to standard error.
"""

import contextlib
import gzip
import http.client
import os
import pathlib
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

BINARY = pathlib.Path("target/release/zenlayer-exporter")
EXAMPLES = pathlib.Path("target/release/examples")
# What the simulated API accepts.
CREDENTIALS = {"ZENLAYER_ACCESS_KEY_ID": "SIMULATEDKEYID", "ZENLAYER_ACCESS_KEY_SECRET": "simulated-password"}
SIZES = [1_000, 10_000, 100_000, 1_000_000]
# The series that only --collector.instance-info has.
NAMES = (b"zenlayer_instance_info", b"zenlayer_instance_expiry")
ROUNDS = 7
SECONDS = 2
PATIENCE = 120


def progress(text):
    print(text, file=sys.stderr, flush=True)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def running(command, **options):
    process = subprocess.Popen([str(word) for word in command], **options)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)


@contextlib.contextmanager
def example(name, *arguments):
    """Runs one of the programs in `benches/`; yields what it prints first, where it listens."""
    command = [EXAMPLES / name, *arguments]
    with running(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process.stdout.readline().strip()


class Exporter:
    """The exporter in a process of its own."""

    def __init__(self, process, address, log):
        self.process = process
        self.address = address
        self.log = log

    def get(self, path="/metrics", **headers):
        connection = http.client.HTTPConnection(self.address, timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.request("GET", path, headers=headers)
            return connection.getresponse().read()

    def zipped(self):
        return self.get(**{"Accept-Encoding": "gzip"})

    def value(self, series):
        return float(re.search(rf"^{re.escape(series)} (\S+)$", self.get().decode(), re.M).group(1))

    def polls(self):
        """Successful polls so far, by the log: a scrape would cost more than a poll."""
        return self.log.read_text().count("poll succeeded")

    def await_polls(self, more):
        enough = self.polls() + more
        while self.polls() < enough:
            time.sleep(0.1)

    def cpu_seconds(self):
        """CPU time of every thread, to the nanosecond."""
        tasks = pathlib.Path(f"/proc/{self.process.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9

    def peak_megabytes(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) / 1024


def until_up(exporter):
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if b"\nzenlayer_up 1\n" in exporter.get():
                return
        time.sleep(0.002)
    raise TimeoutError("no poll succeeded")


@contextlib.contextmanager
def exporter(*flags):
    address = f"127.0.0.1:{free_port()}"
    # A poll that changes nothing is in the log at that level only.
    command = [BINARY, f"--web.listen-address={address}", "--log.level=debug", *flags]
    with tempfile.NamedTemporaryFile() as log:
        with running(command, stderr=log, env={**os.environ, **CREDENTIALS}) as process:
            started = Exporter(process, address, pathlib.Path(log.name))
            until_up(started)
            yield started


@contextlib.contextmanager
def polling(instances, *flags, latency="0s", tick="0s"):
    with example("simulated_api", instances, latency, tick) as endpoint:
        with exporter(f"--zenlayer.endpoint={endpoint}", *flags) as started:
            yield started


@contextlib.contextmanager
def nginx(folder):
    """nginx with the files of a folder, `metrics` and `metrics.gz`."""
    port = free_port()
    configuration = f"""
        daemon off; worker_processes auto; pid {folder}/pid; error_log stderr crit;
        events {{ worker_connections 512; }}
        http {{
            access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000000; default_type text/plain;
            client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
            uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
            server {{ listen 127.0.0.1:{port}; root {folder}; gzip_static on; }}
        }}"""
    file = folder / "nginx.conf"
    file.write_text(configuration)
    with running(["/usr/sbin/nginx", "-p", folder, "-c", file]):
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.01)
        yield f"127.0.0.1:{port}"


def load(address, zipped):
    """Scrapes a second, with eight scrapers that never rest."""
    headers = ["-H", "Accept-Encoding: gzip"] if zipped else []
    command = ["wrk", "-t1", "-c8", f"-d{SECONDS}s", *headers, f"http://{address}/metrics"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in output or "Socket errors" in output:
        raise RuntimeError(output)
    return float(re.search(r"Requests/sec:\s+(\S+)", output).group(1))


def throughput(instances=10_000):
    """Scrapes a second of each server, plain and gzipped, and each one's ratio to the others, round by round."""
    with contextlib.ExitStack() as stack:
        subject = stack.enter_context(polling(instances))
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)
        plain, zipped = subject.get(), subject.zipped()
        (folder / "metrics").write_bytes(plain)
        (folder / "metrics.gz").write_bytes(zipped)
        if not gzip.decompress(zipped).startswith(plain[:1000]):
            raise RuntimeError("gzip holds something else")
        servers = {
            "exporter": subject.address,
            "hyper baseline": stack.enter_context(example("two_bodies", folder / "metrics", folder / "metrics.gz")),
            "nginx": stack.enter_context(nginx(folder)),
            "GaugeVec baseline": stack.enter_context(example("plain_way", instances)),
        }
        results = {False: [], True: []}
        for number in range(ROUNDS):
            progress(f"throughput, round {number + 1} of {ROUNDS}")
            for zipped, rounds in results.items():
                rounds.append({name: load(address, zipped) for name, address in servers.items()})
        return results


def rate(rounds, name):
    return statistics.median(results[name] for results in rounds)


def ratio(rounds, name, other):
    return statistics.median(results[name] / results[other] for results in rounds)


def scrape_milliseconds(subject, zipped=False, times=7):
    command = ["curl", "-sS", "-o", "/dev/null", "-w", "%{time_total}", f"http://{subject.address}/metrics"]
    command += ["-H", "Accept-Encoding: gzip"] if zipped else []
    runs = [subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(times)]
    return statistics.median(float(run) for run in runs) * 1000


def growth():
    """What a size costs: a poll that finds nothing changed, one scrape, and memory while instances change."""
    rows = {}
    for instances in SIZES:
        progress(f"growth, {instances} instances")
        with polling(instances, "--poll.interval=1s") as subject:
            subject.zipped()
            subject.await_polls(1)
            cpu, polls = subject.cpu_seconds(), subject.polls()
            time.sleep(max(5, instances / 50_000))
            subject.await_polls(1)
            polls, cpu = subject.polls() - polls, subject.cpu_seconds() - cpu
            row = {"cpu": cpu / polls / instances * 1e6}
            row["plain"], row["zipped"] = scrape_milliseconds(subject), scrape_milliseconds(subject, zipped=True)
        rows[instances] = row
    for instances in [500, *SIZES]:
        progress(f"memory, {instances} instances")
        with polling(instances, "--poll.interval=1s", tick="1s") as subject:
            for _ in range(5):
                subject.get()
                subject.zipped()
                subject.await_polls(1)
            rows.setdefault(instances, {})["memory"] = subject.peak_megabytes()
    return rows


def names_of_bound(instances=100_000):
    """Peak memory with names, as a part of twice the memory without them plus their text."""
    peaks, text = [], 0
    for flags in [[], ["--collector.instance-info", "--collector.instance-info.interval=10s"]]:
        progress(f"memory, {instances} instances {'with' if flags else 'without'} names")
        with polling(instances, "--poll.interval=5s", *flags, tick="1s") as subject:
            while flags and b"zenlayer_instance_info{" not in subject.get():
                time.sleep(0.1)
            for _ in range(5):
                subject.await_polls(1)
                subject.zipped()
                subject.get()
            peaks.append(subject.peak_megabytes())
            lines = subject.get().splitlines(keepends=True)
            text = sum(len(line) for line in lines if line.startswith(NAMES))
    return peaks[1] / (2 * peaks[0] + text / 2**20)


def poll_seconds(concurrency):
    flags = ["--zenlayer.page-size=100", f"--zenlayer.concurrency={concurrency}"]
    with polling(10_000, *flags, latency="50ms") as subject:
        return subject.value("zenlayer_exporter_poll_duration_seconds_sum")


def start_milliseconds():
    started = time.monotonic()
    with exporter("--demo"):
        return (time.monotonic() - started) * 1000


def unchanged_poll_microseconds():
    """From the benchmark of that name: microseconds an instance at 100,000."""
    command = ["cargo", "bench", "--locked", "--bench", "pipeline", "--", "unchanged_poll"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    progress(output)
    row = next(line for line in output.splitlines() if re.search(r"[├╰]─ 100000 ", line))
    # fastest │ slowest │ median │ mean
    number, unit = row.split("│")[2].split()
    return float(number) * {"µs": 1, "ms": 1_000, "s": 1_000_000}[unit] / 100_000


def table(rows):
    width = len(rows[0])
    lines = [rows[0], ["---"] * width, *rows[1:]]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def main():
    beyond_json = unchanged_poll_microseconds()
    scrapes = throughput()
    plain, zipped = scrapes[False], scrapes[True]
    sizes = growth()
    names = names_of_bound()
    sequential, concurrent = poll_seconds(1), poll_seconds(8)
    start = statistics.median(start_milliseconds() for _ in range(5))
    size = BINARY.stat().st_size / 1e6

    def against(rounds, other):
        return f"{ratio(rounds, 'exporter', other):.2f}"

    def times(rounds, other):
        return f"{ratio(rounds, 'exporter', other):.0f} ×"

    print(table([
        ["measurement", "goal", "measured"],
        ["plain scrapes per second at 10,000 instances, relative to the hyper baseline", "≥ 0.9", against(plain, "hyper baseline")],
        ["the same, relative to the GaugeVec baseline", "≥ 20 ×", times(plain, "GaugeVec baseline")],
        ["gzip scrapes per second at 10,000 instances, relative to the hyper baseline", "≥ 0.7", against(zipped, "hyper baseline")],
        ["the same, relative to the GaugeVec baseline", "≥ 100 ×", times(zipped, "GaugeVec baseline")],
        ["one plain scrape at 1,000,000 instances", "≤ 60 ms", f"{sizes[1_000_000]['plain']:.0f} ms"],
        ["peak memory, 500 instances", "≤ 12 MB", f"{sizes[500]['memory']:.1f} MB"],
        ["peak memory, 100,000 instances", "≤ 45 MB", f"{sizes[100_000]['memory']:.0f} MB"],
        ["peak memory, 1,000,000 instances", "≤ 350 MB", f"{sizes[1_000_000]['memory']:.0f} MB"],
        ["peak memory with metadata, 100,000 instances, relative to twice the memory without it plus its text", "≤ 1", f"{names:.2f}"],
        ["CPU of an unchanged poll without HTTP, TLS and JSON, per instance", "≤ 1 µs", f"{beyond_json:.2f} µs"],
        ["poll of 100 pages at 50 ms each with concurrency 8, relative to concurrency 1", "≤ 1/6", f"1/{sequential / concurrent:.1f}"],
        ["release binary", "≤ 8 MB", f"{size:.1f} MB"],
        ["start to first scrape with `zenlayer_up 1` in demo mode", "≤ 300 ms", f"{start:.0f} ms"],
    ]))
    print()
    print(table([
        ["scrapes per second at 10,000 instances", "plain", "gzip"],
        *([name, f"{rate(plain, name):,.0f}", f"{rate(zipped, name):,.0f}"] for name in plain[0]),
    ]))
    print()
    print(table([
        ["instances", "CPU of an unchanged poll, per instance", "plain scrape", "gzip scrape", "peak memory"],
        *(
            [f"{n:,}", f"{row['cpu']:.2f} µs", f"{row['plain']:.1f} ms", f"{row['zipped']:.1f} ms", f"{row['memory']:.0f} MB"]
            for n, row in sizes.items() if "cpu" in row
        ),
    ]))


if __name__ == "__main__":
    main()
