//! Fault points: named places in master and kid that a test build can stop, fail or kill from SQL. In other builds a
//! point is nothing at all, and the functions do not exist.

/// Passes a named place. In a test build it may fail, wait, or end the process, as `bucardo.fault_set` said.
#[cfg(not(feature = "fault_points"))]
#[inline(always)]
pub fn point(_name: &'static str) -> crate::error::Result<()> {
    Ok(())
}

/// By how much (microseconds) a member's clock is to be taken for another one. In a test build `bucardo.fault_clock` sets it.
#[cfg(not(feature = "fault_points"))]
#[inline(always)]
pub fn clock(_member: &str) -> i64 {
    0
}

#[cfg(feature = "fault_points")]
pub use armed::{clock, point};

#[cfg(feature = "fault_points")]
mod armed {
    use std::time::Duration;

    use pgrx::pg_sys::panic::ErrorReport;
    use pgrx::prelude::*;

    use crate::error::{Error, Result, SqlState};
    use crate::pg::fault::{self, Action};
    use crate::pg::{latch, shmem, worker};

    /// Every point, in the order in which a run passes them.
    const POINTS: [&str; 14] = [
        "master.before_reload",
        "master.within_reload",
        "master.before_assign",
        "master.after_assign",
        "master.before_report",
        "master.after_report",
        "kid.before_run",
        "kid.before_gather",
        "kid.after_gather",
        "kid.before_commit",
        "kid.between_commits",
        "kid.after_commit",
        "kid.before_mark",
        "kid.after_mark",
    ];
    /// Points that not every run passes: `fault_points` does not tell of them.
    const RARE: [&str; 1] = ["kid.before_next_round"];

    fn number(name: &str) -> Option<usize> {
        POINTS.iter().chain(&RARE).position(|p| *p == name)
    }

    pub fn point(name: &'static str) -> Result<()> {
        let Some(at) = number(name) else { return Err(Error::internal(format!("{name} is not in the list of fault points"))) };
        match fault::pass(at) {
            None => Ok(()),
            Some(Action::Error) => Err(Error::internal(format!("fault point {name}"))),
            Some(Action::Kill) => {
                ereport!(FATAL, PgSqlErrorCode::ERRCODE_ADMIN_SHUTDOWN, format!("fault point {name}"));
            }
            Some(Action::Panic) => {
                worker::signal(worker::me().0, libc::SIGKILL);
                Ok(())
            }
            Some(Action::Wait) => {
                while fault::is_set(at) && !stopping() {
                    latch::wait(None, Some(Duration::from_millis(20)));
                }
                Ok(())
            }
        }
    }

    /// Whether this is a master that was told to stop: it waits at a point no longer than it would for anything else.
    fn stopping() -> bool {
        let (pid, _) = worker::me();
        shmem::read(|s| s.masters.iter().any(|m| m.pid == pid && m.stop))
    }

    fn unknown(point: &str) -> Error {
        Error::new(SqlState::UNDEFINED_OBJECT, format!("fault point \"{point}\" does not exist"))
            .hint("SELECT bucardo.fault_points(); lists them.")
    }

    /// Sets what happens the next `times` times that the point is passed: `error`, `kill`, `panic` or `wait`.
    #[pg_extern]
    fn fault_set(point: &str, action: &str, times: default!(i32, 1)) -> Result<(), ErrorReport> {
        let at = number(point).ok_or_else(|| unknown(point))?;
        let action = match action {
            "error" => Action::Error,
            "kill" => Action::Kill,
            "panic" => Action::Panic,
            "wait" => Action::Wait,
            _ => {
                return Err(Error::new(SqlState::INVALID_PARAMETER, format!("\"{action}\" is not an action"))
                    .hint("error, kill, panic or wait")
                    .into());
            }
        };
        fault::set(at, action, times);
        Ok(())
    }

    pub fn clock(member: &str) -> i64 {
        fault::clock(number_of(member))
    }

    /// The clock of a member is read as if it went so many seconds ahead; of members whose names begin alike it is the same.
    #[pg_extern]
    fn fault_clock(member: &str, seconds: f64) {
        fault::set_clock(number_of(member), (seconds * 1_000_000.0) as i64);
    }

    fn number_of(member: &str) -> usize {
        usize::from(member.bytes().next().unwrap_or(0))
    }

    /// Forgets all that was set; who waits goes on.
    #[pg_extern]
    fn fault_clear() {
        fault::clear();
    }

    /// How often the point was passed since the server started.
    #[pg_extern]
    fn fault_hits(point: &str) -> Result<i64, ErrorReport> {
        Ok(fault::hits(number(point).ok_or_else(|| unknown(point))?))
    }

    /// Whether somebody has met what was set, as often as it was. Passings before that do not count.
    #[pg_extern]
    fn fault_taken(point: &str) -> Result<bool, ErrorReport> {
        Ok(fault::is_taken(number(point).ok_or_else(|| unknown(point))?))
    }

    /// The names of the points that every run passes.
    #[pg_extern]
    fn fault_points() -> SetOfIterator<'static, &'static str> {
        SetOfIterator::new(POINTS)
    }
}
