//! tick → collect → render → publish.
//!
//! Invariant: polls never overlap, a failed one publishes nothing, and a late one delays the next instead of piling
//! up. It must not know how a request is sent or how an answer is served.

mod names;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};

pub(crate) use self::names::Names;
use crate::api::{ApiError, Client, Kind, Part};
use crate::clock::{Clock, Moment};
use crate::config::Poll;
use crate::exposition;
use crate::inventory::{self, Collection, History};
use crate::model::{Changes, Infos, Inventory, OTHER_STATUS, StatusSeries, Statuses};
use crate::snapshot::{Count, Published, Rendered, Report, Snapshot};
use crate::telemetry::Telemetry;

/// Keeps one account's snapshot up to date.
pub(crate) struct Poller {
    client: Arc<Client>,
    settings: Poll,
    series: StatusSeries,
    /// The statuses that are remembered from poll to poll.
    statuses: Statuses,
    /// What the last successful poll published.
    rendered: Option<Arc<Rendered>>,
    /// When that poll ended.
    taken_at: Moment,
    /// The number of polls in a row whose pages had too few instances.
    short_polls: u32,
    /// Whether to poll as a new process would: look-ups of what was known do not work.
    forgets: bool,
    /// The failed polls since the last successful one.
    outage: Option<Outage>,
    /// `None` where nothing but statuses is read.
    names: Option<Names>,
    published: Arc<Published>,
    telemetry: Arc<Telemetry>,
    clock: Clock,
}

/// Polls that failed in a row.
struct Outage {
    /// When the first of them ended.
    since: Moment,
    failures: u32,
    /// How the last of them failed, and whether there was data to serve.
    state: (Kind, bool),
}

impl Poller {
    /// A poller that has not polled yet.
    pub(crate) fn new(
        client: Arc<Client>,
        settings: Poll,
        series: StatusSeries,
        names: Option<Names>,
        published: Arc<Published>,
        telemetry: Arc<Telemetry>,
        clock: Clock,
    ) -> Self {
        let service = client.settings().service;
        let statuses = Statuses::documented(service);
        telemetry.expect_transitions(service.documented_statuses());
        Self {
            client,
            settings,
            series,
            statuses,
            rendered: None,
            taken_at: clock.now(),
            short_polls: 0,
            forgets: false,
            outage: None,
            names,
            published,
            telemetry,
            clock,
        }
    }

