//! The limit of open files: raised as far as the connections need it, and how many of them it leaves room for.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// File descriptors for requests to the API, for files and for listeners.
const OWN_FILES: usize = 128;
/// File descriptors for connections that have lost their place and are about to be closed.
const CLOSING: usize = 256;

/// Returns how many connections the process may have beside its own files, at least 1. Raises the soft limit of open
/// files as far as `connections` need it and the hard limit allows: the usual one, 1024, is for programs that use
/// `select`.
pub(super) fn room_for_clients(connections: usize) -> usize {
    let limit = raise_limit((connections + OWN_FILES + CLOSING) as u64);
    let files = limit.map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX));
    files.saturating_sub(OWN_FILES + CLOSING).max(1)
}

/// Returns the limit that is in effect; `None` means no limit.
fn raise_limit(needed: u64) -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let current = current?;
    let raised = maximum.map_or(needed, |maximum| needed.min(maximum));
    if raised <= current {
        return Some(current);
    }
    match setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum }) {
        Ok(()) => {
            tracing::debug!(from = current, to = raised, "limit of open files raised");
            Some(raised)
        }
        Err(error) => {
            tracing::debug!(%error, limit = current, "cannot raise the limit of open files");
            Some(current)
        }
    }
}
