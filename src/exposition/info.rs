//! Instance metadata → bytes in the Prometheus text format.
//!
//! Invariant: the same infos are always the same bytes. It must not know a clock, a socket or a registry.

use std::borrow::Cow;

use bytes::Bytes;

use super::{escape, header};
use crate::buffer::Buffer;
use crate::model::{Info, Infos, SHARED};

/// Name, zone and similar metadata of each instance.
pub(crate) const INSTANCE_INFO: &str = "zenlayer_instance_info";
/// When each subscription ends.
pub(crate) const INSTANCE_EXPIRY: &str = "zenlayer_instance_expiry_timestamp_seconds";

const INFO_HELP: &str = "Name, zone and similar metadata of each instance; always 1.";
const EXPIRY_HELP: &str = "Unix time at which each subscription ends.";
/// The labels of [`Info::shared`], before those of tags.
const SHARED_LABELS: [&str; SHARED] =
    ["zoneId", "instanceType", "imageName", "instanceChargeType", "resourceGroupName"];

/// Renders the series of every instance, ordered by id; `tags` are the names of the labels that tags have.
pub(crate) fn render(infos: &Infos, tags: &[String]) -> Bytes {
    let texts: Vec<_> = infos.texts().map(escape).collect();
    let mut text = Buffer::with_capacity(size(infos, tags, &texts));
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

/// Enough for the whole text where no id or name is escaped, so that it need not move.
fn size(infos: &Infos, tags: &[String], texts: &[Cow<'_, str>]) -> usize {
    const HEADERS: usize = 400;
    const LONGEST_NUMBER: usize = 20;
    let fixed = INSTANCE_INFO.len() + "{instanceId=\"\",instanceName=\"\"} 1\n".len();
    let of_labels: usize = labels(tags).map(|label| label.len() + ",=\"\"".len()).sum();
    let of_row = |info: Info<'_>| {
        let expiry = info
            .expires
            .map_or(0, |_| INSTANCE_EXPIRY.len() + "{instanceId=\"\"} \n".len() + info.id.len() + LONGEST_NUMBER);
        let shared: usize = info.places().map(|place| texts[place].len()).sum();
        fixed + of_labels + info.id.len() + info.name.len() + shared + expiry
    };
    HEADERS + infos.iter().map(of_row).sum::<usize>()
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
        let text = String::from_utf8(render(&findings.into_infos(), &tags).to_vec()).unwrap();
        assert_eq!(text, include_str!("../../tests/golden/info.txt"));
    }

    #[test]
    fn without_instances_there_are_only_the_families() {
        let text = String::from_utf8(render(&Findings::new(0).into_infos(), &[]).to_vec()).unwrap();
        assert!(text.lines().count() == 4 && text.lines().all(|line| line.starts_with("# ")), "{text}");
    }

    #[test]
    fn the_buffer_is_allocated_once() {
        let mut findings = Findings::new(1);
        for n in 0..5000 {
            let shared = ["HKG-A", "z2a.cpu.4", "Ubuntu 22.04", "PREPAID", "Default"];
            findings
                .push(&format!("{n:018}"), &format!("web-{n}"), shared, ["x\"y"], NonZeroU64::new(1 << 33))
                .unwrap();
        }
        let (infos, tags) = (findings.into_infos(), ["tag_env".to_owned()]);
        let texts: Vec<_> = infos.texts().map(escape).collect();
        let capacity = size(&infos, &tags, &texts);
        let length = render(&infos, &tags).len();
        assert!(length <= capacity && capacity < length + 5000 * 20, "{length} bytes in {capacity}");
    }
}
