//! Settings as typed → settings as checked, every mistake noted on the way.
//!
//! Invariant: each method gives the checked value, or notes what is wrong and gives `None`; nothing stops at the first
//! mistake. It must not read the environment itself, nor open a socket.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;

use super::arguments::boolean;
use super::environment::Environment;
use super::values::{self, LONGEST_TEXT, whole_number};
use super::{Api, Command, Config, Flags, InstanceInfo, ListenAddress, Log, Poll, Tag, Target, Web, is_loopback};
use crate::model::{self, Service, StatusSeries};
use crate::shard::{MAX_SHARDS, Shard};
use crate::web_config::WebConfig;

const DEFAULT_ENDPOINT: &str = "https://console.zenlayer.com";
const DEFAULT_INTERVAL: &str = "30s";
/// The simulated instances change fast, so that a newcomer sees it.
const DEMO_INTERVAL: &str = "5s";

/// Instances of a demo that names no number, and the most of one that does.
const DEFAULT_DEMO: usize = 500;
const LARGEST_DEMO: usize = 1_000_000;
/// The shortest durations that are accepted: where something is repeated, and elsewhere.
const SECOND: Duration = Duration::from_secs(1);
const INSTANT: Duration = Duration::from_millis(1);
/// Paths that serve, or will serve, something else than metrics.
const TAKEN_PATHS: [&str; 4] = ["/", "/healthz", "/readyz", "/sd"];
/// Far below what a request's head may have.
const LONGEST_PATH: usize = 1024;

/// Collects mistakes.
pub(super) struct Check<'a> {
    pub(super) mistakes: Vec<String>,
    pub(super) warnings: Vec<String>,
    /// What is as it should be, but easily overlooked.
    pub(super) notes: Vec<String>,
    /// Names of the flags whose value is their variable's.
    pub(super) by_variable: &'a BTreeSet<String>,
    pub(super) environment: &'a Environment,
}

