//! All pages of one poll into one consistent inventory.
//!
//! The list changes while it is read by number: one instance deleted and one created between two pages, and an
//! instance that exists is on neither, with every count right. So one rule: an instance that the previous poll had
//! is gone only when the API, asked for it by id, does not return it, or, where asking would take too many requests,
//! when a second walk misses it too. A shard reads every page as all do, for the API has no such filter, and holds the
//! same rule for its own instances; whether paging works it tells by all. It must not know how a request is sent.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::api::wire::{Listing, MAX_IDS};
use crate::api::{ApiError, InfoPage, Kind, Page, Session};
use crate::model::{Inventory, Overflow, Sightings, Statuses};
use crate::shard::{Others, Shard};

/// More requests than this cost more than walking all pages once more.
const MAX_LOOKUPS: usize = 20;

/// Instances that may be hidden from two walks of a list that changes, or one in so many where that is more.
const MOST_HIDDEN: u64 = 10;
const HIDDEN_SHARE: u64 = 100;

/// Where what is known of an instance comes from, by its id.
pub trait LookUp<P>: Sync {
    /// Those of `ids` that exist; or [`Kind::NotFound`] when one does not.
    fn look_up(&self, ids: &[&str]) -> impl Future<Output = Result<P, ApiError>> + Send;
}

impl LookUp<Page> for Session<'_> {
    fn look_up(&self, ids: &[&str]) -> impl Future<Output = Result<Page, ApiError>> + Send {
        self.statuses_of(ids)
    }
}

impl LookUp<InfoPage> for Session<'_> {
    fn look_up(&self, ids: &[&str]) -> impl Future<Output = Result<InfoPage, ApiError>> + Send {
        self.infos_of(ids)
    }
}

/// Where pages come from: the API, or what a test puts in its place.
pub trait Source: LookUp<Page> {
    /// The page of that number, from 1.
    fn page(&self, number: u64) -> impl Future<Output = Result<Page, ApiError>> + Send;
    /// Entries asked for in one page.
    fn page_size(&self) -> usize;
    /// Requests to have under way at a time.
    fn concurrency(&self) -> usize;
    /// Whose instances to keep.
    fn shard(&self) -> Shard;
}

impl Source for Session<'_> {
    fn page(&self, number: u64) -> impl Future<Output = Result<Page, ApiError>> + Send {
        self.status_page(number)
    }

    fn page_size(&self) -> usize {
        self.settings().page_size
    }

    fn concurrency(&self) -> usize {
        self.settings().concurrency
    }

    fn shard(&self) -> Shard {
        self.settings().shard
    }
}

/// What one poll brought.
#[derive(Debug)]
pub struct Collection {
    /// Every instance of the shard once.
    pub inventory: Inventory,
    /// Answers it was put together from, look-ups included.
    pub pages: usize,
    /// Instances that the walk over the pages missed.
    pub corrections: usize,
}

/// Looks up `ids` and nothing else; those that do not exist are left out.
///
/// # Errors
/// When a part of the answer could not be had.
pub async fn collect_named(
    source: &impl Source,
    ids: &[&str],
    statuses: &mut Statuses,
) -> Result<Collection, ApiError> {
    let found = look_up(source, ids, &Budget::of(usize::MAX), statuses).await?;
    Ok(Collection { inventory: found.inventory, pages: found.pages, corrections: 0 })
}

/// Reads the whole account. `previous` is what the last successful poll found.
///
/// # Errors
/// When a part of it could not be had, or paging itself does not work.
pub async fn collect_all(
    source: &impl Source,
    previous: Option<&Inventory>,
    statuses: &mut Statuses,
) -> Result<Collection, ApiError> {
    let walked = walk(source, statuses).await?;
    let nothing = Inventory::default();
    let known = previous.unwrap_or(&nothing);
    let missed = known.ids_not_in(&walked.inventory).len();
    let shows_change = previous.is_none() && walked.shows_change;
    let mut reading = find_missing(source, walked, known, statuses).await?;
    if shows_change || reading.falls_short() {
        reading = reading.merge(&walk(source, statuses).await?)?;
    }
    reading.check()?;
    let corrections = missed - known.ids_not_in(&reading.inventory).len();
    Ok(Collection { inventory: reading.inventory, pages: reading.pages, corrections })
}

/// Asks for what `known` has and the walk did not find. Where that takes too many requests, one more walk instead: what
/// both miss, and no look-up found, is gone.
async fn find_missing(
    source: &impl Source,
    walked: Reading,
    known: &Inventory,
    statuses: &mut Statuses,
) -> Result<Reading, ApiError> {
    let (reading, complete) = look_up_missing(source, walked, known, statuses).await?;
    if complete {
        return Ok(reading);
    }
    let reading = reading.merge(&walk(source, statuses).await?)?;
    let (reading, complete) = look_up_missing(source, reading, known, statuses).await?;
    if !complete {
        let gone = known.ids_not_in(&reading.inventory).len();
        tracing::warn!(gone, "two walks missed so many instances that not each was asked for by id");
    }
    Ok(reading)
}

