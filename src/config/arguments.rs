//! The command line and the environment → [`Flags`].
//!
//! Invariant: a flag beats its variable, every value that reaches [`Flags`] is text with something in it, and no mistake
//! quotes an argument that belongs to no flag: it may be a secret. It must not know what a valid value is.

use std::collections::BTreeSet;
use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, FromArgMatches};

use super::environment::{Environment, advice, closest, variable_of};
use super::flags::command;
use super::{Flags, Mistakes, Refusal, invalid};
use crate::secret::trimmed;

/// Dashes, with those that a word processor makes of them.
const DASHES: [char; 4] = ['-', '\u{2013}', '\u{2014}', '\u{2212}'];

/// The flags as they were given, by either way.
pub(super) struct Given {
    pub(super) flags: Flags,
    /// Names of the flags whose value is their variable's.
    pub(super) by_variable: BTreeSet<String>,
    pub(super) mistakes: Vec<String>,
}

/// Reads the command line, without the program's name, and the variables of the flags that are not on it.
///
/// # Errors
/// When help or the version is asked for, which settles everything else.
pub(super) fn read(arguments: impl IntoIterator<Item = OsString>, environment: &Environment) -> Result<Given, Refusal> {
    let command = command();
    let mut reader = Reader {
        declared: command.get_arguments().collect(),
        accepted: vec![command.get_name().to_owned()],
        seen: BTreeSet::new(),
        mistakes: Vec::new(),
    };
    reader.command_line(arguments);
    let by_variable = reader.variables(environment);
    let Reader { accepted, mistakes, .. } = reader;
    let matches = command.clone().try_get_matches_from(accepted).map_err(refusal)?;
    let flags = Flags::from_arg_matches(&matches).map_err(refusal)?;
    Ok(Given { flags, by_variable, mistakes })
}

/// Only help and the version are answers; anything else is a mistake, of which nothing is quoted.
fn refusal(error: clap::Error) -> Refusal {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Refusal::Asked(error),
        kind => Refusal::Mistakes(Mistakes(vec![format!("invalid command line: {kind}: see --help for the flags")])),
    }
}

/// The names of all flags, without their dashes.
pub(super) fn names() -> Vec<String> {
    command().get_arguments().map(|arg| name(arg).to_owned()).collect()
}

/// Takes the arguments apart before clap does, which stops at the first mistake and quotes it.
struct Reader<'a> {
    declared: Vec<&'a Arg>,
    /// What clap is to parse: each flag with its value in one argument.
    accepted: Vec<String>,
    /// Names of the flags on the command line.
    seen: BTreeSet<String>,
    mistakes: Vec<String>,
}

impl<'a> Reader<'a> {
    fn command_line(&mut self, arguments: impl IntoIterator<Item = OsString>) {
        let texts = arguments.into_iter().map(|argument| argument.to_string_lossy().into_owned());
        let mut texts = (1_usize..).zip(texts).peekable();
        while let Some((place, text)) = texts.next() {
            if ["-h", "--help", "-V", "--version"].contains(&&*text) {
                self.accepted.push(text);
                continue;
            }
            let (typed, value) = text.split_once('=').map_or((&*text, None), |(typed, value)| (typed, Some(value)));
            let arg = typed.strip_prefix("--").and_then(|name| self.find(name));
            let may_follow = arg.map_or_else(|| typed.starts_with('-'), takes_value);
            let mut follows = || texts.next_if(|(_, next)| may_follow && !next.starts_with('-')).map(|(_, next)| next);
            let value = value.map(str::to_owned).or_else(&mut follows);
            match arg {
                Some(arg) => self.flag(arg, value.as_deref()),
                None => self.reject(place, typed),
            }
        }
    }

    /// Variables of the flags that the command line does not have. Returns the names of those flags.
    fn variables(&mut self, environment: &Environment) -> BTreeSet<String> {
        let mut by_variable = BTreeSet::new();
        for arg in self.declared.clone() {
            let variable = variable_of(name(arg));
            if self.seen.contains(name(arg)) {
                continue;
            }
            match environment.get(&variable) {
                Ok(None) => {}
                Ok(Some(text)) => {
                    self.value(arg, &format!("--{} (from {variable})", name(arg)), Some(text));
                    by_variable.insert(name(arg).to_owned());
                }
                Err(mistake) => self.mistakes.push(mistake),
            }
        }
        by_variable
    }