    /// Polls at once, then at every interval and at every change of `reload`, for as long as the process lives.
    pub(crate) async fn run(mut self, mut reload: watch::Receiver<()>) -> Infallible {
        let mut ticks = interval(self.settings.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                Ok(()) = reload.changed() => ticks.reset(),
                found = next(&mut self.names) => {
                    self.inform(found);
                    continue;
                }
            }
            if let Err(error) = self.poll().await {
                self.log_failure(&error);
            }
        }
    }

    /// The first failure is an error in the log, and so is every tenth, each of another kind, and the one with which the
    /// data has become too old: an outage of hours must neither fill the log nor vanish from it.
    fn log_failure(&mut self, error: &ApiError) {
        let now = self.clock.now();
        let state = (error.kind, self.is_fresh());
        let outage = self.outage.get_or_insert(Outage { since: now, failures: 0, state });
        let is_another = std::mem::replace(&mut outage.state, state) != state;
        outage.failures += 1;
        let (failures, is_news) =
            (outage.failures, is_another || outage.failures == 1 || outage.failures.is_multiple_of(10));
        let interval = humantime::format_duration(self.settings.interval);
        let meanwhile = match (&self.rendered, self.is_fresh()) {
            (None, _) => "no instance series yet",
            (Some(_), true) => "the last good answer stays",
            (Some(_), false) => "the last good answer is too old, its instance series are gone",
        };
        let next = format!("next poll within {interval}, until then {meanwhile}");
        macro_rules! log {
            ($level:ident) => {
                tracing::$level!(
                    action = error.request.map(|(action, _)| action.to_string()),
                    part = error.request.map(|(_, part)| part.to_string()),
                    code = error.code.as_deref(),
                    requestId = error.request_id.as_deref(),
                    error = %error,
                    failures,
                    next,
                    "poll failed"
                )
            };
        }
        if is_news { log!(error) } else { log!(debug) }
    }

    /// Polls once and publishes what it found.
    ///
    /// # Errors
    /// When the inventory could not be had; then what was published before stays.
    pub(crate) async fn poll(&mut self) -> Result<(), ApiError> {
        let started = Instant::now();
        self.published.beat(started);
        // What a failed poll saw must not stay: only a published status is remembered.
        let mut statuses = self.statuses.clone();
        let collected = self.collect(&mut statuses).await;
        let ended = self.clock.now();
        let took = ended.monotonic - started;
        self.published.beat(ended.monotonic);
        match collected {
            Ok(collection) => {
                self.publish(collection, statuses, ended, took);
                Ok(())
            }
            Err(error) => {
                self.report_failure(&error, ended, took);
                Err(error)
            }
        }
    }

    /// Publishes what was found besides statuses, beside those of the last successful poll.
    pub(crate) fn inform(&mut self, found: Infos) {
        let inventory = self.rendered.as_ref().map(|rendered| &*rendered.inventory);
        let changed = self.names.as_mut().is_some_and(|names| names.take(found, inventory));
        let snapshot = self.rendered.as_ref().filter(|_| changed).map(|rendered| self.snapshot(rendered));
        self.published.update(|state| {
            if let Some(snapshot) = snapshot {
                state.snapshot = Some(snapshot);
            }
        });
    }

    fn snapshot(&self, rendered: &Arc<Rendered>) -> Arc<Snapshot> {
        let infos = self.names.as_ref().and_then(Names::rendered);
        Arc::new(Snapshot { rendered: Arc::clone(rendered), infos, taken_at: self.taken_at })
    }

    fn is_fresh(&self) -> bool {
        self.clock.now().since(self.taken_at) <= self.settings.max_staleness
    }

    fn history(&self) -> History<'_> {
        let rendered = self.rendered.as_ref().filter(|_| !self.forgets);
        History { inventory: rendered.map(|rendered| &*rendered.inventory), short_polls: self.short_polls }
    }

    /// If look-ups of known instances fail for so long that nothing is served any more, these are no longer looked up.
    /// Otherwise nothing that one poll found could keep all later ones from succeeding.
    fn is_stuck(&self, error: &ApiError) -> bool {
        matches!(error.request, Some((_, Part::Ids(_)))) && !self.is_fresh()
    }

    async fn collect(&self, statuses: &mut Statuses) -> Result<Collection, ApiError> {
        let named = self.client.settings().instance_ids.as_deref();
        let round = self.client.round("the poll", self.settings.timeout);
        let collected = async {
            let session = round.session().await?;
            let Some(named) = named else {
                return inventory::collect_all(&session, self.history(), statuses).await;
            };
            let named: Vec<_> = named.iter().map(String::as_str).collect();
            inventory::collect_named(&session, &named, self.history(), statuses).await
        };
        round.finish(collected).await
    }

    fn publish(&mut self, collection: Collection, statuses: Statuses, ended: Moment, took: Duration) {
        let Collection { inventory, pages, corrections, unusable, missing, is_short, fell_back } = collection;
        let (inventory, previous) = (Arc::new(inventory), self.rendered.take());
        let changes = previous
            .as_ref()
            .map(|previous| previous.inventory.changes_to(&previous.statuses, &inventory, &statuses))
            .unwrap_or_default();
        self.warn_of_new_statuses(&inventory, &statuses);
        self.statuses.remember(&statuses);
        let transitions = previous.as_ref().map_or_else(Vec::new, |previous| {
            let label = |statuses: &Statuses, status| self.label(statuses.name(status)).to_owned();
            let named = |(&(from, to), &count)| (label(&previous.statuses, from), label(&statuses, to), count);
            changes.transitions.iter().map(named).collect()
        });
        let is_first = previous.is_none();
        let before = previous.as_ref().map(|previous| &*previous.inventory);
        self.warn(before, &inventory, &changes, unusable, missing);
        if let Some(names) = &mut self.names {
            names.follow(before, &inventory);
        }
        let rendered = match previous {
            // Nothing changed: the old bytes under a new time.
            Some(rendered) if rendered.is_of(&inventory, &statuses) => rendered,
            previous => {
                let length = previous.map_or(0, |previous| previous.text.bytes.len());
                let text = exposition::render(&inventory, &statuses, self.series, length);
                tracing::debug!(bytes = text.len(), "instance series rendered");
                Arc::new(Rendered::new(text, inventory, statuses))
            }
        };
        let instances = rendered.inventory.len();
        self.taken_at = ended;
        self.short_polls = if is_short { self.short_polls + 1 } else { 0 };
        self.forgets = false;
        let snapshot = self.snapshot(&rendered);
        self.rendered = Some(rendered);
        self.published.update(|state| {
            for (from, to, count) in &transitions {
                self.telemetry.transitions(from, to, *count);
            }
            self.telemetry.corrected(corrections);
            self.telemetry.missing(missing);
            if fell_back {
                self.telemetry.fell_back();
            }
            self.telemetry.poll_ended(Ok(()), took, ended.wall);
            state.snapshot = Some(snapshot);
            state.report = Some(Report { at: ended.wall, outcome: Ok(Count { instances, missing }) });
        });
        if let Some(Outage { since, failures, .. }) = self.outage.take() {
            let outage = Duration::from_secs(ended.since(since).as_secs());
            tracing::info!(failures, "recovered after {}", humantime::format_duration(outage));
        }
        log_success(is_first, instances, &changes, corrections, pages, took);
    }

    fn report_failure(&mut self, error: &ApiError, ended: Moment, took: Duration) {
        self.forgets |= self.is_stuck(error);
        self.published.update(|state| {
            if error.missing > 0 {
                self.telemetry.missing(error.missing.into());
            }
            self.telemetry.poll_ended(Err(error.kind), took, ended.wall);
            state.report = Some(Report { at: ended.wall, outcome: Err(error.to_string()) });
        });
    }

    /// The label value for a status. It is bounded: the API may send a new word at every poll.
    fn label<'a>(&self, status: &'a str) -> &'a str {
        if self.statuses.find(status).is_some() { status } else { OTHER_STATUS }
    }

    /// Warns about what a successful poll found that an operator may not expect.
    fn warn(
        &self,
        before: Option<&Inventory>,
        inventory: &Inventory,
        changes: &Changes,
        unusable: usize,
        missing: u64,
    ) {
        let had = before.map_or(0, Inventory::len);
        if changes.gone > had / 2 {
            tracing::warn!(gone = changes.gone, of = had, left = inventory.len(), "most instances are gone at once");
        }
        if unusable > 0 {
            tracing::warn!(entries = unusable, "the API lists entries without a usable instanceId");
        }
        if inventory.is_empty() && before.is_none_or(|before| !before.is_empty()) {
            tracing::warn!("{}", self.client.settings().nothing_found());
        }
        self.warn_of_unknown_ids(before, inventory, missing);
    }

    /// A status that is not documented, or none at all, is more likely the sign of a changed API than of an instance.
    fn warn_of_new_statuses(&self, inventory: &Inventory, statuses: &Statuses) {
        let is_new = |name: &&str| self.statuses.find(name).is_none();
        if !statuses.names().any(|name| is_new(&name)) {
            return;
        }
        let counts = statuses.names().zip(inventory.count_by_status(statuses));
        let new: Vec<_> = counts.filter(|(name, count)| is_new(name) && *count > 0).collect();
        let instances: usize = new.iter().map(|(_, count)| count).sum();
        if let Some(&(status, _)) = new.first() {
            let statuses = new.len();
            tracing::warn!(
                instances,
                statuses,
                status,
                "instances have an undocumented status, or none: check --zenlayer.api-version"
            );
        }
    }

    /// An id that was named and does not exist is more likely mistyped than watched for.
    fn warn_of_unknown_ids(&self, before: Option<&Inventory>, inventory: &Inventory, missing: u64) {
        let named = self.client.settings().instance_ids.as_ref().map_or(0, Vec::len);
        let is_news = before.is_none_or(|before| before.len() != inventory.len());
        let unknown = named.saturating_sub(inventory.len() + usize::try_from(missing).unwrap_or(usize::MAX));
        if !inventory.is_empty() && unknown > 0 && is_news {
            tracing::warn!(unknown, named, "instances of --zenlayer.instance-ids do not exist");
        }
    }
}

