//! `bucardo.kick`: asks for a run now, and waits for one that began after the call. Shared memory only; the run itself
//! is the master's and a kid's.

use std::time::{Duration, Instant};

use pgrx::prelude::*;

use super::{interval, required};
use crate::catalog::{Noun, rest};
use crate::error::{Error, Result, SqlState};
use crate::ident::quote_literal;
use crate::master::notify;
use crate::master::slot::{Outcome, SyncSlot};
use crate::pg::{latch, shmem, spi, worker, xact};

/// Asks for a run of the sync. Without a timeout: `kicked`, at once. With one: waits for a run that began after the
/// call and returns `good` or `empty`; raises the run's error when it failed, 57014 when it is late.
#[pg_extern(security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn kick(
    sync: Option<&str>,
    timeout: default!(Option<pgrx::datum::Interval>, "NULL"),
) -> Result<&'static str, pgrx::pg_sys::panic::ErrorReport> {
    Ok(kick_sync(required(sync, "sync")?, timeout.map(interval::duration).transpose()?)?)
}

fn kick_sync(name: &str, timeout: Option<Duration>) -> Result<&'static str> {
    notify::require_preload()?;
    let Runnable { id, changed, new } = runnable(name, false)?;
    notify::require_master()?;
    let Some(timeout) = timeout else {
        // The master cannot see yet what this transaction has made of the sync.
        if changed {
            notify::kick_at_commit(id);
        }
        if !new {
            ask(shmem::my_database(), id, None, false)?;
        }
        return Ok("kicked");
    };
    if new {
        let message = format!("sync \"{name}\" was added in this transaction, and cannot run before it commits");
        let hint = format!("COMMIT first, then SELECT bucardo.kick({}, …);", quote_literal(name));
        return Err(Error::new(SqlState::WRONG_STATE, message).hint(hint));
    }
    let db = shmem::my_database();
    let (_, procno) = worker::me();
    let ticket = ask(db, id, Some(procno), false)?;
    let _place = Place { db, id, procno };
    wait(name, id, changed, ticket, Instant::now().checked_add(timeout))
}

/// Says that a run is wanted; the ticket by which its end is known. `waiter`: whom to wake then. `again`: it was said before.
fn ask(db: u32, id: i32, waiter: Option<i32>, again: bool) -> Result<u64> {
    let asked = shmem::with(|s| {
        let slot = s.sync(db, id)?;
        slot.kicked += 1;
        let ticket = slot.kicked;
        if let (Some(procno), Some(place)) = (waiter, slot.waiters.iter_mut().find(|w| **w < 0)) {
            *place = procno;
        }
        // It may just be reading a catalog that has no such sync yet.
        slot.fresh |= ticket == 1 && !again;
        let Some(master) = s.master(db) else { return Some((ticket, -1)) };
        // What was restored from a dump has told nobody: at a first kick the master reads the catalog again.
        if ticket == 1 && !again {
            master.generation += 1;
        }
        Some((ticket, master.procno))
    });
    let Some((ticket, master)) = asked else {
        return Err(Error::new(SqlState::INSUFFICIENT_RESOURCES, "too many syncs on this server"));
    };
    worker::set_latch(master);
    Ok(ticket)
}

/// A sync that may run, by what this transaction sees.
struct Runnable {
    id: i32,
    /// This transaction has changed it: others see it as it was.
    changed: bool,
    /// This transaction has added it: others do not see it.
    new: bool,
}

/// The sync, if it may run. `anew`: as it is by now, not as it was when the statement began.
fn runnable(name: &str, anew: bool) -> Result<Runnable> {
    let sql = "SELECT s.id, s.status = 'active', s.paused, a.dbs, s.xmin::text, s.created = now() \
               FROM bucardo.sync s LEFT JOIN bucardo.asleep a ON a.sync = s.name WHERE s.name = $1";
    let row = |row: &spi::Row<'_>| {
        let changed = row.get::<String>(5)?.parse().is_ok_and(xact::is_mine);
        let found = Runnable { id: row.get(1)?, changed, new: changed && row.get(6)? };
        Ok((found, row.get::<bool>(2)?, row.get::<bool>(3)?, row.opt::<Vec<String>>(4)?))
    };
    let found = if anew { spi::write(sql, &[name.into()], row) } else { spi::select(sql, &[name.into()], row) }?;
    match found.into_iter().next() {
        None => Err(Noun::Sync.unknown(name)),
        Some((_, false, ..)) => Err(rest::inactive(name)),
        Some((_, _, true, _)) => Err(rest::paused(name)),
        Some((.., Some(dbs))) => Err(rest::asleep(name, &dbs)),
        Some((found, ..)) => Ok(found),
    }
}

/// A waiting kick's place, given up in every way out.
struct Place {
    db: u32,
    id: i32,
    procno: i32,
}

impl Drop for Place {
    fn drop(&mut self) {
        shmem::with(|s| {
            let slot = s.syncs.iter_mut().find(|y| y.db == self.db && y.sync == self.id);
            if let Some(place) = slot.and_then(|y| y.waiters.iter_mut().find(|w| **w == self.procno)) {
                *place = -1;
            }
        });
    }
}

/// What a finished run means for who kicked. `changed`: his transaction has changed the sync, and the master does not know it.
fn answer(slot: &SyncSlot, changed: bool) -> Result<&'static str> {
    if !slot.warning.is_empty() && slot.outcome != Outcome::Bad {
        warning!("{}", slot.warning.get());
    }
    match slot.outcome {
        Outcome::Good => Ok("good"),
        Outcome::Empty => Ok("empty"),
        Outcome::Bad | Outcome::None => {
            let error = Error::new(SqlState(slot.sqlstate), slot.message.get());
            Err(match slot.hint.get() {
                _ if slot.resting && changed => error.hint(COMMIT_FIRST),
                "" => error,
                hint => error.hint(hint),
            })
        }
    }
}

const COMMIT_FIRST: &str = "What this transaction has changed counts from its end on: COMMIT first, then kick the sync.";

/// Even without a wake-up (more waiters than places) a waiting kick looks this often.
const LOOK: Duration = Duration::from_millis(100);

fn wait(name: &str, id: i32, changed: bool, mut ticket: u64, deadline: Option<Instant>) -> Result<&'static str> {
    let db = shmem::my_database();
    loop {
        match shmem::read(|s| s.syncs.iter().find(|y| y.db == db && y.sync == id).copied()) {
            Some(slot) if slot.kicked >= ticket && slot.done >= ticket => return answer(&slot, changed),
            Some(slot) if slot.kicked >= ticket => {}
            // The master knew nothing of the sync: it was removed, or is so new that it must be asked for again.
            _ => {
                let now = runnable(name, true)?.id;
                if now != id {
                    let message = format!("sync \"{name}\" was removed, and another of that name was added");
                    return Err(Error::new(SqlState::UNDEFINED_OBJECT, message).hint("Kick that one, if you want it to run."));
                }
                ticket = ask(db, id, Some(worker::me().1), true)?;
            }
        }
        let left = match deadline {
            None => LOOK,
            Some(deadline) => latch::left(deadline).ok_or_else(|| {
                Error::new(SqlState::TIMED_OUT, format!("sync \"{name}\" has not finished a run in time"))
                    .hint("The run goes on. SELECT * FROM bucardo.activity; shows what it does.")
            })?,
        };
        latch::wait(None, Some(left.min(LOOK)));
    }
}
