//! The errors between a request and its response: the label of each kind in metrics, and whether a retry may help.
//!
//! Invariant: the text of an error says what failed, where, and what to do about it; the API's `code` and
//! `requestId` are in it whenever the API gave them. It must not know how metrics or logs are written.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::plural::counted;

/// The actions this exporter asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// IDs and statuses, by page or by ID.
    DescribeInstancesStatus,
    /// Instance metadata, by page or by ID.
    DescribeInstances,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DescribeInstancesStatus => "DescribeInstancesStatus",
            Self::DescribeInstances => "DescribeInstances",
        })
    }
}

/// Which part of an account one request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The page of that number, from 1.
    Page(u64),
    /// A look-up of that many IDs.
    Ids(usize),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Page(number) => write!(f, "page {number}"),
            Self::Ids(count) => write!(f, "look-up of {}", counted(*count, "ID")),
        }
    }
}

/// The kinds of failure, each a value of the labels `outcome`, `code` and `reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// No complete answer within the request timeout.
    Timeout,
    /// No connection, or one that broke before the answer began.
    Connect,
    /// The server's certificate does not verify, or it speaks no TLS.
    Tls,
    /// An answer that broke off, was too long, or was not the JSON it should be.
    Body,
    /// HTTP 429, or `REQUEST_LIMIT_EXCEEDED` under any status.
    RateLimit,
    /// HTTP 5xx, or a code that says the same under any status.
    Server,
    /// HTTP 401: the signature or the token was refused.
    Unauthorized,
    /// HTTP 403 from the API itself.
    Forbidden,
    /// HTTP 403 from the network in front of the API.
    Challenge,
    /// HTTP 451.
    Policy,
    /// HTTP 3xx.
    Redirect,
    /// A code of the form `…_NOT_FOUND`, as a look-up of IDs that are gone may answer.
    NotFound,
    /// Any other refusal.
    Client,
    /// The key or token could not be read.
    Credentials,
    /// Answers that cannot all be true, or more than the exporter takes.
    Inconsistent,
    /// The whole poll took longer than `--poll.timeout`, and no error explains why.
    Deadline,
}

impl Kind {
    /// Every kind, so that metrics can start each at 0.
    pub const ALL: [Self; 16] = [
        Self::Timeout,
        Self::Connect,
        Self::Tls,
        Self::Body,
        Self::RateLimit,
        Self::Server,
        Self::Unauthorized,
        Self::Forbidden,
        Self::Challenge,
        Self::Policy,
        Self::Redirect,
        Self::NotFound,
        Self::Client,
        Self::Credentials,
        Self::Inconsistent,
        Self::Deadline,
    ];

    /// The label value in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Body => "body",
            Self::RateLimit => "rate_limit",
            Self::Server => "server",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::Challenge => "challenge",
            Self::Policy => "policy",
            Self::Redirect => "redirect",
            Self::NotFound => "not_found",
            Self::Client => "client",
            Self::Credentials => "credentials",
            Self::Inconsistent => "inconsistent",
            Self::Deadline => "deadline",
        }
    }

    /// Whether the same request may succeed a moment later.
    pub fn may_pass(self) -> bool {
        matches!(self, Self::Timeout | Self::Connect | Self::Body | Self::RateLimit | Self::Server)
    }

    /// Whether the API, or something in its place, gave an answer to the request itself.
    pub(crate) fn is_answer(self) -> bool {
        !matches!(
            self,
            Self::Timeout | Self::Connect | Self::Tls | Self::Credentials | Self::Inconsistent | Self::Deadline
        )
    }

    /// Whether the connection may lead to the wrong place, or nowhere: then the next try needs another.
    pub(super) fn doubts_the_connection(self) -> bool {
        self.may_pass() && self != Self::RateLimit
    }

    /// What a person can do about it; `None` where the detail says it already.
    fn advice(self) -> Option<&'static str> {
        match self {
            Self::Timeout => Some("check the network; if the API is only slow, raise --zenlayer.request-timeout"),
            Self::Connect => Some("check the network, DNS, HTTPS_PROXY, HTTP_PROXY and --zenlayer.endpoint"),
            Self::Tls => Some(
                "check --zenlayer.endpoint; behind an inspecting proxy, name its certificate authority with \
                 --zenlayer.ca-file",
            ),
            Self::Body => Some("a proxy or gateway may be answering in the API's place: check --zenlayer.endpoint"),
            Self::RateLimit => Some("raise --poll.interval, or ask Zenlayer for a higher limit"),
            Self::Server => Some("the API itself failed; if it lasts, ask Zenlayer's support"),
            Self::Unauthorized => {
                Some("check that access key id and password, or the token, belong together and are active")
            }
            Self::Forbidden => Some("allow this key to describe instances, or use another"),
            Self::Challenge => {
                Some("a security challenge stands before the API: ask Zenlayer to allow this machine's address")
            }
            Self::Policy => Some("a policy forbids this machine's address: ask Zenlayer, or poll from elsewhere"),
            Self::Redirect => {
                Some("a signed request goes to no other host: give --zenlayer.endpoint the final address")
            }
            Self::NotFound | Self::Client => {
                Some("check --zenlayer.endpoint, --zenlayer.service and --zenlayer.api-version")
            }
            Self::Credentials | Self::Inconsistent => None,
            Self::Deadline => Some("raise --poll.timeout or --zenlayer.concurrency"),
        }
    }
}

