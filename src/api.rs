//! The client: one signed request at a time, with retries, pacing and limits.
//!
//! Invariant: whatever the other side sends, a try ends within its timeout, all bodies together hold no more memory than
//! their budget, reading one takes little more than its length again, and no text of the other side is kept before it is
//! cut short and the credential is taken out of it.
//! It must not know about polls, metrics or what the answers are for.

mod body;
mod codes;
pub mod error;
mod pacer;
mod redaction;
mod round;
pub(crate) mod sign;
mod tls;
mod transport;
pub mod wire;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Response, StatusCode, Url};
use tokio::time::Instant;
use zeroize::Zeroizing;

use self::body::{Budget, ReadError, TimeLeft};
pub(crate) use self::error::Advice;
pub use self::error::{Action, ApiError, Kind, Part};
use self::pacer::Pacer;
use self::redaction::Redaction;
use self::round::Failures;
pub use self::round::Round;
use self::transport::{Connections, Transport};
use self::wire::{Answer, Listing, Malformed, Query, Refusal};
pub use self::wire::{InfoPage, Page};
use crate::config::{Api, CredentialSource};
use crate::credentials;
use crate::secret::Credential;

const CONTENT_TYPE: &str = "application/json";
/// The one content encoding that is asked for: none.
const IDENTITY: &str = "identity";
/// The longest wait that `Retry-After` can ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_mins(1);
/// A clock that differs by more than this from the API's is named where a request is refused.
const CLOCK_TOLERANCE: Duration = Duration::from_mins(1);

const X_ZC_ACTION: HeaderName = HeaderName::from_static("x-zc-action");
const X_ZC_VERSION: HeaderName = HeaderName::from_static("x-zc-version");
const X_ZC_SERVICE: HeaderName = HeaderName::from_static("x-zc-service");
const X_ZC_TIMESTAMP: HeaderName = HeaderName::from_static("x-zc-timestamp");
const X_ZC_SIGNATURE_METHOD: HeaderName = HeaderName::from_static("x-zc-signature-method");

/// Hears of every request, so that this module needs to know no metrics.
pub trait Observer: Send + Sync {
    /// A request ended: `code` is the HTTP status or the label of a [`Kind`].
    fn request_ended(&self, action: Action, code: &str, took: Duration);
    /// A request is tried again, because of `reason`.
    fn request_retried(&self, reason: Kind);
    /// An answer had entries without a usable ID.
    fn entries_skipped(&self, count: usize);
    /// A look-up by ID returned entries that were not requested.
    fn unrequested_entries(&self, count: usize);
}

/// How often a request is tried, and how long is waited in between.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    /// Tries in all.
    pub tries: u32,
    /// The upper bound of the first wait; it doubles each time.
    pub first: Duration,
    /// The upper bound of any wait.
    pub longest: Duration,
    /// How long all requests pause after a first rate limit that names no time of its own.
    pub pause: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            tries: 4,
            first: Duration::from_millis(500),
            longest: Duration::from_secs(8),
            pause: Duration::from_secs(1),
        }
    }
}

impl Backoff {
    /// Full jitter: any wait up to a bound that doubles, so that many clients do not come back together.
    fn wait(&self, attempt: u32) -> Duration {
        let bound = self.first.saturating_mul(2_u32.saturating_pow(attempt - 1)).min(self.longest);
        bound.mul_f64(fastrand::f64())
    }
}

/// One account at one endpoint.
pub struct Client {
    transport: Transport,
    bodies: Budget,
    url: Url,
    host: String,
    credentials: credentials::Reader,
    settings: Api,
    backoff: Backoff,
    pacer: Pacer,
    observer: Arc<dyn Observer>,
}

