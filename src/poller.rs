//! tick → collect → render → publish.
//!
//! Invariant: polls never overlap, a failed one publishes nothing, and a late one delays the next instead of piling
//! up. It must not know how a request is sent or how an answer is served.

mod names;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

pub(crate) use self::names::Names;
use crate::api::{ApiError, Client, Kind};
use crate::config::Poll;
use crate::exposition;
use crate::inventory::{self, Collection};
use crate::model::{Infos, Inventory, StatusSeries, Statuses};
use crate::snapshot::{Published, Rendered, Report, Snapshot};
use crate::telemetry::Telemetry;

/// Keeps one account's snapshot up to date.
pub(crate) struct Poller {
    client: Arc<Client>,
    settings: Poll,
    series: StatusSeries,
    statuses: Statuses,
    /// What the last successful poll published.
    rendered: Option<Arc<Rendered>>,
    /// When that poll ended.
    taken_at: Instant,
    /// `None` where nothing but statuses is read.
    names: Option<Names>,
    published: Arc<Published>,
    telemetry: Arc<Telemetry>,
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
            taken_at: Instant::now(),
            names,
            published,
            telemetry,
        }
    }

    /// Polls at once and then at every interval, for as long as the process lives.
    pub(crate) async fn run(mut self) -> Infallible {
        let mut ticks = interval(self.settings.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                found = next(&mut self.names) => {
                    self.inform(found);
                    continue;
                }
            }
            if let Err(error) = self.poll().await {
                let interval = humantime::format_duration(self.settings.interval);
                let meanwhile = match (self.published.is_ready(), self.published.fresh(Instant::now()).is_some()) {
                    (false, _) => "no instance series yet",
                    (true, true) => "the last good answer stays",
                    (true, false) => "the last good answer is too old, its instance series are gone",
                };
                tracing::error!(
                    action = error.request.map(|(action, _)| action.to_string()),
                    part = error.request.map(|(_, part)| part.to_string()),
                    code = error.code.as_deref(),
                    requestId = error.request_id.as_deref(),
                    error = %error,
                    next = format!("next poll within {interval}, until then {meanwhile}"),
                    "poll failed"
                );
            }
        }
    }

    /// Polls once and publishes what it brought.
    ///
    /// # Errors
    /// When the inventory could not be had; then what was published before stays.
    pub(crate) async fn poll(&mut self) -> Result<(), ApiError> {
        let started = Instant::now();
        self.published.beat(started);
        // What a failed poll saw must not stay: only a published status is a known one.
        let mut statuses = self.statuses.clone();
        let result = self.collect(&mut statuses).await;
        if result.is_err() && statuses.is_full() {
            self.forget();
        } else if result.is_ok() {
            self.statuses = statuses;
        }
        let ended = Instant::now();
        let (took, at) = (ended - started, SystemTime::now());
        self.published.beat(ended);
        let result = result.map(|collection| self.publish(collection, ended, took));
        let kind = result.as_ref().map(|_| ()).map_err(|error| error.kind);
        self.telemetry.poll_ended(kind, took, at);
        self.published.report(Report { at, outcome: result.as_ref().copied().map_err(ToString::to_string) });
        result.map(|_| ())
    }

    /// Publishes what was found besides statuses, beside those of the last successful poll.
    pub(crate) fn inform(&mut self, found: Infos) {
        let inventory = self.rendered.as_ref().map(|rendered| &*rendered.inventory);
        let changed = self.names.as_mut().is_some_and(|names| names.take(found, inventory));
        if let (true, Some(rendered)) = (changed, &self.rendered) {
            self.put_up(Arc::clone(rendered));
        }
        self.published.count_round();
    }

    fn put_up(&self, rendered: Arc<Rendered>) {
        let infos = self.names.as_ref().and_then(Names::rendered);
        self.published.publish(Snapshot { rendered, infos, taken_at: self.taken_at });
    }

    fn previous(&self) -> Option<&Inventory> {
        self.rendered.as_ref().map(|rendered| &*rendered.inventory)
    }

    /// Starts anew, where more statuses have come by than can be told apart: those that went again make room.
    fn forget(&mut self) {
        self.statuses = Statuses::documented(self.client.settings().service);
        self.rendered = None;
    }

    async fn collect(&self, statuses: &mut Statuses) -> Result<Collection, ApiError> {
        let named = self.client.settings().instance_ids.as_deref();
        let collected = async {
            let session = self.client.session().await?;
            let Some(named) = named else {
                return inventory::collect_all(&session, self.previous(), statuses).await;
            };
            let named: Vec<_> = named.iter().map(String::as_str).collect();
            inventory::collect_named(&session, &named, statuses).await
        };
        timeout(self.settings.timeout, collected).await.unwrap_or_else(|_| {
            let limit = humantime::format_duration(self.settings.timeout);
            Err(ApiError::new(Kind::Deadline, format!("the poll did not finish within {limit}")))
        })
    }

    /// Returns how many instances there are.
    fn publish(&mut self, collection: Collection, ended: Instant, took: Duration) -> usize {
        let Collection { inventory, corrections, pages } = collection;
        let inventory = Arc::new(inventory);
        let changes = self.previous().map(|previous| previous.changes_to(&inventory)).unwrap_or_default();
        for &(from, to) in &changes.transitions {
            self.telemetry.transition(self.statuses.name(from), self.statuses.name(to));
        }
        self.telemetry.corrected(corrections);
        self.warn_of_unknown_ids(&inventory);
        if let Some(names) = &mut self.names {
            names.follow(self.rendered.as_ref().map(|rendered| &*rendered.inventory), &inventory);
        }
        let rendered = match self.rendered.take() {
            // Nothing changed: the old bytes under a new time.
            Some(rendered) if rendered.is_of(&inventory, &self.statuses) => rendered,
            _ => {
                let text = exposition::render(&inventory, &self.statuses, self.series);
                tracing::debug!(bytes = text.len(), "instance series rendered");
                Arc::new(Rendered::new(text, inventory, self.statuses.clone()))
            }
        };
        let instances = rendered.inventory.len();
        self.rendered = Some(Arc::clone(&rendered));
        self.taken_at = ended;
        self.put_up(rendered);
        tracing::info!(
            instances,
            changed = changes.transitions.len(),
            appeared = changes.appeared,
            gone = changes.gone,
            corrections,
            pages,
            duration = format!("{:.3}s", took.as_secs_f64()),
            "poll succeeded"
        );
        instances
    }

    /// An id that was named and does not exist is more likely mistyped than watched for.
    fn warn_of_unknown_ids(&self, inventory: &Inventory) {
        let named = self.client.settings().instance_ids.as_ref().map_or(0, Vec::len);
        let is_news = self.previous().is_none_or(|previous| previous.len() != inventory.len());
        if inventory.len() < named && is_news {
            let unknown = named - inventory.len();
            tracing::warn!(unknown, named, "instances of --zenlayer.instance-ids do not exist");
        }
    }
}

