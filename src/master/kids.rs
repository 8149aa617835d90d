//! The kids of one master: launched when work is due and none is idle, given runs through the shared table, and
//! missed when they end. It decides nothing about syncs.

use std::time::{Duration, Instant};

use pgrx::bgworkers::DynamicBackgroundWorker;

use super::controller::{Job, back_off};
use super::slot::{KidSlot, KidState, Place, Report};
use crate::error::{Error, SqlState};
use crate::guc;
use crate::pg::{shmem, worker};

/// After the server had no free slot, or a kid died at its start, the next try; the latest one after many.
const LAUNCH_AGAIN: Duration = Duration::from_secs(1);
const LAUNCH_LATEST: Duration = Duration::from_secs(30);
/// An idle kid is sent home after this, so that worker slots are free for others.
const IDLE: Duration = Duration::from_secs(300);

struct Kid {
    slot: usize,
    worker: DynamicBackgroundWorker,
    started: Instant,
    runs: i32,
    idle_since: Instant,
    job: Option<(i32, Job)>,
    /// Whether that run is only tried again.
    retry: bool,
    /// As long may it live, by the sync that it served last.
    lifetime: Option<Duration>,
    /// It has come up.
    ready: bool,
    /// It was told that its run is the last one, or sent home: it takes no other.
    leaving: bool,
}

impl Kid {
    /// Ends it. Should its run be over by then, it is given no other.
    fn send_home(&mut self) {
        self.leaving = true;
        worker::signal(shmem::read(|s| s.kids[self.slot].pid), libc::SIGTERM);
    }

    fn is_old(&self, now: Instant) -> bool {
        self.lifetime.is_some_and(|t| now >= self.started + t)
    }
}

/// How a sync wants its kid treated.
#[derive(Clone, Copy)]
pub struct Manners {
    pub kidsalive: bool,
    pub stayalive: bool,
    pub lifetime: Option<Duration>,
    pub maxkicks: i32,
    /// Where the commits are counted while which its run may go on.
    pub counted_at: Option<usize>,
}

/// All kids of this master.
pub struct Kids {
    db: u32,
    /// The pid of the master.
    me: i32,
    database: String,
    kids: Vec<Kid>,
    launch_after: Instant,
    /// How many in a row have died at their start.
    failures: u32,
    /// Why work waits although it is due.
    pub trouble: Option<String>,
}

impl Kids {
    pub fn new(db: u32, database: String, now: Instant) -> Self {
        let (me, _) = worker::me();
        Self { db, me, database, kids: Vec::new(), launch_after: now, failures: 0, trouble: None }
    }

    /// What kids have reported since the last call: the sync, its job, and how it went.
    pub fn reports(&mut self, now: Instant) -> Vec<(i32, Job, Report)> {
        let (db, me, mut reports) = (self.db, self.me, Vec::new());
        let (mut came_up, mut died) = (false, false);
        self.kids.retain_mut(|kid| {
            let gone = worker::life(&kid.worker) == worker::Life::Gone;
            let report = shmem::with(|shared| {
                let slot = &mut shared.kids[kid.slot];
                // A kid frees its slot itself when it ends; another master may have it by now.
                if slot.db != db || slot.master != me {
                    return (None, gone);
                }
                kid.ready |= slot.state != KidState::Starting;
                let report = (slot.state == KidState::Reported).then_some(slot.report);
                if report.is_some() {
                    slot.state = KidState::Idle;
                }
                // A kid that ended by itself has no pid any more.
                let ended = gone || slot.pid == 0 && report.is_some();
                if ended {
                    *slot = KidSlot::FREE;
                }
                (report, ended)
            });
            match (report, kid.job) {
                ((Some(report), _), Some((sync, job))) => reports.push((sync, job, report)),
                ((None, true), Some((sync, job))) => reports.push((sync, job, vanished())),
                _ => {}
            }
            if report.0.is_some() || report.1 {
                kid.job = None;
                kid.idle_since = now;
            }
            came_up |= kid.ready;
            died |= report.1 && !kid.ready && !kid.leaving;
            !report.1
        });
        self.note_starts(came_up, died, now);
        reports
    }

    /// What came of those that were launched: where they die at their start, the next one waits longer each time.
    fn note_starts(&mut self, came_up: bool, died: bool, now: Instant) {
        if died {
            self.failures += 1;
            self.launch_after = now + back_off(self.failures, LAUNCH_AGAIN, LAUNCH_LATEST);
            if self.kids.is_empty() {
                self.trouble = Some("kids end at their start: see the server's log".to_string());
            }
        } else if came_up {
            self.failures = 0;
            self.trouble = None;
        }
    }

    /// Wakes those that have nothing to do: the catalog has changed.
    pub fn wake_idle(&self) {
        for kid in self.kids.iter().filter(|k| k.job.is_none()) {
            worker::set_latch(shmem::read(|s| s.kids[kid.slot].procno));
        }
    }

    /// How many kids are busy with what is only tried again.
    pub fn retries(&self) -> usize {
        self.kids.iter().filter(|k| k.retry && k.job.is_some()).count()
    }