/// What to do about a failure, where its kind alone does not say.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Advice {
    /// Requests for metadata are too many.
    MetadataRateLimit,
    /// A round of metadata took too long.
    MetadataDeadline,
    /// A resource group is set, which may be wrong.
    ResourceGroup,
}

impl Advice {
    fn text(self) -> &'static str {
        match self {
            Self::MetadataRateLimit => {
                "raise --collector.instance-info.interval or --poll.interval, or ask Zenlayer for a higher limit"
            }
            Self::MetadataDeadline => "raise --collector.instance-info.interval or --zenlayer.concurrency",
            Self::ResourceGroup => {
                "check --zenlayer.resource-group-id, --zenlayer.endpoint, --zenlayer.service and --zenlayer.api-version"
            }
        }
    }
}

/// One failure, ready to be read by a person.
#[derive(Debug, Clone)]
pub struct ApiError {
    /// What kind of failure it is.
    pub kind: Kind,
    /// The request that failed; `None` where it never came to one.
    pub request: Option<(Action, Part)>,
    /// How many times it was tried.
    pub tries: u32,
    /// The HTTP status, where the failure is what it says.
    pub status: Option<u16>,
    /// The API's stable error code.
    pub code: Option<Box<str>>,
    /// What Zenlayer's support asks for.
    pub request_id: Option<Box<str>>,
    /// How long the API asks to wait.
    pub retry_after: Option<Duration>,
    /// Instances that the API counts and that were not found, where that is the failure; else 0.
    pub missing: u32,
    /// Whether a poll or round ran out of time, and this is the last error of its requests: the detail says so.
    is_overdue: bool,
    /// What to do about it, where the kind alone does not say.
    pub(crate) advice: Option<Advice>,
    detail: Box<str>,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

impl ApiError {
    /// An error of that kind; `detail` says what happened, in lower case and without a full stop.
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            request: None,
            tries: 1,
            status: None,
            code: None,
            request_id: None,
            retry_after: None,
            missing: 0,
            is_overdue: false,
            advice: None,
            detail: detail.into().into_boxed_str(),
            source: None,
        }
    }

    /// Adds the error underneath.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into().into());
        self
    }

    /// Notes how many instances the API counts and were not found.
    #[must_use]
    pub(crate) fn with_missing(mut self, instances: u64) -> Self {
        self.missing = u32::try_from(instances).unwrap_or(u32::MAX);
        self
    }

    /// The error of a whole poll or round that ran out of time, of which this is the last error of a request.
    pub(super) fn kept_from_finishing(mut self, overdue: &str) -> Self {
        let request = self.request.map_or(String::new(), |(action, part)| format!("{action}, {part}: "));
        self.detail = format!("{overdue}; the last error: {request}{}", self.detail).into_boxed_str();
        self.is_overdue = true;
        self
    }

    fn advice(&self) -> Option<&'static str> {
        match (self.kind, self.status) {
            (_, Some(407)) => Some("check user name and password of the proxy in HTTPS_PROXY, HTTP_PROXY or ALL_PROXY"),
            // The API's own failures have a code.
            (Kind::Server, _) if self.code.is_none() => Some(
                "the API failed, or a proxy or gateway before it; if it lasts, check these, then ask Zenlayer's support",
            ),
            _ => self.advice.map(Advice::text).or(self.kind.advice()),
        }
    }

    /// Adds to what happened.
    pub fn explain(&mut self, more: &str) {
        self.detail = format!("{}; {more}", self.detail).into_boxed_str();
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (Some((action, part)), false) = (self.request, self.is_overdue) {
            write!(f, "{action}, {part}: ")?;
        }
        f.write_str(&self.detail)?;
        if let Some(id) = &self.request_id {
            write!(f, " (requestId {id})")?;
        }
        if self.tries > 1 {
            write!(f, ", {} tries", self.tries)?;
        }
        let Some(advice) = self.advice() else { return Ok(()) };
        write!(f, ": {advice}")?;
        match self.request_id {
            Some(_) if self.kind == Kind::Server => f.write_str(", with the requestId"),
            _ => Ok(()),
        }
    }
}

