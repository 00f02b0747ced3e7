//! The binary: settings, logging, sockets, signals, exit code. The rest is the library.
//!
//! Invariant: nothing else reads the environment, writes to the terminal or exits. It must not know how a poll or an
//! answer is made.

use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use zenlayer_exporter::config::{Command, Config, ListenAddress, Refusal, Web};
use zenlayer_exporter::logging::LogWriter;
use zenlayer_exporter::web_config::Settings;
use zenlayer_exporter::{Checked, Known, Options, Watchdog, build_info, http};

/// The command was used incorrectly (`EX_USAGE` of sysexits.h).
const BAD_SETTING: u8 = 64;

/// Threads that poll and serve, at most: on a machine of many cores one for each would only hold memory.
const MAX_THREADS: usize = 4;

/// How long the last lines of the log have to reach standard error, whose reader may have stalled.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Signals that would end the process without a line in the log.
const IGNORED: [(&str, SignalKind); 5] = [
    ("SIGQUIT", SignalKind::quit()),
    ("SIGUSR1", SignalKind::user_defined1()),
    ("SIGUSR2", SignalKind::user_defined2()),
    ("SIGALRM", SignalKind::alarm()),
    ("SIGIO", SignalKind::io()),
];

fn main() -> ExitCode {
    let log = LogWriter::start(io::stderr());
    let code = run(&log);
    log.flush(FLUSH_TIMEOUT);
    code
}

fn run(log: &Arc<LogWriter>) -> ExitCode {
    match Command::read(std::env::args_os().skip(1), &std::env::vars_os().collect()) {
        Ok(command) => start(log, command),
        Err(Refusal::Asked(help)) => exit_code(log, printed(help.print())),
        Err(Refusal::Mistakes(mistakes)) => {
            log.print(&format!("zenlayer-exporter: invalid settings:\n{mistakes}"));
            ExitCode::from(BAD_SETTING)
        }
    }
}

fn exit_code(log: &LogWriter, result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The error is what must not be lost where the queue is full.
            log.flush(FLUSH_TIMEOUT);
            log.print(&format!("zenlayer-exporter: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Writes to standard output.
fn print(text: &[u8]) -> Result<(), String> {
    printed(io::stdout().write_all(text))
}

/// A reader that closed the pipe has all it wants, as `head` does: that is no error.
fn printed(result: io::Result<()>) -> Result<(), String> {
    match result.and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(format!("cannot write to standard output: {error}"))
        }
        _ => Ok(()),
    }
}

fn start(log: &Arc<LogWriter>, command: Command) -> ExitCode {
    let threads = std::thread::available_parallelism().map_or(MAX_THREADS, |cores| cores.get().min(MAX_THREADS));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(execute(log, command));
            // A name look-up that never ends would otherwise hold up the exit.
            runtime.shutdown_background();
            result
        }
        Err(error) => Err(format!("the runtime cannot start: {error}")),
    };
    exit_code(log, result)
}

async fn execute(log: &Arc<LogWriter>, command: Command) -> Result<(), String> {
    match command {
        Command::Serve(config) => serve(log, config).await,
        Command::Once(config) => once(log, config).await,
        Command::Check(config) => check(log, config).await,
        Command::Healthcheck(web) => healthcheck(&web).await,
    }
}

async fn serve(log: &Arc<LogWriter>, config: Config) -> Result<(), String> {
    log.subscribe(config.log);
    // First of all: a signal must not kill a process that is starting.
    let cannot_handle = |error| format!("cannot handle signals: {error}");
    ignore_signals().map_err(cannot_handle)?;
    let reload = reload_signal(config.web_config.is_some()).map_err(cannot_handle)?;
    let mut shutdown = Box::pin(shutdown_signal().map_err(cannot_handle)?);
    let listeners = tokio::select! {
        listeners = listen(&config.web.listen) => listeners?,
        // Looking up a host name can take long.
        () = &mut shutdown => return Ok(()),
    };
    announce(&config, &listeners);
    notify(NotifyState::Ready);
    let options = Options { watchdog: watchdog(), reload, log_lines_dropped: log.dropped(), ..Options::default() };
    zenlayer_exporter::run(config, options, listeners, shutdown).await.map_err(|error| error.to_string())?;
    tracing::info!("stopped");
    Ok(())
}

async fn listen(addresses: &[ListenAddress]) -> Result<Vec<TcpListener>, String> {
    let mut listeners = Vec::new();
    for address in addresses {
        let bound = http::bind(address).await;
        listeners.extend(bound.map_err(|error| {
            format!(
                "cannot listen on {address}: {error}: choose a free address of this machine with --web.listen-address"
            )
        })?);
    }
    Ok(listeners)
}

async fn once(log: &Arc<LogWriter>, config: Config) -> Result<(), String> {
    log.subscribe(config.log);
    let (text, outcome) = zenlayer_exporter::once(&config).await.map_err(|error| error.to_string())?;
    print(&text)?;
    outcome.map_err(|error| error.to_string())
}

async fn check(log: &Arc<LogWriter>, config: Config) -> Result<(), String> {
    log.subscribe(config.log);
    let Checked { known, hint } = zenlayer_exporter::check(&config).await.map_err(|error| error.to_string())?;
    let mut said = match known {
        Known::All(instances) => format!("the settings are right, and the API counts {instances} instances\n"),
        Known::Named { found, missing } => format!(
            "the settings are right, and the API knows {found} of {} named instances{}\n",
            found + missing.len(),
            in_words(&missing)
        ),
    };
    said.extend(hint.iter().flat_map(|hint| [hint, "\n"]));
    print(said.as_bytes())
}

/// The first of the missing IDs, where there are any.
fn in_words(missing: &[String]) -> String {
    const SHOWN: usize = 10;
    let shown = &missing[..missing.len().min(SHOWN)];
    match missing.len() - shown.len() {
        _ if missing.is_empty() => String::new(),
        0 => format!("; missing: {}", shown.join(", ")),
        more => format!("; missing: {} and {more} more", shown.join(", ")),
    }
}

async fn healthcheck(web: &Web) -> Result<(), String> {
    for address in &web.listen {
        http::probe::healthcheck(address).await.map_err(|error| error.to_string())?;
    }
    Ok(())
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

/// Logs these signals, and which to send instead.
fn ignore_signals() -> io::Result<()> {
    for (name, kind) in IGNORED {
        let mut signals = signal(kind)?;
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                tracing::warn!(signal = name, "signal ignored: send SIGTERM to stop, SIGHUP to reload");
            }
        });
    }
    Ok(())
}

/// Changes at every SIGHUP.
fn reload_signal(has_web_config: bool) -> io::Result<watch::Receiver<()>> {
    let mut hangups = signal(SignalKind::hangup())?;
    let files = if has_web_config { "the web config and the secrets" } else { "the secrets, there is no web config" };
    let (ask, asked) = watch::channel(());
    tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            tracing::info!(signal = "SIGHUP", "rereading {files}");
            ask.send_replace(());
        }
    });
    Ok(asked)
}

/// Resolves at the first SIGTERM or SIGINT.
fn shutdown_signal() -> io::Result<impl Future<Output = ()>> {
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
