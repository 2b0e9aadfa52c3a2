//! What every test with a real kernel does: says that it was left out, or waits for what the product does.

use std::time::{Duration, Instant};

/// Whether the test runs, because what it needs is `here`. Otherwise it says that it was left out, and fails where
/// `REQUIRE_ROOT=1`: there nothing is.
pub(crate) fn runs(here: bool, needs: &str) -> bool {
    assert!(
        here || std::env::var("REQUIRE_ROOT").as_deref() != Ok("1"),
        "REQUIRE_ROOT=1, but this needs {needs}"
    );
    if !here {
        println!("skipped: needs {needs}");
    }
    here
}

/// Looks again until there is something, or fails with what was waited for.
pub(crate) fn eventually_in<T>(deadline: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < deadline, "not in {deadline:?}: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
