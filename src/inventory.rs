//! Collects all pages of one poll into one consistent inventory.
//!
//! The list changes while it is read page by page. If one instance is deleted and one created between two pages, an
//! instance that exists is on neither page, and every count is right. So one rule: an instance of the previous poll is
//! gone only when a look-up by ID does not return it. If look-ups cannot settle that, a second walk does, unless a
//! sample shows that the pages are wrong. The API has no filter for shards, so each shard reads every page and applies
//! this rule to its own instances; totals are compared over all instances.

use crate::api::{ApiError, Kind, Page};
use crate::model::{Inventory, Overflow, Sightings, Statuses};
use crate::paging::{Budget, LookedUp, Open, Source, Totals, batch_size, look_up, overflow, walk};
use crate::shard::{Others, Shard};

/// More requests than this cost more than walking all pages once more.
const MAX_LOOKUPS: usize = 20;

/// Instances that may be hidden from two walks of a list that changes, or one in so many where that is more.
const MOST_HIDDEN: u64 = 10;
const HIDDEN_SHARE: u64 = 100;
/// The number of polls in a row in which instances may be hidden. A list that merely changes shows them soon.
const MOST_SHORT_POLLS: u32 = 2;

/// What earlier polls found.
#[derive(Debug, Clone, Copy, Default)]
pub struct History<'a> {
    /// The inventory of the last successful poll, unless it is too old to be served.
    pub inventory: Option<&'a Inventory>,
    /// How many polls in a row found fewer instances than the API counts.
    pub short_polls: u32,
}

/// What one poll found.
#[derive(Debug)]
pub struct Collection {
    /// Every instance of the shard once.
    pub inventory: Inventory,
    /// Answers it was put together from, look-ups included.
    pub pages: usize,
    /// Instances of the previous poll that the first walk missed and that were found later.
    pub corrections: usize,
    /// Entries without a usable ID.
    pub unusable: usize,
    /// Instances that the API counts but that were not found.
    pub missing: u64,
    /// Whether a second walk had to decide what is gone.
    pub fell_back: bool,
}

/// Looks up `ids` and nothing else; those that do not exist are left out.
///
/// # Errors
/// When a part of the answer could not be had.
pub async fn collect_named(
    source: &impl Source<Page>,
    ids: &[&str],
    statuses: &mut Statuses,
) -> Result<Collection, ApiError> {
    let (found, open) = read_ids(source, ids, &Budget::of(usize::MAX), statuses).await?;
    if let Some(Open::Refused(error)) = open {
        return Err(error);
    }
    Ok(found.into_collection(0, false))
}

/// Reads the whole account.
///
/// # Errors
/// When a part of it could not be had, or paging itself does not work.
pub async fn collect_all(
    source: &impl Source<Page>,
    history: History<'_>,
    statuses: &mut Statuses,
) -> Result<Collection, ApiError> {
    let walked = read_pages(source, statuses).await?;
    let nothing = Inventory::default();
    let known = history.inventory.unwrap_or(&nothing);
    let missed = known.ids_not_in(&walked.inventory).len();
    let shows_change = history.inventory.is_none() && walked.shows_change;
    let (mut reading, fell_back) = find_missing(source, walked, known, statuses).await?;
    if shows_change || reading.missing() > 0 {
        reading = reading.merge(&read_pages(source, statuses).await?)?;
    }
    reading.check(history.short_polls)?;
    let corrections = missed - known.ids_not_in(&reading.inventory).len();
    Ok(reading.into_collection(corrections, fell_back))
}

/// Looks up the instances of `known` that the walk missed. If that does not settle which of them exist, a second walk
/// does: what both walks miss, and no look-up found, is gone. Returns also whether a second walk was needed.
async fn find_missing(
    source: &impl Source<Page>,
    walked: Reading,
    known: &Inventory,
    statuses: &mut Statuses,
) -> Result<(Reading, bool), ApiError> {
    let (reading, open) = look_up_missing(source, walked, known, statuses).await?;
    let Some(open) = open else { return Ok((reading, false)) };
    let missing = known.ids_not_in(&reading.inventory).len();
    match &open {
        Open::OverBudget => {
            tracing::warn!(missing, "too many instances to look up are missing: reading all pages again");
        }
        Open::Refused(error) => {
            tracing::warn!(missing, error = %error, "look-up by ID refused: reading all pages again");
        }
    }
    let reading = reading.merge(&read_pages(source, statuses).await?)?;
    match open {
        // Another look-up would be refused again.
        Open::Refused(error) => {
            let missing = known.ids_not_in(&reading.inventory).len();
            if error.kind.may_pass() && missing > known.len() / 2 {
                return Err(error);
            }
            Ok((reading, true))
        }
        Open::OverBudget => {
            let (reading, open) = look_up_missing(source, reading, known, statuses).await?;
            if open.is_some() {
                sample_missing(source, &known.ids_not_in(&reading.inventory), statuses).await?;
            }
            Ok((reading, true))
        }
    }
}

/// Looks up the instances of `known` that `reading` does not have. Returns also why some of them remain open; `None` if
/// none do.
async fn look_up_missing(
    source: &impl Source<Page>,
    reading: Reading,
    known: &Inventory,
    statuses: &mut Statuses,
) -> Result<(Reading, Option<Open>), ApiError> {
    let missing = known.ids_not_in(&reading.inventory);
    if missing.len().div_ceil(batch_size(source)) > MAX_LOOKUPS {
        return Ok((reading, Some(Open::OverBudget)));
    }
    let (found, open) = read_ids(source, &missing, &Budget::of(MAX_LOOKUPS), statuses).await?;
    Ok((reading.merge(&found)?, open))
}

