//! The time, as an argument.
//!
//! Invariant: an age is never too small. The monotonic clock stands still while the machine sleeps, and the wall clock
//! may be set back, so an age is the larger of what both say.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// A point in time, on both clocks of the machine.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Never set, and stopped while the machine is suspended.
    pub monotonic: Instant,
    /// May be set at any time.
    pub wall: SystemTime,
}

impl Moment {
    /// How long ago `earlier` was: the larger of what both clocks say.
    pub fn since(self, earlier: Self) -> Duration {
        let monotonic = self.monotonic.saturating_duration_since(earlier.monotonic);
        monotonic.max(self.wall.duration_since(earlier.wall).unwrap_or_default())
    }
}

/// Tells the time.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> SystemTime + Send + Sync>);

impl Clock {
    /// A clock whose wall time is what `wall` returns.
    pub fn with_wall(wall: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self(Arc::new(wall))
    }

    /// The time now.
    pub fn now(&self) -> Moment {
        Moment { monotonic: Instant::now(), wall: (self.0)() }
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::with_wall(SystemTime::now)
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({:?})", self.now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_age_is_the_larger_of_both_clocks() {
        let second = Duration::from_secs(1);
        let start = Clock::default().now();
        let later = |monotonic, wall| Moment { monotonic: start.monotonic + monotonic, wall };
        assert_eq!(later(2 * second, start.wall + second).since(start), 2 * second);
        assert_eq!(later(second, start.wall + 3600 * second).since(start), 3600 * second, "suspended for an hour");
        assert_eq!(later(second, start.wall - 3600 * second).since(start), second, "set back by an hour");
    }
}
