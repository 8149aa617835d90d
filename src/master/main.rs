//! The master of one control database: it holds the controllers of all syncs and wakes on latches and sockets only.
//! It moves no row itself and waits for no member; what takes time is done by kids, or step by step by the watchers. Only
//! when the extension is dropped (`farewell`) it waits for members, each within bounds.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use pgrx::pg_guard;
use pgrx::pg_sys;

use super::controller::{Controller, Job};
use super::farewell::{self, DropAwaited, Outpost};
use super::identity;
use super::kids::Kids;
use super::notify;
use super::publish::{fail_kicks, wake_waiters};
use super::removal::Removal;
use super::slot::{Outcome, Report, Text};
use super::trouble;
use super::turns::Turns;
use super::upkeep::{self, FIRST_REMOVAL};
use super::watch::Watcher;
use crate::catalog;
use crate::catalog::cleanup::Cleanup;
use crate::catalog::db::Db;
use crate::catalog::sync::{Role, Sync};
use crate::error::{Error, Result, SqlState};
use crate::fault;
use crate::guc::{self, LogLevel};
use crate::libpq::Target;
use crate::pg::{latch, shmem, spi, worker, xact};

pub(super) const HISTORY: Duration = Duration::from_secs(60);
/// When to try again to note in the catalog that a sync is paused.
const PAUSING: Duration = Duration::from_millis(500);
/// How often a source is asked whether its capture is whole: triggers and tables may be dropped by anybody.
pub(super) const INSPECT: Duration = Duration::from_secs(10);

pub(super) struct Entry {
    pub(super) sync: Sync,
    pub(super) controller: Controller,
    /// The kicks that the running main run covers.
    pub(super) ticket: u64,
    /// How often its sources had woken us when it began, or its last round did.
    pub(super) commits: u64,
    pub(super) last: Outcome,
    /// It is paused, and the catalog does not say so yet.
    pub(super) pausing: bool,
    /// A source was seen that captures nothing for it, and it was made to run for that.
    pub(super) uncaptured: bool,
}

pub(super) struct Source {
    pub(super) watcher: Watcher,
    pub(super) purge_at: Option<Instant>,
    pub(super) purged: Instant,
    /// When all of its tables were purged last, and whether the last purge was in vain.
    pub(super) purged_all: Instant,
    pub(super) purged_in_vain: bool,
    /// How often in a row a purge has left tables for the next one, and whether these are all tables.
    pub(super) purged_in_parts: u32,
    pub(super) purging_all: bool,
    /// When to compare with the catalog what the source captures, and when to look whether it still does.
    pub(super) compare_at: Option<Instant>,
    pub(super) inspect_at: Instant,
}

pub(super) struct Master {
    pub(super) slot: usize,
    pub(super) db: u32,
    pub(super) control: String,
    pub(super) generation: u64,
    pub(super) entries: HashMap<i32, Entry>,
    pub(super) sources: HashMap<String, Source>,
    pub(super) removals: HashMap<u64, Removal>,
    /// Where a farewell that failed has still to go.
    pub(super) unleft: Vec<Outpost>,
    pub(super) next_token: u64,
    pub(super) kids: Kids,
    /// What kids have reported that were ended for a DROP: should that come to nothing, it counts.
    ended: Vec<(i32, Job, Report)>,
    pub(super) turns: Turns,
    pub(super) history_at: Instant,
    /// Whether all members were asked once what they still capture for us.
    pub(super) swept: bool,
    /// All members, also those that are inactive or in no sync, and what waits to be taken off where members were: there may be
    /// something of ours.
    pub(super) members: Vec<Db>,
    pub(super) waiting: Vec<Cleanup>,
    /// Set when it only waits for the extension to be dropped.
    pub(super) for_drop: Option<DropAwaited>,
}

#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn bucardo_master_main(argument: pg_sys::Datum) {
    let slot = argument.value();
    let db = shmem::read(|s| s.masters[slot].db);
    worker::at_exit(master_gone, slot);
    worker::start(Some(db));
    worker::set_for_session(c"synchronous_commit", c"off");
    let (pid, procno) = worker::me();
    let asked = shmem::with(|s| {
        let master = &mut s.masters[slot];
        master.pid = pid;
        master.procno = procno;
        master.loaded = 0;
        master.asked
    });
    match xact::caught(|| Master::new(slot, db)) {
        Ok(Some(mut master)) => loop {
            if let Err(error) = xact::caught(|| master.turn()) {
                // The extension may have been dropped meanwhile: this process alone knows who must be told. Otherwise the next
                // one starts anew from the catalog; the launcher waits longer each time.
                match xact::caught(extension_here) {
                    Ok(false) => xact::caught(|| master.farewell()).unwrap_or_else(|error| failed(slot, &error)),
                    _ => failed(slot, &error),
                }
            }
        },
        Ok(None) => {
            // Who has asked for it since is answered by the next one.
            shmem::with(|s| s.masters[slot].wanted &= s.masters[slot].asked != asked);
            worker::exit(0)
        }
        Err(error) => failed(slot, &error),
    }
}

