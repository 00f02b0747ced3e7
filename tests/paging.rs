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
use zenlayer_exporter::inventory::{Collection, History, collect_all};
use zenlayer_exporter::model::{Inventory, Service, Statuses};
use zenlayer_exporter::paging::Source;
use zenlayer_exporter::shard::Shard;
use zenlayer_exporter::simulator::{Knobs, Simulator};

fn ids(held: &BTreeSet<(String, String)>) -> BTreeSet<String> {
    held.iter().map(|(id, _)| id.clone()).collect()
}

#[tokio::test]
async fn an_instance_that_lives_through_constant_change_is_in_every_scrape() {
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

/// How the API answers in one poll.
#[derive(Debug, Clone, Default)]
struct Behaviour {
    pages: Pages,
    look_ups: LookUps,
}

#[derive(Debug, Clone, Default)]
enum Pages {
    #[default]
    Good,
    /// The list goes through a script, an event after each answer.
    Changing(Vec<Event>),
    /// No page has more entries than this.
    Capped(usize),
    /// The `totalCount` of each page in turn is off by this.
    Miscounted(Vec<i64>),
    /// Every page is the first.
    IgnorePageNum,
    /// The page of that number and all after it say that there is nothing.
    EmptyFrom(u64),
    /// The page of that number fails.
    FailAt(u64, Kind),
}

#[derive(Debug, Clone, Default)]
enum LookUps {
    #[default]
    Good,
    /// They return other instances than those requested: that many that exist, or one that does not.
    Others(usize),
    Refused(Kind),
    /// No answer has more entries than this, though `totalCount` counts all.
    Capped(usize),
    /// Their `totalCount` is that of the account.
    CountAccount,
    /// Their entries have no usable ID.
    Unusable,
}

impl From<Pages> for Behaviour {
    fn from(pages: Pages) -> Self {
        Self { pages, ..Self::default() }
    }
}

impl From<LookUps> for Behaviour {
    fn from(look_ups: LookUps) -> Self {
        Self { look_ups, ..Self::default() }
    }
}

fn behaviour() -> impl Strategy<Value = Behaviour> {
    let refusals = prop_oneof![Just(Kind::Forbidden), Just(Kind::Client), Just(Kind::Server), Just(Kind::Timeout)];
    let failures = prop_oneof![Just(Kind::Server), Just(Kind::Timeout), Just(Kind::RateLimit)];
    let pages = prop_oneof![
        4 => Just(Pages::Good),
        4 => prop::collection::vec(event(), 0..60).prop_map(Pages::Changing),
        1 => (1_usize..12).prop_map(Pages::Capped),
        1 => prop::collection::vec(-20_i64..20, 1..4).prop_map(Pages::Miscounted),
        1 => Just(Pages::IgnorePageNum),
        2 => (1_u64..5).prop_map(Pages::EmptyFrom),
        1 => (1_u64..6, failures).prop_map(|(number, kind)| Pages::FailAt(number, kind)),
    ];
    let look_ups = prop_oneof![
        6 => Just(LookUps::Good),
        1 => (0_usize..3).prop_map(LookUps::Others),
        2 => refusals.prop_map(LookUps::Refused),
        1 => (1_usize..5).prop_map(LookUps::Capped),
        1 => Just(LookUps::CountAccount),
        1 => Just(LookUps::Unusable),
    ];
    (pages, look_ups).prop_map(|(pages, look_ups)| Behaviour { pages, look_ups })
}

/// An account in memory, with an API in front of it.
struct Account {
    state: Mutex<State>,
    behaviour: Behaviour,
    page_size: usize,
    concurrency: usize,
    shard: Shard,
    missing_is_error: bool,
    /// A page past the end of the list is an error instead of an empty one.
    end_is_error: bool,
    look_ups: AtomicUsize,
    /// How often each page waits before it is read, in turn.
    delays: Vec<u8>,
    asked: AtomicUsize,
    dropped: AtomicUsize,
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
        if let Some(event) = self.script.next() {
            self.apply(&event);
        }
    }

    fn apply(&mut self, event: &Event) {
        let length = self.list.len();
        match *event {
            Event::Delete(at) if length > 0 => drop(self.list.remove(at % length)),
            Event::Create(at) => self.create(at % (length + 1)),
            Event::Swap(at) if length > 0 => {
                self.list.remove(at % length);
                self.create(0);
            }
            Event::Change(at) if length > 0 => self.list[at % length].1 = "STOPPED",
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
    async fn delay(&self) -> usize {
        let turn = self.asked.fetch_add(1, Ordering::Relaxed);
        for _ in 0..self.delays[turn % self.delays.len()] {
            tokio::task::yield_now().await;
        }
        turn
    }
}

impl Source<Page> for Account {
    async fn page(&self, number: u64) -> Result<Page, ApiError> {
        let turn = self.delay().await;
        let mut state = self.state.lock().unwrap();
        let length = match self.behaviour.pages {
            Pages::Capped(most) => self.page_size.min(most),
            _ => self.page_size,
        };
        let start = match self.behaviour.pages {
            Pages::IgnorePageNum => 0,
            _ => (usize::try_from(number).unwrap() - 1) * length,
        };
        let entries: Vec<_> = state.list.iter().skip(start).take(length).cloned().collect();
        let total = match &self.behaviour.pages {
            Pages::FailAt(at, kind) if *at == number => return Err(ApiError::new(*kind, "it fails")),
            Pages::EmptyFrom(at) if *at <= number => return Ok(page(0, &[])),
            Pages::Miscounted(by) => state.list.len().saturating_add_signed(by[turn % by.len()].try_into().unwrap()),
            _ => state.list.len(),
        };
        if self.end_is_error && number > 1 && entries.is_empty() {
            return Err(ApiError::new(Kind::Client, "there is no such page"));
        }
        let page = page(total, &entries);
        state.step();
        Ok(page)
    }

    async fn look_up(&self, ids: &[&str]) -> Result<Page, ApiError> {
        self.delay().await;
        self.look_ups.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state.lock().unwrap();
        let others = || state.list.iter().filter(|(id, _)| !ids.contains(&&**id));
        let mut entries: Vec<_> = match self.behaviour.look_ups {
            LookUps::Refused(kind) => return Err(ApiError::new(kind, "not by id")),
            LookUps::Others(count) if count > 0 && others().next().is_some() => others().take(count).cloned().collect(),
            LookUps::Others(_) => vec![("nobody".to_owned(), "RUNNING")],
            _ => state.list.iter().filter(|(id, _)| ids.contains(&&**id)).cloned().collect(),
        };
        let mut total = entries.len();
        state.step();
        if self.missing_is_error && total < ids.len() {
            return Err(ApiError::new(Kind::NotFound, "one does not exist"));
        }
        match self.behaviour.look_ups {
            LookUps::Capped(most) => entries.truncate(most),
            LookUps::CountAccount => total = total.max(state.list.len()),
            LookUps::Unusable => entries.iter_mut().for_each(|(id, _)| id.clear()),
            _ => {}
        }
        Ok(page(total, &entries))
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

    fn dropped(&self, entries: usize) {
        self.dropped.fetch_add(entries, Ordering::Relaxed);
    }
}

/// An account whose list goes through `script`, an event after each answer.
fn account(instances: usize, page_size: usize, script: Vec<Event>) -> Account {
    let list = (0..instances).map(|n| (format!("old {n:03}"), "RUNNING")).collect();
    let state = State { list, script: script.into_iter(), created: 0, seen: BTreeMap::new() };
    Account {
        state: state.into(),
        behaviour: Behaviour::default(),
        page_size,
        concurrency: 1,
        shard: Shard::WHOLE,
        missing_is_error: false,
        end_is_error: false,
        look_ups: 0.into(),
        delays: vec![0],
        asked: 0.into(),
        dropped: 0.into(),
    }
}

#[tokio::test]
async fn a_first_walk_that_shows_a_change_is_merged_with_a_second() {
    // One goes between the first page and the second, so that the next one is on neither.
    let account = account(30, 10, vec![Event::Delete(0)]);
    let mut statuses = Statuses::documented(Service::Vm);
    let collection = poll(&account, None, &mut statuses).await;
    assert!(names(&collection.inventory).contains("old 010"), "{:?}", names(&collection.inventory));
    assert_eq!(collection.pages, 7, "a walk of three pages and the empty one after them, and one of three");
}

#[tokio::test]
async fn a_shard_tells_by_all_instances_whether_the_list_changed() {
    // One goes from the end and one comes to the front: every page counts thirty, and one entry is read twice.
    for number in 0..3 {
        let shard = Shard::new(number, 3).unwrap();
        let at_rest = Account { shard, ..account(30, 10, Vec::new()) };
        let mut statuses = Statuses::documented(Service::Vm);
        let collection = poll(&at_rest, None, &mut statuses).await;
        assert_eq!(collection.pages, 4, "one walk");
        let changing = Account { shard, ..account(30, 10, vec![Event::Swap(29)]) };
        let collection = poll(&changing, None, &mut statuses).await;
        assert_eq!(collection.pages, 8, "two walks");
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
    assert_eq!(collection.pages, 42, "two walks");
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
async fn so_many_gone_at_once_cost_one_more_walk_and_a_sample() {
    let (collection, look_ups) = poll_after_deletion(&account(5000, 1000, Vec::new()), 2500).await;
    assert_eq!((collection.pages, look_ups), (6, 1), "two walks of three pages");
    assert!(collection.fell_back);
}

#[tokio::test]
async fn look_ups_that_answer_not_found_do_not_add_up() {
    let few = Account { missing_is_error: true, ..account(2500, 1000, Vec::new()) };
    let (collection, look_ups) = poll_after_deletion(&few, 500).await;
    // After each of two walks of a page, and then one by one: a sample that names one which is gone tells nothing else.
    assert_eq!((collection.pages, look_ups), (2, 60));
    let many = Account { missing_is_error: true, ..account(5000, 1000, Vec::new()) };
    let (_, look_ups) = poll_after_deletion(&many, 2500).await;
    assert_eq!(look_ups, 20);
}

/// Polls, lets the API behave so, and polls again.
async fn poll_while(account: &mut Account, behaviour: impl Into<Behaviour>) -> Result<Collection, ApiError> {
    let mut statuses = Statuses::documented(Service::Vm);
    let before = poll(account, None, &mut statuses).await.inventory;
    account.behaviour = behaviour.into();
    let history = History { inventory: Some(&before), ..History::default() };
    collect_all(account, history, &mut statuses).await
}

#[tokio::test]
async fn a_sample_shows_that_empty_pages_are_wrong() {
    for missing_is_error in [false, true] {
        let mut account = Account { missing_is_error, ..account(2500, 1000, Vec::new()) };
        let error = poll_while(&mut account, Pages::EmptyFrom(1)).await.unwrap_err();
        assert_eq!((error.kind, error.missing), (Kind::Inconsistent, 2500));
        assert_eq!(account.look_ups.load(Ordering::Relaxed), 1);
        assert!(
            error
                .to_string()
                .starts_with("two readings of all pages miss instances of the previous poll (2500), of which"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_sample_is_looked_up_singly_where_one_of_it_is_gone() {
    let mut account = Account { missing_is_error: true, ..account(3000, 1000, Vec::new()) };
    let mut statuses = Statuses::documented(Service::Vm);
    let before = poll(&account, None, &mut statuses).await.inventory;
    // Every second is gone, and no page shows the others.
    let mut place = 0;
    account.state.lock().unwrap().list.retain(|_| {
        place += 1;
        place % 2 == 0
    });
    account.behaviour = Pages::EmptyFrom(1).into();
    let history = History { inventory: Some(&before), ..History::default() };
    let error = collect_all(&account, history, &mut statuses).await.unwrap_err();
    assert!(error.to_string().contains("look-ups by ID still find some"), "{error}");
    assert!((2..=20).contains(&account.look_ups.load(Ordering::Relaxed)));
}

#[tokio::test]
async fn corrections_are_the_instances_that_only_a_look_up_found() {
    // One goes between the first page and the second of a poll: the next one is on neither.
    let account = account(30, 10, Vec::new());
    let mut statuses = Statuses::documented(Service::Vm);
    let before = poll(&account, None, &mut statuses).await.inventory;
    account.state.lock().unwrap().script = vec![Event::Delete(0), Event::Nothing, Event::Delete(0)].into_iter();
    let collection = poll(&account, Some(&before), &mut statuses).await;
    assert_eq!(names(&collection.inventory).len(), 30, "those that went were there when they were read");
    assert_eq!((collection.corrections, collection.missing, collection.fell_back), (1, 0, false));
    assert_eq!(account.look_ups.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn refused_look_ups_leave_it_to_a_second_walk() {
    for kind in [Kind::Forbidden, Kind::Client, Kind::Unauthorized, Kind::Policy, Kind::Server, Kind::Body] {
        let mut account = account(30, 10, Vec::new());
        let mut statuses = Statuses::documented(Service::Vm);
        let before = poll(&account, None, &mut statuses).await.inventory;
        account.state.lock().unwrap().list.remove(7);
        account.behaviour = LookUps::Refused(kind).into();
        let collection = poll(&account, Some(&before), &mut statuses).await;
        assert_eq!((collection.inventory.len(), collection.pages), (29, 6), "{kind:?}");
        assert!(collection.fell_back);
    }
}

#[tokio::test]
async fn a_refusal_that_may_pass_does_not_empty_an_account() {
    for (kind, left, goes) in
        [(Kind::Forbidden, 0, false), (Kind::Forbidden, 15, true), (Kind::Server, 0, false), (Kind::Server, 15, true)]
    {
        let mut account = account(30, 10, Vec::new());
        let mut statuses = Statuses::documented(Service::Vm);
        let before = poll(&account, None, &mut statuses).await.inventory;
        account.state.lock().unwrap().list.truncate(left);
        account.behaviour = LookUps::Refused(kind).into();
        let history = History { inventory: Some(&before), ..History::default() };
        let found = collect_all(&account, history, &mut statuses).await.map(|collection| collection.inventory.len());
        assert_eq!(found.map_err(|error| error.kind), if goes { Ok(left) } else { Err(kind) });
    }
}

#[tokio::test]
async fn an_answer_with_nothing_but_others_fails_the_poll_and_some_others_do_not() {
    let mut account = account(30, 10, Vec::new());
    let mut statuses = Statuses::documented(Service::Vm);
    let before = poll(&account, None, &mut statuses).await.inventory;
    account.state.lock().unwrap().list.remove(7);
    let history = History { inventory: Some(&before), ..History::default() };
    for (count, dropped) in [(0, 1), (2, 3)] {
        account.behaviour = LookUps::Others(count).into();
        let error = collect_all(&account, history, &mut statuses).await.unwrap_err();
        assert_eq!(error.kind, Kind::Inconsistent);
        assert!(error.to_string().contains("only entries that were not requested"), "{error}");
        assert_eq!(account.dropped.load(Ordering::Relaxed), dropped);
    }
}

#[tokio::test]
async fn a_shortfall_is_tolerated_in_two_polls_in_a_row() {
    // An API that lists one instance twice, and another not at all.
    let repeating = || {
        let account = account(30, 10, Vec::new());
        let mut state = account.state.lock().unwrap();
        state.list[3] = state.list[2].clone();
        drop(state);
        account
    };
    for (short_polls, goes) in [(0, true), (1, true), (2, false)] {
        let history = History { inventory: None, short_polls };
        let result = collect_all(&repeating(), history, &mut Statuses::documented(Service::Vm)).await;
        match result {
            Ok(collection) => assert!(goes && collection.missing == 1, "{collection:?}"),
            Err(error) => {
                assert!(!goes && error.missing == 1, "{error}");
                assert!(
                    error.to_string().contains(", for more than 2 polls in a row: nothing is published"),
                    "{error}"
                );
            }
        }
    }
}

#[tokio::test]
async fn a_page_that_is_short_once_is_read_again() {
    struct ShortOnce(Account, AtomicUsize);

    impl Source<Page> for ShortOnce {
        async fn page(&self, number: u64) -> Result<Page, ApiError> {
            if number == 2 && self.1.fetch_add(1, Ordering::Relaxed) == 0 {
                return Ok(page(30, &[("old 010".to_owned(), "RUNNING")]));
            }
            self.0.page(number).await
        }

        async fn look_up(&self, ids: &[&str]) -> Result<Page, ApiError> {
            self.0.look_up(ids).await
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
    let collection = poll_source(&source, None, &mut Statuses::documented(Service::Vm)).await.unwrap();
    assert_eq!(collection.inventory.len(), 30);
}

fn names(inventory: &Inventory) -> BTreeSet<String> {
    inventory.iter().map(|instance| instance.id.to_owned()).collect()
}

async fn poll(account: &Account, previous: Option<&Inventory>, statuses: &mut Statuses) -> Collection {
    poll_source(account, previous, statuses).await.unwrap()
}

async fn poll_source(
    source: &impl Source<Page>,
    previous: Option<&Inventory>,
    statuses: &mut Statuses,
) -> Result<Collection, ApiError> {
    collect_all(source, History { inventory: previous, ..History::default() }, statuses).await
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Polls, as one of a few shards, over a list that changes after every answer.
    #[test]
    fn an_instance_that_exists_throughout_is_found_and_none_is_twice(
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
                let history = History { inventory: Some(&previous), ..History::default() };
                let collected = collect_all(&account, history, &mut statuses).await;
                // Beyond twenty look-ups two walks decide, and an instance can be unlucky twice.
                let all_asked_for = account.look_ups.load(Ordering::Relaxed) < 20;
                let Ok(Collection { inventory, .. }) = collected else {
                    prop_assert!(!all_asked_for, "{:?}", collected);
                    continue;
                };
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

    /// Polls an API that behaves differently each time, while instances come and go between polls as well. Each poll
    /// publishes the truth or fails, and two polls after the last fault everything is right.
    #[test]
    fn a_poll_finds_the_truth_or_fails_and_no_fault_outlasts_its_end(
        instances in 0_usize..60,
        page_size in 5_usize..20,
        concurrency in 1_usize..5,
        missing_is_error: bool,
        end_is_error: bool,
        polls in prop::collection::vec((behaviour(), prop::collection::vec(event(), 0..4)), 20..25),
    ) {
        let account = account(instances, page_size, Vec::new());
        let mut account = Account { concurrency, missing_is_error, end_is_error, ..account };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut exporter = Memory { statuses: Statuses::documented(Service::Vm), inventory: None, short_polls: 0 };
        let good = (Behaviour::default(), Vec::new());
        let last = polls.len() + 1;
        for (number, (behaviour, events)) in polls.into_iter().chain([good.clone(), good]).enumerate() {
            {
                let mut state = account.state.lock().unwrap();
                for event in &events {
                    state.apply(event);
                }
                state.seen.clear();
                state.note();
                let script = if let Pages::Changing(script) = &behaviour.pages { script.clone() } else { Vec::new() };
                state.script = script.into_iter();
            }
            account.behaviour = behaviour.clone();
            account.look_ups.store(0, Ordering::Relaxed);
            let at_start = account.state.lock().unwrap().list.clone();
            let outcome = runtime.block_on(exporter.poll(&account));
            let state = account.state.lock().unwrap();
            if number == last {
                prop_assert!(outcome.is_ok(), "{:?}", outcome);
            }
            let Ok(known) = outcome else { continue };
            let found = exporter.entries();
            for (id, status) in &found {
                let had = state.seen.get(id);
                prop_assert!(had.is_some_and(|had| had.contains(&**status)), "{} was never {} in {:?}", id, status, behaviour);
            }
            let is_there = |id: &String| found.iter().any(|(found, _)| found == id);
            let throughout = at_start.iter().filter(|(id, _)| state.list.iter().any(|(at_end, _)| at_end == id));
            for (id, _) in throughout {
                // What the pages do not show can be found only if it was known, and look-ups show it.
                let is_shown = !matches!(behaviour.pages, Pages::EmptyFrom(_) | Pages::Changing(_));
                let is_found = known.contains(id) && !matches!(behaviour.look_ups, LookUps::Refused(_) | LookUps::Unusable);
                // Twenty look-ups after each walk, and then as many of a sample: more decide nothing.
                let is_over_budget = missing_is_error && account.look_ups.load(Ordering::Relaxed) >= 20;
                prop_assert!(
                    is_there(id) || !is_shown && (!is_found || is_over_budget),
                    "{} was there throughout {:?}", id, behaviour
                );
            }
        }
    }
}

/// What an exporter keeps from poll to poll.
struct Memory {
    statuses: Statuses,
    inventory: Option<Inventory>,
    short_polls: u32,
}

impl Memory {
    /// Returns the ids that were known before.
    async fn poll(&mut self, account: &Account) -> Result<BTreeSet<String>, ApiError> {
        let history = History { inventory: self.inventory.as_ref(), short_polls: self.short_polls };
        let collection = collect_all(account, history, &mut self.statuses).await?;
        self.short_polls = if collection.is_short { self.short_polls + 1 } else { 0 };
        Ok(self.inventory.replace(collection.inventory).as_ref().map(names).unwrap_or_default())
    }

    fn entries(&self) -> Vec<(String, String)> {
        let of = |inventory: &Inventory| {
            let named = |instance: zenlayer_exporter::model::Instance<'_>| {
                (instance.id.to_owned(), self.statuses.name(instance.status).to_owned())
            };
            inventory.iter().map(named).collect()
        };
        self.inventory.as_ref().map(of).unwrap_or_default()
    }
}
