//! The accept loop: connections in, answers out, a bounded drain at the end.
//!
//! Invariant: accepting never waits for a client, and a shutdown ends within its bound. It must not know the API.

mod access;
mod auth;
mod body;
mod checks;
mod hello;
mod host;
mod limit;
mod negotiation;
mod open_files;
mod page;
pub mod probe;
pub(crate) mod reload;
mod routes;
mod self_metrics;
mod source;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::{Body as _, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, Version, header};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulConnection, GracefulShutdown, Watcher};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, lookup_host};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::server::TlsStream;

pub(crate) use self::access::AccessControl;
use self::body::Body;
use self::hello::HelloLimit;
use self::limit::{ConnectionLimit, ConnectionSlot, Stage, Watched};
pub use self::negotiation::{Format, accepts_gzip};
pub(crate) use self::page::About;
pub(crate) use self::routes::Routes;
pub use self::routes::{Route, route};
pub(crate) use self::self_metrics::SelfMetrics;
use self::source::Source;
use crate::config::ListenAddress;

/// How long a client may take no byte of its answer before its connection is closed.
#[cfg(target_os = "linux")]
const STALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long open requests have once the shutdown began.
const DRAIN: Duration = Duration::from_secs(5);
/// The pause after a failed accept, as when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The kernel allows no more by default; one that does not fit is tried again after a second.
const BACKLOG: i32 = 4096;
/// Requests at a time on one HTTP/2 connection: more than a browser or a scraper has.
const MAX_STREAMS: u32 = 16;
/// What the headers of one request may take.
const MAX_HEADER_BYTES: usize = 16 << 10;
/// The same over HTTP/2, where each header counts 32 bytes more, and takes more than that in memory.
const MAX_HEADER_LIST: u32 = 8 << 10;
/// What may come of bodies on one HTTP/2 connection before they are refused: the least that the protocol allows.
const BODY_WINDOW: u32 = 65_535;
/// How often an HTTP/2 client has to show that it is still there.
const PING_INTERVAL: Duration = Duration::from_secs(20);

/// Listens on an address; a host name may stand for several.
///
/// # Errors
/// When the address does not exist here, is in use or is not allowed.
pub async fn bind(address: &ListenAddress) -> io::Result<Vec<TcpListener>> {
    match address {
        ListenAddress::Any(port) => Ok(vec![bind_any(*port)?]),
        ListenAddress::Host(host, port) => bind_each(lookup_host((&**host, *port)).await?),
    }
}

/// Listens on as many of the addresses as possible, and warns about the others.
fn bind_each(addresses: impl Iterator<Item = SocketAddr>) -> io::Result<Vec<TcpListener>> {
    let (mut listeners, mut failed) = (Vec::new(), Vec::new());
    // The file of hosts may list one twice.
    for address in addresses.collect::<BTreeSet<_>>() {
        // `[::]` means every interface too.
        match listen(address, address.ip().is_unspecified()) {
            Ok(listener) => listeners.push(listener),
            Err(error) => failed.push((address, error)),
        }
    }
    if listeners.is_empty() {
        return failed.into_iter().map(|(_, error)| Err(error)).collect();
    }
    for (address, error) in failed {
        tracing::warn!(%address, %error, "cannot listen on one of the host's addresses");
    }
    Ok(listeners)
}

/// One socket for IPv6 and IPv4, or for IPv4 alone where the system has no IPv6.
fn bind_any(port: u16) -> io::Result<TcpListener> {
    match listen((Ipv6Addr::UNSPECIFIED, port).into(), true) {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse && error.kind() != io::ErrorKind::PermissionDenied => {
            listen((Ipv4Addr::UNSPECIFIED, port).into(), false)
        }
        bound => bound,
    }
}

fn listen(address: SocketAddr, dual: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!dual)?;
    }
    // A restart must not wait for the connections of the process before it.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Serves until `shutdown`, then lets open requests end.
