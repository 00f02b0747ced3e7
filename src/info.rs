//! Collects instance metadata (DescribeInstances) on its own interval.
//!
//! Names are for people: nothing is called gone because a page missed it, so one walk is enough. Invariant: a round that
//! fails brings nothing, and no round takes more than half of the requests that may be in flight, so that statuses need
//! not wait for it. It must not know which instances exist, nor what becomes of what it finds.

use std::convert::Infallible;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::api::wire::{InfoEntry, MAX_IDS};
use crate::api::{Advice, ApiError, Client, InfoPage, Kind, Round, Session};
use crate::config::{InstanceInfo, Tag};
use crate::model::{Findings, Infos};
use crate::paging::{Budget, Open, Totals, batch_size, is_too_many, look_up, overflow, walk};
use crate::shard::{Others, Shard};
use crate::telemetry::Telemetry;

/// Look-ups that wait, as for the end of a round; what more there are is left to the next round.
const MOST_WAITING: usize = 10;
/// Requests that one look-up of new instances may take, where the API refuses those that name one that is gone again.
const MOST_REQUESTS: usize = 20;

/// Reads instance metadata from the API.
pub(crate) struct Collector {
    client: Arc<Client>,
    settings: InstanceInfo,
    telemetry: Arc<Telemetry>,
    wanted: mpsc::Receiver<Vec<String>>,
    found: mpsc::Sender<Infos>,
}

/// The other end: what a collector found, and what it is to look up.
pub(crate) struct Feed {
    wanted: mpsc::Sender<Vec<String>>,
    found: mpsc::Receiver<Infos>,
}

impl Feed {
    /// What the next round or look-up brings; never, where there is none to come.
    pub(crate) async fn next(&mut self) -> Infos {
        match self.found.recv().await {
            Some(infos) => infos,
            None => std::future::pending().await,
        }
    }

    /// Asks for these instances by id, unless they are so many that a round costs less: the next one has them.
    /// Returns those that are asked for; of the others, too, the next round tells where too much waits already.
    pub(crate) fn ask_for<'a, 'b>(&self, ids: &'a [&'b str]) -> &'a [&'b str] {
        let batches = ids.chunks(MAX_IDS);
        if batches.len() > MOST_WAITING {
            return &[];
        }
        let owned = |batch: &[&str]| batch.iter().map(|&id| id.to_owned()).collect();
        let asked = batches.take_while(|batch| self.wanted.try_send(owned(batch)).is_ok()).map(<[_]>::len).sum();
        &ids[..asked]
    }
}

impl Collector {
    /// A collector that has asked for nothing yet, and what it will feed.
    pub(crate) fn new(client: Arc<Client>, settings: InstanceInfo, telemetry: Arc<Telemetry>) -> (Self, Feed) {
        let (ask, wanted) = mpsc::channel(MOST_WAITING);
        let (found, take) = mpsc::channel(1);
        telemetry.expect_infos();
        (Self { client, settings, telemetry, wanted, found }, Feed { wanted: ask, found: take })
    }

    /// Reads everything at once and then at every interval, and in between what it is asked for.
    pub(crate) async fn run(mut self) -> Infallible {
        let mut ticks = interval(self.settings.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let found = tokio::select! {
                _ = ticks.tick() => self.round().await,
                Some(ids) = self.wanted.recv() => self.look_up_new(&ids).await,
            };
            if let Some(infos) = found {
                // Nobody takes it any more only where the process ends.
                let _ = self.found.send(infos).await;
            }
        }
    }

    /// Reads everything once; `None` when a part of it could not be had, which is logged.
    pub(crate) async fn round(&self) -> Option<Infos> {
        let started = Instant::now();
        let round = self.api_round();
        let result = round.finish(self.read_all(&round)).await.map_err(advise);
        self.telemetry.infos_collected(result.is_ok());
        let duration = format!("{:.3}s", started.elapsed().as_secs_f64());
        match result {
            Ok(infos) => {
                tracing::info!(instances = infos.len(), duration, "instance metadata collected");
                Some(infos)
            }
            Err(error) => {
                let interval = humantime::format_duration(self.settings.interval);
                let next = format!("next round within {interval}, until then the previous metadata stays");
                log(&error, &next, "collecting instance metadata failed");
                None
            }
        }
    }

    async fn look_up_new(&self, ids: &[String]) -> Option<Infos> {
        let ids: Vec<_> = ids.iter().map(String::as_str).collect();
        let round = self.api_round();
        let found = round.finish(async {
            let session = round.session().await?;
            let mut reading = self.nothing_read();
            for batch in ids.chunks(batch_size::<InfoPage>(&session)) {
                reading.look_up(&session, 1, batch, &Budget::of(MOST_REQUESTS)).await?;
            }
            Ok(reading.findings.into_infos())
        });
        let next = "the next round reads the metadata of all instances";
        let failed = "looking up metadata of new instances failed";
        found.await.map_err(advise).inspect_err(|error| log(error, next, failed)).ok()
    }