    fn find(&self, wanted: &str) -> Option<&'a Arg> {
        self.declared.iter().find(|arg| name(arg) == wanted).copied()
    }

    fn flag(&mut self, arg: &Arg, value: Option<&str>) {
        let flag = format!("--{}", name(arg));
        let is_first = self.seen.insert(name(arg).to_owned());
        if !is_first && !matches!(arg.get_action(), ArgAction::Append) {
            self.mistakes.push(format!("{flag} is given more than once: leave one out"));
            return;
        }
        self.value(arg, &flag, value);
    }

    /// Accepts a value, which `setting` names in a mistake. `None` is a flag on its own.
    fn value(&mut self, arg: &Arg, setting: &str, value: Option<&str>) {
        let flag = format!("--{}", name(arg));
        let is_switch = matches!(arg.get_action(), ArgAction::SetTrue);
        match value.map(|value| (value, trimmed(value))) {
            None if is_switch || is_optional(arg) => self.accepted.push(flag),
            None => self.mistakes.push(format!("{flag} needs a value: expected {flag}={}", value_name(arg))),
            Some((_, text)) if text.contains(char::REPLACEMENT_CHARACTER) => {
                self.mistakes.push(format!("the value of {setting} is not valid UTF-8"));
            }
            Some((value, "")) => {
                self.mistakes.push(invalid(setting, value, "a value; leave the flag out to use its default"));
            }
            Some((_, text)) if is_switch => match boolean(text) {
                Some(true) => self.accepted.push(flag),
                Some(false) => {}
                None => self.mistakes.push(invalid(setting, text, "true or false (or yes or no, on or off, 1 or 0)")),
            },
            Some((_, text)) => self.accepted.push(format!("{flag}={text}")),
        }
    }

    /// Notes an argument that is not a flag.
    fn reject(&mut self, place: usize, typed: &str) {
        let bare = typed.trim_start_matches(DASHES);
        let known: Vec<_> = self.declared.iter().map(|arg| format!("--{}", name(arg))).collect();
        let closest = closest(&bare.to_lowercase(), "--", known.iter().map(String::as_str));
        let shown = typed.escape_debug();
        self.mistakes.push(if bare == typed {
            format!("argument {place} belongs to no flag: expected flags such as --poll.interval=30s")
        } else if self.find(bare).is_some() {
            format!("unknown flag {shown}: flags begin with two dashes, as in --{bare}")
        } else if typed.starts_with("--") || closest.is_some() {
            format!("unknown flag {shown}: {}", advice(bare, closest))
        } else {
            // The text after one dash may be the value of a short flag that another program has.
            format!("argument {place} is an unknown flag: flags begin with two dashes, as in --poll.interval=30s")
        });
    }
}

fn name(arg: &Arg) -> &str {
    arg.get_long().expect("every flag has a name, and there are no other arguments")
}

fn takes_value(arg: &Arg) -> bool {
    arg.get_action().takes_values()
}

/// Whether the flag may stand without a value.
fn is_optional(arg: &Arg) -> bool {
    arg.get_num_args().is_some_and(|values| values.min_values() == 0)
}

fn value_name(arg: &Arg) -> String {
    arg.get_value_names().unwrap_or_default().iter().map(ToString::to_string).collect()
}

/// The one way in which flags and variables are turned on and off.
pub(super) fn boolean(text: &str) -> Option<bool> {
    match &*text.to_ascii_lowercase() {
        "true" | "yes" | "on" | "1" => Some(true),
        "false" | "no" | "off" | "0" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_help_and_version_are_not_mistakes() {
        let kind_of =
            |argument: &str| refusal(command().try_get_matches_from(["zenlayer-exporter", argument]).unwrap_err());
        for argument in ["--help", "--version"] {
            assert!(matches!(kind_of(argument), Refusal::Asked(_)), "{argument}");
        }
        for argument in ["--frobnicate=hush", "hush", "--once=hush", "--poll.timeout"] {
            let Refusal::Mistakes(Mistakes(mistakes)) = kind_of(argument) else { panic!("{argument} is no mistake") };
            assert!(mistakes[0].starts_with("invalid command line: "), "{mistakes:?}");
            assert!(!mistakes[0].contains("hush"), "{mistakes:?}");
        }
    }
}