pub(crate) async fn serve(
    listeners: Vec<TcpListener>,
    routes: Arc<Routes>,
    access: Arc<AccessControl>,
    max_connections: usize,
    shutdown: impl Future<Output = ()>,
) {
    let room = open_files::room_for_clients(max_connections + limit::MAX_NEWCOMERS);
    if room < max_connections {
        tracing::warn!(connections = room, "fewer than --web.max-connections: the limit of open files allows no more");
    }
    let connections = Arc::new(Connections {
        routes,
        access,
        open: watch::Sender::new(()),
        limit: ConnectionLimit::new(max_connections, room),
        graceful: GracefulShutdown::new(),
    });
    let mut accepting = JoinSet::new();
    accepting.spawn(Arc::clone(&connections.limit).close_overdue());
    for listener in listeners {
        accepting.spawn(accept(listener, Arc::clone(&connections)));
    }
    shutdown.await;
    // The accept loops end first, so that nothing new comes while the rest drains.
    accepting.shutdown().await;
    // What else was shared goes with this line, and with it the handshakes: nothing has been asked there yet.
    let Connections { graceful, .. } = Arc::into_inner(connections).expect("only accept loops shared it");
    if tokio::time::timeout(DRAIN, graceful.shutdown()).await.is_err() {
        tracing::warn!(after = ?DRAIN, "closing connections whose requests did not end");
    }
}

struct Connections {
    routes: Arc<Routes>,
    access: Arc<AccessControl>,
    /// Dropped when the shutdown begins.
    open: watch::Sender<()>,
    limit: Arc<ConnectionLimit>,
    graceful: GracefulShutdown,
}

async fn accept(listener: TcpListener, connections: Arc<Connections>) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                connections.open(stream, peer.ip().into());
                if connections.limit.is_behind() {
                    tokio::task::yield_now().await;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

impl Connections {
    fn open(&self, stream: TcpStream, source: Source) {
        // Answers are written whole; waiting to fill a segment would only delay them. Neither option is vital.
        let _ = stream.set_nodelay(true);
        #[cfg(target_os = "linux")]
        let _ = socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(STALL_TIMEOUT));
        let (place, closed) = self.limit.open(source);
        let (watcher, closing) = (self.graceful.watcher(), self.open.subscribe());
        let (routes, access) = (Arc::clone(&self.routes), Arc::clone(&self.access));
        let connection = Connection { routes, access, place: Arc::new(place), source };
        tokio::spawn(async move {
            tokio::select! {
                () = connection.serve_from_first_byte(stream, watcher, closing) => {}
                _ = closed => {}
            }
        });
    }
}

/// One client's connection.
#[derive(Clone)]
struct Connection {
    routes: Arc<Routes>,
    access: Arc<AccessControl>,
    place: Arc<ConnectionSlot>,
    source: Source,
}

impl Connection {
    /// A client that sends nothing does not get the memory that a connection needs.
    async fn serve_from_first_byte(self, stream: TcpStream, watcher: Watcher, mut closing: watch::Receiver<()>) {
        let mut first = [0];
        let sent = tokio::select! {
            sent = stream.peek(&mut first) => sent.is_ok_and(|bytes| bytes > 0),
            _ = closing.changed() => false,
        };
        if sent {
            Box::pin(self.serve(stream, watcher, closing)).await;
        }
    }

    async fn serve(self, stream: TcpStream, watcher: Watcher, mut closing: watch::Receiver<()>) {
        let Some(tls) = self.access.tls() else {
            self.place.advance(Stage::Pending);
            return Box::pin(self.serve_http1(stream, watcher)).await;
        };
        self.place.advance(Stage::Handshake);
        let handshake = tokio::select! {
            handshake = tls.accept(HelloLimit::new(stream)) => handshake,
            _ = closing.changed() => return,
        };
        if handshake.is_ok() {
            self.place.advance(Stage::Pending);
        }
        // On the heap, so that a handshake does not take the memory of what follows it.
        match handshake {
            // What the handshake agreed on.
            Ok(stream) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => {
                Box::pin(self.serve_http2(stream, watcher)).await;
            }
            Ok(stream) => Box::pin(self.serve_http1(stream, watcher)).await,
            Err(error) => tracing::debug!(%error, "TLS handshake failed"),
        }
    }

