//! Intervals as users give them, as durations. An interval has months and days; like PostgreSQL's own arithmetic on
//! them a month counts 30 days and a day 24 hours.

use std::time::Duration;

use crate::error::{Error, Result, SqlState};

/// The duration of an interval; 22023 when it is negative.
pub fn duration(interval: pgrx::datum::Interval) -> Result<Duration> {
    u64::try_from(interval.as_micros()).map(Duration::from_micros).map_err(|_| {
        Error::new(SqlState::INVALID_PARAMETER, "a timeout must not be negative").hint("Give an interval such as '30s'.")
    })
}

/// The duration of a timeout that must be given.
pub fn given(timeout: Option<pgrx::datum::Interval>) -> Result<Duration> {
    duration(super::required(timeout, "timeout")?)
}

/// A duration as an interval.
pub fn interval(duration: Duration) -> pgrx::datum::Interval {
    let micros = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
    pgrx::datum::Interval::new(0, 0, micros).unwrap_or_else(|_| pgrx::datum::Interval::from_seconds(0.0))
}
