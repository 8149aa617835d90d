//! What the master says to others and hears from them through the shared table: the kicks that wait, and what
//! `bucardo.status` shows. It decides nothing; it must never wait.

use std::collections::HashMap;
use std::time::Instant;

use super::main::{Entry, Master};
use super::slot::{Outcome, Shown, SyncSlot, Text};
use crate::catalog::rest;
use crate::error::{Error, SqlState};
use crate::guc;
use crate::pg::{shmem, worker};

/// Answers waiting kicks with an error.
pub(super) fn fail_kicks(slot: &mut SyncSlot, code: SqlState, message: &str) {
    if slot.kicked > slot.done {
        slot.done = slot.kicked;
        slot.begun = slot.kicked;
        slot.resting = false;
        slot.outcome = Outcome::Bad;
        slot.sqlstate = code.0;
        slot.message = Text::new(message);
        slot.hint = Text::EMPTY;
        wake_waiters(slot);
    }
}

/// Answers them with why the sync does not run, and what mends that.
fn refuse_kicks(slot: &mut SyncSlot, why: &Error) {
    fail_kicks(slot, why.code, &why.message);
    slot.hint = Text::new(why.hint.as_deref().unwrap_or_default());
    slot.resting = true;
}

/// Why a sync rests, if it does.
fn why_it_rests(entry: &Entry) -> Option<Error> {
    let (controller, sync) = (&entry.controller, &entry.sync);
    match (controller.active, controller.paused) {
        (true, false) => None,
        (_, true) if sync.active => Some(rest::paused(&sync.name)),
        _ if sync.active => Some(rest::asleep(&sync.name, &sync.asleep())),
        _ => Some(rest::inactive(&sync.name)),
    }
}

/// What the status says of a sync whose run is due, while all kids are busy.
fn waits_for_a_kid() -> String {
    format!("it waits for a free kid: all {} are busy (bucardo.max_kids)", guc::max_kids())
}

pub(super) fn wake_waiters(slot: &SyncSlot) {
    slot.waiters.iter().filter(|w| **w >= 0).for_each(|w| worker::set_latch(*w));
}

/// How long an error may be in the status.
const ERROR: usize = 600;

/// What the status says of one sync.
pub(super) struct Line {
    shown: Shown,
    error: Text<ERROR>,
    next_try: i64,
}

impl Line {
    pub(super) fn show(&self, slot: &mut SyncSlot) {
        slot.shown = self.shown;
        slot.error = self.error;
        slot.next_try = self.next_try;
    }
}

impl Master {
    /// Takes in what was kicked, and what ended transactions have left to undo.
    pub(super) fn take_kicks(&mut self) {
        let (db, generation) = (self.db, self.generation);
        let resting: HashMap<i32, Error> =
            self.entries.iter().filter_map(|(id, entry)| Some((*id, why_it_rests(entry)?))).collect();
        let undone = shmem::with(|s| {
            // Only a catalog that was read since those transactions ended can say what became of them, and that a sync is
            // still paused.
            let read = s.master(db).is_some_and(|m| m.generation == generation);
            for slot in s.syncs.iter_mut().filter(|y| y.db == db && y.kicked > y.begun) {
                match (self.entries.get_mut(&slot.sync), resting.get(&slot.sync)) {
                    (Some(entry), None) => entry.controller.kicked = true,
                    (Some(_), Some(why)) if read => refuse_kicks(slot, why),
                    // Not yet committed, or not yet read.
                    _ => {}
                }
            }
            if read { super::notify::take_installed(s, db) } else { Vec::new() }
        });
        self.remove_undone(undone);
    }

    /// What `bucardo.status` shows of a sync.
    pub(super) fn line(&self, entry: &Entry, now: Instant) -> Line {
        let (shown, trouble) = entry.controller.shown(ERROR);
        let clock = shmem::now();
        let in_micros = |t: Instant| clock + t.saturating_duration_since(now).as_micros() as i64;
        // A source that cannot be asked for changes stalls the sync, whether a run was due or not.
        let names = entry.sync.sources().map(|m| &m.db.name);
        let lost = names.filter_map(|n| self.sources.get(n)).find_map(|s| s.watcher.trouble());
        let line = |shown, error: &str, next_try| Line { shown, error: Text::new(error), next_try };
        match (trouble, lost, self.kids.trouble.as_deref()) {
            (Some((error, next_try)), ..) => line(shown, &error, in_micros(next_try)),
            (None, Some((text, next_try)), _) => line(Shown::Stalled, text, in_micros(next_try)),
            (None, None, Some(text)) if entry.controller.due(now).is_some() => line(Shown::Waiting, text, 0),
            (None, None, None) if self.turns.starves(entry.sync.id, now) => line(Shown::Waiting, &waits_for_a_kid(), 0),
            (None, None, _) => line(shown, "", 0),
        }
    }

    /// Publishes what `bucardo.status` shows.
    pub(super) fn publish(&mut self, now: Instant) {
        let lines: Vec<(i32, Line)> = self.entries.iter().map(|(id, entry)| (*id, self.line(entry, now))).collect();
        let short = self.turns.short(now);
        shmem::with(|s| {
            s.masters[self.slot].short = short;
            for (id, line) in &lines {
                if let Some(slot) = s.sync(self.db, *id) {
                    line.show(slot);
                }
            }
        });
    }
}
