//! What the master hears of its watchers, and the upkeep that it gives them. Nothing here waits.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::controller::Job;
use super::main::{Entry, HISTORY, INSPECT, Master, Source};
use super::slot::UndoSlot;
use super::upkeep::{self, BROKEN, LISTING, Listing, PURGE, RELEASE};
use super::watch::News;
use crate::capture::install;
use crate::catalog::sync::Sync;
use crate::error::Result;
use crate::guc;
use crate::pg::shmem;

/// Tables with so many bytes of capture are purged without waiting for the interval: each run reads them all.
const PURGE_BYTES: i64 = 32 * 1024;
const PURGE_SOONEST: Duration = Duration::from_millis(500);
/// The same after a purge that was in vain: somebody is away, or writes without end.
const PURGE_AGAIN: Duration = Duration::from_secs(2);
pub(super) const AGAIN: Duration = Duration::from_secs(3);
/// When somebody is installing capture just now, or the catalog has to be read first.
pub(super) const SOON: Duration = Duration::from_millis(200);

/// How many parts of a purge follow one another at once: tables that are written to all the time are never all empty.
const PURGE_PARTS: u32 = 200;

/// Whether `capture_release` or `capture_purge` has been through some tables and had no time for the others.
pub(super) fn more_at_once(left: &str) -> bool {
    left.starts_with('-')
}

impl Master {
    /// Lets the watchers go on and takes their news.
    pub(super) fn hear(&mut self, now: Instant) -> Result<()> {
        let entries = &self.entries;
        // What is committed while the only sync that it concerns runs is told at the end of the run.
        let deaf = |name: &str, source: &Source| {
            source.watcher.is_dirty() && only_one(entries, name).is_some_and(|e| e.sync.always_kicks() && e.controller.runs())
        };
        let heard: Vec<(String, News)> = self
            .sources
            .iter_mut()
            .flat_map(|(name, source)| {
                let deaf = deaf(name, source);
                source.watcher.advance(now, deaf).into_iter().map(|news| (name.clone(), news))
            })
            .collect();
        for (name, news) in heard {
            match news {
                News::Woken => {
                    if !self.starts_at_once(&name)
                        && let Some(source) = self.sources.get_mut(&name)
                    {
                        source.watcher.look_soon();
                    }
                }
                News::Pending(all) => {
                    let found = all.iter().fold(false, |found, (sync, member)| found | self.changed(sync, member));
                    if let Some(source) = self.sources.get_mut(&name) {
                        source.watcher.looked(found, now);
                        plan_purge(source, now);
                    }
                }
                News::Upkeep { token, result } => self.source_answered(&name, token, result, now)?,
            }
        }
        self.hear_removals(now)
    }

    /// Something was committed on a source: where that can concern one sync only, and nothing is known that speaks against
    /// it, its run starts without asking the source first.
    fn starts_at_once(&mut self, source: &str) -> bool {
        let id =
            only_one(&self.entries, source).filter(|e| e.sync.always_kicks() && e.controller.is_at_rest()).map(|e| e.sync.id);
        let Some(entry) = id.and_then(|id| self.entries.get_mut(&id)) else { return false };
        entry.controller.changed = true;
        true
    }

    /// A run of a sync has ended: looks for changes at its sources, but for those where it is known whether any came since the
    /// run began. Whether some did.
    pub(super) fn look_after(&mut self, id: i32, job: Job, now: Instant) -> bool {
        let Some(entry) = self.entries.get(&id) else { return false };
        let mut told = false;
        for member in entry.sync.sources() {
            let alone = job.main && entry.sync.always_kicks() && only_one(&self.entries, &member.db.name).is_some();
            let Some(source) = self.sources.get_mut(&member.db.name) else { continue };
            // Forgets before it counts: what is committed after that wakes again.
            if alone && source.watcher.calm() {
                source.watcher.reached_knowing(now);
                told = true;
            } else {
                source.watcher.reached(now);
            }
        }
        told && commits(&self.sources, &entry.sync) != entry.commits
    }

    /// A receiver of a sync has something to be served. Whether that was not known, nor is being served.
    fn changed(&mut self, sync: &str, member: &str) -> bool {
        let mut kicked = self.entries.values_mut().filter(|e| e.sync.capture_name() == sync && e.sync.sometimes_kicks());
        let Some(entry) = kicked.next() else { return false };
        let bit = entry.sync.members.iter().position(|m| m.db.name == member).map_or(0, |i| 1 << i);
        let waits = bit & entry.controller.members & !entry.controller.troubled() != 0;
        let known = entry.controller.changed || entry.controller.runs();
        entry.controller.changed |= waits;
        waits && !known
    }

