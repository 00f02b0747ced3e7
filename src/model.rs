//! Facts of the domain: services, statuses, instances.
//!
//! Invariant: an [`Inventory`] is ordered by id and has no id twice, so comparing two of them is one pass.
//! It must not know JSON, HTTP or Prometheus.

pub(crate) mod arena;
mod info;

use std::cmp::Ordering;
use std::collections::BTreeMap;

use self::arena::StringArena;
pub use self::info::{Findings, Info, Infos, SHARED};

/// Most instances one exporter takes, or one shard of several: a bound for what a broken answer can fill.
pub const MAX_INSTANCES: usize = 2_000_000;

/// One of the two services whose instances can be watched; both have the same actions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Virtual machines.
    Vm,
    /// Elastic compute.
    Zec,
}

impl Service {
    /// The service that customers of this one may have their instances in instead.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Vm => Self::Zec,
            Self::Zec => Self::Vm,
        }
    }

    /// What Zenlayer sells under that name.
    pub fn product(self) -> &'static str {
        match self {
            Self::Vm => "legacy virtual machines",
            Self::Zec => "elastic compute",
        }
    }

    /// The name in the API's path and in `--zenlayer.service`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vm => "vm",
            Self::Zec => "zec",
        }
    }

    /// The newest published API version.
    pub fn newest_version(self) -> &'static str {
        match self {
            Self::Vm => "2026-04-01",
            Self::Zec => "2025-09-01",
        }
    }

    /// The statuses of the reference, in the order of an instance's life. New ones appear without notice.
    pub fn documented_statuses(self) -> &'static [&'static str] {
        match self {
            Self::Vm => &[
                "PENDING",
                "DEPLOYING",
                "CREATE_FAILED",
                "RUNNING",
                "REBOOT",
                "STOPPING",
                "STOPPED",
                "BOOTING",
                "REBUILDING",
                "IMAGING",
                "RECYCLE",
                "RECYCLING",
                "RELEASING",
            ],
            Self::Zec => &[
                "DEPLOYING",
                "CREATE_FAILED",
                "RUNNING",
                "REBOOT",
                "STOPPING",
                "STOPPED",
                "BOOTING",
                "REBUILDING",
                "RESIZING",
                "IMAGING",
                "RECYCLE",
                "RECYCLING",
                "RELEASING",
            ],
        }
    }
}

/// A status, as its place in a [`Statuses`]: one byte an instance instead of a string.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Status(u8);

impl Status {
    /// Its place among [`Statuses::names`].
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// How many statuses that are not documented are remembered, and tell changes apart in metrics: new ones appear without
/// notice, and whatever the API sends, the series must not grow without bound.
const MAX_UNDOCUMENTED: usize = 32;

/// The name of all statuses that are not told apart.
pub const OTHER_STATUS: &str = "other";

/// The statuses that instances can be in: the documented ones, then any other in the order it was first seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statuses {
    names: Vec<Box<str>>,
    documented: usize,
}

impl Statuses {
    /// The documented statuses of `service`.
    pub fn documented(service: Service) -> Self {
        let names: Vec<_> = service.documented_statuses().iter().map(|&name| name.into()).collect();
        Self { documented: names.len(), names }
    }

    /// The status of that name, which is added if it is new. All that there is no room for are `other`.
    pub fn intern(&mut self, name: &str) -> Status {
        const LAST: usize = u8::MAX as usize;
        if let Some(known) = self.find(name) {
            return known;
        }
        match u8::try_from(self.names.len()) {
            Ok(new) => {
                self.names.push(if self.names.len() == LAST { OTHER_STATUS } else { name }.into());
                Status(new)
            }
            Err(_) => Status(u8::MAX),
        }
    }

    /// The status of that name, where there is one.
    pub fn find(&self, name: &str) -> Option<Status> {
        let place = self.names.iter().position(|known| **known == *name)?;
        Some(Status(u8::try_from(place).expect("`intern` adds no more than a byte can count")))
    }

    /// The name as the API spells it; empty for an instance whose status the API left out.
    pub fn name(&self, status: Status) -> &str {
        &self.names[status.index()]
    }

