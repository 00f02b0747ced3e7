//! The flags as declared: name, default and help. The variable of a flag follows from its name.
//!
//! Invariant: every value is text here, so that [`super::Config`] can name all mistakes at once instead of the
//! first. It must not know what a valid value is.

use clap::{Command, CommandFactory, Parser};

use super::environment::variable_of;
use crate::build_info;

const ABOUT: &str = "\
Prometheus exporter for the status of Zenlayer Cloud instances.

Each flag has an environment variable, shown in brackets; the flag overrides the variable. Secrets are never flags: set \
ZENLAYER_ACCESS_KEY_SECRET (or ZENLAYERCLOUD_ACCESS_KEY_PASSWORD) or ZENLAYER_TOKEN, or use a file. Durations: 30s, 5m, \
1h30m. Switches also accept a value: --once=false.";

/// The headings of `--help`, each with how the names of its flags begin.
const HEADINGS: [(&str, &[&str]); 7] = [
    ("HTTP server", &["web."]),
    ("Zenlayer API", &["zenlayer."]),
    ("Polls", &["poll."]),
    ("Metrics", &["metrics.", "collector."]),
    ("Shards", &["shard", "total-shards"]),
    ("Logs", &["log."]),
    ("Commands and demo", &["once", "config.check", "healthcheck", "demo"]),
];

/// The command line: the flags under their headings, each with its variable.
pub(super) fn command() -> Command {
    Flags::command().about(ABOUT).version(build_info::LONG_VERSION).next_line_help(true).mut_args(|arg| {
        let name = arg.get_long().expect("every flag has a long name").to_owned();
        let help = arg.get_help().expect("every flag has a help text").to_string();
        let begins = |prefix: &&str| name.starts_with(prefix);
        let heading = HEADINGS.iter().find(|(_, prefixes)| prefixes.iter().any(begins));
        let (heading, _) = heading.expect("every flag has a heading");
        arg.help(format!("{help}\n[env: {}]", variable_of(&name))).help_heading(*heading)
    })
}

/// The values as they were typed, or the defaults.
#[derive(Debug, Clone, Parser)]
#[command(name = "zenlayer-exporter", hide_possible_values = true)]
pub struct Flags {
    /// Address to listen on; :PORT means all interfaces, IPv4 and IPv6; repeatable
    #[arg(long = "web.listen-address", value_name = "ADDRESS", value_delimiter = ',', default_value = ":10980")]
    pub web_listen_address: Vec<String>,

    /// Path of the metrics
    #[arg(long = "web.telemetry-path", value_name = "PATH", default_value = "/metrics")]
    pub web_telemetry_path: String,

    /// TLS and basic auth, in the Prometheus exporter-toolkit's YAML; reloaded when it changes
    #[arg(long = "web.config.file", value_name = "FILE")]
    pub web_config_file: Option<String>,

    /// Serve /healthz and /readyz without a password and outside rate_limit; client certificates are still required
    #[arg(long = "web.open-health")]
    pub web_open_health: bool,

    /// Maximum number of authenticated connections; a new one then closes the least active one
    #[arg(long = "web.max-connections", value_name = "N", default_value = "256")]
    pub web_max_connections: String,

    /// Address of the API; a bare domain means https [also: ZENLAYER_ENDPOINT, ZENLAYERCLOUD_DOMAIN] [default: https://console.zenlayer.com]
    #[allow(rustdoc::bare_urls, reason = "brackets around it would show in --help")]
    #[arg(long = "zenlayer.endpoint", value_name = "URL")]
    pub zenlayer_endpoint: Option<String>,

    /// Service to poll: vm or zec
    #[arg(long = "zenlayer.service", value_name = "SERVICE", default_value = "vm")]
    pub zenlayer_service: String,

    /// API version, such as 2023-03-13 [default: the newest of the service]
    #[arg(long = "zenlayer.api-version", value_name = "DATE")]
    pub zenlayer_api_version: Option<String>,

    /// Access key ID [also: ZENLAYER_ACCESS_KEY_ID, ZENLAYERCLOUD_ACCESS_KEY_ID]
    #[arg(long = "zenlayer.access-key-id", value_name = "ID")]
    pub zenlayer_access_key_id: Option<String>,

    /// File with the access key password, reread at every poll
    #[arg(long = "zenlayer.access-key-password-file", value_name = "FILE")]
    pub zenlayer_access_key_password_file: Option<String>,

