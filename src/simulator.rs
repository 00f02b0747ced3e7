//! A simulated API: behind `--demo`, and what the tests poll.
//!
//! It listens on loopback, checks signatures like the real one, pages like the real one, and rejects what the real
//! one rejects. Error codes that the reference does not name are its own. It must not know the exporter that polls
//! it: whatever it is asked arrives over HTTP.

mod details;
mod fault;
mod fleet;

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::header::{self, HeaderMap};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use reqwest::Url;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

pub use self::fault::Fault;
use self::fault::{Body, whole};
pub use self::fleet::{Fleet, Machine};
use crate::api::Action;
use crate::api::sign;
use crate::api::wire::{MAX_IDS, MAX_PAGE_SIZE};
use crate::config::{CredentialSource, SecretSource};
use crate::model::Service;
use crate::secret::Secret;

/// The one access key id it knows.
pub const KEY_ID: &str = "SIMULATEDKEYID";
/// The password of that key.
pub const PASSWORD: &str = "simulated-password";
/// The one token it knows.
pub const TOKEN: &str = "simulated-token";

/// How the API refuses a look-up of an instance that does not exist.
pub const NOT_FOUND: (u16, &str) = (404, "INVALID_INSTANCE_NOT_FOUND");

/// How far a request's timestamp may be from the simulator's clock.
const TIMESTAMP_TOLERANCE: u64 = 300;
/// Versions of either service that are served.
const VERSIONS: [&str; 4] = ["2023-03-13", "2024-04-01", "2025-09-01", "2026-04-01"];
const MAX_REQUEST: usize = 1 << 20;

/// How the simulator behaves; all of it can be changed while it runs.
#[derive(Debug, Clone)]
pub struct Knobs {
    /// Whose instances it has.
    pub service: Service,
    /// How many it starts with.
    pub instances: usize,
    /// The same seed, the same lives.
    pub seed: u64,
    /// How long a second of its instances' lives takes; `None`: they stay as they are.
    pub tick: Option<Duration>,
    /// How long each answer takes.
    pub latency: Duration,
    /// The payload flat instead of in `response`.
    pub flat: bool,
    /// Requests a second; above, they are refused.
    pub rate_limit: Option<usize>,
    /// The longest page it serves, whatever was asked for.
    pub longest_page: usize,
    /// Every page holds all that matches.
    pub longer_pages: bool,
    /// HTTP status and code of the refusal of a look-up that names an ID which does not exist; `None`: it is left out.
    pub missing_id: Option<(u16, &'static str)>,
    /// After each page one instance is deleted and one created.
    pub churn: bool,
    /// Every page is the first.
    pub repeat_first_page: bool,
    /// The pages after the last one repeat it.
    pub repeat_last_page: bool,
    /// The `totalCount` it claims.
    pub total_count: Option<u64>,
    /// Seconds that its clock is ahead of this machine's.
    pub clock_ahead: i64,
    /// What becomes of a payload before it is sent.
    pub rewrite: Option<fn(&Describe, &mut Value)>,
    /// What goes wrong.
    pub fault: Option<Fault>,
    /// The one action that it goes wrong with; `None`: with all.
    pub fault_of: Option<Action>,
    /// It goes wrong only with look-ups by ID.
    pub fault_by_id: bool,
    /// It goes wrong only on this many connections, the first that were opened; `None`: on all.
    pub fault_on_first: Option<usize>,
    /// It spares the pages with a smaller number.
    pub fault_from_page: usize,
}

impl Knobs {
    /// A faultless API whose instances change only when told to.
    pub fn still(service: Service, instances: usize) -> Self {
        Self {
            service,
            instances,
            seed: 1,
            tick: None,
            latency: Duration::ZERO,
            flat: false,
            rate_limit: None,
            longest_page: MAX_PAGE_SIZE,
            longer_pages: false,
            missing_id: None,
            churn: false,
            repeat_first_page: false,
            repeat_last_page: false,
            total_count: None,
            clock_ahead: 0,
            rewrite: None,
            fault: None,
            fault_of: None,
            fault_by_id: false,
            fault_on_first: None,
            fault_from_page: 1,
        }
    }

