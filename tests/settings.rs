//! Settings as an operator mistypes them, on the binary: each is used as it was meant, or refused by name.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

mod common;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use clap::{Arg, ArgAction, CommandFactory};
use common::{Metrics, held};
use tempfile::TempDir;
use zenlayer_exporter::config::Flags;
use zenlayer_exporter::model::Service;
use zenlayer_exporter::simulator::{KEY_ID, Knobs, PASSWORD, Simulator, TOKEN};

/// The binary with those arguments and variables, and nothing else of this machine's environment.
fn exporter<'a>(arguments: &[&str], variables: impl IntoIterator<Item = (&'a str, &'a str)>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zenlayer-exporter"));
    command.args(arguments).env_clear().envs(variables).stdin(Stdio::null());
    command
}

fn run(mut command: Command) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = command.output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

/// What is wrong with the settings, line by line.
fn mistakes(arguments: &[&str], variables: &[(&str, &str)]) -> Vec<String> {
    let (code, said) = run(exporter(arguments, variables.iter().copied()));
    assert_eq!(code, Some(64), "{arguments:?} {variables:?}: {said}");
    said.lines().skip(1).map(str::to_owned).collect()
}

/// One poll of a small demo, which any setting can be added to.
const DEMO: [(&str, &str); 2] = [("ZENLAYER_EXPORTER_DEMO", "2"), ("ZENLAYER_EXPORTER_ONCE", "true")];

fn every_flag() -> Vec<Arg> {
    Flags::command().get_arguments().cloned().collect()
}

fn variable_of(flag: &str) -> String {
    format!("ZENLAYER_EXPORTER_{}", flag.to_uppercase().replace(['.', '-'], "_"))
}

/// Values that the flag must refuse.
fn bad_values(arg: &Arg) -> Vec<String> {
    let kind = match arg.get_action() {
        ArgAction::SetTrue => "BOOL".to_owned(),
        _ => arg.get_value_names().unwrap()[0].to_string(),
    };
    let typical: &[&str] = match &*kind {
        "BOOL" => &["disabled", "enable", "2", "-1", "nil", "true false", "trúe"],
        "DURATION" => {
            &["30", "soon", "5 parsecs", "-1s", "0s", "31d", "584542046090y", "99999999999999999999s", "1e9s"]
        }
        "N" => &["many", "-1", "+5", "1.5", "0x10", "1000001", "18446744073709551616", "1,2", "True!"],
        "ADDRESS" => {
            &["10980", ":http", ":65536", "::1:10980:", "http://a:1", "a b:1", ":1,,:2", "[::g]:1", "*:1", ":+1"]
        }
        "PATH" => &[
            "metrics",
            "/",
            "/healthz",
            "/readyz",
            "/sd",
            "/métriques",
            "/a b",
            "/a?b",
            "/a#b",
            "/a%20",
            "//a",
            "/a//b",
            "/../a",
            "/a/.",
            "/a\\b",
            "/a\"",
            "/<a>",
            "/a|b",
            "/^",
            "/`",
            "/{a}",
        ],
        "FILE" => &["/nonexistent/file", "/", "\u{1}"],
        "URL" => &[
            "http//x y",
            "ftp://example.com",
            "https://",
            "/etc",
            "https:///etc",
            ",",
            "a,b",
            "$(id)",
            "'\"",
            "a..b",
            "-1",
            "0",
            "https://[::]",
        ],
        "SERVICE" | "WHICH" | "LEVEL" | "FORMAT" => &["VMs", "info,debug", "1", "true", "INFO!"],
        "DATE" => &["latest", "2023-99-99", "2023-02-30", "2023-3-13", "20230313", "2023-03-13T00:00", "2023/03/13"],
        "ID" => &["a b", "a,b", "a\tb", "a\nb", "a\u{1}b"],
        "NAME" => &["nobody", "-1", "a\nb", "a\u{1}b"],
        "IDS" | "TAGS" => &[",", "a,,b", " , ", "a,", "a\u{1}b"],
        other => panic!("no bad values for {other}"),
    };
    let long = ["x".repeat(100_000), format!("{}:1", "x".repeat(300))];
    typical.iter().map(|&text| text.to_owned()).chain([" \t".to_owned()]).chain(long).collect()
}

