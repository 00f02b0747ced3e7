//! Clients that do what none should, by the hundred, while a scrape each 100 ms has to succeed.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

mod common;

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use common::web::{Authority, Client};
use common::{PATIENCE, request};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Mutex, MutexGuard};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use zenlayer_exporter::model::Service;
use zenlayer_exporter::simulator::{KEY_ID, Knobs, PASSWORD, Simulator};

/// How long the rude ones go on: longer than a head may take.
const RUDE: Duration = Duration::from_secs(8);
/// Between two tries of one of them.
const PAUSE: Duration = Duration::from_secs(1);
const INSTANCES: usize = 2000;
/// The default of `--web.max-connections`.
const PLACES: usize = 256;
/// New connections per second in a burst, and how many of them a busy machine has to reach.
const BURST: u32 = 2000;
const SLOWEST_BURST: u32 = BURST / 10;
/// What the test itself opens at a time, and the exporter has to open less.
const FILES: usize = 3500;
/// What the rude may cost, more than the polite: buffers of their connections, and what a debug build wastes.
const SLACK_KIB: usize = 32 << 10;
/// What connections without a request may take, whatever was sent on them: far less than a container has.
const PENDING_KIB: usize = 64 << 10;
/// The same for incomplete TLS records, of which the exporter reads no more than a `ClientHello`.
const RECORDS_KIB: usize = 40 << 10;
/// The usual limit of open files, here of the exporter alone.
const FEW_FILES: usize = 1024;
/// Of a TLS record with 16,000 bytes, all but the last.
const RECORD: [u8; 16_004] = {
    let mut record = [0; 16_004];
    let (head, _) = record.split_at_mut(9);
    head.copy_from_slice(&[22, 3, 1, 0x3e, 0x80, 1, 0, 0x3e, 0x7c]);
    record
};
const EXPORTER: &str = env!("CARGO_BIN_EXE_zenlayer-exporter");
const SCRAPE: &str = "GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n";
/// Connections that the rude have opened, and those of them on which a TLS handshake succeeded. One test runs at a time.
static OPENED: AtomicUsize = AtomicUsize::new(0);
static HANDSHAKES: AtomicUsize = AtomicUsize::new(0);
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The binary, as it is when its memory is measured; killed when dropped.
struct Running {
    child: Child,
    /// Open for as long as it may write there.
    _stderr: BufReader<ChildStderr>,
    address: SocketAddr,
    /// Of its web config.
    folder: Option<TempDir>,
}

impl Running {
    fn start(simulator: &Simulator, flags: &[&str]) -> Self {
        Self::spawn(Command::new(EXPORTER), simulator, flags)
    }

    /// Starts one that can open few files, whatever it does.
    fn start_with_few_files(simulator: &Simulator) -> Self {
        let mut shell = Command::new("/bin/sh");
        // Both the soft and the hard limit.
        shell.args(["-c", &format!("ulimit -n {FEW_FILES}; exec \"$0\" \"$@\""), EXPORTER]);
        Self::spawn(shell, simulator, &[])
    }

    fn spawn(mut command: Command, simulator: &Simulator, flags: &[&str]) -> Self {
        let mut child = command
            .args(["--web.listen-address=127.0.0.1:0", "--poll.interval=1s"])
            .arg(format!("--zenlayer.endpoint={}", simulator.endpoint()))
            .args(flags)
            .env_clear()
            .env("ZENLAYER_ACCESS_KEY_ID", KEY_ID)
            .env("ZENLAYER_ACCESS_KEY_SECRET", PASSWORD)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        let address = loop {
            line.clear();
            assert!(stderr.read_line(&mut line).unwrap() > 0, "it ended early");
            if let Some((_, rest)) = line.split_once("message=listening address=") {
                break rest.split(' ').next().unwrap().parse().unwrap();
            }
        };
        Self { child, _stderr: stderr, address, folder: None }
    }

