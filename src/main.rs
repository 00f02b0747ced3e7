//! The binary: settings, logging, sockets, signals, exit code. The rest is the library.
//!
//! Invariant: nothing else reads the environment, writes to the terminal or exits. It must not know how a poll or an
//! answer is made.

use std::io::Write;
use std::net::Ipv4Addr;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};
use zenlayer_exporter::api::wire::MAX_IDS;
use zenlayer_exporter::config::{Command, Config, Flags, Log, Web};
use zenlayer_exporter::web_config::Settings;
use zenlayer_exporter::{Options, Watchdog, build_info, http};

/// The command was used incorrectly (`EX_USAGE` of sysexits.h).
const BAD_SETTING: u8 = 64;

/// Threads that poll and serve, at most: on a machine of many cores one for each would only hold memory.
const MAX_THREADS: usize = 4;

fn main() -> ExitCode {
    let flags = match Flags::try_parse() {
        Ok(flags) => flags,
        Err(error) => {
            // Nothing is left to do where even the usage cannot be printed.
            let _ = error.print();
            let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return if asked { ExitCode::SUCCESS } else { ExitCode::from(BAD_SETTING) };
        }
    };
    match Command::check(&flags, &|name| std::env::var(name).ok()) {
        Ok(command) => start(command),
        Err(mistakes) => {
            eprintln!("zenlayer-exporter: these settings are wrong:\n{mistakes}");
            ExitCode::from(BAD_SETTING)
        }
    }
}

fn start(command: Command) -> ExitCode {
    let threads = std::thread::available_parallelism().map_or(MAX_THREADS, |cores| cores.get().min(MAX_THREADS));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(execute(command));
            // A name look-up that never ends would otherwise hold up the exit.
            runtime.shutdown_background();
            result
        }
        Err(error) => Err(format!("the runtime cannot start: {error}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("zenlayer-exporter: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn execute(command: Command) -> Result<(), String> {
    match command {
        Command::Serve(config) => serve(config).await,
        Command::Once(config) => once(config).await,
        Command::Check(config) => check(config).await,
        Command::Healthcheck(web) => healthcheck(&web).await,
    }
}

async fn serve(config: Config) -> Result<(), String> {
    start_logging(config.log);
    let mut listeners = Vec::new();
    for address in &config.web.listen {
        let bound = http::bind(address).await;
        listeners.extend(bound.map_err(|error| {
            format!(
                "cannot listen on {address}: {error}: choose a free address of this machine with --web.listen-address"
            )
        })?);
    }
    announce(&config, &listeners);
    let shutdown = shutdown_signal().map_err(|error| format!("signals cannot be handled: {error}"))?;
    notify(NotifyState::Ready);
    let options = Options { watchdog: watchdog(), ..Options::default() };
    zenlayer_exporter::run(config, options, listeners, shutdown).await.map_err(|error| error.to_string())?;
    tracing::info!("stopped");
    Ok(())
}

async fn once(config: Config) -> Result<(), String> {
    start_logging(config.log);
    let (text, outcome) = zenlayer_exporter::once(&config).await.map_err(|error| error.to_string())?;
    std::io::stdout().write_all(&text).map_err(|error| format!("the metrics cannot be written: {error}"))?;
    outcome.map_err(|error| error.to_string())
}

async fn check(config: Config) -> Result<(), String> {
    start_logging(config.log);
    let instances = zenlayer_exporter::check(&config).await.map_err(|error| error.to_string())?;
    match config.api.instance_ids.iter().flatten().take(MAX_IDS).count() {
        0 => println!("the settings are right, and the API counts {instances} instances"),
        asked => println!("the settings are right, and the API knows {instances} of {asked} named instances"),
    }
    Ok(())
}

async fn healthcheck(web: &Web) -> Result<(), String> {
    for address in &web.listen {
        http::probe::healthcheck(address).await.map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn start_logging(log: Log) {
    let filter = LevelFilter::from_level(log.level);
    // Standard error: standard output is for the metrics of --once.
    let layer = if log.json {
        fmt::layer().json().flatten_event(true).with_writer(std::io::stderr).boxed()
    } else {
        tracing_logfmt::builder().layer().with_writer(std::io::stderr).boxed()
    };
    tracing_subscriber::registry().with(layer.with_filter(filter)).init();
}

fn announce(config: &Config, listeners: &[TcpListener]) {
    let interval = humantime::format_duration(config.poll.interval);
    tracing::info!(
        version = build_info::VERSION,
        revision = build_info::REVISION,
        service = config.api.service.name(),
        polling = %config.polled(),
        every = %interval,
        "zenlayer-exporter starts"
    );
    let settings = config.web_config.as_ref().map(|web_config| &web_config.settings);
    let has_tls = settings.is_some_and(Settings::has_tls);
    let has_users = settings.is_some_and(Settings::has_users);
    let scheme = if has_tls { "https" } else { "http" };
    for address in listeners.iter().filter_map(|listener| listener.local_addr().ok()) {
        let mut here = address;
        if here.ip().is_unspecified() {
            here.set_ip(Ipv4Addr::LOCALHOST.into());
        }
        let url = format!("{scheme}://{here}{}", config.web.telemetry_path);
        tracing::info!(%address, metrics = url, "listening");
    }
    if has_users && !has_tls {
        tracing::warn!("passwords go over the network in clear: give the web config a tls_server_config");
    }
}

/// Resolves at the first SIGTERM or SIGINT.
fn shutdown_signal() -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "stopping: open requests have 5s to end");
        notify(NotifyState::Stopping);
    })
}

/// Tells systemd, where it started this process as `Type=notify`.
fn notify(state: NotifyState) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}

/// The unit's `WatchdogSec=`: it must hear from this process twice as often.
fn watchdog() -> Option<Watchdog> {
    let every = sd_notify::watchdog_enabled()? / 2;
    Some(Watchdog { every, pat: Box::new(|| notify(NotifyState::Watchdog)) })
}