/// Checks a sample of `missing`, which two walks missed and which are too many to look up: if the API still knows any of
/// them, the pages are wrong.
async fn sample_missing(source: &impl Source<Page>, missing: &[&str], statuses: &mut Statuses) -> Result<(), ApiError> {
    let sample = fastrand::choose_multiple(missing.iter().copied(), batch_size(source));
    // "One of these does not exist" says nothing about the others, so some are looked up one by one.
    let singly = sample.chunks(1).take(MAX_LOOKUPS - 1);
    for ids in std::iter::once(&*sample).chain(singly) {
        let (found, open) = read_ids(source, ids, &Budget::of(1), statuses).await?;
        if found.found() > 0 {
            let detail = format!(
                "two walks miss {} instances of the previous poll, of which look-ups by ID still find some: nothing is \
                 published, since the pages are wrong",
                missing.len()
            );
            return Err(ApiError::new(Kind::Inconsistent, detail).with_missing(missing.len() as u64));
        }
        let is_settled = match open {
            None => ids.len() == sample.len(),
            Some(Open::OverBudget) => false,
            Some(Open::Refused(_)) => true,
        };
        if is_settled {
            break;
        }
    }
    tracing::warn!(gone = missing.len(), "two walks miss so many instances that only a sample of them was looked up");
    Ok(())
}

/// What was read so far, by pages or by IDs.
struct Reading {
    inventory: Inventory,
    others: Others,
    totals: Totals,
    /// Whether the list shows that it changed while it was read.
    shows_change: bool,
}

impl Reading {
    /// Adds what `later` found.
    fn merge(self, later: &Self) -> Result<Self, ApiError> {
        let inventory = self.inventory.merge(&later.inventory).map_err(overflow)?;
        let others = self.others.merge(&later.others);
        let answers = self.totals.answers + later.totals.answers;
        Ok(Self { inventory, others, totals: Totals { answers, ..self.totals }, ..self })
    }

    fn found(&self) -> u64 {
        (self.inventory.len() + self.others.len() + self.totals.unusable) as u64
    }

    /// How many instances every page counts beyond those that were found.
    fn missing(&self) -> u64 {
        self.totals.range.map_or(0, |(least, _)| least.saturating_sub(self.found()))
    }

    /// A list that changes can hide a few instances that no poll has seen yet. If it hides many, or hides some for long,
    /// paging itself does not work, and what was found must not pass for the whole account.
    fn check(&self, short_polls: u32) -> Result<(), ApiError> {
        let (found, missing) = (self.found(), self.missing());
        if missing == 0 {
            return Ok(());
        }
        let total = found + missing;
        let is_too_many = missing > MOST_HIDDEN.max(total / HIDDEN_SHARE);
        if !is_too_many && short_polls < MOST_SHORT_POLLS {
            tracing::warn!(found, total, "the pages have fewer different instances than the API counts");
            return Ok(());
        }
        let since =
            if is_too_many { String::new() } else { format!(", for more than {MOST_SHORT_POLLS} polls in a row") };
        let detail = format!(
            "the pages have {found} different instances, though the API counts {total}{since}: nothing is published, \
             since instances would be missing"
        );
        Err(ApiError::new(Kind::Inconsistent, detail).with_missing(missing))
    }

    fn into_collection(self, corrections: usize, fell_back: bool) -> Collection {
        let missing = self.missing();
        let Totals { answers, unusable, .. } = self.totals;
        Collection { inventory: self.inventory, pages: answers, corrections, unusable, missing, fell_back }
    }
}

async fn read_pages(source: &impl Source<Page>, statuses: &mut Statuses) -> Result<Reading, ApiError> {
    let mut tally = Tally::of(source.shard());
    let totals = walk(source, source.concurrency(), |page: &Page| {
        page.entries().try_for_each(|(id, status)| tally.sight(id, status, statuses)).map_err(overflow)
    });
    let totals = totals.await?;
    Ok(tally.into_reading(totals))
}

/// Looks up `ids` as far as the budget goes.
async fn read_ids(
    source: &impl Source<Page>,
    ids: &[&str],
    budget: &Budget,
    statuses: &mut Statuses,
) -> Result<(Reading, Option<Open>), ApiError> {
    let mut tally = Tally::of(source.shard());
    let looked_up = look_up(source, source.concurrency(), ids, budget, |page: &Page, requested: &[&str]| {
        let mut entries = page.entries().filter(|(id, _)| requested.contains(id));
        entries.try_for_each(|(id, status)| tally.sight(id, status, statuses)).map_err(overflow)
    });
    let LookedUp { totals, open } = looked_up.await?;
    // What a look-up counts is its own answer, not the account.
    Ok((tally.into_reading(Totals { range: None, ..totals }), open))
}

/// Collects what is read, page by page.
struct Tally {
    shard: Shard,
    sightings: Sightings,
    others: Others,
}

impl Tally {
    fn of(shard: Shard) -> Self {
        Self { shard, sightings: Sightings::default(), others: Others::default() }
    }

    fn sight(&mut self, id: &str, status: &str, statuses: &mut Statuses) -> Result<(), Overflow> {
        match self.shard.foreign(id) {
            None => self.sightings.push(id, status, statuses),
            Some(hash) => self.others.push(hash, self.shard.most_instances()),
        }
    }

    fn into_reading(self, totals: Totals) -> Reading {
        let Self { shard: _, sightings, others } = self;
        let sighted = (sightings.len() + others.len() + totals.unusable) as u64;
        let (inventory, others) = (sightings.into_inventory(), others.distinct());
        let mut reading = Reading { inventory, others, totals, shows_change: false };
        let found = reading.found();
        reading.shows_change =
            totals.range.is_some_and(|(least, most)| (least, most) != (found, found)) || found < sighted;
        reading
    }
}