impl Client {
    /// A client that has connected to nothing yet.
    ///
    /// # Errors
    /// When the HTTP library cannot use the settings.
    pub fn new(
        endpoint: &Url,
        credentials: CredentialSource,
        settings: Api,
        backoff: Backoff,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, reqwest::Error> {
        let mut url = endpoint.clone();
        url.set_path(&format!("/api/v2/{}", settings.service.name()));
        Ok(Self {
            transport: Transport::new(&settings.authorities, settings.proxy.clone(), settings.request_timeout)?,
            bodies: Budget::new(),
            host: host_header(endpoint),
            url,
            credentials: credentials::Reader::new(credentials),
            backoff,
            pacer: Pacer::new(settings.concurrency, backoff.pause),
            settings,
            observer,
        })
    }

    /// How this client asks.
    pub fn settings(&self) -> &Api {
        &self.settings
    }

    /// A poll or a round that has to be done within `limit`; `what` names it in the error if it is not.
    pub fn round(&self, what: &'static str, limit: Duration) -> Round<'_> {
        Round::new(self, what, limit)
    }

    async fn credential(&self, limit: Duration) -> Result<Credential, ApiError> {
        let read = self.credentials.read(limit).await;
        read.map_err(|error| ApiError::new(Kind::Credentials, error.to_string()).caused_by(error))
    }
}

/// A client with the credential of one poll.
pub struct Session<'a> {
    client: &'a Client,
    credential: Credential,
    failures: Arc<Failures>,
}

impl Session<'_> {
    /// How this session's client asks.
    pub fn settings(&self) -> &Api {
        &self.client.settings
    }

    pub(crate) fn observer(&self) -> &dyn Observer {
        &*self.client.observer
    }

    /// The page of that number, from 1.
    ///
    /// # Errors
    /// When no try brought an answer.
    pub(crate) async fn page<P: Listing>(&self, number: u64) -> Result<P, ApiError> {
        let query = Query {
            instance_ids: None,
            resource_group_id: self.settings().resource_group_id.as_deref(),
            page_size: self.settings().page_size,
            page_num: number,
        };
        self.call(P::ACTION, Part::Page(number), &query).await
    }

    /// The entries of at most [`wire::MAX_IDS`] IDs; one that does not exist is left out.
    ///
    /// # Errors
    /// When no try brought an answer; [`Kind::NotFound`] where the API says so of a missing ID.
    pub(crate) async fn look_up<P: Listing>(&self, ids: &[&str]) -> Result<P, ApiError> {
        let query = Query {
            instance_ids: Some(ids),
            resource_group_id: self.settings().resource_group_id.as_deref(),
            page_size: ids.len(),
            page_num: 1,
        };
        self.call(P::ACTION, Part::Ids(ids.len()), &query).await
    }

    async fn call<P: Listing>(&self, action: Action, part: Part, query: &Query<'_>) -> Result<P, ApiError> {
        let request = self.failures.begin(action, part);
        let result = self.try_repeatedly(action, part, query, request).await;
        self.failures.end(request);
        result
    }

    async fn try_repeatedly<P: Listing>(
        &self,
        action: Action,
        part: Part,
        query: &Query<'_>,
        request: u64,
    ) -> Result<P, ApiError> {
        let Client { backoff, pacer, observer, .. } = self.client;
        let body = Bytes::from(query.to_json());
        let longest = body::limit(P::LONGEST_BODY, query.page_size);
        let mut tries = 1;
        loop {
            let (mut error, pause) = match self.attempt::<P>(action, part, body.clone(), longest).await {
                Ok(page) => {
                    observer.entries_skipped(page.head().unusable);
                    return Ok(page);
                }
                Err(failed) => failed,
            };
            error.request = Some((action, part));
            error.advice = self.advice(action, error.kind);
            error.tries = tries;
            if pause.is_some() {
                pacer.remember(&error);
            }
            if tries == backoff.tries || !error.kind.may_pass() {
                return Err(error);
            }
            // After a rate limit the pacer holds every request back; a wait of its own would come on top.
            let wait = pause.unwrap_or_else(|| backoff.wait(tries).max(error.retry_after.unwrap_or_default()));
            tracing::debug!(
                action = %action,
                part = %part,
                code = error.code.as_deref(),
                requestId = error.request_id.as_deref(),
                error = %error,
                next = format!("try {} of {} in {:.1}s", tries + 1, backoff.tries, wait.as_secs_f64()),
                "request failed"
            );
            observer.request_retried(error.kind);
            self.failures.note(request, error);
            if pause.is_none() {
                tokio::time::sleep(wait).await;
            }
            tries += 1;
        }
    }