    fn source_answered(&mut self, name: &str, token: u64, result: Result<String>, now: Instant) -> Result<()> {
        let (listing, result) = match (token, result) {
            (LISTING, Ok(text)) => match Listing::parse(&text) {
                Ok(listing) => (Some(listing), Ok(text)),
                // That concerns this member alone.
                Err(error) => (None, Err(error)),
            },
            (LISTING, Err(e)) if install::is_missing(&e) => (Some(Listing::default()), Err(e)),
            (_, result) => (None, result),
        };
        let stale = listing.clone().and_then(|listing| self.stale(listing));
        if let Some(listing) = listing.filter(|_| stale.is_some()) {
            self.capture_anew(name, &listing);
        }
        let Some(source) = self.sources.get_mut(name) else { return Ok(()) };
        match (token, result) {
            (PURGE, result) => {
                if let Err(error) = result.as_ref()
                    && error.code.class() != "08"
                    && !install::is_missing(error)
                {
                    pgrx::warning!("bucardo: what was captured on db \"{name}\" could not be purged: {error}");
                }
                source.purged = now;
                let freed = result.unwrap_or_else(|_| "0".to_string());
                source.purged_in_vain = freed == "0";
                source.watcher.bytes = 0;
                let goes_on = more_at_once(&freed) && source.purged_in_parts < PURGE_PARTS;
                source.purged_in_parts = if goes_on { source.purged_in_parts + 1 } else { 0 };
                if goes_on {
                    source.purge_at = Some(now);
                }
            }
            (LISTING, Ok(_)) => {
                source.watcher.told = false;
                match stale {
                    Some(stale) if stale.is_empty() => {}
                    Some(stale) => source.watcher.add_upkeep(RELEASE, upkeep::release_sql(&self.control, &stale)?),
                    None => source.compare_at = Some(now + SOON),
                }
            }
            (RELEASE, Ok(busy)) if busy == "0" => {}
            (RELEASE, Ok(left)) if more_at_once(&left) => source.compare_at = Some(now),
            (BROKEN, Ok(sync)) if !sync.is_empty() => self.look_again(&sync),
            // It captures nothing any more, whoever has taken that off.
            (BROKEN, Err(e)) if install::is_missing(&e) => source.compare_at = Some(now),
            (BROKEN, _) => {}
            (_, Err(e)) if install::is_missing(&e) => {}
            (LISTING, Err(e)) => {
                source.watcher.tell(&e);
                source.compare_at = Some(now + AGAIN);
            }
            _ => source.compare_at = Some(now + AGAIN),
        }
        Ok(())
    }

    /// What of a member's listing is to be released, but for what open transactions are just installing. None: it cannot be
    /// told now, because the catalog has changed since it was read, or one of them could not note what it installs.
    pub(super) fn stale(&self, listing: Listing) -> Option<Listing> {
        let (unclear, open) = shmem::read(|s| {
            let unclear = s.masters.iter().any(|m| m.db == self.db && (m.generation != self.generation || m.unnoted > 0));
            let open = s.undo.iter().filter(|u| u.db == self.db && u.owner != 0).map(|u| u.sync.get().to_string());
            (unclear, open.collect::<Vec<_>>())
        });
        let syncs: Vec<&Sync> = self.entries.values().map(|e| &e.sync).collect();
        (!unclear).then(|| listing.without(&open).stale(&syncs))
    }

    /// Whether it cannot be told now what captures there: a transaction that installs such capture is under way, or the catalog has
    /// changed since it was read.
    pub(super) fn is_unclear(&self, such: impl Fn(&UndoSlot) -> bool) -> bool {
        shmem::read(|s| {
            s.undo.iter().any(|u| u.db == self.db && u.owner != 0 && such(u))
                || s.masters.iter().any(|m| m.db == self.db && (m.generation != self.generation || m.unnoted > 0))
        })
    }

    /// The capture of a sync is broken: its next run looks at everything again, and mends what it can.
    fn look_again(&mut self, sync: &str) {
        if let Some(entry) = self.entries.values_mut().find(|e| e.sync.capture_name() == sync) {
            entry.controller.changed = true;
            shmem::bump_generation(self.db);
        }
    }