/// Ends this process by an error, which the status tells until the next one is there.
fn failed(slot: usize, error: &Error) -> ! {
    pgrx::warning!("bucardo master: {error}");
    shmem::with(|s| {
        let master = &mut s.masters[slot];
        master.trouble = Text::new(&error.to_string());
        master.fails = true;
    });
    worker::exit(1)
}

/// However the master ends, its kids end with it. Kicks wait for the next one if there will be one.
fn master_gone(slot: usize) {
    let (_, procno) = worker::me();
    shmem::forget_watches(procno);
    let kids = shmem::with(|s| {
        let db = s.masters[slot].db;
        s.masters[slot].pid = 0;
        s.masters[slot].procno = -1;
        let wanted = s.masters[slot].wanted;
        for sync in s.syncs.iter_mut().filter(|y| y.db == db) {
            if wanted && !s.stopping {
                sync.begun = sync.done;
            } else {
                fail_kicks(sync, SqlState::WRONG_STATE, notify::STOPPED);
                sync.hint = if wanted { Text::EMPTY } else { Text::new(notify::START) };
            }
        }
        let mut kids = [0; super::slot::MAX_KIDS];
        for (i, kid) in s.kids.iter().enumerate().filter(|(_, k)| k.db == db) {
            kids[i] = kid.pid;
        }
        s.forget_kids();
        kids
    });
    for pid in kids {
        worker::signal(pid, libc::SIGTERM);
    }
}

/// Whether the extension is in this database; cleans the launcher's mark when not.
pub(super) fn extension_here() -> Result<bool> {
    xact::transaction(|| Ok(spi::value::<i32>("SELECT 1 FROM pg_catalog.pg_extension WHERE extname = 'bucardo'", &[])?.is_some()))
}

impl Master {
    fn new(slot: usize, db: u32) -> Result<Option<Self>> {
        if !extension_here()? {
            farewell::forget_database()?;
            return Ok(None);
        }
        let (control, stopped, database) = xact::transaction(|| {
            let stopped = catalog::is_stopped()?.unwrap_or(false);
            let database = spi::value::<String>("SELECT pg_catalog.current_database()::text", &[])?.unwrap_or_default();
            Ok((catalog::control_id()?, stopped, database))
        })?;
        // Who was to be dropped while no master ran need not have been stopped.
        let for_drop = shmem::with(|s| {
            s.masters[slot].for_drop &= stopped;
            s.masters[slot].for_drop
        });
        if stopped && !for_drop {
            return Ok(None);
        }
        if let Some(why) = xact::transaction(identity::refusal)? {
            pgrx::warning!("bucardo master for database \"{database}\": {why}");
            shmem::with(|s| s.masters[slot].trouble = Text::new(&why));
            return Ok(None);
        }
        if guc::logs(LogLevel::Normal) {
            pgrx::log!("bucardo master for database \"{database}\" has started");
        }
        let now = Instant::now();
        Ok(Some(Self {
            slot,
            db,
            control,
            generation: 0,
            entries: HashMap::new(),
            sources: HashMap::new(),
            removals: HashMap::new(),
            unleft: Vec::new(),
            next_token: FIRST_REMOVAL,
            kids: Kids::new(db, database, now),
            ended: Vec::new(),
            turns: Turns::default(),
            history_at: now + HISTORY,
            swept: false,
            members: Vec::new(),
            waiting: Vec::new(),
            for_drop: (stopped && for_drop).then_some(DropAwaited::Since(now)),
        }))
    }

