//! What one poll and its first scrapes cost: reading pages, ordering them, comparing, rendering, compressing.
//!
//! `cargo bench --bench pipeline`

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use tokio::runtime::Runtime;
use zenlayer_exporter::api::wire::{Answer, MAX_PAGE_SIZE, read_answer};
use zenlayer_exporter::api::{ApiError, Page};
use zenlayer_exporter::inventory::{History, collect_all};
use zenlayer_exporter::model::{Inventory, Service, StatusSeries, Statuses};
use zenlayer_exporter::paging::Source;
use zenlayer_exporter::shard::Shard;
use zenlayer_exporter::simulator::{Fleet, Machine};
use zenlayer_exporter::{exposition, gzip};

const SIZES: [usize; 3] = [1_000, 10_000, 100_000];

fn main() {
    divan::main();
}

/// The API's answers for that many instances, a page each.
fn bodies(instances: usize) -> Vec<Vec<u8>> {
    let entry = |machine: &Machine| {
        let status = machine.status.as_deref().unwrap_or_default();
        format!(r#"{{"instanceId":"{}","instanceStatus":"{status}"}}"#, machine.id)
    };
    let body = |machines: &[Machine]| {
        let entries = machines.iter().map(entry).collect::<Vec<_>>().join(",");
        format!(
            r#"{{"requestId":"T1","response":{{"requestId":"T1","totalCount":{instances},"dataSet":[{entries}]}}}}"#
        )
    };
    let fleet = Fleet::new(Service::Vm, instances, 1);
    fleet.machines.chunks(MAX_PAGE_SIZE).map(|machines| body(machines).into_bytes()).collect()
}

fn read(body: &[u8]) -> Page {
    match read_answer(body) {
        Ok(Answer::Page(page)) => page,
        other => panic!("a page was to be read: {other:?}"),
    }
}

/// Pages that were read already, and the empty one after them: what is left of a poll without HTTP, TLS and JSON.
struct Pages(Vec<Page>, Page);

impl Pages {
    fn of(instances: usize) -> Self {
        let past_the_end = format!(r#"{{"totalCount":{instances},"dataSet":[]}}"#);
        Self(bodies(instances).iter().map(|body| read(body)).collect(), read(past_the_end.as_bytes()))
    }

    fn collect(&self, previous: Option<&Inventory>, statuses: &mut Statuses) -> Inventory {
        let runtime = Runtime::new().expect("a runtime");
        runtime
            .block_on(collect_all(self, History { inventory: previous, ..History::default() }, statuses))
            .expect("pages without faults")
            .inventory
    }
}

impl Source<Page> for Pages {
    async fn page(&self, number: u64) -> Result<Page, ApiError> {
        let place = usize::try_from(number - 1).expect("few pages");
        Ok(self.0.get(place).unwrap_or(&self.1).clone())
    }

    async fn look_up(&self, _: &[&str]) -> Result<Page, ApiError> {
        unreachable!("no instance is ever missing")
    }

    fn page_size(&self) -> usize {
        MAX_PAGE_SIZE
    }

    fn concurrency(&self) -> usize {
        4
    }

    fn shard(&self) -> Shard {
        Shard::WHOLE
    }
}

/// An inventory, and the statuses it was read with.
fn inventory(instances: usize) -> (Inventory, Statuses) {
    let mut statuses = Statuses::documented(Service::Vm);
    (Pages::of(instances).collect(None, &mut statuses), statuses)
}

/// JSON → pages: serde_json's part of a poll.
#[divan::bench(args = SIZES)]
fn read_pages(bencher: Bencher, instances: usize) {
    let bodies = bodies(instances);
    bencher.counter(ItemsCount::new(instances)).bench_local(|| {
        for body in &bodies {
            black_box(read(body));
        }
    });
}

/// Pages → inventory → nothing has changed: the whole of a poll that is not HTTP, TLS or JSON.
#[divan::bench(args = SIZES)]
fn unchanged_poll(bencher: Bencher, instances: usize) {
    let pages = Pages::of(instances);
    let mut statuses = Statuses::documented(Service::Vm);
    let runtime = Runtime::new().expect("a runtime");
    let previous = pages.collect(None, &mut statuses);
    bencher.counter(ItemsCount::new(instances)).bench_local(|| {
        let history = History { inventory: Some(&previous), ..History::default() };
        let collected = runtime.block_on(collect_all(&pages, history, &mut statuses));
        let inventory = collected.expect("pages without faults").inventory;
        let changes = previous.changes_to(&statuses, &inventory, &statuses);
        assert!(changes.transitions.is_empty() && previous == inventory);
    });
}

/// What happened between two polls, one of them with an instance less.
#[divan::bench(args = SIZES)]
fn diff(bencher: Bencher, instances: usize) {
    let ((before, statuses), (after, _)) = (inventory(instances), inventory(instances - 1));
    bencher
        .counter(ItemsCount::new(instances))
        .bench_local(|| black_box(before.changes_to(&statuses, &after, &statuses)));
}

/// Inventory → text.
#[divan::bench(args = SIZES)]
fn render(bencher: Bencher, instances: usize) {
    let (inventory, statuses) = inventory(instances);
    let previous = exposition::render(&inventory, &statuses, StatusSeries::Current, 0).len();
    bencher
        .counter(ItemsCount::new(instances))
        .bench_local(|| exposition::render(&inventory, &statuses, StatusSeries::Current, previous));
}

/// Text → the part of a gzip member that is made once a snapshot.
#[divan::bench(args = SIZES)]
fn compress(bencher: Bencher, instances: usize) {
    let (inventory, statuses) = inventory(instances);
    let text = exposition::render(&inventory, &statuses, StatusSeries::Current, 0);
    bencher
        .counter(ItemsCount::new(instances))
        .counter(BytesCount::new(text.len()))
        .bench_local(|| gzip::Part::first(&text));
}