    /// Every name, in order.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.names.iter().map(|name| &**name)
    }

    /// Remembers the statuses of `seen`, a later state of this table, as far as there is room. What is remembered keeps
    /// its place in every later poll.
    pub(crate) fn remember(&mut self, seen: &Self) {
        let room = self.documented + MAX_UNDOCUMENTED;
        self.names = seen.names.iter().take(room).cloned().collect();
    }

    /// What each status is in `later`; `None` where `later` has none of that name.
    fn places_in(&self, later: &Self) -> Vec<Option<Status>> {
        self.names().map(|name| later.find(name)).collect()
    }
}

/// Which series an instance has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusSeries {
    /// One, for the status it is in.
    Current,
    /// One for each known status, 1 or 0.
    All,
}

/// Why a sighting was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Overflow {
    /// More than [`MAX_INSTANCES`].
    #[error("more than {MAX_INSTANCES} instances")]
    Instances,
    /// More than 4 GiB of instance metadata.
    #[error("more than 4 GiB of names")]
    Text,
}

/// One id and what the API said of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instance<'a> {
    /// Opaque and never empty.
    pub id: &'a str,
    /// The status it was last seen in.
    pub status: Status,
}

/// Ids and statuses side by side.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Rows {
    ids: StringArena,
    statuses: Vec<Status>,
}

impl Rows {
    /// No rows, with room for as many as in `like`.
    fn with_capacity_of(like: &Self) -> Self {
        Self { ids: StringArena::with_capacity_of(&like.ids), statuses: Vec::with_capacity(like.len()) }
    }

    fn len(&self) -> usize {
        self.statuses.len()
    }

    fn id(&self, row: usize) -> &str {
        self.ids.at(row)
    }

    fn get(&self, row: usize) -> Instance<'_> {
        Instance { id: self.id(row), status: self.statuses[row] }
    }

    fn push(&mut self, instance: Instance<'_>) -> Result<(), Overflow> {
        if self.len() == MAX_INSTANCES {
            return Err(Overflow::Instances);
        }
        self.ids.push(instance.id).map_err(|_| Overflow::Instances)?;
        self.statuses.push(instance.status);
        Ok(())
    }

    fn is_ascending(&self) -> bool {
        (1..self.len()).all(|row| self.id(row - 1) < self.id(row))
    }
}

/// What was read so far, in the order it was read, an id possibly more than once.
#[derive(Debug, Default)]
pub struct Sightings {
    rows: Rows,
}

impl Sightings {
    /// Adds one entry of an answer.
    ///
    /// # Errors
    /// When there is no room for another instance or another status.
    pub fn push(&mut self, id: &str, status: &str, statuses: &mut Statuses) -> Result<(), Overflow> {
        let status = statuses.intern(status);
        self.rows.push(Instance { id, status })
    }

    /// How many entries were read.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether nothing was read.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Orders the ids and leaves each once, in the status in which it was read last.
    pub fn into_inventory(self) -> Inventory {
        let rows = self.rows;
        if rows.is_ascending() {
            return Inventory { rows };
        }
        // The first bytes of an id decide nearly every comparison, without a look into the text.
        let mut order: Vec<_> = (0..rows.len()).map(|row| (prefix(rows.id(row)), row)).collect();
        // Among the sightings of one id the last read stays the last.
        order.sort_unstable_by(|a, b| {
            a.0.cmp(&b.0).then_with(|| rows.id(a.1).cmp(rows.id(b.1))).then_with(|| a.1.cmp(&b.1))
        });
        let last_of_each = order
            .iter()
            .enumerate()
            .filter(|&(place, &(_, row))| order.get(place + 1).is_none_or(|&(_, next)| rows.id(next) != rows.id(row)))
            .map(|(_, &(_, row))| rows.get(row));
        let mut ordered = Rows::with_capacity_of(&rows);
        for instance in last_of_each {
            ordered.push(instance).expect("it fitted where it comes from");
        }
        Inventory { rows: ordered }
    }
}

/// The first bytes of an id as a number: ordered as the ids are, as far as they go.
fn prefix(id: &str) -> u64 {
    let mut prefix = [0; 8];
    let length = id.len().min(prefix.len());
    prefix[..length].copy_from_slice(&id.as_bytes()[..length]);
    u64::from_be_bytes(prefix)
}