    /// One turn of the loop: take in what happened, do what is due, wait.
    fn turn(&mut self) -> Result<()> {
        worker::reload_if_asked();
        let now = Instant::now();
        let (stop, generation, held) = shmem::with(|s| {
            let stopping = s.stopping;
            let master = &mut s.masters[self.slot];
            master.ping_answered = master.ping_asked;
            (master.stop || stopping, master.generation, master.held_by != 0)
        });
        if stop {
            return self.stop();
        }
        if held {
            // Whoever waits for a DROP has seen it begin, and need not wait for another.
            self.for_drop = self.for_drop.map(|_| DropAwaited::Begun);
            self.ended.extend(self.kids.end_all(now));
            latch::wait(None, Some(Duration::from_millis(100)));
            return Ok(());
        }
        if generation != self.generation {
            self.reload(generation, now)?;
        }
        if let Some(awaited) = self.for_drop {
            return self.await_drop(awaited, now);
        }
        self.take_kicks();
        self.hear(now)?;
        let mut reports = std::mem::take(&mut self.ended);
        reports.extend(self.kids.reports(now));
        for (sync, job, report) in reports {
            self.finished(sync, job, &report, now)?;
            fault::point("master.after_report")?;
        }
        for (id, entry) in self.entries.iter_mut().filter(|(_, e)| e.pausing) {
            entry.pausing = !upkeep::pause(*id)?;
        }
        self.upkeep(now)?;
        self.assign(now)?;
        self.kids.trim(now);
        self.publish(now);
        // Who has changed the catalog meanwhile may have woken us while we waited for something else.
        if shmem::read(|s| s.masters[self.slot].generation) == self.generation {
            self.wait(now);
        }
        Ok(())
    }

    /// Ends the kids, whose members roll back, and then this process, for good.
    fn stop(&mut self) -> Result<()> {
        for (id, _, report) in self.end_kids() {
            if let Some(entry) = self.entries.get(&id).filter(|_| report.lost != 0) {
                upkeep::record_lost(&entry.sync, &report).unwrap_or_else(|error| pgrx::warning!("bucardo master: {error}"));
            }
        }
        // Wanted it is no more, unless somebody has said so meanwhile.
        shmem::with(|s| {
            s.masters[self.slot].stop = false;
            s.masters[self.slot].ended_as_asked = true;
        });
        worker::exit(0)
    }

    fn reload(&mut self, generation: u64, now: Instant) -> Result<()> {
        if !extension_here()? {
            return self.farewell();
        }
        if xact::transaction(catalog::control_id)? != self.control {
            let outposts = self.outposts();
            return self.hand_over(outposts);
        }
        if self.for_drop.is_some() {
            let known = xact::transaction(farewell::members)?;
            self.learn_members(known, generation);
            return Ok(());
        }
        if xact::transaction(catalog::is_stopped)? == Some(true) {
            return self.stop();
        }
        fault::point("master.before_reload")?;
        let (syncs, known) = xact::transaction(|| Ok((catalog::sync::load_all()?, farewell::members()?)))?;
        fault::point("master.within_reload")?;
        self.learn_members(known, generation);
        let ids: Vec<i32> = syncs.iter().map(|s| s.id).collect();
        for id in self.entries.keys().filter(|id| !ids.contains(id)) {
            self.kids.cancel(*id);
        }
        self.entries.retain(|id, _| ids.contains(id));
        shmem::with(|s| s.keep_syncs(self.db, &ids));
        for sync in syncs {
            self.configure(sync, now);
        }
        self.try_again_what_failed()?;
        self.watch_sources(now);
        self.kids.wake_idle();
        self.take_up(now);
        self.sweep(now)
    }

    /// Once after its start: what the last master would have tried again is not known any more, but that there was something.
    fn try_again_what_failed(&mut self) -> Result<()> {
        if self.swept {
            return Ok(());
        }
        let sql = "SELECT s.id FROM bucardo.sync s CROSS JOIN LATERAL (SELECT r.error FROM bucardo.syncrun r WHERE r.sync = s.name \
                   ORDER BY r.run DESC LIMIT 1) last WHERE last.error IS NOT NULL";
        for id in xact::transaction(|| spi::select(sql, &[], |row| row.get::<i32>(1)))? {
            if let Some(entry) = self.entries.get_mut(&id) {
                entry.controller.kicked = true;
            }
        }
        Ok(())
    }

    fn configure(&mut self, sync: Sync, now: Instant) {
        let receives =
            |i: &usize| sync.members[*i].db.active && (sync.members[*i].role != Role::Source || sync.sources().count() > 1);
        let members = (0..sync.members.len()).filter(receives).fold(0, |bits, i| bits | 1 << i);
        let entry = self.entries.entry(sync.id).or_insert_with(|| Entry {
            sync: sync.clone(),
            controller: Controller::new(now),
            ticket: 0,
            commits: 0,
            last: Outcome::None,
            pausing: false,
            uncaptured: false,
        });
        entry.controller.active = sync.active && sync.asleep().is_empty();
        entry.controller.paused = sync.paused || entry.pausing;
        entry.controller.checktime = sync.checktime;
        entry.controller.changed |= sync.onetimecopy != 0 && sync.autokick;
        entry.controller.mesh = sync.sources().count() > 1;
        if entry.sync.members != sync.members || entry.controller.members != members {
            entry.controller.set_members(members);
        }
        entry.sync = sync;
    }

