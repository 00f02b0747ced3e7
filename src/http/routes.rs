//! Routes: one `match` over method and path, and the small answer each has.
//!
//! Invariant: which route a request takes depends on its method and path alone. It must not know sockets.

use std::sync::Arc;
use std::time::Duration;

use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Version};
use tokio::time::Instant;

use super::auth::Denial;
use super::body::{Body, Parts};
use super::negotiation::{Format, accepts_gzip};
use super::page::{self, About, View};
use super::self_metrics::SelfMetrics;
use crate::clock::Clock;
use crate::gzip;
use crate::snapshot::Published;
use crate::telemetry::Telemetry;

const TEXT: &str = "text/plain; charset=utf-8";
/// The label value that unknown paths share: a scanner must not make series.
const OTHER: &str = "other";
const HTML: &str = "text/html; charset=utf-8";

/// What can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// The page for a person.
    Home,
    /// The metrics.
    Metrics,
    /// Whether the process does its work.
    Healthy,
    /// Whether there is something to serve yet.
    Ready,
    /// A path that is there, asked for by another method than GET or HEAD.
    MethodNotAllowed,
    /// Anything else.
    NotFound,
}

/// Which route a request takes.
pub fn route(method: &Method, path: &str, telemetry_path: &str) -> Route {
    let found = match path {
        "/" => Route::Home,
        "/healthz" => Route::Healthy,
        "/readyz" => Route::Ready,
        path if path == telemetry_path => Route::Metrics,
        _ => return Route::NotFound,
    };
    match *method {
        Method::GET | Method::HEAD => found,
        _ => Route::MethodNotAllowed,
    }
}

/// Whether the path is one that probes ask for.
pub(super) fn is_health(path: &str) -> bool {
    ["/healthz", "/readyz"].contains(&path)
}

/// What is served, and from where.
pub(crate) struct Routes {
    /// What the poller published.
    pub(crate) published: Arc<Published>,
    /// The exporter's own metrics.
    pub(crate) telemetry: Arc<Telemetry>,
    /// The exporter's own metrics as they were last rendered.
    pub(crate) self_metrics: SelfMetrics,
    /// What the page for a person says this is.
    pub(crate) about: About,
    /// The clock by which the age of data is measured.
    pub(crate) clock: Clock,
    /// Where the metrics are.
    pub(crate) telemetry_path: String,
    /// How long the poller may be silent before the process is unhealthy.
    pub(crate) longest_silence: Duration,
}

impl Routes {
    /// Answers a request and counts it.
    pub(crate) async fn answer<B>(&self, request: &Request<B>) -> Response<Body> {
        let path = request.uri().path();
        let route = route(request.method(), path, &self.telemetry_path);
        let response = match route {
            Route::Home => self.home(),
            Route::Metrics => self.metrics(request.headers()).await,
            Route::Healthy => self.healthy(),
            Route::Ready => self.ready(),
            Route::MethodNotAllowed => method_not_allowed(),
            Route::NotFound => not_found(&self.telemetry_path),
        };
        self.count(path, route, &response);
        response
    }

