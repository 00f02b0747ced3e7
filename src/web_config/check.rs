//! The tree of the YAML → settings, every mistake noted on the way.
//!
//! Invariant: whatever is not used as written is noted, as a mistake or as a warning, and what comes out counts only where
//! there is no mistake. It must not know TLS beyond which keys there are: `tls` does.

use std::time::Duration;

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::yaml::{Entry, Node, Value};
use super::{Hash, RateLimit, Settings, Users};

/// The headers that may be set, with the values they may have; none listed is any.
const HEADERS: [(&str, HeaderName, &[&str]); 5] = [
    ("Content-Security-Policy", header::CONTENT_SECURITY_POLICY, &[]),
    ("X-Frame-Options", header::X_FRAME_OPTIONS, &["deny", "sameorigin"]),
    ("X-Content-Type-Options", header::X_CONTENT_TYPE_OPTIONS, &["nosniff"]),
    ("X-XSS-Protection", header::X_XSS_PROTECTION, &[]),
    ("Strict-Transport-Security", header::STRICT_TRANSPORT_SECURITY, &[]),
];

/// Collects mistakes.
pub(super) struct Check<'r> {
    pub(super) mistakes: Vec<String>,
    /// What is used in another way than as written.
    pub(super) warnings: Vec<String>,
    /// Gets a file by its name as written.
    pub(super) read: &'r mut dyn FnMut(&str) -> Result<Vec<u8>, String>,
}

/// Says that something is wrong, where `None` says that it is not there. The mistake is noted.
pub(super) struct Noted;

/// The keys of one mapping that are taken out one by one.
pub(super) struct Fields {
    /// What leads to it, like `tls_server_config`; empty at the root.
    path: String,
    line: usize,
    entries: Vec<Entry>,
}

impl Fields {
    /// Where the mapping begins.
    pub(super) fn line(&self) -> usize {
        self.line
    }

    /// Whether every value is `Null`, which is to say that no key is given.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.iter().all(|entry| matches!(entry.node.value, Value::Null))
    }

    fn name(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn take(&mut self, key: &str) -> Option<Node> {
        let place = self.entries.iter().position(|entry| entry.key == key)?;
        let node = self.entries.remove(place).node;
        (!matches!(node.value, Value::Null)).then_some(node)
    }
}

