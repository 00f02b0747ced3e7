//! Instance metadata: name, zone, type, tags and the end of the subscription.
//!
//! Invariant: an [`Infos`] is ordered by id and has no id twice. It must not know JSON, HTTP or Prometheus.

use std::iter::Peekable;
use std::num::NonZeroU64;

use super::arena::{Interner, StringArena};
use super::{Inventory, MAX_INSTANCES, Overflow};

/// How many texts of an instance others are likely to have too, besides its tags: zone, type, image, charge type and
/// resource group.
pub const SHARED: usize = 5;
/// Where the zone is among them.
const ZONE: usize = 0;

/// One instance; a text that the API left out is empty.
#[derive(Debug, Clone, Copy)]
pub struct Info<'a> {
    /// Opaque and never empty.
    pub id: &'a str,
    /// The name that people gave it.
    pub name: &'a str,
    /// When its subscription ends, in Unix seconds; `None` without a subscription.
    pub expires: Option<NonZeroU64>,
    shared: &'a [u32],
    texts: &'a StringArena,
}

impl<'a> Info<'a> {
    /// Zone id, type, image name, charge type and resource group name; then a value for each tag, in the order asked for.
    pub fn shared(&self) -> impl ExactSizeIterator<Item = &'a str> {
        let texts = self.texts;
        self.shared.iter().map(|&index| texts.at(index as usize))
    }

    /// The same texts, as places among [`Infos::texts`].
    pub(crate) fn places(&self) -> impl ExactSizeIterator<Item = usize> {
        self.shared.iter().map(|&index| index as usize)
    }

    /// The id of its zone.
    pub fn zone(&self) -> &'a str {
        self.texts.at(self.shared[ZONE] as usize)
    }
}

impl PartialEq for Info<'_> {
    fn eq(&self, other: &Self) -> bool {
        (self.id, self.name, self.expires) == (other.id, other.name, other.expires) && self.shared().eq(other.shared())
    }
}

/// Every instance once, ordered by id.
#[derive(Debug, Clone, Default)]
pub struct Infos {
    /// Id and name of each row, one after the other.
    own: StringArena,
    /// For each row as many indexes of `texts` as there are columns.
    shared: Vec<u32>,
    expires: Vec<Option<NonZeroU64>>,
    columns: usize,
    /// What rows have in common, once.
    texts: StringArena,
    /// The rows that count, by id.
    order: Vec<u32>,
}

impl Infos {
    /// How many instances there are.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether no instance has metadata.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// The instances in ascending order of their ids.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Info<'_>> {
        self.order.iter().map(|&row| self.row(row as usize))
    }

    /// The metadata of that instance.
    pub fn find(&self, id: &str) -> Option<Info<'_>> {
        let place = self.order.binary_search_by(|&row| self.id(row).cmp(id)).ok()?;
        Some(self.row(self.order[place] as usize))
    }

    /// Every text that rows share.
    pub(crate) fn texts(&self) -> impl ExactSizeIterator<Item = &str> {
        self.texts.iter()
    }

    /// The IDs of `inventory` without metadata, in order.
    pub fn missing<'a>(&self, inventory: &'a Inventory) -> Vec<&'a str> {
        let mut infos = self.iter().peekable();
        inventory.iter().map(|instance| instance.id).filter(|id| seek(&mut infos, id).is_none()).collect()
    }

    /// The metadata of the instances of `inventory`: by `later` where it has one, else as here.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn renewed(&self, later: &Self, inventory: &Inventory) -> Result<Self, Overflow> {
        let mut findings = Findings::like(if self.len() < later.len() { later } else { self });
        let (mut old, mut new) = (self.iter().peekable(), later.iter().peekable());
        for instance in inventory.iter() {
            let (old, new) = (seek(&mut old, instance.id), seek(&mut new, instance.id));
            if let Some(info) = new.or(old) {
                findings.push_row(info.id, info.name, info.shared(), info.expires)?;
            }
        }
        Ok(findings.into_infos())
    }

    fn id(&self, row: u32) -> &str {
        self.own.at(2 * row as usize)
    }

    fn row(&self, row: usize) -> Info<'_> {
        Info {
            id: self.own.at(2 * row),
            name: self.own.at(2 * row + 1),
            expires: self.expires[row],
            shared: &self.shared[row * self.columns..(row + 1) * self.columns],
            texts: &self.texts,
        }
    }
}

impl PartialEq for Infos {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

/// Passes over what comes before `id` in the order of ids.
fn seek<'a>(infos: &mut Peekable<impl Iterator<Item = Info<'a>>>, id: &str) -> Option<Info<'a>> {
    while infos.next_if(|info| info.id < id).is_some() {}
    infos.next_if(|info| info.id == id)
}

/// What was read so far, in the order it was read, an id possibly more than once.
#[derive(Debug)]
pub struct Findings {
    infos: Infos,
    interner: Interner,
}

impl Findings {
    /// Nothing yet; each instance is to have that many tags.
    pub fn new(tags: usize) -> Self {
        Self { infos: Infos { columns: SHARED + tags, ..Infos::default() }, interner: Interner::default() }
    }

    /// Nothing yet; there will be about as much as in `infos`, so that little is allocated in vain.
    fn like(infos: &Infos) -> Self {
        let columns = infos.columns.max(SHARED);
        let own = StringArena::with_capacity_of(&infos.own);
        let shared = Vec::with_capacity(infos.shared.len());
        let expires = Vec::with_capacity(infos.expires.len());
        Self { infos: Infos { own, shared, expires, columns, ..Infos::default() }, interner: Interner::default() }
    }

