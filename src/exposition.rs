//! Inventory → bytes in the Prometheus text format; the names of what is rendered live here.
//!
//! Invariant: the same inventory is always the same bytes. It must not know a clock, a socket or a registry.

pub(crate) mod info;
pub(crate) mod openmetrics;

use std::borrow::Cow;

use bytes::Bytes;

use crate::buffer::Buffer;
use crate::model::{Inventory, StatusSeries, Statuses};

/// The status each instance is in.
pub(crate) const INSTANCE_STATUS: &str = "zenlayer_instance_status";
/// How many instances are in each status.
pub(crate) const INSTANCES: &str = "zenlayer_instances";

/// Renders the series of every instance, ordered by id, and the counts by status. `previous` is the length of the text
/// that it replaces.
pub fn render(inventory: &Inventory, statuses: &Statuses, series: StatusSeries, previous: usize) -> Bytes {
    let labels: Vec<_> = statuses.names().map(escape).collect();
    let counts = inventory.count_by_status(statuses);
    let mut text = Buffer::after(previous);
    header(&mut text, INSTANCE_STATUS, "Status of each instance: 1 for the status it is in.");
    for instance in inventory.iter() {
        let id = escape(instance.id);
        let current = instance.status.index();
        match series {
            StatusSeries::Current => push_status(&mut text, &id, &labels[current], "1"),
            StatusSeries::All => {
                for (index, label) in labels.iter().enumerate() {
                    push_status(&mut text, &id, label, if index == current { "1" } else { "0" });
                }
            }
        }
    }
    header(&mut text, INSTANCES, "Instances in each status.");
    for (label, count) in labels.iter().zip(counts) {
        text.extend([INSTANCES, "{status=\"", label, "\"} ", &count.to_string(), "\n"]);
    }
    text.freeze()
}

fn header(text: &mut Buffer, name: &str, help: &str) {
    text.extend(["# HELP ", name, " ", help, "\n# TYPE ", name, " gauge\n"]);
}

fn push_status(text: &mut Buffer, id: &str, status: &str, value: &str) {
    text.extend([INSTANCE_STATUS, "{instanceId=\"", id, "\",status=\"", status, "\"} ", value, "\n"]);
}

/// A label value as the text format wants it: backslash, quote and newline escaped.
fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(['\\', '"', '\n']) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Service, Sightings};

    fn rendered(entries: &[(&str, &str)], series: StatusSeries) -> String {
        let mut statuses = Statuses::documented(Service::Vm);
        let mut sightings = Sightings::default();
        for (id, status) in entries {
            sightings.push(id, status, &mut statuses).unwrap();
        }
        String::from_utf8(render(&sightings.into_inventory(), &statuses, series, 0).to_vec()).unwrap()
    }

    const HOSTILE: [(&str, &str); 4] = [
        ("932237369560662463", "RUNNING"),
        ("naïve\\\"\n雲", "STOPPED"),
        ("brand new", "MELTING \"\\\n"),
        ("without", ""),
    ];

    #[test]
    fn the_text_is_exact() {
        assert_eq!(rendered(&HOSTILE, StatusSeries::Current), include_str!("../tests/golden/current.txt"));
    }

    #[test]
    fn the_text_with_every_status_is_exact() {
        assert_eq!(rendered(&HOSTILE[..1], StatusSeries::All), include_str!("../tests/golden/all.txt"));
    }

    #[test]
    fn an_empty_account_counts_zero_in_each_status() {
        assert_eq!(rendered(&[], StatusSeries::Current), include_str!("../tests/golden/empty.txt"));
    }
}
