//! Collects all pages of one poll into one consistent inventory.
//!
//! The list changes while it is read page by page. If one instance is deleted and one created between two pages, an
//! instance that exists is on neither page, and every count is right. So one rule: an instance of the previous poll is
//! gone only when a look-up by ID does not return it. If look-ups cannot settle that, a second walk does, unless a
//! look-up finds what both walks miss: then the pages are wrong. The API has no filter for shards, so each shard reads
//! every page and applies this rule to its own instances; totals are compared over all instances.

use std::collections::VecDeque;

use crate::api::wire::MAX_IDS;
use crate::api::{ApiError, Kind, Page};
use crate::model::{Inventory, Overflow, Sightings, Statuses};
use crate::paging::{Budget, LookedUp, MOST_HIDDEN, Open, Source, Totals};
use crate::paging::{batch_size, is_too_many, look_up, overflow, walk};
use crate::shard::{Others, Shard};

/// More requests than this cost more than walking all pages once more.
const MAX_LOOKUPS: usize = 20;

/// The number of polls in a row in which instances may be hidden. A list that merely changes shows them soon.
const MOST_SHORT_POLLS: u32 = 2;

/// Statuses of instances that are being released: a list may leave them out while look-ups still return them.
const RELEASED: [&str; 3] = ["RECYCLE", "RECYCLING", "RELEASING"];

/// What earlier polls found.
#[derive(Debug, Clone, Copy, Default)]
pub struct History<'a> {
    /// The inventory of the last successful poll, unless look-ups of its instances do not work.
    pub inventory: Option<&'a Inventory>,
    /// How many polls in a row were short.
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
    /// Whether the pages had too few instances, which a list that changes explains for a while.
    pub is_short: bool,
    /// Whether a second walk had to decide what is gone.
    pub fell_back: bool,
}

/// Looks up `ids` and nothing else; those that do not exist are left out. An instance of the previous poll is gone only
/// when a second look-up does not return it either.
///
/// # Errors
/// When a part of the answer could not be had.
pub async fn collect_named(
    source: &impl Source<Page>,
    ids: &[&str],
    history: History<'_>,
    statuses: &mut Statuses,
) -> Result<Collection, ApiError> {
    let found = read_named(source, ids, statuses).await?;
    let nothing = Inventory::default();
    let gone = history.inventory.unwrap_or(&nothing).ids_not_in(&found.reading.inventory);
    // Those that the API does not answer for are among them: they are counted as that.
    let again = read_ids(source, &gone, &Budget::unlimited(), statuses).await?;
    let reading = found.reading.merge(&again.reading)?;
    let missing = found.unanswered.len() as u64;
    let (inventory, pages) = (reading.inventory, reading.totals.answers);
    // An entry without a usable ID leaves the requested one unanswered, and is counted as that.
    Ok(Collection { inventory, pages, corrections: 0, unusable: 0, missing, is_short: false, fell_back: false })
}

/// Looks up every one of `ids`. The API may refuse a few: deleted ones, for example.
async fn read_named(source: &impl Source<Page>, ids: &[&str], statuses: &mut Statuses) -> Result<Found, ApiError> {
    let mut found = read_ids(source, ids, &Budget::unlimited(), statuses).await?;
    if let Some(Open::Unanswered(error)) = found.open {
        return Err(error);
    }
    if is_too_many(found.unanswered.len() as u64, ids.len() as u64) {
        return Err(found.unanswered.swap_remove(0));
    }
    Ok(found)
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
    let (mut reading, hidden, fell_back) = find_missing(source, walked, known, statuses).await?;
    if !fell_back && (shows_change || reading.unexplained() > 0) {
        reading = reading.merge(&read_pages(source, statuses).await?)?;
    }
    let is_short = reading.check(hidden, history.short_polls)?;
    let corrections = missed - known.ids_not_in(&reading.inventory).len();
    Ok(reading.into_collection(corrections, is_short, fell_back))
}

