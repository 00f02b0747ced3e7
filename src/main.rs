//! The binary: settings, logging, sockets, signals, exit code. The rest is the library.
//!
//! Invariant: nothing else reads the environment, writes to the terminal or exits. It must not know how a poll or an
//! answer is made.

use std::io::{self, Write};
use std::mem::ManuallyDrop;
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use zenlayer_exporter::config::{Command, Config, ListenAddress, Refusal, Web};
use zenlayer_exporter::logging::LogWriter;
use zenlayer_exporter::plural::counted;
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
    // The panic hook logged what went wrong.
    log.flush_after(FLUSH_TIMEOUT, || run(&log)).unwrap_or(ExitCode::FAILURE)
}

fn run(log: &Arc<LogWriter>) -> ExitCode {
    let runtime = match runtime() {
        // Dropping it, as a panic would, waits for name look-ups and files, which may never end.
        Ok(runtime) => ManuallyDrop::new(runtime),
        Err(error) => return exit_code(log, Err(format!("cannot start the async runtime: {error}"))),
    };
    // Before the settings are read, which can take long: a signal must not kill a process that is starting.
    let signals = {
        let _context = runtime.enter();
        Signals::handle()
    };
    let signals = match signals {
        Ok(signals) => signals,
        Err(error) => return exit_code(log, Err(format!("cannot handle signals: {error}"))),
    };
    let code = match Command::read(std::env::args_os().skip(1), &std::env::vars_os().collect()) {
        Ok(command) => exit_code(log, runtime.block_on(execute(log, signals, command))),
        Err(Refusal::Asked(help)) => {
            exit_code(log, runtime.block_on(signals.run_unless_stopped(print(move || help.print()))))
        }
        Err(Refusal::Mistakes(mistakes)) => {
            log.print(&format!("zenlayer-exporter: invalid settings:\n{mistakes}"));
            ExitCode::from(BAD_SETTING)
        }
    };
    ManuallyDrop::into_inner(runtime).shutdown_background();
    code
}

fn runtime() -> io::Result<Runtime> {
    let threads = std::thread::available_parallelism().map_or(MAX_THREADS, |cores| cores.get().min(MAX_THREADS));
    tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()
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

/// Writes to standard output, on a thread of its own: a signal must end the process also while the reader stalls.
async fn print(write: impl FnOnce() -> io::Result<()> + Send + 'static) -> Result<(), String> {
    let written = tokio::task::spawn_blocking(|| write().and_then(|()| io::stdout().flush())).await;
    match written.unwrap_or_else(|panicked| Err(panicked.into())) {
        // A reader that closed the pipe, as `head` does, needs no more: that is not an error.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(format!("cannot write to standard output: {error}"))
        }
        _ => Ok(()),
    }
}

async fn execute(log: &Arc<LogWriter>, mut signals: Signals, command: Command) -> Result<(), String> {
    if let Command::Serve(config) | Command::Once(config) | Command::Check(config) = &command {
        log.subscribe(config.log);
    }
    signals.log_ignored();
    match command {
        Command::Serve(config) => serve(log, signals, config).await,
        Command::Once(config) => signals.run_unless_stopped(once(config)).await,
        Command::Check(config) => signals.run_unless_stopped(Box::pin(check(config))).await,
        Command::Healthcheck { web, warnings } => {
            for warning in warnings {
                log.print(&format!("zenlayer-exporter: warning: {warning}"));
            }
            signals.run_unless_stopped(healthcheck(web)).await
        }
    }
}

async fn serve(log: &Arc<LogWriter>, signals: Signals, config: Config) -> Result<(), String> {
    let mut shutdown = Box::pin(shutdown(signals.stop));
    let reload = reload_requests(signals.hangups, config.web_config.is_some());
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

async fn once(config: Config) -> Result<(), String> {
    let (text, outcome) = zenlayer_exporter::once(&config).await.map_err(|error| error.to_string())?;
    print(move || io::stdout().write_all(&text)).await?;
    outcome.map_err(|error| error.to_string())
}

async fn check(config: Config) -> Result<(), String> {
    let Checked { known, hint } = zenlayer_exporter::check(&config).await.map_err(|error| error.to_string())?;
    let mut said = match known {
        Known::All(instances) => {
            format!("the settings are right, and the API counts {}\n", counted(instances, "instance"))
        }
        Known::Named { found, missing } => format!(
            "the settings are right, and the API knows {found} of {}{}\n",
            counted(found + missing.len(), "named instance"),
            in_words(&missing)
        ),
    };
    said.extend(hint.iter().flat_map(|hint| [hint, "\n"]));
    print(move || io::stdout().write_all(said.as_bytes())).await
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

async fn healthcheck(web: Web) -> Result<(), String> {
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
        "starting zenlayer-exporter"
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
        tracing::warn!("passwords are sent unencrypted: add a tls_server_config to the web config");
    }
}

/// The signals that have an effect. Those that come before anything waits for them are kept.
struct Signals {
    stop: Stop,
    hangups: Signal,
    ignored: Vec<(&'static str, Signal)>,
}

struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From here on none of them kills the process.
    fn handle() -> io::Result<Self> {
        let ignored = IGNORED.iter().map(|&(name, kind)| Ok((name, signal(kind)?)));
        Ok(Self {
            stop: Stop { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? },
            hangups: signal(SignalKind::hangup())?,
            ignored: ignored.collect::<io::Result<_>>()?,
        })
    }

    /// Logs the signals that have no other effect, and which to send instead.
    fn log_ignored(&mut self) {
        for (name, mut signals) in self.ignored.drain(..) {
            tokio::spawn(async move {
                while signals.recv().await.is_some() {
                    tracing::warn!(signal = name, "signal ignored: send SIGTERM to stop, SIGHUP to reload");
                }
            });
        }
    }

    /// Runs a command that ends by itself, unless a signal ends it first.
    async fn run_unless_stopped(mut self, command: impl Future<Output = Result<(), String>>) -> Result<(), String> {
        let name = tokio::select! {
            result = command => return result,
            name = self.stop.signal() => name,
            _ = self.hangups.recv() => "SIGHUP",
        };
        Err(format!("interrupted by {name}"))
    }
}

impl Stop {
    async fn signal(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Resolves at the first signal that stops the server.
async fn shutdown(mut stop: Stop) {
    let name = stop.signal().await;
    tracing::info!(signal = name, "shutting down, waiting up to 5s for open requests");
    notify(NotifyState::Stopping);
}

/// Changes at every SIGHUP.
fn reload_requests(mut hangups: Signal, has_web_config: bool) -> watch::Receiver<()> {
    let files = if has_web_config { "the web config and the secrets" } else { "the secrets; no web config is set" };
    let (request, requested) = watch::channel(());
    tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            tracing::info!(signal = "SIGHUP", "rereading {files}");
            request.send_replace(());
        }
    });
    requested
}

/// Notifies systemd if it started this process as `Type=notify`.
fn notify(state: NotifyState) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "cannot notify systemd");
    }
}

/// Notifies systemd twice per `WatchdogSec=` of the unit.
fn watchdog() -> Option<Watchdog> {
    let every = sd_notify::watchdog_enabled()? / 2;
    Some(Watchdog { every, pat: Box::new(|| notify(NotifyState::Watchdog)) })
}
