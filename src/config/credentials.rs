//! The credentials: a key pair, a token, or a profile of the vendor's CLI, from flags or the vendor's own variables.
//!
//! Invariant: exactly one of them is chosen, and it is there now. It must not read the environment itself, nor show any
//! of a secret.

use std::path::PathBuf;

use super::check::Check;
use super::values;
use super::{CredentialSource, Flags, SecretSource};
use crate::profile::{self, ProfileError};
use crate::secret::{Secret, SecretFileError, is_header_text, read_in_time};

/// In place of a name: the profile that the vendor's CLI would use.
const CURRENT: &str = "current";
/// The profile it uses where nothing says which.
const DEFAULT: &str = "default";
const NO_CREDENTIALS: &str = "no credentials: set one of\n\
    \x20 ZENLAYER_ACCESS_KEY_ID and ZENLAYER_ACCESS_KEY_SECRET\n\
    \x20 ZENLAYER_TOKEN\n\
    \x20 --zenlayer.access-key-id and --zenlayer.access-key-password-file\n\
    \x20 --zenlayer.token-file\n\
    \x20 --zenlayer.profile, for a profile of zeno\n\
    \x20 --demo, to try the exporter without an account";

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
            (true, true) => self.refuse("credentials: set either an access key or a token, not both".to_owned()),
            (false, false) => match self.variable(&["ZENLAYER_PROFILE"]) {
                Some((variable, name)) => self.profile(variable, &name),
                // A home directory is read only where asked: a key that happens to lie there may be another account's.
                None => self.refuse(NO_CREDENTIALS.to_owned()),
            },
            (false, true) => {
                let file = flags.zenlayer_token_file.as_ref();
                self.secret("--zenlayer.token-file", file, variable_token).map(CredentialSource::Token)
            }
            (true, false) => {
                let id = self.access_key_id(flags, variable_id);
                let file = flags.zenlayer_access_key_password_file.as_ref();
                let password = self.secret("--zenlayer.access-key-password-file", file, variable_password);
                Some(CredentialSource::KeyPair { id: id?, password: password? })
            }
        }
    }

    fn access_key_id(&mut self, flags: &Flags, variable: Option<(&str, String)>) -> Option<String> {
        const FLAG: &str = "--zenlayer.access-key-id";
        let by_flag = flags.zenlayer_access_key_id.clone().map(|id| (self.setting(FLAG), id));
        match by_flag.or(variable.map(|(name, id)| (name.to_owned(), id))) {
            Some((_, id)) if is_header_text(&id) && values::is_id(&id) => Some(id),
            // It may be the password, set in the wrong place.
            Some((setting, _)) => self.refuse(format!(
                "{setting} is not an access key ID: expected at most 256 bytes of plain ASCII, without commas and white space"
            )),
            None => self.refuse(format!("an access key password needs its ID: set ZENLAYER_ACCESS_KEY_ID or {FLAG}")),
        }
    }

    fn secret(&mut self, flag: &str, file: Option<&String>, variable: Option<(&str, String)>) -> Option<SecretSource> {
        if let Some(file) = file {
            let path = PathBuf::from(file);
            return match read_in_time(&path, |path| Secret::read(path).map_err(SecretFileError::hide_secret)).flatten()
            {
                Ok(_) => Some(SecretSource::File(path)),
                Err(error) => self.wrong(flag, &format!("cannot be used: {error}")),
            };
        }
        match variable.map(|(name, text)| (name, Secret::parse(text.as_bytes()))) {
            Some((_, Ok(secret))) => Some(SecretSource::Given(secret)),
            Some((name, Err(wrong))) => self.refuse(format!("{name} {wrong}")),
            None => {
                self.refuse(format!("an access key ID needs its password: set ZENLAYER_ACCESS_KEY_SECRET or {flag}"))
            }
        }
    }

    fn only_profile(&mut self, flags: &Flags, name: &str) -> Option<CredentialSource> {
        let others = [
            ("--zenlayer.access-key-id", &flags.zenlayer_access_key_id),
            ("--zenlayer.access-key-password-file", &flags.zenlayer_access_key_password_file),
            ("--zenlayer.token-file", &flags.zenlayer_token_file),
        ];
        for (flag, _) in others.iter().filter(|(_, given)| given.is_some()) {
            let flag = self.setting(flag);
            self.wrong::<()>("--zenlayer.profile", &format!("has a key or token already: leave out {flag}"));
        }
        self.profile("--zenlayer.profile", name)
    }

    /// The profile is chosen once and read at every poll: switching to another in a shell does not affect it.
    fn profile(&mut self, setting: &str, name: &str) -> Option<CredentialSource> {
        let Some((_, home)) = self.variable(&["HOME"]) else {
            return self.wrong(setting, "needs a home directory, and HOME is not set: set it, or use a key or token");
        };
        let directory = PathBuf::from(home).join(".zenlayer");
        let path = directory.join("credentials.json");
        let current = (name == CURRENT).then(|| self.variable(&["ZENLAYER_PROFILE"])).flatten();
        let read = || {
            let name = match (name, current) {
                (CURRENT, Some((_, name))) => name,
                (CURRENT, None) => {
                    let current = read_in_time(&directory.join("config.json"), profile::current)??;
                    current.unwrap_or_else(|| DEFAULT.to_owned())
                }
                (name, _) => name.to_owned(),
            };
            let wanted = name.clone();
            read_in_time(&path, move |path| profile::read(path, &wanted))??;
            Ok(name)
        };
        let read: Result<String, ProfileError> = read();
        match read {
            Ok(name) => Some(CredentialSource::Profile { path, name }),
            Err(error) => self.wrong(setting, &format!("cannot be used: {error}")),
        }
    }

    fn refuse<T>(&mut self, mistake: String) -> Option<T> {
        self.mistakes.push(mistake);
        None
    }
}
