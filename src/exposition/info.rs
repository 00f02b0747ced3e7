//! Instance metadata → bytes in the Prometheus text format.
//!
//! Invariant: the same infos are always the same bytes. It must not know a clock, a socket or a registry.

use bytes::Bytes;

use super::{escape, header};
use crate::buffer::Buffer;
use crate::model::{Infos, SHARED};

/// Name, zone and similar metadata of each instance.
pub(crate) const INSTANCE_INFO: &str = "zenlayer_instance_info";
/// When each subscription ends.
pub(crate) const INSTANCE_EXPIRY: &str = "zenlayer_instance_expiry_timestamp_seconds";

const INFO_HELP: &str = "Name, zone and similar metadata of each instance; always 1.";
const EXPIRY_HELP: &str = "Unix time at which each subscription ends.";
/// The labels of [`Info::shared`], before those of tags.
const SHARED_LABELS: [&str; SHARED] =
    ["zoneId", "instanceType", "imageName", "instanceChargeType", "resourceGroupName"];

/// Renders the series of every instance, ordered by id; `tags` are the names of the labels that tags have, and
/// `previous` is the length of the text that it replaces.
pub(crate) fn render(infos: &Infos, tags: &[String], previous: usize) -> Bytes {
    let texts: Vec<_> = infos.texts().map(escape).collect();
    let mut text = Buffer::after(previous);
    header(&mut text, INSTANCE_INFO, INFO_HELP);
    for info in infos.iter() {
        text.extend([
            INSTANCE_INFO,
            "{instanceId=\"",
            &*escape(info.id),
            "\",instanceName=\"",
            &*escape(info.name),
            "\"",
        ]);
        for (label, place) in labels(tags).zip(info.places()) {
            text.extend([",", label, "=\"", &*texts[place], "\""]);
        }
        text.extend(["} 1\n"]);
    }
    header(&mut text, INSTANCE_EXPIRY, EXPIRY_HELP);
    for (info, expires) in infos.iter().filter_map(|info| Some((info, info.expires?))) {
        text.extend([INSTANCE_EXPIRY, "{instanceId=\"", &*escape(info.id), "\"} ", &*expires.to_string(), "\n"]);
    }
    text.freeze()
}

fn labels(tags: &[String]) -> impl Iterator<Item = &str> {
    SHARED_LABELS.into_iter().chain(tags.iter().map(String::as_str))
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;
    use crate::model::Findings;

    #[test]
    fn the_text_is_exact() {
        let mut findings = Findings::new(2);
        let hostile = "naïve\\\"\n雲";
        let plain = ["HKG-A", "z2a.cpu.4", "Ubuntu 22.04", "PREPAID", "Default"];
        findings.push(hostile, "a\\b\"c\nd{}=1 #", [hostile; SHARED], [hostile, ""], None).unwrap();
        let expires = NonZeroU64::new(1_772_323_199);
        findings.push("932237369560662463", "web-hkg-prod-07", plain, ["prod", "shop"], expires).unwrap();
        findings.push("empty", "", [""; SHARED], ["", ""], NonZeroU64::new(1)).unwrap();
        let tags = ["tag_env".to_owned(), "tag_team".to_owned()];
        let text = String::from_utf8(render(&findings.into_infos(), &tags, 0).to_vec()).unwrap();
        assert_eq!(text, include_str!("../../tests/golden/info.txt"));
    }

    #[test]
    fn without_instances_there_are_only_the_families() {
        let text = String::from_utf8(render(&Findings::new(0).into_infos(), &[], 0).to_vec()).unwrap();
        assert!(text.lines().count() == 4 && text.lines().all(|line| line.starts_with("# ")), "{text}");
    }
}
