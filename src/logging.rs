//! Log lines on their way to standard error: a bounded queue, and one thread that writes.
//!
//! Invariant: logging never waits for the reader of standard error. A line that does not fit in the queue or cannot be
//! written is dropped and counted. `tracing-appender` is not used: it bounds lines but not bytes, does not count failed
//! writes, and prints to standard output when it ends with a full queue.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::collections::VecDeque;
use std::io::{self, Write};
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

use prometheus::IntCounter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::config;
use crate::telemetry;

/// What may wait to be written: more than a thousand lines of the usual length.
const MAX_BYTES: usize = 256 << 10;
/// The pause after standard error was full, where the process that shares it has made it non-blocking.
const RETRY: Duration = Duration::from_millis(10);

/// Takes the lines of the log, and writes them on a thread of its own.
#[derive(Debug)]
pub struct LogWriter {
    queue: Mutex<Queue>,
    /// Notified when a line comes or goes.
    changed: Condvar,
    dropped: IntCounter,
}

#[derive(Debug, Default)]
struct Queue {
    lines: VecDeque<Vec<u8>>,
    /// Of these lines and the one that is being written.
    bytes: usize,
    /// The thread that writes; its own lines always fit.
    writer: Option<ThreadId>,
}

impl LogWriter {
    /// Starts the thread that writes to `output`.
    pub fn start(output: impl Write + Send + 'static) -> Arc<Self> {
        let log = Arc::new(Self {
            queue: Mutex::default(),
            changed: Condvar::new(),
            dropped: telemetry::log_lines_dropped(),
        });
        let written = Arc::clone(&log);
        thread::spawn(move || written.write_to(output));
        log
    }

