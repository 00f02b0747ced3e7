//! Answers that go wrong, for the tests: what a broken API, gateway or network sends.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::Response;
use hyper::body::Frame;
use serde_json::json;

/// A body that may break.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// What happens instead of, or to, an answer.
#[derive(Debug, Clone)]
pub enum Fault {
    /// A fixed answer.
    Answer {
        /// HTTP status.
        status: u16,
        /// Headers besides those of every answer.
        headers: Vec<(&'static str, String)>,
        /// Sent as it is.
        body: Bytes,
    },
    /// The first half of the right body, as a whole answer.
    Truncated,
    /// The first half of the right body, then the connection breaks.
    BrokenOff,
    /// Nothing, ever.
    HangBeforeHeaders,
    /// The first half of the right body, then nothing.
    HangMidBody,
    /// The right body, a byte each so often.
    Drip(Duration),
    /// White space without end.
    Endless,
    /// The right body after that many blanks, in chunks.
    Padded(usize),
    /// A refusal that has what the request was authorized with wherever a text can be.
    Echo(u16),
    /// A page that has the same in every text of its instances.
    EchoInPage,
}

impl Fault {
    /// A fixed answer without headers of its own.
    pub fn answer(status: u16, body: impl Into<Bytes>) -> Self {
        Self::Answer { status, headers: Vec::new(), body: body.into() }
    }

    /// Does to `right`, the body that would have been sent, what the fault says.
    pub(super) async fn apply(&self, right: Bytes, authorization: &str) -> Response<Body> {
        let half = right.slice(..right.len() / 2);
        let chunk = |bytes: Bytes| stream::once(async move { Ok(Frame::data(bytes)) });
        match self.clone() {
            Self::Answer { status, headers, body } => {
                let mut response = Response::builder().status(status);
                for (name, value) in headers {
                    response = response.header(name, value);
                }
                response.body(whole(body)).expect("a test's status and headers are valid")
            }
            Self::Truncated => Response::new(whole(half)),
            Self::BrokenOff => {
                // A moment, so that the first half is on its way before the connection goes.
                let broken = stream::once(async {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    Err(io::Error::from(io::ErrorKind::ConnectionReset))
                });
                Response::new(StreamBody::new(chunk(half).chain(broken)).boxed_unsync())
            }
            Self::HangBeforeHeaders => std::future::pending().await,
            Self::HangMidBody => Response::new(StreamBody::new(chunk(half).chain(stream::pending())).boxed_unsync()),
            Self::Drip(pause) => {
                let bytes = stream::iter(0..right.len()).then(move |place| {
                    let byte = right.slice(place..=place);
                    async move {
                        tokio::time::sleep(pause).await;
                        Ok(Frame::data(byte))
                    }
                });
                Response::new(StreamBody::new(bytes).boxed_unsync())
            }
            Self::Endless => {
                let blank = Bytes::from(vec![b' '; 64 << 10]);
                let blanks = stream::repeat_with(move || Ok(Frame::data(blank.clone())));
                Response::new(StreamBody::new(blanks).boxed_unsync())
            }
            Self::Padded(length) => {
                let blank = Bytes::from(vec![b' '; 64 << 10]);
                let blanks = stream::iter(0..length.div_ceil(blank.len())).map(move |_| Ok(Frame::data(blank.clone())));
                Response::new(StreamBody::new(blanks.chain(chunk(right))).boxed_unsync())
            }
            Self::EchoInPage => {
                let tags = json!({"tags": [{"key": "env", "value": authorization}]});
                let described = json!({"instanceId": "a", "instanceStatus": "RUNNING", "instanceName": authorization, "tags": tags});
                // Cut short, so that only a part of it is left.
                let long = format!("{}{authorization}", "x".repeat(235));
                let named = json!({"instanceId": authorization, "instanceStatus": authorization, "zoneId": long});
                let body = json!({"totalCount": 2, "dataSet": [described, named]});
                Response::new(whole(body.to_string().into()))
            }
            Self::Echo(status) => {
                let message = format!("not accepted: Authorization: {authorization}");
                let body = json!({"code": authorization, "requestId": authorization, "message": message});
                let response = Response::builder().status(status).header("location", authorization);
                response.body(whole(body.to_string().into())).expect("a test's status and headers are valid")
            }
        }
    }
}

/// A body that is all there.
pub(super) fn whole(body: Bytes) -> Body {
    Full::new(body).map_err(|never: Infallible| match never {}).boxed_unsync()
}
