//! A member's part that failed: what is said of it, what is forgotten for it, and what becomes of its connection. Whether
//! it is tried again `retry` decides.

use std::time::Duration;

use super::apply::Receiver;
use super::members::Pool;
use super::plan::Plan;
use super::report::Progress;
use super::retry::{self, Tries};
use crate::error::{Error, SqlState};
use crate::pg::latch;

const STANDS_BY: Duration = Duration::from_millis(50);

/// A member's part that failed.
pub struct Failure {
    pub index: usize,
    pub error: Error,
    /// Whether its connection was made for this attempt.
    pub fresh: bool,
}

/// Goes on to the next attempt; the wait lets whoever won finish first.
pub fn again(tries: &mut Tries) {
    let wait = tries.again();
    if !wait.is_zero() {
        latch::wait(None, Some(wait));
    }
}

/// Lets whoever holds a lock go on, before a run that waits for it however long tries again: a trigger may ask for one without
/// waiting.
pub fn stand_by() {
    latch::wait(None, Some(STANDS_BY));
}

/// What was seen of the tables may be the reason: look again before the next attempt.
pub fn forget(plan: &mut Plan, error: &Error) {
    if !retry::is_away(error.code) && !matches!(error.code, SqlState::SERIALIZATION_FAILURE | SqlState::DEADLOCK) {
        plan.forget_shapes();
    }
}

/// Says what a lock time-out means, and bytes that are no text.
pub fn explained(error: Error) -> Error {
    match error.code {
        SqlState::NO_SUCH_CHARACTER if error.hint.is_none() => {
            error.hint("Texts travel as UTF-8 between several sources: in a database without an encoding (SQL_ASCII), too, they must be that.")
        }
        SqlState::LOCK_NOT_AVAILABLE => {
            error.hint("Another transaction there holds a lock on it; it is served as soon as that ends.")
        }
        _ => error,
    }
}

/// Says at which member, unless the message does.
pub fn at_member(error: Error, plan: &Plan, index: usize) -> Error {
    let place = format!("db \"{}\"", plan.sync.members[index].db.name);
    if error.message.contains(&place) { error } else { error.at(place) }
}

/// Ends the transactions of receivers in which nothing was done.
pub fn undo(receivers: &mut [Receiver]) {
    for receiver in receivers {
        receiver.attempt(|conn| conn.query("ROLLBACK").map(drop));
    }
}

/// Counts what a receiver has, or notes why it has nothing; takes its connection back.
pub fn settle(mut receiver: Receiver, pool: &mut Pool, failures: &mut Vec<Failure>, progress: &mut Progress, committed: u64) {
    let fresh = receiver.session.fresh;
    let error = receiver.failed.take();
    if error.is_none() && committed & receiver.bit() != 0 {
        progress.counts.add(receiver.counts);
    }
    if let Some(place) = receiver.session.place.take() {
        progress.seen.insert(receiver.index, (receiver.session.who.identity.clone(), place));
    }
    if (error.is_some() || !receiver.session.conn.is_idle())
        && !receiver.session.conn.is_broken()
        && receiver.session.conn.query("ROLLBACK").is_ok()
        && error.is_some()
    {
        receiver.session.conn.forget_prepared();
    }
    if let Some(error) = error {
        failures.push(Failure { index: receiver.index, error, fresh });
    }
    pool.give_back(receiver.session);
}