    async fn serve_http2(self, stream: TlsStream<HelloLimit<TcpStream>>, watcher: Watcher) {
        let stream = Watched::new(stream, Arc::clone(&self.place), false);
        let service = service_fn(move |request| self.clone().answer(request));
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEADER_LIST)
            .initial_stream_window_size(BODY_WINDOW)
            .initial_connection_window_size(BODY_WINDOW)
            .keep_alive_interval(PING_INTERVAL)
            .serve_connection(TokioIo::new(stream), service);
        until_end(watcher, connection).await;
    }

    async fn serve_http1<S: AsyncRead + AsyncWrite + Unpin + 'static>(self, stream: S, watcher: Watcher) {
        let stream = Watched::new(stream, Arc::clone(&self.place), true);
        let service = service_fn(move |request| self.clone().answer(request));
        let connection = http1::Builder::new()
            // It would count from the end of the last request, and cut connections that are merely idle.
            .header_read_timeout(None)
            .max_buf_size(MAX_HEADER_BYTES)
            .serve_connection(TokioIo::new(stream), service);
        until_end(watcher, connection).await;
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let Self { routes, access, place, source } = self;
        let in_progress = place.begin();
        let in_use = access.in_use();
        let mut response = if host::is_valid(request.version(), request.headers()) {
            let admission = access.admit(&in_use, request.uri().path(), request.headers(), source).await;
            if admission.is_ok() {
                place.advance(Stage::Admitted);
            }
            match admission {
                Ok(()) if request.body().is_end_stream() => routes.answer(&request).await,
                Ok(()) => routes.refuse_body(&request),
                Err(denial) => routes.deny(&request, denial),
            }
        } else {
            routes.refuse_host(&request)
        };
        // hyper sends no body in answer to HEAD over HTTP/1, and does over HTTP/2.
        if request.method() == Method::HEAD && request.version() == Version::HTTP_2 {
            let length = response.body().size_hint().exact().unwrap_or_default();
            response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
            response.body_mut().clear();
        }
        response.body_mut().keep(in_progress);
        in_use.add_headers(response.headers_mut());
        Ok(response)
    }
}

async fn until_end<C: GracefulConnection>(watcher: Watcher, connection: C)
where
    C::Error: std::fmt::Display,
{
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!(%error, "connection ended early");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// The log of what `work` does.
    fn log_of<T>(work: impl FnOnce() -> T) -> (T, String) {
        #[derive(Clone, Default)]
        struct Lines(Arc<Mutex<Vec<u8>>>);

        impl io::Write for Lines {
            fn write(&mut self, line: &[u8]) -> io::Result<usize> {
                self.0.lock().unwrap().extend_from_slice(line);
                Ok(line.len())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }

        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        let result = tracing::subscriber::with_default(subscriber, work);
        let log = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        (result, log)
    }

    #[tokio::test]
    async fn an_address_that_cannot_be_bound_is_logged_if_another_one_can() {
        let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = holder.local_addr().unwrap();
        let other = SocketAddr::from(([127, 0, 0, 2], taken.port()));
        let (bound, log) = log_of(|| bind_each([taken, other, other].into_iter()).unwrap());
        let bound: Vec<_> = bound.iter().map(|listener| listener.local_addr().unwrap()).collect();
        assert_eq!(bound, [other]);
        assert_eq!(log.lines().count(), 1, "{log}");
        for part in ["WARN", "cannot listen on one of the host's addresses", &format!("address={taken}"), "in use"] {
            assert!(log.contains(part), "{part}: {log}");
        }
        let (none, log) = log_of(|| bind_each([taken].into_iter()));
        assert_eq!((none.unwrap_err().kind(), &*log), (io::ErrorKind::AddrInUse, ""), "the caller reports it");
    }
}