/// Returns also whether every missing id was asked for.
async fn look_up_missing(
    source: &impl Source,
    reading: Reading,
    known: &Inventory,
    statuses: &mut Statuses,
) -> Result<(Reading, bool), ApiError> {
    let missing = known.ids_not_in(&reading.inventory);
    if missing.len().div_ceil(batch_size(source)) > MAX_LOOKUPS {
        return Ok((reading, false));
    }
    let budget = Budget::of(MAX_LOOKUPS);
    let found = look_up(source, &missing, &budget, statuses).await?;
    Ok((reading.merge(&found)?, !budget.is_overdrawn()))
}

/// How many requests may be made.
pub(crate) struct Budget {
    asked: AtomicUsize,
    limit: usize,
}

impl Budget {
    pub(crate) fn of(limit: usize) -> Self {
        Self { asked: AtomicUsize::new(0), limit }
    }

    /// Whether one more may be made.
    fn spend(&self) -> bool {
        self.asked.fetch_add(1, Ordering::Relaxed) < self.limit
    }

    /// Whether one was wanted that could not be made.
    fn is_overdrawn(&self) -> bool {
        self.asked.load(Ordering::Relaxed) > self.limit
    }
}

/// What was read so far, by pages or by ids.
struct Reading {
    inventory: Inventory,
    others: Others,
    pages: usize,
    /// Entries without a usable id.
    unusable: usize,
    /// The least `totalCount` that a page told.
    least_total: u64,
    /// Whether the list shows that it changed while it was read.
    shows_change: bool,
}

impl Reading {
    /// Adds what `later` found.
    fn merge(self, later: &Self) -> Result<Self, ApiError> {
        let inventory = self.inventory.merge(&later.inventory).map_err(overflow)?;
        let others = self.others.merge(&later.others);
        Ok(Self { inventory, others, pages: self.pages + later.pages, ..self })
    }

    fn found(&self) -> u64 {
        (self.inventory.len() + self.others.len() + self.unusable) as u64
    }

    /// Whether there are fewer instances than every page said there were.
    fn falls_short(&self) -> bool {
        self.found() < self.least_total
    }

    /// A list that changes can hide a few instances that nobody knew of. Many are not hidden by change: then paging
    /// itself does not work, and what it brought must not pass for the account.
    fn check(&self) -> Result<(), ApiError> {
        if !self.falls_short() {
            return Ok(());
        }
        let (found, total) = (self.found(), self.least_total);
        if total - found > MOST_HIDDEN.max(total / HIDDEN_SHARE) {
            let detail = format!(
                "the pages have {found} different instances, though the API counts {total}: nothing is published, since \
                 instances would be missing"
            );
            return Err(ApiError::new(Kind::Inconsistent, detail));
        }
        tracing::warn!(found, total, "the pages have fewer different instances than the API counts");
        Ok(())
    }
}

/// Reads every page once. The first tells how many there are; the others are read side by side.
async fn walk(source: &impl Source, statuses: &mut Statuses) -> Result<Reading, ApiError> {
    let first = full_page(source, 1).await?;
    let total = first.total_count;
    check_total(total, source.shard())?;
    let mut tally = Tally::of(source.shard());
    tally.take(&first, statuses)?;
    let last = total.div_ceil(source.page_size() as u64);
    let mut rest =
        stream::iter(2..=last).map(|number| full_page(source, number)).buffer_unordered(source.concurrency());
    while let Some(page) = rest.try_next().await? {
        tally.take(&page, statuses)?;
    }
    Ok(tally.into_reading())
}

/// Whether that many instances are not more than all shards take.
///
/// # Errors
/// When they are more.
pub(crate) fn check_total(total: u64, shard: Shard) -> Result<(), ApiError> {
    let most = shard.most_instances();
    if total <= most as u64 {
        return Ok(());
    }
    let takers = if shard.is_whole() { "one exporter takes" } else { "that many shards take" };
    let advice = "spread them over more with --shard and --total-shards";
    let detail = format!("the API counts {total} instances, more than the {most} {takers}: {advice}");
    Err(ApiError::new(Kind::Inconsistent, detail))
}

/// Counts what is read, page by page.
struct Tally {
    shard: Shard,
    sightings: Sightings,
    others: Others,
    pages: usize,
    unusable: usize,
    totals: Option<(u64, u64)>,
}

impl Tally {
    fn of(shard: Shard) -> Self {
        let (sightings, others) = (Sightings::default(), Others::default());
        Self { shard, sightings, others, pages: 0, unusable: 0, totals: None }
    }