    /// File with a personal access token instead of a key pair, reread at every poll
    #[arg(long = "zenlayer.token-file", value_name = "FILE")]
    pub zenlayer_token_file: Option<String>,

    /// Profile of the vendor's CLI, zeno, with the key or token; without NAME, the one zeno uses
    #[arg(long = "zenlayer.profile", value_name = "NAME", num_args = 0..=1, default_missing_value = "current")]
    pub zenlayer_profile: Option<String>,

    /// Poll only these instance IDs, separated by commas or white space, or repeated [default: all]
    #[arg(long = "zenlayer.instance-ids", value_name = "IDS", value_delimiter = ',')]
    pub zenlayer_instance_ids: Vec<String>,

    /// Poll only this resource group (zec)
    #[arg(long = "zenlayer.resource-group-id", value_name = "ID")]
    pub zenlayer_resource_group_id: Option<String>,

    /// PEM file with certificates to trust for the API, in addition to the system's and Mozilla's authorities
    #[arg(long = "zenlayer.ca-file", value_name = "FILE")]
    pub zenlayer_ca_file: Option<String>,

    /// Allow http:// endpoints outside loopback; anyone on the network path can read and change the traffic
    #[arg(long = "zenlayer.allow-plain-http")]
    pub zenlayer_allow_plain_http: bool,

    /// Instances per page, 1 to 1000
    #[arg(long = "zenlayer.page-size", value_name = "N", default_value = "1000")]
    pub zenlayer_page_size: String,

    /// Maximum number of requests in flight
    #[arg(long = "zenlayer.concurrency", value_name = "N", default_value = "4")]
    pub zenlayer_concurrency: String,

    /// Timeout of one request to the API, including its body
    #[arg(long = "zenlayer.request-timeout", value_name = "DURATION", default_value = "10s")]
    pub zenlayer_request_timeout: String,

    /// Time from the start of one poll to the start of the next [default: 30s, with --demo 5s]
    #[arg(long = "poll.interval", value_name = "DURATION")]
    pub poll_interval: Option<String>,

    /// Timeout of one poll, including its retries
    #[arg(long = "poll.timeout", value_name = "DURATION", default_value = "2m")]
    pub poll_timeout: String,

    /// Instance series older than this are no longer served
    #[arg(long = "poll.max-staleness", value_name = "DURATION", default_value = "5m")]
    pub poll_max_staleness: String,

    /// Also collect names, zones, types and expiry of instances
    #[arg(long = "collector.instance-info")]
    pub collector_instance_info: bool,

    /// Time from the start of one round of --collector.instance-info to the start of the next
    #[arg(long = "collector.instance-info.interval", value_name = "DURATION", default_value = "5m")]
    pub collector_instance_info_interval: String,

    /// Tags to add as labels to zenlayer_instance_info (env becomes tag_env); comma-separated or repeated
    #[arg(long = "collector.instance-info.tags", value_name = "TAGS", value_delimiter = ',')]
    pub collector_instance_info_tags: Vec<String>,

    /// Shard to serve, from 0 to N-1 of --total-shards=N; auto takes the number at the end of the host name
    #[arg(long = "shard", value_name = "N", default_value = "0")]
    pub shard: String,

    /// Number of shards that the instances are distributed over
    #[arg(long = "total-shards", value_name = "N", default_value = "1")]
    pub total_shards: String,

    /// current: one series per instance; all: one series per instance and known status, 1 or 0
    #[arg(long = "metrics.status-series", value_name = "WHICH", default_value = "current")]
    pub metrics_status_series: String,

    /// error, warn, info, debug or trace
    #[arg(long = "log.level", value_name = "LEVEL", default_value = "info")]
    pub log_level: String,

    /// logfmt or json
    #[arg(long = "log.format", value_name = "FORMAT", default_value = "logfmt")]
    pub log_format: String,

    /// Poll a simulated API inside this process with N instances (default 500, at least 2); no account needed
    #[arg(long = "demo", value_name = "N", num_args = 0..=1, default_missing_value = "500")]
    pub demo: Option<String>,

    /// Poll once, print the metrics, and exit: 0, or 1 if the poll failed
    #[arg(long = "once")]
    pub once: bool,

    /// Check all settings and files, send the requests of one poll's start, report problems, and exit
    #[arg(long = "config.check")]
    pub config_check: bool,

    /// Check the exporter running on the listen address, and exit: 0 if it is healthy, else 1
    #[arg(long = "healthcheck")]
    pub healthcheck: bool,
}