/// Looks up the instances of `known` that the walk missed. If that does not settle which of them exist, a second walk
/// does: what both walks miss, and no look-up found, is gone. Returns also how many instances only look-ups found, and
/// whether a second walk was needed.
async fn find_missing(
    source: &impl Source<Page>,
    walked: Reading,
    known: &Inventory,
    statuses: &mut Statuses,
) -> Result<(Reading, u64, bool), ApiError> {
    let missing = known.ids_not_in(&walked.inventory);
    let Found { reading: mut found, mut open, .. } = look_up_missing(source, &missing, statuses).await?;
    match &open {
        None => {
            let hidden = found.hidden_from(&walked, statuses);
            return Ok((walked.merge(&found)?, hidden, false));
        }
        Some(Open::OverBudget) => {
            let missing = missing.len();
            tracing::warn!(missing, "too many instances to look up are missing: reading all pages again");
        }
        Some(Open::Unanswered(error)) => {
            let missing = missing.len();
            tracing::warn!(missing, error = %error, "look-ups by ID do not show which instances exist: reading all pages again");
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
        check_hidden(&found, &walked, missing.len(), statuses)?;
    }
    if matches!(open, Some(Open::OverBudget)) {
        open = sample_missing(source, &missing, &walked, statuses).await?;
    }
    let hidden = found.hidden_from(&walked, statuses);
    match open {
        Some(Open::Unanswered(error)) if is_too_much_to_lose(&error, missing.len(), known.len()) => Err(error),
        _ => Ok((walked.merge(&found)?, hidden, true)),
    }
}

/// Whether so many of the known instances must not go only because look-ups are refused.
fn is_too_much_to_lose(refusal: &ApiError, missing: usize, known: usize) -> bool {
    missing > known / 2 && (refusal.kind.may_pass() || missing as u64 > MOST_HIDDEN)
}

/// Looks up `missing`, unless they are too many.
async fn look_up_missing(
    source: &impl Source<Page>,
    missing: &[&str],
    statuses: &mut Statuses,
) -> Result<Found, ApiError> {
    if missing.len().div_ceil(batch_size(source)) > MAX_LOOKUPS {
        let reading = Tally::of(source.shard()).into_reading(Totals::default());
        return Ok(Found { reading, unanswered: Vec::new(), open: Some(Open::OverBudget) });
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
    let sample = fastrand::choose_multiple(missing.iter().copied(), MAX_IDS);
    let mut requests = MAX_LOOKUPS;
    let mut batches: VecDeque<_> = sample.chunks(batch_size(source)).collect();
    while let (Some(ids), Some(left)) = (batches.pop_front(), requests.checked_sub(1)) {
        requests = left;
        let Found { reading, open, .. } = read_ids(source, ids, &Budget::of(1), statuses).await?;
        check_hidden(&reading, walked, missing.len(), statuses)?;
        match open {
            None => {}
            // "One of these does not exist" says nothing about the others, so some are looked up one by one.
            Some(Open::OverBudget) => batches = sample.chunks(1).collect(),
            Some(Open::Unanswered(error)) => {
                let missing = missing.len();
                tracing::warn!(missing, error = %error, "look-ups of a sample do not show which instances exist");
                return Ok(Some(Open::Unanswered(error)));
            }
        }
    }
    tracing::warn!(
        gone = missing.len(),
        "two readings of all pages miss these instances, and look-ups of a sample find none"
    );
    Ok(None)
}

/// An instance that look-ups find and two walks miss shows that the pages are wrong, and that others may be hidden, too.
fn check_hidden(found: &Reading, walked: &Reading, missing: usize, statuses: &Statuses) -> Result<(), ApiError> {
    if found.hidden_from(walked, statuses) == 0 {
        return Ok(());
    }
    let detail = format!(
        "two readings of all pages miss instances of the previous poll ({missing}), of which look-ups by ID still find \
         some: nothing is published, since the pages are wrong"
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

    /// Different instances that were found, of this shard and of others.
    fn found(&self) -> u64 {
        (self.inventory.len() + self.others.len()) as u64
    }

    /// How many instances a page counts beyond those that were found.
    fn missing(&self) -> u64 {
        self.totals.range.map_or(0, |(_, most)| most.saturating_sub(self.found()))
    }

    /// How many of them are not even entries without a usable ID.
    fn unexplained(&self) -> u64 {
        self.missing().saturating_sub(self.totals.unusable as u64)
    }

    /// How many of its instances are not in `walked`, though they should be.
    fn hidden_from(&self, walked: &Self, statuses: &Statuses) -> u64 {
        let hidden = self.inventory.ids_not_in(&walked.inventory);
        let instances = self.inventory.iter().filter(|instance| hidden.binary_search(&instance.id).is_ok());
        instances.filter(|instance| !RELEASED.contains(&statuses.name(instance.status))).count() as u64
    }

    /// A list that changes can hide a few instances. If it hides many that no look-up finds, or hides some for long,
    /// paging itself does not work, and what was found must not pass for the whole account. Returns whether some are
    /// hidden; `hidden` are those that only look-ups found.
    fn check(&self, hidden: u64, short_polls: u32) -> Result<bool, ApiError> {
        let (found, missing) = (self.found(), self.unexplained());
        let total = found + missing;
        if missing == 0 && !is_too_many(hidden, total) {
            return Ok(false);
        }
        let is_unexplained = is_too_many(missing, total);
        if !is_unexplained && short_polls < MOST_SHORT_POLLS {
            tracing::warn!(found, total, hidden, "the pages have fewer different instances than exist");
            return Ok(true);
        }
        let since =
            if is_unexplained { String::new() } else { format!(", for more than {MOST_SHORT_POLLS} polls in a row") };
        let what = if missing > 0 {
            format!("the pages have {found} different instances, though the API counts {total}")
        } else {
            format!("look-ups by ID find {hidden} instances that the pages leave out")
        };
        let detail = format!("{what}{since}: nothing is published, since instances would be missing");
        Err(ApiError::new(Kind::Inconsistent, detail).with_missing(missing.max(hidden)))
    }

    fn into_collection(self, corrections: usize, is_short: bool, fell_back: bool) -> Collection {
        let missing = self.missing();
        let Totals { answers, unusable, .. } = self.totals;
        Collection { inventory: self.inventory, pages: answers, corrections, unusable, missing, is_short, fell_back }
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
    unanswered: Vec<ApiError>,
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
        let found = reading.found() + totals.unusable as u64;
        reading.shows_change =
            totals.range.is_some_and(|(least, most)| (least, most) != (found, found)) || found < sighted;
        reading
    }
}