    /// What a failure depends on besides its kind.
    fn advice(&self, action: Action, kind: Kind) -> Option<Advice> {
        match kind {
            Kind::RateLimit if action == Action::DescribeInstances => Some(Advice::MetadataRateLimit),
            Kind::NotFound | Kind::Client if self.settings().resource_group_id.is_some() => Some(Advice::ResourceGroup),
            _ => None,
        }
    }

    /// One try. A failure comes with the pause that a rate limit put on every request.
    async fn attempt<P: Listing>(
        &self,
        action: Action,
        part: Part,
        body: Bytes,
        longest: usize,
    ) -> Result<P, (ApiError, Option<Duration>)> {
        let permit = self.failures.wait(self.client.pacer.admit()).await;
        let started = Instant::now();
        let connections = self.client.transport.connections(started);
        let result = self.exchange(&connections, action, body, longest).await;
        if result.as_ref().is_err_and(|error| error.kind.doubts_the_connection()) {
            self.client.transport.discard(&connections, Instant::now());
        }
        let code = match &result {
            Ok(_) => StatusCode::OK.as_str().to_owned(),
            Err(error) => error.status.map_or_else(|| error.kind.label().to_owned(), |status| status.to_string()),
        };
        let took = started.elapsed();
        tracing::debug!(%action, %part, code, duration = format!("{:.3}s", took.as_secs_f64()), "request ended");
        self.client.observer.request_ended(action, &code, took);
        match result {
            Err(error) if error.kind == Kind::RateLimit => {
                let pause = permit.refused(error.retry_after);
                Err((error, Some(pause)))
            }
            Err(error) if error.status.is_none() => Err((error, None)),
            answered => {
                permit.accepted();
                answered.map_err(|error| (error, None))
            }
        }
    }