    fn watch_sources(&mut self, now: Instant) {
        let mut targets: HashMap<String, (Target, Option<String>)> = HashMap::new();
        for entry in self.entries.values().filter(|e| e.sync.captures()) {
            for member in entry.sync.sources().filter(|m| m.db.active) {
                targets.insert(member.db.name.clone(), (member.db.target.clone(), member.db.identity.clone()));
            }
        }
        let quiet: Vec<_> = self.entries.values().flat_map(|e| e.sync.quiet()).collect();
        self.sources.retain(|name, source| targets.get(name).is_some_and(|(t, _)| *t == source.watcher.target));
        for (name, (target, known)) in targets {
            let source = self.sources.entry(name).or_insert_with(|| Source {
                watcher: Watcher::new(target, &self.control, now),
                purge_at: None,
                purged: now,
                purged_all: now,
                purged_in_vain: false,
                purged_in_parts: 0,
                purging_all: false,
                compare_at: None,
                inspect_at: now + INSPECT,
            });
            source.compare_at = Some(now);
            source.watcher.must_be(known, now);
            source.watcher.leave_out(&quiet);
            source.watcher.look_soon();
        }
    }

    /// Takes in a run's report: the controller, the waiting kicks, the next look at the sources.
    fn finished(&mut self, id: i32, job: Job, report: &Report, now: Instant) -> Result<()> {
        fault::point("master.before_report")?;
        let Some(entry) = self.entries.get_mut(&id) else { return Ok(()) };
        entry.controller.finished(job, report, now, guc::retry_min(), guc::retry_max());
        if report.lost != 0 {
            upkeep::record_lost(&entry.sync, report)?;
        }
        if job.main {
            entry.last = report.outcome;
            entry.commits = report.commits.unwrap_or(entry.commits);
        }
        if report.pause {
            entry.controller.paused = true;
            entry.pausing = !upkeep::pause(id)?;
        }
        if report.whole {
            for member in entry.sync.sources() {
                if let Some(source) = self.sources.get_mut(&member.db.name) {
                    source.watcher.look_soon();
                }
            }
        }
        let stirred = !report.whole && self.look_after(id, job, now);
        let Some(entry) = self.entries.get_mut(&id) else { return Ok(()) };
        entry.controller.changed |= stirred;
        let ticket = if job.main { entry.ticket } else { 0 };
        let warning = Text::new(&trouble::warning(&entry.controller, job, report));
        let Some(entry) = self.entries.get(&id) else { return Ok(()) };
        let line = self.line(entry, now);
        shmem::with(|s| {
            let Some(slot) = s.sync(self.db, id) else { return };
            if ticket > slot.done {
                slot.done = ticket;
                slot.resting = false;
                slot.outcome = report.outcome;
                slot.sqlstate = report.sqlstate;
                slot.message = report.message;
                slot.hint = report.hint;
                slot.warning = warning;
                // Who is answered may look at once.
                line.show(slot);
                wake_waiters(slot);
            }
        });
        Ok(())
    }

    fn wait(&mut self, now: Instant) {
        let watchers = || self.sources.values().map(|s| &s.watcher).chain(self.removals.values().map(|r| &r.watcher));
        let sockets: Vec<i32> = watchers().map(Watcher::socket).filter(|s| *s >= 0).collect();
        let timers = watchers().filter_map(|w| w.next_time(now));
        // What is due and has no kid waits for one: its end wakes us.
        let waits = |e: &&Entry| e.controller.due(now).is_none();
        let controllers = self.entries.values().filter(waits).filter_map(|e| e.controller.next_time(now));
        let upkeep = self.sources.values().flat_map(|s| [s.purge_at, s.compare_at, Some(s.inspect_at)]).flatten();
        let removals = self.removals.values().filter_map(|r| r.again_at);
        let kids = self.kids.next_time(now).into_iter().chain(self.turns.next_time(now));
        let next = timers.chain(controllers).chain(upkeep).chain(removals).chain(kids).min();
        let pausing = self.entries.values().any(|e| e.pausing).then(|| now + PAUSING);
        let idle = self.history_at.min(next.unwrap_or(self.history_at)).min(pausing.unwrap_or(self.history_at));
        latch::wait_any(&sockets, latch::Ready::Read, Some(idle.saturating_duration_since(Instant::now())));
    }
}
