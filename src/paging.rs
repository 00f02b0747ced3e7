//! Reads a list that the API serves in pages, and looks entries up by ID.
//!
//! Invariant: a walk that succeeds has read the list to its end. Each page has exactly as many entries as its own
//! `totalCount` requires, and nothing follows the last page: it is not full, it holds the whole list, or the API has no page
//! after it. Entries that a look-up did not request are dropped.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::stream::{self, FuturesUnordered, StreamExt};

use crate::api::wire::{Head, Listing, MAX_IDS};
use crate::api::{ApiError, Kind, Part, Session};
use crate::model::Overflow;
use crate::shard::Shard;

/// Where pages and entries come from: the API, or what a test puts in its place.
pub trait Source<P>: Sync {
    /// The page of that number, from 1.
    fn page(&self, number: u64) -> impl Future<Output = Result<P, ApiError>> + Send;
    /// The entries of those of `ids` that exist; or [`Kind::NotFound`] when one does not.
    fn look_up(&self, ids: &[&str]) -> impl Future<Output = Result<P, ApiError>> + Send;
    /// Entries requested per page.
    fn page_size(&self) -> usize;
    /// Requests to have in flight at a time.
    fn concurrency(&self) -> usize;
    /// The shard whose instances to keep.
    fn shard(&self) -> Shard;
    /// Counts entries of a look-up that were not requested.
    fn dropped(&self, entries: usize) {
        let _ = entries;
    }
}

impl<P: Listing> Source<P> for Session<'_> {
    fn page(&self, number: u64) -> impl Future<Output = Result<P, ApiError>> + Send {
        self.page(number)
    }

    fn look_up(&self, ids: &[&str]) -> impl Future<Output = Result<P, ApiError>> + Send {
        self.look_up(ids)
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

    fn dropped(&self, entries: usize) {
        self.observer().unrequested_entries(entries);
    }
}

/// What the answers of one walk, or of several look-ups, say about the list as a whole.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Totals {
    /// How many answers there were.
    pub(crate) answers: usize,
    /// Entries without a usable ID.
    pub(crate) unusable: usize,
    /// The least and the greatest `totalCount`.
    pub(crate) range: Option<(u64, u64)>,
}

impl Totals {
    fn add(&mut self, head: &Head) {
        let (least, most) = self.range.unwrap_or((head.total_count, head.total_count));
        self.answers += 1;
        self.unusable += head.unusable;
        self.range = Some((least.min(head.total_count), most.max(head.total_count)));
    }
}

/// Reads every page once, `width` at a time. The first page shows how many there are, and each later page may add some.
///
/// # Errors
/// When a page cannot be read, or does not fit its own `totalCount`.
pub(crate) async fn walk<P: Listing>(
    source: &impl Source<P>,
    width: usize,
    mut take: impl FnMut(&P) -> Result<(), ApiError>,
) -> Result<Totals, ApiError> {
    let mut totals = Totals::default();
    let (mut next, mut last) = (1, 1);
    let mut most = 0;
    let mut in_flight = FuturesUnordered::new();
    loop {
        while next <= last && in_flight.len() < width {
            in_flight.push(page_or_end(source, next, most));
            next += 1;
        }
        let Some(page) = in_flight.next().await.transpose()? else { return Ok(totals) };
        let Some(page) = page else { continue };
        check_total(page.head().total_count, source.shard())?;
        totals.add(page.head());
        take(&page)?;
        most = most.max(page.head().total_count);
        last = last.max(last_page(&page, source.page_size()));
    }
}

/// The number of the page that ends the list: the one after the last full page.
fn last_page<P: Listing>(page: &P, page_size: usize) -> u64 {
    let total = page.head().total_count;
    if page.listed() > page_size && page.listed() as u64 == total {
        // The API does not split the list: this is all of it.
        return 1;
    }
    total / page_size as u64 + 1
}