    /// Says why a request is not answered, and counts it.
    pub(crate) fn deny<B>(&self, request: &Request<B>, denial: Denial) -> Response<Body> {
        let path = request.uri().path();
        let response = match denial {
            Denial::Unknown => unauthorized("a user name and password are needed here\n"),
            Denial::Unusable => {
                unauthorized("a password may have at most 72 bytes and no NUL: bcrypt ignores what follows\n")
            }
            Denial::Busy => {
                let text = "too many passwords wait to be checked: try again\n";
                answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, text.into())
            }
            Denial::TooOften => {
                let text = "too many requests: rate_limit of the web config allows no more\n";
                answer(StatusCode::TOO_MANY_REQUESTS, TEXT, text.into())
            }
        };
        self.count(path, route(request.method(), path, &self.telemetry_path), &response);
        response
    }

    fn count(&self, path: &str, route: Route, response: &Response<Body>) {
        let label = if route == Route::NotFound { OTHER } else { path };
        self.telemetry.http_request(label, response.status().as_str());
    }

    /// Refuses a request whose `Host` header is missing, there twice or not a host.
    pub(crate) fn refuse_host<B>(&self, request: &Request<B>) -> Response<Body> {
        let text = "a request needs exactly one Host header, with a host and perhaps a port\n";
        let mut response = answer(StatusCode::BAD_REQUEST, TEXT, text.into());
        if request.version() < Version::HTTP_2 {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        let path = request.uri().path();
        self.count(path, route(request.method(), path, &self.telemetry_path), &response);
        response
    }

    /// Answers a request that brings a body, which is not read: no route has a use for one.
    pub(crate) fn refuse_body<B>(&self, request: &Request<B>) -> Response<Body> {
        let path = request.uri().path();
        let route = route(request.method(), path, &self.telemetry_path);
        let mut response = if route == Route::MethodNotAllowed {
            method_not_allowed()
        } else {
            let text = "no request here has a body: send it without\n";
            answer(StatusCode::PAYLOAD_TOO_LARGE, TEXT, text.into())
        };
        // What follows on the connection is that body; on HTTP/2 it has a stream of its own.
        if request.version() < Version::HTTP_2 {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        self.count(path, route, &response);
        response
    }

    async fn metrics(&self, headers: &HeaderMap) -> Response<Body> {
        let format = Format::preferred(headers);
        let now = self.clock.now();
        let (snapshot, own) = self.published.read(|state| {
            let snapshot = state.fresh(now);
            if snapshot.is_none() {
                // A poll in progress, or a machine that slept, has not changed what the last poll set.
                self.telemetry.went_down();
            }
            let own = self.self_metrics.get(&self.telemetry, (state.rounds, snapshot.is_some()), format);
            (snapshot, own)
        });
        let mut response = if accepts_gzip(headers) {
            let mut parts = Vec::new();
            for text in snapshot.iter().flat_map(|snapshot| snapshot.texts()) {
                parts.push(text.zipped().await);
            }
            parts.push(own.zipped());
            let mut response = answer(StatusCode::OK, format.content_type(), Parts::new(gzip::member(&parts)));
            response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            response
        } else {
            let texts = snapshot.iter().flat_map(|snapshot| snapshot.texts()).map(|text| text.bytes.clone());
            answer(StatusCode::OK, format.content_type(), Parts::new(texts.chain([own.text()])))
        };
        response.headers_mut().insert(header::VARY, HeaderValue::from_static("accept, accept-encoding"));
        response
    }

    /// Whether the poll loop moves, whatever the API does.
    pub(crate) fn is_healthy(&self) -> bool {
        self.published.silence(Instant::now()) <= self.longest_silence
    }

    fn healthy(&self) -> Response<Body> {
        if self.is_healthy() {
            return answer(StatusCode::OK, TEXT, "ok\n".into());
        }
        let silence = Duration::from_secs(self.published.silence(Instant::now()).as_secs());
        let silence = humantime::format_duration(silence);
        let text = format!("the poll loop has not moved for {silence}: restart the process\n");
        answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, text.into())
    }

    fn ready(&self) -> Response<Body> {
        let now = self.clock.now();
        let (age, last) = self.published.read(|state| {
            (
                state.snapshot.as_ref().map(|snapshot| (snapshot.age(now), state.fresh(now).is_some())),
                state.report.clone(),
            )
        });
        let error = last.and_then(|report| report.outcome.err());
        let (status, text) = match (age, error) {
            (Some((_, true)), _) => (StatusCode::OK, "ready".to_owned()),
            (Some((age, false)), error) => {
                let cause = error.map_or_else(String::new, |error| format!("; the last error: {error}"));
                let age = page::in_seconds(age);
                let text =
                    format!("ready, but the data is too old to serve: the last successful poll was {age} ago{cause}");
                (StatusCode::OK, text)
            }
            (None, None) => (StatusCode::SERVICE_UNAVAILABLE, "the first poll is in progress".to_owned()),
            (None, Some(error)) => (StatusCode::SERVICE_UNAVAILABLE, format!("no poll has succeeded yet: {error}")),
        };
        answer(status, TEXT, format!("{text}\n").into())
    }

    fn home(&self) -> Response<Body> {
        let now = self.clock.now();
        let (report, snapshot, age) = self.published.read(|state| {
            (state.report.clone(), state.fresh(now), state.snapshot.as_ref().map(|snapshot| snapshot.age(now)))
        });
        let page = page::render(&View {
            about: &self.about,
            report: report.as_ref(),
            served: snapshot.as_deref().map(|snapshot| &*snapshot.rendered),
            age,
            infos: snapshot.as_deref().and_then(|snapshot| Some(&snapshot.infos.as_ref()?.infos)),
            telemetry_path: &self.telemetry_path,
            now: now.wall,
        });
        let mut response = answer(StatusCode::OK, HTML, page.into());
        let headers = response.headers_mut();
        let policy = HeaderValue::from_str(&page::SECURITY_POLICY).expect("a policy of plain words is a header value");
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        response
    }
}

fn unauthorized(text: &'static str) -> Response<Body> {
    let mut response = answer(StatusCode::UNAUTHORIZED, TEXT, text.into());
    let challenge = HeaderValue::from_static("Basic realm=\"zenlayer-exporter\", charset=\"UTF-8\"");
    response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    response
}

