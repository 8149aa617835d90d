//! The launcher: one static worker of the server, connected to no database, that keeps a master running for each
//! control database. It learns them from the database-level setting `bucardo.master` that CREATE EXTENSION leaves,
//! read by a short-lived scout, because the launcher itself must block no DROP DATABASE. It starts when recovery has
//! ended, so a standby runs masters only after its promotion.

use std::collections::HashMap;
use std::ffi::CStr;
use std::time::{Duration, Instant};

use pgrx::bgworkers::DynamicBackgroundWorker;
use pgrx::pg_guard;
use pgrx::pg_sys;

use super::controller::back_off;
use super::slot::{MAX_MASTERS, Text};
use crate::pg::{latch, shmem, spi, worker, xact};

const RESTART_MIN: Duration = Duration::from_millis(200);
const RESTART_MAX: Duration = Duration::from_secs(30);
/// How often the launcher looks whether its masters live.
const LOOK: Duration = Duration::from_millis(500);
/// Why no master runs, for the status.
pub const CROWDED: &str = "no background worker slot is free for the master: raise max_worker_processes and restart the server";
/// A master that lived so long starts anew without a wait.
const STABLE: Duration = Duration::from_secs(30);

struct Started {
    worker: DynamicBackgroundWorker,
    at: Instant,
}

#[derive(Default)]
struct Trouble {
    failures: u32,
    next_try: Option<Instant>,
}

#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn bucardo_launcher_main(_argument: pg_sys::Datum) {
    worker::start(None);
    let (_, procno) = worker::me();
    shmem::with(|s| s.launcher = procno);
    let mut masters: HashMap<u32, Started> = HashMap::new();
    let mut troubles: HashMap<u32, Trouble> = HashMap::new();
    let mut scout: Option<DynamicBackgroundWorker> = None;
    let mut scouts = 0;
    let mut scout_after = Instant::now();
    loop {
        worker::reload_if_asked();
        if is_stopping() {
            end_masters();
            latch::wait(None, Some(LOOK));
            continue;
        }
        let out = scout.as_ref().is_some_and(|scout| worker::life(scout) != worker::Life::Gone);
        if !out && latch::left(scout_after).is_none() && !shmem::read(|s| s.scouted) {
            scout = worker::launch("bucardo scout", "bucardo scout", "bucardo_scout_main", scouts);
            let crowded = scout.is_none();
            shmem::with(|s| s.crowded = crowded);
            if crowded {
                pgrx::warning!("bucardo: {CROWDED}");
                scout_after = Instant::now() + RESTART_MAX;
            } else {
                scouts += 1;
                scout_after = Instant::now() + back_off(scouts as u32, RESTART_MIN, RESTART_MAX);
            }
        }
        let wait = keep(&mut masters, &mut troubles, Instant::now());
        // A worker without a database is not told when its children end, so it looks.
        latch::wait(None, Some(wait.map_or(LOOK, |w| w.min(LOOK))));
    }
}

/// Whether the server is shutting down. To be asked of its own file only: a smart shutdown tells nobody, because it first waits
/// until all clients have gone, and where members are on this server, our own connections are among those.
fn is_stopping() -> bool {
    // The working directory of a server process is the data directory; the eighth line says what the server is at.
    std::fs::read_to_string("postmaster.pid").is_ok_and(|text| text.lines().nth(7).is_some_and(|s| s.trim_end() == "stopping"))
}

/// Has all masters end, with their kids. They come back with the server.
fn end_masters() {
    let procnos = shmem::with(|s| {
        s.stopping = true;
        s.masters.map(|m| if m.pid != 0 { m.procno } else { -1 })
    });
    procnos.into_iter().for_each(worker::set_latch);
}

/// Starts the masters that are wanted and not there. How long to wait for the next look; None: until something happens.
fn keep(masters: &mut HashMap<u32, Started>, troubles: &mut HashMap<u32, Trouble>, now: Instant) -> Option<Duration> {
    masters.retain(|db, started| {
        let gone = worker::life(&started.worker) == worker::Life::Gone;
        let as_asked = gone && shmem::with(|s| s.master(*db).is_some_and(|m| std::mem::take(&mut m.ended_as_asked)));
        if as_asked {
            troubles.remove(db);
        } else if gone {
            let trouble = troubles.entry(*db).or_default();
            trouble.failures = if now >= started.at + STABLE { 1 } else { trouble.failures + 1 };
            trouble.next_try = Some(now + back_off(trouble.failures, RESTART_MIN, RESTART_MAX));
        }
        !gone
    });
    let mut wanted = [(0_u32, 0_usize); MAX_MASTERS];
    shmem::with(|s| {
        for (i, m) in s.masters.iter().enumerate() {
            wanted[i] = (if m.wanted && m.held_by == 0 && m.pid == 0 { m.db } else { 0 }, i);
        }
    });
    let mut wait: Option<Duration> = None;
    for (db, slot) in wanted {
        if db == 0 || masters.contains_key(&db) {
            continue;
        }
        let trouble = troubles.entry(db).or_default();
        if let Some(left) = trouble.next_try.and_then(latch::left) {
            wait = Some(wait.map_or(left, |w| w.min(left)));
            continue;
        }
        match worker::launch("bucardo master", "bucardo master", "bucardo_master_main", slot as i32) {
            Some(worker) => {
                masters.insert(db, Started { worker, at: now });
                trouble.next_try = None;
                shmem::with(|s| {
                    s.masters[slot].trouble = Text::EMPTY;
                    s.masters[slot].fails = false;
                });
            }
            None => {
                trouble.failures += 1;
                trouble.next_try = Some(now + Duration::from_secs(1));
                wait = Some(Duration::from_secs(1));
                shmem::with(|s| {
                    s.masters[slot].trouble = Text::new(CROWDED);
                    s.masters[slot].fails = false;
                });
            }
        }
    }
    wait
}

/// Where the scout reads the catalogs that all databases share: none of these must be there, but seldom all are missing.
const ANYWHERE: [&CStr; 3] = [c"postgres", c"template1", c"template0"];

/// The scout: reads which databases are control databases, and ends. One that could not is followed by another, elsewhere.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn bucardo_scout_main(argument: pg_sys::Datum) {
    worker::start_by_name(ANYWHERE[argument.value() % ANYWHERE.len()]);
    let found = xact::transaction(|| {
        spi::select(
            "SELECT s.setdatabase FROM pg_catalog.pg_db_role_setting s JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase \
             WHERE s.setrole = 0 AND s.setconfig && ARRAY['bucardo.master=on', 'bucardo.master=true'] AND d.datallowconn",
            &[],
            |row| row.get::<pg_sys::Oid>(1),
        )
    });
    match found {
        Ok(databases) => {
            want(databases.into_iter().map(|db| db.to_u32()));
            shmem::with(|s| s.scouted = true);
        }
        Err(error) => pgrx::warning!("bucardo: the control databases could not be read: {error}"),
    }
    worker::exit(0)
}

/// Asks the launcher to keep masters for these databases.
pub fn want(databases: impl Iterator<Item = u32>) {
    let all: Vec<u32> = databases.collect();
    let launcher = shmem::with(|s| {
        for db in &all {
            if let Some(master) = s.master_or_new(*db) {
                master.wanted = true;
                master.asked += 1;
                master.stop = false;
            }
        }
        s.launcher
    });
    worker::set_latch(launcher);
}