#[test]
fn an_empty_variable_is_unset_for_every_flag() {
    for arg in every_flag() {
        let variable = variable_of(arg.get_long().unwrap());
        let variables = [("ZENLAYER_EXPORTER_ONCE", "1"), (&variable, "")];
        let arguments: &[&str] = if variable.ends_with("_ONCE") { &["--once", "--demo=2"] } else { &["--demo=2"] };
        let (code, said) = run(exporter(arguments, variables));
        assert_eq!(code, Some(0), "{variable}: {said}");
    }
    let vendor = [
        "ZENLAYER_ACCESS_KEY_ID",
        "ZENLAYERCLOUD_ACCESS_KEY_PASSWORD",
        "ZENLAYER_ENDPOINT",
        "ZENLAYERCLOUD_DOMAIN",
        "ZENLAYER_PROFILE",
        "ZENLAYER_TOKEN",
        "HTTPS_PROXY",
        "NO_PROXY",
    ];
    assert_eq!(mistakes(&[], &vendor.map(|name| (name, "")))[0], "no credentials: set one of");
}

/// A home directory with a key's password, a token, a profile, certificates and a web config.
fn files() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    common::web::Authority::new().write(folder.path());
    std::fs::create_dir(folder.path().join(".zenlayer")).unwrap();
    for (name, content) in [
        ("secret", TOKEN),
        (".zenlayer/credentials.json", r#"{"default": {"token": "hush"}}"#),
        ("web.yml", "tls_server_config: {cert_file: cert.pem, key_file: key.pem}\n"),
    ] {
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    folder
}

/// A right value of the flag.
fn good_value(arg: &Arg, files: &Path) -> String {
    let file = |name: &str| files.join(name).display().to_string();
    let text = match arg.get_long().unwrap() {
        "once" => "true",
        _ if matches!(arg.get_action(), ArgAction::SetTrue) => "false",
        _ if !arg.get_default_values().is_empty() => arg.get_default_values()[0].to_str().unwrap(),
        "web.config.file" => return file("web.yml"),
        "zenlayer.ca-file" => return file("ca.pem"),
        "zenlayer.access-key-password-file" | "zenlayer.token-file" => return file("secret"),
        "zenlayer.endpoint" => "http://127.0.0.1:1",
        "zenlayer.api-version" => "2023-03-13",
        "zenlayer.profile" => "default",
        "poll.interval" => "5s",
        "demo" => "2",
        "zenlayer.access-key-id" | "zenlayer.instance-ids" | "zenlayer.resource-group-id" => "id-1",
        "collector.instance-info.tags" => "cost center",
        other => panic!("no good value for --{other}"),
    };
    text.to_owned()
}

/// Variables with which a right value of the flag is accepted, and the exit code then.
fn base(flag: &str) -> (Vec<(&'static str, &'static str)>, i32) {
    const ONCE: (&str, &str) = ("ZENLAYER_EXPORTER_ONCE", "true");
    // Nothing listens there: the settings are right, and the poll fails.
    const NOWHERE: (&str, &str) = ("ZENLAYER_ENDPOINT", "http://127.0.0.1:1");
    const BRIEF: (&str, &str) = ("ZENLAYER_EXPORTER_POLL_TIMEOUT", "100ms");
    let account = |more: &[_]| ([&[ONCE, NOWHERE, BRIEF], more].concat(), 1);
    let demo = |more: &[_]| ([&DEMO, more].concat(), 0);
    match flag {
        "zenlayer.endpoint" => account(&KEY),
        "zenlayer.access-key-id" => account(&KEY[1..]),
        "zenlayer.access-key-password-file" => account(&[("ZENLAYER_EXPORTER_ZENLAYER_ACCESS_KEY_ID", KEY_ID)]),
        "zenlayer.token-file" | "zenlayer.profile" => account(&[]),
        "zenlayer.resource-group-id" => demo(&[("ZENLAYER_EXPORTER_ZENLAYER_SERVICE", "zec")]),
        "collector.instance-info.tags" => demo(&[("ZENLAYER_EXPORTER_COLLECTOR_INSTANCE_INFO", "true")]),
        "once" => (vec![DEMO[0]], 0),
        _ => demo(&[]),
    }
}

#[test]
fn no_flag_and_no_variable_takes_a_wrong_value() {
    let files = files();
    for arg in every_flag() {
        let name = arg.get_long().unwrap();
        let (flag, variable) = (format!("--{name}"), variable_of(name));
        let (mut base, accepted) = base(name);
        base.push(("HOME", files.path().to_str().unwrap()));
        let good = good_value(&arg, files.path());
        let (code, said) = run(exporter(&[&format!("{flag}={good}")], base.iter().copied()));
        assert_eq!(code, Some(accepted), "{flag}={good}: {said}");
        for value in bad_values(&arg) {
            let shown: String = value.chars().take(30).collect();
            let by_flag = mistakes(&[&format!("{flag}={value}")], &base).join("\n");
            assert!(by_flag.contains(&flag), "{flag}={shown}: {by_flag}");
            let by_variable = mistakes(&[], &[&base[..], &[(&variable, &value)]].concat()).join("\n");
            assert!(by_variable.contains(&variable), "{variable}={shown}: {by_variable}");
            assert!(by_flag.len() < 2000 && by_variable.len() < 2000, "{flag}={shown}: {by_flag}");
        }
        for empty in [&[&*format!("{flag}=")][..], &[&flag, ""]] {
            let said = mistakes(empty, &base).join("\n");
            let is_switch = matches!(arg.get_action(), ArgAction::SetTrue) && empty.len() == 2;
            let expected =
                if is_switch { "argument 2 belongs to no flag".to_owned() } else { format!("\"\" for {flag}:") };
            assert!(said.contains(&expected), "{empty:?}: {said}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn instance_ids_may_be_one_per_line() {
    let simulator = Simulator::start(Knobs::still(Service::Vm, 9)).await.unwrap();
    let named: BTreeSet<_> = held(&simulator).into_iter().take(4).collect();
    let ids: Vec<_> = named.iter().map(|(id, _)| &**id).collect();
    let endpoint = format!("--zenlayer.endpoint={}", simulator.endpoint());
    for text in [format!("{}\n", ids.join("\n")), ids.join(" "), ids.join(",\r\n"), ids.join("\t")] {
        let variables = KEY.into_iter().chain([("ZENLAYER_EXPORTER_ZENLAYER_INSTANCE_IDS", &*text)]);
        let output = exporter(&["--once", &endpoint], variables).output().unwrap();
        assert_eq!(Metrics::parse(&String::from_utf8(output.stdout).unwrap()).instances(), named, "{text:?}");
    }
}

#[test]
fn every_mistake_has_the_same_form() {
    let variables = [
        ("ZENLAYER_EXPORTER_POLL_INTERVAL", "30"),
        ("ZENLAYER_EXPORTER_ZENLAYER_ALLOW_PLAIN_HTTP", "disabled"),
        ("ZENLAYER_EXPORTER_DEMO", "yes"),
    ];
    assert_eq!(
        mistakes(&["--poll.timeout=1h30", "--healthcheck=perhaps", "--log.level=loud"], &variables),
        [
            "invalid value \"perhaps\" for --healthcheck: expected true or false (or yes or no, on or off, 1 or 0)",
            "invalid value \"disabled\" for --zenlayer.allow-plain-http (from \
             ZENLAYER_EXPORTER_ZENLAYER_ALLOW_PLAIN_HTTP): expected true or false (or yes or no, on or off, 1 or 0)",
            "invalid value \"30\" for --poll.interval (from ZENLAYER_EXPORTER_POLL_INTERVAL): expected a duration such \
             as 30s or 5m",
            "invalid value \"1h30\" for --poll.timeout: expected a duration such as 30s or 5m",
            "invalid value \"loud\" for --log.level: expected error, warn, info, debug or trace",
        ]
    );
}

#[test]
fn every_switch_takes_every_spelling() {
    let switch = "ZENLAYER_EXPORTER_HEALTHCHECK";
    let listen = ("ZENLAYER_EXPORTER_WEB_LISTEN_ADDRESS", "127.0.0.1:1");
    for (values, is_on) in
        [(["true", "TRUE", "Yes", "on", "1", " on\r\n"], true), (["false", "False", "no", "OFF", "0", " no "], false)]
    {
        for value in values {
            let (by_variable, said) = run(exporter(&["--demo=2", "--once"], [(switch, value), listen]));
            assert_eq!(by_variable, Some(if is_on { 64 } else { 0 }), "{value:?}: {said}");
            let (by_flag, _) = run(exporter(&["--demo=2", "--once", &format!("--healthcheck={value}")], [listen]));
            assert_eq!(by_flag, by_variable, "{value:?}");
        }
    }
    let off = exporter(&["--demo=2", "--once", "--healthcheck=false"], [(switch, "true")]);
    assert_eq!(run(off).0, Some(0), "a flag turns off what its variable turns on");
}

#[test]
fn a_demo_is_on_off_or_of_a_size() {
    let instances = |value: &str| {
        let by_variable = exporter(&["--once"], [("ZENLAYER_EXPORTER_DEMO", value)]).output().unwrap();
        Metrics::parse(&String::from_utf8(by_variable.stdout).unwrap()).instances().len()
    };
    for (value, size) in [("1", 500), ("true", 500), ("On", 500), ("YES", 500), ("2", 2), (" 37 ", 37)] {
        assert_eq!(instances(value), size, "{value}");
    }
    for off in ["0", "false", "no", "OFF"] {
        let said = mistakes(&[&format!("--demo={off}")], &[("ZENLAYER_EXPORTER_DEMO", "true")]);
        assert_eq!(said[0], "no credentials: set one of", "{off}");
    }
}

#[test]
fn a_flag_that_is_none_gets_the_hint_that_fits() {
    let secrets = "secrets are never flags: set ZENLAYER_ACCESS_KEY_SECRET or ZENLAYER_TOKEN, or name a file with \
                   --zenlayer.access-key-password-file or --zenlayer.token-file";
    for (argument, expected) in [
        (
            "-web.listen-address=:1",
            "unknown flag -web.listen-address: flags begin with two dashes, as in --web.listen-address",
        ),
        ("-once", "unknown flag -once: flags begin with two dashes, as in --once"),
        ("\u{2013}once", "unknown flag \u{2013}once: flags begin with two dashes, as in --once"),
        ("-web.listen-adress=:1", "unknown flag -web.listen-adress: did you mean --web.listen-address?"),
        ("--poll-interval=1s", "unknown flag --poll-interval: did you mean --poll.interval?"),
        ("--Poll.Interval=1s", "unknown flag --Poll.Interval: did you mean --poll.interval?"),
        ("--zenlayer.token-flie=/x", "unknown flag --zenlayer.token-flie: did you mean --zenlayer.token-file?"),
        ("--frobnicate", "unknown flag --frobnicate: see --help for the list"),
        ("--zenlayer.access-key-secret=hush", &format!("unknown flag --zenlayer.access-key-secret: {secrets}")),
        ("--zenlayer.access-key-secrt=hush", &format!("unknown flag --zenlayer.access-key-secrt: {secrets}")),
        ("--zenlayer.access-key-password=hush", &format!("unknown flag --zenlayer.access-key-password: {secrets}")),
        ("--zenlayer.token=hush", &format!("unknown flag --zenlayer.token: {secrets}")),
        ("--password=hush", &format!("unknown flag --password: {secrets}")),
        ("-phush", "argument 1 is an unknown flag: flags begin with two dashes, as in --poll.interval=30s"),
        ("hush", "argument 1 belongs to no flag: expected flags such as --poll.interval=30s"),
    ] {
        assert_eq!(mistakes(&[argument], &DEMO), [expected]);
    }
    let said = mistakes(&["--zenlayer.token", "hush", "--poll.interval=1", "--once", "hush", "--poll.timeout"], &DEMO);
    assert_eq!(
        said,
        [
            &*format!("unknown flag --zenlayer.token: {secrets}"),
            "argument 5 belongs to no flag: expected flags such as --poll.interval=30s",
            "--poll.timeout needs a value: expected --poll.timeout=DURATION",
            "invalid value \"1\" for --poll.interval: expected a duration such as 30s or 5m",
        ]
    );
    assert_eq!(
        mistakes(&["--poll.interval=1s", "--poll.interval", "2s"], &DEMO),
        ["--poll.interval is given more than once: leave one out"]
    );
}

#[test]
fn arguments_and_variables_that_are_not_utf_8_are_named() {
    let broken = || OsString::from_vec(vec![b'a', 0xff]);
    let mut by_flag = exporter(&[], DEMO);
    by_flag.arg(OsString::from_vec(b"--log.level=inf\xff".to_vec()));
    let (code, said) = run(by_flag);
    assert_eq!((code, said.lines().nth(1)), (Some(64), Some("the value of --log.level is not valid UTF-8")));
    let ours = every_flag().into_iter().map(|arg| variable_of(arg.get_long().unwrap()));
    for variable in ours {
        let mut command = exporter(&[], DEMO);
        let (code, said) = run({
            command.env(&variable, broken());
            command
        });
        assert_eq!(code, Some(64), "{variable}");
        let expected = format!("{variable} is not valid UTF-8: set it again, or unset it");
        assert!(said.lines().any(|line| line == expected), "{variable}: {said}");
    }
    let key = [("ZENLAYER_ACCESS_KEY_ID", KEY_ID), ("ZENLAYER_ACCESS_KEY_SECRET", PASSWORD)];
    for variable in
        ["ZENLAYER_TOKEN", "ZENLAYER_ACCESS_KEY_SECRET", "ZENLAYER_ENDPOINT", "ZENLAYERCLOUD_DOMAIN", "HTTPS_PROXY"]
    {
        let mut command = exporter(&["--once"], if variable == "ZENLAYER_TOKEN" { vec![] } else { key.to_vec() });
        let (code, said) = run({
            command.env(variable, broken());
            command
        });
        assert_eq!(code, Some(64), "{variable}");
        let expected = format!("{variable} is not valid UTF-8: set it again, or unset it");
        assert_eq!(said.lines().skip(1).collect::<Vec<_>>(), [expected]);
    }
}

#[test]
fn a_misspelt_variable_is_warned_of_and_a_service_link_is_not() {
    let misspelt = ("ZENLAYER_EXPORTER_POLL_INTERVALL", "10s");
    let link = ("ZENLAYER_EXPORTER_PORT_10980_TCP_ADDR", "10.0.0.1");
    let (code, log) = run(exporter(&[], DEMO.into_iter().chain([misspelt, link])));
    assert_eq!(code, Some(0), "{log}");
    let warning = "ZENLAYER_EXPORTER_POLL_INTERVALL is not a setting: did you mean ZENLAYER_EXPORTER_POLL_INTERVAL?";
    let warnings: Vec<_> = log.lines().filter(|line| line.contains("level=warn")).collect();
    assert_eq!(warnings.len(), 1, "{log}");
    assert!(warnings[0].contains(warning), "{log}");
    let said = mistakes(&["--poll.interval=1"], &[DEMO[0], misspelt]);
    assert_eq!(said[1..], [format!("warning: {warning}")], "it may explain a mistake");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_endpoint_is_the_first_that_is_set() {
    let simulator = Simulator::start(Knobs::still(Service::Vm, 7)).await.unwrap();
    let (right, wrong) = (simulator.endpoint().to_string(), "http://127.0.0.1:1");
    let names = ["ZENLAYER_EXPORTER_ZENLAYER_ENDPOINT", "ZENLAYER_ENDPOINT", "ZENLAYERCLOUD_DOMAIN"];
    let key = [("ZENLAYERCLOUD_ACCESS_KEY_ID", KEY_ID), ("ZENLAYERCLOUD_ACCESS_KEY_PASSWORD", PASSWORD)];
    for first in 0..names.len() {
        let later = names[first + 1..].iter().map(|&name| (name, wrong));
        let (code, log) = run(exporter(&["--once"], key.into_iter().chain([(names[first], &*right)]).chain(later)));
        assert_eq!(code, Some(0), "{}: {log}", names[first]);
        let warning = "ZENLAYERCLOUD_DOMAIN is ignored, since ZENLAYER_ENDPOINT is set to another value: unset one";
        assert_eq!(log.contains(warning), first == 1, "{log}");
    }
    let flag = format!("--zenlayer.endpoint={right}");
    assert_eq!(run(exporter(&["--once", &flag], key.into_iter().chain(names.map(|name| (name, wrong))))).0, Some(0));
    for (value, expected) in [
        (
            "ftp://example.com",
            "invalid value \"ftp://example.com\" for ZENLAYERCLOUD_DOMAIN: expected https or http as the scheme",
        ),
        (
            "example.com/api",
            "invalid value \"example.com/api\" for ZENLAYERCLOUD_DOMAIN: expected scheme, host and port, and nothing after \
             them",
        ),
        ("user:hush@example.com:x", "ZENLAYERCLOUD_DOMAIN has a user name or password in it: leave them out"),
    ] {
        let variables = [&key[..], &[("ZENLAYERCLOUD_DOMAIN", value)]].concat();
        assert_eq!(mistakes(&["--once"], &variables), [expected]);
    }
    // A bare domain means https: the simulator answers in plain HTTP.
    let bare = right.trim_start_matches("http://").trim_end_matches('/');
    let (code, log) = run(exporter(&["--once"], key.into_iter().chain([("ZENLAYERCLOUD_DOMAIN", bare)])));
    assert!(code == Some(1) && log.contains("does not speak TLS"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_loses_what_editors_add_and_is_refused_for_the_rest() {
    let simulator = Simulator::start(Knobs::still(Service::Vm, 7)).await.unwrap();
    let endpoint = format!("--zenlayer.endpoint={}", simulator.endpoint());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    let flag = format!("--zenlayer.token-file={}", file.display());
    for text in [format!("{TOKEN}\r\n"), format!("\u{feff}{TOKEN}"), format!(" {TOKEN}\t\n\n")] {
        std::fs::write(&file, &text).unwrap();
        let (by_file, log) = run(exporter(&["--once", &endpoint, &flag], []));
        assert_eq!(by_file, Some(0), "{text:?}: {log}");
        let (by_variable, log) = run(exporter(&["--once", &endpoint], [("ZENLAYER_TOKEN", &*text)]));
        assert_eq!(by_variable, Some(0), "{text:?}: {log}");
    }
    let utf16: Vec<u8> = "\u{feff}hush".encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (bytes, flaw) in [
        (&b" \r\n"[..], "is empty: expected the secret"),
        (b"hush\nhush\n", "holds 2 lines: expected the secret on one line, and nothing else"),
        (b"hush\xff", "is not valid UTF-8: save it as UTF-8"),
        (b"hu\0sh", "holds a NUL character: expected the secret in plain ASCII"),
        (b"hu sh", "holds a space or a character that is not plain ASCII: expected the secret, and nothing else"),
        (&utf16, "is UTF-16: save it as UTF-8"),
        (&b"h".repeat((64 << 10) + 1), "is longer than 64 KiB: name the file that holds the secret"),
    ] {
        std::fs::write(&file, bytes).unwrap();
        let expected = format!("--zenlayer.token-file cannot be used: {} {flaw}", file.display());
        assert_eq!(mistakes(&["--once", &flag], &[]), [expected]);
    }
    let said = mistakes(&["--once"], &[("ZENLAYER_TOKEN", "hush\nhush")]);
    assert_eq!(said, ["ZENLAYER_TOKEN holds 2 lines: expected the secret on one line, and nothing else"]);
    assert_eq!(
        mistakes(&["--once"], &[("ZENLAYER_ACCESS_KEY_ID", "id"), ("ZENLAYER_ACCESS_KEY_SECRET", " ")]),
        ["ZENLAYER_ACCESS_KEY_SECRET holds only white space: set a value, or unset it"]
    );
}

#[test]
fn a_secret_in_place_of_its_file_is_not_shown() {
    let folder = tempfile::tempdir().unwrap();
    let existing = folder.path().display();
    let nowhere = "there is no such file or directory below the working directory".to_owned();
    let long = "hush".repeat(20_000);
    for (value, found) in [
        ("hush", nowhere.clone()),
        ("hush/+hush==", nowhere.clone()),
        (&*long, nowhere),
        ("/hush", "the path exists only as far as /".to_owned()),
        (&*format!("{existing}/hush"), format!("the path exists only as far as {existing}")),
        (&*format!("{existing}/hush/hush"), format!("the path exists only as far as {existing}")),
    ] {
        for flag in ["zenlayer.token-file", "zenlayer.access-key-password-file"] {
            let variable = variable_of(flag);
            let expected = format!("cannot be used: expected the path of a file, not the secret itself; {found}: ");
            let id = ("ZENLAYER_EXPORTER_ZENLAYER_ACCESS_KEY_ID", KEY_ID);
            let id = if flag == "zenlayer.token-file" { None } else { Some(id) };
            let by_flag = exporter(&["--once", &format!("--{flag}={value}")], id);
            let by_variable = exporter(&["--once"], id.into_iter().chain([(&*variable, value)]));
            for (command, setting) in
                [(by_flag, format!("--{flag} ")), (by_variable, format!("--{flag} (from {variable}) "))]
            {
                let (code, said) = run(command);
                assert_eq!(code, Some(64), "{said}");
                assert!(said.contains(&format!("{setting}{expected}")), "{said}");
                assert!(!said.contains("hush"), "{said}");
            }
        }
    }
}

#[test]
fn the_content_of_a_file_in_place_of_its_path_is_not_shown() {
    let content = "-----BEGIN PRIVATE KEY-----\nhush\n-----END PRIVATE KEY-----\n";
    let expected = "cannot be used: expected the path of a file, not its content";
    for flag in ["--zenlayer.ca-file", "--web.config.file"] {
        assert_eq!(mistakes(&[&format!("{flag}={content}")], &DEMO), [format!("{flag} {expected}")]);
    }
    let folder = tempfile::tempdir().unwrap();
    let (web_config, cert) = (folder.path().join("web.yml"), folder.path().join("cert"));
    std::fs::write(&cert, "").unwrap();
    let indented = content.replace('\n', "\n    ");
    std::fs::write(&web_config, format!("tls_server_config:\n  cert_file: cert\n  key_file: |\n    {indented}\n"))
        .unwrap();
    let said = mistakes(&[&format!("--web.config.file={}", web_config.display())], &DEMO).join("\n");
    assert!(said.contains("tls_server_config.key_file: expected the path of a file, not its content"), "{said}");
    assert!(!said.contains("hush"), "{said}");
}

const KEY: [(&str, &str); 2] = [("ZENLAYER_ACCESS_KEY_ID", KEY_ID), ("ZENLAYER_ACCESS_KEY_SECRET", PASSWORD)];
const PLAIN: [&str; 3] = ["--once", "--zenlayer.allow-plain-http", "--zenlayer.endpoint=http://api.example.invalid"];

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_is_used_as_it_was_meant_and_logged_without_its_password() {
    // The simulator stands in for the proxy: it answers whatever host it is asked for.
    let simulator = Simulator::start(Knobs::still(Service::Vm, 42)).await.unwrap();
    let address = simulator.endpoint().as_str().trim_start_matches("http://").trim_end_matches('/').to_owned();
    let (other, user) = ("http://127.0.0.1:1", format!("http://user:hush@{address}"));
    for (name, value) in [
        ("HTTP_PROXY", format!("http://{address}\r")),
        ("http_proxy", format!(" http://{address}/ ")),
        ("ALL_PROXY", address.clone()),
        ("all_proxy", format!("HTTP://{address}")),
        ("HTTP_PROXY", user),
    ] {
        let variables = [("HTTPS_PROXY", "socks5://unused"), ("no_proxy", "example.org,.invalid.org"), (name, &*value)];
        let arguments = [&PLAIN[..], &["--log.level=trace"]].concat();
        let output = exporter(&arguments, KEY.into_iter().chain(variables)).output().unwrap();
        let log = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{name}={value:?}: {log}");
        assert_eq!(Metrics::parse(&String::from_utf8(output.stdout).unwrap()).instances(), held(&simulator));
        assert!(log.contains(&format!("proxy=http://{address}\n")), "{log}");
        assert!(!log.contains("hush"), "{log}");
    }
    let proxy = format!("http://{address}");
    let both = [("HTTP_PROXY", &*proxy), ("http_proxy", other), ("ALL_PROXY", other)];
    let (code, log) = run(exporter(&PLAIN, KEY.into_iter().chain(both)));
    assert_eq!(code, Some(0), "upper case comes first, and the scheme's own before ALL_PROXY: {log}");
    assert!(log.contains("http_proxy is ignored, since HTTP_PROXY is set to another value"), "{log}");
    for bypass in ["*", "api.example.invalid:80", "*.example.invalid", ".INVALID", "other.example, example.invalid"] {
        let (code, log) = run(exporter(&PLAIN, KEY.into_iter().chain([("HTTP_PROXY", &*proxy), ("NO_PROXY", bypass)])));
        assert!(code == Some(1) && log.contains("no connection to"), "{bypass}: {log}");
    }
}

#[test]
fn a_health_check_warns_of_variables_that_it_does_not_know() {
    let mistyped = [("ZENLAYER_EXPORTER_WEB_LISTEN_ADRESS", "127.0.0.1:2")];
    let (code, said) = run(exporter(&["--healthcheck", "--web.listen-address=127.0.0.1:1"], mistyped));
    assert_eq!(code, Some(1));
    let first = said.lines().next().unwrap();
    assert!(first.starts_with("zenlayer-exporter: warning: ZENLAYER_EXPORTER_WEB_LISTEN_ADRESS "), "{said}");
    assert!(first.ends_with("did you mean ZENLAYER_EXPORTER_WEB_LISTEN_ADDRESS?"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_is_not_used_is_logged_with_the_reason() {
    let simulator = Simulator::start(Knobs::still(Service::Vm, 5)).await.unwrap();
    let loopback = format!("--zenlayer.endpoint={}", simulator.endpoint());
    // Nobody has that name: what becomes of the request does not matter.
    let excepted = "--zenlayer.endpoint=https://api.invalid".to_owned();
    for (endpoint, name, reason) in [
        (loopback, "HTTP_PROXY", "the endpoint is on loopback"),
        (excepted, "HTTPS_PROXY", "NO_PROXY covers the endpoint"),
    ] {
        let variables = [(name, "http://user:hush@proxy.example:3128"), ("NO_PROXY", "*.invalid")];
        let arguments = ["--once", "--poll.timeout=1s", &endpoint];
        let (_, log) = run(exporter(&arguments, KEY.into_iter().chain(variables)));
        assert!(log.contains(&format!("requests to the API do not use {name}: {reason}")), "{log}");
        assert!(!log.contains("hush"), "{log}");
    }
}

#[test]
fn a_proxy_that_cannot_be_used_is_refused_without_its_password() {
    let expected = "expected an http or https proxy such as http://proxy.example.com:3128";
    for (value, wrong) in [
        ("socks5://user:hush@proxy:1080", "has the scheme \"socks5\", which is not supported"),
        ("ftp://user:hush@proxy", "has the scheme \"ftp\", which is not supported"),
        ("http://user:hush@pro xy:3128", "has a space, a control character or three slashes in it"),
        ("http://user:hush@pro\nxy:3128", "has a space, a control character or three slashes in it"),
        ("http://user:hush@proxy:65536", "is not a URL"),
        ("http://user:hush@proxy:0", "has no usable host and port"),
        (&format!("http://user:hush@{}", "x".repeat(254)), "has no usable host and port"),
        ("http://user:hush@", "is not a URL"),
        ("http://", "is not a URL"),
        ("user:hush@proxy:port", "is not a URL"),
        ("foo:bar:baz", "is not a URL"),
        ("http://user:hush@proxy:3128/path", "has more than scheme, user, password, host and port"),
        ("mailto:hush", "is not a URL"),
    ] {
        for name in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
            let variables = [&KEY[..], &[(name, value), ("HTTP_PROXY", "socks://unused")]].concat();
            assert_eq!(mistakes(&["--once"], &variables), [format!("{name} {wrong}: {expected}")], "{value}");
        }
    }
    let proxy = ("HTTPS_PROXY", "http://127.0.0.1:1");
    for entry in ["http://x", "10.0.*", "192.168", "10.0.0.0/33", "a:b", "[::1", "<local>", "a:0", "a:+1", "*:80"] {
        let said = mistakes(&["--once"], &[&KEY[..], &[proxy, ("NO_PROXY", entry)]].concat());
        assert!(said[0].starts_with(&format!("invalid entry {entry:?} in NO_PROXY: expected ")), "{said:?}");
    }
}

#[test]
fn an_https_request_reaches_its_proxy_with_the_password_decoded() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = format!("http://us%40er:p%3A%C3%A4ss@{}", listener.local_addr().unwrap());
    let asked = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let lines = BufReader::new(&stream).lines().map(Result::unwrap).take_while(|line| !line.is_empty());
        let head: Vec<_> = lines.collect();
        (&stream).write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n").unwrap();
        head
    });
    let arguments = ["--once", "--zenlayer.endpoint=api.example.invalid", "--poll.timeout=1s"];
    let (code, log) = run(exporter(&arguments, KEY.into_iter().chain([("HTTPS_PROXY", &*proxy)])));
    let head = asked.join().unwrap();
    assert_eq!(head[0], "CONNECT api.example.invalid:443 HTTP/1.1");
    let authorization = common::web::basic("us@er", "p:äss").to_lowercase();
    let sent = head.iter().map(|line| line.to_lowercase()).find(|line| line.starts_with("proxy-authorization"));
    assert_eq!(sent, Some(format!("proxy-authorization: {authorization}")));
    assert_eq!(code, Some(1));
    assert!(!log.contains("p%3A") && !log.contains("us%40er"), "{log}");
}