    /// Gives the job to an idle kid. False: none is free now (one may have been launched and will tell when it is ready).
    pub fn assign(&mut self, sync: i32, job: Job, retry: bool, manners: Manners, waiting: usize, now: Instant) -> bool {
        let idle = |kid: &Kid| {
            kid.job.is_none() && !kid.leaving && !kid.is_old(now) && shmem::read(|s| s.kids[kid.slot].state == KidState::Idle)
        };
        // There may be more than by now are wanted: those go.
        let busy = self.kids.iter().filter(|k| k.job.is_some()).count();
        let Some(kid) = self.kids.iter_mut().find(|kid| busy < guc::max_kids() && idle(kid)) else {
            self.launch(waiting, now);
            return false;
        };
        kid.runs += 1;
        kid.lifetime = manners.lifetime;
        let last = !manners.kidsalive || kid.is_old(now) || (manners.maxkicks > 0 && kid.runs >= manners.maxkicks);
        kid.job = Some((sync, job));
        kid.retry = retry;
        kid.leaving = last;
        let procno = shmem::with(|shared| {
            let slot = &mut shared.kids[kid.slot];
            slot.sync = sync;
            slot.members = job.members;
            slot.main = job.main;
            slot.last = last;
            slot.close = !manners.stayalive;
            slot.counted_at = manners.counted_at;
            slot.state = KidState::Assigned;
            slot.procno
        });
        worker::set_latch(procno);
        true
    }

    fn launch(&mut self, waiting: usize, now: Instant) {
        let starting = self.kids.iter().filter(|k| shmem::read(|s| s.kids[k.slot].state == KidState::Starting)).count();
        if starting >= waiting || self.kids.len() >= guc::max_kids() || now < self.launch_after {
            return;
        }
        let (db, master) = (self.db, self.me);
        let slot = shmem::with(|shared| {
            shared.forget_kids();
            let mine = |i: &usize| self.kids.iter().any(|k| k.slot == *i);
            let slot = (0..shared.kids.len()).find(|i| shared.kids[*i].state == KidState::Free && !mine(i))?;
            shared.kids[slot] = KidSlot { db, master, state: KidState::Starting, ..KidSlot::FREE };
            Some(slot)
        });
        let launched = slot.and_then(|slot| {
            let name = format!("bucardo kid for {}", self.database);
            worker::launch(&name, "bucardo kid", "bucardo_kid_main", Place { slot, master }.pack()).map(|worker| (slot, worker))
        });
        match launched {
            Some((slot, worker)) => {
                self.kids.push(Kid {
                    slot,
                    worker,
                    started: now,
                    runs: 0,
                    idle_since: now,
                    job: None,
                    retry: false,
                    lifetime: None,
                    ready: false,
                    leaving: false,
                });
            }
            None => {
                if let Some(slot) = slot {
                    shmem::with(|shared| shared.kids[slot] = KidSlot::FREE);
                }
                self.launch_after = now + LAUNCH_AGAIN;
                let text = "no background worker slot is free for a kid: raise max_worker_processes and restart the server";
                if self.trouble.is_none() && self.kids.is_empty() {
                    pgrx::warning!("bucardo: {text}");
                }
                // With at least one kid the work goes on, only slower.
                self.trouble = self.kids.is_empty().then(|| text.to_string());
            }
        }
    }

    /// When to try to launch again, or to send one home.
    pub fn next_time(&self, now: Instant) -> Option<Instant> {
        let ends = self.kids.iter().filter(|k| k.job.is_none() && !k.leaving).filter_map(|k| Some(k.started + k.lifetime?));
        ends.chain((self.launch_after > now).then_some(self.launch_after)).min()
    }

    /// Sends home kids that had nothing to do for long, are to be replaced, or are more than may be.
    pub fn trim(&mut self, now: Instant) {
        let mut more = self.kids.iter().filter(|k| !k.leaving).count().saturating_sub(guc::max_kids());
        for kid in self.kids.iter_mut().filter(|k| k.job.is_none() && k.ready && !k.leaving) {
            if more > 0 || kid.is_old(now) || now >= kid.idle_since + IDLE {
                more = more.saturating_sub(1);
                kid.send_home();
            }
        }
    }

    /// Ends the kid that runs the sync; its members roll back.
    pub fn cancel(&mut self, sync: i32) {
        self.kids.iter_mut().filter(|k| k.job.is_some_and(|(s, _)| s == sync)).for_each(Kid::send_home);
    }

    /// Asks all kids to end, and hands over what they have reported; call until none is left.
    pub fn end_all(&mut self, now: Instant) -> Vec<(i32, Job, Report)> {
        for kid in &mut self.kids {
            kid.leaving = true;
            let pid = shmem::read(|s| s.kids[kid.slot].pid);
            worker::signal(if pid != 0 { pid } else { worker::pid(&kid.worker) }, libc::SIGTERM);
        }
        self.reports(now)
    }

    pub fn is_empty(&self) -> bool {
        self.kids.is_empty()
    }
}

fn vanished() -> Report {
    Report::bad(&Error::new(SqlState::ADMIN_SHUTDOWN, "the kid ended unexpectedly during the run"))
}