/// The page of that number; `None` where nothing is left for it, and the API refuses it or repeats the page before.
async fn page_or_end<P: Listing>(source: &impl Source<P>, number: u64, total: u64) -> Result<Option<P>, ApiError> {
    let is_past_the_end = number > 1 && (number - 1).saturating_mul(source.page_size() as u64) >= total;
    match fitting_page(source, number).await {
        // An empty page is documented nowhere, so a refusal says the same.
        Err(error) if is_past_the_end && matches!(error.kind, Kind::Client | Kind::Forbidden | Kind::NotFound) => {
            tracing::debug!(page = number, error = %error, "the page after the last full one is refused: the list ends there");
            Ok(None)
        }
        // Some servers take a number that is too large for that of the last page.
        Err(error) if is_past_the_end && error.kind == Kind::Inconsistent => {
            if repeats_page_before(source, number).await? { Ok(None) } else { Err(error) }
        }
        page => page.map(Some),
    }
}

/// Whether that page has the same entries as the one before it, but not only because every page has those of the first.
async fn repeats_page_before<P: Listing>(source: &impl Source<P>, number: u64) -> Result<bool, ApiError> {
    let (before, page) = (source.page(number - 1).await?, source.page(number).await?);
    let repeats = page.listed() == source.page_size() && page.ids().eq(before.ids());
    Ok(repeats && (number == 2 || !source.page(1).await?.ids().eq(page.ids())))
}

/// A page that fits its own `totalCount`. One that does not is read once more: the list may have changed between being
/// counted and being read.
pub(crate) async fn fitting_page<P: Listing>(source: &impl Source<P>, number: u64) -> Result<P, ApiError> {
    let page = source.page(number).await?;
    if misfit(&page, number, source.page_size()).is_none() {
        return Ok(page);
    }
    let again = source.page(number).await?;
    misfit(&again, number, source.page_size()).map_or(Ok(again), Err)
}

/// What is wrong with a page.
fn misfit<P: Listing>(page: &P, number: u64, page_size: usize) -> Option<ApiError> {
    let (listed, Head { total_count, unusable, request_id }) = (page.listed(), page.head());
    let before = (number - 1).saturating_mul(page_size as u64);
    let left = total_count.saturating_sub(before);
    let is_whole = number == 1 && listed as u64 == *total_count;
    let expected = left.min(page_size as u64);
    let (detail, missing) = if listed > 0 && listed == *unusable {
        (none_usable(listed), left)
    } else if is_whole || listed as u64 == expected {
        return None;
    } else if (listed as u64) < expected {
        let advice = if number == 1 && listed > 0 {
            format!("if the API returns at most {listed} entries per page, set --zenlayer.page-size={listed}")
        } else {
            "nothing is published, since instances would be missing".to_owned()
        };
        (
            format!("{listed} of {expected} entries expected with totalCount {total_count}: {advice}"),
            left - listed as u64,
        )
    } else {
        let advice = "nothing is published, since the API miscounts or ignores pageNum or pageSize";
        (
            format!(
                "more entries than expected with totalCount {total_count} ({listed} instead of {expected}): {advice}"
            ),
            0,
        )
    };
    Some(inconsistent::<P>(Part::Page(number), detail, request_id.as_deref(), missing))
}

fn none_usable(listed: usize) -> String {
    format!("no usable instanceId in any entry ({listed}): check --zenlayer.api-version")
}

fn inconsistent<P: Listing>(part: Part, detail: String, request_id: Option<&str>, missing: u64) -> ApiError {
    let mut error = ApiError::new(Kind::Inconsistent, detail).with_missing(missing);
    error.request = Some((P::ACTION, part));
    error.request_id = request_id.map(Into::into);
    error
}

/// Whether that many instances are not more than all shards take.
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

pub(crate) fn overflow(overflow: Overflow) -> ApiError {
    let meaning = match overflow {
        Overflow::Instances => "which is more than one exporter takes: spread them with --shard and --total-shards",
        Overflow::Text => "which no account has",
    };
    ApiError::new(Kind::Inconsistent, format!("the API lists {overflow}, {meaning}")).caused_by(overflow)
}

/// Entries that a list that changes may hide from a walk, or one in so many where that is more.
pub(crate) const MOST_HIDDEN: u64 = 10;
const HIDDEN_SHARE: u64 = 100;

/// Whether a change does not explain that so many of `total` entries are hidden.
pub(crate) fn is_too_many(hidden: u64, total: u64) -> bool {
    hidden > MOST_HIDDEN.max(total / HIDDEN_SHARE)
}

/// Single IDs that the API may refuse before it is clear that it refuses all.
const MOST_REFUSALS: usize = 10;

