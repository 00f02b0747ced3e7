//! Settings as typed → settings as checked, every mistake noted on the way.
//!
//! Invariant: each method gives the checked value, or notes what is wrong and gives `None`; nothing stops at the first
//! mistake. It must not read the environment itself, nor open a socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::{Api, Command, Config, Flags, InstanceInfo, ListenAddress, Log, Poll, Tag, Target, Web, is_loopback};
use crate::model::{self, Service, StatusSeries};
use crate::shard::{MAX_SHARDS, Shard};
use crate::web_config::WebConfig;

const DEFAULT_ENDPOINT: &str = "https://console.zenlayer.com";
const DEFAULT_INTERVAL: &str = "30s";
/// The simulated instances change fast, so that a newcomer sees it.
const DEMO_INTERVAL: &str = "5s";

/// Collects mistakes.
pub(super) struct Check<'a> {
    pub(super) mistakes: Vec<String>,
    /// Looks up the vendor's own environment variables.
    pub(super) variable: &'a dyn Fn(&str) -> Option<String>,
}

impl Check<'_> {
    pub(super) fn command(&mut self, flags: &Flags) -> Option<Command> {
        if flags.healthcheck && !flags.once && !flags.config_check {
            return self.web(flags).map(Command::Healthcheck);
        }
        let config = self.config(flags);
        match (flags.once, flags.config_check, flags.healthcheck) {
            (false, false, _) => config.map(Command::Serve),
            (true, false, false) => config.map(Command::Once),
            (false, true, false) => config.map(Command::Check),
            _ => self.wrong("--once, --config.check, --healthcheck", "each is a task of its own: give one of them"),
        }
    }

    fn config(&mut self, flags: &Flags) -> Option<Config> {
        let series = [("current", StatusSeries::Current), ("all", StatusSeries::All)];
        // Each is checked before any is missed: all mistakes are to be told.
        let target = self.target(flags);
        let api = self.api(flags);
        let poll = self.poll(flags);
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
        let path = &flags.web_telemetry_path;
        let telemetry_path =
            if !path.starts_with('/') || path.contains(|c: char| c.is_whitespace() || "?#%".contains(c)) {
                self.wrong("--web.telemetry-path", &format!("{path:?} is no path: give one like /metrics"))
            } else if ["/", "/healthz", "/readyz"].contains(&&**path) {
                self.wrong("--web.telemetry-path", &format!("{path} answers something else: give one like /metrics"))
            } else {
                Some(path.clone())
            };
        let max_connections = self.number("--web.max-connections", &flags.web_max_connections, 1, 65_535);
        Some(Web {
            listen: listen.into_iter().collect::<Option<_>>()?,
            telemetry_path: telemetry_path?,
            max_connections: max_connections?,
            config_file: flags.web_config_file.as_ref().map(PathBuf::from),
            open_health: flags.web_open_health,
        })
    }

    /// Not part of `web`: a health check is not to fail for a file that the process it asks has not taken up. `None`
    /// where none is given, too.
    fn web_config(&mut self, flags: &Flags) -> Option<WebConfig> {
        let read = WebConfig::read(Path::new(flags.web_config_file.as_ref()?));
        read.map_err(|mistakes| {
            for mistake in mistakes {
                self.wrong::<()>("--web.config.file", &mistake);
            }
        })
        .ok()
    }

    fn listen_address(&mut self, text: &str) -> Option<ListenAddress> {
        text.parse().ok().or_else(|| {
            let wrong = format!("{text:?} is no address: give one like :10980, 127.0.0.1:10980 or [::1]:10980");
            self.wrong("--web.listen-address", &wrong)
        })
    }

    fn api(&mut self, flags: &Flags) -> Option<Api> {
        let services = [Service::Vm, Service::Zec].map(|service| (service.name(), service));
        let service = self.choice("--zenlayer.service", &flags.zenlayer_service, &services);
        let version = self.api_version(flags, service);
        let instance_ids = self.instance_ids(flags);
        let shard = self.shard(flags);
        let own = instance_ids.filter(|ids| !ids.is_empty()).zip(shard).map(|(mut ids, shard)| {
            ids.retain(|id| shard.owns(id));
            ids
        });
        if flags.zenlayer_resource_group_id.is_some() && service == Some(Service::Vm) {
            let wrong = "the vm service has no such filter: leave it out, or use --zenlayer.service=zec";
            self.wrong::<()>("--zenlayer.resource-group-id", wrong);
        }
        let authorities = self.authorities(flags);
        let page_size = self.number("--zenlayer.page-size", &flags.zenlayer_page_size, 1, 1000);
        let concurrency = self.number("--zenlayer.concurrency", &flags.zenlayer_concurrency, 1, 64);
        let request_timeout = self.duration("--zenlayer.request-timeout", &flags.zenlayer_request_timeout);
        Some(Api {
            service: service?,
            version: version?,
            shard: shard?,
            instance_ids: own,
            resource_group_id: flags.zenlayer_resource_group_id.clone(),
            authorities: authorities?,
            page_size: page_size?,
            concurrency: concurrency?,
            request_timeout: request_timeout?,
        })
    }

    fn api_version(&mut self, flags: &Flags, service: Option<Service>) -> Option<String> {
        let Some(version) = &flags.zenlayer_api_version else {
            return service.map(|service| service.newest_version().to_owned());
        };
        let is_date = version.len() == 10
            && version.bytes().enumerate().all(|(place, byte)| match place {
                4 | 7 => byte == b'-',
                _ => byte.is_ascii_digit(),
            });
        if is_date {
            return Some(version.clone());
        }
        self.wrong("--zenlayer.api-version", &format!("{version:?} is no version: give a date like 2023-03-13"))
    }

    fn instance_ids(&mut self, flags: &Flags) -> Option<Vec<String>> {
        let mut ids: Vec<_> = flags.zenlayer_instance_ids.iter().map(|id| id.trim().to_owned()).collect();
        ids.sort();
        ids.dedup();
        if ids.iter().any(String::is_empty) {
            return self.wrong("--zenlayer.instance-ids", "one of the ids is empty: separate ids by single commas");
        }
        if ids.len() > model::MAX_INSTANCES {
            return self.wrong("--zenlayer.instance-ids", "too many ids");
        }
        Some(ids)
    }

    fn shard(&mut self, flags: &Flags) -> Option<Shard> {
        let total = self.number("--total-shards", &flags.total_shards, 1, MAX_SHARDS)?;
        let is_auto = flags.shard == "auto";
        let number = if is_auto { self.ordinal(total)? } else { self.shard_number(&flags.shard)? };
        Shard::new(number, total).or_else(|| {
            let by_name = if is_auto { " by the host name" } else { "" };
            let last = total - 1;
            let wrong =
                format!("is {number}{by_name}, and --total-shards={total} has 0 to {last}: raise that, or lower this");
            self.wrong("--shard", &wrong)
        })
    }

    fn shard_number(&mut self, text: &str) -> Option<usize> {
        let wrong = || format!("{text:?} is neither a whole number nor auto: give one from 0 to --total-shards less 1");
        text.parse().ok().or_else(|| self.wrong("--shard", &wrong()))
    }

    /// The number that a StatefulSet puts at the end of its pods' names.
    fn ordinal(&mut self, total: usize) -> Option<usize> {
        if total == 1 {
            return self.wrong("--shard", "is auto, with one shard: set --total-shards to the StatefulSet's replicas");
        }
        let Some(host) = self.variable(&["HOSTNAME"]) else {
            return self
                .wrong("--shard", "is auto, and HOSTNAME is not set: set it to the pod's name, or give the number");
        };
        host.rsplit_once('-').and_then(|(_, number)| number.parse().ok()).or_else(|| {
            let wrong = format!("is auto, and the host name {host:?} does not end as exporter-2 does: give the number");
            self.wrong("--shard", &wrong)
        })
    }

    fn authorities(&mut self, flags: &Flags) -> Option<Vec<CertificateDer<'static>>> {
        let Some(file) = &flags.zenlayer_ca_file else {
            return Some(Vec::new());
        };
        let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        match read {
            Ok(certificates) if !certificates.is_empty() => Some(certificates),
            Ok(_) => self.wrong("--zenlayer.ca-file", &format!("{file} has no certificate: give a PEM file")),
            Err(error) => self.wrong("--zenlayer.ca-file", &format!("{file} cannot be read: {error}")),
        }
    }

    fn poll(&mut self, flags: &Flags) -> Option<Poll> {
        let default = if demo(flags).is_some() { DEMO_INTERVAL } else { DEFAULT_INTERVAL };
        let interval = self.duration("--poll.interval", flags.poll_interval.as_deref().unwrap_or(default));
        let timeout = self.duration("--poll.timeout", &flags.poll_timeout);
        let max_staleness = self.duration("--poll.max-staleness", &flags.poll_max_staleness);
        if interval.is_some_and(|interval| interval < Duration::from_secs(1)) {
            self.wrong::<()>("--poll.interval", "is shorter than a second: give 1s or more");
        }
        if interval.zip(max_staleness).is_some_and(|(interval, max_staleness)| max_staleness <= interval) {
            let wrong = "is not longer than --poll.interval, so series would vanish between two polls: raise it";
            self.wrong::<()>("--poll.max-staleness", wrong);
        }
        Some(Poll { interval: interval?, timeout: timeout?, max_staleness: max_staleness? })
    }

    /// Checked also where the collector is off: what is wrong then is wrong on the day it is turned on.
    fn instance_info(&mut self, flags: &Flags, poll: Option<&Poll>) -> Option<InstanceInfo> {
        const INTERVAL: &str = "--collector.instance-info.interval";
        let interval = self.duration(INTERVAL, &flags.collector_instance_info_interval);
        if interval.is_some_and(|interval| interval < Duration::from_secs(1)) {
            self.wrong::<()>(INTERVAL, "is shorter than a second: give 1s or more");
        }
        let tags = self.tags(&flags.collector_instance_info_tags);
        if !flags.collector_instance_info && !flags.collector_instance_info_tags.is_empty() {
            let wrong = "has no effect without --collector.instance-info: add that, or leave the tags out";
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
                self.wrong::<()>(FLAG, "one of the tags is empty: separate tags by single commas");
            } else if let Some(same) = tags.iter().find(|tag| tag.label == label) {
                let wrong = format!("{:?} and {key:?} would both be the label {label}: leave one out", same.key);
                self.wrong::<()>(FLAG, &wrong);
            } else {
                tags.push(Tag { key: key.to_owned(), label });
            }
        }
        (self.mistakes.len() == mistakes).then_some(tags)
    }

    fn target(&mut self, flags: &Flags) -> Option<Target> {
        if let Some(instances) = demo(flags) {
            let of_an_account = [
                ("--zenlayer.endpoint", &flags.zenlayer_endpoint),
                ("--zenlayer.access-key-id", &flags.zenlayer_access_key_id),
                ("--zenlayer.access-key-password-file", &flags.zenlayer_access_key_password_file),
                ("--zenlayer.token-file", &flags.zenlayer_token_file),
                ("--zenlayer.profile", &flags.zenlayer_profile),
            ];
            for (flag, _) in of_an_account.iter().filter(|(_, given)| given.is_some()) {
                self.wrong::<()>("--demo", &format!("polls its own simulated API: leave out {flag}"));
            }
            let instances = self.number("--demo", instances, 0, 1_000_000)?;
            return Some(Target::Demo { instances });
        }
        self.proxies();
        let endpoint = self.endpoint(flags);
        let credentials = self.credentials(flags);
        Some(Target::Account { endpoint: endpoint?, credentials: credentials? })
    }

    /// The client leaves out a proxy that is no URL, and would go where policy may not want it.
    fn proxies(&mut self) {
        for name in ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
            let is_url = |text: &String| {
                let with_scheme = if text.contains("://") { text.clone() } else { format!("http://{text}") };
                Url::parse(&with_scheme).is_ok_and(|url| url.has_host())
            };
            if self.variable(&[name]).is_some_and(|text| !is_url(&text)) {
                self.wrong::<()>(name, "is no URL: give one like http://proxy.example.com:3128, or unset it");
            }
        }
    }

    fn endpoint(&mut self, flags: &Flags) -> Option<Url> {
        const FLAG: &str = "--zenlayer.endpoint";
        let given = flags.zenlayer_endpoint.clone().or_else(|| self.variable(&["ZENLAYER_ENDPOINT"]));
        let text = given.unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        let with_scheme = if text.contains("://") { text.clone() } else { format!("https://{text}") };
        let Some(url) = Url::parse(&with_scheme).ok().filter(Url::has_host) else {
            return self.wrong(FLAG, &format!("{text:?} is no URL: give one like {DEFAULT_ENDPOINT}"));
        };
        if !["https", "http"].contains(&url.scheme()) {
            return self.wrong(FLAG, &format!("{text} is neither https nor http"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return self.wrong(FLAG, "has a user name or password in it: leave them out");
        }
        if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
            return self.wrong(FLAG, &format!("{text} has more than scheme, host and port: leave the rest out"));
        }
        if url.scheme() == "http" && !is_loopback(&url) && !flags.zenlayer_allow_plain_http {
            let wrong = format!(
                "{text} is not encrypted, so anyone on the way can read and change what it says: use https, or \
                 allow it with --zenlayer.allow-plain-http"
            );
            return self.wrong(FLAG, &wrong);
        }
        Some(url)
    }

    /// The first of the variables that is set and not empty.
    pub(super) fn variable(&self, names: &[&str]) -> Option<String> {
        names.iter().filter_map(|name| (self.variable)(name)).find(|text| !text.trim().is_empty())
    }

    fn duration(&mut self, flag: &str, text: &str) -> Option<Duration> {
        match humantime::parse_duration(text) {
            Ok(duration) if !duration.is_zero() => Some(duration),
            Ok(_) => self.wrong(flag, "is zero: give a duration like 30s or 5m"),
            Err(_) => self.wrong(flag, &format!("{text:?} is no duration: give one like 30s or 5m")),
        }
    }

    fn number(&mut self, flag: &str, text: &str, least: usize, most: usize) -> Option<usize> {
        let number = text.parse().ok().filter(|number| (least..=most).contains(number));
        number.or_else(|| self.wrong(flag, &format!("{text:?} is not a whole number from {least} to {most}")))
    }

    fn choice<T: Copy>(&mut self, flag: &str, text: &str, choices: &[(&str, T)]) -> Option<T> {
        if let Some((_, value)) = choices.iter().find(|(name, _)| *name == text) {
            return Some(*value);
        }
        let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
        self.wrong(flag, &format!("{text:?} is none of {}", names.join(", ")))
    }

    pub(super) fn wrong<T>(&mut self, flag: &str, what: &str) -> Option<T> {
        self.mistakes.push(format!("{flag}: {what}"));
        None
    }
}

/// A label's name has letters, digits and underscores; whatever else a tag has is an underscore there.
fn tag_label(key: &str) -> String {
    let fit = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    "tag_".chars().chain(key.chars().map(fit)).collect()
}

/// The number of simulated instances, as typed. A variable may switch the demo on or off as any other switch.
fn demo(flags: &Flags) -> Option<&str> {
    match flags.demo.as_deref() {
        Some("true" | "yes" | "on") => Some("500"),
        Some("false" | "no" | "off") => None,
        other => other,
    }
}
