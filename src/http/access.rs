//! Access control: the web config in use, replaced as a whole when its files change.
//!
//! Invariant: a request sees one configuration from its start to its end, and a connection keeps the TLS settings that it
//! began with. It must not know how files are read.

use std::sync::{Arc, PoisonError, RwLock};

use hyper::header::HeaderMap;
use tokio_rustls::TlsAcceptor;

use super::auth::{Accounts, Denial, Limiter, Recall};
use super::checks::Checks;
use super::routes;
use super::source::Source;
use crate::web_config::Settings;

/// Admits requests; open to all where no web config is given.
#[derive(Default)]
pub(crate) struct AccessControl {
    in_use: RwLock<Arc<InUse>>,
    checks: Checks,
    /// Health needs no password.
    open_health: bool,
}

/// One configuration, with what is remembered under it.
#[derive(Default)]
pub(super) struct InUse {
    settings: Settings,
    accounts: Option<Arc<Accounts>>,
    limiter: Option<Arc<Limiter>>,
}

impl AccessControl {
    pub(crate) fn new(settings: Settings, open_health: bool) -> Self {
        let access = Self { open_health, ..Self::default() };
        access.swap(settings);
        access
    }

    /// Puts other settings in use. What is remembered stays where it still holds.
    pub(super) fn swap(&self, settings: Settings) {
        settings.log_warnings();
        let old = self.in_use();
        let kept_accounts = old.accounts.clone().filter(|accounts| *accounts.users() == settings.users);
        let kept_limiter = old.limiter.clone().filter(|_| old.settings.rate_limit == settings.rate_limit);
        let next = InUse {
            accounts: kept_accounts
                .or_else(|| Accounts::new(settings.users.clone(), old.accounts.as_deref()).map(Arc::new)),
            limiter: kept_limiter.or_else(|| settings.rate_limit.map(|limit| Arc::new(Limiter::new(limit)))),
            settings,
        };
        *self.in_use.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
    }

    /// What would be lost if `next` were used instead.
    pub(super) fn lost_in(&self, next: &Settings) -> Option<&'static str> {
        self.in_use().settings.lost_in(next)
    }

    /// What a new connection has to speak; `None` is plain HTTP.
    pub(super) fn tls(&self) -> Option<TlsAcceptor> {
        Some(TlsAcceptor::from(Arc::clone(&self.in_use().settings.tls.as_ref()?.server)))
    }

    /// Whether the request may be answered under that configuration. One with a remembered password, or without any, does
    /// not count towards the rate limit: requests without a password must not use up what a login needs.
    pub(super) async fn admit(
        &self,
        in_use: &InUse,
        path: &str,
        headers: &HeaderMap,
        source: Source,
    ) -> Result<(), Denial> {
        if self.open_health && routes::is_health(path) {
            return Ok(());
        }
        // Neither costs a check of a password, so neither counts.
        match in_use.accounts.as_ref().map(|accounts| accounts.recall(headers)) {
            Some(Recall::Right) => return Ok(()),
            Some(Recall::NoLogin) => return Err(Denial::Unknown),
            Some(Recall::Other) | None => {}
        }
        if let Some(limiter) = &in_use.limiter {
            limiter.take(source)?;
        }
        match &in_use.accounts {
            Some(accounts) => accounts.admit(headers, source, &self.checks).await,
            None => Ok(()),
        }
    }

    /// The configuration for a request that begins.
    pub(super) fn in_use(&self) -> Arc<InUse> {
        // What is behind the lock is put there whole.
        Arc::clone(&self.in_use.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl InUse {
    /// Adds the headers that every answer is to have, except those that the answer sets itself: the page has a content
    /// security policy that fits its own script and style.
    pub(super) fn add_headers(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.settings.headers {
            headers.entry(name).or_insert_with(|| value.clone());
        }
    }
}