    fn api_round(&self) -> Round<'_> {
        self.client.round("reading instance metadata", self.settings.timeout)
    }

    async fn read_all(&self, round: &Round<'_>) -> Result<Infos, ApiError> {
        let session = round.session().await?;
        let Some(named) = self.client.settings().instance_ids.as_deref() else {
            return self.walk(&session).await;
        };
        let named: Vec<_> = named.iter().map(String::as_str).collect();
        self.read_named(&session, &named).await
    }

    async fn walk(&self, session: &Session<'_>) -> Result<Infos, ApiError> {
        let mut reading = self.nothing_read();
        let totals = walk(session, self.width(), |page: &InfoPage| reading.take(page.entries())).await?;
        reading.into_infos(totals)
    }

    async fn read_named(&self, session: &Session<'_>, ids: &[&str]) -> Result<Infos, ApiError> {
        let mut reading = self.nothing_read();
        reading.look_up(session, self.width(), ids, &Budget::unlimited()).await?;
        Ok(reading.findings.into_infos())
    }

    fn nothing_read(&self) -> Reading<'_> {
        let (tags, shard) = (&self.settings.tags, self.client.settings().shard);
        let (findings, others) = (Findings::new(tags.len()), Others::default());
        Reading { tags, shard, findings, others }
    }

    /// Requests to have under way at a time; the rest is for statuses.
    fn width(&self) -> usize {
        (self.client.settings().concurrency / 2).max(1)
    }
}

/// What was read so far.
struct Reading<'a> {
    tags: &'a [Tag],
    shard: Shard,
    findings: Findings,
    others: Others,
}

impl Reading<'_> {
    fn take<'e>(&mut self, entries: impl Iterator<Item = InfoEntry<'e>>) -> Result<(), ApiError> {
        for entry in entries {
            if let Some(hash) = self.shard.foreign(entry.id) {
                self.others.push(hash, self.shard.most_instances()).map_err(overflow)?;
                continue;
            }
            let tags = self.tags.iter().map(|tag| entry.tag(&tag.key));
            let pushed = self.findings.push(entry.id, entry.name, entry.shared, tags, entry.expires);
            pushed.map_err(overflow)?;
        }
        Ok(())
    }

    /// Adds the metadata of `ids`, as far as the budget goes.
    async fn look_up(
        &mut self,
        session: &Session<'_>,
        width: usize,
        ids: &[&str],
        budget: &Budget,
    ) -> Result<(), ApiError> {
        let looked_up = look_up(session, width, ids, budget, |page: &InfoPage, requested: &[&str]| {
            self.take(page.entries().filter(|entry| requested.contains(&entry.id)))
        });
        match looked_up.await?.open {
            Some(Open::Unanswered(error)) => Err(error),
            _ => Ok(()),
        }
    }

    /// A list that changes hides a few instances from a walk, which the next shows. Where many are missing, paging does
    /// not work, which must not pass for a success.
    fn into_infos(self, totals: Totals) -> Result<Infos, ApiError> {
        let total = totals.range.map_or(0, |(_, most)| most);
        if totals.unusable > 0 {
            tracing::warn!(
                entries = totals.unusable,
                "entries without a usable instanceId: their metadata is not shown"
            );
        }
        let infos = self.findings.into_infos();
        let found = (infos.len() + self.others.distinct().len() + totals.unusable) as u64;
        let missing = total.saturating_sub(found);
        if missing > 0 {
            tracing::warn!(missing, "DescribeInstances counts more instances than its pages have");
        }
        if is_too_many(missing, total) {
            let detail = format!(
                "the pages of DescribeInstances have {found} different instances, though the API counts {total}: the \
                 previous metadata stays"
            );
            return Err(ApiError::new(Kind::Inconsistent, detail));
        }
        Ok(infos)
    }
}

/// A round takes as long as its interval, or a poll where that may take longer.
fn advise(mut error: ApiError) -> ApiError {
    if error.kind == Kind::Deadline {
        error.advice = Some(Advice::MetadataDeadline);
    }
    error
}

fn log(error: &ApiError, next: &str, message: &str) {
    tracing::error!(
        action = error.request.map(|(action, _)| action.to_string()),
        part = error.request.map(|(_, part)| part.to_string()),
        code = error.code.as_deref(),
        requestId = error.request_id.as_deref(),
        error = %error,
        next,
        "{message}"
    );
}
