//! Collects all pages of one poll into one consistent inventory.
//!
//! The list changes while it is read page by page. If one instance is deleted and one created between two pages, an
//! instance that exists is on neither page, and every count is right. So one rule: an instance of the previous poll is
//! gone only when a look-up by ID does not return it. If look-ups cannot settle that, a second walk does, unless a
//! look-up finds what both walks miss: then the pages are wrong. The API has no filter for shards, so each shard reads every page and applies
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
    let Found { reading, unanswered, open } = read_ids(source, ids, &Budget::unlimited(), statuses).await?;
    if let Some(Open::Unanswered(error)) = open {
        return Err(error);
    }
    let Reading { inventory, totals, .. } = reading;
    let (pages, missing) = (totals.answers, unanswered as u64);
    // An entry without a usable ID leaves the requested one unanswered, and is counted as that.
    Ok(Collection { inventory, pages, corrections: 0, unusable: 0, missing, fell_back: false })
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
    if !fell_back && (shows_change || reading.missing() > 0) {
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
    let missing = known.ids_not_in(&walked.inventory);
    let Found { reading: mut found, mut open, .. } = look_up_missing(source, &missing, statuses).await?;
    match &open {
        None => return Ok((walked.merge(&found)?, false)),
        Some(Open::OverBudget) => {
            tracing::warn!(
                missing = missing.len(),
                "too many instances to look up are missing: reading all pages again"
            );
        }
        Some(Open::Unanswered(error)) => {
            let missing = missing.len();
            tracing::warn!(missing, error = %error, "look-ups by ID show no more than the pages: reading all pages again");
        }
    }
    let walked = walked.merge(&read_pages(source, statuses).await?)?;
    let missing = known.ids_not_in(&walked.inventory);
    if matches!(open, Some(Open::OverBudget)) {
        let later = look_up_missing(source, &missing, statuses).await?;
        found = found.merge(&later.reading)?;
        open = later.open;
    }
    if open.is_some() {
        check_hidden(&found, &walked, missing.len())?;
    }
    if matches!(open, Some(Open::OverBudget)) {
        open = sample_missing(source, &missing, &walked, statuses).await?;
    }
    match open {
        Some(Open::Unanswered(error)) if error.kind.may_pass() && missing.len() > known.len() / 2 => Err(error),
        _ => Ok((walked.merge(&found)?, true)),
    }
}

/// Looks up `missing`, unless they are too many.
async fn look_up_missing(
    source: &impl Source<Page>,
    missing: &[&str],
    statuses: &mut Statuses,
) -> Result<Found, ApiError> {
    if missing.len().div_ceil(batch_size(source)) > MAX_LOOKUPS {
        let reading = Tally::of(source.shard()).into_reading(Totals::default());
        return Ok(Found { reading, unanswered: 0, open: Some(Open::OverBudget) });
    }
    read_ids(source, missing, &Budget::of(MAX_LOOKUPS), statuses).await
}

/// Looks up a sample of `missing`, which two walks missed and which are too many to look up. Returns why that shows
/// nothing; `None` where it shows that they are gone.
///
/// # Errors
/// When the API still knows any of them.
async fn sample_missing(
    source: &impl Source<Page>,
    missing: &[&str],
    walked: &Reading,
    statuses: &mut Statuses,
) -> Result<Option<Open>, ApiError> {
    let sample = fastrand::choose_multiple(missing.iter().copied(), batch_size(source));
    // "One of these does not exist" says nothing about the others, so some are looked up one by one.
    let singly = fastrand::choose_multiple(missing.iter(), MAX_LOOKUPS - 1).into_iter().map(std::slice::from_ref);
    for ids in std::iter::once(&*sample).chain(singly) {
        let Found { reading, open, .. } = read_ids(source, ids, &Budget::of(1), statuses).await?;
        check_hidden(&reading, walked, missing.len())?;
        match open {
            None if ids.len() == sample.len() => break,
            Some(Open::Unanswered(error)) => {
                tracing::warn!(missing = missing.len(), error = %error, "the look-up of a sample shows no more than the pages");
                return Ok(Some(Open::Unanswered(error)));
            }
            _ => {}
        }
    }
    tracing::warn!(missing = missing.len(), "two walks and the look-up of a sample find none of these instances");
    Ok(None)
}

/// An instance that look-ups find and two walks miss shows that the pages are wrong, and that others may be hidden, too.
fn check_hidden(found: &Reading, walked: &Reading, missing: usize) -> Result<(), ApiError> {
    if found.inventory.ids_not_in(&walked.inventory).is_empty() {
        return Ok(());
    }
    let detail = format!(
        "two walks miss instances of the previous poll ({missing}), of which look-ups by ID still find some: nothing is \
         published, since the pages are wrong"
    );
    Err(ApiError::new(Kind::Inconsistent, detail).with_missing(missing as u64))
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
    /// Adds what `later` found. Of two walks, the one that counts fewer instances counts: the list may have shrunk.
    fn merge(self, later: &Self) -> Result<Self, ApiError> {
        let inventory = self.inventory.merge(&later.inventory).map_err(overflow)?;
        let others = self.others.merge(&later.others);
        let counts = [self.totals.range, later.totals.range].into_iter().flatten();
        let range = counts.min_by_key(|&(_, most)| most);
        let answers = self.totals.answers + later.totals.answers;
        Ok(Self { inventory, others, totals: Totals { answers, range, ..self.totals }, ..self })
    }

    fn found(&self) -> u64 {
        (self.inventory.len() + self.others.len() + self.totals.unusable) as u64
    }

    /// How many instances a page counts beyond those that were found.
    fn missing(&self) -> u64 {
        self.totals.range.map_or(0, |(_, most)| most.saturating_sub(self.found()))
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

/// What look-ups by ID found, and what they left open (see [`LookedUp`]).
struct Found {
    reading: Reading,
    unanswered: usize,
    open: Option<Open>,
}

/// Looks up `ids` as far as the budget goes.
async fn read_ids(
    source: &impl Source<Page>,
    ids: &[&str],
    budget: &Budget,
    statuses: &mut Statuses,
) -> Result<Found, ApiError> {
    let mut tally = Tally::of(source.shard());
    let looked_up = look_up(source, source.concurrency(), ids, budget, |page: &Page, requested: &[&str]| {
        let mut entries = page.entries().filter(|(id, _)| requested.contains(id));
        entries.try_for_each(|(id, status)| tally.sight(id, status, statuses)).map_err(overflow)
    });
    let LookedUp { totals, unanswered, open } = looked_up.await?;
    // What a look-up counts is its own answer, not the account.
    Ok(Found { reading: tally.into_reading(Totals { range: None, ..totals }), unanswered, open })
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