fn method_not_allowed() -> Response<Body> {
    let mut response = answer(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD are answered here\n".into());
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
    response
}

fn not_found(telemetry_path: &str) -> Response<Body> {
    let text = format!("nothing is here: the metrics are at {telemetry_path}\n");
    answer(StatusCode::NOT_FOUND, TEXT, text.into())
}

fn answer(status: StatusCode, content_type: &'static str, body: Parts) -> Response<Body> {
    let mut response = Response::new(Body::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;
    use crate::model::{Service, Statuses};
    use crate::snapshot::{Rendered, Report, Snapshot};

    fn routes() -> Routes {
        Routes {
            published: Arc::new(Published::new(Duration::from_mins(5))),
            telemetry: Arc::new(Telemetry::default()),
            self_metrics: SelfMetrics::default(),
            about: About {
                service: "vm",
                polled: "nothing".to_owned(),
                nothing_found: "No instances.".to_owned(),
                interval: Duration::from_secs(30),
            },
            clock: Clock::default(),
            telemetry_path: "/metrics".to_owned(),
            longest_silence: Duration::from_mins(3),
        }
    }

    async fn get(routes: &Routes, path: &str) -> (u16, String) {
        let response = routes.answer(&Request::get(path).body(()).unwrap()).await;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.into()).unwrap())
    }

    #[test]
    fn a_route_is_its_method_and_path() {
        let taken = |method: &Method, path| route(method, path, "/m");
        assert_eq!(taken(&Method::GET, "/"), Route::Home);
        assert_eq!(taken(&Method::HEAD, "/m"), Route::Metrics);
        assert_eq!(taken(&Method::GET, "/healthz"), Route::Healthy);
        assert_eq!(taken(&Method::GET, "/readyz"), Route::Ready);
        assert_eq!(taken(&Method::POST, "/m"), Route::MethodNotAllowed);
        assert_eq!(taken(&Method::GET, "/metrics"), Route::NotFound);
        assert_eq!(taken(&Method::POST, "/m/"), Route::NotFound);
    }

    #[test]
    fn gzip_is_used_only_where_it_is_accepted() {
        let accepts = |value: &'static str| {
            accepts_gzip(&HeaderMap::from_iter([(header::ACCEPT_ENCODING, HeaderValue::from_static(value))]))
        };
        for value in ["gzip", "deflate, GZIP;q=0.5", "br;q=1, *;q=0.1", "gzip;q=1.0", "identity, gzip"] {
            assert!(accepts(value), "{value}");
        }
        for value in ["", "identity", "gzip;q=0", "gzip;q=0.000, *", "*;q=0", "xgzip", "gzip;q=bad"] {
            assert!(!accepts(value), "{value}");
        }
        assert!(!accepts_gzip(&HeaderMap::new()));
    }

    #[tokio::test]
    async fn before_the_first_success_there_are_metrics_and_no_instances() {
        let routes = routes();
        let (status, text) = get(&routes, "/metrics").await;
        assert_eq!(status, 200);
        assert!(text.contains("\nzenlayer_up 0\n"));
        assert!(!text.contains("zenlayer_instance"));
        assert_eq!(get(&routes, "/readyz").await, (503, "the first poll is in progress\n".to_owned()));
        let failed = Report { at: std::time::UNIX_EPOCH, outcome: Err("<no> connection".to_owned()) };
        routes.published.update(|state| state.report = Some(failed));
        assert_eq!(get(&routes, "/readyz").await, (503, "no poll has succeeded yet: <no> connection\n".to_owned()));
        assert!(get(&routes, "/").await.1.contains(" ago: <bdi>&lt;no&gt; connection</bdi>"));
    }

    #[tokio::test(start_paused = true)]
    async fn health_is_about_the_poll_loop() {
        let routes = routes();
        let rendered = Rendered::new(b"a 1\n".to_vec(), Arc::default(), Statuses::documented(Service::Vm));
        let snapshot = Snapshot { rendered: Arc::new(rendered), infos: None, taken_at: routes.clock.now() };
        routes.published.update(|state| state.snapshot = Some(Arc::new(snapshot)));
        assert_eq!(get(&routes, "/readyz").await, (200, "ready\n".to_owned()));
        assert_eq!(get(&routes, "/healthz").await, (200, "ok\n".to_owned()));
        tokio::time::advance(Duration::from_secs(181)).await;
        let stuck = "the poll loop has not moved for 3m 1s: restart the process\n";
        assert_eq!(get(&routes, "/healthz").await, (503, stuck.to_owned()));
        assert!(get(&routes, "/metrics").await.1.starts_with("a 1\n"));
        tokio::time::advance(Duration::from_mins(2)).await;
        assert!(get(&routes, "/metrics").await.1.starts_with("# HELP"), "what is too old is not served");
        let old = "ready, but the data is too old to serve: the last successful poll was 5m 1s ago\n";
        assert_eq!(get(&routes, "/readyz").await, (200, old.to_owned()));
    }

    #[tokio::test]
    async fn unknown_paths_share_one_series() {
        let routes = routes();
        for path in ["/a", "/b"] {
            assert_eq!(get(&routes, path).await.0, 404);
        }
        let (_, text) = get(&routes, "/metrics").await;
        assert!(text.contains("zenlayer_exporter_http_requests_total{code=\"404\",path=\"other\"} 2\n"));
    }
}
