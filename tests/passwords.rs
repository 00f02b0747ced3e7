//! Basic auth and the rate limit over real sockets.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

mod common;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use std::{fs, io};

use common::web::{basic, hash, hash_at};
use common::{Exporter, Metrics, Reply, config_of, request};
use hyper::Method;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::task::JoinSet;
use tokio::time::Instant;
use zenlayer_exporter::config::ListenAddress;
use zenlayer_exporter::http::probe::healthcheck;

/// An exporter behind a web config without TLS.
struct Guarded {
    exporter: Exporter,
    file: PathBuf,
    _folder: TempDir,
}

impl Guarded {
    async fn start(web_config: &str, flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("web.yml");
        fs::write(&file, web_config).unwrap();
        let flag = format!("--web.config.file={}", file.display());
        let exporter = Exporter::start(config_of(&[&["--demo=5", &*flag], flags].concat(), &[])).await;
        Self { exporter, file, _folder: folder }
    }

    async fn get(&self, path: &str, authorization: &str) -> Reply {
        request(self.exporter.address, Method::GET, path, &[("authorization", authorization)]).await
    }

    async fn status(&self, path: &str, authorization: &str) -> u16 {
        self.get(path, authorization).await.status
    }
}

fn users(users: &[(&str, &str)]) -> String {
    users.iter().fold("basic_auth_users:\n".to_owned(), |text, (user, hash)| format!("{text}  {user}: {hash}\n"))
}

