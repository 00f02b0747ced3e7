//! `--healthcheck`: asks the exporter that runs here, for containers without a shell.
//!
//! Invariant: anything but a 200 is an error with a reason. It must not know the process it asks.

use std::io;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::config::ListenAddress;

/// Why the exporter does not count as healthy.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Nothing listens there.
    #[error("cannot connect: {0}: is the exporter running, with the same --web.listen-address?")]
    Connect(#[from] io::Error),
    /// What listens there does not speak HTTP.
    #[error("no HTTP answer: {0}")]
    Http(#[from] hyper::Error),
    /// It answered that it is not.
    #[error("HTTP {0}: {1}")]
    Unhealthy(u16, String),
}

/// Asks `/healthz` of whatever listens on `address`.
///
/// # Errors
/// When the answer is anything but 200.
pub async fn probe(address: &ListenAddress) -> Result<(), ProbeError> {
    let (host, port) = address.from_here();
    let stream = TcpStream::connect((&*host, port)).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::get("/healthz")
        .header(hyper::header::HOST, "localhost")
        .body(Empty::<Bytes>::new())
        .expect("a fixed request is valid");
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    if status == StatusCode::OK {
        return Ok(());
    }
    Err(ProbeError::Unhealthy(status.as_u16(), String::from_utf8_lossy(&body).trim_end().to_owned()))
}
