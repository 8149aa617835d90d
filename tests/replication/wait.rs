//! Waiting for a condition. Every wait of the suite is one of these: a poll with a deadline so generous that reaching it
//! means that the thing will not happen, never that the machine was slow. Nothing here may assert on a duration.

use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(90);
const STEP: Duration = Duration::from_millis(20);

#[track_caller]
pub fn wait_until(what: &str, done: impl FnMut() -> bool) {
    assert!(reached(done), "waited {DEADLINE:?} for {what}");
}

/// As `wait_until`, for callers who want to report what they saw instead.
pub fn reached(mut done: impl FnMut() -> bool) -> bool {
    let began = Instant::now();
    while !done() {
        if began.elapsed() > DEADLINE {
            return false;
        }
        std::thread::sleep(STEP);
    }
    true
}