#[tokio::test]
async fn only_a_user_with_the_right_password_is_answered() {
    let guarded = Guarded::start(&users(&[("alice", &hash("in wonder:land", 1)), ("bob", &hash("b", 2))]), &[]).await;
    for path in ["/", "/metrics", "/healthz", "/readyz", "/nothing"] {
        let bare = guarded.exporter.get(path).await;
        assert_eq!(bare.status, 401, "{path}");
        assert_eq!(
            bare.header("www-authenticate"),
            Some("Basic realm=\"zenlayer-exporter\", charset=\"UTF-8\""),
            "{path}"
        );
        assert_eq!(bare.text(), "a user name and password are needed here\n");
    }
    let right = basic("alice", "in wonder:land");
    for _ in 0..2 {
        assert_eq!(guarded.status("/metrics", &right).await, 200, "checked, then remembered");
        assert_eq!(guarded.status("/metrics", &right.replacen("Basic", "bAsIC", 1)).await, 200);
        assert_eq!(guarded.status("/metrics", &basic("bob", "b")).await, 200);
        for wrong in [
            &*basic("alice", "b"),
            &basic("bob", "in wonder:land"),
            &basic("alice", ""),
            &basic("carol", "in wonder:land"),
            &basic("carol", "b"),
            &basic("", ""),
            &right.replacen("Basic", "Bearer", 1),
            "Basic",
            "Basic !",
            "Basic YWxpY2U=",
        ] {
            assert_eq!(guarded.status("/metrics", wrong).await, 401, "{wrong}");
        }
    }
    // Once for each above.
    let expected = [("/metrics", 21.0), ("/healthz", 1.0), ("other", 1.0)];
    let deadline = tokio::time::Instant::now() + common::PATIENCE;
    loop {
        let metrics = Metrics::parse(guarded.get("/metrics", &right).await.text());
        let refused = |path| metrics.value("zenlayer_exporter_http_requests_total", &[("path", path), ("code", "401")]);
        if expected.iter().all(|(path, count)| refused(path) == Some(*count)) {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{}", metrics.text);
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn health_is_open_where_it_is_so_set() {
    let guarded = Guarded::start(&users(&[("alice", &hash("a", 1))]), &["--web.open-health"]).await;
    assert_eq!(guarded.exporter.get("/healthz").await.status, 200);
    assert_ne!(guarded.exporter.get("/readyz").await.status, 401);
    assert_eq!(guarded.exporter.get("/metrics").await.status, 401);
    assert_eq!(guarded.exporter.get("/").await.status, 401);
}

#[tokio::test]
async fn a_health_check_takes_a_challenge_for_a_sign_of_life() {
    let guarded = Guarded::start(&users(&[("alice", &hash("a", 1))]), &[]).await;
    let address = ListenAddress::Host(guarded.exporter.address.ip().to_string(), guarded.exporter.address.port());
    healthcheck(&address).await.unwrap();
}

/// A request from that address of loopback.
async fn status_from(source: [u8; 4], address: SocketAddr, authorization: &str) -> io::Result<String> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((source, 0).into())?;
    let mut stream = socket.connect(address).await?;
    let head = format!("GET /metrics HTTP/1.1\r\nhost: localhost\r\nauthorization: {authorization}\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer[9..]).into_owned())
}

/// What became of guesses.
#[derive(Default)]
struct Guesses {
    all: AtomicUsize,
    checked: AtomicUsize,
}

/// Has that many clients guess passwords, each again and again, until the set is dropped. Returns once they do.
async fn guess(clients: usize, source: [u8; 4], address: SocketAddr) -> (JoinSet<()>, Arc<Guesses>) {
    let (mut guessing, guesses) = (JoinSet::new(), Arc::new(Guesses::default()));
    for client in 0..clients {
        let guesses = Arc::clone(&guesses);
        guessing.spawn(async move {
            for number in 0.. {
                let wrong = basic(["user0", "nobody"][number % 2], &format!("wrong {client} {number}"));
                // Many are broken off or not checked.
                let status = status_from(source, address, &wrong).await;
                guesses.all.fetch_add(1, Ordering::Relaxed);
                if status.is_ok_and(|status| status == "401") {
                    guesses.checked.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
    let deadline = Instant::now() + common::PATIENCE;
    while guesses.all.load(Ordering::Relaxed) < 10 {
        assert!(Instant::now() < deadline, "no guess is answered");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    (guessing, guesses)
}

/// An exporter with that many users, and for each of them what the first login sends.
async fn with_users(count: usize, cost: u32) -> (Guarded, Vec<String>) {
    let logins = (0..count).map(|number| (format!("user{number}"), format!("password {number}")));
    let (hashes, logins): (Vec<_>, Vec<_>) =
        logins.map(|(user, password)| ((user.clone(), hash_at(cost, &password, 1)), basic(&user, &password))).unzip();
    let pairs: Vec<_> = hashes.iter().map(|(user, hash)| (&**user, &**hash)).collect();
    (Guarded::start(&users(&pairs), &[]).await, logins)
}

#[tokio::test(flavor = "multi_thread")]
async fn guesses_from_another_address_do_not_keep_logins_waiting() {
    let (guarded, logins) = with_users(5, 11).await;
    let address = guarded.exporter.address;
    // More than may wait, so that each one that is broken off and tries again closes another: hundreds during one check.
    let (_guessing, guesses) = guess(600, [127, 0, 0, 2], address).await;
    let (begun, before) = (Instant::now(), guesses.checked.load(Ordering::Relaxed));
    for (number, login) in logins.iter().enumerate() {
        let status = status_from([127, 0, 0, 1], address, login).await;
        assert_eq!(status.unwrap(), "200", "login {number}");
    }
    let checked = (guesses.checked.load(Ordering::Relaxed) - before) / logins.len();
    println!("{} logins in {:?}, among {checked} guesses per login", logins.len(), begun.elapsed());
    assert!(checked < 10, "{checked} waiting guesses are checked before a login from another address");
}

#[tokio::test(flavor = "multi_thread")]
async fn guesses_from_the_same_address_do_not_keep_logins_out() {
    let (guarded, logins) = with_users(20, 6).await;
    let address = guarded.exporter.address;
    let (_guessing, _) = guess(300, [127, 0, 0, 1], address).await;
    let begun = Instant::now();
    let logins = logins.iter().map(|login| status_from([127, 0, 0, 1], address, login));
    let statuses: Vec<_> = futures_util::future::join_all(logins).await.into_iter().map(Result::unwrap).collect();
    println!("all logins in {:?}", begun.elapsed());
    assert!(statuses.iter().all(|status| status == "200"), "{statuses:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn guesses_of_clients_that_left_do_not_keep_a_login_out() {
    let (guarded, logins) = with_users(1, 13).await;
    let address = guarded.exporter.address;
    let ask = |authorization: String| async move { status_from([127, 0, 0, 1], address, &authorization).await };
    // As many as are checked at a time, so that the login has to wait.
    let mut occupiers: JoinSet<_> = (0..2).map(|number| ask(basic("user0", &format!("occupier {number}")))).collect();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut login = JoinSet::from_iter([ask(logins[0].clone())]);
    tokio::time::sleep(Duration::from_millis(100)).await;
    for batch in 0..7 {
        let guesses = (0..100).map(|number| {
            let guess = ask(basic("user0", &format!("wrong {batch} {number}")));
            // Long enough to be sent, too short to be answered.
            tokio::time::timeout(Duration::from_millis(30), guess)
        });
        let answered = futures_util::future::join_all(guesses).await.iter().filter(|guess| guess.is_ok()).count();
        assert_eq!(answered, 0, "guesses of batch {batch} are answered");
    }
    assert!(occupiers.try_join_next().is_none(), "the checks are over too soon to show anything");
    assert_eq!(login.join_next().await.unwrap().unwrap().unwrap(), "200");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_is_finished_and_remembered_though_its_client_gave_up() {
    let guarded = Guarded::start(&users(&[("alice", &hash_at(10, "a", 1))]), &[]).await;
    let right = basic("alice", "a");
    let deadline = Instant::now() + common::PATIENCE;
    // Far less than a check takes, in a debug build and in a release build.
    let quick = || {
        tokio::time::timeout(Duration::from_millis(20), status_from([127, 0, 0, 1], guarded.exporter.address, &right))
    };
    assert!(quick().await.is_err(), "the check is over too soon to show anything");
    while quick().await.is_err() {
        assert!(Instant::now() < deadline, "each check is thrown away");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_that_is_repeated_is_checked_once() {
    let guarded = Guarded::start(&users(&[("alice", &hash_at(8, "a", 1))]), &[]).await;
    let wrong = basic("alice", "outdated");
    let begun = Instant::now();
    assert_eq!(guarded.status("/metrics", &wrong).await, 401);
    let check = begun.elapsed();
    let begun = Instant::now();
    for _ in 0..20 {
        assert_eq!(guarded.status("/metrics", &wrong).await, 401);
    }
    assert!(begun.elapsed() < 10 * check, "{:?}, where one check takes {check:?}", begun.elapsed());
}

#[tokio::test]
async fn a_password_of_which_bcrypt_would_compare_a_part_is_refused_with_the_reason() {
    let longest = "x".repeat(72);
    let guarded = Guarded::start(&users(&[("alice", &hash(&longest, 1)), ("bob", &hash("ab", 2))]), &[]).await;
    assert_eq!(guarded.status("/metrics", &basic("alice", &longest)).await, 200);
    let unusable = [("alice", format!("{longest}x")), ("bob", "ab\0ab".to_owned()), ("bob", "ab\0".to_owned())];
    for (user, password) in unusable {
        for user in [user, "nobody"] {
            let reply = guarded.get("/metrics", &basic(user, &password)).await;
            assert_eq!(reply.status, 401, "{user}, {password:?}");
            assert_eq!(reply.text(), "a password may have at most 72 bytes and no NUL: bcrypt ignores what follows\n");
        }
    }
}

#[tokio::test]
async fn only_passwords_that_need_a_check_count_towards_the_rate_limit() {
    let text = format!("{}rate_limit: {{interval: 1h, burst: 2}}\n", users(&[("alice", &hash("a", 1))]));
    let guarded = Guarded::start(&text, &[]).await;
    let right = basic("alice", "a");
    for _ in 0..5 {
        assert_eq!(guarded.exporter.get("/metrics").await.status, 401, "without a password");
    }
    for _ in 0..5 {
        assert_eq!(guarded.status("/metrics", &right).await, 200, "the first of these takes one of two");
    }
    assert_eq!(guarded.status("/metrics", &basic("alice", "b")).await, 401, "and this the other");
    assert_eq!(guarded.status("/metrics", &basic("alice", "c")).await, 429);
    assert_eq!(guarded.status("/metrics", &right).await, 200);
    assert_eq!(guarded.exporter.get("/metrics").await.status, 401);
}

#[tokio::test]
async fn each_client_address_has_a_rate_limit_of_its_own() {
    let limit = "rate_limit: {interval: 1h, burst: 2}\n";
    let guarded = Guarded::start(&format!("{}{limit}", users(&[("alice", &hash("a", 1))])), &[]).await;
    let status = async |source, password| {
        status_from(source, guarded.exporter.address, &basic("alice", password)).await.unwrap()
    };
    let (guesser, scraper) = ([127, 0, 0, 2], [127, 0, 0, 1]);
    for (guess, expected) in [("b", "401"), ("c", "401"), ("d", "429")] {
        assert_eq!(status(guesser, guess).await, expected);
    }
    assert_eq!(status(scraper, "a").await, "200", "its first login");
    assert_eq!(status(guesser, "a").await, "200", "now it is remembered");

    let guarded = Guarded::start(limit, &[]).await;
    let status = async |source| status_from(source, guarded.exporter.address, "none").await.unwrap();
    for expected in ["200", "200", "429"] {
        assert_eq!(status(guesser).await, expected, "without users every request counts");
    }
    assert_eq!(status(scraper).await, "200");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_wrong_passwords_does_not_keep_out_one_that_is_remembered() {
    // Slow enough that those in the storm wait on each other for longer than all the right requests take.
    let guarded = Guarded::start(&users(&[("alice", &hash_at(8, "a", 1))]), &["--web.max-connections=1000"]).await;
    let right = basic("alice", "a");
    assert_eq!(guarded.status("/metrics", &right).await, 200);
    let address = guarded.exporter.address;
    let mut storm = JoinSet::new();
    for number in 0..200 {
        let wrong = basic(["alice", "nobody"][number % 2], &format!("wrong {number}"));
        storm
            .spawn(async move { request(address, Method::GET, "/metrics", &[("authorization", &wrong)]).await.status });
    }
    let first = storm.join_next().await.unwrap().unwrap();
    for _ in 0..20 {
        assert_eq!(guarded.status("/metrics", &right).await, 200);
    }
    assert!(!storm.is_empty(), "the storm was over too soon to show anything");
    let mut statuses = storm.join_all().await;
    statuses.push(first);
    assert!(statuses.iter().all(|status| [401, 503].contains(status)), "{statuses:?}");
    assert!(statuses.contains(&401));
}

#[tokio::test]
async fn who_was_remembered_and_is_gone_is_forgotten() {
    let guarded = Guarded::start(&users(&[("alice", &hash("a", 1)), ("bob", &hash("b", 2))]), &[]).await;
    let (alice, bob) = (basic("alice", "a"), basic("bob", "b"));
    assert_eq!((guarded.status("/", &alice).await, guarded.status("/", &bob).await), (200, 200));
    fs::write(&guarded.file, users(&[("alice", &hash("new", 3))])).unwrap();
    let deadline = tokio::time::Instant::now() + common::PATIENCE;
    while guarded.status("/", &bob).await != 401 {
        assert!(tokio::time::Instant::now() < deadline, "bob is still let in");
    }
    assert_eq!(guarded.status("/", &alice).await, 401, "her old password");
    assert_eq!(guarded.status("/", &basic("alice", "new")).await, 200);
}

#[tokio::test]
async fn no_more_requests_are_answered_than_the_rate_limit_allows() {
    let limit = "rate_limit: {interval: 1h, burst: 3}\n";
    let guarded = Guarded::start(limit, &["--web.open-health"]).await;
    let mut statuses = Vec::new();
    for _ in 0..5 {
        statuses.push(guarded.exporter.get("/nothing").await.status);
    }
    assert_eq!(statuses, [404, 404, 404, 429, 429]);
    assert_eq!(guarded.exporter.get("/healthz").await.status, 200, "a probe is not to pay for what others ask");
    // Other headers, the same limit: what is used up stays so.
    fs::write(&guarded.file, format!("{limit}http_server_config: {{headers: {{X-Frame-Options: deny}}}}\n")).unwrap();
    let deadline = tokio::time::Instant::now() + common::PATIENCE;
    loop {
        let reply = guarded.exporter.get("/nothing").await;
        assert_eq!(reply.status, 429);
        if reply.header("x-frame-options").is_some() {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "the file is not read again");
    }
}
