//! Instance metadata as the poller publishes it: of the instances that exist, rendered when they change.
//!
//! Invariant: once an inventory is known, nothing is kept of instances that it has not. It must not know when anything is
//! asked for, nor how.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::config::Tag;
use crate::exposition;
use crate::info::Feed;
use crate::model::{Infos, Inventory};
use crate::snapshot::RenderedInfos;

/// What is known so far, and where more comes from.
pub(crate) struct Names {
    feed: Feed,
    /// The label names of tags.
    labels: Vec<String>,
    rendered: Option<Arc<RenderedInfos>>,
    /// Ids that were asked for and of which nothing is known all the same.
    asked: BTreeSet<String>,
    nothing: Infos,
}

impl Names {
    /// Nothing known yet.
    pub(crate) fn new(feed: Feed, tags: &[Tag]) -> Self {
        Self {
            feed,
            labels: tags.iter().map(|tag| tag.label.clone()).collect(),
            rendered: None,
            asked: BTreeSet::new(),
            nothing: Infos::default(),
        }
    }

    /// What a collector found next.
    pub(super) async fn next(&mut self) -> Infos {
        self.feed.next().await
    }

    /// What is served of it.
    pub(super) fn rendered(&self) -> Option<Arc<RenderedInfos>> {
        self.rendered.clone()
    }

    /// Takes what was found; an instance that it leaves out keeps what was known, or is asked for by id. Returns whether
    /// that changed anything.
    pub(super) fn take(&mut self, found: Infos, inventory: Option<&Inventory>) -> bool {
        let Some(inventory) = inventory else { return self.replace(found) };
        let changed = self.renew(found, inventory);
        self.ask_for_missing(inventory);
        changed
    }

    /// A poll succeeded: forgets the instances that went, asks for those that came.
    pub(super) fn follow(&mut self, previous: Option<&Inventory>, inventory: &Inventory) {
        // Before the first round there is nothing to forget, and it asks for all.
        if self.rendered.is_none() {
            return;
        }
        if previous.is_none_or(|previous| !previous.ids_not_in(inventory).is_empty()) {
            self.renew(Infos::default(), inventory);
        }
        self.ask_for_missing(inventory);
    }

    /// Once each: what the API does not tell when asked, only a round may bring.
    fn ask_for_missing(&mut self, inventory: &Inventory) {
        let missing = self.known().missing(inventory);
        self.asked.retain(|id| missing.binary_search(&&**id).is_ok());
        let new: Vec<_> = missing.into_iter().filter(|id| !self.asked.contains(*id)).collect();
        let asked = self.feed.ask_for(&new);
        self.asked.extend(asked.iter().map(|&id| id.to_owned()));
    }

    fn known(&self) -> &Infos {
        self.rendered.as_ref().map_or(&self.nothing, |rendered| &rendered.infos)
    }

    fn renew(&mut self, found: Infos, inventory: &Inventory) -> bool {
        let renewed = self.known().renewed(&found, inventory);
        // Before the text is made, which is the most memory that is needed at a time.
        drop(found);
        match renewed {
            Ok(infos) => self.replace(infos),
            Err(overflow) => {
                tracing::error!(error = %overflow, "instance metadata does not fit; keeping the previous metadata");
                false
            }
        }
    }

    fn replace(&mut self, infos: Infos) -> bool {
        if self.rendered.as_ref().is_some_and(|rendered| rendered.infos == infos) {
            return false;
        }
        let previous = self.rendered.as_ref().map_or(0, |rendered| rendered.text.bytes.len());
        let text = exposition::info::render(&infos, &self.labels, previous);
        self.rendered = Some(Arc::new(RenderedInfos::new(text, infos)));
        true
    }
}