    async fn exchange<P: Listing>(
        &self,
        connections: &Connections,
        action: Action,
        body: Bytes,
        longest: usize,
    ) -> Result<P, ApiError> {
        let sent_at = SystemTime::now();
        let (headers, redaction) = self.headers(action, &body, sent_at)?;
        let request = connections.http.post(self.client.url.clone()).headers(headers).body(body);
        let mut time = TimeLeft(self.client.settings.request_timeout);
        let mut response = match time.spend_on(request.send()).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(self.transport_error(error, &redaction)),
            Err(_) => return Err(self.timed_out()),
        };
        let status = response.status();
        if status.is_redirection() {
            return Err(redirect(&response, &redaction));
        }
        let encoding = foreign_encoding(response.headers(), &redaction);
        if let (true, Some(encoding)) = (status.is_success(), &encoding) {
            return Err(ApiError::new(Kind::Body, format!("HTTP {}, but {encoding}", status.as_u16())));
        }
        let (body, outcome) = self.client.bodies.read(&mut response, longest, &mut time).await;
        if !status.is_success() {
            // Whatever of the body could be read: the status already says that this is a failure.
            return Err(self.refusal(&response, body.bytes(), encoding, sent_at, &redaction));
        }
        outcome.map_err(|error| match error {
            ReadError::TooLong => {
                let limit = body::in_words(longest);
                ApiError::new(Kind::Body, format!("the body is longer than {limit}, the limit for this request"))
            }
            ReadError::TimedOut => self.timed_out(),
            ReadError::Broken(error) => self.transport_error(error, &redaction),
        })?;
        match P::read(body.bytes()) {
            Ok(Answer::Page(mut page)) => {
                let request_id = &mut page.head_mut().request_id;
                *request_id = request_id.take().map(|id| redaction.clean(&id).into_boxed_str());
                page.replace_texts(|text| redaction.redacted(text));
                Ok(page)
            }
            Ok(Answer::Refusal(refusal)) => Err(api_error(status, response.headers(), &refusal, &redaction)),
            Err(error) => Err(malformed(status, &error, body.bytes(), &redaction)),
        }
    }

    /// The headers of a request, and what keeps its credential out of texts from outside.
    fn headers(&self, action: Action, body: &[u8], now: SystemTime) -> Result<(HeaderMap, Redaction), ApiError> {
        let Client { host, settings, .. } = self.client;
        let timestamp = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let text = |text: &str| {
            HeaderValue::from_str(text)
                .map_err(|error| ApiError::new(Kind::Client, "a setting cannot be sent in a header").caused_by(error))
        };
        let mut headers = HeaderMap::with_capacity(9);
        headers.insert(header::HOST, text(host)?);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
        headers.insert(header::ACCEPT, HeaderValue::from_static(CONTENT_TYPE));
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(IDENTITY));
        headers.insert(X_ZC_ACTION, text(&action.to_string())?);
        headers.insert(X_ZC_VERSION, text(&settings.version)?);
        headers.insert(X_ZC_SERVICE, text(settings.service.name())?);
        // A token stands in it as it is.
        let authorization = Zeroizing::new(match &self.credential {
            Credential::Token(token) => format!("Bearer {}", token.expose()),
            Credential::KeyPair { id, password } => {
                headers.insert(X_ZC_TIMESTAMP, text(&timestamp.to_string())?);
                headers.insert(X_ZC_SIGNATURE_METHOD, HeaderValue::from_static(sign::METHOD));
                let request = sign::Request { host, content_type: CONTENT_TYPE, body, timestamp };
                sign::authorization(request, id, password)
            }
        });
        let redaction = Redaction::of(&self.credential, &authorization, settings.proxy.as_ref());
        let mut authorization = text(&authorization)?;
        authorization.set_sensitive(true);
        headers.insert(header::AUTHORIZATION, authorization);
        Ok((headers, redaction))
    }

    fn timed_out(&self) -> ApiError {
        let (host, timeout) = (&self.client.host, humantime::format_duration(self.client.settings.request_timeout));
        ApiError::new(Kind::Timeout, format!("no complete answer from {host} within {timeout}"))
    }

    fn transport_error(&self, error: reqwest::Error, redaction: &Redaction) -> ApiError {
        // The URL is the same for every request; without it the text is shorter.
        let (host, error) = (&self.client.host, error.without_url());
        let cause = || redaction.clean(&innermost(&error));
        let (kind, detail) = if error.is_timeout() {
            return self.timed_out();
        } else if let Some(refused) = tls::refusal(&error) {
            (Kind::Tls, format!("{host} {}", redaction.clean(&refused)))
        } else if error.is_connect() {
            (Kind::Connect, format!("no connection to {host}: {}", cause()))
        } else if error.is_body() || error.is_decode() {
            (Kind::Body, format!("the answer of {host} broke off: {}", cause()))
        } else {
            (Kind::Connect, format!("the connection to {host} broke: {}", cause()))
        };
        ApiError::new(kind, detail).caused_by(error)
    }

    /// What an answer that is not a success means.
    fn refusal(
        &self,
        response: &Response,
        body: &[u8],
        encoding: Option<String>,
        sent_at: SystemTime,
        redaction: &Redaction,
    ) -> ApiError {
        let (status, headers) = (response.status(), response.headers());
        let refusal = wire::read_refusal(body).unwrap_or_default();
        let mut error = api_error(status, headers, &refusal, redaction);
        if let (None, Some(encoding)) = (&refusal.code, encoding) {
            error.explain(&encoding);
        }
        if let (Credential::KeyPair { .. }, Some(skew)) = (&self.credential, clock_skew(headers, sent_at))
            && status.is_client_error()
        {
            error.explain(&skew);
        }
        error
    }
}

