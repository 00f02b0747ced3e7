//! Reloads the web config when its files change.
//!
//! Invariant: what does not work is never put in use, and is reported once. It must not know what the settings are for.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use prometheus::IntGauge;
use tokio::sync::watch;

use super::gate::Gate;
use crate::exposure;
use crate::web_config::{Files, Fingerprint, Reading};

/// How often the files are looked at. A change is used once it has stood still for as long, since certificate and key
/// are not written at one moment.
pub(crate) const EVERY: Duration = Duration::from_secs(2);

/// Reads the files again when they change and at every change of `reload`, for ever. `in_use` is 1 while the files as
/// they are are in use.
pub(crate) async fn keep_fresh(
    gate: Arc<Gate>,
    files: Files,
    every: Duration,
    mut reload: watch::Receiver<()>,
    in_use: IntGauge,
) -> Infallible {
    let mut watched = Watched { seen: files.fingerprint, tried: files };
    loop {
        let is_asked = tokio::select! {
            () = tokio::time::sleep(every) => false,
            Ok(()) = reload.changed() => true,
        };
        let looked = tokio::task::spawn_blocking(move || {
            let reading = if is_asked { Some(watched.read()) } else { watched.look() };
            (watched, reading)
        });
        let reading;
        (watched, reading) = looked.await.expect("reading files does not panic");
        if let Some(reading) = reading {
            in_use.set(put_in_use(&gate, reading).into());
        }
    }
}

fn put_in_use(gate: &Gate, reading: Reading) -> bool {
    let refused = match reading.settings {
        Ok(settings) => match gate.lost_in(&settings) {
            None => {
                gate.swap(settings);
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

struct Watched {
    /// What was last tried, whatever came of it.
    tried: Files,
    /// What was there at the last look.
    seen: Fingerprint,
}

impl Watched {
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
    async fn what_takes_protection_away_is_not_put_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.yml");
        let read = |text: &str| {
            fs::write(&path, text).unwrap();
            Reading::of(&path)
        };
        let gate = Gate::new(read(&format!("basic_auth_users: {{a: {HASH}}}\n")).settings.unwrap(), false);
        assert!(!put_in_use(&gate, read("")));
        assert!(!put_in_use(&gate, read("web: {}\n")));
        let nobody = std::net::IpAddr::from([127, 0, 0, 1]).into();
        assert!(gate.admit(&gate.in_use(), "/metrics", &hyper::HeaderMap::new(), nobody).await.is_err());
        assert!(put_in_use(&gate, read(&format!("basic_auth_users: {{b: {HASH}}}\n"))));
    }
}
