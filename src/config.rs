//! Settings as typed → settings as checked.
//!
//! Invariant: a [`Config`] holds only values that work, and a failed check names every mistake in one answer.
//! It must not read the environment itself, nor open a socket.

mod arguments;
mod authorities;
mod check;
mod credentials;
mod environment;
mod flags;
mod proxy;
mod values;

use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use reqwest::Url;
use rustls::pki_types::CertificateDer;

use self::check::Check;
pub use self::environment::Environment;
pub use self::flags::Flags;
pub use self::proxy::Proxy;
use crate::model::{Service, StatusSeries};
use crate::secret::Secret;
use crate::shard::Shard;
use crate::web_config::WebConfig;

/// What the process is asked to do, with the settings it takes.
#[derive(Debug)]
pub enum Command {
    /// Poll and serve until stopped.
    Serve(Config),
    /// `--once`: poll, print the metrics, exit.
    Once(Config),
    /// `--config.check`: make one request, report problems, exit.
    Check(Config),
    /// `--healthcheck`: check the exporter that runs here; its account does not matter to this process.
    Healthcheck {
        /// Where it listens.
        web: Web,
        /// What an operator should know about the settings.
        warnings: Vec<String>,
    },
}

/// Where the instances are.
#[derive(Debug, Clone)]
pub enum Target {
    /// An account at Zenlayer.
    Account {
        /// Scheme, host and port of the API.
        endpoint: Url,
        /// The key, token or profile that requests are authenticated with.
        credentials: CredentialSource,
    },
    /// A simulated API with that many instances.
    Demo {
        /// How many to start with.
        instances: usize,
    },
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Account { endpoint, .. } => f.write_str(endpoint.as_str().trim_end_matches('/')),
            Self::Demo { instances } => write!(f, "Demo: {instances} simulated instances"),
        }
    }
}

/// Where the key or token comes from.
#[derive(Debug, Clone)]
pub enum CredentialSource {
    /// An access key: requests are signed.
    KeyPair {
        /// The access key ID, which is not a secret.
        id: String,
        /// The access key password.
        password: SecretSource,
    },
    /// A personal access token, sent as it is.
    Token(SecretSource),
    /// Either of them, from the vendor CLI's credentials file.
    Profile {
        /// Its credentials file, which may change.
        path: PathBuf,
        /// Which of those in it.
        name: String,
    },
}

/// Where a secret is kept.
#[derive(Debug, Clone)]
pub enum SecretSource {
    /// From the environment: fixed for the life of the process.
    Given(Secret),
    /// In a file that may change.
    File(PathBuf),
}

/// How the API is asked.
#[derive(Debug, Clone)]
pub struct Api {
    /// Which service.
    pub service: Service,
    /// `X-ZC-Version`.
    pub version: String,
    /// Which part of the account is this exporter's.
    pub shard: Shard,
    /// Watch only these, all of them this shard's; `None` means all.
    pub instance_ids: Option<Vec<String>>,
    /// Watch only this resource group.
    pub resource_group_id: Option<String>,
    /// Certificates to trust besides the system's and Mozilla's authorities.
    pub authorities: Vec<CertificateDer<'static>>,
    /// What requests go through; `None` is the direct way.
    pub proxy: Option<Proxy>,
    /// Entries asked for in one page.
    pub page_size: usize,
    /// Requests in flight at most.
    pub concurrency: usize,
    /// One HTTP request, body included.
    pub request_timeout: Duration,
}

impl Api {
    /// What to say, and what to try, where a poll finds nothing.
    pub(crate) fn nothing_found(&self) -> String {
        let Self { service, shard, instance_ids, resource_group_id, .. } = self;
        let place = format!("{} (Zenlayer's {})", service.name(), service.product());
        let group =
            resource_group_id.as_ref().map_or_else(String::new, |group| format!(" in resource group {group:?}"));
        let mut text = match instance_ids.as_deref() {
            Some([]) => return format!("None of the named instances belongs to {shard}."),
            Some(ids) => {
                format!(
                    "None of the {} named instances exists in {place}{group}. Check `--zenlayer.instance-ids`.",
                    ids.len()
                )
            }
            None if shard.is_whole() => format!("No instances found in {place}{group}."),
            None => {
                format!("No instances of {shard} found in {place}{group}. A shard of few instances can be empty.")
            }
        };
        if resource_group_id.is_some() {
            text.push_str(" Check `--zenlayer.resource-group-id`.");
        }
        if let Some(other) = self.other_service() {
            let mut product = other.product().to_owned();
            product[..1].make_ascii_uppercase();
            let verb = if product.ends_with('s') { "are" } else { "is" };
            text = format!("{text} {product} {verb} `--zenlayer.service={}`.", other.name());
        }
        text
    }

    /// The service that may have the instances where a poll finds nothing; `None` where it could not be polled with the
    /// same settings, or the shard has nothing to look for.
    pub(crate) fn other_service(&self) -> Option<Service> {
        let has_nothing = self.instance_ids.as_ref().is_some_and(Vec::is_empty);
        (!has_nothing && self.resource_group_id.is_none()).then(|| self.service.other())
    }
}

/// How often, how long, and until when an answer counts.
#[derive(Debug, Clone)]
pub struct Poll {
    /// From the start of one poll to the start of the next.
    pub interval: Duration,
    /// One whole poll with its retries.
    pub timeout: Duration,
    /// Age at which instance series are no longer served.
    pub max_staleness: Duration,
}

/// What is asked for besides statuses.
#[derive(Debug, Clone)]
pub struct InstanceInfo {
    /// From the start of one round to the start of the next.
    pub interval: Duration,
    /// One whole round with its retries.
    pub timeout: Duration,
    /// Tags to show.
    pub tags: Vec<Tag>,
}

