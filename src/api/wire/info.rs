//! Reads instance metadata from responses of DescribeInstances (reference: DescribeInstances).
//!
//! Invariant: whatever stands in the place of a text or a time, the entry is read; only an id must be one. It must not
//! know which tags anybody wants.

use std::num::NonZeroU64;
use std::time::UNIX_EPOCH;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, SeqAccess};

use super::{Head, Id, Listing, Loose, Shape, Text, label};
use crate::api::Action;
use crate::model::SHARED;
use crate::model::arena::StringArena;

/// How many texts an entry has besides its tags: id, name, and those it may share.
const FIXED: usize = 2 + SHARED;

/// One answer of DescribeInstances.
#[derive(Debug, Default)]
pub struct InfoPage {
    /// What every answer has.
    pub head: Head,
    /// For each row the fixed texts, then key and value of each tag.
    texts: StringArena,
    /// Where in `texts` each row ends, and when its subscription does.
    rows: Vec<(u32, Option<NonZeroU64>)>,
}

/// What one entry tells; a text that the API left out, or that is none, is empty.
#[derive(Debug)]
pub struct InfoEntry<'a> {
    /// As strict as that of a status.
    pub id: &'a str,
    /// The name that people gave it.
    pub name: &'a str,
    /// Zone id, type, image name, charge type, resource group name.
    pub shared: [&'a str; SHARED],
    /// When its subscription ends, in Unix seconds; `None` where it has none.
    pub expires: Option<NonZeroU64>,
    texts: &'a StringArena,
    tags: std::ops::Range<usize>,
}

impl<'a> InfoEntry<'a> {
    /// The value of that tag; empty where it has none.
    pub fn tag(&self, key: &str) -> &'a str {
        let places = self.tags.clone().step_by(2);
        let found = places.rev().find(|&place| self.texts.at(place) == key);
        found.map_or("", |place| self.texts.at(place + 1))
    }
}

impl InfoPage {
    /// Each usable entry, in the API's order.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = InfoEntry<'_>> {
        self.rows.iter().enumerate().map(|(row, &(end, expires))| {
            let start = if row == 0 { 0 } else { self.rows[row - 1].0 as usize };
            let text = |place: usize| self.texts.at(start + place);
            InfoEntry {
                id: text(0),
                name: text(1),
                shared: std::array::from_fn(|place| text(2 + place)),
                expires,
                texts: &self.texts,
                tags: start + FIXED..end as usize,
            }
        })
    }
}

impl Listing for InfoPage {
    const ACTION: Action = Action::DescribeInstances;
    /// Bare metal has about 4 kB an entry, the description of its hardware included; tags may add as much again.
    const LONGEST_BODY: usize = 16 << 20;

    type Entry<'a> = Entry<'a>;

    fn push(&mut self, entry: &Entry<'_>) {
        const FITS: &str = "no longer than its body, which is capped";
        let Some(id) = entry.instance_id.usable() else {
            self.head.unusable += 1;
            return;
        };
        self.texts.push(id).expect(FITS);
        let charge_type = label(&entry.instance_charge_type);
        let expires = if charge_type == "POSTPAID" { None } else { entry.expires() };
        for text in [
            label(&entry.instance_name),
            label(&entry.zone_id),
            label(&entry.instance_type),
            label(&entry.image_name),
            charge_type,
            label(&entry.resource_group_name),
        ] {
            self.texts.push(&text).expect(FITS);
        }
        let tags = entry.tags.0.as_ref().and_then(|tags| tags.tags.0.as_ref());
        for text in tags.iter().flat_map(|pairs| pairs.0.iter()) {
            self.texts.push(text).expect(FITS);
        }
        let end = u32::try_from(self.texts.len()).expect(FITS);
        self.rows.push((end, expires));
    }

    fn head(&self) -> &Head {
        &self.head
    }

    fn head_mut(&mut self) -> &mut Head {
        &mut self.head
    }

    fn ids(&self) -> impl ExactSizeIterator<Item = &str> {
        self.entries().map(|entry| entry.id)
    }