    /// The most memory it ever had, in KiB.
    fn peak(&self) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        peak.split_whitespace().next().unwrap().parse().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until no other test runs here: each needs the machine for itself, and many files.
async fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::const_new(());
    let limits = fs::read_to_string("/proc/self/limits").unwrap();
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let files = files.split_whitespace().next().unwrap().parse().unwrap_or(usize::MAX);
    assert!(files >= FILES, "this test opens {FILES} files, and {files} are allowed: raise it with ulimit -n {FILES}");
    let alone = ALONE.lock().await;
    OPENED.store(0, Ordering::Relaxed);
    HANDSHAKES.store(0, Ordering::Relaxed);
    alone
}

async fn open(address: SocketAddr) -> io::Result<TcpStream> {
    open_from([127, 0, 0, 1], address).await
}

async fn open_from(source: [u8; 4], address: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((source, 0).into())?;
    let stream = socket.connect(address).await?;
    OPENED.fetch_add(1, Ordering::Relaxed);
    Ok(stream)
}

async fn connect(connector: &TlsConnector, address: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from("localhost").unwrap();
    let stream = connector.connect(name, open(address).await?).await?;
    HANDSHAKES.fetch_add(1, Ordering::Relaxed);
    Ok(stream)
}

async fn ask(address: SocketAddr, text: &str) -> io::Result<TcpStream> {
    let mut stream = open(address).await?;
    stream.write_all(text.as_bytes()).await?;
    Ok(stream)
}

async fn until_closed(mut stream: impl AsyncRead + Unpin) -> io::Result<()> {
    tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.map(|_| ())
}

/// Writes the same until the other side has enough.
async fn flood(mut stream: impl AsyncWrite + Unpin, bytes: &[u8], times: usize) -> io::Result<()> {
    for _ in 0..times {
        stream.write_all(bytes).await?;
    }
    stream.flush().await
}

async fn says_nothing(address: SocketAddr) -> io::Result<()> {
    until_closed(open(address).await?).await
}

async fn idles_after_a_request(address: SocketAddr) -> io::Result<()> {
    until_closed(ask(address, "GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n").await?).await
}

/// Opens connections from that address at a steady rate, each for half a second, and sends the same on each.
async fn bursts(source: [u8; 4], address: SocketAddr, bytes: &'static [u8]) {
    let begun = Instant::now();
    let mut every = tokio::time::interval(Duration::from_millis(10));
    let mut held = std::collections::VecDeque::new();
    let mut opened = 0;
    while begun.elapsed() < RUDE {
        every.tick().await;
        let more = (0..BURST / 100).map(|_| async move {
            let mut stream = open_from(source, address).await?;
            stream.write_all(bytes).await.map(|()| stream)
        });
        let more = futures_util::future::join_all(more).await;
        opened += more.iter().flatten().count();
        held.push_back(more);
        if held.len() > 50 {
            held.pop_front();
        }
    }
    let rate = opened as u64 / begun.elapsed().as_secs();
    println!("a burst of {rate} connections per second");
    assert!(rate >= SLOWEST_BURST.into(), "the burst is too slow to show anything: {rate} connections per second");
}

