//! The command line as typed: every flag, its variable, its default and its help.
//!
//! Invariant: every value is text here, so that [`super::Config`] can name all mistakes at once instead of the
//! first. It must not know what a valid value is.

use clap::Parser;
use clap::builder::FalseyValueParser;

/// Prometheus exporter for the status of Zenlayer Cloud instances.
///
/// Secrets are never flags: set ZENLAYER_ACCESS_KEY_SECRET (or ZENLAYERCLOUD_ACCESS_KEY_PASSWORD) or ZENLAYER_TOKEN,
/// or name a file. Durations are like 30s, 5m, 1h30m.
#[derive(Debug, Clone, Parser)]
#[command(name = "zenlayer-exporter", version = crate::build_info::VERSION, hide_possible_values = true)]
pub struct Flags {
    /// Address to listen on; :PORT is every interface, IPv4 and IPv6; repeatable
    #[arg(long = "web.listen-address", env = "ZENLAYER_EXPORTER_WEB_LISTEN_ADDRESS", hide_env = true)]
    #[arg(value_name = "ADDRESS", value_delimiter = ',', default_value = ":10980")]
    pub web_listen_address: Vec<String>,

    /// Path of the metrics
    #[arg(long = "web.telemetry-path", env = "ZENLAYER_EXPORTER_WEB_TELEMETRY_PATH", hide_env = true)]
    #[arg(value_name = "PATH", default_value = "/metrics")]
    pub web_telemetry_path: String,

    /// TLS and basic auth, in the Prometheus exporter-toolkit's YAML; read again when it changes
    #[arg(long = "web.config.file", env = "ZENLAYER_EXPORTER_WEB_CONFIG_FILE", hide_env = true)]
    #[arg(value_name = "FILE")]
    pub web_config_file: Option<String>,

    /// Let /healthz and /readyz take no password, whatever --web.config.file says
    #[arg(long = "web.open-health", env = "ZENLAYER_EXPORTER_WEB_OPEN_HEALTH", hide_env = true)]
    #[arg(value_parser = FalseyValueParser::new())]
    pub web_open_health: bool,

    /// Connections that have sent a request; one more closes the least active one
    #[arg(long = "web.max-connections", env = "ZENLAYER_EXPORTER_WEB_MAX_CONNECTIONS", hide_env = true)]
    #[arg(value_name = "N", default_value = "256")]
    pub web_max_connections: String,

    /// Where the API is; a bare domain means https [also: ZENLAYER_ENDPOINT] [default: https://console.zenlayer.com]
    #[allow(rustdoc::bare_urls, reason = "brackets around it would show in --help")]
    #[arg(long = "zenlayer.endpoint", env = "ZENLAYER_EXPORTER_ZENLAYER_ENDPOINT", hide_env = true)]
    #[arg(value_name = "URL")]
    pub zenlayer_endpoint: Option<String>,

    /// Service whose instances to watch: vm or zec
    #[arg(long = "zenlayer.service", env = "ZENLAYER_EXPORTER_ZENLAYER_SERVICE", hide_env = true)]
    #[arg(value_name = "SERVICE", default_value = "vm")]
    pub zenlayer_service: String,

    /// Version of the API, like 2023-03-13 [default: the newest of the service]
    #[arg(long = "zenlayer.api-version", env = "ZENLAYER_EXPORTER_ZENLAYER_API_VERSION", hide_env = true)]
    #[arg(value_name = "DATE")]
    pub zenlayer_api_version: Option<String>,

    /// Access key id [also: ZENLAYER_ACCESS_KEY_ID, ZENLAYERCLOUD_ACCESS_KEY_ID]
    #[arg(long = "zenlayer.access-key-id", env = "ZENLAYER_EXPORTER_ZENLAYER_ACCESS_KEY_ID", hide_env = true)]
    #[arg(value_name = "ID")]
    pub zenlayer_access_key_id: Option<String>,

    /// File with the access key password, read again at every poll
    #[arg(long = "zenlayer.access-key-password-file", hide_env = true)]
    #[arg(env = "ZENLAYER_EXPORTER_ZENLAYER_ACCESS_KEY_PASSWORD_FILE", value_name = "FILE")]
    pub zenlayer_access_key_password_file: Option<String>,

    /// File with a personal access token instead of a key pair, read again at every poll
    #[arg(long = "zenlayer.token-file", env = "ZENLAYER_EXPORTER_ZENLAYER_TOKEN_FILE", hide_env = true)]
    #[arg(value_name = "FILE")]
    pub zenlayer_token_file: Option<String>,