/// How many requests may be made.
pub(crate) struct Budget {
    spent: AtomicUsize,
    /// `None`: as many as it takes.
    limit: Option<usize>,
}

impl Budget {
    pub(crate) fn of(limit: usize) -> Self {
        Self { spent: AtomicUsize::new(0), limit: Some(limit) }
    }

    pub(crate) fn unlimited() -> Self {
        Self { spent: AtomicUsize::new(0), limit: None }
    }

    /// Whether one more may be made.
    fn spend(&self) -> bool {
        let spent = self.spent.fetch_add(1, Ordering::Relaxed);
        self.limit.is_none_or(|limit| spent < limit)
    }

    /// Whether one was wanted that could not be made.
    fn is_overdrawn(&self) -> bool {
        self.limit.is_some_and(|limit| self.spent.load(Ordering::Relaxed) > limit)
    }

    /// Whether to find out which ID of a look-up is the reason for such an answer. An unclear one is worth that only
    /// where nothing but look-ups can settle which IDs exist, and their number has no limit.
    fn isolates(&self, answer: Kind) -> bool {
        matches!(answer, Kind::NotFound | Kind::Client | Kind::Forbidden)
            || self.limit.is_none() && answer == Kind::Inconsistent
    }
}

/// How look-ups by ID ended.
pub(crate) struct LookedUp {
    pub(crate) totals: Totals,
    /// For each ID that the API does not answer for, though it does for others, the reason.
    pub(crate) unanswered: Vec<ApiError>,
    /// Why not every other ID was accounted for; `None` where each was.
    pub(crate) open: Option<Open>,
}

/// Why it remains open whether some IDs exist.
pub(crate) enum Open {
    /// It would take more requests than the budget allows.
    OverBudget,
    /// The API refused a look-up, or its answer does not show whether the requested IDs exist.
    Unanswered(ApiError),
}

/// A page that the API caps would look like IDs that are gone, so no look-up is longer than a page.
pub(crate) fn batch_size<P>(source: &impl Source<P>) -> usize {
    MAX_IDS.min(source.page_size())
}

/// Looks up `ids`, `width` requests at a time; those that do not exist are left out. `take` gets each answer with the
/// IDs that were requested in it, and must pass over all other entries.
///
/// # Errors
/// When the API cannot be reached, or returns nothing but what was not requested.
pub(crate) async fn look_up<P: Listing>(
    source: &impl Source<P>,
    width: usize,
    ids: &[&str],
    budget: &Budget,
    mut take: impl FnMut(&P, &[&str]) -> Result<(), ApiError>,
) -> Result<LookedUp, ApiError> {
    let mut requests = Vec::new();
    // A loop: the future of a closure over borrowed batches would not be `Send` for every lifetime.
    for batch in ids.chunks(batch_size(source)) {
        requests.push(look_up_batch(source, batch, budget));
    }
    let mut batches = stream::iter(requests).buffer_unordered(width);
    let (mut totals, mut answered, mut unanswered, mut dropped) = (Totals::default(), false, Vec::new(), 0);
    let mut open = None;
    while let Some(batch) = batches.next().await {
        let batch = batch?;
        for page in &batch.pages {
            totals.add(page.head());
            take(page, batch.ids)?;
        }
        dropped += batch.dropped;
        answered |= batch.answered;
        unanswered.extend(batch.unanswered);
        let Some(error) = batch.open else { continue };
        // What may pass was tried several times, and each other batch would take as long.
        let is_last = error.kind.may_pass();
        open = Some(Open::Unanswered(error));
        if is_last {
            break;
        }
    }
    if dropped > 0 {
        tracing::warn!(action = %P::ACTION, dropped, "look-ups by ID returned entries that were not requested");
    }
    if open.is_none() && (!answered || budget.limit.is_some()) {
        open = unanswered.pop().map(Open::Unanswered);
    } else if let Some(error) = unanswered.last() {
        let unanswered = unanswered.len();
        tracing::warn!(action = %P::ACTION, unanswered, error = %error, "the API does not answer for some IDs");
    }
    let open = open.or_else(|| budget.is_overdrawn().then_some(Open::OverBudget));
    Ok(LookedUp { totals, unanswered, open })
}

