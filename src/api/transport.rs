//! The connections to the API, none of which outlives a failure or is older than a few minutes.
//!
//! A connection leads to the address that its name had when it was opened. When the API moves or a NAT forgets the
//! connections, all that are open lead nowhere, and only new ones, with a new DNS answer, do not. So one failure
//! discards them all; requests that are under way on them end as they would have.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reqwest::redirect;
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use tokio::time::Instant;

use super::tls;
use crate::config::Proxy;

/// How long connections are used at most.
const MAX_AGE: Duration = Duration::from_mins(3);

/// Hands out connections.
pub(super) struct Transport {
    settings: Settings,
    current: Mutex<Connections>,
}

struct Settings {
    /// Read once: the system's certificates take milliseconds to parse.
    tls: ClientConfig,
    /// `None`: straight to the API.
    proxy: Option<Proxy>,
    connect_timeout: Duration,
}

/// Connections that are opened and discarded together.
#[derive(Clone)]
pub(super) struct Connections {
    /// Sends requests over them.
    pub(super) http: reqwest::Client,
    generation: u64,
    since: Instant,
}

impl Transport {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// When the HTTP library cannot use the settings.
    pub(super) fn new(
        authorities: &[CertificateDer<'static>],
        proxy: Option<Proxy>,
        connect_timeout: Duration,
    ) -> Result<Self, reqwest::Error> {
        let settings = Settings { tls: tls::client_config(authorities), proxy, connect_timeout };
        let first = Connections { http: settings.client()?, generation: 0, since: Instant::now() };
        Ok(Self { settings, current: Mutex::new(first) })
    }

    /// The connections to use at `now`.
    pub(super) fn connections(&self, now: Instant) -> Connections {
        let mut current = self.current();
        if now.saturating_duration_since(current.since) >= MAX_AGE {
            self.replace(&mut current, now);
        }
        current.clone()
    }

    /// Discards those connections, unless somebody else has already.
    pub(super) fn discard(&self, failed: &Connections, now: Instant) {
        let mut current = self.current();
        if current.generation == failed.generation {
            self.replace(&mut current, now);
        }
    }

    /// Discards whatever is open.
    pub(super) fn discard_all(&self, now: Instant) {
        self.replace(&mut self.current(), now);
    }

    fn replace(&self, current: &mut Connections, now: Instant) {
        let http = self.settings.client().expect("a client was built with the same settings before");
        *current = Connections { http, generation: current.generation + 1, since: now };
    }

    fn current(&self) -> MutexGuard<'_, Connections> {
        // They are replaced whole, so what a panic interrupted is still the old ones.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Settings {
    /// A client without any connection. Dropping the last clone of one closes its idle connections.
    fn client(&self) -> Result<reqwest::Client, reqwest::Error> {
        let mut http = reqwest::Client::builder()
            .tls_backend_preconfigured(self.tls.clone())
            .user_agent(concat!("zenlayer-exporter/", env!("CARGO_PKG_VERSION")))
            // A signed request goes to no other host.
            .redirect(redirect::Policy::none())
            // Retries are counted and paced above, not underneath.
            .retry(reqwest::retry::never())
            // Shared among the addresses of the name: one that does not answer leaves time for the next.
            .connect_timeout(self.connect_timeout)
            // The settings have read the proxy variables: the client must not read them its own way.
            .no_proxy();
        if let Some(proxy) = &self.proxy {
            http = http.proxy(reqwest::Proxy::all(proxy.url().clone())?);
        }
        http.build()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn transport() -> Transport {
        Transport::new(&[], None, SECOND).unwrap()
    }

    #[tokio::test]
    async fn many_failures_on_the_same_connections_replace_them_once() {
        let (transport, now) = (transport(), Instant::now());
        let used = transport.connections(now);
        for _ in 0..11 {
            transport.discard(&used, now);
        }
        let next = transport.connections(now);
        assert_eq!(next.generation, used.generation + 1);
        transport.discard(&next, now);
        transport.discard_all(now);
        assert_eq!(transport.connections(now).generation, used.generation + 3);
    }

    #[tokio::test]
    async fn connections_are_used_for_three_minutes_after_the_first() {
        let (transport, start) = (transport(), Instant::now());
        let first = transport.connections(start).generation;
        assert_eq!(transport.connections(start + MAX_AGE - SECOND).generation, first);
        let later = start + MAX_AGE + SECOND;
        assert_eq!(transport.connections(later).generation, first + 1);
        assert_eq!(transport.connections(later + MAX_AGE - SECOND).generation, first + 1);
    }

    /// Answers every request, and counts the connections that are open and that ever were.
    async fn server() -> (String, Arc<AtomicUsize>, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (open, opened) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let counts = (Arc::clone(&open), Arc::clone(&opened));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                counts.0.fetch_add(1, Ordering::SeqCst);
                counts.1.fetch_add(1, Ordering::SeqCst);
                let open = Arc::clone(&counts.0);
                tokio::spawn(async move {
                    let mut head = [0; 4096];
                    while stream.read(&mut head).await.is_ok_and(|read| read > 0) {
                        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
                    }
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        (url, open, opened)
    }

    #[tokio::test]
    async fn discarded_connections_are_closed_and_others_opened() {
        let (transport, start) = (transport(), Instant::now());
        let (url, open, opened) = server().await;
        let send = async |connections: Connections| connections.http.get(&url).send().await.unwrap();
        send(transport.connections(start)).await;
        send(transport.connections(start)).await;
        assert_eq!(opened.load(Ordering::SeqCst), 1, "a connection is kept");
        send(transport.connections(start + MAX_AGE)).await;
        assert_eq!(opened.load(Ordering::SeqCst), 2, "it is too old");
        transport.discard(&transport.connections(start + MAX_AGE), start + MAX_AGE);
        send(transport.connections(start + MAX_AGE)).await;
        assert_eq!(opened.load(Ordering::SeqCst), 3, "it was discarded");
        let deadline = Instant::now() + 20 * SECOND;
        while open.load(Ordering::SeqCst) > 1 {
            assert!(Instant::now() < deadline, "the old connections stay open");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
