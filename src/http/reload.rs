//! Reloads the web config when its files change.
//!
//! Invariant: settings that do not work, or cannot be read in time, are never put in use, and are reported once. It must
//! not know what the settings are for.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use prometheus::IntGauge;
use tokio::sync::watch;

use super::access::AccessControl;
use crate::credentials::FileReads;
use crate::exposure;
use crate::secret::LONGEST_READ;
use crate::web_config::{Files, Fingerprint, Reading, hung};

/// How often the files are looked at. A change is used once it has stood still for as long, since certificate and key
/// are not written at one moment.
pub(crate) const EVERY: Duration = Duration::from_secs(2);

/// Reads the files again when they change and at every change of `reload`, for ever. `in_use` is 1 while the files as
/// they are are in use.
pub(crate) async fn keep_fresh(
    access: Arc<AccessControl>,
    files: Files,
    every: Duration,
    reload: watch::Receiver<()>,
    in_use: IntGauge,
) -> Infallible {
    let watched = Watched { seen: files.fingerprint, tried: files };
    keep_fresh_with(Watched::check, access, watched, every, reload, in_use).await
}

/// `check` looks at the files, or reads them in any case, and may hang.
async fn keep_fresh_with(
    check: impl Fn(&mut Watched, bool) -> Option<Reading> + Clone + Send + 'static,
    access: Arc<AccessControl>,
    mut watched: Watched,
    every: Duration,
    mut reload: watch::Receiver<()>,
    in_use: IntGauge,
) -> Infallible {
    let reads = FileReads::default();
    let (mut is_asked, mut hangs, mut is_in_use) = (false, false, true);
    loop {
        let is_new_request = tokio::select! {
            () = tokio::time::sleep(every) => false,
            Ok(()) = reload.changed() => true,
        };
        is_asked |= is_new_request;
        let (check, mut looking, asked) = (check.clone(), watched.clone(), is_asked);
        let look = reads.run(move || {
            let reading = check(&mut looking, asked);
            (looking, reading, asked)
        });
        let Ok((looked, reading, was_asked)) = tokio::time::timeout(LONGEST_READ, look).await else {
            if !hangs || is_new_request {
                tracing::error!(error = hung(&watched.tried.paths[0]), "the previous web config stays in use");
            }
            hangs = true;
            in_use.set(0);
            continue;
        };
        watched = looked;
        // A look that began before the request is not what was asked for.
        is_asked &= !was_asked;
        hangs = false;
        if let Some(reading) = reading {
            is_in_use = put_in_use(&access, reading);
        }
        in_use.set(is_in_use.into());
    }
}

fn put_in_use(access: &AccessControl, reading: Reading) -> bool {
    let refused = match reading.settings {
        Ok(settings) => match access.lost_in(&settings) {
            None => {
                access.swap(settings);
                for file in &reading.files.secret {
                    exposure::warn(file);
                }
                tracing::info!("web config reread and in use");
                return true;
            }
            Some(lost) => format!("{lost}, which takes a restart"),
        },
        Err(mistakes) => mistakes.join("; "),
    };
    tracing::error!(error = refused, "web config reread and refused: the previous one stays in use");
    false
}

#[derive(Clone)]
struct Watched {
    /// What was last tried, whatever came of it.
    tried: Files,
    /// What was there at the last look.
    seen: Fingerprint,
}

impl Watched {
    fn check(&mut self, is_asked: bool) -> Option<Reading> {
        if is_asked { Some(self.read()) } else { self.look() }
    }

    /// A reading, where there is something new that stood still since the last look.
    fn look(&mut self) -> Option<Reading> {
        let now = Fingerprint::of(&self.tried.paths);
        let stood_still = std::mem::replace(&mut self.seen, now) == now;
        if now == self.tried.fingerprint || !stood_still {
            return None;
        }
        Some(self.read())
    }

