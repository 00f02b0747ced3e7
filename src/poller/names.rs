//! Names and the like as the poller publishes them: of the instances that exist, rendered when they change.
//!
//! Invariant: once an inventory is known, nothing is kept of instances that it has not. It must not know when anything is
//! asked for, nor how.

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
}

impl Names {
    /// Nothing known yet.
    pub(crate) fn new(feed: Feed, tags: &[Tag]) -> Self {
        Self { feed, labels: tags.iter().map(|tag| tag.label.clone()).collect(), rendered: None }
    }

    /// What a collector found next.
    pub(super) async fn next(&mut self) -> Infos {
        self.feed.next().await
    }

    /// What is served of it.
    pub(super) fn rendered(&self) -> Option<Arc<RenderedInfos>> {
        self.rendered.clone()
    }

    /// Takes what was found; an instance that it leaves out keeps what was known. Returns whether that changed anything.
    pub(super) fn take(&mut self, found: Infos, inventory: Option<&Inventory>) -> bool {
        let Some(inventory) = inventory else { return self.replace(found) };
        let nothing = Infos::default();
        let known = self.rendered.as_ref().map_or(&nothing, |rendered| &rendered.infos);
        match known.renewed(&found, inventory) {
            Ok(infos) => self.replace(infos),
            Err(overflow) => {
                tracing::error!(error = %overflow, "names and the like of instances are too much: they stay as they were");
                false
            }
        }
    }

    /// A poll succeeded: asks for the instances that came, forgets those that went.
    pub(super) fn follow(&mut self, previous: Option<&Inventory>, inventory: &Inventory) {
        let gone = previous.is_none_or(|previous| !previous.ids_not_in(inventory).is_empty());
        if let Some(previous) = previous {
            self.feed.ask_for(&inventory.ids_not_in(previous));
        }
        if gone && self.rendered.is_some() {
            self.take(Infos::default(), Some(inventory));
        }
    }

    fn replace(&mut self, infos: Infos) -> bool {
        if self.rendered.as_ref().is_some_and(|rendered| rendered.infos == infos) {
            return false;
        }
        let text = exposition::info::render(&infos, &self.labels);
        self.rendered = Some(Arc::new(RenderedInfos::new(text, infos)));
        true
    }
}
