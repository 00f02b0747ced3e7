//! The accept loop: connections in, answers out, a bounded drain at the end.
//!
//! Invariant: a client that stalls loses its place, one that idles makes room, and a shutdown ends within its bound. It must
//! not know the API.

mod auth;
mod body;
mod gate;
mod own;
mod page;
mod places;
pub mod probe;
pub(crate) mod reload;
mod route;

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
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use self::body::Body;
pub(crate) use self::gate::Gate;
pub use self::own::Format;
pub(crate) use self::own::Own;
pub(crate) use self::page::About;
use self::places::{Place, Places};
pub(crate) use self::route::Site;
pub use self::route::{Route, accepts_gzip, route};
use crate::config::ListenAddress;

/// How long a client may take to send the head of a request, and before that for its TLS handshake.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a client may take no byte of its answer before its connection is closed.
#[cfg(target_os = "linux")]
const STALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long open requests have once the shutdown began.
const DRAIN: Duration = Duration::from_secs(5);
/// The pause after a failed accept, as when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections beyond the limit that are told so at a time.
const MAX_REFUSALS: usize = 16;
const BACKLOG: i32 = 1024;
/// Requests at a time on one HTTP/2 connection: more than a browser or a scraper has.
const MAX_STREAMS: u32 = 16;
/// What the headers of one request may take.
const MAX_HEADER_BYTES: u32 = 16 << 10;
/// What may come of bodies on one HTTP/2 connection before they are refused: the least that the protocol allows.
const BODY_WINDOW: u32 = 65_535;
/// File descriptors kept from the clients: for requests to the API, for files, for listeners and for the refusals.
const OWN_FILES: usize = 128;
/// How often an HTTP/2 client has to show that it is still there.
const PING_INTERVAL: Duration = Duration::from_secs(20);

/// Listens on an address; a host name may stand for several.
///
/// # Errors
/// When the address does not exist here, is in use or is not allowed.
pub async fn bind(address: &ListenAddress) -> io::Result<Vec<TcpListener>> {
    match address {
        ListenAddress::Any(port) => Ok(vec![bind_any(*port)?]),
        ListenAddress::Host(host, port) => {
            let resolved = lookup_host((&**host, *port)).await?;
            // `[::]` means every interface too. One address of several that cannot be had is not missed.
            let bound: Vec<_> = resolved.map(|address| listen(address, address.ip().is_unspecified())).collect();
            if bound.iter().any(Result::is_ok) {
                Ok(bound.into_iter().flatten().collect())
            } else {
                bound.into_iter().collect()
            }
        }
    }
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
    site: Arc<Site>,
    gate: Arc<Gate>,
    max_connections: usize,
    shutdown: impl Future<Output = ()>,
) {
    let room = room_for_clients();
    if room < max_connections {
        tracing::warn!(connections = room, "fewer than --web.max-connections: the limit of open files allows no more");
    }
    let connections = Arc::new(Connections {
        site,
        gate,
        open: watch::Sender::new(()),
        places: Places::new(max_connections.min(room)),
        refusals: Arc::new(Semaphore::new(MAX_REFUSALS)),
        graceful: GracefulShutdown::new(),
    });
    let mut accepting = JoinSet::new();
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

/// How many connections the process may have beside its own files, 1 at least.
fn room_for_clients() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next());
    // Where the system does not say, or says `unlimited`, the setting alone counts.
    let Some(files) = files.and_then(|files| files.parse::<usize>().ok()) else { return usize::MAX };
    files.saturating_sub(OWN_FILES).max(1)
}

struct Connections {
    site: Arc<Site>,
    gate: Arc<Gate>,
    /// Dropped when the shutdown begins.
    open: watch::Sender<()>,
    places: Arc<Places>,
    refusals: Arc<Semaphore>,
    graceful: GracefulShutdown,
}

