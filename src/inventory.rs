//! All pages of one poll into one consistent inventory.
//!
//! The list changes while it is read by number: one instance deleted and one created between two pages, and an
//! instance that exists is on neither, with every count right. So one rule: an instance that the previous poll had
//! is gone only when the API, asked for it by id, does not return it. It must not know how a request is sent.

use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::api::wire::MAX_IDS;
use crate::api::{ApiError, Kind, Page, Session};
use crate::model::{Inventory, MAX_INSTANCES, Overflow, Sightings, Statuses};

/// More look-ups than this cost more than walking all pages once more.
const MAX_LOOKUPS: usize = 20;

/// What one poll brought.
#[derive(Debug)]
pub struct Collection {
    /// Every instance once.
    pub inventory: Inventory,
    /// Answers it was put together from, look-ups included.
    pub pages: usize,
    /// Instances that the walk over the pages missed.
    pub corrections: usize,
}

/// Reads the whole account, or the instances the settings name.
///
/// # Errors
/// When a part of it could not be had: an incomplete inventory is never returned.
pub async fn collect(
    session: &Session<'_>,
    previous: Option<&Inventory>,
    statuses: &mut Statuses,
) -> Result<Collection, ApiError> {
    let named = &session.settings().instance_ids;
    if !named.is_empty() {
        let ids: Vec<_> = named.iter().map(String::as_str).collect();
        let found = look_up(session, &ids, statuses).await?;
        return Ok(Collection { inventory: found.inventory, pages: found.pages, corrections: 0 });
    }
    let walk = walk(session, statuses).await?;
    match previous {
        Some(previous) => confirm_missing(session, walk, previous, statuses).await,
        None if walk.shows_change => merge_second_walk(session, walk, statuses).await,
        None => Ok(Collection { inventory: walk.inventory, pages: walk.pages, corrections: 0 }),
    }
}

/// What one reading brought, by pages or by ids.
struct Reading {
    inventory: Inventory,
    pages: usize,
    /// Whether the list shows that it changed while it was read.
    shows_change: bool,
}

/// Asks for every instance that `previous` had and `walk` has not.
async fn confirm_missing(
    session: &Session<'_>,
    walk: Reading,
    previous: &Inventory,
    statuses: &mut Statuses,
) -> Result<Collection, ApiError> {
    let missing = previous.ids_not_in(&walk.inventory);
    if missing.len().div_ceil(batch_size(session)) > MAX_LOOKUPS {
        return merge_second_walk(session, walk, statuses).await;
    }
    let found = look_up(session, &missing, statuses).await?;
    Ok(Collection {
        corrections: found.inventory.len(),
        pages: walk.pages + found.pages,
        inventory: walk.inventory.merge(&found.inventory).map_err(overflow)?,
    })
}

async fn merge_second_walk(
    session: &Session<'_>,
    first: Reading,
    statuses: &mut Statuses,
) -> Result<Collection, ApiError> {
    let second = walk(session, statuses).await?;
    Ok(Collection {
        corrections: second.inventory.ids_not_in(&first.inventory).len(),
        pages: first.pages + second.pages,
        inventory: first.inventory.merge(&second.inventory).map_err(overflow)?,
    })
}

/// Reads every page once. The first tells how many there are; the others are read side by side.
async fn walk(session: &Session<'_>, statuses: &mut Statuses) -> Result<Reading, ApiError> {
    let page_size = session.settings().page_size as u64;
    let first = full_page(session, 1).await?;
    let total = first.total_count;
    if total > MAX_INSTANCES as u64 {
        let detail = format!("the API counts {total} instances, more than the {MAX_INSTANCES} one exporter takes");
        return Err(ApiError::new(Kind::Inconsistent, detail));
    }
    let mut tally = Tally::default();
    tally.take(&first, statuses)?;
    let mut rest = stream::iter(2..=total.div_ceil(page_size))
        .map(|number| full_page(session, number))
        .buffer_unordered(session.settings().concurrency);
    while let Some(page) = rest.try_next().await? {
        tally.shows_change |= page.total_count != total;
        tally.take(&page, statuses)?;
    }
    let (pages, listed, counts_differ) = (tally.pages, tally.listed, tally.shows_change);
    let (sighted, inventory) = (tally.sightings.len(), tally.sightings.into_inventory());
    let repeated = inventory.len() < sighted;
    Ok(Reading { shows_change: counts_differ || repeated || listed as u64 != total, inventory, pages })
}

/// What was read so far.
#[derive(Default)]
struct Tally {
    sightings: Sightings,
    pages: usize,
    listed: usize,
    shows_change: bool,
}

impl Tally {
    fn take(&mut self, page: &Page, statuses: &mut Statuses) -> Result<(), ApiError> {
        self.pages += 1;
        self.listed += page.listed();
        page.entries().try_for_each(|(id, status)| self.sightings.push(id, status, statuses)).map_err(overflow)
    }
}

/// A page that has as many entries as it should.
///
/// A list that shrank between being counted and being read looks like one that is cut short, so a short page is
/// read once more.
async fn full_page(session: &Session<'_>, number: u64) -> Result<Page, ApiError> {
    let page_size = session.settings().page_size;
    // Only a page that others follow must be full.
    let is_short = |page: &Page| page.listed() < page_size && page.total_count > number * page_size as u64;
    let page = session.status_page(number).await?;
    if !is_short(&page) {
        return Ok(page);
    }
    let again = session.status_page(number).await?;
    if !is_short(&again) {
        return Ok(again);
    }
    Err(short(&format!("page {number}"), again.listed(), page_size, again.total_count))
}

fn short(what: &str, listed: usize, asked: usize, total: u64) -> ApiError {
    let advice = match listed {
        0 => "nothing is published, since instances would be missing".to_owned(),
        listed => format!("if the API serves no longer pages, set --zenlayer.page-size={listed}"),
    };
    let detail = format!("{what} has {listed} entries, though {asked} were asked for and {total} exist: {advice}");
    ApiError::new(Kind::Inconsistent, detail)
}

fn overflow(overflow: Overflow) -> ApiError {
    ApiError::new(Kind::Inconsistent, format!("the API lists {overflow}, which no account has")).caused_by(overflow)
}

/// A page that the API cuts short would look like ids that are gone, so no look-up is longer than a page.
fn batch_size(session: &Session<'_>) -> usize {
    MAX_IDS.min(session.settings().page_size)
}

/// Asks for `ids`; those that do not exist are left out.
async fn look_up(session: &Session<'_>, ids: &[&str], statuses: &mut Statuses) -> Result<Reading, ApiError> {
    let mut requests = Vec::new();
    // A loop: the future of a closure over borrowed batches would not be `Send` for every lifetime.
    for batch in ids.chunks(batch_size(session)) {
        requests.push(look_up_batch(session, batch));
    }
    let mut batches = stream::iter(requests).buffer_unordered(session.settings().concurrency);
    let mut tally = Tally::default();
    while let Some(pages) = batches.try_next().await? {
        for page in &pages {
            tally.take(page, statuses)?;
        }
    }
    Ok(Reading { inventory: tally.sightings.into_inventory(), pages: tally.pages, shows_change: false })
}

/// One batch, halved for as long as the API answers that one of its ids does not exist.
async fn look_up_batch(session: &Session<'_>, ids: &[&str]) -> Result<Vec<Page>, ApiError> {
    let mut found = Vec::new();
    let mut pending = vec![ids];
    while let Some(batch) = pending.pop() {
        match session.statuses_of(batch).await {
            Ok(page) if page.total_count > page.listed() as u64 => {
                return Err(short("a look-up by id", page.listed(), batch.len(), page.total_count));
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
