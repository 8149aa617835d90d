//! The kid: a dynamic worker that serves any sync of its database, one run after the other, as the master assigns
//! them in the shared table. It keeps its connections between runs. It is watched by the master, never restarted by
//! the server, and it ends when the master is gone.

use std::collections::HashMap;
use std::time::Duration;

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::bits;
use super::current::Outdated;
use super::members::Pool;
use super::mesh;
use super::plan::Plan;
use super::report::{Progress, show};
use super::run;
use crate::catalog::{self, db::Db};
use crate::error::{Error, Result, SqlState};
use crate::fault;
use crate::master::slot::{KidSlot, KidState, Phase, Place, Report, Text};
use crate::pg::{latch, shmem, spi, worker, xact};

/// An idle kid looks this often whether its master still lives.
const LOOK: Duration = Duration::from_secs(5);

struct Kid {
    slot: usize,
    master: i32,
    db: u32,
    pool: Pool,
    plans: HashMap<i32, Plan>,
    /// The catalog's generation by which it was seen what is still needed.
    tidied: u64,
    /// The number of the next run, fetched ahead.
    next_run: Option<i64>,
}

/// A run as the master assigned it.
struct Assignment {
    sync: i32,
    members: u64,
    main: bool,
    last: bool,
    close: bool,
    counted_at: Option<usize>,
}

#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn bucardo_kid_main(argument: pg_sys::Datum) {
    let Place { slot, master } = Place::unpack(argument.value());
    // Its master may have ended meanwhile, and the slot be another one's.
    let Some(db) = shmem::read(|s| Some(s.kids[slot].db).filter(|db| s.kids[slot].master == master && s.is_master(*db, master)))
    else {
        worker::exit(0)
    };
    worker::at_exit(kid_gone, argument.value());
    worker::start(Some(db));
    worker::set_for_session(c"synchronous_commit", c"off");
    let (pid, procno) = worker::me();
    let since = shmem::now();
    let mine = shmem::with(|s| {
        let mine = s.kids[slot].master == master && s.is_master(db, master);
        if mine {
            s.kids[slot] = KidSlot { pid, procno, since, state: KidState::Idle, ..s.kids[slot] };
        }
        mine
    });
    if !mine {
        worker::exit(0)
    }
    wake_master(db);
    let mut kid =
        Kid { slot, master, db, tidied: shmem::generation(db), pool: Pool::default(), plans: HashMap::new(), next_run: None };
    while kid.serve_one() {}
    worker::exit(0)
}

/// Tells the master that a kid has news.
fn wake_master(db: u32) {
    let procno = shmem::with(|s| s.master(db).map_or(-1, |m| m.procno));
    worker::set_latch(procno);
}

/// However the process ends, its slot must not say that it lives. Runs no code that can fail.
fn kid_gone(place: usize) {
    let Place { slot, master } = Place::unpack(place);
    let report = Report::bad(&Error::new(SqlState::ADMIN_SHUTDOWN, "the kid was ended during the run"));
    let db = shmem::with(|shared| {
        let db = shared.kids[slot].db;
        let reads = shared.is_master(db, master);
        let kid = &mut shared.kids[slot];
        if kid.master != master {
            return 0;
        }
        if !reads {
            // Nobody would read the report.
            *kid = KidSlot::FREE;
        } else if matches!(kid.state, KidState::Busy | KidState::Assigned) {
            kid.state = KidState::Reported;
            kid.report = Report { lost: kid.run, since: kid.since, ..report };
            kid.pid = 0;
        } else if kid.state != KidState::Reported {
            *kid = KidSlot::FREE;
        } else {
            kid.pid = 0;
        }
        db
    });
    wake_master(db);
}

impl Kid {
    /// Waits for an assignment and carries it out; false when the kid should end.
    fn serve_one(&mut self) -> bool {
        let Some(job) = self.assignment() else {
            worker::report_activity(false, "");
            self.tidy();
            latch::wait(None, Some(LOOK));
            worker::reload_if_asked();
            return shmem::read(|s| s.is_master(self.db, self.master));
        };
        let report = match xact::caught(|| Ok(self.run(&job))) {
            Ok(report) => report,
            Err(error) => {
                xact::recover();
                self.plans.remove(&job.sync);
                self.lost(&error)
            }
        };
        if job.close {
            self.pool.clear();
        }
        let now = shmem::now();
        show(self.slot, |kid| {
            kid.report = report;
            kid.state = KidState::Reported;
            kid.phase = Phase::Idle;
            kid.run = 0;
            kid.since = now;
        });
        wake_master(self.db);
        self.fetch_next_run();
        self.tidy();
        !job.last
    }

    /// When the catalog has changed: closes the connections to whoever has no part in any sync any more, where they would keep a
    /// database from being dropped, and forgets the syncs that are gone.
    fn tidy(&mut self) {
        let generation = shmem::generation(self.db);
        if std::mem::replace(&mut self.tidied, generation) == generation {
            return;
        }
        let read = || Ok((members_of_syncs()?, spi::select("SELECT id FROM bucardo.sync", &[], |row| row.get::<i32>(1))?));
        // What cannot be read now is read at the next change; where the extension is gone, so is this process soon.
        if let Ok((dbs, syncs)) = xact::transaction(read) {
            self.pool.keep(&dbs);
            self.plans.retain(|id, _| syncs.contains(id));
        }
    }

    fn assignment(&self) -> Option<Assignment> {
        let now = shmem::now();
        shmem::with(|shared| {
            let kid = &mut shared.kids[self.slot];
            (kid.state == KidState::Assigned).then(|| {
                kid.state = KidState::Busy;
                // What it did before is over.
                kid.phase = Phase::Connect;
                kid.run = 0;
                kid.member = Text::EMPTY;
                kid.relation = Text::EMPTY;
                kid.rows_done = 0;
                kid.rows_total = 0;
                kid.since = now;
                let (sync, members, counted_at) = (kid.sync, kid.members, kid.counted_at);
                Assignment { sync, members, main: kid.main, last: kid.last, close: kid.close, counted_at }
            })
        })
    }