/// A poll that changed nothing is no news.
fn log_success(
    is_first: bool,
    instances: usize,
    Changes { transitions, appeared, gone }: &Changes,
    corrections: usize,
    pages: usize,
    took: Duration,
) {
    let changed = transitions.values().sum::<u64>();
    macro_rules! log {
        ($level:ident) => {
            tracing::$level!(
                instances,
                changed,
                appeared,
                gone,
                corrections,
                pages,
                duration = format!("{:.3}s", took.as_secs_f64()),
                "poll succeeded"
            )
        };
    }
    if is_first || changed > 0 || *appeared > 0 || *gone > 0 { log!(info) } else { log!(debug) }
}

async fn next(names: &mut Option<Names>) -> Infos {
    match names {
        Some(names) => names.next().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Backoff;
    use crate::config::{Command, Config, Environment, Target};
    use crate::model::Service;
    use crate::simulator::{Knobs, Simulator};
    use crate::snapshot::RenderedInfos;

    fn config(simulator: &Simulator) -> Config {
        let flags = ["--demo", "--collector.instance-info"].map(Into::into);
        let Ok(Command::Serve(config)) = Command::read(flags, &Environment::default()) else { panic!("no settings") };
        let target = Target::Account { endpoint: simulator.endpoint(), credentials: simulator.credentials() };
        Config { target, ..config }
    }

    fn served(published: &Published) -> (Arc<Rendered>, Arc<RenderedInfos>) {
        let snapshot = published.fresh(Clock::default().now()).unwrap();
        (Arc::clone(&snapshot.rendered), snapshot.infos.clone().unwrap())
    }

    /// What is rendered, and compressed, once is the same object as long as it is not done again.
    #[tokio::test]
    async fn only_what_changed_is_rendered_again() {
        let simulator = Simulator::start(Knobs::still(Service::Vm, 50)).await.unwrap();
        let exporter =
            crate::Exporter::start(&config(&simulator), Backoff::default(), Clock::default(), &Arc::default())
                .await
                .unwrap();
        let crate::Exporter { mut poller, collector, published, .. } = exporter;
        let collector = collector.unwrap();
        // What comes before the first poll is published with it.
        poller.inform(collector.round().await.unwrap());
        assert!(published.fresh(Clock::default().now()).is_none());
        poller.poll().await.unwrap();
        let (statuses, infos) = served(&published);
        assert_eq!(infos.infos.len(), 50);
        infos.text.zipped().await;

        poller.inform(collector.round().await.unwrap());
        poller.poll().await.unwrap();
        let (same_statuses, same_infos) = served(&published);
        assert!(Arc::ptr_eq(&statuses, &same_statuses) && Arc::ptr_eq(&infos, &same_infos), "nothing has changed");

        simulator.with_fleet(|fleet| fleet.machines[0].status = Some("STOPPED".to_owned()));
        poller.poll().await.unwrap();
        let (new_statuses, same_infos) = served(&published);
        assert!(!Arc::ptr_eq(&statuses, &new_statuses) && Arc::ptr_eq(&infos, &same_infos), "a status has changed");

        simulator.with_fleet(|fleet| fleet.machines[0].details = Some(Box::default()));
        poller.inform(collector.round().await.unwrap());
        let (same_statuses, new_infos) = served(&published);
        assert!(Arc::ptr_eq(&new_statuses, &same_statuses) && !Arc::ptr_eq(&infos, &new_infos), "a name has changed");

        simulator.with_fleet(|fleet| fleet.machines.pop());
        poller.poll().await.unwrap();
        let (_, fewer) = served(&published);
        assert_eq!(fewer.infos.len(), 49);
        poller.inform(collector.round().await.unwrap());
        assert!(Arc::ptr_eq(&fewer, &served(&published).1), "what is gone was dropped already");
    }
}
