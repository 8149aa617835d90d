//! What a member's error means for its part of the run: again at once, away, or refused. Pure.

use std::time::Duration;

use crate::error::{Error, SqlState};

/// How a pass is to be made. It gets more careful with every defeat.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Care {
    /// Delete first, then insert: unique values may be swapped between rows.
    pub thorough: bool,
    /// Lock the tables against writers before the snapshot, so that a busy application cannot defeat the run for ever.
    pub locked: bool,
    /// Leave out the deletion of keys that cannot be written in the receiver's encoding, and so cannot be there.
    pub fitting: bool,
    /// Find out which row is refused, of many that are written at once.
    pub named: bool,
}

impl Care {
    /// As careful as both.
    pub fn and(self, other: Self) -> Self {
        Self {
            thorough: self.thorough | other.thorough,
            locked: self.locked | other.locked,
            fitting: self.fitting | other.fitting,
            named: self.named | other.named,
        }
    }
}

/// What to do after a failure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    Again { care: Care, wait: Duration },
    Down,
    Refused,
}

/// How often a run that was only unlucky is taken again before it is called refused.
const MAX_DEFEATS: u32 = 20;
/// The same for one that waits for somebody else's lock: for about a minute.
const MAX_WAITS: u32 = 40;
/// How often a run that met a value which another row holds is taken again.
const MAX_CLASHES: u32 = 3;
/// From this defeat on the tables are locked first.
const LOCK_AFTER: u32 = 3;

/// Whether the error says that the member cannot be reached, or is going away.
pub fn is_away(code: SqlState) -> bool {
    code.class() == "08"
        || matches!(
            code,
            SqlState::ADMIN_SHUTDOWN
                | SqlState::CRASH_SHUTDOWN
                | SqlState::CANNOT_CONNECT_NOW
                | SqlState::IDLE_SESSION_TIMEOUT
                | SqlState::TOO_MANY_CONNECTIONS
                | SqlState::INVALID_AUTHORIZATION
                | SqlState::INVALID_PASSWORD
                | SqlState::INVALID_CATALOG
        )
}

/// Judges the error of the given attempt (0 is the first). `fresh` says that the connection was made for this attempt.
pub fn judge(error: &Error, attempt: u32, care: Care, fresh: bool) -> Verdict {
    let again = |care| Verdict::Again { care, wait: Duration::from_millis(5 << attempt.min(7)) };
    match error.code {
        // A kept connection may have died with a server that is back already.
        _ if is_away(error.code) && !fresh && attempt == 0 => Verdict::Again { care, wait: Duration::ZERO },
        _ if is_away(error.code) => Verdict::Down,
        SqlState::SERIALIZATION_FAILURE | SqlState::DEADLOCK if attempt < MAX_DEFEATS => {
            again(Care { locked: attempt + 1 >= LOCK_AFTER, ..care })
        }
        // Who holds a lock for long is not overtaken by locking the whole table, which makes others wait there.
        SqlState::LOCK_NOT_AVAILABLE if attempt < MAX_WAITS => again(care),
        // Another row holds the value now: a row of this run that is not yet written, or one that an application just made.
        SqlState::UNIQUE_VIOLATION | SqlState::EXCLUSION_VIOLATION if attempt < MAX_CLASHES => {
            again(Care { thorough: true, ..care })
        }
        SqlState::UNTRANSLATABLE_CHARACTER if !care.fitting => again(Care { fitting: true, ..care }),
        // The table is not what it was when it was looked at: look again, once.
        SqlState::UNDEFINED_TABLE
        | SqlState::UNDEFINED_COLUMN
        | SqlState::DATATYPE_MISMATCH
        | SqlState::UNDEFINED_FUNCTION
        | SqlState::NOT_SUPPORTED
        | SqlState::WRONG_STATE
            if attempt == 0 =>
        {
            again(care)
        }
        // Once more, to tell which row it is.
        _ if error.is_of_some_row() && !care.named => again(Care { named: true, ..care }),
        _ => Verdict::Refused,
    }
}

/// The same for a member beside which `others` can be served: one where somebody else holds a lock for long is left to a run
/// of its own, which waits.
pub fn judge_among(error: &Error, attempt: u32, care: Care, fresh: bool, others: bool) -> Verdict {
    if others && error.code == SqlState::LOCK_NOT_AVAILABLE { Verdict::Down } else { judge(error, attempt, care, fresh) }
}