/// What the look-ups of one batch returned.
struct Batch<'a, P> {
    ids: &'a [&'a str],
    pages: Vec<P>,
    /// How many entries were not requested.
    dropped: usize,
    /// Whether the API said of any ID that it exists or does not.
    answered: bool,
    /// Why there is no answer for single IDs.
    unanswered: Vec<ApiError>,
    /// Why the rest of the batch was given up.
    open: Option<ApiError>,
}

/// One batch. Where an answer has only a part of it, the rest is requested again; where the API refuses it, each half is.
async fn look_up_batch<'a, P: Listing>(
    source: &impl Source<P>,
    ids: &'a [&'a str],
    budget: &Budget,
) -> Result<Batch<'a, P>, ApiError> {
    let mut batch = Batch { ids, pages: Vec::new(), dropped: 0, answered: false, unanswered: Vec::new(), open: None };
    let mut pending = VecDeque::from([ids.to_vec()]);
    while let Some(part) = pending.pop_front() {
        if !budget.spend() {
            break;
        }
        let error = match source.look_up(&part).await {
            Ok(page) => {
                batch.dropped += count_unrequested(source, &page, &part)?;
                let rest = left_open(&page, &part);
                let error = (rest.len() == part.len()).then(|| unclear(&page, &part));
                batch.pages.push(page);
                if error.is_none() && !rest.is_empty() {
                    pending.push_back(rest);
                }
                error
            }
            Err(error) if error.kind.is_answer() => Some(error),
            Err(error) => return Err(error),
        };
        let Some(error) = error else {
            batch.answered = true;
            continue;
        };
        let is_gone = means_gone(&error);
        batch.answered |= is_gone;
        if !budget.isolates(error.kind) || !batch.answered && batch.unanswered.len() >= MOST_REFUSALS {
            batch.open = Some(error);
            break;
        }
        let (left, right) = part.split_at(part.len() / 2);
        match part.len() {
            1 if is_gone => {}
            1 => batch.unanswered.push(error),
            // The larger halves first: they find most where the budget does not suffice for all.
            _ if is_gone => pending.extend([left.to_vec(), right.to_vec()]),
            // The smaller ones first: they show soonest that every ID is refused.
            _ => {
                pending.push_front(right.to_vec());
                pending.push_front(left.to_vec());
            }
        }
    }
    Ok(batch)
}

/// Whether a refusal means that a requested ID does not exist. A request names a resource group and a key, too.
fn means_gone(error: &ApiError) -> bool {
    let names = |other: &str| error.code.as_deref().is_some_and(|code| code.to_ascii_uppercase().contains(other));
    error.kind == Kind::NotFound && !names("RESOURCE_GROUP") && !names("KEY")
}

/// Counts entries that were not requested. An answer that has nothing else is an error.
fn count_unrequested<P: Listing>(source: &impl Source<P>, page: &P, requested: &[&str]) -> Result<usize, ApiError> {
    let unrequested = page.ids().filter(|id| !requested.contains(id)).count();
    if unrequested == 0 {
        return Ok(0);
    }
    source.dropped(unrequested);
    if unrequested < page.ids().len() {
        return Ok(unrequested);
    }
    let advice = "nothing is published, since the API ignores instanceIds";
    let detail = format!("only entries that were not requested ({unrequested}): {advice}");
    Err(inconsistent::<P>(Part::Ids(requested.len()), detail, page.head().request_id.as_deref(), 0))
}

/// The requested IDs that remain to be requested again. None do if an answer has no entry, and its `totalCount` says so,
/// too. An answer that has some of them may be cut short, whatever it counts.
fn left_open<'a, P: Listing>(page: &P, requested: &[&'a str]) -> Vec<&'a str> {
    if page.head().total_count == 0 && page.listed() == 0 {
        return Vec::new();
    }
    let found: Vec<_> = page.ids().collect();
    requested.iter().copied().filter(|id| !found.contains(id)).collect()
}

/// The error of an answer that does not show whether any of the requested IDs exists.
fn unclear<P: Listing>(page: &P, requested: &[&str]) -> ApiError {
    let (listed, Head { total_count, request_id, .. }) = (page.listed(), page.head());
    let detail =
        if listed > 0 { none_usable(listed) } else { format!("no entries, though totalCount is {total_count}") };
    inconsistent::<P>(Part::Ids(requested.len()), detail, request_id.as_deref(), 0)
}