    /// Sends the events and panics of the process to this log.
    pub fn subscribe(self: &Arc<Self>, settings: config::Log) {
        let filter = LevelFilter::from_level(settings.level);
        let layer = if settings.json {
            fmt::layer().json().flatten_event(true).with_writer(Arc::clone(self)).boxed()
        } else {
            tracing_logfmt::builder().layer().with_writer(Arc::clone(self)).boxed()
        };
        tracing_subscriber::registry().with(layer.with_filter(filter)).init();
        // The default hook writes to standard error itself, where it would wait.
        panic::set_hook(Box::new(|info| {
            let backtrace = Backtrace::capture();
            tracing::error!(
                error = info.payload_as_str(),
                location = info.location().map(tracing::field::display),
                backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string()),
                "panicked"
            );
        }));
    }

    /// Adds a line of plain text, as a command prints it.
    pub fn print(&self, text: &str) {
        self.add(format!("{text}\n").into());
    }

    /// Waits until every line is written, but no longer than `patience`.
    pub fn flush(&self, patience: Duration) {
        let queue = self.lock();
        // Lines that are left then are lost with the process.
        let _ = self.changed.wait_timeout_while(queue, patience, |queue| queue.bytes > 0);
    }

    /// Runs `work`, then flushes, also if `work` panics: the panic is the line that must not be lost.
    ///
    /// # Errors
    /// When `work` panicked.
    pub fn flush_after<T>(&self, patience: Duration, work: impl FnOnce() -> T) -> thread::Result<T> {
        // Nobody sees what a panic left half changed: the caller is about to exit.
        let result = panic::catch_unwind(AssertUnwindSafe(work));
        self.flush(patience);
        result
    }

    /// How many lines were dropped, as a metric.
    pub fn dropped(&self) -> IntCounter {
        self.dropped.clone()
    }

    fn add(&self, line: Vec<u8>) {
        let mut queue = self.lock();
        // The report of lost lines, of which the queue has one at most, must not be lost itself.
        let is_report = queue.writer == Some(thread::current().id());
        // A line that is alone fits, however long: all mistakes of the settings are printed as one.
        if !is_report && queue.bytes > 0 && queue.bytes + line.len() > MAX_BYTES {
            self.dropped.inc();
            return;
        }
        queue.bytes += line.len();
        queue.lines.push_back(line);
        self.changed.notify_all();
    }

    fn write_to(&self, mut output: impl Write) {
        self.lock().writer = Some(thread::current().id());
        let mut reported = 0;
        // Lines up to and including the report in the queue: the next one waits for it.
        let mut before_report: usize = 0;
        loop {
            let line = self.next();
            let is_written = write_all(&mut output, &line).is_ok();
            if !is_written {
                self.dropped.inc();
            }
            self.remove(line.len());
            before_report = before_report.saturating_sub(1);
            let lost = self.dropped.get() - reported;
            if is_written && before_report == 0 && lost > 0 {
                reported += lost;
                // An error, so that every log level shows it.
                tracing::error!(lines = lost, "log lines were lost while standard error was blocked");
                before_report = self.lock().lines.len();
            }
        }
    }

    fn next(&self) -> Vec<u8> {
        let mut queue = self.lock();
        loop {
            match queue.lines.pop_front() {
                Some(line) => return line,
                None => queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    fn remove(&self, bytes: usize) {
        let mut queue = self.lock();
        queue.bytes -= bytes;
        self.changed.notify_all();
    }

    /// A line is added or removed whole, so a queue that a panic interrupted is still sound.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One call is one line: `tracing_subscriber` writes each event at once.
impl Write for &LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.add(line.to_owned());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_all(output: &mut impl Write, mut line: &[u8]) -> io::Result<()> {
    while !line.is_empty() {
        match output.write(line) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => line = &line[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(RETRY),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Receiver, Sender};

    use super::*;

    /// Takes a line each time it is allowed to.
    struct Stalled {
        go_on: Receiver<()>,
        written: Sender<Vec<u8>>,
    }

    impl Write for Stalled {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            self.go_on.recv().map_err(|_| io::ErrorKind::BrokenPipe)?;
            self.written.send(line.to_owned()).unwrap();
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_beyond_the_bound_are_dropped_and_counted() {
        let (unblock, go_on) = mpsc::channel();
        let (written, lines) = mpsc::channel();
        let log = LogWriter::start(Stalled { go_on, written });
        let kilobyte = [&[b'x'; 1023][..], b"\n"].concat();
        let fit = MAX_BYTES / kilobyte.len();
        for _ in 0..fit + 7 {
            (&*log).write_all(&kilobyte).unwrap();
        }
        assert_eq!(log.dropped().get(), 7);
        log.flush(Duration::from_millis(20));
        assert!(log.lock().bytes > 0, "the flush gave up");

        for _ in 0..fit {
            unblock.send(()).unwrap();
        }
        log.flush(Duration::from_mins(1));
        assert_eq!(lines.try_iter().filter(|line| *line == kilobyte).count(), fit);
        unblock.send(()).unwrap();
        (&*log).write_all(&vec![b'x'; MAX_BYTES + 1]).unwrap();
        log.flush(Duration::from_mins(1));
        assert_eq!(lines.try_iter().count(), 1, "a line that is longer than the bound, and alone");
        drop(unblock);
        log.print("nobody reads this");
        log.flush(Duration::from_mins(1));
        assert_eq!(log.dropped().get(), 8, "a line that cannot be written");
    }

    /// Keeps what is written to it, but slowly.
    #[derive(Clone, Default)]
    struct Slow(Arc<Mutex<Vec<u8>>>);

    impl Write for Slow {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            thread::sleep(Duration::from_millis(20));
            self.0.lock().unwrap().extend_from_slice(line);
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_last_lines_are_written_however_the_work_ends() {
        for panics in [false, true] {
            let output = Slow::default();
            let log = LogWriter::start(output.clone());
            let result = log.flush_after(Duration::from_mins(1), || {
                log.print("first");
                log.print("last");
                assert!(!panics, "out of cheese");
            });
            assert_eq!(result.is_err(), panics);
            assert_eq!(*output.0.lock().unwrap(), b"first\nlast\n", "panics: {panics}");
        }
    }

    /// Takes one byte at a time, and that not always.
    #[derive(Default)]
    struct Reluctant {
        asked: usize,
        written: Vec<u8>,
    }

    impl Write for Reluctant {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.asked += 1;
            match self.asked % 3 {
                0 => Err(io::ErrorKind::WouldBlock.into()),
                1 => Err(io::ErrorKind::Interrupted.into()),
                _ => {
                    self.written.push(bytes[0]);
                    Ok(1)
                }
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_is_written_whole_where_standard_error_does_not_block() {
        let mut output = Reluctant::default();
        write_all(&mut output, b"one line\n").unwrap();
        assert_eq!(output.written, b"one line\n");
    }
}