async fn sends_its_head_slowly(address: SocketAddr) -> io::Result<()> {
    let mut stream = ask(address, "GET /metrics HTTP/1.1\r\nx: ").await?;
    loop {
        stream.write_all(b"x").await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn sends_ten_megabytes_of_head(address: SocketAddr) -> io::Result<()> {
    let stream = ask(address, "GET /metrics HTTP/1.1\r\nx: ").await?;
    flood(stream, &[b'x'; 10_000], 1000).await
}

async fn sends_a_body(address: SocketAddr) -> io::Result<()> {
    let stream = ask(address, "GET /metrics HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000000\r\n\r\n").await?;
    flood(stream, &[b'x'; 10_000], 100_000).await
}

async fn sends_chunks_without_end(address: SocketAddr) -> io::Result<()> {
    let stream = ask(address, "GET /metrics HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n").await?;
    flood(stream, b"1\r\nx\r\n", usize::MAX).await
}

async fn asks_again_and_again_at_once(address: SocketAddr) -> io::Result<()> {
    until_closed(ask(address, &"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n".repeat(1000)).await?).await
}

async fn speaks_http2_unasked(address: SocketAddr) -> io::Result<()> {
    let mut stream = open(address).await?;
    stream.write_all(HTTP2).await?;
    stream.write_all(&frame(4, 0, 0, &[])).await?;
    until_closed(stream).await
}

async fn sends_garbage(address: SocketAddr) -> io::Result<()> {
    let mut stream = open(address).await?;
    let garbage: Vec<u8> = (0..100_000).map(|_| fastrand::u8(..)).collect();
    stream.write_all(&garbage).await?;
    until_closed(stream).await
}

async fn closes_its_half(address: SocketAddr) -> io::Result<()> {
    for text in ["", "GET /metrics HT", SCRAPE] {
        let mut stream = ask(address, text).await?;
        stream.shutdown().await?;
        until_closed(stream).await?;
    }
    Ok(())
}

/// Asks for more than the sockets' buffers hold, and takes none of it.
async fn never_reads(address: SocketAddr) -> io::Result<()> {
    let _stream = ask(address, &SCRAPE.repeat(200)).await?;
    std::future::pending().await
}

async fn reads_a_byte_a_second(address: SocketAddr) -> io::Result<()> {
    let mut stream = ask(address, &SCRAPE.repeat(200)).await?;
    loop {
        stream.read_u8().await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn never_reads_over_tls(connector: &TlsConnector, address: SocketAddr) -> io::Result<()> {
    let mut stream = connect(connector, address).await?;
    stream.write_all(SCRAPE.repeat(200).as_bytes()).await?;
    std::future::pending().await
}

/// Sends that many bytes of a TLS record that has more.
async fn begins_a_handshake(length: usize, address: SocketAddr) -> io::Result<()> {
    let mut stream = open(address).await?;
    stream.write_all(&RECORD[..length]).await?;
    until_closed(stream).await
}

async fn begins_a_head_over_tls(connector: &TlsConnector, address: SocketAddr) -> io::Result<()> {
    let mut stream = connect(connector, address).await?;
    stream.write_all(format!("GET /metrics HTTP/1.1\r\nx: {}", "x".repeat(15_000)).as_bytes()).await?;
    stream.flush().await?;
    until_closed(stream).await
}

/// A frame of HTTP/2 (RFC 9113, section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// `GET https://localhost/` as HPACK has it.
const GET: &[u8] = b"\x82\x84\x87\x41\x09localhost";

/// Over TLS, where HTTP/2 is agreed on.
async fn http2(
    connector: &TlsConnector,
    address: SocketAddr,
) -> io::Result<impl AsyncRead + AsyncWrite + Unpin + use<>> {
    let mut stream = connect(connector, address).await?;
    stream.write_all(HTTP2).await?;
    stream.write_all(&frame(4, 0, 0, &[])).await?;
    Ok(stream)
}

async fn idles_over_http2(connector: &TlsConnector, address: SocketAddr) -> io::Result<()> {
    until_closed(http2(connector, address).await?).await
}

async fn never_ends_its_headers(connector: &TlsConnector, address: SocketAddr) -> io::Result<()> {
    let mut stream = http2(connector, address).await?;
    stream.write_all(&frame(1, 1, 1, GET)).await?;
    // A header that is not indexed, of 100 bytes, in one CONTINUATION after the other.
    let header = [&b"\x00\x01x\x64"[..], &[b'x'; 100]].concat();
    flood(stream, &frame(9, 0, 1, &header.repeat(100)), 1000).await
}

/// Sends many headers, though not too many, and not their end.
async fn begins_a_header_block(connector: &TlsConnector, address: SocketAddr) -> io::Result<()> {
    let mut stream = http2(connector, address).await?;
    let headers: Vec<_> =
        (0..400).flat_map(|number| [&b"\x00\x05x"[..], format!("{number:04}").as_bytes(), b"\x01x"].concat()).collect();
    stream.write_all(&frame(1, 1, 1, &[GET, &headers[..]].concat())).await?;
    stream.flush().await?;
    until_closed(stream).await
}

async fn resets_what_it_asked(connector: &TlsConnector, address: SocketAddr) -> io::Result<()> {
    let mut stream = http2(connector, address).await?;
    for number in (1..20_000).step_by(2) {
        let asked = frame(1, 5, number, GET);
        stream.write_all(&[asked, frame(3, 0, number, &[0, 0, 0, 8])].concat()).await?;
    }
    stream.flush().await
}

/// Not all at once: so many handshakes would keep a small machine busy for seconds.
async fn at_some_time(act: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    tokio::time::sleep(Duration::from_millis(fastrand::u64(..3000))).await;
    act.await
}

/// Has that many clients be rude, each again and again.
fn crowd<F>(rude: &mut JoinSet<()>, count: usize, until: Instant, act: impl Fn() -> F + Clone + Send + Sync + 'static)
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    for _ in 0..count {
        let act = act.clone();
        rude.spawn(async move {
            // How each is got rid of is not the question here: by an answer, an end or a reset.
            let again = async {
                loop {
                    let _ = act().await;
                    tokio::time::sleep(PAUSE).await;
                }
            };
            let _: Result<(), _> = tokio::time::timeout_at(until, again).await;
        });
    }
}

fn is_whole(text: &str) -> bool {
    text.matches("\nzenlayer_instance_status{").count() == INSTANCES
}

async fn scrape(address: SocketAddr) -> Result<(), String> {
    let reply = request(address, Method::GET, "/metrics", &[]).await;
    let whole = reply.status == 200 && is_whole(reply.text());
    whole.then_some(()).ok_or_else(|| format!("{}: {}", reply.status, reply.text()))
}

async fn until_ready<F: Future<Output = Result<(), String>>>(scrape: impl Fn() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = scrape().await {
        assert!(Instant::now() < deadline, "it is never ready: {error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Scrapes each 100 ms for as long as the rude are there, who have to open a connection each at least. Each scrape has to succeed. Returns how much longer each took
/// than one of `polite` at the same time, which nobody is rude to: so a busy machine is no one's fault.
async fn scrape_through<F>(rude: &mut JoinSet<()>, polite: &Running, scrape_rude: impl Fn() -> F) -> Vec<Duration>
where
    F: Future<Output = Result<(), String>>,
{
    let mut every = tokio::time::interval(Duration::from_millis(100));
    let mut delays = Vec::new();
    let clients = rude.len();
    while !rude.is_empty() {
        while let Some(ended) = rude.try_join_next() {
            ended.unwrap();
        }
        every.tick().await;
        let (usual, took) = tokio::join!(time(scrape(polite.address)), time(scrape_rude()));
        delays.push(took.saturating_sub(usual));
    }
    let (opened, handshakes) = (OPENED.load(Ordering::Relaxed), HANDSHAKES.load(Ordering::Relaxed));
    println!("{clients} clients opened {opened} connections, with {handshakes} TLS handshakes");
    assert!(opened >= clients, "{clients} clients opened {opened} connections");
    delays
}

/// How long a scrape takes.
async fn time(scrape: impl Future<Output = Result<(), String>>) -> Duration {
    let begun = Instant::now();
    tokio::time::timeout(PATIENCE, Box::pin(scrape)).await.expect("a scrape hangs").unwrap();
    begun.elapsed()
}

/// Asserts that the typical scrape is not delayed for as much as a second. The slowest may be: this machine is busy with
/// those who are rude, too.
fn assert_prompt(mut delays: Vec<Duration>) {
    delays.sort_unstable();
    let (typical, slowest) = (delays[delays.len() / 2], delays[delays.len() - 1]);
    println!("{} scrapes, typically delayed by {typical:?}, at most by {slowest:?}", delays.len());
    assert!(typical < Duration::from_secs(1), "the typical scrape takes much longer: {delays:?}");
}

/// Opens as many connections as there are places, and asks twice on each: were a place lost, one would lose its own.
async fn fill_every_place(address: SocketAddr) -> Result<(), hyper::Error> {
    let mut senders = Vec::new();
    for _ in 0..PLACES {
        let stream = TcpStream::connect(address).await.unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        senders.push(sender);
    }
    for _ in 0..2 {
        for sender in &mut senders {
            sender.ready().await?;
            let request = Request::get("/readyz").header("host", "localhost").body(Empty::<Bytes>::new()).unwrap();
            let response = sender.send_request(request).await?;
            assert_eq!(response.status(), 200);
            response.into_body().collect().await?;
        }
    }
    Ok(())
}

async fn until_every_place_is_there(address: SocketAddr) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = fill_every_place(address).await {
        assert!(Instant::now() < deadline, "a place is lost: {error}");
    }
}

async fn simulator() -> Simulator {
    Simulator::start(Knobs::still(Service::Vm, INSTANCES)).await.unwrap()
}

/// An exporter that has polled.
async fn start_ready(simulator: &Simulator) -> Running {
    let exporter = Running::start(simulator, &[]);
    until_ready(|| scrape(exporter.address)).await;
    exporter
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rude_clients_stop_no_scrape() {
    let _alone = alone().await;
    let simulator = simulator().await;
    let (polite, exporter) = (start_ready(&simulator).await, start_ready(&simulator).await);
    until_every_place_is_there(polite.address).await;
    let (address, until) = (exporter.address, Instant::now() + RUDE);
    let mut rude = JoinSet::new();
    crowd(&mut rude, 1000, until, move || says_nothing(address));
    crowd(&mut rude, 100, until, move || sends_its_head_slowly(address));
    crowd(&mut rude, 10, until, move || sends_ten_megabytes_of_head(address));
    crowd(&mut rude, 10, until, move || sends_a_body(address));
    crowd(&mut rude, 10, until, move || sends_chunks_without_end(address));
    crowd(&mut rude, 5, until, move || asks_again_and_again_at_once(address));
    crowd(&mut rude, 10, until, move || speaks_http2_unasked(address));
    crowd(&mut rude, 10, until, move || sends_garbage(address));
    crowd(&mut rude, 10, until, move || closes_its_half(address));
    crowd(&mut rude, 150, until, move || never_reads(address));
    crowd(&mut rude, 150, until, move || reads_a_byte_a_second(address));
    crowd(&mut rude, 1000, until, move || idles_after_a_request(address));
    assert_prompt(scrape_through(&mut rude, &polite, || scrape(address)).await);
    let (peak, usual) = (exporter.peak(), polite.peak());
    println!("at most {peak} KiB, {usual} KiB among the polite");
    assert!(peak < usual + SLACK_KIB, "{peak} KiB, where polite clients take {usual} KiB");
    until_every_place_is_there(address).await;
    scrape(address).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_connections_stops_no_scrape() {
    let _alone = alone().await;
    let simulator = simulator().await;
    let (polite, exporter) = (start_ready(&simulator).await, start_ready(&simulator).await);
    let address = exporter.address;
    let mut rude = JoinSet::new();
    rude.spawn(bursts([127, 0, 0, 1], address, b""));
    assert_prompt(scrape_through(&mut rude, &polite, || scrape(address)).await);
    until_every_place_is_there(address).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bursts_of_connections_stop_no_scrape_where_few_files_can_be_open() {
    let _alone = alone().await;
    let simulator = simulator().await;
    let (polite, exporter) = (start_ready(&simulator).await, Running::start_with_few_files(&simulator));
    let address = exporter.address;
    until_ready(|| scrape(address)).await;
    let mut rude = JoinSet::new();
    rude.spawn(bursts([127, 0, 0, 2], address, b""));
    rude.spawn(bursts([127, 0, 0, 3], address, b"G"));
    assert_prompt(scrape_through(&mut rude, &polite, || scrape(address)).await);
    until_every_place_is_there(address).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_connections_stops_no_scrape_over_tls() {
    let _alone = alone().await;
    let over_tls = OverTls::start().await;
    let address = over_tls.exporter.address;
    let mut rude = JoinSet::new();
    rude.spawn(bursts([127, 0, 0, 1], address, b""));
    assert_prompt(scrape_through(&mut rude, &over_tls.polite, || over_tls.scrape()).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_incomplete_tls_records_takes_little_memory() {
    let _alone = alone().await;
    let over_tls = OverTls::start().await;
    let address = over_tls.exporter.address;
    let mut rude = JoinSet::new();
    rude.spawn(bursts([127, 0, 0, 2], address, &RECORD));
    rude.spawn(bursts([127, 0, 0, 3], address, &RECORD[..4000]));
    assert_prompt(scrape_through(&mut rude, &over_tls.polite, || over_tls.scrape()).await);
    over_tls.assert_little_memory(RECORDS_KIB);
}

/// An exporter over TLS that has polled, beside one that nobody is rude to.
struct OverTls {
    polite: Running,
    exporter: Running,
    /// Trusts the exporter.
    client: Client,
    /// All the rude ones connect with it.
    connector: &'static TlsConnector,
    /// The most memory that the exporter had before.
    usual: usize,
    /// Both poll it.
    _simulator: Simulator,
}

impl OverTls {
    async fn start() -> Self {
        let simulator = simulator().await;
        let polite = start_ready(&simulator).await;
        let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
        authority.write(folder.path());
        let file = folder.path().join("web.yml");
        fs::write(&file, "tls_server_config: {cert_file: cert.pem, key_file: key.pem}\n").unwrap();
        let mut exporter = Running::start(&simulator, &[&format!("--web.config.file={}", file.display())]);
        exporter.folder = Some(folder);
        let client = Client { alpn: vec![b"h2", b"http/1.1"], ..Client::trusting(&[&authority]) };
        let connector = Box::leak(Box::new(client.connector()));
        let mut over_tls = Self { polite, exporter, client, connector, usual: 0, _simulator: simulator };
        until_ready(|| over_tls.scrape()).await;
        over_tls.usual = over_tls.exporter.peak();
        over_tls
    }

    async fn scrape(&self) -> Result<(), String> {
        let (reply, _) = self.client.get(self.exporter.address, "/metrics", &[]).await?;
        let whole = reply.status == 200 && is_whole(reply.text());
        whole.then_some(()).ok_or_else(|| format!("{}: {}", reply.status, reply.text()))
    }

    /// Asserts that the exporter has never had so much more memory than before.
    fn assert_little_memory(&self, more_kib: usize) {
        let (peak, usual) = (self.exporter.peak(), self.usual);
        println!("at most {peak} KiB, {usual} KiB before");
        assert!(peak < usual + more_kib, "{peak} KiB, {usual} KiB before");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_without_a_request_take_little_memory() {
    let _alone = alone().await;
    let over_tls = OverTls::start().await;
    let (address, connector) = (over_tls.exporter.address, over_tls.connector);
    let until = Instant::now() + RUDE;
    let mut rude = JoinSet::new();
    crowd(&mut rude, 800, until, move || at_some_time(begins_a_header_block(connector, address)));
    crowd(&mut rude, 200, until, move || at_some_time(begins_a_head_over_tls(connector, address)));
    crowd(&mut rude, 300, until, move || at_some_time(begins_a_handshake(16_000, address)));
    // So many handshakes take more than their share of a small machine, so this is not about time.
    let scrapes = scrape_through(&mut rude, &over_tls.polite, || over_tls.scrape()).await.len();
    println!("{scrapes} scrapes");
    over_tls.assert_little_memory(PENDING_KIB);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rude_clients_over_tls_stop_no_scrape() {
    let _alone = alone().await;
    let over_tls = OverTls::start().await;
    let (address, connector) = (over_tls.exporter.address, over_tls.connector);
    let until = Instant::now() + RUDE;
    let mut rude = JoinSet::new();
    crowd(&mut rude, 1000, until, move || says_nothing(address));
    crowd(&mut rude, 1000, until, move || begins_a_handshake(7, address));
    crowd(&mut rude, 10, until, move || sends_garbage(address));
    crowd(&mut rude, 300, until, move || never_reads_over_tls(connector, address));
    crowd(&mut rude, 10, until, move || idles_over_http2(connector, address));
    crowd(&mut rude, 4, until, move || never_ends_its_headers(connector, address));
    crowd(&mut rude, 4, until, move || resets_what_it_asked(connector, address));
    assert_prompt(scrape_through(&mut rude, &over_tls.polite, || over_tls.scrape()).await);
    over_tls.assert_little_memory(SLACK_KIB);
    over_tls.scrape().await.unwrap();
}

#[tokio::test]
async fn a_head_that_is_too_long_is_answered_so() {
    let simulator = simulator().await;
    let exporter = Running::start(&simulator, &[]);
    for (length, status) in [(8 << 10, "200"), (20 << 10, "431")] {
        let head =
            format!("GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\nx: {}\r\n\r\n", "x".repeat(length));
        let mut stream = ask(exporter.address, &head).await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, format!("HTTP/1.1 {status}").as_bytes(), "{length} bytes");
    }
}