    /// Adds one entry of an answer: the texts of [`Info::shared`], and a value for each tag that was asked for.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn push<'a>(
        &mut self,
        id: &str,
        name: &str,
        shared: [&'a str; SHARED],
        tags: impl IntoIterator<Item = &'a str>,
        expires: Option<NonZeroU64>,
    ) -> Result<(), Overflow> {
        self.push_row(id, name, shared.into_iter().chain(tags), expires)
    }

    fn push_row<'a>(
        &mut self,
        id: &str,
        name: &str,
        shared: impl Iterator<Item = &'a str>,
        expires: Option<NonZeroU64>,
    ) -> Result<(), Overflow> {
        let Self { infos, interner } = self;
        if infos.expires.len() == MAX_INSTANCES {
            return Err(Overflow::Instances);
        }
        infos.own.push(id)?;
        infos.own.push(name)?;
        for text in shared {
            infos.shared.push(interner.intern(text, &mut infos.texts)?);
        }
        infos.expires.push(expires);
        debug_assert_eq!(infos.shared.len(), infos.expires.len() * infos.columns, "a text for each column");
        Ok(())
    }

    /// How many entries were read.
    pub fn len(&self) -> usize {
        self.infos.expires.len()
    }

    /// Whether nothing was read.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Orders the ids and leaves each once, as it was read last.
    pub fn into_infos(self) -> Infos {
        let Self { mut infos, .. } = self;
        let rows = u32::try_from(infos.expires.len()).expect("there are at most MAX_INSTANCES");
        let mut order: Vec<u32> = (0..rows).collect();
        // Stable: among the rows of one id the last read stays the last.
        order.sort_by(|&a, &b| infos.id(a).cmp(infos.id(b)));
        // Of two rows that are the same, `dedup_by` keeps the earlier: so it goes backwards.
        order.reverse();
        order.dedup_by(|&mut a, &mut b| infos.id(a) == infos.id(b));
        order.reverse();
        order.shrink_to_fit();
        infos.order = order;
        infos.own.shrink_to_fit();
        infos.texts.shrink_to_fit();
        infos.shared.shrink_to_fit();
        infos.expires.shrink_to_fit();
        infos
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Service, Sightings, Statuses};

    fn infos(rows: &[(&str, &str, &str)]) -> Infos {
        let mut findings = Findings::new(1);
        for (id, name, zone) in rows {
            let shared = [*zone, "type", "image", "POSTPAID", ""];
            findings.push(id, name, shared, ["tag"], NonZeroU64::new(id.len() as u64)).unwrap();
        }
        findings.into_infos()
    }

    fn inventory(ids: &[&str]) -> Inventory {
        let (mut statuses, mut sightings) = (Statuses::documented(Service::Vm), Sightings::default());
        for id in ids {
            sightings.push(id, "RUNNING", &mut statuses).unwrap();
        }
        sightings.into_inventory()
    }

    fn names(infos: &Infos) -> Vec<(&str, &str, &str)> {
        infos.iter().map(|info| (info.id, info.name, info.zone())).collect()
    }

    #[test]
    fn infos_are_ordered_and_the_last_of_an_id_counts() {
        let infos = infos(&[("b", "old", "A"), ("a", "one", "A"), ("b", "new", "B"), ("c", "", "A")]);
        assert_eq!(names(&infos), [("a", "one", "A"), ("b", "new", "B"), ("c", "", "A")]);
        assert_eq!(
            infos.find("b").unwrap().shared().collect::<Vec<_>>(),
            ["B", "type", "image", "POSTPAID", "", "tag"]
        );
        assert_eq!(infos.find("bb"), None);
    }

    #[test]
    fn what_rows_share_is_kept_once() {
        let rows: Vec<_> = (0..1000).map(|n| format!("i-{n}")).collect();
        let rows: Vec<_> = rows.iter().map(|id| (&**id, "name", if id.ends_with('7') { "B" } else { "A" })).collect();
        assert_eq!(infos(&rows).texts().len(), 7);
    }

    #[test]
    fn equality_is_of_what_is_told_not_of_how_it_is_kept() {
        let one = infos(&[("a", "x", "A"), ("b", "y", "B")]);
        assert!(one == infos(&[("b", "y", "B"), ("a", "w", "C"), ("a", "x", "A")]));
        assert!(one != infos(&[("a", "x", "A"), ("b", "y", "C")]));
        assert!(one != infos(&[("a", "x", "A")]));
    }

    #[test]
    fn a_renewal_has_the_later_word_on_what_exists_and_nothing_else() {
        let old = infos(&[("a", "a1", "A"), ("b", "b1", "A"), ("c", "c1", "A")]);
        let new = infos(&[("b", "b2", "B"), ("d", "d2", "B"), ("e", "e2", "B")]);
        let renewed = old.renewed(&new, &inventory(&["a", "b", "d", "f"])).unwrap();
        assert_eq!(names(&renewed), [("a", "a1", "A"), ("b", "b2", "B"), ("d", "d2", "B")]);
        assert_eq!(renewed.missing(&inventory(&["a", "aa", "b", "d", "f"])), ["aa", "f"]);
        assert!(Infos::default().renewed(&old, &inventory(&["a", "b", "c"])).unwrap() == old);
        assert!(old.renewed(&Infos::default(), &inventory(&["a", "b", "c"])).unwrap() == old);
    }
}
