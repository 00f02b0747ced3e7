//! A list that changes while it is read: what was there throughout is never missed, and nothing is twice.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{Exporter, config, held};
use proptest::prelude::*;
use serde_json::json;
use zenlayer_exporter::api::wire::{Answer, read_answer};
use zenlayer_exporter::api::{ApiError, Backoff, Kind, Page};
use zenlayer_exporter::inventory::{Collection, LookUp, Source, collect_all};
use zenlayer_exporter::model::{Inventory, Service, Statuses};
use zenlayer_exporter::shard::Shard;
use zenlayer_exporter::simulator::{Knobs, Simulator};

fn ids(held: &BTreeSet<(String, String)>) -> BTreeSet<String> {
    held.iter().map(|(id, _)| id.clone()).collect()
}

#[tokio::test]
async fn who_lives_through_constant_change_is_in_every_scrape() {
    let simulator = Simulator::start(Knobs::still(Service::Vm, 5000)).await.unwrap();
    let mut config = config(&simulator, &["--zenlayer.page-size=250", "--zenlayer.concurrency=4"]);
    config.poll.interval = Duration::from_millis(20);
    let exporter = Exporter::ready(config).await;
    let before = ids(&held(&simulator));
    simulator.set(|knobs| knobs.churn = true);
    let mut scrapes = Vec::new();
    for _ in 0..20 {
        scrapes.push(ids(&exporter.polls(1).await.instances()));
    }
    let last = exporter.metrics().await;
    let after = ids(&held(&simulator));
    let survivors: BTreeSet<_> = before.intersection(&after).cloned().collect();
    assert!(survivors.len() > 4000 && survivors.len() < 4800, "{} of 5000 live on", survivors.len());
    for (number, scrape) in scrapes.iter().enumerate() {
        let missed: Vec<_> = survivors.difference(scrape).collect();
        assert!(missed.is_empty(), "scrape {number} misses {missed:?}");
    }
    let success = [("outcome", "success")];
    assert_eq!(
        last.value("zenlayer_exporter_polls_total", &success),
        Some(last.sum("zenlayer_exporter_polls_total")),
        "a poll under constant change ends and publishes"
    );
    assert!(
        last.value("zenlayer_exporter_poll_corrections_total", &[]) > Some(0.0),
        "paging alone would have missed some"
    );
}

#[tokio::test]
async fn a_limit_of_five_a_second_is_learned() {
    let knobs = Knobs { rate_limit: Some(5), ..Knobs::still(Service::Vm, 2000) };
    let simulator = Simulator::start(knobs).await.unwrap();
    let exporter = Exporter::start_with(config(&simulator, &["--zenlayer.page-size=100"]), Backoff::default()).await;
    let succeeded = |polls| {
        move |metrics: &common::Metrics| {
            metrics.value("zenlayer_exporter_polls_total", &[("outcome", "success")]) >= Some(polls)
        }
    };
    let metrics = exporter.until(succeeded(1.0)).await;
    let first = simulator.tally();
    assert_eq!(metrics.instances(), held(&simulator));
    assert_eq!(metrics.sum("zenlayer_exporter_polls_total"), 1.0, "no poll failed");
    assert!(first.limited > 0, "the limit was never met");
    // Pauses alone, without fewer in flight and a gap between them, would have every second request refused.
    assert!(first.limited * 2 < first.answered, "{first:?}");
    exporter.until(succeeded(2.0)).await;
    let second = simulator.tally().limited - first.limited;
    assert!(second * 2 < first.limited, "{} refused at first, then {second}", first.limited);
}

/// What happens to the list after a page was read.
#[derive(Debug, Clone)]
enum Event {
    Delete(usize),
    Create(usize),
    Change(usize),
    /// One goes and another comes before all others, so that every count stays as it was.
    Swap(usize),
    Nothing,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => any::<usize>().prop_map(Event::Delete),
        4 => any::<usize>().prop_map(Event::Create),
        1 => any::<usize>().prop_map(Event::Change),
        1 => any::<usize>().prop_map(Event::Swap),
        3 => Just(Event::Nothing),
    ]
}

/// An account in memory, whose list changes by a script while it is read.
struct Account {
    state: Mutex<State>,
    page_size: usize,
    concurrency: usize,
    shard: Shard,
    missing_is_error: bool,
    look_ups: AtomicUsize,
    /// How often each page waits before it is read, in turn.
    delays: Vec<u8>,
    asked: AtomicUsize,
}

struct State {
    list: Vec<(String, &'static str)>,
    script: std::vec::IntoIter<Event>,
    created: usize,
    /// Every status each id has had since the poll began.
    seen: BTreeMap<String, BTreeSet<&'static str>>,
}

impl State {
    fn step(&mut self) {
        let length = self.list.len();
        match self.script.next() {
            Some(Event::Delete(at)) if length > 0 => drop(self.list.remove(at % length)),
            Some(Event::Create(at)) => self.create(at % (length + 1)),
            Some(Event::Swap(at)) if length > 0 => {
                self.list.remove(at % length);
                self.create(0);
            }
            Some(Event::Change(at)) if length > 0 => self.list[at % length].1 = "STOPPED",
            _ => {}
        }
        self.note();
    }