impl Check<'_> {
    pub(super) fn command(&mut self, flags: &Flags) -> Option<Command> {
        if flags.healthcheck && !flags.once && !flags.config_check {
            return self.web(flags).map(|web| Command::Healthcheck { web, warnings: Vec::new() });
        }
        let config = self.config(flags);
        match (flags.once, flags.config_check, flags.healthcheck) {
            (false, false, _) => config.map(Command::Serve),
            (true, false, false) => config.map(Command::Once),
            (false, true, false) => config.map(Command::Check),
            _ => self.wrong("--once, --config.check and --healthcheck", "exclude each other: set one of them"),
        }
    }

    fn config(&mut self, flags: &Flags) -> Option<Config> {
        let series = [("current", StatusSeries::Current), ("all", StatusSeries::All)];
        // Each is checked before any is missed: all mistakes are to be told.
        let target = self.target(flags);
        let api = self.api(flags, target.as_ref());
        let poll = self.poll(flags, target.as_ref());
        let info = self.instance_info(flags, poll.as_ref());
        let web = self.web(flags);
        let web_config = self.web_config(flags);
        let status_series = self.choice("--metrics.status-series", &flags.metrics_status_series, &series);
        let log = self.log(flags);
        Some(Config {
            target: target?,
            api: api?,
            poll: poll?,
            instance_info: info.map(|info| flags.collector_instance_info.then_some(info))?,
            web: web?,
            web_config,
            status_series: status_series?,
            log: log?,
            warnings: Vec::new(),
            notes: Vec::new(),
        })
    }

    fn log(&mut self, flags: &Flags) -> Option<Log> {
        let levels = [
            ("error", tracing::Level::ERROR),
            ("warn", tracing::Level::WARN),
            ("info", tracing::Level::INFO),
            ("debug", tracing::Level::DEBUG),
            ("trace", tracing::Level::TRACE),
        ];
        let level = self.choice("--log.level", &flags.log_level, &levels);
        let json = self.choice("--log.format", &flags.log_format, &[("logfmt", false), ("json", true)]);
        Some(Log { level: level?, json: json? })
    }

    fn web(&mut self, flags: &Flags) -> Option<Web> {
        let listen: Vec<_> = flags.web_listen_address.iter().map(|text| self.listen_address(text)).collect();
        let telemetry_path = self.telemetry_path(&flags.web_telemetry_path);
        let max_connections = self.number("--web.max-connections", &flags.web_max_connections, 1, 65_535);
        Some(Web {
            listen: listen.into_iter().collect::<Option<_>>()?,
            telemetry_path: telemetry_path?,
            max_connections: max_connections?,
            config_file: flags.web_config_file.as_ref().map(PathBuf::from),
            open_health: flags.web_open_health,
        })
    }

    fn telemetry_path(&mut self, path: &str) -> Option<String> {
        const FLAG: &str = "--web.telemetry-path";
        if TAKEN_PATHS.contains(&path) {
            return self.invalid(FLAG, path, "a path that serves nothing else, such as /metrics");
        }
        let segments = || path.split('/').skip(1);
        // A client that finds `..` or `//` in an address may ask for another one.
        let is_usable = path.starts_with('/')
            && path.len() <= LONGEST_PATH
            && path.bytes().all(is_unencoded_in_paths)
            && !segments().any(|segment| [".", ".."].contains(&segment))
            && !path.contains("//");
        if is_usable {
            return Some(path.to_owned());
        }
        self.invalid(FLAG, path, "a path such as /metrics, of characters that need no encoding (RFC 3986)")
    }

    /// Not part of `web`: a health check is not to fail for a file that the process it asks has not taken up. `None`
    /// where none is given, too.
    fn web_config(&mut self, flags: &Flags) -> Option<WebConfig> {
        let read = WebConfig::read(Path::new(flags.web_config_file.as_ref()?));
        read.map_err(|mistakes| {
            for mistake in mistakes {
                self.wrong::<()>("--web.config.file", &format!("cannot be used: {mistake}"));
            }
        })
        .ok()
    }

    fn listen_address(&mut self, text: &str) -> Option<ListenAddress> {
        let parsed = text.trim().parse().ok();
        let expected = "an address such as :10980, 127.0.0.1:10980 or [::1]:10980";
        parsed.or_else(|| self.invalid("--web.listen-address", text, expected))
    }

    fn api(&mut self, flags: &Flags, target: Option<&Target>) -> Option<Api> {
        let services = [Service::Vm, Service::Zec].map(|service| (service.name(), service));
        let service = self.choice("--zenlayer.service", &flags.zenlayer_service, &services);
        let version = self.api_version(flags, service);
        let instance_ids = self.instance_ids(flags);
        let shard = self.shard(flags);
        let own = instance_ids.filter(|ids| !ids.is_empty()).zip(shard).map(|(mut ids, shard)| {
            ids.retain(|id| shard.owns(id));
            ids
        });
        self.resource_group_id(flags.zenlayer_resource_group_id.as_deref(), service);
        let authorities = self.authorities(flags);
        let proxy = match target {
            Some(Target::Account { endpoint, .. }) => self.proxy(endpoint),
            _ => None,
        };
        let page_size = self.number("--zenlayer.page-size", &flags.zenlayer_page_size, 1, 1000);
        let concurrency = self.number("--zenlayer.concurrency", &flags.zenlayer_concurrency, 1, 64);
        let request_timeout = self.duration("--zenlayer.request-timeout", &flags.zenlayer_request_timeout, INSTANT);
        Some(Api {
            service: service?,
            version: version?,
            shard: shard?,
            instance_ids: own,
            resource_group_id: flags.zenlayer_resource_group_id.clone(),
            authorities: authorities?,
            proxy,
            page_size: page_size?,
            concurrency: concurrency?,
            request_timeout: request_timeout?,
        })
    }

    fn api_version(&mut self, flags: &Flags, service: Option<Service>) -> Option<String> {
        let Some(version) = &flags.zenlayer_api_version else {
            return service.map(|service| service.newest_version().to_owned());
        };
        if version.len() == "2023-03-13".len() && humantime::parse_rfc3339(&format!("{version}T00:00:00Z")).is_ok() {
            return Some(version.clone());
        }
        self.invalid("--zenlayer.api-version", version, "a date such as 2023-03-13")
    }

    fn resource_group_id(&mut self, id: Option<&str>, service: Option<Service>) {
        const FLAG: &str = "--zenlayer.resource-group-id";
        let Some(id) = id else { return };
        if !values::is_id(id) {
            self.invalid::<()>(FLAG, id, values::ID);
        }
        if service == Some(Service::Vm) {
            let wrong = "is a filter that the vm service does not have: leave it out, or set --zenlayer.service=zec";
            self.wrong::<()>(FLAG, wrong);
        }
    }

    /// The IDs, which commas separate, or white space: a block of YAML has one per line.
    fn instance_ids(&mut self, flags: &Flags) -> Option<Vec<String>> {
        let between_commas = &flags.zenlayer_instance_ids;
        if between_commas.iter().any(|text| text.trim().is_empty()) {
            return self.wrong("--zenlayer.instance-ids", "has no ID between two commas or next to one: leave it out");
        }
        let mut ids: Vec<_> =
            between_commas.iter().flat_map(|text| text.split_whitespace()).map(str::to_owned).collect();
        ids.sort();
        ids.dedup();
        if let Some(id) = ids.iter().find(|id| !values::is_id(id)) {
            return self.invalid("--zenlayer.instance-ids", id, values::ID);
        }
        if ids.len() > model::MAX_INSTANCES {
            return self.wrong("--zenlayer.instance-ids", "has more IDs than one exporter can watch");
        }
        Some(ids)
    }

    fn shard(&mut self, flags: &Flags) -> Option<Shard> {
        let total = self.number("--total-shards", &flags.total_shards, 1, MAX_SHARDS)?;
        let is_auto = flags.shard == "auto";
        let number = if is_auto { self.ordinal(total)? } else { self.shard_number(&flags.shard)? };
        Shard::new(number, total).or_else(|| {
            let by_name = if is_auto { " (by the host name)" } else { "" };
            let setting = self.setting(&format!("--shard={number}"));
            let last = total - 1;
            self.mistakes.push(format!(
                "{setting}{by_name} is out of range: with --total-shards={total}, shards are 0 to {last}"
            ));
            None
        })
    }

    fn shard_number(&mut self, text: &str) -> Option<usize> {
        let expected = "auto, or a whole number from 0 to --total-shards minus 1";
        whole_number(text).or_else(|| self.invalid("--shard", text, expected))
    }

    /// The number that a StatefulSet puts at the end of its pods' names.
    fn ordinal(&mut self, total: usize) -> Option<usize> {
        if total == 1 {
            return self.invalid("--shard", "auto", "--total-shards set to the StatefulSet's replicas as well");
        }
        let Some((_, host)) = self.variable(&["HOSTNAME"]) else {
            return self.invalid("--shard", "auto", "the variable HOSTNAME to be the pod's name, or give the number");
        };
        host.rsplit_once('-').and_then(|(_, number)| whole_number(number)).or_else(|| {
            let expected = format!("a host name such as exporter-2, not {}: give the number", super::quoted(&host));
            self.invalid("--shard", "auto", &expected)
        })
    }

    fn poll(&mut self, flags: &Flags, target: Option<&Target>) -> Option<Poll> {
        let is_demo = matches!(target, Some(Target::Demo { .. }));
        let default = if is_demo { DEMO_INTERVAL } else { DEFAULT_INTERVAL };
        let interval = flags.poll_interval.as_deref().unwrap_or(default);
        let interval = self.duration("--poll.interval", interval, SECOND);
        let timeout = self.duration("--poll.timeout", &flags.poll_timeout, INSTANT);
        let max_staleness = self.duration("--poll.max-staleness", &flags.poll_max_staleness, SECOND);
        if let Some((interval, max_staleness)) = interval.zip(max_staleness)
            && max_staleness <= interval
        {
            let [interval, max_staleness] = [interval, max_staleness].map(humantime::format_duration);
            let other = self.setting("--poll.interval");
            let wrong = format!(
                "is {max_staleness}, and {other} is {interval}: expected more than the interval, or series disappear \
                 between two polls"
            );
            self.wrong::<()>("--poll.max-staleness", &wrong);
        }
        Some(Poll { interval: interval?, timeout: timeout?, max_staleness: max_staleness? })
    }

    /// Checked also where the collector is off: what is wrong then is wrong on the day it is turned on.
    fn instance_info(&mut self, flags: &Flags, poll: Option<&Poll>) -> Option<InstanceInfo> {
        const INTERVAL: &str = "--collector.instance-info.interval";
        let interval = self.duration(INTERVAL, &flags.collector_instance_info_interval, SECOND);
        let tags = self.tags(&flags.collector_instance_info_tags);
        if !flags.collector_instance_info && !flags.collector_instance_info_tags.is_empty() {
            let wrong = "has no effect without --collector.instance-info: add it, or leave the tags out";
            self.wrong::<()>("--collector.instance-info.tags", wrong);
        }
        let interval = interval?;
        // A round that takes longer than its interval delays the next one, so it may take all of that.
        Some(InstanceInfo { interval, timeout: interval.max(poll?.timeout), tags: tags? })
    }

    fn tags(&mut self, keys: &[String]) -> Option<Vec<Tag>> {
        const FLAG: &str = "--collector.instance-info.tags";
        let mut tags: Vec<Tag> = Vec::with_capacity(keys.len());
        let mistakes = self.mistakes.len();
        for key in keys.iter().map(|key| key.trim()) {
            let label = tag_label(key);
            if key.is_empty() {
                self.wrong::<()>(FLAG, "has an empty tag: separate tags with single commas");
            } else if key.len() > LONGEST_TEXT || key.contains(char::is_control) {
                self.invalid::<()>(FLAG, key, "tags of at most 256 bytes, without control characters");
            } else if let Some(same) = tags.iter().find(|tag| tag.label == label) {
                let wrong =
                    format!("has {:?} and {key:?}, which would both be the label {label}: leave one out", same.key);
                self.wrong::<()>(FLAG, &wrong);
            } else {
                tags.push(Tag { key: key.to_owned(), label });
            }
        }
        (self.mistakes.len() == mistakes).then_some(tags)
    }

    fn target(&mut self, flags: &Flags) -> Option<Target> {
        if let Some(instances) = self.demo(flags)? {
            let of_an_account = [
                ("--zenlayer.endpoint", &flags.zenlayer_endpoint),
                ("--zenlayer.access-key-id", &flags.zenlayer_access_key_id),
                ("--zenlayer.access-key-password-file", &flags.zenlayer_access_key_password_file),
                ("--zenlayer.token-file", &flags.zenlayer_token_file),
                ("--zenlayer.profile", &flags.zenlayer_profile),
            ];
            for (flag, _) in of_an_account.iter().filter(|(_, given)| given.is_some()) {
                let flag = self.setting(flag);
                self.wrong::<()>("--demo", &format!("polls its own simulated API: leave out {flag}"));
            }
            return Some(Target::Demo { instances });
        }
        let endpoint = self.endpoint(flags);
        let credentials = self.credentials(flags);
        Some(Target::Account { endpoint: endpoint?, credentials: credentials? })
    }

    fn endpoint(&mut self, flags: &Flags) -> Option<Url> {
        const EXAMPLE: &str = "an address such as https://console.zenlayer.com";
        let (setting, text) = match &flags.zenlayer_endpoint {
            Some(text) => (self.setting("--zenlayer.endpoint"), text.clone()),
            None => match self.variable(&["ZENLAYER_ENDPOINT", "ZENLAYERCLOUD_DOMAIN"]) {
                Some((name, text)) => (name.to_owned(), text),
                None => (String::new(), DEFAULT_ENDPOINT.to_owned()),
            },
        };
        let with_scheme = if text.contains("://") { text.clone() } else { format!("https://{text}") };
        let wrong = |wrong: &str| format!("{setting} {wrong}");
        // A user name and a password may be in it, or what looks like them: neither is shown.
        if text.contains('@') {
            self.mistakes.push(wrong("has a user name or password in it: leave them out"));
            return None;
        }
        let invalid = |expected: &str| super::invalid(&setting, &text, expected);
        // The parser of URLs drops these, and any number of slashes.
        let is_path = text.starts_with('/') || with_scheme.contains(":///");
        let is_changed = is_path || text.contains(|c: char| c.is_whitespace() || c.is_control());
        let mistake = match Url::parse(&with_scheme).ok().filter(values::has_host).filter(|_| !is_changed) {
            None => invalid(EXAMPLE),
            Some(url) if !["https", "http"].contains(&url.scheme()) => invalid("https or http as the scheme"),
            Some(url) if url.path() != "/" || url.query().is_some() || url.fragment().is_some() => {
                invalid("scheme, host and port, and nothing after them")
            }
            Some(url) if url.port() == Some(0) => invalid("a port from 1 to 65535"),
            Some(url) if url.scheme() == "http" && !is_loopback(&url) && !flags.zenlayer_allow_plain_http => {
                invalid("https, or --zenlayer.allow-plain-http: anyone on the way can read and change plain HTTP")
            }
            Some(url) => return Some(url),
        };
        self.mistakes.push(mistake);
        None
    }

    /// How many instances to simulate; `Some(None)` where none are to be.
    #[allow(clippy::option_option, reason = "a mistake is not a demo that is off")]
    fn demo(&mut self, flags: &Flags) -> Option<Option<usize>> {
        let Some(text) = flags.demo.as_deref() else { return Some(None) };
        match (boolean(text), whole_number(text)) {
            (Some(is_on), _) => Some(is_on.then_some(DEFAULT_DEMO)),
            (None, Some(instances @ 2..=LARGEST_DEMO)) => Some(Some(instances)),
            _ => self.invalid("--demo", text, "true, false, or a number of instances from 2 to 1000000"),
        }
    }
}

/// Whether a path may have the byte as it is: `pchar` and `/` of RFC 3986, section 3.3, without percent encoding.
fn is_unencoded_in_paths(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@".contains(&byte)
}

/// A label's name has letters, digits and underscores; whatever else a tag has is an underscore there.
fn tag_label(key: &str) -> String {
    let fit = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    "tag_".chars().chain(key.chars().map(fit)).collect()
}