/// The attempts of a run: how careful the next one is, and how long it waits.
#[derive(Default)]
pub struct Tries {
    pub care: Care,
    /// 0 is the first.
    pub attempt: u32,
    next: Care,
    wait: Duration,
}

impl Tries {
    /// Takes a failure of the present attempt; see [`judge_among`]. The next one is as careful as all that are tried again want.
    pub fn take(&mut self, error: &Error, fresh: bool, others: bool) -> Verdict {
        let verdict = judge_among(error, self.attempt, self.care, fresh, others);
        if let Verdict::Again { care, wait } = verdict {
            self.next = self.next.and(care);
            self.wait = self.wait.max(wait);
        }
        verdict
    }

    /// Begins the next one; how long to wait before it.
    pub fn again(&mut self) -> Duration {
        self.care = self.next;
        self.attempt += 1;
        std::mem::take(&mut self.wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: &str) -> Error {
        Error::new(SqlState::parse(code), "x")
    }

    fn verdict(code: &str, attempt: u32) -> Verdict {
        judge(&error(code), attempt, Care::default(), true)
    }

    #[test]
    fn an_unlucky_run_is_taken_again_and_locks_after_some_defeats() {
        for code in ["40001", "40P01"] {
            assert!(matches!(verdict(code, 0), Verdict::Again { care: Care { locked: false, .. }, .. }));
            assert!(matches!(verdict(code, 2), Verdict::Again { care: Care { locked: true, .. }, .. }));
            assert_eq!(verdict(code, MAX_DEFEATS), Verdict::Refused);
        }
    }

    #[test]
    fn a_run_that_waits_for_a_lock_locks_nothing_more() {
        assert!(matches!(verdict("55P03", LOCK_AFTER), Verdict::Again { care: Care { locked: false, .. }, .. }));
        assert_eq!(verdict("55P03", MAX_WAITS), Verdict::Refused);
    }

    #[test]
    fn a_taken_unique_value_makes_the_next_attempt_thorough() {
        assert!(matches!(verdict("23505", 0), Verdict::Again { care: Care { thorough: true, .. }, .. }));
        assert_eq!(verdict("23505", MAX_CLASHES), Verdict::Refused);
    }

    #[test]
    fn a_stale_connection_is_replaced_before_a_member_is_called_away() {
        assert!(matches!(judge(&error("08006"), 0, Care::default(), false), Verdict::Again { .. }));
        assert_eq!(judge(&error("08006"), 1, Care::default(), false), Verdict::Down);
        assert_eq!(verdict("57P01", 0), Verdict::Down);
    }

    #[test]
    fn who_is_locked_holds_up_no_others() {
        let locked = error("55P03");
        assert_eq!(judge_among(&locked, 0, Care::default(), true, true), Verdict::Down);
        assert!(matches!(judge_among(&locked, 0, Care::default(), true, false), Verdict::Again { .. }));
        assert_eq!(judge_among(&error("23514"), 0, Care::default(), true, true), Verdict::Refused);
    }

    #[test]
    fn a_row_that_breaks_a_rule_is_refused() {
        assert_eq!(verdict("23514", 0), Verdict::Refused);
        assert_eq!(verdict("P0001", 0), Verdict::Refused);
    }

    #[test]
    fn a_row_without_a_name_is_looked_for_once() {
        let unnamed = error("P0001").of_some_row();
        assert!(matches!(judge(&unnamed, 0, Care::default(), true), Verdict::Again { care: Care { named: true, .. }, .. }));
        assert_eq!(judge(&unnamed, 1, Care { named: true, ..Care::default() }, true), Verdict::Refused);
        assert_eq!(verdict("P0001", 0), Verdict::Refused, "it is not of many rows");
    }

    #[test]
    fn the_next_attempt_is_as_careful_as_all_want() {
        let mut tries = Tries::default();
        assert!(matches!(tries.take(&error("23505"), true, true), Verdict::Again { .. }));
        assert!(matches!(tries.take(&error("22P05"), true, true), Verdict::Again { .. }));
        assert_eq!(tries.take(&error("23514"), true, true), Verdict::Refused);
        assert_eq!(tries.care, Care::default(), "the present one is as it is");
        assert_eq!(tries.again(), Duration::from_millis(5));
        assert_eq!((tries.care, tries.attempt), (Care { thorough: true, fitting: true, ..Care::default() }, 1));
        assert_eq!(tries.again(), Duration::ZERO, "nobody failed");
        assert!(tries.care.thorough, "it never gets less careful");
    }
}
