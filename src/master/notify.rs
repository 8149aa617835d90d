//! How other processes speak to the master: all of it shared memory and latches, taking effect when it should. What
//! depends on a transaction is said when that transaction ends; a kick is said at once.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgLogLevel, PgSubXactCallbackEvent, PgXactCallbackEvent, register_subxact_callback, register_xact_callback};

use super::publish::fail_kicks;
use super::slot::{MasterSlot, Shared, Text, UndoSlot};
use crate::catalog;
use crate::error::{Error, Result, SqlState};
use crate::pg::hook::Statement;
use crate::pg::{latch, shmem, spi, worker, xact};

/// Says 55000 with the setting to change when the library was not preloaded.
pub fn require_preload() -> Result<()> {
    if shmem::is_loaded() {
        return Ok(());
    }
    Err(Error::new(SqlState::WRONG_STATE, "bucardo is not in shared_preload_libraries")
        .hint("Run ALTER SYSTEM SET shared_preload_libraries = 'bucardo'; (beside what stands there) and restart the server."))
}

thread_local! {
    /// Whether this transaction has already registered what is to be done at its end.
    static REGISTERED: Cell<bool> = const { Cell::new(false) };
    /// The subtransaction that holds the master back because it drops the extension.
    static HOLDING: Cell<Option<u32>> = const { Cell::new(None) };
    /// The undo slots of this transaction, each with the subtransaction that holds it.
    static UNDO: RefCell<Vec<(usize, u32)>> = const { RefCell::new(Vec::new()) };
    /// Whether this transaction has rolled back to a savepoint since it called `stop`.
    static ROLLED_BACK: Cell<bool> = const { Cell::new(false) };
    /// Whether this transaction has installed more than it has undo slots for.
    static UNNOTED: Cell<bool> = const { Cell::new(false) };
}

fn at_end() {
    if !shmem::is_loaded() || REGISTERED.replace(true) {
        return;
    }
    register_xact_callback(PgXactCallbackEvent::Commit, ended);
    register_xact_callback(PgXactCallbackEvent::Abort, ended);
    register_subxact_callback(PgSubXactCallbackEvent::AbortSub, |me, _| rolled_back(me));
    register_subxact_callback(PgSubXactCallbackEvent::CommitSub, |me, parent| {
        UNDO.with_borrow_mut(|mine| mine.iter_mut().filter(|(_, holder)| *holder == me).for_each(|(_, holder)| *holder = parent));
        HOLDING.set(HOLDING.get().map(|holder| if holder == me { parent } else { holder }));
    });
    refuse_prepare();
}

/// What was installed since a savepoint to which the transaction rolls back is the master's at once, and a DROP since then was
/// none: the transaction may go on for long.
fn rolled_back(subtransaction: u32) {
    let undone: Vec<usize> = UNDO.with_borrow_mut(|mine| {
        let undone = mine.iter().filter(|(_, holder)| *holder == subtransaction).map(|(at, _)| *at).collect();
        mine.retain(|(_, holder)| *holder != subtransaction);
        undone
    });
    let released = HOLDING.get() == Some(subtransaction);
    if undone.is_empty() && !released {
        return;
    }
    if released {
        HOLDING.set(None);
    }
    let db = shmem::my_database();
    let procno = shmem::with(|s| {
        undone.iter().for_each(|at| s.undo[*at].owner = 0);
        s.master(db).map_or(-1, |master| {
            if released {
                release(master);
            }
            master.generation += 1;
            master.procno
        })
    });
    worker::set_latch(procno);
}

/// What is to be said at the end cannot be said by whoever commits a prepared transaction, in a session of his own.
fn refuse_prepare() {
    register_xact_callback(PgXactCallbackEvent::PrePrepare, || {
        let error = Error::new(SqlState::WRONG_STATE, "cannot PREPARE a transaction that has changed what bucardo does")
            .hint("COMMIT it instead.");
        ErrorReport::from(error).report(PgLogLevel::ERROR);
    });
}

