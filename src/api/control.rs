//! Starting, stopping and asking the master. What must survive a restart is written to the catalog; the rest is said
//! through shared memory.

use std::time::{Duration, Instant};

use pgrx::datum::Interval;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::interval;
use crate::catalog;
use crate::error::{Error, Result, SqlState};
use crate::master::notify;
use crate::pg::{latch, shmem, spi, worker};

const LOOK: Duration = Duration::from_millis(20);

/// Starts the master of this database, and clears an earlier `stop`. `started` or `already running`.
#[pg_extern(security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn start(reason: default!(Option<&str>, "NULL")) -> Result<&'static str, ErrorReport> {
    Ok(start_master(reason)?)
}

fn start_master(reason: Option<&str>) -> Result<&'static str> {
    notify::require_preload()?;
    let stopped = catalog::is_stopped()?.unwrap_or(false);
    let db = shmem::my_database();
    let wanted = shmem::read(|s| s.masters.iter().find(|m| m.db == db).map_or(s.crowded, |m| m.wanted && !m.stop));
    if wanted && !stopped {
        // What was restored from a dump has told nobody; who starts it wants that to be seen.
        notify::catalog_changed();
        return notify::cannot_start().map_or(Ok("already running"), Err);
    }
    if let Some(reason) = reason {
        log!("bucardo: started: {reason}");
    }
    // Who starts it says that this is the place.
    spi::execute("UPDATE bucardo.control SET stopped = false, stop_reason = NULL, identity = NULL", &[])?;
    mark_database()?;
    notify::want_master_at_commit();
    Ok("started")
}

/// Leaves the launcher's mark on this database.
fn mark_database() -> Result<()> {
    let sql = spi::value::<String>(
        "SELECT pg_catalog.format('ALTER DATABASE %I SET bucardo.master = on', pg_catalog.current_database())",
        &[],
    )?;
    sql.map_or(Ok(()), |sql| spi::execute(&sql, &[]).map(drop))
}

/// Called by CREATE EXTENSION: the master starts when it commits.
#[pg_extern]
fn begin_master() -> Result<(), ErrorReport> {
    mark_database()?;
    if shmem::is_loaded() {
        notify::want_master_at_commit();
    } else {
        notify::tell_not_preloaded_at_commit();
    }
    Ok(())
}

/// Stops the master: runs in progress are rolled back everywhere. Holds across restarts until `start`.
#[pg_extern(security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn stop(
    reason: default!(Option<&str>, "NULL"),
    timeout: default!(Option<Interval>, "'30s'"),
) -> Result<&'static str, ErrorReport> {
    Ok(stop_master(reason, interval::given(timeout)?)?)
}

fn stop_master(reason: Option<&str>, timeout: Duration) -> Result<&'static str> {
    notify::require_preload()?;
    if !catalog::is_stopped()?.unwrap_or(false) {
        notify::want_master_unless_stopped();
    }
    spi::execute("UPDATE bucardo.control SET stopped = true, stop_reason = $1", &[reason.into()])?;
    let db = shmem::my_database();
    let deadline = Instant::now() + timeout;
    // A master that waits for something by then is ended as any process is.
    let mut firmly = Some(Instant::now() + timeout / 2);
    loop {
        let (pid, procno) = shmem::with(|s| {
            s.master(db).map_or((0, -1), |m| {
                m.wanted = false;
                m.stop = m.pid != 0;
                (m.pid, m.procno)
            })
        });
        if pid == 0 {
            return Ok("stopped");
        }
        worker::set_latch(procno);
        if firmly.take_if(|at| latch::left(*at).is_none()).is_some() {
            worker::signal(pid, libc::SIGTERM);
        }
        let Some(left) = latch::left(deadline) else {
            return Err(Error::new(SqlState::TIMED_OUT, "the master has not stopped in time")
                .hint("It goes on; call bucardo.stop() again with a longer timeout."));
        };
        latch::wait(None, Some(left.min(LOOK)));
    }
}

/// Makes the master read the catalog again. Never needed after the functions of this extension.
#[pg_extern(security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn reload() -> Result<&'static str, ErrorReport> {
    notify::require_preload()?;
    notify::require_master()?;
    notify::catalog_changed();
    Ok("reloaded")
}

/// How long the master takes to answer; 57014 when it does not.
#[pg_extern(security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn ping(timeout: default!(Option<Interval>, "'15s'")) -> Result<Interval, ErrorReport> {
    Ok(interval::interval(ping_master(interval::given(timeout)?)?))
}

fn ping_master(timeout: Duration) -> Result<Duration> {
    notify::require_preload()?;
    notify::require_master()?;
    let db = shmem::my_database();
    let began = Instant::now();
    let deadline = began + timeout;
    // Right after the server's start the master has no place in the table yet: then it is asked as soon as it has.
    let mut ticket = 0;
    loop {
        let (answered, procno) = shmem::with(|s| {
            s.master(db).map_or((0, -1), |m| {
                if ticket == 0 {
                    m.ping_asked += 1;
                    ticket = m.ping_asked;
                }
                (m.ping_answered, m.procno)
            })
        });
        if ticket != 0 && answered >= ticket {
            return Ok(began.elapsed());
        }
        worker::set_latch(procno);
        let Some(left) = latch::left(deadline) else {
            return Err(Error::new(SqlState::TIMED_OUT, "the master has not answered in time")
                .hint("See the server's log, and bucardo.status."));
        };
        latch::wait(None, Some(left.min(Duration::from_millis(1))));
    }
}