    /// Profile of the vendor's CLI, zeno, to take key or token from; without NAME the one zeno uses
    #[arg(long = "zenlayer.profile", env = "ZENLAYER_EXPORTER_ZENLAYER_PROFILE", hide_env = true)]
    #[arg(value_name = "NAME", num_args = 0..=1, default_missing_value = "current")]
    pub zenlayer_profile: Option<String>,

    /// Watch only these instances; comma-separated or repeated [default: all]
    #[arg(long = "zenlayer.instance-ids", env = "ZENLAYER_EXPORTER_ZENLAYER_INSTANCE_IDS", hide_env = true)]
    #[arg(value_name = "IDS", value_delimiter = ',')]
    pub zenlayer_instance_ids: Vec<String>,

    /// Watch only this resource group (zec)
    #[arg(long = "zenlayer.resource-group-id", hide_env = true)]
    #[arg(env = "ZENLAYER_EXPORTER_ZENLAYER_RESOURCE_GROUP_ID", value_name = "ID")]
    pub zenlayer_resource_group_id: Option<String>,

    /// File with certificate authorities to trust for the API, besides the system's and Mozilla's
    #[arg(long = "zenlayer.ca-file", env = "ZENLAYER_EXPORTER_ZENLAYER_CA_FILE", hide_env = true)]
    #[arg(value_name = "FILE")]
    pub zenlayer_ca_file: Option<String>,

    /// Allow an http:// endpoint that is not on loopback: the API's answers can be read and changed on the way
    #[arg(long = "zenlayer.allow-plain-http", env = "ZENLAYER_EXPORTER_ZENLAYER_ALLOW_PLAIN_HTTP", hide_env = true)]
    #[arg(value_parser = FalseyValueParser::new())]
    pub zenlayer_allow_plain_http: bool,

    /// Instances a page, 1 to 1000
    #[arg(long = "zenlayer.page-size", env = "ZENLAYER_EXPORTER_ZENLAYER_PAGE_SIZE", hide_env = true)]
    #[arg(value_name = "N", default_value = "1000")]
    pub zenlayer_page_size: String,

    /// Requests in flight at most
    #[arg(long = "zenlayer.concurrency", env = "ZENLAYER_EXPORTER_ZENLAYER_CONCURRENCY", hide_env = true)]
    #[arg(value_name = "N", default_value = "4")]
    pub zenlayer_concurrency: String,

    /// How long one request to the API may take, body included
    #[arg(long = "zenlayer.request-timeout", env = "ZENLAYER_EXPORTER_ZENLAYER_REQUEST_TIMEOUT", hide_env = true)]
    #[arg(value_name = "DURATION", default_value = "10s")]
    pub zenlayer_request_timeout: String,

    /// Time from the start of one poll to the start of the next [default: 30s, with --demo 5s]
    #[arg(long = "poll.interval", env = "ZENLAYER_EXPORTER_POLL_INTERVAL", hide_env = true)]
    #[arg(value_name = "DURATION")]
    pub poll_interval: Option<String>,

    /// How long one whole poll with its retries may take
    #[arg(long = "poll.timeout", env = "ZENLAYER_EXPORTER_POLL_TIMEOUT", hide_env = true)]
    #[arg(value_name = "DURATION", default_value = "2m")]
    pub poll_timeout: String,

    /// Instance series older than this are no longer served
    #[arg(long = "poll.max-staleness", env = "ZENLAYER_EXPORTER_POLL_MAX_STALENESS", hide_env = true)]
    #[arg(value_name = "DURATION", default_value = "5m")]
    pub poll_max_staleness: String,

    /// Ask for names, zones, types and expiry of instances too
    #[arg(long = "collector.instance-info", env = "ZENLAYER_EXPORTER_COLLECTOR_INSTANCE_INFO", hide_env = true)]
    #[arg(value_parser = FalseyValueParser::new())]
    pub collector_instance_info: bool,

    /// Time from the start of one round of --collector.instance-info to the start of the next
    #[arg(long = "collector.instance-info.interval", hide_env = true)]
    #[arg(env = "ZENLAYER_EXPORTER_COLLECTOR_INSTANCE_INFO_INTERVAL", value_name = "DURATION", default_value = "5m")]
    pub collector_instance_info_interval: String,

