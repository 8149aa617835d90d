//! What the master hears of its watchers, and the upkeep that it gives them. Nothing here waits.

use std::time::{Duration, Instant};

use super::main::{HISTORY, Master, Removal};
use super::upkeep::{self, PURGE, RECONCILE};
use super::watch::News;
use crate::capture::install;
use crate::catalog::sync::Sync;
use crate::error::Result;
use crate::guc;

/// With so many bytes of capture at a source, served deltas are purged without waiting for the interval.
const PURGE_BYTES: i64 = 1024 * 1024;
const PURGE_SOONEST: Duration = Duration::from_millis(500);
const REMOVE_AGAIN: Duration = Duration::from_secs(3);

impl Master {
    /// Lets the watchers go on and takes their news.
    pub(super) fn hear(&mut self, now: Instant) -> Result<()> {
        for source in self.sources.values_mut() {
            for news in source.watcher.advance(now) {
                match news {
                    News::Pending(all) => {
                        for (sync, member) in all {
                            if let Some(entry) =
                                self.entries.values_mut().find(|e| e.sync.capture_name() == sync && e.sync.autokick)
                            {
                                let bit = entry.sync.members.iter().position(|m| m.db.name == member).map_or(0, |i| 1 << i);
                                entry.controller.changed |= bit & entry.controller.members & !entry.controller.troubled() != 0;
                            }
                        }
                        if source.watcher.bytes > 0 && source.purge_at.is_none() {
                            let early = source.watcher.bytes > PURGE_BYTES;
                            source.purge_at = Some(
                                if early { source.purged + PURGE_SOONEST } else { source.purged + guc::purge_interval() }
                                    .max(now),
                            );
                        }
                    }
                    News::Upkeep { token: PURGE, .. } => {
                        source.purged = now;
                        source.watcher.bytes = 0;
                    }
                    News::Upkeep { token: RECONCILE, result: Ok(0) } => {}
                    News::Upkeep { token: RECONCILE, result: Err(e) }
                        if matches!(e.code.as_str(), "3F000" | "42P01" | "42883") => {}
                    News::Upkeep { .. } => source.reconcile_at = Some(now + REMOVE_AGAIN),
                }
            }
        }
        self.hear_removals(now)
    }

    fn hear_removals(&mut self, now: Instant) -> Result<()> {
        let mut done = Vec::new();
        for (token, removal) in &mut self.removals {
            for news in removal.watcher.advance(now) {
                let News::Upkeep { result, .. } = news else { continue };
                match result {
                    Ok(0) if !removal.finishing => {
                        removal.finishing = true;
                        removal.again_at = Some(now);
                    }
                    Ok(0) => done.push(*token),
                    Err(e) if matches!(e.code.as_str(), "3F000" | "42P01" | "42883") => done.push(*token),
                    Ok(_) | Err(_) => removal.again_at = Some(now + REMOVE_AGAIN),
                }
            }
        }
        for token in done {
            if let Some(Removal { cleanup: Some(id), .. }) = self.removals.remove(&token) {
                upkeep::cleaned(id)?;
            }
        }
        Ok(())
    }

    pub(super) fn upkeep(&mut self, now: Instant) -> Result<()> {
        let due = |at: &Option<Instant>| at.is_some_and(|t| now >= t);
        let syncs: Vec<&Sync> = self.entries.values().map(|e| &e.sync).collect();
        for (name, source) in &mut self.sources {
            if due(&source.purge_at) {
                source.purge_at = None;
                source.watcher.add_upkeep(PURGE, upkeep::PURGE_SQL.into());
                source.watcher.look_soon();
            }
            if due(&source.reconcile_at) {
                source.reconcile_at = None;
                source.watcher.add_upkeep(RECONCILE, upkeep::reconcile_sql(&self.control, name, &syncs));
            }
        }
        for (token, removal) in &mut self.removals {
            if due(&removal.again_at) {
                removal.again_at = None;
                let sql = match removal.finishing {
                    true => install::REMOVE_SCRIPT.to_string(),
                    false => upkeep::forget_sql(&removal.control, removal.sync.as_deref()),
                };
                removal.watcher.add_upkeep(*token, sql);
            }
        }
        if now >= self.history_at {
            self.history_at = now + HISTORY;
            upkeep::forget_history()?;
        }
        Ok(())
    }
}
