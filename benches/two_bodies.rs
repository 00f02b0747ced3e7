//! A baseline: hyper with nothing but two prepared bodies, the limit of what an exporter in Rust can reach.
//!
//! `two_bodies PLAIN GZIPPED` serves the files' bytes, the second to who accepts gzip, prints its address and ends with
//! its standard input.

#[path = "serve/mod.rs"]
mod serve;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HeaderValue};
use hyper::{Request, Response};

#[tokio::main]
async fn main() {
    let mut files = std::env::args().skip(1).map(|path| Bytes::from(std::fs::read(path).expect("a file to serve")));
    let (plain, zipped) = (files.next().expect("a plain file"), files.next().expect("a gzipped file"));
    serve::until_stdin_ends(move |request: &Request<_>| {
        let is_zipped = request.headers().get(ACCEPT_ENCODING).is_some_and(|value| value == "gzip");
        let mut response = Response::new(Full::new(if is_zipped { zipped.clone() } else { plain.clone() }));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
        if is_zipped {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        response
    })
    .await;
}