    fn take(&mut self, page: &Page, statuses: &mut Statuses) -> Result<(), ApiError> {
        self.pages += 1;
        self.unusable += page.unusable;
        let (least, most) = self.totals.unwrap_or((page.total_count, page.total_count));
        self.totals = Some((least.min(page.total_count), most.max(page.total_count)));
        page.entries().try_for_each(|(id, status)| self.sight(id, status, statuses)).map_err(overflow)
    }

    fn sight(&mut self, id: &str, status: &str, statuses: &mut Statuses) -> Result<(), Overflow> {
        match self.shard.foreign(id) {
            None => self.sightings.push(id, status, statuses),
            Some(hash) => self.others.push(hash, self.shard.most_instances()),
        }
    }

    fn into_reading(self) -> Reading {
        let Self { shard: _, sightings, others, pages, unusable, totals } = self;
        let (least_total, most_total) = totals.unwrap_or_default();
        let sighted = sightings.len() + others.len();
        let (inventory, others) = (sightings.into_inventory(), others.distinct());
        let mut reading = Reading { inventory, others, pages, unusable, least_total, shows_change: false };
        let repeats = reading.found() < (sighted + unusable) as u64;
        let miscounts = reading.found() != most_total;
        reading.shows_change = least_total != most_total || repeats || miscounts;
        reading
    }
}

/// A page that has as many entries as it should.
///
/// A list that shrank between being counted and being read looks like one that is cut short, so a short page is
/// read once more.
async fn full_page(source: &impl Source, number: u64) -> Result<Page, ApiError> {
    let page_size = source.page_size();
    // Only a page that others follow must be full.
    let is_short = |page: &Page| page.listed() < page_size && page.total_count > number * page_size as u64;
    let page = source.page(number).await?;
    if !is_short(&page) {
        return Ok(page);
    }
    let again = source.page(number).await?;
    if !is_short(&again) {
        return Ok(again);
    }
    Err(short(&format!("page {number}"), again.listed(), page_size, again.total_count))
}

pub(crate) fn short(what: &str, listed: usize, asked: usize, total: u64) -> ApiError {
    let advice = match listed {
        0 => "nothing is published, since instances would be missing".to_owned(),
        listed => format!("if the API serves no longer pages, set --zenlayer.page-size={listed}"),
    };
    let detail = format!("{what} has {listed} entries, though {asked} were asked for and {total} exist: {advice}");
    ApiError::new(Kind::Inconsistent, detail)
}

pub(crate) fn overflow(overflow: Overflow) -> ApiError {
    let meaning = match overflow {
        Overflow::Instances => "which is more than one exporter takes: spread them with --shard and --total-shards",
        Overflow::Statuses | Overflow::Text => "which no account has",
    };
    ApiError::new(Kind::Inconsistent, format!("the API lists {overflow}, {meaning}")).caused_by(overflow)
}

/// A page that the API cuts short would look like ids that are gone, so no look-up is longer than a page.
pub(crate) fn batch_size(source: &impl Source) -> usize {
    MAX_IDS.min(source.page_size())
}

/// Asks for `ids` as far as the budget goes; those that do not exist are left out.
async fn look_up(
    source: &impl Source,
    ids: &[&str],
    budget: &Budget,
    statuses: &mut Statuses,
) -> Result<Reading, ApiError> {
    let mut requests = Vec::new();
    // A loop: the future of a closure over borrowed batches would not be `Send` for every lifetime.
    for batch in ids.chunks(batch_size(source)) {
        requests.push(look_up_batch(source, batch, budget));
    }
    let mut batches = stream::iter(requests).buffer_unordered(source.concurrency());
    let mut tally = Tally::of(source.shard());
    while let Some(pages) = batches.try_next().await? {
        for page in &pages {
            tally.take(page, statuses)?;
        }
    }
    Ok(tally.into_reading())
}

/// One batch, halved for as long as the API answers that one of its ids does not exist.
pub(crate) async fn look_up_batch<P: Listing>(
    source: &impl LookUp<P>,
    ids: &[&str],
    budget: &Budget,
) -> Result<Vec<P>, ApiError> {
    let mut found = Vec::new();
    // The larger halves first: they bring most where the budget does not suffice for all.
    let mut pending = VecDeque::from([ids]);
    while let Some(batch) = pending.pop_front() {
        if !budget.spend() {
            break;
        }
        match source.look_up(batch).await {
            Ok(page) if page.total_count() > page.listed() as u64 => {
                return Err(short("a look-up by id", page.listed(), batch.len(), page.total_count()));
            }
            Ok(page) => found.push(page),
            Err(error) if error.kind == Kind::NotFound => {
                if batch.len() > 1 {
                    let (left, right) = batch.split_at(batch.len() / 2);
                    pending.extend([left, right]);
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}
