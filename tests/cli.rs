//! The binary as an operator runs it: what it prints, and the code it exits with.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

mod common;

use std::fs::Permissions;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::time::Instant;

use common::{Metrics, held};
use hyper::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use zenlayer_exporter::api::Action;
use zenlayer_exporter::model::Service;
use zenlayer_exporter::shard::Shard;
use zenlayer_exporter::simulator::{Fault, KEY_ID, Knobs, NOT_FOUND, PASSWORD, Simulator, TOKEN};

/// The binary, with nothing of this machine's environment that could change what it does.
fn exporter(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zenlayer-exporter"));
    command.args(args).env_clear().stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    exporter(args).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// A running binary that is killed when dropped.
struct Running {
    child: Child,
    stderr: BufReader<ChildStderr>,
    log: String,
    address: SocketAddr,
}

impl Running {
    /// Starts it and reads its log up to the line that says where it listens.
    fn start(command: &mut Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut log = String::new();
        let address = loop {
            let start = log.len();
            assert!(stderr.read_line(&mut log).unwrap() > 0, "it ended early:\n{log}");
            let line = &log[start..];
            let logfmt = line.split_once("message=listening address=");
            let json = line.split_once("\"message\":\"listening\",\"address\":\"");
            if let Some((_, rest)) = logfmt.or(json) {
                break rest.split([' ', '"']).next().unwrap().parse().unwrap();
            }
        };
        Self { child, stderr, log, address }
    }

    /// Waits for the metrics to count a poll with that outcome.
    async fn until_a_poll_ends_with(&self, outcome: &str) {
        self.until(|metrics| metrics.value("zenlayer_exporter_polls_total", &[("outcome", outcome)]) >= Some(1.0))
            .await;
    }

    /// Sends a signal and waits. Returns the exit code and the whole log.
    fn signal(mut self, name: &str) -> (Option<i32>, String) {
        let sent = Command::new("kill").args([format!("-{name}"), self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        let code = self.child.wait().unwrap().code();
        self.stderr.read_to_string(&mut self.log).unwrap();
        (code, std::mem::take(&mut self.log))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself, as it should.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn on_simulator(simulator: &Simulator, args: &[&str]) -> Command {
    let endpoint = format!("--zenlayer.endpoint={}", simulator.endpoint());
    let mut command = exporter(&[&[&*endpoint], args].concat());
    command.env("ZENLAYER_ACCESS_KEY_ID", KEY_ID).env("ZENLAYER_ACCESS_KEY_SECRET", PASSWORD);
    command
}

async fn simulator(instances: usize) -> Simulator {
    Simulator::start(Knobs::still(Service::Vm, instances)).await.unwrap()
}

#[test]
fn every_mistake_is_named_at_once() {
    let output = run(&[
        "--once",
        "--config.check",
        "--zenlayer.endpoint=http://api.example.com",
        "--zenlayer.service=bare-metal",
        "--zenlayer.page-size=1001",
        "--zenlayer.token-file=/nonexistent/token",
        "--zenlayer.ca-file=/nonexistent/ca.pem",
        "--poll.interval=often",
        "--poll.timeout=0s",
        "--web.listen-address=10980",
        "--web.telemetry-path=metrics",
        "--collector.instance-info.interval=10ms",
        "--collector.instance-info.tags=cost-center,,env",
        "--collector.instance-info.tags=cost.center",
        "--metrics.status-series=some",
        "--log.level=loud",
    ]);
    assert_eq!(output.status.code(), Some(64));
    assert_eq!(text(&output.stdout), "");
    let expected = r#"zenlayer-exporter: invalid settings:
invalid value "http://api.example.com" for --zenlayer.endpoint: expected https, or --zenlayer.allow-plain-http: anyone on the way can read and change plain HTTP
--zenlayer.token-file cannot be used: expected the path of a file, not the secret itself; the path exists only as far as /: No such file or directory (os error 2)
invalid value "bare-metal" for --zenlayer.service: expected vm or zec
--zenlayer.ca-file cannot be used: /nonexistent/ca.pem cannot be read: No such file or directory (os error 2)
invalid value "1001" for --zenlayer.page-size: expected a whole number from 1 to 1000
invalid value "often" for --poll.interval: expected a duration such as 30s or 5m
invalid value "0s" for --poll.timeout: expected a duration from 1ms to 30d
invalid value "10ms" for --collector.instance-info.interval: expected a duration from 1s to 30d
--collector.instance-info.tags has an empty tag: separate tags with single commas
--collector.instance-info.tags has "cost-center" and "cost.center", which would both be the label tag_cost_center: leave one out
--collector.instance-info.tags has no effect without --collector.instance-info: add it, or leave the tags out
invalid value "10980" for --web.listen-address: expected an address such as :10980, 127.0.0.1:10980 or [::1]:10980
invalid value "metrics" for --web.telemetry-path: expected a path such as /metrics, of characters that need no encoding (RFC 3986)
invalid value "some" for --metrics.status-series: expected current or all
invalid value "loud" for --log.level: expected error, warn, info, debug or trace
--once, --config.check and --healthcheck exclude each other: set one of them
"#;
    assert_eq!(text(&output.stderr), expected);
}

#[test]
fn a_missing_key_says_what_to_set() {
    let output = run(&[]);
    assert_eq!(output.status.code(), Some(64));
    assert_eq!(
        text(&output.stderr),
        "zenlayer-exporter: invalid settings:
no credentials: set one of
  ZENLAYER_ACCESS_KEY_ID and ZENLAYER_ACCESS_KEY_SECRET
  ZENLAYER_TOKEN
  --zenlayer.access-key-id and --zenlayer.access-key-password-file
  --zenlayer.token-file
  --zenlayer.profile, for a profile of zeno
  --demo, to try the exporter without an account
"
    );
}

#[test]
fn half_a_key_and_two_kinds_of_credentials_are_told_apart() {
    let said = |variables: &[(&str, &str)]| {
        let output = exporter(&[]).envs(variables.iter().copied()).output().unwrap();
        assert_eq!(output.status.code(), Some(64));
        text(&output.stderr).lines().nth(1).unwrap().to_owned()
    };
    assert_eq!(
        said(&[("ZENLAYER_ACCESS_KEY_ID", "id")]),
        "an access key ID needs its password: set ZENLAYER_ACCESS_KEY_SECRET or --zenlayer.access-key-password-file"
    );
    assert_eq!(
        said(&[("ZENLAYERCLOUD_ACCESS_KEY_PASSWORD", "password")]),
        "an access key password needs its ID: set ZENLAYER_ACCESS_KEY_ID or --zenlayer.access-key-id"
    );
    assert_eq!(
        said(&[("ZENLAYER_ACCESS_KEY_ID", "id"), ("ZENLAYER_TOKEN", "token")]),
        "credentials: set either an access key or a token, not both"
    );
}

#[test]
fn a_shard_that_cannot_be_says_why() {
    let said = |flags: &[&str], host: &str| {
        let output = exporter(&[&["--demo", "--once"], flags].concat()).env("HOSTNAME", host).output().unwrap();
        assert_eq!(output.status.code(), Some(64));
        text(&output.stderr).split_once('\n').unwrap().1.trim_end().to_owned()
    };
    let [auto, four] = ["--shard=auto", "--total-shards=4"];
    for (flags, host, expected) in [
        (vec!["--shard=4", four], "", "--shard=4 is out of range: with --total-shards=4, shards are 0 to 3"),
        (vec!["--shard=1"], "", "--shard=1 is out of range: with --total-shards=1, shards are 0 to 0"),
        (vec!["--total-shards=0"], "", "invalid value \"0\" for --total-shards: expected a whole number from 1 to 100"),
        (
            vec!["--shard=first", four],
            "",
            "invalid value \"first\" for --shard: expected auto, or a whole number from 0 to --total-shards minus 1",
        ),
        (
            vec![auto],
            "exporter-0",
            "invalid value \"auto\" for --shard: expected --total-shards set to the StatefulSet's replicas as well",
        ),
        (
            vec![auto, four],
            "",
            "invalid value \"auto\" for --shard: expected the variable HOSTNAME to be the pod's name, or give the number",
        ),
        (
            vec![auto, four],
            "exporter-7d9c",
            "invalid value \"auto\" for --shard: expected a host name such as exporter-2, not \"exporter-7d9c\": give \
             the number",
        ),
        (
            vec![auto, four],
            "exporter-4",
            "--shard=4 (by the host name) is out of range: with --total-shards=4, shards are 0 to 3",
        ),
    ] {
        assert_eq!(said(&flags, host), expected, "{flags:?} on {host:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_a_stateful_set_knows_its_shard() {
    let simulator = simulator(300).await;
    let mut command = on_simulator(&simulator, &["--once", "--shard=auto", "--total-shards=12"]);
    let output = command.env("HOSTNAME", "zenlayer-exporter-10").output().unwrap();
    let tenth = Shard::new(10, 12).unwrap();
    let own = held(&simulator).into_iter().filter(|(id, _)| tenth.owns(id)).collect();
    assert_eq!(Metrics::parse(text(&output.stdout)).instances(), own);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_with_a_secret_that_everybody_can_read_draws_a_warning() {
    let simulator = simulator(5).await;
    let home = tempfile::tempdir().unwrap();
    std::fs::set_permissions(home.path(), Permissions::from_mode(0o755)).unwrap();
    std::fs::create_dir(home.path().join(".zenlayer")).unwrap();
    let [secret, profiles] = ["secret", ".zenlayer/credentials.json"].map(|name| home.path().join(name));
    std::fs::write(&profiles, format!(r#"{{"default": {{"token": "{TOKEN}"}}}}"#)).unwrap();
    let endpoint = format!("--zenlayer.endpoint={}", simulator.endpoint());
    let token = format!("--zenlayer.token-file={}", secret.display());
    let password = format!("--zenlayer.access-key-password-file={}", secret.display());
    for (flag, file, content) in
        [(&*token, &secret, Some(TOKEN)), (&password, &secret, Some(PASSWORD)), ("--zenlayer.profile", &profiles, None)]
    {
        if let Some(content) = content {
            std::fs::write(file, content).unwrap();
        }
        for (mode, warns) in [(0o644, true), (0o440, false)] {
            std::fs::set_permissions(file, Permissions::from_mode(mode)).unwrap();
            let id = if flag == password { KEY_ID } else { "" };
            let variables = [("HOME", home.path().to_str().unwrap()), ("ZENLAYER_ACCESS_KEY_ID", id)];
            let output = exporter(&[&endpoint, "--once", flag]).envs(variables).output().unwrap();
            let log = text(&output.stderr);
            assert_eq!(output.status.code(), Some(0), "{log}");
            let warning = format!("file={path} fix=\"chmod o-r {path}\"", path = file.display());
            assert_eq!(log.contains(&warning), warns, "{flag} with {mode:o}:\n{log}");
            std::fs::set_permissions(file, Permissions::from_mode(0o600)).unwrap();
        }
    }
}

#[test]
fn a_private_key_or_hash_that_everybody_can_read_draws_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    common::web::Authority::new().write(folder.path());
    let [file, certificate, key] = ["web.yml", "cert.pem", "key.pem"].map(|name| folder.path().join(name));
    let tls = "tls_server_config: {cert_file: cert.pem, key_file: key.pem}\n";
    let users = format!("basic_auth_users: {{a: {}}}\n", common::web::hash("a", 1));
    let flag = format!("--web.config.file={}", file.display());
    let mode = |path: &std::path::Path, mode| std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    mode(folder.path(), 0o755);
    for (content, key_mode, web_mode, exposed) in [
        (tls, 0o644, 0o644, &[&key][..]),
        (tls, 0o640, 0o644, &[]),
        (&users, 0o640, 0o644, &[&file]),
        (&users, 0o640, 0o600, &[]),
        (&format!("{tls}{users}"), 0o604, 0o644, &[&key, &file]),
    ] {
        std::fs::write(&file, content).unwrap();
        mode(&file, web_mode);
        mode(&key, key_mode);
        mode(&certificate, 0o644);
        let output = run(&["--demo=2", "--once", &flag]);
        let log = text(&output.stderr);
        let warned = |path: &std::path::Path| log.contains(&format!("fix=\"chmod o-r {}\"", path.display()));
        for path in [&file, &key, &certificate] {
            assert_eq!(warned(path), exposed.contains(&path), "{}:\n{log}", path.display());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_key_that_a_reload_exposes_draws_a_warning_too() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let (file, key) = (folder.path().join("web.yml"), folder.path().join("key.pem"));
    let renew = |mode| {
        common::web::Authority::new().write(folder.path());
        std::fs::set_permissions(&key, Permissions::from_mode(mode)).unwrap();
    };
    renew(0o600);
    std::fs::write(&file, "tls_server_config: {cert_file: cert.pem, key_file: key.pem}\n").unwrap();
    let flag = format!("--web.config.file={}", file.display());
    let mut running = Running::start(&mut exporter(&["--demo", "--web.listen-address=127.0.0.1:0", &flag]));
    assert!(!running.log.contains("chmod"), "{}", running.log);
    renew(0o644);
    let (mut log, started) = (String::new(), Instant::now());
    while !log.contains("web config reread and in use") {
        assert!(running.stderr.read_line(&mut log).unwrap() > 0, "it ended early:\n{log}");
        assert!(started.elapsed() < common::PATIENCE, "no reload:\n{log}");
    }
    assert!(log.contains(&format!("chmod o-r {}", key.display())), "{log}");
}

#[test]
fn an_unknown_flag_is_a_bad_setting_and_help_is_none() {
    let output = run(&["--zenlayer.acces-key-id=x"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(
        text(&output.stderr).contains("unknown flag --zenlayer.acces-key-id: did you mean --zenlayer.access-key-id?")
    );
    assert_eq!(run(&["--help"]).status.code(), Some(0));
}

#[test]
fn the_version_names_revision_compiler_and_target() {
    use zenlayer_exporter::build_info::{REVISION, RUST_VERSION, VERSION};
    let version = run(&["--version"]);
    let begins = format!("zenlayer-exporter {VERSION} (revision {REVISION}, rustc {RUST_VERSION}, ");
    assert!(text(&version.stdout).starts_with(&begins), "{}", text(&version.stdout));
    assert!(text(&version.stdout).ends_with("-linux-gnu)\n") || text(&version.stdout).ends_with("-linux-musl)\n"));
}

#[test]
fn help_has_every_flag_under_a_heading_with_its_variable() {
    let output = run(&["--help"]);
    let help = text(&output.stdout);
    let (_, flags) = help.split_once("\nHTTP server:\n").unwrap();
    let blocks: Vec<_> = flags.split("\n      --").map(|block| block.trim_start_matches("      --")).collect();
    assert!(blocks.len() > 30, "{help}");
    for block in blocks {
        let name = block.split([' ', '\n']).next().unwrap();
        let variable = format!("ZENLAYER_EXPORTER_{}", name.to_uppercase().replace(['.', '-'], "_"));
        assert!(block.contains(&format!("[env: {variable}]")), "{block}");
    }
    for heading in ["Zenlayer API", "Polls", "Metrics", "Shards", "Logs", "Commands and demo"] {
        assert!(help.contains(&format!("\n\n{heading}:\n")), "{heading}: {help}");
    }
}

#[test]
fn a_port_in_use_says_so() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let output = run(&["--demo", &format!("--web.listen-address={address}")]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        text(&output.stderr),
        format!(
            "zenlayer-exporter: cannot listen on {address}: Address already in use (os error 98): choose a free address of \
             this machine with --web.listen-address\n"
        )
    );
}

#[test]
fn a_flag_beats_its_variable() {
    let by_variable = exporter(&[]).env("ZENLAYER_EXPORTER_DEMO", "7").arg("--once").output().unwrap();
    assert_eq!(Metrics::parse(text(&by_variable.stdout)).instances().len(), 7);
    let mut with_empty = exporter(&["--demo=2", "--once"]);
    with_empty.env("ZENLAYER_EXPORTER_ZENLAYER_INSTANCE_IDS", "").env("ZENLAYER_EXPORTER_ZENLAYER_ENDPOINT", "");
    let empty = with_empty.output().unwrap();
    assert_eq!(Metrics::parse(text(&empty.stdout)).instances().len(), 2, "an empty variable is none");
    let by_flag = exporter(&["--demo=3", "--once"]).env("ZENLAYER_EXPORTER_DEMO", "7").output().unwrap();
    assert_eq!(Metrics::parse(text(&by_flag.stdout)).instances().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn once_prints_the_metrics_and_nothing_of_the_process() {
    let simulator = simulator(1234).await;
    let output = on_simulator(&simulator, &["--once"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let metrics = Metrics::parse(text(&output.stdout));
    assert_eq!(metrics.instances(), held(&simulator));
    assert_eq!(metrics.value("zenlayer_up", &[]), Some(1.0));
    assert!(!metrics.text.contains("process_"), "node_exporter has its own of those");
}

#[tokio::test(flavor = "multi_thread")]
async fn once_includes_names_and_does_not_fail_for_them() {
    let simulator = simulator(123).await;
    let with_info = || on_simulator(&simulator, &["--once", "--collector.instance-info"]).output().unwrap();
    let output = with_info();
    assert_eq!(output.status.code(), Some(0));
    let metrics = Metrics::parse(text(&output.stdout));
    assert_eq!((metrics.instances(), metrics.count("zenlayer_instance_info")), (held(&simulator), 123));
    let success =
        |metrics: &Metrics| metrics.value("zenlayer_exporter_collector_success", &[("collector", "instance-info")]);
    assert_eq!(success(&metrics), Some(1.0));

    simulator.set(|knobs| {
        knobs.fault = Some(Fault::answer(403, r#"{"requestId":"T1","code":"FORBIDDEN","message":"no"}"#));
        knobs.fault_of = Some(Action::DescribeInstances);
    });
    let output = with_info();
    assert_eq!(output.status.code(), Some(0), "statuses are there");
    let metrics = Metrics::parse(text(&output.stdout));
    assert_eq!((metrics.instances(), metrics.count("zenlayer_instance_info")), (held(&simulator), 0));
    assert_eq!((success(&metrics), metrics.value("zenlayer_up", &[])), (Some(0.0), Some(1.0)));
    let says = "DescribeInstances, page 1: HTTP 403, code FORBIDDEN, no (requestId T1): allow this key";
    assert!(text(&output.stderr).contains(says), "{}", text(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn once_fails_aloud() {
    let simulator = simulator(5).await;
    let output = on_simulator(&simulator, &["--once"]).env("ZENLAYER_ACCESS_KEY_SECRET", "wrong").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let metrics = Metrics::parse(text(&output.stdout));
    assert_eq!(metrics.value("zenlayer_up", &[]), Some(0.0));
    assert_eq!(metrics.count("zenlayer_instances"), 0);
    let last = text(&output.stderr).lines().last().unwrap();
    assert!(last.starts_with("zenlayer-exporter: DescribeInstancesStatus, page 1: HTTP 401, code INVALID_SIGNATURE"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_check_makes_one_request() {
    let simulator = simulator(4321).await;
    let right = on_simulator(&simulator, &["--config.check"]).output().unwrap();
    assert_eq!(right.status.code(), Some(0));
    assert_eq!(text(&right.stdout), "the settings are right, and the API counts 4321 instances\n");
    assert_eq!(simulator.tally().answered, 1);
    let wrong =
        on_simulator(&simulator, &["--config.check"]).env("ZENLAYER_ACCESS_KEY_SECRET", "wrong").output().unwrap();
    assert_eq!(wrong.status.code(), Some(1));
    assert!(text(&wrong.stderr).contains("HTTP 401, code INVALID_SIGNATURE"));
    let id = simulator.with_fleet(|fleet| fleet.machines[0].id.clone());
    let ids = format!("--zenlayer.instance-ids=mistyped,{id}");
    let named = on_simulator(&simulator, &["--config.check", &ids]).output().unwrap();
    assert_eq!(
        text(&named.stdout),
        "the settings are right, and the API knows 1 of 2 named instances; missing: mistyped\n"
    );

    let answered = simulator.tally().answered;
    let with_info = || on_simulator(&simulator, &["--config.check", "--collector.instance-info"]).output().unwrap();
    assert_eq!(with_info().status.code(), Some(0));
    assert_eq!(simulator.tally().answered - answered, 2);
    simulator.set(|knobs| {
        knobs.fault = Some(Fault::answer(403, r#"{"code":"FORBIDDEN"}"#));
        knobs.fault_of = Some(Action::DescribeInstances);
    });
    let refused = with_info();
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).starts_with("zenlayer-exporter: DescribeInstances, page 1: HTTP 403"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_check_looks_up_every_named_instance() {
    let simulator = simulator(400).await;
    let mut ids: Vec<_> = held(&simulator).into_iter().map(|(id, _)| id).take(250).collect();
    let check = |ids: &[String]| {
        let ids = format!("--zenlayer.instance-ids={}", ids.join(","));
        let output = on_simulator(&simulator, &["--config.check", "--collector.instance-info", &ids]).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        text(&output.stdout).to_owned()
    };
    assert_eq!(check(&ids), "the settings are right, and the API knows 250 of 250 named instances\n");
    for strict in [false, true] {
        simulator.set(|knobs| knobs.missing_id = strict.then_some(NOT_FOUND));
        ids.truncate(248);
        ids.extend((0..12).map(|number| format!("gone-{number:02}")));
        let missing: Vec<_> = (0..10).map(|number| format!("gone-{number:02}")).collect();
        let expected = format!(
            "the settings are right, and the API knows 248 of 260 named instances; missing: {} and 2 more\n",
            missing.join(", ")
        );
        assert_eq!(check(&ids), expected, "strict: {strict}");
    }
}

/// An API that counts no instances of vm and twelve of zec.
async fn two_services() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = vec![0; 16 << 10];
            let length = stream.read(&mut request).await.unwrap();
            let count = if request[..length].starts_with(b"POST /api/v2/zec ") { 12 } else { 0 };
            let entries: Vec<_> = (0..count).map(|id| format!(r#"{{"instanceId":{id}}}"#)).collect();
            let body = format!(r#"{{"response":{{"totalCount":{count},"dataSet":[{}]}}}}"#, entries.join(","));
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            stream.write_all((head + &body).as_bytes()).await.unwrap();
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_check_without_instances_checks_the_other_service() {
    let endpoint = format!("--zenlayer.endpoint=http://{}", two_services().await);
    let check = |flags: &[&str]| {
        let mut command = exporter(&[&["--config.check", &*endpoint], flags].concat());
        command.env("ZENLAYER_ACCESS_KEY_ID", KEY_ID).env("ZENLAYER_ACCESS_KEY_SECRET", PASSWORD);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        text(&output.stdout).to_owned()
    };
    assert_eq!(
        check(&[]),
        "the settings are right, and the API counts 0 instances\n\
         No instances found in vm (Zenlayer's legacy virtual machines). Elastic compute is `--zenlayer.service=zec`. It has 12 \
         instances.\n"
    );
    assert_eq!(check(&["--zenlayer.service=zec"]), "the settings are right, and the API counts 12 instances\n");
    assert_eq!(
        check(&["--zenlayer.instance-ids=a,b"]),
        "the settings are right, and the API knows 0 of 2 named instances; missing: a, b\n\
         None of the 2 named instances exists in vm (Zenlayer's legacy virtual machines). Check \
         `--zenlayer.instance-ids`. Elastic compute is `--zenlayer.service=zec`. It has 12 instances.\n"
    );
    let sharded = check(&["--shard=1", "--total-shards=4"]);
    assert!(sharded.contains("No instances found in vm (Zenlayer's legacy virtual machines). Elastic"), "{sharded}");
    // An ID that is another shard's.
    let other = (0..100).map(|id| id.to_string()).find(|id| !Shard::new(1, 4).unwrap().owns(id)).unwrap();
    let none_owned = check(&["--shard=1", "--total-shards=4", &format!("--zenlayer.instance-ids={other}")]);
    assert_eq!(
        none_owned,
        "the settings are right, and the API knows 0 of 0 named instances\n\
         None of the named instances belongs to shard 1 (numbered 0 to 3).\n"
    );

    let simulator = simulator(0).await;
    let output = on_simulator(&simulator, &["--config.check"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let says = "`--zenlayer.service=zec`. It cannot be checked: DescribeInstancesStatus, page 1: HTTP 404, code INVALID_REQUEST";
    assert!(text(&output.stdout).contains(says), "{}", text(&output.stdout));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_check_of_an_empty_resource_group_names_the_group() {
    let simulator = Simulator::start(Knobs::still(Service::Zec, 0)).await.unwrap();
    let flags = ["--config.check", "--zenlayer.service=zec", "--zenlayer.resource-group-id=mistyped"];
    let output = on_simulator(&simulator, &flags).output().unwrap();
    assert_eq!(
        text(&output.stdout),
        "the settings are right, and the API counts 0 instances\n\
         No instances found in zec (Zenlayer's elastic compute) in resource group \"mistyped\". Check \
         `--zenlayer.resource-group-id`.\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_check_fails_where_a_poll_would() {
    let simulator = simulator(5).await;
    let check = |says: &str, flags: &[&str]| {
        let output = on_simulator(&simulator, &[&["--config.check"], flags].concat()).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
        assert!(text(&output.stderr).contains(says), "{}", text(&output.stderr));
    };
    let info = ["--collector.instance-info"];
    for (body, says) in [
        (r#"{"totalCount":3,"dataSet":[{"instanceId":"a"}]}"#, "1 of 3 entries expected with totalCount 3"),
        (
            r#"{"totalCount":0,"dataSet":[{"instanceId":"a"}]}"#,
            "more entries than expected with totalCount 0 (1 instead of 0)",
        ),
        (r#"{"totalCount":1,"dataSet":[{"id":"a"}]}"#, "no usable instanceId in any entry (1)"),
    ] {
        simulator.set(|knobs| (knobs.fault, knobs.fault_of) = (Some(Fault::answer(200, body)), None));
        check(says, &[]);
        simulator.set(|knobs| knobs.fault_of = Some(Action::DescribeInstances));
        check(says, &info);
    }
    let too_many = Fault::answer(200, r#"{"totalCount":9000000000,"dataSet":[{"instanceId":"a"}]}"#);
    simulator.set(|knobs| (knobs.fault, knobs.fault_of) = (Some(too_many), None));
    check("the API counts 9000000000 instances, more than", &["--zenlayer.page-size=1"]);
    simulator.set(|knobs| (knobs.fault, knobs.fault_of) = (Some(Fault::HangBeforeHeaders), None));
    let timeout = ["--poll.timeout=200ms"];
    check("the check did not finish within 200ms: raise --poll.timeout", &timeout);
    simulator.set(|knobs| knobs.fault_of = Some(Action::DescribeInstances));
    check("the check did not finish within 200ms: raise --poll.timeout", &[timeout, info].concat());
}

#[test]
fn a_variable_switches_the_demo_as_it_does_other_flags() {
    let demo = |value: &str| exporter(&["--once"]).env("ZENLAYER_EXPORTER_DEMO", value).output().unwrap();
    assert_eq!(Metrics::parse(text(&demo("true").stdout)).instances().len(), 500);
    let off = demo("false");
    assert_eq!(off.status.code(), Some(64));
    assert!(text(&off.stderr).contains("no credentials: set one of"), "{}", text(&off.stderr));
}

#[test]
fn a_demo_takes_no_account_and_no_proxy() {
    let output =
        run(&["--demo", "--zenlayer.token-file=/token", "--zenlayer.endpoint=example.com", "--zenlayer.profile"]);
    assert_eq!(output.status.code(), Some(64));
    assert_eq!(
        text(&output.stderr),
        "zenlayer-exporter: invalid settings:\n\
         --demo polls its own simulated API: leave out --zenlayer.endpoint\n\
         --demo polls its own simulated API: leave out --zenlayer.token-file\n\
         --demo polls its own simulated API: leave out --zenlayer.profile\n"
    );
    let proxied = exporter(&["--demo", "--once"]).env("HTTP_PROXY", "http://127.0.0.1:9").output().unwrap();
    assert_eq!(proxied.status.code(), Some(0), "{}", text(&proxied.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_end_it_well() {
    for signal in ["TERM", "INT"] {
        let running = Running::start(&mut exporter(&["--demo", "--web.listen-address=127.0.0.1:0"]));
        let health = common::request(running.address, Method::GET, "/healthz", &[]).await;
        assert_eq!(health.status, 200);
        let (code, log) = running.signal(signal);
        assert_eq!(code, Some(0), "{log}");
        assert!(log.contains(&format!("signal=SIG{signal}")), "{log}");
        assert!(log.contains("demo: polling simulated instances"), "{log}");
    }
}

#[test]
fn the_service_manager_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(common::PATIENCE)).unwrap();
    let heard = || {
        let mut buffer = [0; 100];
        let length = socket.recv(&mut buffer).unwrap();
        text(&buffer[..length]).trim_end().to_owned()
    };
    let mut command = exporter(&["--demo", "--web.listen-address=127.0.0.1:0"]);
    let running = Running::start(command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "100000"));
    assert_eq!([heard(), heard(), heard()], ["READY=1", "WATCHDOG=1", "WATCHDOG=1"]);
    assert_eq!(running.signal("TERM").0, Some(0));
    while heard() != "STOPPING=1" {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthcheck_asks_the_exporter_that_runs() {
    let running = Running::start(&mut exporter(&["--demo", "--web.listen-address=127.0.0.1:0"]));
    let listen = format!("--web.listen-address={}", running.address);
    let healthy = run(&["--healthcheck", &listen]);
    assert_eq!((healthy.status.code(), text(&healthy.stderr)), (Some(0), ""));
    let address = running.address;
    drop(running);
    let gone = run(&["--healthcheck", &listen]);
    assert_eq!(gone.status.code(), Some(1));
    assert_eq!(
        text(&gone.stderr),
        format!(
            "zenlayer-exporter: {address}: cannot connect: Connection refused (os error 111): is the exporter running, \
             with the same --web.listen-address?\n"
        )
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthcheck_tries_each_address_that_the_exporter_may_have() {
    let check = |listen: &str| run(&["--healthcheck", &format!("--web.listen-address={listen}")]);
    // As on a machine without IPv6, and without IPv4.
    for (host, wrong_host, not_any) in [("127.0.0.1", "[::1]", None), ("[::1]", "127.0.0.1", Some("0.0.0.0"))] {
        let running = Running::start(&mut exporter(&["--demo", &format!("--web.listen-address={host}:0")]));
        let port = running.address.port();
        let stalled = std::net::TcpListener::bind(format!("{wrong_host}:{port}")).unwrap();
        for any in ["", "[::]", "[0:0::0]", "0.0.0.0"].into_iter().filter(|any| Some(*any) != not_any) {
            let output = check(&format!("{any}:{port}"));
            assert_eq!(output.status.code(), Some(0), "{any} on {host}: {}", text(&output.stderr));
        }
        drop(stalled);
        let output = check(&format!("{wrong_host}:{port}"));
        assert_eq!(output.status.code(), Some(1), "a specific address is the only one");
        let expected = format!("zenlayer-exporter: {wrong_host}:{port}: cannot connect");
        assert!(text(&output.stderr).starts_with(&expected), "{}", text(&output.stderr));

        drop(running);
        for any in ["", "[::]"] {
            let output = check(&format!("{any}:{port}"));
            assert_eq!(output.status.code(), Some(1));
            let why = "cannot connect: Connection refused (os error 111): is the exporter running, with the same \
                       --web.listen-address?";
            let expected = format!("zenlayer-exporter: 127.0.0.1:{port}: {why}; [::1]:{port}: {why}\n");
            assert_eq!(text(&output.stderr), expected);
        }
    }
}

#[test]
fn a_healthcheck_names_a_host_that_does_not_exist() {
    let output = run(&["--healthcheck", "--web.listen-address=no-such-host.invalid:1"]);
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    assert!(error.starts_with("zenlayer-exporter: cannot look up no-such-host.invalid:1: "), "{error}");
    assert!(error.ends_with(": check --web.listen-address\n"), "{error}");
}

#[test]
fn every_mistake_of_the_web_config_is_named_before_anything_listens() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("web.yml");
    std::fs::write(&file, "tls_server_config: {cert_file: cert.pem}\nbasic_auth_users: {alice: secret}\n").unwrap();
    let expected = format!(
        "zenlayer-exporter: invalid settings:\n\
         invalid value \"x\" for --web.listen-address: expected an address such as :10980, 127.0.0.1:10980 or [::1]:10980\n\
         --web.config.file cannot be used: {web}: line 1: tls_server_config.cert_file: {cert} cannot be read: No such file or \
         directory (os error 2)\n\
         --web.config.file cannot be used: {web}: line 1: tls_server_config: key_file is missing: without a key there is no TLS\n\
         --web.config.file cannot be used: {web}: line 2: basic_auth_users.alice: is not a bcrypt hash: make one with htpasswd -nBC 10 \
         \"\" | tr -d ':\\n'\n",
        web = file.display(),
        cert = folder.path().join("cert.pem").display(),
    );
    let flag = format!("--web.config.file={}", file.display());
    for task in [&[][..], &["--config.check"], &["--once"]] {
        let output = run(&[&["--demo", "--web.listen-address=x", &*flag], task].concat());
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(64), &*expected), "{task:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_says_https_and_a_health_check_outlives_a_broken_file() {
    let folder = tempfile::tempdir().unwrap();
    common::web::Authority::new().write(folder.path());
    let file = folder.path().join("web.yml");
    let user = format!("basic_auth_users: {{a: {}}}\n", common::web::hash("a", 1));
    std::fs::write(&file, format!("tls_server_config: {{cert_file: cert.pem, key_file: key.pem}}\n{user}")).unwrap();
    let flag = format!("--web.config.file={}", file.display());
    let running = Running::start(&mut exporter(&["--demo", "--web.listen-address=127.0.0.1:0", &flag]));
    let listen = format!("--web.listen-address={}", running.address);
    std::fs::write(&file, "no web config").unwrap();
    for flags in [&["--healthcheck", &listen, &flag][..], &["--healthcheck", &listen]] {
        let healthy = run(flags);
        assert_eq!((healthy.status.code(), text(&healthy.stderr)), (Some(0), ""), "{flags:?}");
    }
    let address = running.address;
    let (_, log) = running.signal("TERM");
    assert!(log.contains(&format!("metrics=https://{address}/metrics")), "{log}");
    assert!(!log.contains("passwords are sent"), "{log}");

    std::fs::write(&file, user).unwrap();
    let running = Running::start(&mut exporter(&["--demo", "--web.listen-address=127.0.0.1:0", &flag]));
    let address = running.address;
    // What it says at the start is said once it answers.
    common::request(address, Method::GET, "/healthz", &[]).await;
    let (_, log) = running.signal("TERM");
    assert!(log.contains(&format!("metrics=http://{address}/metrics")), "{log}");
    assert!(log.contains("level=warn target=zenlayer_exporter message=\"passwords are sent unencrypted"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_interface_means_ipv4_and_ipv6() {
    for every in [":0", "[::]:0"] {
        let running = Running::start(&mut exporter(&["--demo", &format!("--web.listen-address={every}")]));
        let port = running.address.port();
        for host in ["127.0.0.1", "[::1]"] {
            let address = format!("{host}:{port}").parse().unwrap();
            assert_eq!(common::request(address, Method::GET, "/healthz", &[]).await.status, 200, "{every} {host}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_nowhere_to_be_read() {
    let simulator = simulator(5).await;
    let listen = "--web.listen-address=127.0.0.1:0";
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    std::fs::write(&file, format!("{TOKEN}\n")).unwrap();
    let file_flag = format!("--zenlayer.token-file={}", file.display());
    let profiles = format!(r#"{{"default": {{"access_key_id": "{KEY_ID}", "access_key_secret": "{PASSWORD}"}}}}"#);
    std::fs::create_dir(directory.path().join(".zenlayer")).unwrap();
    std::fs::write(directory.path().join(".zenlayer/credentials.json"), profiles).unwrap();
    let flags = [listen, "--log.level=trace", "--poll.interval=1s"];
    let with = |more: &[&str]| on_simulator(&simulator, &[&flags, more].concat());
    let (mut by_key, mut by_token) = (with(&["--log.format=json"]), with(&[&file_flag]));
    let mut by_profile = with(&["--zenlayer.profile=default"]);
    by_profile.env("HOME", directory.path());
    for (command, secret) in [(&mut by_key, PASSWORD), (&mut by_token, TOKEN), (&mut by_profile, PASSWORD)] {
        // The first polls are answered with what they sent, the next succeeds.
        simulator.set(|knobs| knobs.fault = Some(Fault::Echo(401)));
        let running = Running::start(command);
        let mut seen = std::fs::read_to_string(format!("/proc/{}/cmdline", running.child.id())).unwrap();
        for (status, outcome) in [(401, "unauthorized"), (307, "redirect"), (200, "client")] {
            simulator.set(|knobs| knobs.fault = Some(Fault::Echo(status)));
            running.until_a_poll_ends_with(outcome).await;
            let ready = common::request(running.address, Method::GET, "/readyz", &[]).await;
            assert!(ready.text().contains("[redacted]"), "{}", ready.text());
            seen.push_str(ready.text());
            seen.push_str(common::request(running.address, Method::GET, "/", &[]).await.text());
        }
        simulator.set(|knobs| knobs.fault = None);
        running.until(|metrics| metrics.value("zenlayer_up", &[]) == Some(1.0)).await;
        for path in ["/metrics", "/", "/readyz"] {
            seen.push_str(common::request(running.address, Method::GET, path, &[]).await.text());
        }
        let (code, log) = running.signal("TERM");
        assert_eq!(code, Some(0));
        assert!(log.contains("poll failed") && log.contains("poll succeeded"), "{log}");
        assert!(log.contains("level=trace") || log.contains("\"level\":\"TRACE\""), "{log}");
        seen.push_str(&log);
        seen.push_str(text(&on_simulator(&simulator, &["--help"]).output().unwrap().stdout));
        assert!(!seen.contains(secret), "{seen}");
        assert!(!seen.contains("Signature="), "the authorization header was written:\n{seen}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_repeats_the_credential_publishes_none_of_it() {
    let simulator = simulator(5).await;
    simulator.set(|knobs| knobs.fault = Some(Fault::EchoInPage));
    let flags = ["--once", "--collector.instance-info", "--collector.instance-info.tags=env", "--log.level=trace"];
    for (name, value) in [("ZENLAYER_ACCESS_KEY_SECRET", PASSWORD), ("ZENLAYER_TOKEN", TOKEN)] {
        let endpoint = format!("--zenlayer.endpoint={}", simulator.endpoint());
        let mut command = exporter(&[&flags[..], &[&*endpoint]].concat());
        if value == PASSWORD {
            command.env("ZENLAYER_ACCESS_KEY_ID", KEY_ID);
        }
        let output = command.env(name, value).output().unwrap();
        let (metrics, log) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(0), "{log}");
        assert_eq!(Metrics::parse(metrics).count("zenlayer_instance_info"), 2, "{metrics}");
        assert!(metrics.contains("[redacted]"), "{metrics}");
        for leaked in [value, "Signature=", &value[..8]] {
            assert!(!metrics.contains(leaked) && !log.contains(leaked), "{leaked}: {metrics}{log}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_password_of_a_proxy_is_nowhere_to_be_read() {
    // The simulator stands in for a proxy that repeats what it got.
    let simulator = simulator(5).await;
    simulator.set(|knobs| knobs.fault = Some(Fault::Echo(407)));
    let proxy = simulator.endpoint().as_str().replace("http://", "http://user:hush%40the-proxy@");
    let output = exporter(&["--once", "--zenlayer.endpoint=http://api.example.invalid", "--zenlayer.allow-plain-http"])
        .env("ZENLAYER_TOKEN", TOKEN)
        .env("HTTP_PROXY", proxy)
        .output()
        .unwrap();
    let log = text(&output.stderr);
    assert!(log.contains("HTTP 407, code [redacted] Basic [redacted]==, not accepted"), "{log}");
    assert!(
        log.contains(": check user name and password of the proxy in HTTPS_PROXY, HTTP_PROXY or ALL_PROXY"),
        "{log}"
    );
    for leaked in ["hush", "dXNlcjpodXNoQHRoZS1wcm94eQ"] {
        assert!(!log.contains(leaked), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_changes_is_nowhere_to_be_read() {
    const ROTATED: &str = "hush-of-the-next-token";
    let simulator = simulator(5).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    let token = format!("--zenlayer.token-file={}", file.display());
    for format in ["--log.format=logfmt", "--log.format=json"] {
        std::fs::write(&file, TOKEN).unwrap();
        let flags = ["--web.listen-address=127.0.0.1:0", "--log.level=trace", "--poll.interval=1s", &token, format];
        let running = Running::start(&mut on_simulator(&simulator, &flags));
        let mut seen = String::new();
        for (content, outcome) in
            [(TOKEN, "success"), (ROTATED, "unauthorized"), (&format!("{ROTATED}\n{TOKEN}"), "credentials")]
        {
            // In one step: a poll must not read what is only half written.
            std::fs::write(directory.path().join("next"), content).unwrap();
            std::fs::rename(directory.path().join("next"), &file).unwrap();
            running.until_a_poll_ends_with(outcome).await;
            for path in ["/metrics", "/", "/readyz"] {
                seen.push_str(common::request(running.address, Method::GET, path, &[]).await.text());
            }
        }
        let (code, log) = running.signal("TERM");
        assert_eq!(code, Some(0));
        assert!(log.contains("holds 2 lines: expected the secret on one line"), "{log}");
        seen.push_str(&log);
        for secret in [TOKEN, ROTATED, "Bearer"] {
            assert!(!seen.contains(secret), "{secret}:\n{seen}");
        }
    }
}

impl Running {
    async fn metrics(&self) -> Metrics {
        Metrics::parse(common::request(self.address, Method::GET, "/metrics", &[]).await.text())
    }

    /// Waits until the metrics are as they should be.
    async fn until(&self, is_so: impl Fn(&Metrics) -> bool) -> Metrics {
        common::until(async || self.metrics().await, is_so).await
    }

    /// What Linux says of the process under that name.
    fn proc_status(&self, name: &str) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_file_is_read_again_whatever_was_in_its_place() {
    let simulator = simulator(5).await;
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let put_in_place = |name: &str| std::fs::rename(path(name), path("token")).unwrap();
    std::fs::write(path("token"), TOKEN).unwrap();
    let file = format!("--zenlayer.token-file={}", path("token").display());
    let flags = ["--web.listen-address=127.0.0.1:0", "--poll.interval=1s", "--poll.timeout=1s", &file];
    let running = Running::start(&mut on_simulator(&simulator, &flags));
    let polls =
        |metrics: &Metrics, outcome| metrics.value("zenlayer_exporter_polls_total", &[("outcome", outcome)]).unwrap();
    running.until(|metrics| polls(metrics, "success") >= 2.0).await;
    let threads = running.proc_status("Threads");

    // Opening a named pipe waits for a writer. None comes, and each poll finds another pipe.
    for failed in 1..=6 {
        assert!(Command::new("mkfifo").arg(path("pipe")).status().unwrap().success());
        put_in_place("pipe");
        let metrics = running.until(|metrics| polls(metrics, "credentials") >= f64::from(failed)).await;
        assert_eq!(metrics.instances(), held(&simulator), "the last good answer stays");
    }
    let more = running.proc_status("Threads").saturating_sub(threads);
    assert!(more <= 3, "{more} more threads after 6 polls");
    let page = common::request(running.address, Method::GET, "/", &[]).await;
    let says = format!("{} is not a regular file: name the file that holds the secret", path("token").display());
    assert!(page.text().contains(&says), "{}", page.text());

    std::fs::write(path("new"), TOKEN).unwrap();
    put_in_place("new");
    let failed = running.metrics().await;
    running.until(|metrics| polls(metrics, "success") >= polls(&failed, "success") + 3.0).await;
    let (code, _) = running.signal("TERM");
    assert_eq!(code, Some(0));
}

#[test]
fn a_secret_file_that_is_no_regular_file_is_a_bad_setting() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join(".zenlayer/credentials.json");
    std::fs::create_dir(pipe.parent().unwrap()).unwrap();
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let token = |path: &Path| format!("--zenlayer.token-file={}", path.display());
    let says = |path: &Path| format!(" {} is not a regular file: name the file that holds the secret", path.display());
    let profile = format!("{}: `zeno configure` makes it\n", says(&pipe));
    for (args, says) in [
        (token(&pipe), says(&pipe) + "\n"),
        (token(directory.path()), says(directory.path()) + "\n"),
        ("--zenlayer.profile=default".to_owned(), profile),
    ] {
        let output = exporter(&[&args]).env("HOME", directory.path()).output().unwrap();
        assert_eq!(output.status.code(), Some(64));
        let (flag, _) = args.split_once('=').unwrap();
        assert!(text(&output.stderr).contains(flag), "{}", text(&output.stderr));
        assert!(text(&output.stderr).ends_with(&says), "{}", text(&output.stderr));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_share_one_budget_of_memory() {
    const INSTANCES: usize = 8000;
    let simulator = simulator(INSTANCES).await;
    simulator.set(|knobs| {
        knobs.fault = Some(Fault::Padded(15 << 20));
        knobs.fault_of = Some(Action::DescribeInstances);
    });
    let flags = ["--web.listen-address=127.0.0.1:0", "--zenlayer.concurrency=64", "--collector.instance-info"];
    let running = Running::start(&mut on_simulator(&simulator, &flags));
    running.until(|metrics| metrics.count("zenlayer_instance_info") == INSTANCES).await;
    let peak = running.proc_status("VmHWM") / 1024;
    assert!(peak < 90, "{peak} MiB at most, with 8 pages of 15 MiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_one_long_text_takes_little_more_memory_than_its_length() {
    // A parser would quote, escape or copy these.
    let refusal = |length: usize, byte| [&br#"{"code":"NO","message":""#[..], &vec![byte; length]].concat();
    let misplaced = |place: &str| format!(r#"{{"totalCount":1,"{place}":"{}"}}"#, "\u{7f}".repeat(8 << 20));
    for (action, status, body) in [
        (Action::DescribeInstances, 200, misplaced("dataSet").into_bytes()),
        (Action::DescribeInstances, 400, refusal(8 << 20, b'\xff')),
        (Action::DescribeInstancesStatus, 500, refusal(2 << 20, b'\xff')),
    ] {
        let simulator = simulator(20_000).await;
        let beginning = String::from_utf8_lossy(&body[..40]).into_owned();
        simulator.set(|knobs| {
            knobs.fault = Some(Fault::answer(status, body));
            knobs.fault_of = Some(action);
            knobs.fault_from_page = 2;
        });
        let flags = [
            "--web.listen-address=127.0.0.1:0",
            "--zenlayer.concurrency=16",
            "--poll.interval=1s",
            "--collector.instance-info",
            "--collector.instance-info.interval=1s",
        ];
        let running = Running::start(&mut on_simulator(&simulator, &flags));
        let (action, code) = (action.to_string(), if status == 200 { "body".to_owned() } else { status.to_string() });
        let labels = [("action", &*action), ("code", &*code)];
        // The budget holds two at once.
        running.until(|metrics| metrics.value("zenlayer_exporter_api_requests_total", &labels) >= Some(2.0)).await;
        let peak = running.proc_status("VmHWM") / 1024;
        assert!(peak < 90, "{peak} MiB at most, with answers that begin with {beginning}");
    }
}

#[test]
fn a_panic_that_shows_the_settings_shows_no_secret() {
    let key = [("ZENLAYER_ACCESS_KEY_ID", KEY_ID), ("ZENLAYER_ACCESS_KEY_SECRET", PASSWORD)];
    for (variables, secret) in [(&key[..], PASSWORD), (&[("ZENLAYER_TOKEN", TOKEN)], TOKEN)] {
        let config = common::config_of(&[], variables);
        let panicked = std::thread::spawn(move || panic!("{config:?} {config:#?}")).join().unwrap_err();
        let message = panicked.downcast::<String>().unwrap();
        assert!(message.contains("[redacted]") && !message.contains(secret), "{message}");
    }
}

#[test]
fn logs_are_json_where_asked() {
    let output = run(&["--demo", "--once", "--log.format=json"]);
    let lines: Vec<serde_json::Value> =
        text(&output.stderr).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let poll = lines.iter().find(|line| line["message"] == "poll succeeded").unwrap();
    assert_eq!(poll["instances"], 500);
    assert_eq!(poll["pages"], 1);
}