    /// A faultless API whose instances live before one's eyes.
    pub fn demo(service: Service, instances: usize) -> Self {
        Self {
            seed: fastrand::u64(..),
            tick: Some(Duration::from_secs(1)),
            latency: Duration::from_millis(20),
            ..Self::still(service, instances)
        }
    }
}

/// What was asked of the simulator so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Requests answered with a page.
    pub answered: usize,
    /// Requests refused for the rate limit.
    pub limited: usize,
    /// Requests that came to nothing otherwise.
    pub failed: usize,
    /// Requests under way now.
    pub in_flight: usize,
    /// The most that were under way at once.
    pub most_at_once: usize,
    /// Connections that were opened.
    pub connections: usize,
}

/// A running simulated API; it ends when dropped.
#[derive(Debug)]
pub struct Simulator {
    address: SocketAddr,
    state: Arc<State>,
    tasks: [AbortHandle; 2],
}

#[derive(Debug)]
struct State {
    knobs: Mutex<Knobs>,
    fleet: Mutex<Fleet>,
    tally: Mutex<Tally>,
    /// When the requests of the last second came.
    recent: Mutex<VecDeque<Instant>>,
}

impl Simulator {
    /// Listens on a loopback port of its own choosing.
    ///
    /// # Errors
    /// When none is free.
    pub async fn start(knobs: Knobs) -> io::Result<Self> {
        Self::start_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?, knobs)
    }

    /// Serves on the caller's listener.
    ///
    /// # Errors
    /// When the listener has no address.
    pub fn start_on(listener: TcpListener, knobs: Knobs) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let fleet = Fleet::new(knobs.service, knobs.instances, knobs.seed);
        let tick = knobs.tick;
        let state = Arc::new(State {
            knobs: Mutex::new(knobs),
            fleet: Mutex::new(fleet),
            tally: Mutex::default(),
            recent: Mutex::default(),
        });
        let serving = tokio::spawn(serve(listener, Arc::clone(&state)));
        let living = tokio::spawn(live(Arc::clone(&state), tick));
        Ok(Self { address, state, tasks: [serving.abort_handle(), living.abort_handle()] })
    }

    /// Where it is.
    pub fn endpoint(&self) -> Url {
        Url::parse(&format!("http://{}", self.address)).expect("a socket address makes a URL")
    }

    /// The key pair it accepts.
    pub fn credentials(&self) -> CredentialSource {
        let password = SecretSource::Given(Secret::new(PASSWORD));
        CredentialSource::KeyPair { id: KEY_ID.to_owned(), password }
    }

    /// Changes how it behaves from the next request on.
    pub fn set(&self, change: impl FnOnce(&mut Knobs)) {
        change(&mut lock(&self.state.knobs));
    }

    /// Reads or changes its instances.
    pub fn with_fleet<T>(&self, use_it: impl FnOnce(&mut Fleet) -> T) -> T {
        use_it(&mut lock(&self.state.fleet))
    }

    /// What was asked of it so far.
    pub fn tally(&self) -> Tally {
        *lock(&self.state.tally)
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// A test that failed with the lock in hand has already said so.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn live(state: Arc<State>, tick: Option<Duration>) {
    let Some(tick) = tick else { return };
    let mut ticks = tokio::time::interval(tick);
    loop {
        ticks.tick().await;
        lock(&state.fleet).tick();
    }
}

async fn serve(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let state = Arc::clone(&state);
        let connection = state.count_connection();
        let service = service_fn(move |request| answer(Arc::clone(&state), connection, request));
        connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        while connections.try_join_next().is_some() {}
    }
}