impl Check<'_> {
    /// Without what is wrong, which is noted.
    pub(super) fn settings(&mut self, root: Node) -> Settings {
        let keys = ["tls_server_config", "http_server_config", "basic_auth_users", "rate_limit"];
        let Some(mut root) = self.fields("", root, &keys) else { return Settings::default() };
        let (http2, headers) = match root.take("http_server_config") {
            Some(node) => self.http(node).unwrap_or_default(),
            None => (true, HeaderMap::new()),
        };
        Settings {
            tls: root.take("tls_server_config").and_then(|node| self.tls(node, http2)),
            headers,
            users: root.take("basic_auth_users").and_then(|node| self.users(node)).unwrap_or_default(),
            rate_limit: root.take("rate_limit").and_then(|node| self.rate_limit(node)),
            warnings: std::mem::take(&mut self.warnings),
        }
    }

    /// The mapping under a key, less what is not among the keys it may have.
    pub(super) fn fields(&mut self, path: &str, node: Node, keys: &[&str]) -> Option<Fields> {
        let entries = match node.value {
            Value::Map(entries) => entries,
            Value::Null => Vec::new(),
            _ if path.is_empty() => return self.wrong(node.line, "the file", "must be a mapping of keys to values"),
            _ => return self.wrong(node.line, path, "must be a mapping of keys to values"),
        };
        let mut fields = Fields { path: path.to_owned(), line: node.line, entries };
        let (known, unknown) =
            std::mem::take(&mut fields.entries).into_iter().partition(|entry: &Entry| keys.contains(&&*entry.key));
        fields.entries = known;
        for Entry { key, line, .. } in unknown {
            self.wrong::<()>(line, &fields.name(&key), &format!("unknown key: expected one of {}", keys.join(", ")));
        }
        Some(fields)
    }

    fn http(&mut self, node: Node) -> Option<(bool, HeaderMap)> {
        let mut fields = self.fields("http_server_config", node, &["http2", "headers"])?;
        let http2 = self.switch(&mut fields, "http2", true);
        let mut headers = HeaderMap::new();
        if let Some(node) = fields.take("headers") {
            let names = HEADERS.map(|(name, ..)| name);
            let mut fields = self.fields("http_server_config.headers", node, &names)?;
            for (name, header, values) in HEADERS {
                if let Some((line, value)) = self.text(&mut fields, name) {
                    let value = self.header(line, &fields.name(name), &value, values)?;
                    headers.insert(header, value);
                }
            }
        }
        Some((http2?, headers))
    }

    fn header(&mut self, line: usize, name: &str, value: &str, values: &[&str]) -> Option<HeaderValue> {
        if !values.is_empty() && !values.contains(&value) {
            return self.wrong(line, name, &format!("must be {}, not {value:?}", values.join(" or ")));
        }
        let value = HeaderValue::from_str(value).ok();
        value.or_else(|| self.wrong(line, name, "has characters that are not allowed in a header"))
    }

    fn users(&mut self, node: Node) -> Option<Users> {
        const PATH: &str = "basic_auth_users";
        let Value::Map(entries) = node.value else {
            return self.wrong(node.line, PATH, "must be a mapping of names to bcrypt hashes");
        };
        let mut users = Users::new();
        let mut slowest: Option<(usize, String, Hash)> = None;
        for Entry { key: user, line, node } in entries {
            let name = format!("{PATH}.{user}");
            let hash = match &node.value {
                Value::Text(text) => Hash::parse(text),
                _ => Hash::parse(""),
            };
            match hash {
                _ if user.contains(|c: char| c == ':' || c.is_control()) => {
                    self.wrong::<()>(line, &name, "has a colon or a control character");
                }
                Ok(hash) => {
                    if hash.is_expensive() && slowest.as_ref().is_none_or(|(.., slowest)| hash.cost > slowest.cost) {
                        slowest = Some((line, name, hash.clone()));
                    }
                    users.insert(user, hash);
                }
                Err(mistake) => drop(self.wrong::<()>(line, &name, mistake)),
            }
        }
        if let Some((line, name, hash)) = slowest {
            let time = hash.check_time().as_secs_f64();
            let what = format!(
                "one check takes about {time:.1}s on this machine (bcrypt cost {}): use cost 10 to 12",
                hash.cost
            );
            self.warn(line, &name, &what);
        }
        Some(users)
    }

    fn rate_limit(&mut self, node: Node) -> Option<RateLimit> {
        let line = node.line;
        let mut fields = self.fields("rate_limit", node, &["interval", "burst"])?;
        let interval = match self.text(&mut fields, "interval") {
            None => Some(Duration::ZERO),
            // A bare number is nanoseconds, as in Go.
            Some((line, text)) => {
                text.parse().map(Duration::from_nanos).or(humantime::parse_duration(&text)).ok().or_else(|| {
                    self.wrong(line, "rate_limit.interval", &format!("must be a duration such as 100ms, not {text:?}"))
                })
            }
        };
        let burst = match self.text(&mut fields, "burst") {
            None => Some(0),
            Some((line, text)) => text.parse::<u32>().ok().or_else(|| {
                self.wrong(line, "rate_limit.burst", &format!("must be a non-negative integer, not {text:?}"))
            }),
        };
        match (interval?, burst?) {
            (Duration::ZERO, _) => None,
            (interval, burst) => {
                if burst == 0 {
                    self.warn(line, "rate_limit.burst", "is missing or 0: every request is refused");
                }
                Some(RateLimit { interval, burst })
            }
        }
    }

    /// Text that is there; blank is none, as in the toolkit.
    pub(super) fn text(&mut self, fields: &mut Fields, key: &str) -> Option<(usize, String)> {
        let node = fields.take(key)?;
        match node.value {
            Value::Text(text) if text.is_empty() => None,
            Value::Text(text) => Some((node.line, text)),
            _ => self.wrong(node.line, &fields.name(key), "must be a string"),
        }
    }

    pub(super) fn switch(&mut self, fields: &mut Fields, key: &str, default: bool) -> Option<bool> {
        let Some((line, text)) = self.text(fields, key) else { return Some(default) };
        match &*text {
            "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "y" | "Y" | "on" | "On" | "ON" => Some(true),
            "false" | "False" | "FALSE" | "no" | "No" | "NO" | "n" | "N" | "off" | "Off" | "OFF" => Some(false),
            _ => self.wrong(line, &fields.name(key), &format!("must be true or false, not {text:?}")),
        }
    }

    /// The texts of a list, each with its line; `None` where there is no list.
    pub(super) fn texts(&mut self, fields: &mut Fields, key: &str) -> Option<Vec<(usize, String)>> {
        let node = fields.take(key)?;
        let Value::List(items) = node.value else {
            return self.wrong(node.line, &fields.name(key), "must be a list of strings");
        };
        let mut texts = Vec::new();
        for item in items {
            match item.value {
                Value::Text(text) => texts.push((item.line, text)),
                _ => drop(self.wrong::<()>(item.line, &fields.name(key), "must be a list of strings")),
            }
        }
        Some(texts)
    }

    pub(super) fn warn(&mut self, line: usize, name: &str, what: &str) {
        self.warnings.push(format!("line {line}: {name}: {what}"));
    }

    pub(super) fn wrong<T>(&mut self, line: usize, name: &str, what: &str) -> Option<T> {
        self.mistakes.push(format!("line {line}: {name}: {what}"));
        None
    }
}
