//! The process among others: readers that stall or leave, and signals.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

mod common;

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, PipeReader, PipeWriter, Read, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use common::web::{basic, hash};
use common::{Metrics, PATIENCE, request};
use hyper::Method;
use tempfile::TempDir;
use zenlayer_exporter::config;
use zenlayer_exporter::logging::LogWriter;
use zenlayer_exporter::model::Service;
use zenlayer_exporter::simulator::{Fault, Knobs, Simulator, TOKEN};

const DROPPED: &str = "zenlayer_exporter_log_lines_dropped_total";
const LISTEN: &str = "--web.listen-address=127.0.0.1:0";
/// Thousands of lines per poll.
const NOISY: [&str; 3] = ["--log.level=trace", "--zenlayer.page-size=1", "--zenlayer.concurrency=16"];

/// The binary, with nothing of this machine's environment that could change what it does.
fn exporter(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zenlayer-exporter"));
    command.args(args).env_clear().stdin(Stdio::null());
    command
}

fn on_simulator(simulator: &Simulator, args: &[&str]) -> Command {
    let endpoint = format!("--zenlayer.endpoint={}", simulator.endpoint());
    let mut command = exporter(&[&[&*endpoint, LISTEN, "--poll.interval=1s"], args].concat());
    command.env("ZENLAYER_TOKEN", TOKEN);
    command
}

async fn simulator(instances: usize) -> Simulator {
    Simulator::start(Knobs::still(Service::Vm, instances)).await.unwrap()
}

/// A pipe that holds one page of memory, the least there is.
fn small_pipe() -> (PipeReader, PipeWriter) {
    let (reader, writer) = io::pipe().unwrap();
    rustix::pipe::fcntl_setpipe_size(&writer, 4096).unwrap();
    (reader, writer)
}

/// A pipe whose reader is gone.
fn closed_pipe() -> Stdio {
    io::pipe().unwrap().1.into()
}

fn full_disk() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

/// The lines of a log, which are read only when they are asked for; dropping it closes the pipe.
struct Log(Receiver<String>);

impl Log {
    fn read(pipe: impl Read + Send + 'static) -> Self {
        let (line, lines) = mpsc::sync_channel(0);
        thread::spawn(move || BufReader::new(pipe).lines().try_for_each(|read| line.send(read.unwrap())));
        Self(lines)
    }

    /// Reads up to a line that has all of these words.
    fn until(&self, words: &[&str]) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.0.recv_timeout(left).unwrap_or_else(|error| panic!("no line with {words:?}: {error}"));
            if words.iter().all(|word| line.contains(word)) {
                return line;
            }
        }
    }
}

/// A running exporter that is killed when dropped.
struct Running {
    child: Child,
    address: SocketAddr,
}

impl Running {
    /// Starts it, and reads its log up to the line that says where it listens.
    fn start(command: &mut Command) -> (Self, Log) {
        let (reader, writer) = small_pipe();
        let child = command.stderr(writer).spawn().unwrap();
        // The writing end that this process has is the command's.
        command.stderr(Stdio::null());
        let log = Log::read(reader);
        let line = log.until(&["message=listening address="]);
        let (_, address) = line.split_once("address=").unwrap();
        let address = address.split(' ').next().unwrap().parse().unwrap();
        (Self { child, address }, log)
    }

    async fn metrics(&self) -> Metrics {
        Metrics::parse(request(self.address, Method::GET, "/metrics", &[]).await.text())
    }

    /// Scrapes until the metrics are as they should be.
    async fn until(&self, is_so: impl Fn(&Metrics) -> bool) -> Metrics {
        common::until(async || self.metrics().await, is_so).await
    }

    async fn until_up_is(&self, up: f64) {
        self.until(|metrics| metrics.value("zenlayer_up", &[]) == Some(up)).await;
    }

