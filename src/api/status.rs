//! What people look at: the live part of `bucardo.status` and `bucardo.activity` from shared memory, and what is
//! pending, asked of the sources themselves.

use std::time::Duration;

use pgrx::datum::{Interval, TimestampWithTimeZone};
use pgrx::iter::TableIterator;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::interval;
use crate::capture::install;
use crate::catalog::db::Db;
use crate::catalog::sync::Sync;
use crate::catalog::{self, Noun};
use crate::error::Result;
use crate::guc;
use crate::libpq::Conn;
use crate::master::launcher::CROWDED;
use crate::master::notify;
use crate::master::slot::{KidState, Shown};
use crate::master::upkeep;
use crate::pg::{shmem, worker};

/// What is captured and not yet served, by sync, source and relation.
#[pg_extern(security_definer)]
#[search_path(pg_catalog, pg_temp)]
#[expect(clippy::type_complexity, reason = "pgrx reads the columns from the type")]
fn pending(
    sync: default!(Option<&str>, "NULL"),
) -> Result<
    TableIterator<
        'static,
        (
            name!(sync, String),
            name!(source, String),
            name!(relation, String),
            name!(changes, i64),
            name!(oldest, Option<TimestampWithTimeZone>),
        ),
    >,
    ErrorReport,
> {
    Ok(TableIterator::new(pending_rows(sync)?))
}

type Pending = (String, String, String, i64, Option<TimestampWithTimeZone>);

fn pending_rows(only: Option<&str>) -> Result<Vec<Pending>> {
    let syncs = match only {
        Some(name) => vec![catalog::change::load(name)?],
        None => catalog::sync::load_all()?,
    };
    let control = catalog::control_id()?;
    let mut sources: Vec<&Db> = syncs.iter().filter(|s| s.captures()).flat_map(|s| s.sources()).map(|m| &m.db).collect();
    sources.sort_by(|a, b| a.name.cmp(&b.name));
    sources.dedup_by(|a, b| a.name == b.name);
    let mut all = Vec::new();
    let (mut answered, mut failed) = (false, Vec::new());
    for source in sources {
        match backlog(source, &control, &syncs) {
            Ok(rows) => {
                answered = true;
                all.extend(rows);
            }
            // One that is inactive goes on capturing, unless it is away, or was never prepared.
            Err(error) if !source.active && (error.code.class() == "08" || install::is_missing(&error)) => {}
            Err(error) if error.code.class() == "08" => failed.push(error),
            Err(error) => return Err(error),
        }
    }
    // Of all sources, those that are there; but who asks for one sync must not take silence for an answer.
    match failed.pop() {
        Some(error) if only.is_some() && !answered => return Err(error),
        last => failed.into_iter().chain(last).for_each(|error| warning!("{}", error.message)),
    }
    Ok(all)
}

/// What one source has captured for the syncs and not served.
fn backlog(source: &Db, control: &str, syncs: &[Sync]) -> Result<Vec<Pending>> {
    // One that is inactive may be gone for good; nobody waits long for it.
    let patience = if source.active { guc::connect_timeout() } else { guc::connect_timeout().min(Duration::from_secs(2)) };
    let mut conn = Conn::open(&source.target, "bucardo pending", patience)?;
    conn.query("SET statement_timeout = 0")?;
    let rows = conn.query_params(
        "SELECT b.sync, b.schemaname || '.' || b.relname, b.changes, (extract(epoch FROM b.oldest) * 1000000)::bigint - 946684800000000 \
         FROM bucardo.capture_backlog($1) b",
        &[Some(control)],
    )?;
    let pending = |i: usize| {
        let captured = rows.text(i, 0);
        // The same database may be there under another name, as a source of other syncs.
        let is_source = |s: &&Sync| s.sources().any(|m| m.db.name == source.name);
        let sync = syncs.iter().find(|s| s.capture_name() == captured).filter(is_source)?;
        let oldest = rows.number::<i64>(i, 3).and_then(|micros| TimestampWithTimeZone::try_from(micros).ok());
        Some((sync.name.clone(), source.name.clone(), rows.text(i, 1), rows.number(i, 2).unwrap_or(0), oldest))
    };
    Ok((0..rows.len()).filter_map(pending).collect())
}

