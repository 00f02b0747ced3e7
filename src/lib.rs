//! A Prometheus exporter for the status of Zenlayer Cloud instances.
//!
//! Data flows one way: settings → signed requests → pages → snapshot → rendered bytes → HTTP. A module imports only
//! from those above it:
//!
//! | module | its one job |
//! |---|---|
//! | `build_info` | what the binary was built from |
//! | `clock` | the time on both of the machine's clocks, and how old something is |
//! | `plural` | a number and its noun |
//! | `secret` | a string that never prints itself |
//! | `profile` | the vendor CLI's own files |
//! | `exposure` | whether others can read a file |
//! | `model` | services, statuses, instances, the inventory |
//! | `shard` | whose instances are this exporter's |
//! | `web_config` | the exporter-toolkit's YAML and the files it names → settings that work |
//! | `config` | settings as typed → settings as checked |
//! | `credentials` | where the key or token comes from |
//! | `buffer` | memory for large texts, which goes back to the system |
//! | `api` | the client: signing, wire format, errors, pacing, retries |
//! | `paging` | a list in pages, read to its end; entries looked up by ID |
//! | `inventory` | all pages of one poll into one consistent inventory |
//! | `exposition` | inventory and infos → bytes |
//! | `gzip` | one gzip member glued of parts that are compressed once |
//! | `telemetry` | the exporter's own metrics |
//! | `logging` | log lines to standard error, without waiting for its reader |
//! | `snapshot` | the rendered answer that is served, swapped whole |
//! | `info` | instance metadata, collected on its own interval |
//! | `simulator` | a simulated API: behind `--demo`, and what the tests poll |
//! | `poller` | tick → collect → render → publish |
//! | `http` | accept loop, TLS, authentication, routes, bodies, the status page |
//!
//! Only the binary reads the environment, says where the log goes, or exits.

pub mod api;
mod buffer;
pub mod build_info;
pub mod clock;
pub mod config;
mod credentials;
pub mod exposition;
mod exposure;
pub mod gzip;
pub mod http;
mod info;
pub mod inventory;
pub mod logging;
pub mod model;
pub mod paging;
pub mod plural;
mod poller;
mod profile;
pub mod secret;
pub mod shard;
pub mod simulator;
mod snapshot;
mod telemetry;
pub mod web_config;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use prometheus::IntCounter;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::api::wire::Listing;
use crate::api::{ApiError, Backoff, Client, InfoPage, Page, Round, Session};
use crate::clock::Clock;
use crate::config::{Config, Target};
use crate::http::{About, AccessControl, Routes, SelfMetrics, reload};
use crate::info::Collector;
use crate::model::Statuses;
use crate::plural::counted;
use crate::poller::{Names, Poller};
use crate::shard::Shard;
use crate::simulator::{Knobs, Simulator};
use crate::snapshot::Published;
use crate::telemetry::Telemetry;
use crate::web_config::WebConfig;

/// What the loop may take beyond a poll and an interval before it counts as stuck.
const SLACK: Duration = Duration::from_secs(30);