    fn replace_texts(&mut self, replacement: impl Fn(&str) -> Option<String>) {
        if let Some(replaced) = self.texts.replaced(replacement) {
            self.texts = replaced;
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Entry<'a> {
    #[serde(borrow, default)]
    instance_id: Id<'a>,
    #[serde(borrow, default)]
    instance_name: Text<'a>,
    #[serde(borrow, default)]
    zone_id: Text<'a>,
    #[serde(borrow, default)]
    instance_type: Text<'a>,
    #[serde(borrow, default)]
    image_name: Text<'a>,
    #[serde(borrow, default)]
    instance_charge_type: Text<'a>,
    #[serde(borrow, default)]
    resource_group_name: Text<'a>,
    #[serde(borrow, default)]
    expired_time: Text<'a>,
    #[serde(default)]
    tags: Loose<TagSet>,
}

impl Entry<'_> {
    fn expires(&self) -> Option<NonZeroU64> {
        let time = humantime::parse_rfc3339(self.expired_time.0.as_deref()?).ok()?;
        NonZeroU64::new(time.duration_since(UNIX_EPOCH).ok()?.as_secs())
    }
}

#[derive(Deserialize)]
struct TagSet {
    #[serde(default)]
    tags: Loose<TagPairs>,
}

#[derive(Default, Deserialize)]
struct Tag<'a> {
    #[serde(borrow, default)]
    key: Text<'a>,
    #[serde(borrow, default)]
    value: Text<'a>,
}

objects!(Entry<'de>, TagSet, Tag<'de>);

/// Key and value of each tag, one after the other, read without a list of strings in between.
#[derive(Default)]
struct TagPairs(StringArena);

