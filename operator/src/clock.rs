//! The operator's own clock, for what it measures itself: silence and lag. It depends neither on the clock of another
//! machine nor on corrections of this one's. Times in the API are compared with the wall clock, [`Timestamp::now`].

use jiff::Timestamp;
use std::sync::OnceLock;
use tokio::time::Instant;

/// Returns the time: that of the wall clock at the first call, and from then on as much more as has really passed.
pub fn now() -> Timestamp {
    static START: OnceLock<(Instant, Timestamp)> = OnceLock::new();
    let (instant, wall) = *START.get_or_init(|| (Instant::now(), Timestamp::now()));
    wall.checked_add(instant.elapsed()).unwrap_or(wall)
}