/// Purges served deltas now, on one source or on all. How many were freed.
#[pg_extern(security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn purge(db: default!(Option<&str>, "NULL")) -> Result<i64, ErrorReport> {
    Ok(purge_sources(db)?)
}

/// How often a source is asked to go on with its tables: those that are written to all the time are never all empty.
const PURGES: u32 = 1000;

fn purge_sources(only: Option<&str>) -> Result<i64> {
    if let Some(name) = only {
        catalog::db::load(name)?.ok_or_else(|| Noun::Db.unknown(name))?;
    }
    let syncs = catalog::sync::load_all()?;
    let mut done: Vec<&str> = Vec::new();
    let mut freed = 0;
    for member in syncs.iter().filter(|s| s.captures()).flat_map(|s| s.sources()).filter(|m| m.db.active) {
        let name = member.db.name.as_str();
        if done.contains(&name) || only.is_some_and(|o| o != name) {
            continue;
        }
        done.push(name);
        let mut conn = match Conn::open(&member.db.target, "bucardo purge", guc::connect_timeout()) {
            // Of all sources, those that are there.
            Err(error) if only.is_none() => {
                warning!("{}", error.message);
                continue;
            }
            opened => opened?,
        };
        conn.query("SET statement_timeout = 0; SET default_transaction_isolation = 'read committed'")?;
        for _ in 0..PURGES {
            let some = conn.query(&upkeep::purge_sql(0))?.number::<i64>(0, 0).unwrap_or(0);
            freed += if some < 0 { -some - 1 } else { some };
            if some >= 0 {
                break;
            }
        }
    }
    Ok(freed)
}

/// The live state of each sync, for the view `bucardo.status`.
#[pg_extern]
#[expect(clippy::type_complexity, reason = "pgrx reads the columns from the type")]
fn sync_state() -> TableIterator<
    'static,
    (
        name!(sync, i32),
        name!(state, Option<&'static str>),
        name!(error, Option<String>),
        name!(next_try, Option<TimestampWithTimeZone>),
        name!(doubt, Option<String>),
    ),
> {
    if !shmem::is_loaded() {
        return TableIterator::empty();
    }
    let db = shmem::my_database();
    let rows: Vec<_> =
        shmem::read(|s| s.syncs.iter().filter(|y| y.db == db).map(|y| (y.sync, y.shown, y.error, y.next_try, y.doubt)).collect());
    TableIterator::new(rows.into_iter().map(|(sync, shown, error, next_try, doubt)| {
        let state = match shown {
            Shown::Last => None,
            Shown::Running => Some("running"),
            Shown::Bad => Some("bad"),
            Shown::Stalled | Shown::Waiting => Some("stalled"),
        };
        let error = (!error.is_empty()).then(|| error.get().to_string());
        let next_try = (next_try != 0).then(|| TimestampWithTimeZone::try_from(next_try).ok()).flatten();
        let doubt = (!doubt.is_empty()).then(|| doubt.get().to_string());
        (sync, state, error, next_try, doubt)
    }))
}

/// Whether the master runs, and why not if it cannot; whether there is no room for the live state of further syncs. For the
/// view `bucardo.status`.
#[pg_extern]
fn master_state() -> TableIterator<'static, (name!(running, bool), name!(trouble, Option<String>), name!(no_room, bool))> {
    let row = match shmem::is_loaded() {
        false => (false, Some("bucardo is not in shared_preload_libraries".to_string()), false),
        true => {
            let db = shmem::my_database();
            shmem::read(|s| {
                let no_room = s.syncs.iter().all(|y| y.db != 0);
                match s.masters.iter().find(|m| m.db == db) {
                    // A master that was started for a DROP only serves nobody.
                    Some(m) if m.pid != 0 => (!m.for_drop, None, no_room),
                    Some(m) if !m.trouble.is_empty() => (false, Some(m.trouble.get().to_string()), no_room),
                    _ => (false, s.crowded.then(|| CROWDED.to_string()), no_room),
                }
            })
        }
    };
    TableIterator::once(row)
}