    fn create(&mut self, at: usize) {
        self.created += 1;
        self.list.insert(at, (format!("new {}", self.created), "PENDING"));
    }

    fn note(&mut self) {
        for (id, status) in &self.list {
            self.seen.entry(id.clone()).or_default().insert(status);
        }
    }
}

fn page(total: usize, entries: &[(String, &str)]) -> Page {
    let data_set: Vec<_> =
        entries.iter().map(|(id, status)| json!({"instanceId": id, "instanceStatus": status})).collect();
    let body = json!({"totalCount": total, "dataSet": data_set}).to_string();
    let Answer::Page(page) = read_answer(body.as_bytes()).unwrap() else { panic!("not a page: {body}") };
    page
}

impl Account {
    async fn delay(&self) {
        let turn = self.asked.fetch_add(1, Ordering::Relaxed);
        for _ in 0..self.delays[turn % self.delays.len()] {
            tokio::task::yield_now().await;
        }
    }
}

impl LookUp<Page> for Account {
    async fn look_up(&self, ids: &[&str]) -> Result<Page, ApiError> {
        self.delay().await;
        self.look_ups.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state.lock().unwrap();
        let entries: Vec<_> = state.list.iter().filter(|(id, _)| ids.contains(&&**id)).cloned().collect();
        state.step();
        if self.missing_is_error && entries.len() < ids.len() {
            return Err(ApiError::new(Kind::NotFound, "one does not exist"));
        }
        Ok(page(entries.len(), &entries))
    }
}

impl Source for Account {
    async fn page(&self, number: u64) -> Result<Page, ApiError> {
        self.delay().await;
        let mut state = self.state.lock().unwrap();
        let start = (usize::try_from(number).unwrap() - 1) * self.page_size;
        let entries: Vec<_> = state.list.iter().skip(start).take(self.page_size).cloned().collect();
        let page = page(state.list.len(), &entries);
        state.step();
        Ok(page)
    }

    fn page_size(&self) -> usize {
        self.page_size
    }

    fn concurrency(&self) -> usize {
        self.concurrency
    }