async fn accept(listener: TcpListener, connections: Arc<Connections>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => connections.open(stream).await,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

impl Connections {
    async fn open(&self, stream: TcpStream) {
        let place = self.places.take().await;
        // One too many is told so, and those beyond any count are not.
        let refusal = if place.is_some() { None } else { Arc::clone(&self.refusals).try_acquire_owned().ok() };
        if place.is_none() && refusal.is_none() {
            return;
        }
        // Answers are written whole; waiting to fill a segment would only delay them. Neither option is vital.
        let _ = stream.set_nodelay(true);
        #[cfg(target_os = "linux")]
        let _ = socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(STALL_TIMEOUT));
        let (watcher, closing) = (self.graceful.watcher(), self.open.subscribe());
        let tls = self.gate.tls(place.is_none());
        let visitor = Visitor { site: Arc::clone(&self.site), gate: Arc::clone(&self.gate), place };
        tokio::spawn(async move {
            let _refusal = refusal;
            visitor.stay(stream, tls, watcher, closing).await;
        });
    }
}

/// `None` where the client does not get through in time.
async fn handshake(
    tls: &TlsAcceptor,
    stream: TcpStream,
    mut closing: watch::Receiver<()>,
) -> Option<TlsStream<TcpStream>> {
    let result = tokio::select! {
        result = tokio::time::timeout(HEADER_TIMEOUT, tls.accept(stream)) => result,
        _ = closing.changed() => return None,
    };
    match result {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            tracing::debug!(%error, "TLS handshake failed");
            None
        }
        Err(_) => {
            tracing::debug!(after = ?HEADER_TIMEOUT, "TLS handshake did not end");
            None
        }
    }
}

/// One client's connection.
#[derive(Clone)]
struct Visitor {
    site: Arc<Site>,
    gate: Arc<Gate>,
    /// `None` where it is one too many.
    place: Option<Arc<Place>>,
}

impl Visitor {
    /// Serves the connection for as long as it has its place.
    async fn stay(self, stream: TcpStream, tls: Option<TlsAcceptor>, watcher: Watcher, closing: watch::Receiver<()>) {
        let Some(place) = self.place.clone() else {
            return self.serve(stream, tls, watcher, closing).await;
        };
        tokio::select! {
            () = self.serve(stream, tls, watcher, closing) => {}
            why = place.lost() => tracing::debug!(why, "connection closed"),
        }
    }

    async fn serve(self, stream: TcpStream, tls: Option<TlsAcceptor>, watcher: Watcher, closing: watch::Receiver<()>) {
        match tls {
            None => self.speak_http1(stream, watcher).await,
            Some(tls) => {
                if let Some(stream) = handshake(&tls, stream, closing).await {
                    self.speak(stream, watcher).await;
                }
            }
        }
    }

    /// The protocol that the handshake agreed on.
    async fn speak(self, stream: TlsStream<TcpStream>, watcher: Watcher) {
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return self.speak_http1(stream, watcher).await;
        }
        let service = service_fn(move |request| self.clone().answer(request));
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEADER_BYTES)
            .initial_stream_window_size(BODY_WINDOW)
            .initial_connection_window_size(BODY_WINDOW)
            .keep_alive_interval(PING_INTERVAL)
            .serve_connection(TokioIo::new(stream), service);
        until_end(watcher, connection).await;
    }

    async fn speak_http1<S: AsyncRead + AsyncWrite + Unpin + 'static>(self, stream: S, watcher: Watcher) {
        let service = service_fn(move |request| self.clone().answer(request));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(MAX_HEADER_BYTES as usize)
            .serve_connection(TokioIo::new(stream), service);
        until_end(watcher, connection).await;
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let Self { site, gate, place } = self;
        let under_way = place.as_ref().map(Place::begin);
        let (path, headers) = (request.uri().path(), request.headers());
        let mut response = if place.is_none() {
            site.refuse(&request, gate.admits_at_once(path, headers))
        } else {
            match gate.admit(path, headers).await {
                Ok(()) if request.body().is_end_stream() => site.answer(&request).await,
                Ok(()) => site.refuse_body(&request),
                Err(denial) => site.deny(&request, denial),
            }
        };
        // hyper sends no body in answer to HEAD over HTTP/1, and does over HTTP/2.
        if request.method() == Method::HEAD && request.version() == Version::HTTP_2 {
            let length = response.body().size_hint().exact().unwrap_or_default();
            response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
            response.body_mut().clear();
        }
        response.body_mut().keep(under_way);
        gate.add_headers(response.headers_mut());
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