/// At the end of the transaction, whichever: the master compares with the catalog what became of it, so that a
/// savepoint rolled back inside of a committed transaction counts too. Only copies into shared memory and sets a latch.
fn ended() {
    REGISTERED.set(false);
    let mine = UNDO.take();
    let holding = HOLDING.take().is_some();
    let unnoted = UNNOTED.take();
    let db = shmem::my_database();
    let procno = shmem::with(|s| {
        for (at, _) in mine {
            s.undo[at].owner = 0;
        }
        s.master(db).map_or(-1, |master| {
            if holding {
                release(master);
            }
            if unnoted {
                master.unnoted = master.unnoted.saturating_sub(1);
                master.unswept = true;
            }
            master.generation += 1;
            master.procno
        })
    });
    worker::set_latch(procno);
}

/// Lets the master go on, unless another DROP EXTENSION holds it back by now.
fn release(master: &mut MasterSlot) {
    if master.held_by == worker::me().0 {
        master.held_by = 0;
    }
}

/// Tells this database's master, when the transaction commits, that the catalog changed. Harmless when not preloaded.
pub fn catalog_changed() {
    at_end();
}

/// Kicks a sync when the transaction commits: before that the master does not know what has become of it. Nobody is there to be
/// kicked when not preloaded.
pub fn kick_at_commit(sync: i32) {
    if !shmem::is_loaded() {
        return;
    }
    // First of all at the end the catalog has changed, and then there is a kick.
    at_end();
    let db = shmem::my_database();
    register_xact_callback(PgXactCallbackEvent::Commit, move || {
        let procno = shmem::with(|s| {
            if let Some(slot) = s.sync(db, sync) {
                slot.kicked += 1;
                slot.fresh = true;
            }
            s.master(db).map_or(-1, |master| master.procno)
        });
        worker::set_latch(procno);
    });
}

/// Notes that capture of that name is about to be installed on a member by this transaction: should it roll back, the
/// master removes it again. What no slot can hold makes it ask all members.
pub fn remember_install(db: &str, conninfo: &str, sync: &str) {
    if !shmem::is_loaded() {
        return;
    }
    let (owner, _) = worker::me();
    let entry =
        UndoSlot { db: shmem::my_database(), owner, member: Text::new(db), conninfo: Text::new(conninfo), sync: Text::new(sync) };
    let holder = xact::subtransaction();
    let whole = entry.conninfo.get() == conninfo && entry.member.get() == db && entry.sync.get() == sync;
    at_end();
    UNDO.with_borrow_mut(|mine| {
        shmem::with(|s| {
            let same = |u: &UndoSlot| u.member.get() == db && u.conninfo.get() == conninfo && u.sync.get() == sync;
            if mine.iter().any(|(at, _)| same(&s.undo[*at])) {
                return;
            }
            match s.undo.iter().position(|u| u.db == 0).filter(|_| whole) {
                Some(at) => {
                    s.undo[at] = entry;
                    mine.push((at, holder));
                }
                None => {
                    if let Some(master) = s.master(entry.db).filter(|_| !UNNOTED.replace(true)) {
                        master.unnoted += 1;
                    }
                }
            }
        });
    });
}

/// Where transactions that have ended installed capture: (member, conninfo, capture). The master owns it from now on, and
/// must have read the catalog since they ended.
pub fn take_installed(shared: &mut Shared, db: u32) -> Vec<(String, String, String)> {
    let mut all = Vec::new();
    for slot in shared.undo.iter_mut().filter(|u| u.db == db && u.owner == 0) {
        all.push((slot.member.get().to_string(), slot.conninfo.get().to_string(), slot.sync.get().to_string()));
        slot.db = 0;
    }
    all
}

/// How long DROP waits for a stopped master to learn the members.
const LEARN_WAIT: Duration = Duration::from_secs(5);
/// How long DROP waits for our workers to end.
const DROP_WAIT: Duration = Duration::from_secs(10);