async fn answer(
    state: Arc<State>,
    connection: usize,
    request: Request<hyper::body::Incoming>,
) -> Result<Response<Body>, std::convert::Infallible> {
    let knobs = lock(&state.knobs).clone();
    let _under_way = UnderWay::begin(&state);
    tokio::time::sleep(knobs.latency).await;
    let (head, body) = request.into_parts();
    let request_id = format!("T{:016X}", fastrand::u64(..));
    let body = Limited::new(body, MAX_REQUEST).collect().await.map(http_body_util::Collected::to_bytes);
    let outcome = match &body {
        Ok(body) => state.describe(&knobs, &head, body),
        Err(_) => Err(Rejection(413, "REQUEST_TOO_LARGE", "the request is too large")),
    };
    let query: Option<Describe> = body.ok().and_then(|body| serde_json::from_slice(&body).ok());
    let hit = |only: Action| text(&head.headers, "x-zc-action") == only.to_string();
    let is_faulty = knobs.fault_of.is_none_or(hit)
        && query.is_none_or(|query| {
            let by_id = !query.instance_ids.is_empty();
            (by_id || !knobs.fault_by_id) && query.page_num >= knobs.fault_from_page
        })
        && knobs.fault_on_first.is_none_or(|first| connection <= first);
    let fault = knobs.fault.as_ref().filter(|_| is_faulty);
    let mut response = match (&outcome, fault) {
        // A fault stands for the API and all that is before it: no request gets past.
        (outcome, Some(fault)) => {
            let right = outcome.as_ref().map_or_else(|_| Bytes::new(), |payload| success(&knobs, &request_id, payload));
            let echo = ["authorization", "proxy-authorization"].map(|name| text(&head.headers, name)).join(" ");
            fault.apply(right, echo.trim()).await
        }
        (Ok(payload), None) => Response::new(whole(success(&knobs, &request_id, payload))),
        (Err(rejection), None) => rejection.response(&request_id),
    };
    state.count(response.status());
    let headers = response.headers_mut();
    headers.entry(header::CONTENT_TYPE).or_insert(header::HeaderValue::from_static("application/json"));
    if knobs.clock_ahead != 0 {
        let date = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(unix_time(&knobs)));
        headers.insert(header::DATE, date.parse().expect("a date is a header value"));
    }
    Ok(response)
}

/// Counts a request for as long as it is under way, also when its client goes away.
struct UnderWay<'a>(&'a State);

impl<'a> UnderWay<'a> {
    fn begin(state: &'a State) -> Self {
        let mut tally = lock(&state.tally);
        tally.in_flight += 1;
        tally.most_at_once = tally.most_at_once.max(tally.in_flight);
        Self(state)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        lock(&self.0.tally).in_flight -= 1;
    }
}

fn success(knobs: &Knobs, request_id: &str, payload: &Value) -> Bytes {
    let mut payload = payload.clone();
    payload["requestId"] = request_id.into();
    let body = if knobs.flat { payload } else { json!({"requestId": request_id, "response": payload}) };
    body.to_string().into()
}

/// HTTP status, code and message of what is refused.
#[derive(Debug)]
struct Rejection(u16, &'static str, &'static str);

impl Rejection {
    fn response(&self, request_id: &str) -> Response<Body> {
        let Self(status, code, message) = self;
        let body = json!({"requestId": request_id, "code": code, "message": message});
        Response::builder().status(*status).body(whole(body.to_string().into())).expect("a known status is valid")
    }
}

/// The body of a request for either action.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Describe {
    /// The IDs to look up; empty for a page.
    pub instance_ids: Vec<String>,
    /// Entries per page.
    pub page_size: usize,
    /// The number of the page, from 1.
    pub page_num: usize,
}

impl Default for Describe {
    fn default() -> Self {
        Self { instance_ids: Vec::new(), page_size: 20, page_num: 1 }
    }
}

impl State {
    /// Returns the number of the connection, from 1.
    fn count_connection(&self) -> usize {
        let mut tally = lock(&self.tally);
        tally.connections += 1;
        tally.connections
    }

    fn count(&self, status: StatusCode) {
        let mut tally = lock(&self.tally);
        match status.as_u16() {
            200 => tally.answered += 1,
            429 => tally.limited += 1,
            _ => tally.failed += 1,
        }
    }

    fn describe(&self, knobs: &Knobs, head: &hyper::http::request::Parts, body: &[u8]) -> Result<Value, Rejection> {
        if head.method != Method::POST || head.uri.path() != format!("/api/v2/{}", knobs.service.name()) {
            return Err(Rejection(404, "INVALID_REQUEST_PATH", "no such service"));
        }
        authenticate(knobs, &head.headers, body)?;
        self.limit_rate(knobs)?;
        let actions = [Action::DescribeInstancesStatus, Action::DescribeInstances];
        let Some(action) = actions.into_iter().find(|action| text(&head.headers, "x-zc-action") == action.to_string())
        else {
            return Err(Rejection(404, "INVALID_ACTION", "no such action"));
        };
        if !VERSIONS.contains(&text(&head.headers, "x-zc-version")) {
            return Err(Rejection(400, "INVALID_VERSION", "no such version"));
        }
        let query: Describe = serde_json::from_slice(body)
            .map_err(|_| Rejection(400, "INVALID_REQUEST_BODY", "the body is no JSON object of this action"))?;
        if !(1..=MAX_PAGE_SIZE).contains(&query.page_size) {
            return Err(Rejection(400, "INVALID_PAGE_SIZE", "pageSize is from 1 to 1000"));
        }
        if query.page_num == 0 {
            return Err(Rejection(400, "INVALID_PAGE_NUM", "pageNum is from 1"));
        }
        if query.instance_ids.len() > MAX_IDS {
            return Err(Rejection(400, "INVALID_INSTANCE_IDS", "at most 100 instanceIds"));
        }
        self.page(knobs, action, &query)
    }

