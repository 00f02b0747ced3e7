//! What both baselines share: a server without limits or metrics.

use std::convert::Infallible;
use std::io::Read;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// Answers on a loopback port, which it prints, for as long as standard input is open. `body` is told whether it is to
/// be gzipped.
pub(crate) async fn until_stdin_ends(body: impl Fn(bool) -> Bytes + Clone + Send + 'static) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
    println!("{}", listener.local_addr().expect("a bound socket has an address"));
    let ended = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
    let serving = async {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            let body = body.clone();
            let service = service_fn(move |request| std::future::ready(Ok::<_, Infallible>(answer(&request, &body))));
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    };
    tokio::select! {
        () = serving => {}
        _ = ended => {}
    }
}

fn answer(request: &Request<Incoming>, body: impl Fn(bool) -> Bytes) -> Response<Full<Bytes>> {
    let is_zipped = request.headers().get(ACCEPT_ENCODING).is_some_and(|value| value == "gzip");
    let mut response = Response::new(Full::new(body(is_zipped)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
    if is_zipped {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response
}
