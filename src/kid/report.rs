//! What a run has to say: the live line of `bucardo.activity`, the row of `bucardo.syncrun`, and the report by which
//! the master decides what comes next.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::{Value, json};

use super::apply::Counts;
use super::main::begin_run;
use super::renew::{self, Seen};
use super::who::Places;
use crate::catalog::sync::Sync;
use crate::error::{Error, Result};
use crate::guc::{self, LogLevel};
use crate::master::slot::{KidSlot, Outcome, Phase, Report, Text};
use crate::master::trouble::{Said, together};
use crate::pg::{shmem, spi, xact};

/// The row of a run.
const RUN: &str = "INSERT INTO bucardo.syncrun (run, sync, state, started, ended, upserts, deletes, truncates, error, sqlstate, details, conflicts) \
    SELECT $1, $2, $3, pg_catalog.to_timestamp($4 / 1000000.0 + 946684800), pg_catalog.clock_timestamp(), $5, $6, $7, $8, $9, $10::jsonb, $12 \
    WHERE EXISTS (SELECT FROM bucardo.sync WHERE id = $11)";

/// A run as it goes on.
pub struct Progress {
    slot: usize,
    pub run: i64,
    started: i64,
    phase: (Phase, Instant),
    phases: BTreeMap<&'static str, f64>,
    /// Of each: how many changes, in how many milliseconds, since when, and how many of the changes are of earlier rounds.
    relations: BTreeMap<String, (u64, f64, Instant, u64)>,
    pub counts: Counts,
    pub attempts: u32,
    /// The present round, from 1.
    rounds: u32,
    /// Whether the round has brought anything to anybody.
    pub brought: bool,
    /// The commits of the source that it has seen, where they are counted.
    pub commits: Option<u64>,
    /// What went wrong: the members as bits, the error of each by its place, and the error of the whole run.
    pub down: u64,
    pub refused: u64,
    pub whole: bool,
    errors: BTreeMap<u32, Error>,
    error: Option<Error>,
    /// A conflict's strategy wants the sync to be paused.
    pub pause: bool,
    pub conflicts: u64,
    /// Whether anything was pending.
    pub saw_changes: bool,
    /// Whether what was pending had been read on a guess.
    pub foreseen: bool,
    pub seen: Places,
    /// Whether the attempt has recorded decisions under the run's number.
    pub recorded: bool,
}

impl Progress {
    pub fn new(slot: usize, run: i64) -> Self {
        let now = shmem::now();
        show(slot, |kid| {
            kid.run = run;
            kid.phase = Phase::Connect;
            kid.rows_done = 0;
            kid.rows_total = 0;
            kid.relation = Text::EMPTY;
            kid.member = Text::EMPTY;
            kid.since = now;
        });
        Self {
            slot,
            run,
            started: now,
            phase: (Phase::Connect, Instant::now()),
            phases: BTreeMap::new(),
            relations: BTreeMap::new(),
            counts: Counts::default(),
            attempts: 0,
            rounds: 1,
            brought: false,
            commits: None,
            down: 0,
            refused: 0,
            whole: false,
            errors: BTreeMap::new(),
            error: None,
            pause: false,
            conflicts: 0,
            saw_changes: false,
            foreseen: false,
            seen: Places::new(),
            recorded: false,
        }
    }

    /// Takes another number.
    pub fn renumber(&mut self) -> Result<()> {
        self.run = begin_run(shmem::read(|s| s.kids[self.slot].db), None)?;
        show(self.slot, |kid| kid.run = self.run);
        Ok(())
    }

    /// Begins another round, when it is noted where the members were after the last one: what they lose in the next, the next must
    /// see. False: that cannot be noted, and the run ends.
    pub fn round(&mut self, sync: &Sync) -> bool {
        let noted = self.note(sync);
        if noted {
            self.rounds += 1;
            self.attempts = 0;
            self.brought = false;
            self.relations.values_mut().for_each(|entry| entry.3 = entry.0);
        }
        noted
    }

