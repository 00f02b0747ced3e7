//! Values as text → values of their type, and the forms in which a mistake is noted.

use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use reqwest::Url;

use super::check::Check;
use super::environment::variable_of;

/// No timer overflows by it, and nobody who waits longer for a poll means it.
const LONGEST: Duration = Duration::from_hours(24 * 30);

/// An ID that is longer is in no answer that is used, and a label that is longer is cut.
pub(super) const LONGEST_TEXT: usize = 256;
/// The longest name of a host (RFC 1035, section 2.3.4).
pub(super) const LONGEST_HOST: usize = 253;
/// The description of an ID in error messages.
pub(super) const ID: &str = "an ID of at most 256 bytes, without commas, white space and control characters";

/// Reads digits and nothing else: the standard parser also accepts a sign.
pub(super) fn whole_number<T: FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// Whether the URL has a host that can be reached: an address, or a name that the DNS can have.
pub(super) fn has_host(url: &Url) -> bool {
    let is_label = |label: &str| {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        !label.is_empty() && label.bytes().all(is_allowed) && !label.starts_with('-') && !label.ends_with('-')
    };
    let Some(host) = url.host_str() else { return false };
    match host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        Ok(address) => !address.is_unspecified(),
        Err(_) => host.len() <= LONGEST_HOST && host.strip_suffix('.').unwrap_or(host).split('.').all(is_label),
    }
}

pub(super) fn is_id(text: &str) -> bool {
    let is_separator = |c: char| c == ',' || c.is_whitespace() || c.is_control();
    text.len() <= LONGEST_TEXT && !text.contains(is_separator)
}

impl Check<'_> {
    pub(super) fn duration(&mut self, flag: &str, text: &str, least: Duration) -> Option<Duration> {
        match humantime::parse_duration(text) {
            Ok(duration) if (least..=LONGEST).contains(&duration) => Some(duration),
            Ok(_) => {
                let expected = format!("a duration from {} to 30d", humantime::format_duration(least));
                self.invalid(flag, text, &expected)
            }
            Err(_) => self.invalid(flag, text, "a duration such as 30s or 5m"),
        }
    }

    pub(super) fn number(&mut self, flag: &str, text: &str, least: usize, most: usize) -> Option<usize> {
        let number = whole_number(text).filter(|number| (least..=most).contains(number));
        number.or_else(|| self.invalid(flag, text, &format!("a whole number from {least} to {most}")))
    }

    pub(super) fn choice<T: Copy>(&mut self, flag: &str, text: &str, choices: &[(&str, T)]) -> Option<T> {
        if let Some((_, value)) = choices.iter().find(|(name, _)| *name == text) {
            return Some(*value);
        }
        let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
        let (last, rest) = names.split_last().expect("there are choices");
        self.invalid(flag, text, &format!("{} or {last}", rest.join(", ")))
    }

    /// The first of the variables that is set, with its name. Another one with another value draws a warning.
    pub(super) fn variable(&mut self, names: &[&'static str]) -> Option<(&'static str, String)> {
        let mut first: Option<(&'static str, String)> = None;
        for &name in names {
            let text = match self.environment.get(name) {
                Ok(None) => continue,
                Ok(Some(text)) => text.to_owned(),
                Err(mistake) => {
                    self.mistakes.push(mistake);
                    // It is given, so nothing must be reported as missing.
                    "unreadable".to_owned()
                }
            };
            match &first {
                None => first = Some((name, text)),
                Some((used, value)) if *value != text => {
                    self.warnings.push(format!("{name} is ignored, since {used} is set to another value: unset one"));
                }
                Some(_) => {}
            }
        }
        first
    }

    /// A flag as a mistake names it, with the variable where its value is from there.
    pub(super) fn setting(&self, flag: &str) -> String {
        let name = flag.trim_start_matches('-').split('=').next().unwrap_or_default();
        if self.by_variable.contains(name) {
            return format!("{flag} (from {})", variable_of(name));
        }
        flag.to_owned()
    }

    pub(super) fn invalid<T>(&mut self, flag: &str, value: &str, expected: &str) -> Option<T> {
        self.mistakes.push(super::invalid(&self.setting(flag), value, expected));
        None
    }

    pub(super) fn wrong<T>(&mut self, flag: &str, what: &str) -> Option<T> {
        self.mistakes.push(format!("{} {what}", self.setting(flag)));
        None
    }
}
