//! The vendor CLI's own files: which profile is in use, and the key or token of each.
//!
//! Invariant: no error has any of a secret in it, also not by way of the parser, which quotes what it did not expect.
//! It must not know where the home directory is.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::{Deserializer, Visitor};
use serde::{Deserialize, de};
use serde_json::value::RawValue;

use crate::secret::{Credential, Flaw, Secret, SecretFileError, contents, decode, is_header_text};

/// Why there is no such profile.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProfileError {
    /// No profile is called that. The name may be a secret, set in the wrong place.
    #[error("expected the name of a profile, of at most 256 bytes, without control characters")]
    Name,
    /// The file cannot be read.
    #[error("{error}{advice}", error = .0, advice = advice(.0))]
    File(#[from] SecretFileError),
    /// It is not what the CLI writes.
    #[error("{} is not the JSON that zeno writes, at line {line}, column {column}: fix it, or run `zeno configure`", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where in it.
        line: usize,
        /// Where in that line.
        column: usize,
    },
    /// It has others.
    #[error("{} has no profile {name:?}: {there}", path.display())]
    Unknown {
        /// The file.
        path: PathBuf,
        /// The one asked for.
        name: String,
        /// Those it has, in words.
        there: String,
    },
    /// It has the profile, but no credential in it.
    #[error("profile {name:?} of {} {wrong}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// The profile.
        name: String,
        /// What is wrong with it.
        wrong: &'static str,
    },
}

fn advice(error: &SecretFileError) -> &'static str {
    if matches!(error, SecretFileError::Hangs { .. }) { "" } else { ": `zeno configure` makes it" }
}

/// One profile of the credentials file. What is null or empty counts as absent.
#[derive(Deserialize)]
struct Profile {
    access_key_id: Option<Text>,
    access_key_secret: Option<Text>,
    token: Option<Text>,
}

/// Reads the key or token of one profile from the CLI's credentials file.
///
/// # Errors
/// When there is no such profile, or no credential in it.
pub(crate) fn read(path: &Path, name: &str) -> Result<Credential, ProfileError> {
    if !is_usable(name) {
        return Err(ProfileError::Name);
    }
    let bytes = contents(path)?;
    // Raw: only the profile that is asked for is taken apart, and no other has to be right.
    let text = decode(&bytes).map_err(|flaw| flawed(path, flaw))?;
    let profiles: BTreeMap<String, &RawValue> = serde_json::from_str(text).map_err(|error| malformed(path, &error))?;
    let unusable = |wrong| ProfileError::Unusable { path: path.to_owned(), name: name.to_owned(), wrong };
    let Some(profile) = profiles.get(name) else {
        let there = in_words(profiles.keys());
        return Err(ProfileError::Unknown { path: path.to_owned(), name: name.to_owned(), there });
    };
    let profile = serde_json::from_str(profile.get()).map_err(|_| unusable("is not an object of strings: fix it"))?;
    credential(profile).map_err(unusable)
}

fn credential(profile: Profile) -> Result<Credential, &'static str> {
    let given = |text: Option<Text>| text.map(|text| text.0).filter(|secret| !secret.is_empty());
    let (id, secret, token) = (given(profile.access_key_id), given(profile.access_key_secret), given(profile.token));
    if [&id, &secret, &token].into_iter().flatten().any(|secret| !is_header_text(secret.expose())) {
        return Err("has characters that no key or token has: run `zeno configure`");
    }
    match (id, secret, token) {
        (Some(id), Some(password), None) => Ok(Credential::KeyPair { id: id.expose().to_owned(), password }),
        (None, None, Some(token)) => Ok(Credential::Token(token)),
        (None, None, None) => Err("has neither a key nor a token: run `zeno configure`"),
        (Some(_), None, None) => Err("has an access_key_id without its access_key_secret: run `zeno configure`"),
        (None, Some(_), None) => Err("has an access_key_secret without its access_key_id: run `zeno configure`"),
        (_, _, Some(_)) => Err("has both a key and a token: leave one out"),
    }
}

/// The profile that the CLI's own settings name; `None` where they name none.
///
/// # Errors
/// When the file is there and cannot be read.
pub(crate) fn current(path: &Path) -> Result<Option<String>, ProfileError> {
    #[derive(Deserialize)]
    struct Settings {
        current_profile: Option<String>,
    }
    let bytes = match contents(path) {
        Err(SecretFileError::Unreadable { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Ok(None);
        }
        bytes => bytes?,
    };
    let text = decode(&bytes).map_err(|flaw| flawed(path, flaw))?;
    let settings: Settings = serde_json::from_str(text).map_err(|error| malformed(path, &error))?;
    Ok(settings.current_profile.filter(|name| !name.is_empty()))
}

fn flawed(path: &Path, flaw: Flaw) -> ProfileError {
    SecretFileError::Flawed { path: path.to_owned(), flaw }.into()
}

/// The place alone: the parser's words may quote a secret.
fn malformed(path: &Path, error: &serde_json::Error) -> ProfileError {
    ProfileError::Malformed { path: path.to_owned(), line: error.line(), column: error.column() }
}

/// Whether an error can show the name.
fn is_usable(name: &str) -> bool {
    name.len() <= 256 && !name.contains(char::is_control)
}

/// The first of the names, of those that can be chosen.
fn in_words<'a>(names: impl Iterator<Item = &'a String>) -> String {
    const SHOWN: usize = 10;
    let names: Vec<_> = names.filter(|name| is_usable(name)).map(|name| format!("{name:?}")).collect();
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        _ if names.is_empty() => "it has none".to_owned(),
        0 => format!("it has {shown}"),
        more => format!("it has {shown} and {more} more"),
    }
}