    /// Notes where the members are before one of them may be met again. False: that cannot be noted.
    pub fn note(&self, sync: &Sync) -> bool {
        let seen = self.places(sync);
        xact::transaction(|| renew::note(sync.id, &seen, None)).is_ok()
    }

    /// Where the members are that have committed.
    fn places(&self, sync: &Sync) -> Vec<Seen> {
        let name = |i: &usize| sync.members.get(*i).map(|m| m.db.name.clone());
        let seen = |(i, (identity, place)): (&usize, &(String, String))| {
            Some(Seen { db: name(i)?, identity: identity.clone(), place: place.clone() })
        };
        self.seen.iter().filter_map(seen).collect()
    }

    /// Another attempt: what the last one did is done anew, and counts once.
    pub fn attempt(&mut self) {
        self.attempts += 1;
        self.relations.values_mut().for_each(|entry| entry.0 = entry.3);
        show(self.slot, |kid| {
            kid.rows_done = 0;
            kid.rows_total = 0;
        });
    }

    fn clock(&mut self) {
        let (phase, since) = self.phase;
        *self.phases.entry(phase.name()).or_default() += since.elapsed().as_secs_f64() * 1000.0;
    }

    /// Enters a phase.
    pub fn phase(&mut self, phase: Phase) {
        self.clock();
        self.phase = (phase, Instant::now());
        show(self.slot, |kid| {
            kid.phase = phase;
            kid.member = Text::EMPTY;
        });
    }

    /// Turns to one member, until the next phase, in which they work at the same time.
    pub fn member(&self, name: &str) {
        show(self.slot, |kid| kid.member = Text::new(name));
    }

    pub fn total(&self, rows: u64) {
        show(self.slot, |kid| kid.rows_total += rows);
    }

    /// A relation is begun (`changes` 0) or done.
    pub fn relation(&mut self, name: &str, changes: u64) {
        let entry = self.relations.entry(name.to_string()).or_insert((0, 0.0, Instant::now(), 0));
        if changes == 0 {
            entry.2 = Instant::now();
        } else {
            entry.0 += changes;
            entry.1 += entry.2.elapsed().as_secs_f64() * 1000.0;
        }
        show(self.slot, |kid| {
            kid.relation = Text::new(name);
            kid.rows_done += changes;
        });
    }

    /// A member's part failed for good in this run.
    pub fn member_failed(&mut self, bit: u64, away: bool, error: Error) {
        if away {
            self.down |= bit;
        } else {
            self.refused |= bit;
        }
        self.errors.insert(bit.trailing_zeros(), error);
    }

    /// What went wrong: the whole run if that did, else of the members. What a user must mend goes before what mends itself.
    fn failures(&self) -> Vec<&Error> {
        let those = |bits: u64| self.errors.iter().filter(move |(i, _)| bits & (1 << **i) != 0).map(|(_, error)| error);
        match &self.error {
            Some(error) => vec![error],
            None => those(self.refused).chain(those(self.down)).collect(),
        }
    }

    fn message(&self, bytes: usize) -> String {
        together(self.failures().iter().map(|error| error.to_string()), bytes)
    }

    /// The whole run failed.
    pub fn failed(&mut self, away: u64, error: Error) {
        self.whole = true;
        // Who else is away is not why.
        self.down = away;
        self.error = Some(error);
    }

    /// The whole run failed, and perhaps the sync is to be paused.
    pub fn failed_for_good(&mut self, error: Error, pause: bool) {
        self.pause = pause;
        self.failed(0, error);
    }

    pub fn outcome(&self) -> Outcome {
        if self.whole || self.refused != 0 {
            Outcome::Bad
        } else if self.counts != Counts::default() || self.conflicts != 0 {
            Outcome::Good
        } else {
            Outcome::Empty
        }
    }

    /// Shows in the status that clocks make decisions doubtful, or that they do not; the log is told when that changes.
    pub fn doubt_clocks(&self, sync: &Sync, doubt: &str) {
        let news = shmem::with(|shared| {
            let db = shared.kids[self.slot].db;
            let slot = shared.sync(db, sync.id)?;
            let news = slot.doubt.is_empty() != doubt.is_empty();
            slot.doubt = Text::new(doubt);
            Some(news)
        });
        if news == Some(true) && !doubt.is_empty() {
            pgrx::warning!("bucardo: sync \"{}\": {doubt}", sync.name);
        }
    }