/// Every instance once, ordered by id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    rows: Rows,
}

impl Inventory {
    /// How many instances there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether the account is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The instances in ascending order of their ids.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Instance<'_>> {
        (0..self.len()).map(|row| self.rows.get(row))
    }

    /// How many instances are in each of `statuses`, in their order.
    pub fn count_by_status(&self, statuses: &Statuses) -> Vec<usize> {
        let mut counts = vec![0; statuses.names.len()];
        for status in &self.rows.statuses {
            counts[status.index()] += 1;
        }
        counts
    }

    /// Both inventories as one; where both have an id, `later` tells its status.
    ///
    /// # Errors
    /// When there is no room for all of it.
    pub fn merge(&self, later: &Self) -> Result<Self, Overflow> {
        let mut rows = Rows::default();
        for (one, other) in pair_by_id(self, later) {
            let instance = other.or(one).expect("a pair has a side");
            rows.push(instance)?;
        }
        Ok(Self { rows })
    }

    /// The ids that are here and not in `other`, in order.
    pub fn ids_not_in<'a>(&'a self, other: &'a Self) -> Vec<&'a str> {
        if self.rows.ids == other.rows.ids {
            return Vec::new();
        }
        pair_by_id(self, other)
            .filter_map(|pair| match pair {
                (Some(here), None) => Some(here.id),
                _ => None,
            })
            .collect()
    }

    /// What happened between this inventory and `later`, each with the statuses it was read with.
    pub fn changes_to(&self, statuses: &Statuses, later: &Self, later_statuses: &Statuses) -> Changes {
        let mut changes = Changes::default();
        if statuses == later_statuses && self == later {
            return changes;
        }
        let places = statuses.places_in(later_statuses);
        for pair in pair_by_id(self, later) {
            match pair {
                (Some(before), Some(after)) if places[before.status.index()] != Some(after.status) => {
                    *changes.transitions.entry((before.status, after.status)).or_default() += 1;
                }
                (None, Some(_)) => changes.appeared += 1,
                (Some(_), None) => changes.gone += 1,
                _ => {}
            }
        }
        changes
    }
}

/// What differs between two polls.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// How many instances went from one status, of the earlier poll, to another, of the later.
    pub transitions: BTreeMap<(Status, Status), u64>,
    /// Instances that only the later poll has.
    pub appeared: usize,
    /// Instances that only the earlier poll has.
    pub gone: usize,
}