    /// Tags to show as labels of zenlayer_instance_info, env as tag_env; comma-separated or repeated
    #[arg(long = "collector.instance-info.tags", hide_env = true)]
    #[arg(env = "ZENLAYER_EXPORTER_COLLECTOR_INSTANCE_INFO_TAGS", value_name = "TAGS", value_delimiter = ',')]
    pub collector_instance_info_tags: Vec<String>,

    /// Serve only this part of the account, of 0 to --total-shards less 1; auto: the number that ends the host name
    #[arg(long = "shard", env = "ZENLAYER_EXPORTER_SHARD", hide_env = true)]
    #[arg(value_name = "N", default_value = "0")]
    pub shard: String,

    /// How many exporters the instances are spread over
    #[arg(long = "total-shards", env = "ZENLAYER_EXPORTER_TOTAL_SHARDS", hide_env = true)]
    #[arg(value_name = "N", default_value = "1")]
    pub total_shards: String,

    /// current: one series an instance; all: one an instance and known status, 1 or 0
    #[arg(long = "metrics.status-series", env = "ZENLAYER_EXPORTER_METRICS_STATUS_SERIES", hide_env = true)]
    #[arg(value_name = "WHICH", default_value = "current")]
    pub metrics_status_series: String,

    /// error, warn, info, debug or trace
    #[arg(long = "log.level", env = "ZENLAYER_EXPORTER_LOG_LEVEL", hide_env = true)]
    #[arg(value_name = "LEVEL", default_value = "info")]
    pub log_level: String,

    /// logfmt or json
    #[arg(long = "log.format", env = "ZENLAYER_EXPORTER_LOG_FORMAT", hide_env = true)]
    #[arg(value_name = "FORMAT", default_value = "logfmt")]
    pub log_format: String,

    /// Poll a simulated API inside this process, with N instances (500): no account needed
    #[arg(long = "demo", env = "ZENLAYER_EXPORTER_DEMO", hide_env = true)]
    #[arg(value_name = "N", num_args = 0..=1, default_missing_value = "500")]
    pub demo: Option<String>,

    /// Poll once, print the metrics, exit 0, or 1 when the poll failed
    #[arg(long = "once", env = "ZENLAYER_EXPORTER_ONCE", hide_env = true, value_parser = FalseyValueParser::new())]
    pub once: bool,

    /// Check every setting and file, make one request, say what is wrong, exit
    #[arg(long = "config.check", env = "ZENLAYER_EXPORTER_CONFIG_CHECK", hide_env = true)]
    #[arg(value_parser = FalseyValueParser::new())]
    pub config_check: bool,

    /// Ask the exporter that runs on the listen address whether it is healthy, exit 0 or 1
    #[arg(long = "healthcheck", env = "ZENLAYER_EXPORTER_HEALTHCHECK", hide_env = true)]
    #[arg(value_parser = FalseyValueParser::new())]
    pub healthcheck: bool,
}

impl Flags {
    /// An empty variable counts as none, as manifests that fill in variables leave it.
    pub(super) fn without_empty(mut self) -> Self {
        let optional = [
            &mut self.web_config_file,
            &mut self.zenlayer_endpoint,
            &mut self.zenlayer_api_version,
            &mut self.zenlayer_access_key_id,
            &mut self.zenlayer_access_key_password_file,
            &mut self.zenlayer_token_file,
            &mut self.zenlayer_profile,
            &mut self.zenlayer_resource_group_id,
            &mut self.zenlayer_ca_file,
            &mut self.poll_interval,
            &mut self.demo,
        ];
        for value in optional {
            value.take_if(|value| value.trim().is_empty());
        }
        if self.zenlayer_instance_ids == [""] {
            self.zenlayer_instance_ids.clear();
        }
        if self.collector_instance_info_tags == [""] {
            self.collector_instance_info_tags.clear();
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Flags;

    #[test]
    fn every_flag_has_the_variable_of_the_same_words() {
        let command = Flags::command();
        let named = command.get_arguments().filter(|arg| !["help", "version"].contains(&arg.get_id().as_str()));
        for arg in named {
            let flag = arg.get_long().unwrap();
            let words = flag.to_uppercase().replace(['.', '-'], "_");
            let variable = format!("ZENLAYER_EXPORTER_{words}");
            assert_eq!(arg.get_env().unwrap().to_str(), Some(&*variable), "--{flag}");
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        Flags::command().debug_assert();
    }
}
