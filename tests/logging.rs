//! The log of a process whose standard error is read more slowly than it is written. A process has one log, so this is
//! a test binary of its own.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

use std::io::{self, Write};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use zenlayer_exporter::config;
use zenlayer_exporter::logging::LogWriter;

const PATIENCE: Duration = Duration::from_secs(20);
const REPORT: &str = "log lines were lost while standard error was blocked";

/// Takes a line each time it is allowed to.
struct Stalled {
    go_on: Receiver<()>,
    written: Sender<String>,
}

impl Write for Stalled {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.go_on.recv().map_err(|_| io::ErrorKind::BrokenPipe)?;
        self.written.send(String::from_utf8(line.to_owned()).unwrap()).unwrap();
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn lost_lines_are_reported_also_while_the_queue_stays_full() {
    let (unblock, go_on) = mpsc::channel();
    let (written, lines) = mpsc::channel();
    let log = LogWriter::start(Stalled { go_on, written });
    log.subscribe(config::Log { level: tracing::Level::INFO, json: false });
    let kilobyte = "x".repeat(1023);
    let fill = || {
        let before = log.dropped().get();
        while log.dropped().get() == before {
            log.print(&kilobyte);
        }
    };
    let (mut reports, mut written) = (Vec::new(), 0);
    while reports.len() < 3 {
        // The queue is full again before each line that is written.
        fill();
        unblock.send(()).unwrap();
        written += 1;
        let line = lines.recv_timeout(PATIENCE).unwrap();
        reports.extend(line.contains(REPORT).then_some(line));
        assert!(written < 2000, "{reports:?}");
    }
    assert!(written > 500, "a report per {} lines would crowd out the lines themselves", written / 3);
    let of_reports = |line: &String| -> u64 { line.split_once("lines=").unwrap().1.trim().parse().unwrap() };
    let reported: u64 = reports.iter().map(of_reports).sum();
    assert!(reported > 0 && reported <= log.dropped().get(), "{reports:?}");
}