/// Walks two inventories side by side: each id once, with what either has of it.
fn pair_by_id<'a>(
    one: &'a Inventory,
    other: &'a Inventory,
) -> impl Iterator<Item = (Option<Instance<'a>>, Option<Instance<'a>>)> {
    let (mut one, mut other) = (one.iter().peekable(), other.iter().peekable());
    std::iter::from_fn(move || {
        let order = match (one.peek(), other.peek()) {
            (None, None) => return None,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(a), Some(b)) => a.id.cmp(b.id),
        };
        let left = order.is_le().then(|| one.next()).flatten();
        let right = order.is_ge().then(|| other.next()).flatten();
        Some((left, right))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inventory(statuses: &mut Statuses, entries: &[(&str, &str)]) -> Inventory {
        let mut sightings = Sightings::default();
        for (id, status) in entries {
            sightings.push(id, status, statuses).unwrap();
        }
        sightings.into_inventory()
    }

    fn entries<'a>(inventory: &'a Inventory, statuses: &'a Statuses) -> Vec<(&'a str, &'a str)> {
        inventory.iter().map(|instance| (instance.id, statuses.name(instance.status))).collect()
    }

    #[test]
    fn an_inventory_is_ordered_and_the_last_sighting_of_an_id_counts() {
        let mut statuses = Statuses::documented(Service::Vm);
        let read = [("b", "RUNNING"), ("a", "STOPPED"), ("b", "STOPPING"), ("c", "NEW")];
        let inventory = inventory(&mut statuses, &read);
        assert_eq!(entries(&inventory, &statuses), [("a", "STOPPED"), ("b", "STOPPING"), ("c", "NEW")]);
    }

    #[test]
    fn a_merge_has_every_id_and_the_later_status() {
        let mut statuses = Statuses::documented(Service::Vm);
        let first = inventory(&mut statuses, &[("a", "RUNNING"), ("b", "RUNNING")]);
        let second = inventory(&mut statuses, &[("b", "STOPPED"), ("c", "BOOTING")]);
        let merged = first.merge(&second).unwrap();
        assert_eq!(entries(&merged, &statuses), [("a", "RUNNING"), ("b", "STOPPED"), ("c", "BOOTING")]);
        assert_eq!(first.ids_not_in(&second), ["a"]);
        assert_eq!(first.ids_not_in(&merged), [] as [&str; 0]);
    }

    #[test]
    fn changes_tell_transitions_arrivals_and_departures_apart() {
        let mut statuses = Statuses::documented(Service::Vm);
        let before = inventory(&mut statuses, &[("a", "RUNNING"), ("b", "RUNNING"), ("c", "IMAGING")]);
        let after = inventory(&mut statuses, &[("b", "STOPPED"), ("c", "IMAGING"), ("d", "PENDING")]);
        let changes = before.changes_to(&statuses, &after, &statuses);
        let transitions: Vec<_> = changes
            .transitions
            .iter()
            .map(|(&(from, to), &count)| (statuses.name(from), statuses.name(to), count))
            .collect();
        assert_eq!(transitions, [("RUNNING", "STOPPED", 1)]);
        assert_eq!((changes.appeared, changes.gone), (1, 1));
    }

    #[test]
    fn counts_name_every_known_status() {
        let mut statuses = Statuses::documented(Service::Zec);
        let inventory = inventory(&mut statuses, &[("a", "RUNNING"), ("b", "RUNNING"), ("c", "MELTING")]);
        let counts = inventory.count_by_status(&statuses);
        let counted: Vec<_> = statuses.names().zip(counts).filter(|&(_, count)| count > 0).collect();
        assert_eq!(counted, [("RUNNING", 2), ("MELTING", 1)]);
    }

    #[test]
    fn a_change_is_one_of_names_whatever_their_places() {
        let mut one = Statuses::documented(Service::Vm);
        let mut other = one.clone();
        let before = inventory(&mut one, &[("a", "NEW"), ("b", "NEWER"), ("c", "NEW")]);
        let after = inventory(&mut other, &[("a", "NEWER"), ("b", "NEWER"), ("c", "NEWEST")]);
        let changes = before.changes_to(&one, &after, &other);
        let named = |(&(from, to), &count): (&(Status, Status), &u64)| (one.name(from), other.name(to), count);
        assert_eq!(
            changes.transitions.iter().map(named).collect::<Vec<_>>(),
            [("NEW", "NEWER", 1), ("NEW", "NEWEST", 1)]
        );
        assert_eq!(before.changes_to(&one, &before, &one), Changes::default());
    }

    #[test]
    fn so_many_undocumented_statuses_are_remembered_and_keep_their_places() {
        let mut remembered = Statuses::documented(Service::Vm);
        for poll in 0..4 {
            let mut statuses = remembered.clone();
            for n in 0..15 {
                statuses.intern(&format!("S{}", 10 * poll + n));
            }
            remembered.remember(&statuses);
        }
        assert_eq!(remembered.names().len(), 13 + 32);
        assert_eq!(remembered.find("S31").map(Status::index), Some(13 + 31));
        assert_eq!(remembered.find("S32"), None);
    }

    #[test]
    fn known_statuses_still_fit_when_the_table_is_full() {
        let mut statuses = Statuses::documented(Service::Vm);
        let mut sightings = Sightings::default();
        for n in 13..300 {
            sightings.push(&format!("i-{n:03}"), &format!("S{n}"), &mut statuses).unwrap();
        }
        sightings.push("i-300", "RUNNING", &mut statuses).unwrap();
        let inventory = sightings.into_inventory();
        let mut names = inventory.iter().map(|instance| statuses.name(instance.status));
        assert_eq!(names.nth(254 - 13), Some("S254"));
        assert!(names.by_ref().take(300 - 255).all(|name| name == OTHER_STATUS));
        assert_eq!((names.next(), names.next(), statuses.names().len()), (Some("RUNNING"), None, 256));
    }
}
