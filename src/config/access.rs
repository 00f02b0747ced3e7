//! Who asks: a key pair, a token, or a profile of the vendor's CLI, from flags or from the vendor's own variables.
//!
//! Invariant: exactly one of them is chosen, and it is there now. It must not read the environment itself, nor show any
//! of a secret.

use std::path::PathBuf;

use super::check::Check;
use super::{CredentialSource, Flags, SecretSource};
use crate::profile::{self, ProfileError};
use crate::secret::{Secret, is_header_text, read_in_time};

/// In place of a name: the profile that the vendor's CLI would use.
const CURRENT: &str = "current";
/// The profile it uses where nothing says which.
const DEFAULT: &str = "default";

impl Check<'_> {
    /// Flags decide between key pair, token and profile; the vendor's variables decide only where no flag does, and
    /// among those a key or token comes before a profile, as for the vendor's own CLI.
    pub(super) fn credentials(&mut self, flags: &Flags) -> Option<CredentialSource> {
        let variable_id = self.variable(&["ZENLAYER_ACCESS_KEY_ID", "ZENLAYERCLOUD_ACCESS_KEY_ID"]);
        let variable_password = self.variable(&["ZENLAYER_ACCESS_KEY_SECRET", "ZENLAYERCLOUD_ACCESS_KEY_PASSWORD"]);
        let variable_token = self.variable(&["ZENLAYER_TOKEN"]);
        let flag_pair = flags.zenlayer_access_key_id.is_some() || flags.zenlayer_access_key_password_file.is_some();
        let by_flags = (flag_pair, flags.zenlayer_token_file.is_some());
        let by_variables = (variable_id.is_some() || variable_password.is_some(), variable_token.is_some());
        if let Some(name) = &flags.zenlayer_profile {
            return self.only_profile(flags, name);
        }
        let chosen = if by_flags == (false, false) { by_variables } else { by_flags };
        match chosen {
            (true, true) => self.wrong("credentials", "both an access key and a token are given: leave one out"),
            (false, false) => match self.variable(&["ZENLAYER_PROFILE"]) {
                Some(name) => self.profile("ZENLAYER_PROFILE", &name),
                // A home directory is read only where asked: a key that happens to lie there may be another account's.
                None => self.wrong(
                    "credentials",
                    "none are given: set ZENLAYER_ACCESS_KEY_ID and ZENLAYER_ACCESS_KEY_SECRET, or ZENLAYER_TOKEN, or \
                     use --zenlayer.access-key-id with --zenlayer.access-key-password-file, or --zenlayer.token-file, \
                     or --zenlayer.profile for what zeno has; to try the exporter without an account, use --demo",
                ),
            },
            (false, true) => {
                let source = self.secret("--zenlayer.token-file", flags.zenlayer_token_file.as_ref(), variable_token);
                source.map(CredentialSource::Token)
            }
            (true, false) => {
                let file = flags.zenlayer_access_key_password_file.as_ref();
                let id = flags.zenlayer_access_key_id.clone().or(variable_id).map(|id| id.trim().to_owned());
                let id = match id {
                    Some(id) if is_header_text(&id) => Some(id),
                    Some(_) => self.wrong("--zenlayer.access-key-id", "has characters that no access key id has"),
                    None => self.wrong(
                        "--zenlayer.access-key-id",
                        "a password is given without its id: set this or ZENLAYER_ACCESS_KEY_ID",
                    ),
                };
                let password = self.secret("--zenlayer.access-key-password-file", file, variable_password);
                Some(CredentialSource::KeyPair { id: id?, password: password? })
            }
        }
    }

    fn secret(&mut self, flag: &str, file: Option<&String>, given: Option<String>) -> Option<SecretSource> {
        if let Some(file) = file {
            let path = PathBuf::from(file);
            return match read_in_time(&path, Secret::read).flatten() {
                Ok(_) => Some(SecretSource::File(path)),
                Err(error) => self.wrong(flag, &error.to_string()),
            };
        }
        match given.map(|text| Secret::new(&text)) {
            Some(secret) if is_header_text(secret.expose()) => Some(SecretSource::Given(secret)),
            Some(_) => self.wrong(flag, "the secret in the environment has characters that none has: set it again"),
            None => self
                .wrong(flag, "an access key id is given without its password: set this or ZENLAYER_ACCESS_KEY_SECRET"),
        }
    }

    fn only_profile(&mut self, flags: &Flags, name: &str) -> Option<CredentialSource> {
        let others = [
            ("--zenlayer.access-key-id", &flags.zenlayer_access_key_id),
            ("--zenlayer.access-key-password-file", &flags.zenlayer_access_key_password_file),
            ("--zenlayer.token-file", &flags.zenlayer_token_file),
        ];
        for (flag, _) in others.iter().filter(|(_, given)| given.is_some()) {
            self.wrong::<()>("--zenlayer.profile", &format!("holds a key or token already: leave out {flag}"));
        }
        self.profile("--zenlayer.profile", name)
    }

    /// The profile is chosen once and read at every poll: who switches to another in a shell does not mean the exporter.
    fn profile(&mut self, setting: &str, name: &str) -> Option<CredentialSource> {
        let Some(home) = self.variable(&["HOME"]) else {
            return self.wrong(setting, "is in the home directory, and HOME is not set: set it, or use a key or token");
        };
        let directory = PathBuf::from(home).join(".zenlayer");
        let path = directory.join("credentials.json");
        let read = || {
            let name = match name {
                CURRENT => self.variable(&["ZENLAYER_PROFILE"]).map_or_else(
                    || {
                        read_in_time(&directory.join("config.json"), profile::current)
                            .map_err(ProfileError::from)
                            .flatten()
                            .map(|name| name.unwrap_or_else(|| DEFAULT.to_owned()))
                    },
                    Ok,
                )?,
                name => name.to_owned(),
            };
            let wanted = name.clone();
            read_in_time(&path, move |path| profile::read(path, &wanted))??;
            Ok(name)
        };
        let read: Result<String, ProfileError> = read();
        match read {
            Ok(name) => Some(CredentialSource::Profile { path, name }),
            Err(error) => self.wrong(setting, &error.to_string()),
        }
    }
}