/// Before a utility statement that concerns us: gets our workers out of its way.
pub fn before_utility(statement: &Statement) {
    match statement {
        // The master stays, idle and without any lock: it takes capture off the members once the drop is committed.
        Statement::DropExtension => {
            let db = shmem::my_database();
            let (pid, _) = worker::me();
            if shmem::is_loaded() {
                at_end();
                await_master(db);
                shmem::with(|s| s.master(db).map(|m| m.held_by = pid));
                HOLDING.set(HOLDING.get().or_else(|| Some(xact::subtransaction())));
                end_workers(db, false);
            }
        }
        Statement::DropDatabase(db) => {
            let db = *db;
            if shmem::with(|s| s.master(db).is_some_and(|m| std::mem::replace(&mut m.wanted, false))) {
                // Somebody else may still be connected: then the master comes back.
                register_xact_callback(PgXactCallbackEvent::Abort, move || super::launcher::want(std::iter::once(db)));
                end_workers(db, true);
            }
        }
        Statement::CommitPrepared => {}
    }
}

/// After it succeeded.
pub fn after_utility(statement: &Statement) {
    match statement {
        Statement::DropDatabase(db) => shmem::with(|s| {
            s.keep_syncs(*db, &[]);
            if let Some(master) = s.master(*db) {
                master.db = 0;
            }
            s.forget_kids();
        }),
        // Who prepared it cannot say so any more: everybody on this server looks once.
        Statement::CommitPrepared => shmem::committed(shmem::my_database()),
        Statement::DropExtension => {}
    }
}

/// The master must know all who must be told that the extension is gone. Where it was stopped it is started once more, to
/// learn that.
fn await_master(db: u32) {
    // Without members, and places where members were, there is nobody to be told.
    let anybody = "SELECT EXISTS (SELECT FROM bucardo.db) OR EXISTS (SELECT FROM bucardo.cleanup)";
    if !matches!(spi::value::<bool>(anybody, &[]), Ok(Some(true))) {
        return;
    }
    let deadline = Instant::now() + LEARN_WAIT;
    // What was committed before is to be known; what others commit meanwhile may be.
    let generation = shmem::generation(db);
    let mut asked = false;
    while let Some(left) = latch::left(deadline) {
        let (ready, launcher) = shmem::with(|s| {
            let launcher = s.launcher;
            let Some(master) = s.master_or_new(db) else { return (true, launcher) };
            if master.pid == 0 && !asked {
                master.loaded = 0;
                master.wanted = true;
                master.stop = false;
                master.for_drop = true;
            }
            // One that is held back by another DROP reads nothing more.
            let read = master.loaded >= generation || master.held_by != 0;
            (master.pid != 0 && master.loaded != 0 && read, launcher)
        });
        if ready {
            return;
        }
        if !std::mem::replace(&mut asked, true) {
            worker::set_latch(launcher);
        }
        latch::wait(None, Some(left.min(Duration::from_millis(10))));
    }
    pgrx::warning!("bucardo: no master has read in time from which members capture is to be taken off: it may be left there");
}

/// Ends the kids of a database, and the master too if asked; waits until they are gone.
fn end_workers(db: u32, with_master: bool) {
    let deadline = Instant::now() + DROP_WAIT;
    while let Some(left) = latch::left(deadline) {
        let alive = shmem::read(|s| {
            let kids = s.kids.iter().filter(|k| k.db == db && k.pid != 0).map(|k| k.pid);
            let masters = s.masters.iter().filter(|m| with_master && m.db == db && m.pid != 0).map(|m| m.pid);
            let mut pids = [0; super::slot::MAX_KIDS + 1];
            kids.chain(masters).zip(pids.iter_mut()).for_each(|(pid, place)| *place = pid);
            pids
        });
        if alive[0] == 0 {
            return;
        }
        alive.iter().for_each(|pid| worker::signal(*pid, libc::SIGTERM));
        latch::wait(None, Some(left.min(Duration::from_millis(10))));
    }
}