/// Why the exporter could not start or had to end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The client could not be built.
    #[error("cannot set up the HTTP client: {0}")]
    Client(#[from] reqwest::Error),
    /// The simulated API has no port.
    #[error("cannot start the simulated API on loopback: {0}")]
    Simulator(#[from] io::Error),
    /// A task is dead: a server that only looks healthy would be worse than none.
    #[error("the poll loop or the metadata collector ended: {0}")]
    Poller(#[from] tokio::task::JoinError),
    /// The one poll that was asked for failed.
    #[error(transparent)]
    Api(#[from] ApiError),
}

/// A poller with what it publishes to, and the simulated API where one is polled.
struct Exporter {
    poller: Poller,
    /// `None` where nothing but statuses is read.
    collector: Option<Collector>,
    published: Arc<Published>,
    _simulator: Option<Simulator>,
}

impl Exporter {
    async fn start(
        config: &Config,
        backoff: Backoff,
        clock: Clock,
        telemetry: &Arc<Telemetry>,
    ) -> Result<Self, RunError> {
        let (client, simulator) = connect(config, backoff, telemetry).await?;
        let client = Arc::new(client);
        let published = Arc::new(Published::new(config.poll.max_staleness));
        let (collector, names) = config.instance_info.as_ref().map_or((None, None), |settings| {
            let (collector, feed) = Collector::new(Arc::clone(&client), settings.clone(), Arc::clone(telemetry));
            (Some(collector), Some(Names::new(feed, &settings.tags)))
        });
        let poller = Poller::new(
            client,
            config.poll.clone(),
            config.status_series,
            names,
            Arc::clone(&published),
            Arc::clone(telemetry),
            clock,
        );
        Ok(Self { poller, collector, published, _simulator: simulator })
    }
}

async fn connect(
    config: &Config,
    backoff: Backoff,
    telemetry: &Arc<Telemetry>,
) -> Result<(Client, Option<Simulator>), RunError> {
    report(config);
    let (endpoint, credentials, simulator) = match &config.target {
        Target::Account { endpoint, credentials } => (endpoint.clone(), credentials.clone(), None),
        Target::Demo { instances } => {
            let simulator = Simulator::start(Knobs::demo(config.api.service, *instances)).await?;
            tracing::info!(
                instances,
                api = %simulator.endpoint(),
                "demo: polling simulated instances, no account is used"
            );
            (simulator.endpoint(), simulator.credentials(), Some(simulator))
        }
    };
    let observer = Arc::clone(telemetry) as Arc<dyn api::Observer>;
    Ok((Client::new(&endpoint, credentials, config.api.clone(), backoff, observer)?, simulator))
}

/// Logs what an operator should know about the settings before they are used.
fn report(config: &Config) {
    for warning in &config.warnings {
        tracing::warn!(warning, "check this setting");
    }
    if let Target::Account { credentials, .. } = &config.target
        && let Some(file) = credentials::file(credentials)
    {
        exposure::warn(file);
    }
    for file in config.web_config.iter().flat_map(|web_config| &web_config.files.secret) {
        exposure::warn(file);
    }
    if let Some(proxy) = &config.api.proxy {
        tracing::info!(%proxy, "requests to the API go through a proxy");
    }
    for note in &config.notes {
        tracing::info!("{note}");
    }
}

/// What a caller may bring besides the settings.
pub struct Options {
    /// Waits between tries; a test need not wait as long as an operator.
    pub backoff: Backoff,
    /// Is notified while the process is healthy.
    pub watchdog: Option<Watchdog>,
    /// How often the web config's files are looked at.
    pub web_config_check: Duration,
    /// The clock by which an answer is too old.
    pub clock: Clock,
    /// Each change asks to reread the web config and the secrets now.
    pub reload: watch::Receiver<()>,
    /// Log lines that were dropped, as [`logging::LogWriter`] counts them.
    pub log_lines_dropped: IntCounter,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            backoff: Backoff::default(),
            watchdog: None,
            web_config_check: reload::EVERY,
            reload: watch::channel(()).1,
            clock: Clock::default(),
            log_lines_dropped: telemetry::log_lines_dropped(),
        }
    }
}

/// Notified at an interval while the process is healthy, and not otherwise.
pub struct Watchdog {
    /// The interval.
    pub every: Duration,
    /// Notifies it.
    pub pat: Box<dyn FnMut() + Send>,
}

/// Polls and serves until `shutdown`.
///
/// # Errors
/// When the client cannot be built, or when the poll loop ends before `shutdown`.
pub async fn run(
    config: Config,
    options: Options,
    listeners: Vec<TcpListener>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), RunError> {
    let Options { backoff, watchdog, web_config_check, reload, log_lines_dropped, clock } = options;
    let telemetry = Arc::new(Telemetry::of_process(log_lines_dropped));
    let Exporter { poller, collector, published, _simulator } =
        Exporter::start(&config, backoff, clock.clone(), &telemetry).await?;
    let routes = Arc::new(Routes {
        published,
        telemetry,
        self_metrics: SelfMetrics::default(),
        about: About {
            service: config.api.service.name(),
            polled: config.polled(),
            nothing_found: config.api.nothing_found(),
            interval: config.poll.interval,
        },
        clock,
        telemetry_path: config.web.telemetry_path.clone(),
        longest_silence: config.poll.timeout + config.poll.interval + SLACK,
    });
    let settings = config.web_config.as_ref().map(|web| web.settings.clone()).unwrap_or_default();
    let access = Arc::new(AccessControl::new(settings, config.web.open_health));
    let fresh = keep_fresh(&access, config.web_config, &routes.telemetry, web_config_check, reload.clone());
    let serving = async {
        tokio::select! {
            () = http::serve(listeners, Arc::clone(&routes), Arc::clone(&access), config.web.max_connections, shutdown) => {}
            never = fresh => match never {},
            never = pat_while_healthy(&routes, watchdog) => match never {},
        }
    };
    // A task each: long answers about metadata must not delay polls.
    let mut tasks = JoinSet::new();
    tasks.spawn(poller.run(reload));
    if let Some(collector) = collector {
        tasks.spawn(collector.run());
    }
    while_polling(tasks, serving).await
}

fn keep_fresh(
    access: &Arc<AccessControl>,
    web_config: Option<WebConfig>,
    telemetry: &Telemetry,
    every: Duration,
    reload: watch::Receiver<()>,
) -> impl Future<Output = Infallible> {
    // Registered before anything is served, so that the first scrape has it.
    let watched = web_config.map(|web_config| (web_config.files, telemetry.web_config_reload_success()));
    let access = Arc::clone(access);
    async move {
        match watched {
            Some((files, in_use)) => reload::keep_fresh(access, files, every, reload, in_use).await,
            None => std::future::pending().await,
        }
    }
}

async fn pat_while_healthy(routes: &Routes, watchdog: Option<Watchdog>) -> Infallible {
    let Some(Watchdog { every, mut pat }) = watchdog else {
        return std::future::pending().await;
    };
    loop {
        if routes.is_healthy() {
            pat();
        }
        tokio::time::sleep(every).await;
    }
}

/// Serves for as long as all tasks live, which end with it: with a dead poller, a server only looks healthy.
async fn while_polling(mut tasks: JoinSet<Infallible>, serving: impl Future<Output = ()>) -> Result<(), RunError> {
    tokio::select! {
        () = serving => Ok(()),
        Some(Err(ended)) = tasks.join_next() => Err(RunError::Poller(ended)),
    }
}

/// `--once`: polls once. Returns the metrics and whether the poll succeeded.
///
/// # Errors
/// When the client cannot be built.
pub async fn once(config: &Config) -> Result<(Vec<u8>, Result<(), ApiError>), RunError> {
    // Without the process's own metrics: node_exporter, which reads this text from a file, has its own of those names.
    let telemetry = Arc::new(Telemetry::default());
    let clock = Clock::default();
    let mut exporter = Exporter::start(config, Backoff::default(), clock.clone(), &telemetry).await?;
    let outcome = exporter.poller.poll().await;
    // What a slow round takes makes the statuses no older than they are printed as.
    let polled_at = clock.now();
    if outcome.is_ok()
        && let Some(collector) = &exporter.collector
        && let Some(infos) = collector.round().await
    {
        exporter.poller.inform(infos);
    }
    let snapshot = exporter.published.fresh(polled_at);
    let texts: Vec<_> = snapshot.iter().flat_map(|snapshot| snapshot.texts()).map(|text| &*text.bytes).collect();
    let mut text = texts.concat();
    text.extend(telemetry.render().into_bytes());
    Ok((text, outcome))
}

/// What `--config.check` found.
#[derive(Debug, PartialEq, Eq)]
pub struct Checked {
    /// The instances to watch.
    pub known: Known,
    /// If there are none: where else to look.
    pub hint: Option<String>,
}

/// What the API knows of the instances to watch.
#[derive(Debug, PartialEq, Eq)]
pub enum Known {
    /// Of an account: how many there are.
    All(u64),
    /// Of named instances.
    Named {
        /// How many of them exist.
        found: usize,
        /// The IDs of those that do not.
        missing: Vec<String>,
    },
}

/// `--config.check`: makes one request per action, or as many as it takes to look up all named instances. If there are
/// no instances, it also makes one to the other service.
///
/// # Errors
/// When the client cannot be built, a request fails, or its answer would fail a poll.
pub async fn check(config: &Config) -> Result<Checked, RunError> {
    config.web_config.iter().for_each(|web| web.settings.log_warnings());
    let (client, _simulator) = connect(config, Backoff::default(), &Arc::new(Telemetry::default())).await?;
    let round = client.round("the check", config.poll.timeout);
    let known = round.finish(find_known(&round, config)).await?;
    let hint = match known {
        // The count is that of all shards.
        Known::All(0) => Some(where_else(config, config::Api { shard: Shard::WHOLE, ..config.api.clone() }).await?),
        Known::Named { found: 0, .. } => Some(where_else(config, config.api.clone()).await?),
        _ => None,
    };
    Ok(Checked { known, hint })
}

async fn find_known(round: &Round<'_>, config: &Config) -> Result<Known, ApiError> {
    let session = round.session().await?;
    let known = match config.api.instance_ids.as_deref() {
        // Whether the credentials are right shows also where all named instances are another shard's.
        None | Some([]) => {
            let all = count::<Page>(&session).await?;
            config.api.instance_ids.as_ref().map_or(Known::All(all), |_| Known::Named { found: 0, missing: vec![] })
        }
        Some(ids) => {
            let ids: Vec<_> = ids.iter().map(String::as_str).collect();
            let mut statuses = Statuses::documented(config.api.service);
            let nothing_known = inventory::History::default();
            let collected = inventory::collect_named(&session, &ids, nothing_known, &mut statuses).await?;
            let found: BTreeSet<_> = collected.inventory.iter().map(|instance| instance.id).collect();
            let missing: Vec<_> = ids.iter().filter(|id| !found.contains(*id)).map(|&id| id.to_owned()).collect();
            Known::Named { found: ids.len() - missing.len(), missing }
        }
    };
    if config.instance_info.is_some() {
        count::<InfoPage>(&session).await?;
    }
    Ok(known)
}

/// How many instances the first page counts, which must be as a poll needs it.
async fn count<P: Listing>(session: &Session<'_>) -> Result<u64, ApiError> {
    let page: P = paging::fitting_page(session, 1).await?;
    let total = page.head().total_count;
    paging::check_total(total, session.settings().shard).map(|()| total)
}

/// Names what to check where `api` finds nothing, and how many instances the other service has.
async fn where_else(config: &Config, api: config::Api) -> Result<String, RunError> {
    let hint = api.nothing_found();
    let (Target::Account { endpoint, credentials }, Some(service)) = (&config.target, api.other_service()) else {
        return Ok(hint);
    };
    let api = config::Api { service, version: service.newest_version().to_owned(), instance_ids: None, ..api };
    let telemetry: Arc<Telemetry> = Arc::default();
    let client = Client::new(endpoint, credentials.clone(), api, Backoff::default(), telemetry)?;
    let round = client.round("the check", config.poll.timeout);
    let found = round.finish(async { count::<Page>(&round.session().await?).await });
    Ok(match found.await {
        Ok(count) => format!("{hint} It has {}.", counted(count, "instance")),
        Err(error) => format!("{hint} It cannot be checked: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_panic_of_any_task_ends_the_server_with_its_message() {
        let mut tasks = JoinSet::new();
        tasks.spawn(std::future::pending());
        tasks.spawn(async { panic!("out of cheese") });
        let error = while_polling(tasks, std::future::pending()).await.unwrap_err().to_string();
        assert!(error.starts_with("the poll loop or the metadata collector ended: "), "{error}");
        assert!(error.contains("out of cheese"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_hears_nothing_from_a_loop_that_is_stuck() {
        let routes = Routes {
            published: Arc::new(Published::new(Duration::from_mins(5))),
            telemetry: Arc::default(),
            self_metrics: SelfMetrics::default(),
            about: About {
                service: "vm",
                polled: String::new(),
                nothing_found: String::new(),
                interval: Duration::from_secs(30),
            },
            clock: Clock::default(),
            telemetry_path: "/metrics".to_owned(),
            longest_silence: Duration::from_secs(95),
        };
        let pats = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&pats);
        let pat = Box::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        let watchdog = Watchdog { every: Duration::from_secs(10), pat };
        let stuck = Duration::from_hours(1);
        let ended = tokio::time::timeout(stuck, pat_while_healthy(&routes, Some(watchdog))).await;
        assert!(ended.is_err());
        assert_eq!(pats.load(Ordering::Relaxed), 10, "at 0, 10, … 90 s");
    }

    #[tokio::test]
    async fn a_shutdown_ends_the_poller() {
        let (alive, dropped) = tokio::sync::oneshot::channel::<()>();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let _alive = alive;
            std::future::pending().await
        });
        while_polling(tasks, async {}).await.unwrap();
        assert!(dropped.await.is_err(), "the poller went on");
    }
}