    async fn until_lines_are_dropped(&self) -> f64 {
        let dropped = |metrics: &Metrics| metrics.value(DROPPED, &[]).unwrap();
        dropped(&self.until(|metrics| dropped(metrics) > 0.0).await)
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([format!("-{name}"), self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Asks it to stop and waits. Returns the exit code.
    fn stop(mut self) -> Option<i32> {
        self.signal("TERM");
        wait(&mut self.child).code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself, as it should.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("it does not end");
        }
        thread::sleep(Duration::from_millis(10));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn polls_and_scrapes_go_on_while_nobody_reads_standard_error() {
    let simulator = simulator(1000).await;
    let (running, _stalled) = Running::start(&mut on_simulator(&simulator, &NOISY));
    running.until_lines_are_dropped().await;
    for (fault, up) in [(None, 1.0), (Some(Fault::answer(401, r#"{"code":"NO"}"#)), 0.0), (None, 1.0)] {
        simulator.set(|knobs| knobs.fault = fault);
        running.until_up_is(up).await;
    }
    assert_eq!(request(running.address, Method::GET, "/healthz", &[]).await.status, 200);
    assert_eq!(running.stop(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_lines_are_reported_once_standard_error_is_read_again() {
    let simulator = simulator(1000).await;
    let (running, log) = Running::start(&mut on_simulator(&simulator, &NOISY));
    running.until_lines_are_dropped().await;
    // From here on it has little to say.
    simulator.with_fleet(|fleet| fleet.machines.clear());
    let report = log.until(&["level=error", "log lines were lost while standard error was blocked"]);
    let lines = report.split_once("lines=").unwrap().1.split_whitespace().next().unwrap();
    let lines: f64 = lines.parse().unwrap();
    assert!(lines > 0.0, "{report}");
    running.until(|metrics| metrics.value(DROPPED, &[]) >= Some(lines)).await;
    let rest = thread::spawn(move || log.until(&["message=stopped"]));
    assert_eq!(running.stop(), Some(0));
    rest.join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn polls_go_on_where_standard_error_cannot_be_written() {
    let simulator = simulator(5).await;
    let (running, log) = Running::start(&mut on_simulator(&simulator, &["--log.level=debug"]));
    drop(log);
    running.until_lines_are_dropped().await;
    running.until_up_is(1.0).await;
    assert_eq!(running.stop(), Some(0));

    // What it listens on cannot be read there.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let listen = format!("--web.listen-address={free}");
    let child = exporter(&["--demo", "--log.level=debug", &listen]).stderr(full_disk()).spawn().unwrap();
    let running = Running { child, address: free };
    let deadline = Instant::now() + PATIENCE;
    while tokio::net::TcpStream::connect(free).await.is_err() {
        assert!(Instant::now() < deadline, "it does not listen");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    running.until_lines_are_dropped().await;
    running.until_up_is(1.0).await;
    assert_eq!(running.stop(), Some(0));
}

#[test]
fn an_error_message_that_nobody_reads_does_not_hold_up_the_exit() {
    let (_reader, mut writer) = small_pipe();
    writer.write_all(&[b'\n'; 4096]).unwrap();
    for (args, code) in [(&["--poll.interval=never"][..], 64), (&["--no-such-flag"], 64), (&["--healthcheck"], 1)] {
        let listen = ["--demo", "--web.listen-address=127.0.0.1:1"];
        let stderr = writer.try_clone().unwrap();
        let mut child = exporter(&[&listen, args].concat()).stderr(stderr).spawn().unwrap();
        assert_eq!(wait(&mut child).code(), Some(code), "{args:?}");
    }
}

/// Runs itself as a process that panics.
#[test]
fn a_panic_is_a_line_of_the_log() {
    const IS_CHILD: &str = "PANICS";
    if std::env::var_os(IS_CHILD).is_some() {
        let log = LogWriter::start(io::stderr());
        log.subscribe(config::Log { level: tracing::Level::ERROR, json: false });
        log.flush_after(PATIENCE, || panic!("out of {}", "cheese")).unwrap_err();
        std::process::exit(0);
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_panic_is_a_line_of_the_log", "--nocapture"])
        .env(IS_CHILD, "1")
        .env_remove("RUST_BACKTRACE")
        .output()
        .unwrap();
    let log = String::from_utf8(child.stderr).unwrap();
    let line = log.lines().find(|line| line.contains("message=panicked")).unwrap_or_else(|| panic!("{log}"));
    for part in ["level=error", "error=\"out of cheese\"", "location=tests/process.rs:"] {
        assert!(line.contains(part), "{line}");
    }
    assert!(!line.contains("backtrace"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_rereads_the_web_config() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("web.yml");
    let user = |password: &str| fs::write(&file, format!("basic_auth_users: {{a: {}}}\n", hash(password, 1))).unwrap();
    user("first");
    let flag = format!("--web.config.file={}", file.display());
    let (running, log) =
        Running::start(&mut exporter(&["--demo", "--poll.interval=1h", "--poll.max-staleness=2h", LISTEN, &flag]));
    let status = async |password: &str| {
        request(running.address, Method::GET, "/healthz", &[("authorization", &basic("a", password))]).await.status
    };
    // Nothing changed, so that only the signal can be the reason.
    running.signal("HUP");
    log.until(&["signal=SIGHUP", "rereading the web config and the secrets"]);
    log.until(&["level=info", "web config reread and in use"]);
    assert_eq!(status("first").await, 200);

    user("second");
    running.signal("HUP");
    log.until(&["level=info", "web config reread and in use"]);
    assert_eq!([status("first").await, status("second").await], [401, 200]);

    fs::write(&file, "no web config").unwrap();
    running.signal("HUP");
    let refused = log.until(&["level=error", "web config reread and refused: the previous one stays in use"]);
    assert!(refused.contains(file.to_str().unwrap()), "{refused}");
    assert_eq!(status("second").await, 200);
    assert_eq!(running.stop(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_rereads_the_secrets_and_polls() {
    let simulator = simulator(5).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, "old").unwrap();
    let token = format!("--zenlayer.token-file={}", file.path().display());
    // Only the signal makes it poll again.
    // A poll that changes nothing is a line at that level.
    let rarely = ["--poll.interval=1h", "--poll.max-staleness=2h", "--log.level=debug", LISTEN, &token];
    let endpoint = format!("--zenlayer.endpoint={}", simulator.endpoint());
    let (running, log) = Running::start(&mut exporter(&[&rarely[..], &[&endpoint]].concat()));
    log.until(&["poll failed"]);
    fs::write(&file, TOKEN).unwrap();
    for _ in 0..2 {
        running.signal("HUP");
        log.until(&["signal=SIGHUP", "rereading the secrets; no web config is set"]);
        log.until(&["poll succeeded"]);
    }
    running.until_up_is(1.0).await;
    assert_eq!(running.stop(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_that_means_nothing_is_logged_and_kills_nothing() {
    let (running, log) = Running::start(&mut exporter(&["--demo", LISTEN]));
    for name in ["QUIT", "USR1", "USR2", "ALRM", "IO"] {
        running.signal(name);
        log.until(&["level=warn", &format!("signal=SIG{name}"), "signal ignored: send SIGTERM to stop"]);
        assert_eq!(request(running.address, Method::GET, "/healthz", &[]).await.status, 200, "{name}");
    }
    assert_eq!(running.stop(), Some(0));
}

/// A process that has just begun to handle signals, and the folder of the token that it is going to read.
fn starting(args: &[&str]) -> (Child, TempDir, Log) {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    fs::write(&token, TOKEN).unwrap();
    let token = format!("--zenlayer.token-file={}", token.display());
    // Nothing listens there: what becomes of the polls does not matter.
    let args = [&["--zenlayer.endpoint=http://127.0.0.1:1", LISTEN, &token], args].concat();
    let mut child = exporter(&args).stderr(Stdio::piped()).spawn().unwrap();
    while !handles_signals(&child) {
        std::thread::yield_now();
    }
    let log = Log::read(child.stderr.take().unwrap());
    (child, folder, log)
}

/// Whether the process catches SIGHUP and SIGTERM, according to the kernel.
fn handles_signals(child: &Child) -> bool {
    // Signal N is bit N-1: SIGHUP is 1, SIGTERM 15.
    const HUP_AND_TERM: u64 = 1 | 1 << 14;
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
    u64::from_str_radix(mask.trim(), 16).unwrap() & HUP_AND_TERM == HUP_AND_TERM
}

fn kill(child: &Child, signal: &str) {
    let sent = Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

#[test]
fn a_signal_right_after_the_start_has_its_effect() {
    let (mut child, _folder, log) = starting(&[]);
    let signals = ["HUP", "QUIT", "USR1", "USR2", "ALRM", "IO"];
    for signal in signals {
        kill(&child, signal);
    }
    let lines = signals.map(|_| log.until(&["signal=SIG"])).join("\n");
    for signal in signals {
        assert!(lines.contains(&format!("signal=SIG{signal}")), "{signal}: {lines}");
    }
    kill(&child, "TERM");
    log.until(&["signal=SIGTERM"]);
    drop(log);
    assert_eq!(wait(&mut child).code(), Some(0));
}

#[test]
fn a_signal_to_stop_right_after_the_start_is_obeyed() {
    for (args, signal, code, line) in [
        (&[][..], "TERM", 0, "signal=SIGTERM"),
        (&[], "INT", 0, "signal=SIGINT"),
        (&["--once"], "TERM", 1, "zenlayer-exporter: interrupted by SIGTERM"),
        (&["--once"], "INT", 1, "zenlayer-exporter: interrupted by SIGINT"),
        (&["--config.check"], "HUP", 1, "zenlayer-exporter: interrupted by SIGHUP"),
    ] {
        let (mut child, _folder, log) = starting(args);
        kill(&child, signal);
        log.until(&[line]);
        drop(log);
        assert_eq!(wait(&mut child).code(), Some(code), "{args:?} {signal}");
    }
}

/// What a command exits with, and whether it writes to standard output.
const COMMANDS: [(&[&str], i32, bool); 9] = [
    (&["--help"], 0, true),
    (&["--version"], 0, true),
    (&["--demo", "--once"], 0, true),
    (&["--demo=20000", "--once"], 0, true),
    (&["--demo", "--config.check"], 0, true),
    (&["--healthcheck", "--web.listen-address=127.0.0.1:1"], 1, false),
    (&["--no-such-flag"], 64, false),
    (&[], 64, false),
    (&["--demo", "--web.listen-address=192.0.2.1:1"], 1, false),
];

#[test]
fn a_closed_pipe_ends_a_command_quietly() {
    for (args, code, _) in COMMANDS {
        let output = exporter(args).env("ZENLAYER_EXPORTER_LOG_LEVEL", "error").stdout(closed_pipe()).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {output:?}");
        assert_eq!(output.stderr.is_empty(), code == 0, "{args:?}: {output:?}");
        let silent = exporter(args).stdout(Stdio::null()).stderr(closed_pipe()).status().unwrap();
        assert_eq!(silent.code(), Some(code), "{args:?}");
    }
}

#[test]
fn a_full_disk_is_one_line_and_a_failure() {
    let failure = "zenlayer-exporter: cannot write to standard output: No space left on device (os error 28)\n";
    for (args, code, prints) in COMMANDS {
        let output = exporter(args).env("ZENLAYER_EXPORTER_LOG_LEVEL", "error").stdout(full_disk()).output().unwrap();
        assert_eq!(output.status.code(), Some(if prints { 1 } else { code }), "{args:?}: {output:?}");
        assert_eq!(output.stderr == failure.as_bytes(), prints, "{args:?}: {output:?}");
        let silent = exporter(args).stdout(Stdio::null()).stderr(full_disk()).status().unwrap();
        assert_eq!(silent.code(), Some(code), "{args:?}");
    }
}

#[test]
fn a_signal_ends_a_command_whose_standard_output_nobody_reads() {
    for args in [&["--demo", "--once"][..], &["--demo=20000", "--once"], &["--help"]] {
        for signal in ["TERM", "INT", "HUP"] {
            let (mut reader, writer) = small_pipe();
            let mut child = exporter(args).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
            let log = Log::read(child.stderr.take().unwrap());
            // It is printing now, and more than the pipe can hold.
            reader.read_exact(&mut [0]).unwrap();
            kill(&child, signal);
            log.until(&[&format!("zenlayer-exporter: interrupted by SIG{signal}")]);
            drop(log);
            assert_eq!(wait(&mut child).code(), Some(1), "{args:?} {signal}");
        }
    }
}

#[test]
fn the_first_line_of_the_metrics_can_be_all_that_is_read() {
    let mut child =
        exporter(&["--demo=20000", "--once"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut metrics = BufReader::new(child.stdout.take().unwrap());
    let mut first = String::new();
    metrics.read_line(&mut first).unwrap();
    assert!(first.starts_with("# HELP "), "{first}");
    drop(metrics);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(!String::from_utf8(output.stderr).unwrap().contains("standard output"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_poll_is_a_failure_whoever_reads_its_metrics() {
    let simulator = simulator(5).await;
    let once = || on_simulator(&simulator, &["--once"]).env("ZENLAYER_TOKEN", "wrong").stdout(closed_pipe()).output();
    let output = once().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.lines().last().unwrap().contains("HTTP 401"), "{error}");
}