    fn limit_rate(&self, knobs: &Knobs) -> Result<(), Rejection> {
        let Some(limit) = knobs.rate_limit else { return Ok(()) };
        let now = Instant::now();
        let mut recent = lock(&self.recent);
        while recent.front().is_some_and(|&at| now - at >= Duration::from_secs(1)) {
            recent.pop_front();
        }
        if recent.len() >= limit {
            return Err(Rejection(429, "REQUEST_LIMIT_EXCEEDED", "too many requests"));
        }
        recent.push_back(now);
        Ok(())
    }

    fn page(&self, knobs: &Knobs, action: Action, query: &Describe) -> Result<Value, Rejection> {
        let mut fleet = lock(&self.fleet);
        let by_id = !query.instance_ids.is_empty();
        let named: Vec<Machine> = if by_id {
            fleet.machines.iter().filter(|machine| query.instance_ids.contains(&machine.id)).cloned().collect()
        } else {
            Vec::new()
        };
        let matching = if by_id { &named } else { &fleet.machines };
        if let Some((status, code)) = knobs.missing_id.filter(|_| matching.len() < query.instance_ids.len()) {
            return Err(Rejection(status, code, "an instance does not exist"));
        }
        let number = if knobs.repeat_first_page || knobs.longer_pages { 1 } else { query.page_num };
        let length = if knobs.longer_pages { usize::MAX } else { query.page_size.min(knobs.longest_page) };
        let last = matching.len().div_ceil(length.max(1)).max(1);
        let number = if knobs.repeat_last_page { number.min(last) } else { number };
        let start = (number - 1).saturating_mul(length).min(matching.len());
        let end = start.saturating_add(length).min(matching.len());
        let now = unix_time(knobs);
        let entry = |machine: &Machine| match action {
            Action::DescribeInstancesStatus => json!({"instanceId": machine.id, "instanceStatus": machine.status}),
            Action::DescribeInstances => details::details(machine, knobs.service, knobs.seed, now),
        };
        let data_set: Vec<Value> = matching[start..end].iter().map(entry).collect();
        let total = knobs.total_count.unwrap_or(matching.len() as u64);
        if knobs.churn && !by_id {
            fleet.churn();
        }
        let mut payload = json!({"totalCount": total, "dataSet": data_set});
        if let Some(rewrite) = knobs.rewrite {
            rewrite(query, &mut payload);
        }
        Ok(payload)
    }
}

fn authenticate(knobs: &Knobs, headers: &HeaderMap, body: &[u8]) -> Result<(), Rejection> {
    let authorization = text(headers, "authorization");
    if let Some(token) = authorization.strip_prefix("Bearer ") {
        return if token == TOKEN { Ok(()) } else { Err(Rejection(401, "INVALID_TOKEN", "no such token")) };
    }
    let timestamp: u64 = text(headers, "x-zc-timestamp")
        .parse()
        .map_err(|_| Rejection(401, "MISSING_TIMESTAMP", "X-ZC-Timestamp is missing"))?;
    if timestamp.abs_diff(unix_time(knobs)) > TIMESTAMP_TOLERANCE {
        return Err(Rejection(401, "SIGNATURE_EXPIRED", "the timestamp is too far from the server's time"));
    }
    if text(headers, "x-zc-signature-method") != sign::METHOD {
        return Err(Rejection(401, "INVALID_SIGNATURE_METHOD", "no such signature method"));
    }
    let request =
        sign::Request { host: text(headers, "host"), content_type: text(headers, "content-type"), body, timestamp };
    let expected = sign::authorization(request, KEY_ID, &Secret::new(PASSWORD));
    // The SDKs differ in the white space between the parts.
    let packed = |text: &str| text.replace(", ", ",");
    if packed(authorization) == packed(&expected) {
        return Ok(());
    }
    Err(Rejection(401, "INVALID_SIGNATURE", "the signature does not match"))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// The simulator's own idea of the time.
fn unix_time(knobs: &Knobs) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    now.saturating_add_signed(knobs.clock_ahead)
}