    fn read(&mut self) -> Reading {
        let reading = Reading::of(&self.tried.paths[0]);
        self.tried = reading.files.clone();
        self.seen = self.tried.fingerprint;
        reading
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::web_config::WebConfig;

    const HASH: &str = "$2y$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG";

    #[test]
    fn a_change_is_read_once_it_stood_still_and_only_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.yml");
        let write = |text: &str| fs::write(&path, text).unwrap();
        write("");
        let files = WebConfig::read(&path).unwrap().files;
        let mut watched = Watched { seen: files.fingerprint, tried: files };
        assert!(watched.look().is_none(), "nothing changed");
        write("web: {}\n");
        assert!(watched.look().is_none(), "it may still be written");
        write("web: {a: b}\n");
        assert!(watched.look().is_none(), "it was");
        assert!(watched.look().unwrap().settings.is_err());
        assert!(watched.look().is_none(), "a mistake is reported once");
        write("");
        assert!(watched.look().is_none());
        assert!(watched.look().unwrap().settings.is_ok(), "back to what was in use");
        fs::remove_file(&path).unwrap();
        assert!(watched.look().is_none());
        assert!(watched.look().unwrap().settings.is_err(), "to be gone is a change too");
        assert!(watched.look().is_none());
    }

    #[test]
    fn files_that_a_broken_one_does_not_name_are_watched_as_well() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.yml");
        fs::write(&path, "tls_server_config: {cert_file: cert, key_file: key}\n").unwrap();
        let files = Reading::of(&path).files;
        let mut watched = Watched { seen: files.fingerprint, tried: files };
        fs::write(folder.path().join("key"), "new").unwrap();
        assert!(watched.look().is_none());
        assert!(watched.look().is_some(), "a key that came later");
    }

    #[tokio::test]
    async fn files_that_hang_are_reported_and_reread_once_they_can_be() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.yml");
        fs::write(&path, "").unwrap();
        let files = WebConfig::read(&path).unwrap().files;
        let watched = Watched { seen: files.fingerprint, tried: files };
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let ended = Arc::new(std::sync::Mutex::new(ended));
        let check = move |watched: &mut Watched, is_asked| {
            // Hangs until the other side is dropped.
            ended.lock().unwrap().recv().unwrap_err();
            watched.check(is_asked)
        };
        let (ask, asked) = watch::channel(());
        let in_use = IntGauge::new("in_use", "help").unwrap();
        in_use.set(1);
        let (access, every) = (Arc::new(AccessControl::default()), Duration::from_millis(10));
        let task = tokio::spawn(keep_fresh_with(check, Arc::clone(&access), watched, every, asked, in_use.clone()));
        let until = async |value| {
            let deadline = tokio::time::Instant::now() + 6 * LONGEST_READ;
            while in_use.get() != value {
                assert!(tokio::time::Instant::now() < deadline, "it is never {value}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        until(0).await;
        fs::write(&path, format!("basic_auth_users: {{a: {HASH}}}\n")).unwrap();
        ask.send_replace(());
        drop(end);
        until(1).await;
        let deadline = tokio::time::Instant::now() + 6 * LONGEST_READ;
        let nobody = std::net::IpAddr::from([127, 0, 0, 1]).into();
        while access.admit(&access.in_use(), "/metrics", &hyper::HeaderMap::new(), nobody).await.is_ok() {
            assert!(tokio::time::Instant::now() < deadline, "the new users are never in use");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        task.abort();
    }

    #[tokio::test]
    async fn what_takes_protection_away_is_not_put_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.yml");
        let read = |text: &str| {
            fs::write(&path, text).unwrap();
            Reading::of(&path)
        };
        let access = AccessControl::new(read(&format!("basic_auth_users: {{a: {HASH}}}\n")).settings.unwrap(), false);
        assert!(!put_in_use(&access, read("")));
        assert!(!put_in_use(&access, read("web: {}\n")));
        let nobody = std::net::IpAddr::from([127, 0, 0, 1]).into();
        assert!(access.admit(&access.in_use(), "/metrics", &hyper::HeaderMap::new(), nobody).await.is_err());
        assert!(put_in_use(&access, read(&format!("basic_auth_users: {{b: {HASH}}}\n"))));
    }
}