async fn next(names: &mut Option<Names>) -> Infos {
    match names {
        Some(names) => names.next().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::api::Backoff;
    use crate::config::{Command, Config, Flags, Target};
    use crate::model::Service;
    use crate::simulator::{Knobs, Simulator};
    use crate::snapshot::RenderedInfos;

    fn config(simulator: &Simulator) -> Config {
        let flags = Flags::parse_from(["zenlayer-exporter", "--demo", "--collector.instance-info"]);
        let Ok(Command::Serve(config)) = Command::check(&flags, &|_| None) else { panic!("the settings are wrong") };
        let target = Target::Account { endpoint: simulator.endpoint(), credentials: simulator.credentials() };
        Config { target, ..config }
    }

    fn served(published: &Published) -> (Arc<Rendered>, Arc<RenderedInfos>) {
        let snapshot = published.fresh(Instant::now()).unwrap();
        (Arc::clone(&snapshot.rendered), snapshot.infos.clone().unwrap())
    }

    /// What is rendered, and compressed, once is the same object as long as it is not done again.
    #[tokio::test]
    async fn only_what_changed_is_rendered_again() {
        let simulator = Simulator::start(Knobs::still(Service::Vm, 50)).await.unwrap();
        let exporter = crate::Exporter::start(&config(&simulator), Backoff::default(), &Arc::default()).await.unwrap();
        let crate::Exporter { mut poller, collector, published, .. } = exporter;
        let collector = collector.unwrap();
        // What comes before the first poll is published with it.
        poller.inform(collector.round().await.unwrap());
        assert!(published.fresh(Instant::now()).is_none());
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
