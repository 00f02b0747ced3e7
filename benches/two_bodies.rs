//! A baseline: hyper with nothing but two prepared bodies, the limit of what an exporter in Rust can reach.
//!
//! `two_bodies PLAIN GZIPPED` serves the files' bytes, the second to who accepts gzip, prints its address and ends with
//! its standard input.

#[path = "serve/mod.rs"]
mod serve;

use bytes::Bytes;

#[tokio::main]
async fn main() {
    let mut files = std::env::args().skip(1).map(|path| Bytes::from(std::fs::read(path).expect("a file to serve")));
    let (plain, zipped) = (files.next().expect("a plain file"), files.next().expect("a gzipped file"));
    serve::until_stdin_ends(move |is_zipped| if is_zipped { zipped.clone() } else { plain.clone() }).await;
}