    /// Whether nothing of it can still be under way anywhere.
    pub fn is_clean(&self) -> bool {
        self.attempts == 1 && self.failures().is_empty()
    }

    /// The report for the master.
    pub fn report(&self) -> Report {
        let mut report = Report {
            outcome: self.outcome(),
            down: self.down,
            refused: self.refused,
            whole: self.whole,
            idle: !self.saw_changes,
            pause: self.pause,
            commits: self.commits,
            ..self.failures().first().map_or(Report::NONE, |error| Report::bad(error))
        };
        if !self.failures().is_empty() {
            report.message = Text::new(&self.message(600));
        }
        if !self.whole {
            let texts: Vec<String> = self.errors.values().map(Error::with_mend).collect();
            report.said = Said::new(&texts);
        }
        report
    }

    fn details(&self) -> Value {
        let relation = |(name, (changes, ms, ..)): (&String, &(u64, f64, Instant, u64))| {
            (name.clone(), json!({"changes": changes, "ms": round(*ms)}))
        };
        let relations: serde_json::Map<String, Value> = self.relations.iter().map(relation).collect();
        let phases: serde_json::Map<String, Value> =
            self.phases.iter().map(|(k, v)| ((*k).to_string(), json!(round(*v)))).collect();
        let mut details = json!({"phases_ms": phases, "relations": relations, "attempts": self.attempts});
        if self.foreseen {
            details["foreseen"] = true.into();
        }
        if self.rounds > 1 {
            details["rounds"] = self.rounds.into();
        }
        details
    }

    /// Tells the log what came of it, where `bucardo.log_level` asks for that.
    pub fn tell(&self, sync: &Sync) {
        if !guc::logs(LogLevel::Verbose) {
            return;
        }
        let (name, run, state) = (&sync.name, self.run, self.state());
        let (counts, conflicts) = (&self.counts, self.conflicts);
        let error = if self.failures().is_empty() { String::new() } else { format!(": {}", self.message(usize::MAX)) };
        pgrx::log!(
            "bucardo: run {run} of sync \"{name}\" was {state}: {} upserts, {} deletes, {} truncates, {conflicts} conflicts{error}",
            counts.upserts,
            counts.deletes,
            counts.truncates
        );
    }

    /// The word of `bucardo.syncrun`.
    fn state(&self) -> &'static str {
        match self.outcome() {
            Outcome::Good => "good",
            Outcome::Empty => "empty",
            Outcome::Bad | Outcome::None => "bad",
        }
    }

    /// Writes the row of `bucardo.syncrun`.
    pub fn record(&mut self, sync: &Sync) -> Result<()> {
        self.clock();
        let state = self.state();
        let error = self.failures().first().map(|_| self.message(usize::MAX));
        let sqlstate = self.failures().first().map(|e| e.code.as_str().to_string());
        let details = self.details().to_string();
        let seen = self.places(sync);
        let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        xact::transaction(|| {
            let all = error.is_none() && seen.len() == sync.members.len();
            renew::note(sync.id, &seen, all.then_some(self.run))?;
            spi::execute_kept(
                RUN,
                &[
                    self.run.into(),
                    sync.name.as_str().into(),
                    state.into(),
                    self.started.into(),
                    count(self.counts.upserts).into(),
                    count(self.counts.deletes).into(),
                    count(self.counts.truncates).into(),
                    error.as_deref().into(),
                    sqlstate.as_deref().into(),
                    details.as_str().into(),
                    sync.id.into(),
                    count(self.conflicts).into(),
                ],
            )
            .map(drop)
        })
    }
}

fn round(ms: f64) -> f64 {
    (ms * 1000.0).round() / 1000.0
}

/// Changes what the kid's slot shows.
pub fn show(slot: usize, change: impl FnOnce(&mut KidSlot)) {
    shmem::with(|shared| change(&mut shared.kids[slot]));
}