/// What a call that needs the master is told when there is none, and what mends it.
pub const STOPPED: &str = "bucardo is stopped in this database";
pub const START: &str = "SELECT bucardo.start();";

/// Says 55000 when the master of this database is stopped, and 25006 on a standby. What the catalog says counts: soon after the start of the
/// server a master that shall run may not be there yet, and one that shall not may be about to learn it.
pub fn require_master() -> Result<()> {
    spi::require_primary()?;
    if catalog::is_stopped()? != Some(true) {
        return cannot_start().map_or(Ok(()), Err);
    }
    Err(Error::new(SqlState::WRONG_STATE, STOPPED).hint(START))
}

/// Why the master of this database does not run although it shall, as far as that is known. One that only has not been
/// started yet has no such reason.
pub fn cannot_start() -> Option<Error> {
    let db = shmem::my_database();
    let why = shmem::read(|s| match s.masters.iter().find(|m| m.db == db) {
        // One that fails comes again soon.
        Some(m) if m.pid != 0 || m.fails || m.trouble.is_empty() => None,
        Some(m) => Some(m.trouble),
        None => s.crowded.then(|| Text::new(super::launcher::CROWDED)),
    })?;
    Some(Error::new(SqlState::WRONG_STATE, why.get()))
}

/// Asks the launcher for a master of this database, when the transaction commits.
pub fn want_master_at_commit() {
    refuse_prepare();
    register_xact_callback(PgXactCallbackEvent::Commit, || {
        let db = shmem::my_database();
        // Why the last one did not work is no news any more.
        shmem::with(|s| {
            s.master(db).map(|m| {
                m.trouble = Text::EMPTY;
                m.fails = false;
            })
        });
        super::launcher::want(std::iter::once(db));
    });
}

/// A `stop` that is rolled back was none. Rolled back to a savepoint, it may have been one or not: a master that is started
/// reads in the catalog which, and ends again.
pub fn want_master_unless_stopped() {
    let db = shmem::my_database();
    refuse_prepare();
    ROLLED_BACK.set(false);
    register_subxact_callback(PgSubXactCallbackEvent::AbortSub, |_, _| ROLLED_BACK.set(true));
    let want = move || super::launcher::want(std::iter::once(db));
    register_xact_callback(PgXactCallbackEvent::Abort, want);
    register_xact_callback(PgXactCallbackEvent::Commit, move || {
        if ROLLED_BACK.take() {
            want();
        } else {
            stop_now(db);
        }
    });
}

/// A master that has started since `stop` was called, and could not see it, ends. Where there is none, who has kicked since then
/// is told.
fn stop_now(db: u32) {
    let procno = shmem::with(|s| {
        let Some(m) = s.master(db) else { return -1 };
        // One that takes capture off, for a DROP EXTENSION in the same transaction, ends by itself.
        if !m.for_drop {
            m.wanted = false;
            m.stop = m.pid != 0;
            m.generation += 1;
        }
        // What ended it before is no news any more.
        if std::mem::take(&mut m.fails) {
            m.trouble = Text::EMPTY;
        }
        let (pid, procno) = (m.pid, m.procno);
        for sync in s.syncs.iter_mut().filter(|y| pid == 0 && y.db == db && y.kicked > y.done) {
            fail_kicks(sync, SqlState::WRONG_STATE, STOPPED);
            sync.hint = Text::new(START);
        }
        procno
    });
    worker::set_latch(procno);
}

/// Says that no master will run here. Within CREATE EXTENSION the server keeps notices back; at the commit it does not.
pub fn tell_not_preloaded_at_commit() {
    register_xact_callback(PgXactCallbackEvent::PreCommit, || {
        pgrx::notice!(
            "bucardo is not in shared_preload_libraries: no master will run here, and no sync can be added; a member needs none"
        );
    });
}