/// One row for each live process, for the view `bucardo.activity`.
#[pg_extern]
#[expect(clippy::type_complexity, reason = "pgrx reads the columns from the type")]
fn process_state() -> TableIterator<
    'static,
    (
        name!(pid, i32),
        name!(kind, &'static str),
        name!(sync, Option<i32>),
        name!(run, Option<i64>),
        name!(phase, &'static str),
        name!(db, Option<String>),
        name!(relation, Option<String>),
        name!(rows_done, Option<i64>),
        name!(rows_total, Option<i64>),
        name!(since, Option<TimestampWithTimeZone>),
    ),
> {
    if !shmem::is_loaded() {
        return TableIterator::empty();
    }
    let db = shmem::my_database();
    let (master, kids) = shmem::read(|s| {
        let master = s.masters.iter().find(|m| m.db == db && m.pid != 0).map(|m| m.pid);
        let kids: Vec<_> = s.kids.iter().filter(|k| k.db == db && k.pid != 0).copied().collect();
        (master, kids)
    });
    let text = |t: &str| (!t.is_empty()).then(|| t.to_string());
    let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let kid = move |k: crate::master::slot::KidSlot| {
        let busy = k.state == KidState::Busy;
        (
            k.pid,
            "kid",
            busy.then_some(k.sync),
            busy.then_some(k.run).filter(|run| *run != 0),
            k.phase.name(),
            text(k.member.get()).filter(|_| busy),
            text(k.relation.get()).filter(|_| busy),
            busy.then_some(count(k.rows_done)),
            busy.then_some(count(k.rows_total)),
            TimestampWithTimeZone::try_from(k.since).ok().filter(|_| k.since != 0),
        )
    };
    let master = master.map(|pid| (pid, "master", None, None, "idle", None, None, None, None, None));
    TableIterator::new(master.into_iter().chain(kids.into_iter().map(kid)))
}

thread_local! {
    /// This session's place in the watch list; kept, so that nothing is missed between two calls.
    static WATCHING: std::cell::RefCell<Option<shmem::Watching>> = const { std::cell::RefCell::new(None) };
}

/// Waits until captured changes are committed in this database, for the master of a control database elsewhere.
/// True: something may have been committed since the last call.
#[pg_extern]
fn wait_for_changes(timeout: default!(Interval, "'5s'")) -> Result<bool, ErrorReport> {
    notify::require_preload()?;
    let timeout = interval::duration(timeout)?;
    let (_, procno) = worker::me();
    WATCHING.with_borrow_mut(|watching| {
        if watching.is_none() {
            worker::at_exit(forget_watch, 0);
            *watching = shmem::watch(shmem::my_database(), procno);
        }
    });
    let deadline = std::time::Instant::now() + timeout;
    loop {
        if WATCHING.with_borrow(|w| w.as_ref().is_some_and(shmem::Watching::take)) {
            return Ok(true);
        }
        // Without a place in the list the caller must look for itself now and then.
        let Some(left) = crate::pg::latch::left(deadline) else { return Ok(WATCHING.with_borrow(Option::is_none)) };
        crate::pg::latch::wait(None, Some(left));
    }
}

fn forget_watch(_: usize) {
    shmem::forget_watches(worker::me().1);
}

/// Whether everybody who commits captured changes on this server waits for its disk. For a kid that has just taken its snapshot.
#[pg_extern]
fn capture_all_wait() -> bool {
    shmem::all_wait()
}

/// Notes that this transaction captured something, for the triggers that are written in SQL.
#[pg_extern]
fn capture_wake() {
    crate::pg::trigger::note_captured();
}

/// A purge may have sent writers to another segment; transactions do not matter, as they do not to `setval`.
#[pg_extern]
fn capture_switched() {
    shmem::switched();
}