/// A text that becomes a [`Secret`] before anything else can hold it.
struct Text(Secret);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl Visitor<'_> for Reader {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text, E> {
                Ok(Text(Secret::new(text)))
            }
        }

        deserializer.deserialize_str(Reader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"{
        "default": {"access_key_id": "id-1", "access_key_secret": "hush-1"},
        "ci": {"token": "hush-2", "access_key_id": "", "access_key_secret": null},
        "half": {"access_key_id": "id-3"},
        "other half": {"access_key_secret": "hush-3"},
        "both": {"access_key_id": "id-4", "access_key_secret": "hush-4", "token": "hush-5"},
        "empty": {},
        "text": "hush-6",
        "number": {"token": 7},
        "lines": {"token": "hush-7\nhush-8"}
    }"#;

    fn read_from(text: &str, name: &str) -> Result<Credential, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("credentials.json");
        std::fs::write(&path, text).unwrap();
        let shown = |error: ProfileError| format!("{error}").replace(directory.path().to_str().unwrap(), "~");
        read(&path, name).map_err(shown)
    }

    #[test]
    fn a_profile_is_a_key_pair_or_a_token() {
        let Credential::KeyPair { id, password } = read_from(FILE, "default").unwrap() else { panic!("no key pair") };
        assert_eq!((&*id, password.expose()), ("id-1", "hush-1"));
        let Credential::Token(token) = read_from(FILE, "ci").unwrap() else { panic!("no token") };
        assert_eq!(token.expose(), "hush-2");
    }

    #[test]
    fn what_is_wrong_with_a_profile_is_said_without_any_secret() {
        let said = |name| read_from(FILE, name).unwrap_err();
        let of = |name, wrong: &str| format!("profile {name:?} of ~/credentials.json {wrong}");
        let (half, other) =
            ("access_key_id without its access_key_secret", "access_key_secret without its access_key_id");
        assert_eq!(said("half"), of("half", &format!("has an {half}: run `zeno configure`")));
        assert_eq!(said("other half"), of("other half", &format!("has an {other}: run `zeno configure`")));
        assert_eq!(said("both"), of("both", "has both a key and a token: leave one out"));
        assert_eq!(said("empty"), of("empty", "has neither a key nor a token: run `zeno configure`"));
        assert_eq!(said("text"), of("text", "is not an object of strings: fix it"));
        assert_eq!(said("number"), of("number", "is not an object of strings: fix it"));
        assert_eq!(said("lines"), of("lines", "has characters that no key or token has: run `zeno configure`"));
        assert_eq!(
            said("prod"),
            "~/credentials.json has no profile \"prod\": it has \"both\", \"ci\", \"default\", \"empty\", \"half\", \
             \"lines\", \"number\", \"other half\", \"text\""
        );
    }

    #[test]
    fn an_error_shows_short_names_of_profiles_and_few_of_them() {
        let expected = "expected the name of a profile, of at most 256 bytes, without control characters";
        for name in ["x".repeat(257), "a\nb".to_owned(), "a\0b".to_owned()] {
            let file = serde_json::json!({ &name: {"token": "hush"} }).to_string();
            assert_eq!(read_from(&file, &name).unwrap_err(), expected);
            assert_eq!(
                read_from(&file, "prod").unwrap_err(),
                "~/credentials.json has no profile \"prod\": it has none"
            );
        }
        let many: BTreeMap<_, _> = (10..22).map(|number| (format!("p{number}"), "")).collect();
        let said = read_from(&serde_json::to_string(&many).unwrap(), "prod").unwrap_err();
        assert!(said.ends_with("\"p18\", \"p19\" and 2 more"), "{said}");
    }

    #[test]
    fn a_byte_order_mark_is_no_mistake_and_another_encoding_is_named() {
        assert!(read_from(&format!("\u{feff}{}", FILE.replace('\n', "\r\n")), "default").is_ok());
        let directory = tempfile::tempdir().unwrap();
        for (bytes, wrong) in [
            (&b"\xff\xfe{\0}\0"[..], " is UTF-16: save it as UTF-8: `zeno configure` makes it"),
            (b"{\xff}", " is not valid UTF-8: save it as UTF-8: `zeno configure` makes it"),
            (
                &b" ".repeat(1 << 17),
                " is longer than 64 KiB: name the file that holds the secret: `zeno configure` makes it",
            ),
        ] {
            let path = directory.path().join("credentials.json");
            std::fs::write(&path, bytes).unwrap();
            let said = read(&path, "default").unwrap_err().to_string();
            assert!(said.ends_with(wrong), "{said}");
        }
    }

    #[test]
    fn a_file_of_another_kind_is_told_by_the_place_where_it_is() {
        let said = |text| read_from(text, "default").unwrap_err();
        let not_json = |line, column| {
            format!(
                "~/credentials.json is not the JSON that zeno writes, at line {line}, column {column}: fix it, or run \
                 `zeno configure`"
            )
        };
        assert_eq!(said("\"hush\""), not_json(1, 6));
        assert_eq!(said("{\n\"default\": {\"token\": \"hush}"), not_json(2, 27));
        assert_eq!(said(""), not_json(1, 0));
        assert_eq!(said("{}"), "~/credentials.json has no profile \"default\": it has none");
    }

    #[test]
    fn the_current_profile_is_named_by_the_settings_or_by_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        assert_eq!(current(&path).unwrap(), None, "without the file");
        for (text, name) in [
            (r#"{"current_profile": "prod", "profiles": {"prod": {"output": "json"}}}"#, Some("prod")),
            (r#"{"current_profile": ""}"#, None),
            ("{}", None),
        ] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(current(&path).unwrap().as_deref(), name, "{text}");
        }
        std::fs::write(&path, "[").unwrap();
        assert!(current(&path).unwrap_err().to_string().contains("config.json is not the JSON"));
    }
}