impl Error for ApiError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// Text from outside, fit for one line of a log or page: invisible characters are blanks, and it is not long.
pub fn clean_foreign_text(text: &str) -> String {
    shortened(&visible(beginning(text)))
}

/// As much of a text from outside as is looked at: it may be as long as a body.
pub(super) fn beginning(text: &str) -> &str {
    const MOST: usize = 4 << 10;
    &text[..text.floor_char_boundary(MOST)]
}

/// The text with a blank in place of each character that is invisible or changes how others are shown.
pub(super) fn visible(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || is_format_or_separator(c) { ' ' } else { c }).collect()
}

/// The mark at the end of a text that was cut short.
pub(super) const CUT: &str = "…";

/// The beginning of a long text.
pub(super) fn shortened(text: &str) -> String {
    const LONGEST: usize = 300;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}{CUT}", &text[..end]),
        None => text.to_owned(),
    }
}

/// Unicode's general categories Cf, Zl and Zp (version 16): soft hyphens, marks of direction, line separators, tags.
fn is_format_or_separator(c: char) -> bool {
    matches!(
        c,
        '\u{ad}'
            | '\u{600}'..='\u{605}'
            | '\u{61c}'
            | '\u{6dd}'
            | '\u{70f}'
            | '\u{890}'..='\u{891}'
            | '\u{8e2}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{110bd}'
            | '\u{110cd}'
            | '\u{13430}'..='\u{1343f}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0001}'
            | '\u{e0020}'..='\u{e007f}'
    )
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn an_error_reads_as_one_sentence() {
        let mut error =
            ApiError::new(Kind::Unauthorized, "HTTP 401, code INVALID_SIGNATURE, the signature does not match");
        error.request = Some((Action::DescribeInstancesStatus, Part::Page(3)));
        error.request_id = Some("T0001".into());
        assert_eq!(
            error.to_string(),
            "DescribeInstancesStatus, page 3: HTTP 401, code INVALID_SIGNATURE, the signature does not match \
             (requestId T0001): check that access key id and password, or the token, belong together and are active"
        );
        error.tries = 4;
        assert!(error.to_string().contains("(requestId T0001), 4 tries: check"));
        let late = error.kept_from_finishing("the poll did not finish within 2m").to_string();
        let says = "the poll did not finish within 2m; the last error: DescribeInstancesStatus, page 3: HTTP 401, code";
        assert!(late.starts_with(says), "{late}");
        assert!(late.contains(" (requestId T0001), 4 tries: check"), "{late}");
    }

    #[test]
    fn support_is_given_a_request_id_only_where_there_is_one() {
        let mut error = ApiError::new(Kind::Server, "HTTP 502, code X");
        error.code = Some("X".into());
        assert_eq!(error.to_string(), "HTTP 502, code X: the API itself failed; if it lasts, ask Zenlayer's support");
        error.request_id = Some("T1".into());
        assert!(error.to_string().ends_with(
            "(requestId T1): the API itself failed; if it lasts, ask Zenlayer's support, with the requestId"
        ));
        error.code = None;
        assert!(error.to_string().contains("the API failed, or a proxy or gateway before it; if it lasts"));
    }

    #[test]
    fn labels_are_distinct() {
        let labels: HashSet<_> = Kind::ALL.map(Kind::label).into();
        assert_eq!(labels.len(), Kind::ALL.len());
    }

    #[test]
    fn foreign_text_stays_on_one_short_line() {
        assert_eq!(clean_foreign_text("a\nb\u{1b}[31m"), "a b [31m");
        assert_eq!(clean_foreign_text(&"é".repeat(400)).chars().count(), 301);
        assert_eq!(clean_foreign_text(&"é".repeat(300)).chars().count(), 300);
    }

    #[test]
    fn characters_that_hide_or_turn_others_are_blanks() {
        for (start, end) in [
            ('\u{0}', '\u{1f}'),
            ('\u{7f}', '\u{9f}'),
            ('\u{200b}', '\u{200f}'),
            ('\u{2028}', '\u{202e}'),
            ('\u{2060}', '\u{2064}'),
            ('\u{2066}', '\u{206f}'),
            ('\u{e0020}', '\u{e007f}'),
        ] {
            for c in start..=end {
                assert_eq!(clean_foreign_text(&format!("a{c}b")), "a b", "{c:?}");
            }
        }
        for c in ['\u{ad}', '\u{61c}', '\u{180e}', '\u{feff}', '\u{fff9}', '\u{110bd}', '\u{e0001}'] {
            assert_eq!(clean_foreign_text(&format!("a{c}b")), "a b", "{c:?}");
        }
        let plain = "Größe 実例 🦀 a\u{301} \u{a0}\u{3000}\u{2027}\u{2030}";
        assert_eq!(clean_foreign_text(plain), plain);
    }
}