    fn shard(&self) -> Shard {
        self.shard
    }
}

/// An account whose list goes through `script`, an event after each answer.
fn account(instances: usize, page_size: usize, script: Vec<Event>) -> Account {
    let list = (0..instances).map(|n| (format!("old {n:03}"), "RUNNING")).collect();
    let state = State { list, script: script.into_iter(), created: 0, seen: BTreeMap::new() };
    Account {
        state: state.into(),
        page_size,
        concurrency: 1,
        shard: Shard::WHOLE,
        missing_is_error: false,
        look_ups: 0.into(),
        delays: vec![0],
        asked: 0.into(),
    }
}

#[tokio::test]
async fn a_first_walk_that_shows_a_change_is_merged_with_a_second() {
    // One goes between the first page and the second, so that the next one is on neither.
    let account = account(30, 10, vec![Event::Delete(0)]);
    let mut statuses = Statuses::documented(Service::Vm);
    let collection = poll(&account, None, &mut statuses).await;
    assert!(names(&collection.inventory).contains("old 010"), "{:?}", names(&collection.inventory));
    assert_eq!(collection.pages, 6, "two walks of three pages");
}

#[tokio::test]
async fn a_shard_tells_by_all_instances_whether_the_list_changed() {
    // One goes from the end and one comes to the front: every page counts thirty, and one entry is read twice.
    for number in 0..3 {
        let shard = Shard::new(number, 3).unwrap();
        let at_rest = Account { shard, ..account(30, 10, Vec::new()) };
        let mut statuses = Statuses::documented(Service::Vm);
        let collection = poll(&at_rest, None, &mut statuses).await;
        assert_eq!(collection.pages, 3, "one walk");
        let changing = Account { shard, ..account(30, 10, vec![Event::Swap(29)]) };
        let collection = poll(&changing, None, &mut statuses).await;
        assert_eq!(collection.pages, 6, "two walks");
        assert_eq!(names(&collection.inventory).contains("new 1"), shard.owns("new 1"));
    }
}

#[tokio::test]
async fn what_a_second_walk_finds_of_other_shards_counts_as_found() {
    // Each page of the first walk repeats an entry of the one before, and all that came are missed.
    let script = vec![Event::Swap(399); 19];
    let shard = Shard::new(1, 3).unwrap();
    let account = Account { shard, ..account(400, 20, script) };
    let collection = poll(&account, None, &mut Statuses::documented(Service::Vm)).await;
    assert_eq!(collection.pages, 40, "two walks");
    assert!(names(&collection.inventory).iter().all(|id| shard.owns(id)));
}

/// Polls, deletes all but some, and polls again. Returns what that poll brought and its look-ups.
async fn poll_after_deletion(account: &Account, left: usize) -> (Collection, usize) {
    let mut statuses = Statuses::documented(Service::Vm);
    let before = poll(account, None, &mut statuses).await;
    account.state.lock().unwrap().list.truncate(left);
    let after = poll(account, Some(&before.inventory), &mut statuses).await;
    assert_eq!(after.inventory.len(), left);
    (after, account.look_ups.load(Ordering::Relaxed))
}

#[tokio::test]
async fn so_many_gone_at_once_cost_one_more_walk_and_no_look_ups() {
    let (collection, look_ups) = poll_after_deletion(&account(5000, 1000, Vec::new()), 2500).await;
    assert_eq!((collection.pages, look_ups), (6, 0), "two walks of three pages");
}

#[tokio::test]
async fn look_ups_that_answer_not_found_do_not_add_up() {
    let account = Account { missing_is_error: true, ..account(2500, 1000, Vec::new()) };
    let (collection, look_ups) = poll_after_deletion(&account, 500).await;
    assert_eq!((collection.pages, look_ups), (2, 40), "twenty look-ups after each of two walks of a page");
}

#[tokio::test]
async fn a_page_that_is_short_once_is_read_again() {
    struct ShortOnce(Account, AtomicUsize);

    impl LookUp<Page> for ShortOnce {
        async fn look_up(&self, ids: &[&str]) -> Result<Page, ApiError> {
            self.0.look_up(ids).await
        }
    }

    impl Source for ShortOnce {
        async fn page(&self, number: u64) -> Result<Page, ApiError> {
            if number == 2 && self.1.fetch_add(1, Ordering::Relaxed) == 0 {
                return Ok(page(30, &[("old 010".to_owned(), "RUNNING")]));
            }
            self.0.page(number).await
        }

        fn page_size(&self) -> usize {
            self.0.page_size()
        }

        fn concurrency(&self) -> usize {
            self.0.concurrency()
        }

        fn shard(&self) -> Shard {
            self.0.shard()
        }
    }

    let source = ShortOnce(account(30, 10, Vec::new()), AtomicUsize::new(0));
    let collection = collect_all(&source, None, &mut Statuses::documented(Service::Vm)).await.unwrap();
    assert_eq!(collection.inventory.len(), 30);
}

fn names(inventory: &Inventory) -> BTreeSet<String> {
    inventory.iter().map(|instance| instance.id.to_owned()).collect()
}

async fn poll(account: &Account, previous: Option<&Inventory>, statuses: &mut Statuses) -> Collection {
    collect_all(account, previous, statuses).await.unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Polls, as one of a few shards, over a list that changes after every answer.
    #[test]
    fn whoever_existed_throughout_is_there_and_nobody_twice(
        instances in 0_usize..60,
        // With fewer, twenty look-ups of a page each are too few for the whole account, and what two walks miss is gone.
        page_size in 5_usize..20,
        concurrency in 1_usize..5,
        (total_shards, number) in (1_usize..5).prop_flat_map(|total| (Just(total), 0..total)),
        missing_is_error: bool,
        delays in prop::collection::vec(0_u8..5, 1..8),
        script in prop::collection::vec(event(), 0..120),
    ) {
        let shard = Shard::new(number, total_shards).unwrap();
        let account = account(instances, page_size, Vec::new());
        let account = Account { concurrency, shard, missing_is_error, delays, ..account };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut statuses = Statuses::documented(Service::Vm);
            // The first poll, with nothing to compare with, sees a list at rest.
            let mut previous = poll(&account, None, &mut statuses).await.inventory;
            let own = |state: &State| -> BTreeSet<_> {
                state.list.iter().map(|(id, _)| id.clone()).filter(|id| shard.owns(id)).collect()
            };
            prop_assert_eq!(names(&previous), own(&account.state.lock().unwrap()));
            account.state.lock().unwrap().script = script.into_iter();
            for _ in 0..4 {
                let at_start = {
                    let mut state = account.state.lock().unwrap();
                    state.seen.clear();
                    state.note();
                    own(&state)
                };
                account.look_ups.store(0, Ordering::Relaxed);
                let inventory = poll(&account, Some(&previous), &mut statuses).await.inventory;
                // Beyond twenty look-ups two walks decide, and an instance can be unlucky twice.
                let all_asked_for = account.look_ups.load(Ordering::Relaxed) < 20;
                let state = account.state.lock().unwrap();
                let at_end = own(&state);
                let known = names(&previous);
                let throughout = at_start.iter().filter(|id| at_end.contains(*id) && known.contains(*id));
                let found = names(&inventory);
                for id in throughout {
                    prop_assert!(found.contains(id) || !all_asked_for, "{} was there throughout", id);
                }
                prop_assert_eq!(found.len(), inventory.len(), "an id is there twice");
                for instance in inventory.iter() {
                    prop_assert!(shard.owns(instance.id), "{:?} is another shard's", instance);
                    let had = state.seen.get(instance.id);
                    prop_assert!(
                        had.is_some_and(|had| had.contains(statuses.name(instance.status))),
                        "{:?} was never so", instance
                    );
                }
                drop(state);
                previous = inventory;
            }
            Ok(())
        })?;
    }
}