/// A tag that instances may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    /// As the account has it.
    pub key: String,
    /// The label that shows its value.
    pub label: String,
}

/// How the metrics are served.
#[derive(Debug, Clone)]
pub struct Web {
    /// At least one.
    pub listen: Vec<ListenAddress>,
    /// Where the metrics are.
    pub telemetry_path: String,
    /// Connections served at a time.
    pub max_connections: usize,
    /// The file with TLS and passwords.
    pub config_file: Option<PathBuf>,
    /// Health takes no password.
    pub open_health: bool,
}

/// An address as the Prometheus exporters write it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddress {
    /// `:PORT`: every interface, IPv4 and IPv6.
    Any(u16),
    /// `HOST:PORT`; an IPv6 host without its brackets.
    Host(String, u16),
}

impl ListenAddress {
    /// The hosts by which this machine itself may reach the address, and the port. IPv4 is among those of `[::]`: the
    /// exporter may run on a machine that has no IPv6.
    pub fn from_here(&self) -> (Vec<String>, u16) {
        let v4 = || Ipv4Addr::LOCALHOST.to_string();
        let v6 = || Ipv6Addr::LOCALHOST.to_string();
        match self {
            Self::Any(port) => (vec![v4(), v6()], *port),
            Self::Host(host, port) => match host.parse() {
                Ok(IpAddr::V4(ip)) if ip.is_unspecified() => (vec![v4()], *port),
                Ok(IpAddr::V6(ip)) if ip.is_unspecified() => (vec![v6(), v4()], *port),
                _ => (vec![host.clone()], *port),
            },
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any(port) => write!(f, ":{port}"),
            Self::Host(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Host(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

impl FromStr for ListenAddress {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (host, port) = text.rsplit_once(':').ok_or(())?;
        let port = values::whole_number(port).ok_or(())?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        match (bracketed, host) {
            (Some(host), _) => host.parse::<Ipv6Addr>().map(|_| Self::Host(host.to_owned(), port)).map_err(|_| ()),
            (None, "") => Ok(Self::Any(port)),
            (None, host) if host.len() <= values::LONGEST_HOST && host.chars().all(is_in_host_names) => {
                Ok(Self::Host(host.to_owned(), port))
            }
            (None, _) => Err(()),
        }
    }
}

fn is_in_host_names(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-._".contains(c)
}

/// How much is logged, and how it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Log {
    /// The least important level that is written.
    pub level: tracing::Level,
    /// JSON instead of logfmt.
    pub json: bool,
}

/// Every setting, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the instances are.
    pub target: Target,
    /// How the API is asked.
    pub api: Api,
    /// How often.
    pub poll: Poll,
    /// Instance metadata; `None` where the collector is off.
    pub instance_info: Option<InstanceInfo>,
    /// How the metrics are served.
    pub web: Web,
    /// The web config as it was when it was checked.
    pub web_config: Option<WebConfig>,
    /// Which series an instance has.
    pub status_series: StatusSeries,
    /// Logging.
    pub log: Log,
    /// What works, but is probably not meant.
    pub warnings: Vec<String>,
    /// What the log should say of the settings besides.
    pub notes: Vec<String>,
}

impl Config {
    /// What is polled, in words.
    pub fn polled(&self) -> String {
        match self.api.shard {
            Shard::WHOLE => self.target.to_string(),
            shard => format!("{}, {shard}", self.target),
        }
    }
}

/// Why there is nothing to do with the settings.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Help or the version was asked for: this is it.
    #[error("{0}")]
    Asked(clap::Error),
    /// Everything that is wrong with them.
    #[error(transparent)]
    Mistakes(Mistakes),
}

/// Everything that is wrong with the settings, a line each, and what may explain it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Mistakes(pub Vec<String>);

/// What is wrong with a setting, in the form that all such mistakes have.
fn invalid(setting: &str, value: &str, expected: &str) -> String {
    format!("invalid value {} for {setting}: expected {expected}", quoted(value))
}

/// A value as a mistake shows it: without control characters, and cut where it is long.
fn quoted(value: &str) -> String {
    const LONGEST: usize = 100;
    let shown: String = value.chars().take(LONGEST).collect();
    let cut = if shown.len() < value.len() { " (cut)" } else { "" };
    format!("{shown:?}{cut}")
}

impl Command {
    /// Checks the arguments, without the program's name, and the environment.
    ///
    /// # Errors
    /// Every mistake at once; or the help or version that was asked for.
    pub fn read(arguments: impl IntoIterator<Item = OsString>, environment: &Environment) -> Result<Self, Refusal> {
        let given = arguments::read(arguments, environment)?;
        let mut check = Check {
            mistakes: given.mistakes,
            warnings: environment.unknown(&arguments::names()),
            notes: Vec::new(),
            by_variable: &given.by_variable,
            environment,
        };
        match check.command(&given.flags) {
            Some(command) if check.mistakes.is_empty() => Ok(command.with_remarks(check.warnings, check.notes)),
            _ => {
                let warnings = check.warnings.iter().map(|warning| format!("warning: {warning}"));
                Err(Refusal::Mistakes(Mistakes(check.mistakes.into_iter().chain(warnings).collect())))
            }
        }
    }

    fn with_remarks(mut self, warnings: Vec<String>, notes: Vec<String>) -> Self {
        match &mut self {
            Self::Serve(config) | Self::Once(config) | Self::Check(config) => {
                (config.warnings, config.notes) = (warnings, notes);
            }
            Self::Healthcheck { warnings: of_health, .. } => *of_health = warnings,
        }
        self
    }
}

/// Whether the URL stays on this machine.
pub fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let bare = host.trim_matches(['[', ']']);
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