    /// Syncs for which a source captures nothing, as when the catalog was restored from a dump, run once: that mends it.
    fn capture_anew(&mut self, source: &str, listing: &Listing) {
        let is_source = |e: &Entry| e.sync.sources().any(|m| m.db.name == source && m.db.active);
        let mut found = false;
        for entry in self.entries.values_mut().filter(|e| e.sync.captures() && is_source(e)) {
            let tables = entry.sync.relations.iter().any(|r| !r.is_sequence);
            let uncaptured = tables && !listing.has(&entry.sync.capture_name());
            if uncaptured && !entry.uncaptured && entry.controller.is_at_rest() {
                (entry.uncaptured, entry.controller.changed, found) = (true, true, true);
            }
            entry.uncaptured &= uncaptured;
        }
        if found {
            shmem::with(|s| s.master(self.db).map(|m| m.generation += 1));
        }
    }

    pub(super) fn upkeep(&mut self, now: Instant) -> Result<()> {
        self.judge_removals(now)?;
        let due = |at: &Option<Instant>| at.is_some_and(|t| now >= t);
        for source in self.sources.values_mut() {
            if due(&source.purge_at) {
                source.purge_at = None;
                if source.purged_in_parts == 0 {
                    source.purging_all = now >= source.purged_all + guc::purge_interval();
                    source.purged_all = if source.purging_all { now } else { source.purged_all };
                }
                source.watcher.add_upkeep(PURGE, upkeep::purge_sql(if source.purging_all { 0 } else { PURGE_BYTES }));
                source.watcher.look_soon();
            }
            if due(&source.compare_at) {
                source.compare_at = None;
                source.watcher.add_upkeep(LISTING, upkeep::listing_sql(&self.control));
            }
            if now >= source.inspect_at {
                source.inspect_at = now + INSPECT;
                source.watcher.add_upkeep(BROKEN, upkeep::broken_sql(&self.control));
            }
        }
        self.send_removals(now);
        if now >= self.history_at {
            self.history_at = now + HISTORY;
            upkeep::forget_history()?;
            let (count, last) = upkeep::syncs()?;
            if count != self.entries.len() as i64 || last != self.entries.keys().copied().max().unwrap_or(0) {
                shmem::with(|s| s.master(self.db).map(|m| m.generation += 1));
            }
        }
        Ok(())
    }
}

/// The only sync that captures at a source, if there is but one.
fn only_one<'a>(entries: &'a HashMap<i32, Entry>, source: &str) -> Option<&'a Entry> {
    let mut concerned = entries.values().filter(|e| e.sync.captures() && e.sync.sources().any(|m| m.db.name == source));
    concerned.next().filter(|_| concerned.next().is_none())
}

/// Where the commits are counted that concern a sync: where it has one source and is the only sync of that, and all its tables kick.
pub(super) fn counted_at(entries: &HashMap<i32, Entry>, sources: &HashMap<String, Source>, id: i32) -> Option<usize> {
    let sync = &entries.get(&id)?.sync;
    let mut members = sync.sources();
    let source = members.next().filter(|_| members.next().is_none())?.db.name.as_str();
    only_one(entries, source).filter(|e| e.sync.id == id && e.sync.always_kicks())?;
    sources.get(source)?.watcher.counted_at()
}

/// How often the sources of a sync that wake us have done so.
pub(super) fn commits(sources: &HashMap<String, Source>, sync: &Sync) -> u64 {
    let watchers = sync.sources().filter_map(|m| sources.get(&m.db.name)).map(|s| &s.watcher);
    watchers.fold(0, |sum, w| sum.wrapping_add(w.commits()))
}

/// Served deltas are purged now and then, and soon when there are many.
fn plan_purge(source: &mut Source, now: Instant) {
    if source.watcher.bytes > 0 {
        let soon = source.purged + if source.purged_in_vain { PURGE_AGAIN } else { PURGE_SOONEST };
        let in_time = source.purged_all + guc::purge_interval();
        let at = if source.watcher.bytes >= PURGE_BYTES { soon.min(in_time) } else { in_time };
        source.purge_at = Some(source.purge_at.map_or(at, |planned| planned.min(at)).max(now));
    }
}