impl<'de> Shape<'de> for TagPairs {
    fn from_array<A: SeqAccess<'de>>(mut items: A) -> Result<Option<Self>, A::Error> {
        let mut pairs = StringArena::default();
        while let Some(Loose(tag)) = items.next_element::<Loose<Tag<'de>>>()? {
            let tag = tag.unwrap_or_default();
            let Some(key) = tag.key.usable() else { continue };
            for text in [key, &*label(&tag.value)] {
                pairs.push(text).map_err(serde::de::Error::custom)?;
            }
        }
        Ok(Some(Self(pairs)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::wire::Answer;

    fn page(body: &str) -> InfoPage {
        match InfoPage::read(body.as_bytes()) {
            Ok(Answer::Page(page)) => page,
            other => panic!("not a page: {other:?}"),
        }
    }

    fn with_entry(entry: &str) -> InfoPage {
        page(&format!(r#"{{"requestId":"T","response":{{"totalCount":1,"dataSet":[{entry}]}}}}"#))
    }

    fn texts(entry: &InfoEntry<'_>) -> Vec<String> {
        [entry.id, entry.name].iter().chain(&entry.shared).map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn an_entry_is_read_as_the_reference_has_it() {
        let page = with_entry(
            r#"{"instanceId":"932237369560662463","zoneId":"HKG-A","zoneName":"Hong Kong","instanceName":"web\u00e9",
            "instanceType":"z2a.cpu.4","cpuCount":4,"memory":8,"imageId":"ubuntu","imageName":"Ubuntu 22.04",
            "instanceChargeType":"PREPAID","publicIpAddresses":["203.0.113.7"],"createTime":"2025-01-31T00:00:00Z",
            "expiredTime":"2026-02-28T23:59:59Z","resourceGroupId":"rg","resourceGroupName":"Default",
            "instanceStatus":"RUNNING","tags":{"tags":[{"key":"env","value":"prod"},{"key":"a\"b","value":"c\nd"}]}}"#,
        );
        assert_eq!((page.head.total_count, page.listed()), (1, 1));
        let entry = page.entries().next().unwrap();
        let expected = ["932237369560662463", "webé", "HKG-A", "z2a.cpu.4", "Ubuntu 22.04", "PREPAID", "Default"];
        assert_eq!(texts(&entry), expected);
        assert_eq!(entry.expires.unwrap().get(), 1_772_323_199, "date -d 2026-02-28T23:59:59Z +%s");
        assert_eq!([entry.tag("env"), entry.tag("a\"b"), entry.tag("team")], ["prod", "c\nd", ""]);
    }

    #[test]
    fn nested_and_flat_answers_are_the_same_page() {
        let nested = page(r#"{"response":{"totalCount":2,"dataSet":[{"instanceId":"a"},{"instanceId":"b"}]}}"#);
        let flat = page(r#"{"totalCount":2,"dataSet":[{"instanceId":"a"},{"instanceId":"b"}]}"#);
        for page in [nested, flat] {
            assert_eq!(
                (page.head.total_count, page.entries().map(|entry| entry.id).collect::<Vec<_>>()),
                (2, vec!["a", "b"])
            );
        }
    }

    #[test]
    fn what_is_missing_or_of_another_type_is_empty() {
        for value in ["null", "7", "-7", "0.5", "true", "{}", "[]", r#"["x"]"#, r#"{"tags":7}"#, "\"\\u0000\""] {
            let fields = ["instanceName", "zoneId", "instanceType", "imageName", "instanceChargeType"];
            let more = ["resourceGroupName", "expiredTime", "tags"];
            let fields: Vec<_> = fields.iter().chain(&more).map(|field| format!(r#""{field}":{value}"#)).collect();
            let page = with_entry(&format!(r#"{{"instanceId":"a",{}}}"#, fields.join(",")));
            let entry = page.entries().next().unwrap();
            assert_eq!(texts(&entry), ["a", "", "", "", "", "", ""], "{value}");
            assert_eq!((entry.expires, entry.tag("env")), (None, ""), "{value}");
        }
        let page =
            with_entry(r#"{"instanceId":"a"},{"instanceName":"no id"},{"instanceId":[7]},null,{"instanceId":7}"#);
        assert_eq!((page.head.unusable, page.listed(), page.entries().len()), (3, 5, 2));
    }

    #[test]
    fn half_a_surrogate_pair_costs_no_entry() {
        let page = with_entry(
            r#"{"instanceId":"a","instanceName":"web\ud83d","zoneId":"\ude00","tags":{"tags":[{"key":"env","value":"x\ud83d"}]}}"#,
        );
        let entry = page.entries().next().unwrap();
        let read = [entry.name, entry.shared[0], entry.tag("env")].map(|text| text.replace('\u{fffd}', ""));
        assert_eq!(read, ["web", "", "x"]);
    }

    #[test]
    fn tags_of_any_shape_spoil_nothing_but_themselves() {
        let page = with_entry(
            r#"{"instanceId":"a","tags":{"tags":[null,7,["env","x"],{},{"key":"env"},{"key":7,"value":"x"},
            {"key":"env","value":null},{"key":"team","value":"one"},{"key":"team","value":"two"},{"key":"","value":"x"}],
            "more":1}},{"instanceId":"b","tags":{"tags":null}},{"instanceId":"c","tags":{"tags":[{"key":"env","value":"c"}]}}"#,
        );
        let tags: Vec<_> =
            page.entries().map(|entry| [entry.id, entry.tag("env"), entry.tag("team")].concat()).collect();
        assert_eq!(tags, ["atwo", "b", "cc"], "of a key that comes twice the last counts");
    }

    #[test]
    fn a_name_that_is_too_long_is_cut_between_characters() {
        let name = |text: &str| {
            let page = with_entry(&format!(r#"{{"instanceId":"a","instanceName":"{text}"}}"#));
            page.entries().next().unwrap().name.to_owned()
        };
        let longest = "x".repeat(256);
        assert_eq!(name(&longest), longest);
        assert_eq!(name(&"x".repeat(10_000)), format!("{}…", "x".repeat(253)));
        // 253 is in the middle of a character of 4 bytes.
        assert_eq!(name(&"🦀".repeat(100)), format!("{}…", "🦀".repeat(63)));
    }

    #[test]
    fn only_a_subscription_ends() {
        let expires = |fields: &str| {
            let page = with_entry(&format!(r#"{{"instanceId":"a",{fields}}}"#));
            page.entries().next().unwrap().expires.map(NonZeroU64::get)
        };
        assert_eq!(
            expires(r#""expiredTime":"2024-02-29T00:00:00Z","instanceChargeType":"PREPAID""#),
            Some(1_709_164_800)
        );
        assert_eq!(expires(r#""expiredTime":"2024-02-29T00:00:00Z""#), Some(1_709_164_800));
        assert_eq!(expires(r#""expiredTime":"2024-02-29T00:00:00Z","instanceChargeType":"POSTPAID""#), None);
        for time in ["", "soon", "2023-02-29T00:00:00Z", "2024-02-29", "1969-12-31T23:59:59Z", "1970-01-01T00:00:00Z"] {
            assert_eq!(expires(&format!(r#""expiredTime":"{time}""#)), None, "{time}");
        }
    }

    #[test]
    fn an_error_body_is_a_refusal_and_another_shape_is_none() {
        let refused = InfoPage::read(br#"{"requestId":"T1","code":"OPERATION_DENIED","message":"no"}"#);
        assert!(matches!(refused, Ok(Answer::Refusal(_))), "{refused:?}");
        assert_eq!(InfoPage::read(b"{}").unwrap_err().to_string(), "the body has neither totalCount nor an error code");
    }
}