    fn run(&mut self, job: &Assignment) -> Report {
        if let Err(error) = fault::point("kid.before_run") {
            return Report::bad(&error);
        }
        let mut plan = match self.plan(job.sync) {
            Ok(plan) => plan,
            Err(error) => return Report::bad(&error),
        };
        worker::report_activity(true, &format!("bucardo: sync {}", plan.sync.name));
        if !job.main && plan.sync.sources().count() > 1 {
            let report = mesh::probe(&plan, &mut self.pool, job.members, self.slot);
            self.plans.insert(job.sync, plan);
            return report;
        }
        let run = match begin_run(self.db, self.next_run.take()) {
            Ok(run) => run,
            Err(error) => return Report::bad(&error),
        };
        let before = shmem::with(|s| s.sync(self.db, job.sync).map(|slot| std::mem::replace(&mut slot.last_run, run)));
        plan.follows = plan.clean_run.is_some() && plan.clean_run == before;
        plan.patient = !job.main || (bits::active(&plan.sync) & !bits::only_source(&plan.sync)).count_ones() == 1;
        plan.counted_at = job.counted_at;
        let mut progress = Progress::new(self.slot, run);
        while let Err(Outdated) = run::run(&mut plan, &mut self.pool, job.members, &mut progress) {
            plan = match self.renew(job.sync, plan) {
                Ok(plan) => plan,
                Err(error) => return self.lost(&error),
            };
        }
        plan.renewals = 0;
        // Who had no part in it may have something of an earlier run under way still.
        let everybody = bits::active(&plan.sync) & !bits::only_source(&plan.sync);
        plan.clean_run = (progress.is_clean() && job.members & everybody == everybody).then_some(run);
        if let Err(error) = progress.record(&plan.sync) {
            warning!("bucardo: the run of sync \"{}\" could not be recorded: {error}", plan.sync.name);
        }
        progress.tell(&plan.sync);
        self.plans.insert(job.sync, plan);
        progress.report()
    }

    /// The report of a run that has ended before it could record itself: the master does.
    fn lost(&self, error: &Error) -> Report {
        let (lost, since) = shmem::read(|s| (s.kids[self.slot].run, s.kids[self.slot].since));
        Report { lost, since, ..Report::bad(error) }
    }

    /// The sync as the catalog has it now; read anew only when the catalog changed.
    fn plan(&mut self, sync: i32) -> Result<Plan> {
        let generation = shmem::generation(self.db);
        let old = match self.plans.remove(&sync) {
            Some(plan) if plan.generation == generation => return Ok(plan),
            old => old,
        };
        let mut plan = xact::transaction(|| {
            let gone = || Error::new(SqlState::UNDEFINED_OBJECT, "the sync is gone");
            let config = catalog::sync::load_by_id(sync)?.ok_or_else(gone)?;
            let control = catalog::control_id()?;
            Ok(Plan::new(config, control, generation))
        })?;
        old.into_iter().for_each(|old| plan.succeed(old));
        Ok(plan)
    }

    /// The plan in place of one that a run has given up.
    fn renew(&mut self, sync: i32, old: Plan) -> Result<Plan> {
        let (renewals, patient) = (old.renewals + 1, old.patient);
        let members = |plan: &Plan| plan.sync.members.iter().map(|m| (m.db.name.clone(), m.role)).collect::<Vec<_>>();
        let before = members(&old);
        let (relations, strangers) = (old.sync.relations.clone(), old.strangers.clone());
        self.plans.insert(sync, old);
        let mut plan = self.plan(sync)?;
        // The master's assignment counts the members.
        if members(&plan) != before {
            return Err(Error::new(SqlState::WRONG_STATE, "the sync was given other members during the run"));
        }
        if plan.sync.relations == relations {
            plan.strangers = strangers;
        }
        (plan.renewals, plan.patient, plan.follows) = (renewals, patient, false);
        Ok(plan)
    }

    /// Fetches the number of the next run while nobody waits for it.
    fn fetch_next_run(&mut self) {
        if self.next_run.is_none() {
            self.next_run = next_run().ok();
        }
    }
}

/// The active members of all active syncs. To be called in a transaction.
fn members_of_syncs() -> Result<Vec<Db>> {
    let sql = "SELECT DISTINCT m.db FROM bucardo.dbmap m JOIN bucardo.sync s ON s.dbgroup = m.dbgroup WHERE s.status = 'active'";
    let names = spi::select(sql, &[], |row| row.get::<String>(1))?;
    let all = catalog::db::load_all()?;
    Ok(all.into_iter().filter(|db| db.active && names.contains(&db.name)).collect())
}

fn next_run() -> Result<i64> {
    xact::transaction(|| {
        spi::value("SELECT pg_catalog.nextval('bucardo.syncrun_run_seq')", &[])?.ok_or_else(|| Error::internal("no run number"))
    })
}

/// The number of a run that begins: greater than that of any that has begun before it, so that members can tell which
/// runs they have had. A number that was fetched ahead may have been overtaken.
pub(super) fn begin_run(db: u32, mut ahead: Option<i64>) -> Result<i64> {
    loop {
        let run = ahead.take().map_or_else(next_run, Ok)?;
        let last = shmem::with(|s| {
            s.master(db).map(|m| {
                let last = m.last_run;
                m.last_run = last.max(run);
                last
            })
        });
        if last.is_none_or(|last| run > last) {
            return Ok(run);
        }
    }
}
