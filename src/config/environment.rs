//! The environment variables of the process, and those of them that look like a setting but are not one.
//!
//! Invariant: an empty variable is unset, and one that cannot be read is an error, never unset.

use std::collections::BTreeMap;
use std::ffi::OsString;

use crate::secret::trimmed;

/// What every variable of a flag begins with.
const PREFIX: &str = "ZENLAYER_EXPORTER_";
/// Variables of the vendor's own tools that the exporter reads.
const VENDOR: [&str; 8] = [
    "ZENLAYER_ACCESS_KEY_ID",
    "ZENLAYER_ACCESS_KEY_SECRET",
    "ZENLAYER_TOKEN",
    "ZENLAYER_ENDPOINT",
    "ZENLAYER_PROFILE",
    "ZENLAYERCLOUD_ACCESS_KEY_ID",
    "ZENLAYERCLOUD_ACCESS_KEY_PASSWORD",
    "ZENLAYERCLOUD_DOMAIN",
];

/// The environment variables as they were when the process started.
#[derive(Default)]
pub struct Environment(BTreeMap<OsString, OsString>);

impl<N: Into<OsString>, V: Into<OsString>> FromIterator<(N, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(variables: I) -> Self {
        Self(variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

impl Environment {
    /// The value without the white space around it; `None` where the variable is unset or empty.
    pub(super) fn get(&self, name: &str) -> Result<Option<&str>, String> {
        let Some(value) = self.0.get(name.as_ref() as &std::ffi::OsStr).filter(|value| !value.is_empty()) else {
            return Ok(None);
        };
        let text = value.to_str().ok_or_else(|| format!("{name} is not valid UTF-8: set it again, or unset it"))?;
        match trimmed(text) {
            "" => Err(format!("{name} holds only white space: set a value, or unset it")),
            text => Ok(Some(text)),
        }
    }

    /// A warning for each variable that is probably a misspelt setting. `flags` are the names of all flags.
    pub(super) fn unknown(&self, flags: &[String]) -> Vec<String> {
        let ours: Vec<_> = flags.iter().map(|flag| variable_of(flag)).collect();
        let set = self.0.iter().filter(|(_, value)| !value.is_empty());
        let named = set.filter_map(|(name, value)| Some((name.to_str()?, value.to_str().unwrap_or_default())));
        named.filter_map(|(name, value)| misspelt(name, value, &ours)).collect()
    }
}

fn misspelt(name: &str, value: &str, ours: &[String]) -> Option<String> {
    let ours = || ours.iter().map(String::as_str);
    if ours().any(|known| known == name) || VENDOR.contains(&name) {
        return None;
    }
    let upper = name.to_ascii_uppercase();
    if let Some(rest) = upper.strip_prefix(PREFIX) {
        let advice = || advice(rest, closest(&upper, PREFIX, ours()));
        return (!is_service_link(rest, value)).then(|| format!("{name} is not a setting: {}", advice()));
    }
    // The vendor's tools may have variables that the exporter does not know, so only a close one is misspelt.
    let (_, known) = upper.strip_prefix("ZENLAYER").and(closest(&upper, "ZENLAYER", VENDOR.into_iter()))?;
    Some(format!("{name} is not read: did you mean {known}?"))
}

/// The known name that differs least from `name`, and in how many letters, where it looks like a mistake. The prefix,
/// which all have, does not count.
pub(super) fn closest<'a>(name: &str, prefix: &str, known: impl Iterator<Item = &'a str>) -> Option<(usize, &'a str)> {
    let rest = name.strip_prefix(prefix).unwrap_or(name);
    let distance = |known: &str| strsim::damerau_levenshtein(rest, known.strip_prefix(prefix).unwrap_or(known));
    let nearest = known.map(|known| (distance(known), known)).min()?;
    (nearest.0 <= rest.chars().count() / 3).then_some(nearest)
}

/// What to do about a name that is none, with the closest that is one.
pub(super) fn advice(name: &str, closest: Option<(usize, &str)>) -> String {
    match closest {
        Some((0..=2, known)) => format!("did you mean {known}?"),
        _ if names_a_secret(name) => "secrets are never flags: set ZENLAYER_ACCESS_KEY_SECRET or ZENLAYER_TOKEN, or \
             name a file with --zenlayer.access-key-password-file or --zenlayer.token-file"
            .to_owned(),
        Some((_, known)) => format!("did you mean {known}?"),
        None => "see --help for the list".to_owned(),
    }
}

fn names_a_secret(name: &str) -> bool {
    const SECRETS: [&str; 5] = ["secret", "password", "passwd", "token", "bearer"];
    let name = name.to_lowercase();
    let mut words = name.split(['.', '-', '_']);
    let sounds_secret = |word| SECRETS.iter().any(|secret| strsim::damerau_levenshtein(word, secret) <= 1);
    !words.clone().any(|word| word == "file") && words.any(sounds_secret)
}

/// `ZENLAYER_EXPORTER_POLL_INTERVAL` for `poll.interval`.
pub(super) fn variable_of(flag: &str) -> String {
    format!("{PREFIX}{}", flag.to_uppercase().replace(['.', '-'], "_"))
}

/// Whether Kubernetes set the variable, less `ZENLAYER_EXPORTER_`, for a Service whose name begins with the exporter's.
/// <https://kubernetes.io/docs/tutorials/services/connect-applications-service/#environment-variables>
fn is_service_link(rest: &str, value: &str) -> bool {
    let is_port = |text: &str| text.parse::<u16>().is_ok();
    let words: Vec<_> = rest.split('_').collect();
    match words.as_slice() {
        [.., "SERVICE", "HOST"] => true,
        [.., "PORT", number, "TCP" | "UDP" | "SCTP"]
        | [.., "PORT", number, "TCP" | "UDP" | "SCTP", "ADDR" | "PORT" | "PROTO"] => is_port(number),
        [.., "PORT"] if value.contains("://") => true,
        words => words.windows(2).any(|pair| pair == ["SERVICE", "PORT"]) && is_port(value),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    const FLAGS: [&str; 4] = ["poll.interval", "poll.timeout", "zenlayer.token-file", "zenlayer.access-key-id"];

    fn warnings(name: &str, value: &str) -> Vec<String> {
        Environment::from_iter([(name, value)]).unknown(&FLAGS.map(str::to_owned))
    }

    #[test]
    fn an_empty_variable_is_unset_and_an_unreadable_one_is_an_error() {
        let environment = Environment::from_iter([
            ("EMPTY", OsString::new()),
            ("BLANK", " \t".into()),
            ("CRLF", "\u{feff}30s\r\n".into()),
            ("LATIN1", OsString::from_vec(vec![b'k', 0xe9])),
        ]);
        assert_eq!(environment.get("MISSING"), Ok(None));
        assert_eq!(environment.get("EMPTY"), Ok(None));
        assert_eq!(environment.get("CRLF"), Ok(Some("30s")));
        assert_eq!(environment.get("BLANK").unwrap_err(), "BLANK holds only white space: set a value, or unset it");
        assert_eq!(environment.get("LATIN1").unwrap_err(), "LATIN1 is not valid UTF-8: set it again, or unset it");
    }

    #[test]
    fn a_misspelt_variable_draws_a_warning_with_the_closest_name() {
        let secrets = "secrets are never flags: set ZENLAYER_ACCESS_KEY_SECRET or ZENLAYER_TOKEN, or name a file with \
                       --zenlayer.access-key-password-file or --zenlayer.token-file";
        for (name, expected) in [
            ("ZENLAYER_EXPORTER_POLL_INTERVALL", "is not a setting: did you mean ZENLAYER_EXPORTER_POLL_INTERVAL?"),
            ("ZENLAYER_EXPORTER_TIMEOUT_POLL", "is not a setting: see --help for the list"),
            ("zenlayer_exporter_poll_timeout", "is not a setting: did you mean ZENLAYER_EXPORTER_POLL_TIMEOUT?"),
            ("ZENLAYER_EXPORTER_ZENLAYER_TOKEN", &format!("is not a setting: {secrets}")),
            ("ZENLAYER_EXPORTER_ZENLAYER_ACCESS_KEY_SECRET", &format!("is not a setting: {secrets}")),
            (
                "ZENLAYER_EXPORTER_ZENLAYER_TOKEN_FIEL",
                "is not a setting: did you mean ZENLAYER_EXPORTER_ZENLAYER_TOKEN_FILE?",
            ),
            ("ZENLAYER_ACCESS_KEY_SECRETT", "is not read: did you mean ZENLAYER_ACCESS_KEY_SECRET?"),
            ("ZENLAYER_CLOUD_DOMAIN", "is not read: did you mean ZENLAYERCLOUD_DOMAIN?"),
        ] {
            assert_eq!(warnings(name, "hush"), [format!("{name} {expected}")]);
            assert_eq!(warnings(name, ""), [""; 0], "{name} is empty");
        }
    }

    #[test]
    fn known_and_foreign_variables_and_service_links_draw_none() {
        for (name, value) in [
            ("ZENLAYER_EXPORTER_POLL_INTERVAL", "1s"),
            ("ZENLAYERCLOUD_DOMAIN", "example.com"),
            ("ZENLAYER_OUTPUT", "json"),
            ("PATH", "/bin"),
            ("ZENLAYER_EXPORTER_SERVICE_HOST", "10.0.0.1"),
            ("ZENLAYER_EXPORTER_SERVICE_PORT", "10980"),
            ("ZENLAYER_EXPORTER_SERVICE_PORT_HTTP_METRICS", "10980"),
            ("ZENLAYER_EXPORTER_PORT", "tcp://10.0.0.1:10980"),
            ("ZENLAYER_EXPORTER_PORT_10980_TCP", "tcp://10.0.0.1:10980"),
            ("ZENLAYER_EXPORTER_PORT_10980_TCP_ADDR", "10.0.0.1"),
            ("ZENLAYER_EXPORTER_PORT_443_TCP_PORT", "443"),
            ("ZENLAYER_EXPORTER_PORT_53_UDP_PROTO", "udp"),
            ("ZENLAYER_EXPORTER_METRICS_SERVICE_HOST", "10.0.0.1"),
            ("ZENLAYER_EXPORTER_METRICS_PORT_9090_TCP", "tcp://10.0.0.1:9090"),
        ] {
            assert_eq!(warnings(name, value), [""; 0], "{name}");
        }
        assert_eq!(warnings("ZENLAYER_EXPORTER_PORT", "9090").len(), 1, "nobody but Kubernetes writes tcp://");
        assert_eq!(warnings("ZENLAYER_EXPORTER_SERVICE_PORTS", "none").len(), 1);
    }
}