/// `Host` as reqwest would send it: the port is there only where it is not the scheme's own.
fn host_header(endpoint: &Url) -> String {
    let host = endpoint.host_str().expect("a checked endpoint has a host");
    endpoint.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn redirect(response: &Response, redaction: &Redaction) -> ApiError {
    let target = response.headers().get(header::LOCATION).map(HeaderValue::as_bytes);
    let target = target.map_or_else(|| "nowhere".into(), String::from_utf8_lossy);
    let status = response.status().as_u16();
    let detail = format!("HTTP {status}, a redirect to {}", redaction.clean(&target));
    let mut error = ApiError::new(Kind::Redirect, detail);
    error.status = Some(status);
    error
}

/// Says so where a body is encoded, though that was not asked for.
fn foreign_encoding(headers: &HeaderMap, redaction: &Redaction) -> Option<String> {
    let values = headers.get_all(header::CONTENT_ENCODING).into_iter();
    let text = values.map(|value| String::from_utf8_lossy(value.as_bytes())).collect::<Vec<_>>().join(", ");
    let is_plain = |coding: &str| coding.is_empty() || coding.eq_ignore_ascii_case(IDENTITY);
    let is_foreign = !text.split(',').map(str::trim).all(is_plain);
    is_foreign.then(|| format!("the body has the Content-Encoding {}, which was not asked for", redaction.clean(&text)))
}

/// An error body of the API, or what stands in its place.
fn api_error(status: StatusCode, headers: &HeaderMap, refusal: &Refusal, redaction: &Redaction) -> ApiError {
    let kind = kind_of(status, headers, refusal.code.as_deref());
    let clean = |word: &Option<Box<str>>| word.as_deref().map(|word| redaction.clean(word).into_boxed_str());
    let (code, message) = (clean(&refusal.code), clean(&refusal.message));
    let mut detail = format!("HTTP {}", status.as_u16());
    if let Some(code) = &code {
        detail.push_str(", code ");
        detail.push_str(code);
    }
    if let Some(message) = message.filter(|message| !message.is_empty()) {
        detail.push_str(", ");
        detail.push_str(message.trim_end_matches('.'));
    }
    let mut error = ApiError::new(kind, detail);
    error.status = Some(status.as_u16());
    error.code = code;
    error.request_id = clean(&refusal.request_id);
    error.retry_after = retry_after(headers, SystemTime::now());
    error
}

fn malformed(status: StatusCode, error: &Malformed, body: &[u8], redaction: &Redaction) -> ApiError {
    let detail = format!("HTTP {}, but {}", status.as_u16(), redaction.clean(&error.to_string()));
    let mut failed = ApiError::new(Kind::Body, detail);
    let request_id = wire::read_refusal(body).ok().and_then(|words| words.request_id);
    failed.request_id = request_id.map(|id| redaction.clean(&id).into_boxed_str());
    failed
}

/// The one place that tells the cases of the reference's Responses apart.
fn kind_of(status: StatusCode, headers: &HeaderMap, code: Option<&str>) -> Kind {
    let challenged = headers.get("cf-mitigated").is_some_and(|value| value.as_bytes() == b"challenge");
    match (status.as_u16(), code.and_then(codes::kind)) {
        (429, _) => Kind::RateLimit,
        (403, _) if challenged => Kind::Challenge,
        (_, Some(kind)) => kind,
        // It is the key that is not found, or the token.
        (401, _) => Kind::Unauthorized,
        _ if code.is_some_and(codes::is_not_found) => Kind::NotFound,
        (403, _) => Kind::Forbidden,
        (451, _) => Kind::Policy,
        (500..=599, _) => Kind::Server,
        _ => Kind::Client,
    }
}

/// `Retry-After` in seconds or as an HTTP date, capped.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default(),
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

/// Says so where this machine's clock is minutes away from the answer's `Date`: then every signature is refused.
fn clock_skew(headers: &HeaderMap, now: SystemTime) -> Option<String> {
    let date = httpdate::parse_http_date(headers.get(header::DATE)?.to_str().ok()?).ok()?;
    let (skew, direction) = match now.duration_since(date) {
        Ok(ahead) => (ahead, "ahead of"),
        Err(error) => (error.duration(), "behind"),
    };
    let rounded = humantime::format_duration(Duration::from_secs(skew.as_secs()));
    (skew > CLOCK_TOLERANCE).then(|| {
        format!("this machine's clock is {rounded} {direction} the API's, set it right and keep it so with NTP")
    })
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|&(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    fn kind(status: u16, code: Option<&str>) -> Kind {
        kind_of(StatusCode::from_u16(status).unwrap(), &HeaderMap::new(), code)
    }

    #[test]
    fn the_host_has_a_port_only_where_it_is_not_the_schemes_own() {
        let host = |url: &str| host_header(&Url::parse(url).unwrap());
        assert_eq!(host("https://console.zenlayer.com"), "console.zenlayer.com");
        assert_eq!(host("https://console.zenlayer.com:443"), "console.zenlayer.com");
        assert_eq!(host("https://console.zenlayer.com:8443"), "console.zenlayer.com:8443");
        assert_eq!(host("http://[::1]:80"), "[::1]");
    }

    #[test]
    fn each_case_of_the_reference_has_its_kind() {
        assert_eq!(kind(429, None), Kind::RateLimit);
        assert_eq!(kind(200, Some("REQUEST_LIMIT_EXCEEDED")), Kind::RateLimit);
        assert_eq!(kind(500, Some("REQUEST_LIMIT_EXCEEDED")), Kind::RateLimit);
        assert_eq!(kind(401, Some("ANY")), Kind::Unauthorized);
        assert_eq!(kind(403, Some("ANY")), Kind::Forbidden);
        assert_eq!(kind(404, Some("INVALID_INSTANCE_NOT_FOUND")), Kind::NotFound);
        assert_eq!(kind(403, Some("OPERATION_FAILED_RESOURCE_NOT_FOUND")), Kind::NotFound);
        assert_eq!(kind(401, Some("Invalid.Instance.Not.Found")), Kind::NotFound);
        assert_eq!(kind(200, Some("INVALID_ZONE_NOT_FOUND.HKG-A")), Kind::NotFound);
        assert_eq!(kind(401, Some("ACCESS_KEY_NOT_FOUND")), Kind::Unauthorized);
        assert_eq!(kind(200, Some("SERVICE_TEMPORARY_UNAVAILABLE")), Kind::Server);
        assert_eq!(kind(401, Some("REQUEST_TIMED_OUT.upstream")), Kind::Server);
        assert_eq!(kind(429, Some("INTERNAL_SERVER_ERROR")), Kind::RateLimit);
        assert_eq!(kind(404, None), Kind::Client);
        assert_eq!(kind(451, None), Kind::Policy);
        assert_eq!(kind(502, None), Kind::Server);
        assert_eq!(kind(200, Some("ANY")), Kind::Client);
        let challenge = headers(&[("cf-mitigated", "challenge")]);
        assert_eq!(kind_of(StatusCode::FORBIDDEN, &challenge, None), Kind::Challenge);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_and_capped() {
        let now = UNIX_EPOCH + Duration::from_secs(784_111_777);
        let wait = |value| retry_after(&headers(&[("retry-after", value)]), now);
        assert_eq!(wait("7"), Some(Duration::from_secs(7)));
        assert_eq!(wait("Sun, 06 Nov 1994 08:49:57 GMT"), Some(Duration::from_secs(20)));
        assert_eq!(wait("Sun, 06 Nov 1994 08:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(wait("86400"), Some(Duration::from_mins(1)));
        assert_eq!(wait("soon"), None);
    }

    #[test]
    fn a_clock_is_named_only_when_it_is_minutes_off() {
        let date = headers(&[("date", "Sun, 06 Nov 1994 08:49:37 GMT")]);
        let at = |seconds| clock_skew(&date, UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(784_111_777 + 59), None);
        assert_eq!(
            at(784_111_777 + 420).as_deref(),
            Some("this machine's clock is 7m ahead of the API's, set it right and keep it so with NTP")
        );
        assert!(at(784_111_777 - 3600).unwrap().contains("1h behind the API's"));
    }

    #[test]
    fn a_request_is_tried_four_times_within_seconds() {
        let Backoff { tries, first, longest, pause } = Backoff::default();
        assert_eq!((tries, first, longest), (4, Duration::from_millis(500), Duration::from_secs(8)));
        assert_eq!(pause, Duration::from_secs(1));
    }

    #[test]
    fn waits_are_jittered_below_a_bound_that_doubles() {
        let backoff = Backoff::default();
        for (attempt, bound) in [(1, 500), (2, 1000), (3, 2000), (9, 8000)] {
            let waits: Vec<_> = (0..200).map(|_| backoff.wait(attempt)).collect();
            let longest = *waits.iter().max().unwrap();
            assert!(longest <= Duration::from_millis(bound), "{longest:?} after try {attempt}");
            assert!(longest > Duration::from_millis(bound * 4 / 5), "{longest:?} after try {attempt}");
        }
    }
}
