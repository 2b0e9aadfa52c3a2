//! The operator's own clock: what is measured by it depends on no other machine's, and on nobody who sets this one's.

use jiff::Timestamp;
use std::sync::OnceLock;
use tokio::time::Instant;

/// Returns the time: that of the wall clock at the first call, and from then on as much more as has really passed.
pub fn now() -> Timestamp {
    static START: OnceLock<(Instant, Timestamp)> = OnceLock::new();
    let (instant, wall) = *START.get_or_init(|| (Instant::now(), Timestamp::now()));
    wall.checked_add(instant.elapsed()).unwrap_or(wall)
}
