//! Capture that is taken off members that may be in no sync any more: what committed transactions have left to do, what
//! those have installed that came to nothing, and what a crash of this server has cut off. Each is carried on step by step by a
//! watcher of its own. It must never take off what a sync of the catalog needs, nor wait for a member.

use std::time::Instant;

use super::hear::{AGAIN, SOON, more_at_once};
use super::main::Master;
use super::upkeep::{self, Listing};
use super::watch::{News, Watcher};
use crate::capture::install;
use crate::catalog;
use crate::catalog::cleanup::{self, Cleanup};
use crate::catalog::sync::Sync;
use crate::error::{Error, Result, SqlState};
use crate::ident::{quote_literal, text_array};
use crate::libpq::{Conninfo, Target};
use crate::pg::{shmem, xact};

/// Capture to be taken off a member that may be in no sync any more.
pub(super) struct Removal {
    pub(super) watcher: Watcher,
    pub(super) cleanup: Option<i64>,
    /// How the place is reached, as it was said.
    pub(super) conninfo: String,
    pub(super) step: RemovalStep,
    pub(super) again_at: Option<Instant>,
}

/// Where a removal stands.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum RemovalStep {
    /// All capture under that name, or all of the control database, goes.
    Forget {
        control: String,
        sync: Option<String>,
    },
    /// What the catalog does not know goes: the member is asked what it has.
    List,
    Release {
        stale: String,
    },
    /// Our objects go, if nothing captures any more.
    Finish,
}

impl Master {
    /// Begins to take something off a member, or off a place where one was.
    fn remove(&mut self, (target, conninfo): (Target, String), step: RemovalStep, cleanup: Option<i64>, now: Instant) {
        let token = self.next_token;
        self.next_token += 1;
        let watcher = Watcher::for_upkeep(target, now);
        self.removals.insert(token, Removal { watcher, cleanup, conninfo, step, again_at: Some(now) });
    }

    /// Takes up what committed transactions have left to do.
    pub(super) fn take_up(&mut self, now: Instant) {
        let waiting = std::mem::take(&mut self.waiting);
        // Some are not wanted any more, or in another place.
        self.removals.retain(|_, r| r.cleanup.is_none_or(|id| waiting.iter().any(|c| c.id == id)));
        for Cleanup { id, control, db, conninfo, sync } in &waiting {
            if self.removals.values().any(|r| r.cleanup == Some(*id)) {
                continue;
            }
            if let Ok(info) = conninfo_of(conninfo) {
                let step = RemovalStep::Forget { control: control.clone(), sync: sync.clone() };
                self.remove((Target { name: db.clone(), info }, conninfo.clone()), step, Some(*id), now);
            }
        }
        self.waiting = waiting;
    }

    /// There is nothing more to be done for a removal. One that a committed transaction has left is noted to be done.
    fn give_up(&mut self, token: u64) -> Result<()> {
        if let Some(Removal { cleanup: Some(id), .. }) = self.removals.remove(&token) {
            xact::transaction(|| cleanup::done(id))?;
            self.waiting.retain(|cleanup| cleanup.id != id);
        }
        Ok(())
    }

    /// Takes off again what transactions have installed that came to nothing: (member, conninfo, capture).
    pub(super) fn remove_undone(&mut self, undone: Vec<(String, String, String)>) {
        for (name, conninfo, sync) in undone {
            if let Ok(info) = conninfo_of(&conninfo) {
                // What a sync keeps of its sources is compared with them: there may be more tables than it has by now.
                if self.captures_at(&sync, &info) {
                    continue;
                }
                let step = RemovalStep::Forget { control: self.control.clone(), sync: Some(sync) };
                self.remove((Target { name, info }, conninfo), step, None, Instant::now());
            }
        }
    }

    /// Once after its start the master asks every member what it captures: a crash of this server may have cut off a
    /// transaction that had put capture there. The same after one that could not note where it did.
    pub(super) fn sweep(&mut self, now: Instant) -> Result<()> {
        let unswept = shmem::with(|s| std::mem::take(&mut s.masters[self.slot].unswept));
        if std::mem::replace(&mut self.swept, true) && !unswept {
            return Ok(());
        }
        for db in xact::transaction(catalog::db::load_all)?.into_iter().filter(|db| db.active) {
            if !self.sources.contains_key(&db.name) {
                self.remove((db.target, db.conninfo), RemovalStep::List, None, now);
            }
        }
        Ok(())
    }

    /// Lets the watchers of removals go on and takes their news.
    pub(super) fn hear_removals(&mut self, now: Instant) -> Result<()> {
        let mut heard = Vec::new();
        for (token, removal) in &mut self.removals {
            for news in removal.watcher.advance(now, false) {
                if let News::Upkeep { result, .. } = news {
                    heard.push((*token, result));
                }
            }
        }
        for (token, result) in heard {
            self.removal_answered(token, result, now)?;
        }
        Ok(())
    }

    fn removal_answered(&mut self, token: u64, result: Result<String>, now: Instant) -> Result<()> {
        let Some(step) = self.removals.get(&token).map(|r| r.step.clone()) else { return Ok(()) };
        let next = match (step, result) {
            (_, Err(e)) if install::is_missing(&e) => None,
            (RemovalStep::List | RemovalStep::Release { .. }, Err(e)) => self.list_again(token, &e, now),
            (RemovalStep::List, Ok(listing)) => match Listing::parse(&listing).map(|listing| self.stale(listing)) {
                Ok(Some(stale)) if stale.is_empty() => None,
                Ok(Some(stale)) => Some((RemovalStep::Release { stale: upkeep::release_sql(&self.control, &stale)? }, now)),
                Ok(None) => Some((RemovalStep::List, now + SOON)),
                Err(e) => self.list_again(token, &e, now),
            },
            (RemovalStep::Forget { .. } | RemovalStep::Release { .. }, Ok(busy)) if busy == "0" => {
                Some((RemovalStep::Finish, now))
            }
            (RemovalStep::Finish, Ok(_)) => None,
            (step, Ok(left)) if more_at_once(&left) => Some((step, now)),
            (step, _) => Some((step, now + AGAIN)),
        };
        match (next, self.removals.get_mut(&token)) {
            (Some((step, at)), Some(removal)) => {
                removal.step = step;
                removal.again_at = Some(at);
            }
            _ => self.give_up(token)?,
        }
        Ok(())
    }

    /// A member could not be asked what it captures, or be rid of it. It may have been slow when a crash of this server cut
    /// something off, so it is asked again, as long as it is one that is asked.
    fn list_again(&mut self, token: u64, error: &Error, now: Instant) -> Option<(RemovalStep, Instant)> {
        let removal = self.removals.get_mut(&token)?;
        let name = removal.watcher.target.name.clone();
        let db = self.members.iter().find(|db| db.active && db.name == name)?;
        // Who may not ask can have put nothing there; what a source captures is compared with the catalog anyway.
        if error.code == SqlState::NOT_ALLOWED || self.sources.contains_key(&name) {
            return None;
        }
        if db.target != removal.watcher.target {
            removal.watcher = Watcher::for_upkeep(db.target.clone(), now);
        }
        removal.watcher.tell(error);
        Some((RemovalStep::List, now + AGAIN))
    }

    /// Whether a sync has the database that is reached that way as a source, and captures there.
    fn captures_at(&self, capture: &str, place: &Conninfo) -> bool {
        let sync = self.entries.values().map(|e| &e.sync).find(|s| s.capture_name() == capture && s.captures());
        sync.is_some_and(|s| s.sources().any(|m| m.db.target.info == *place))
    }

    /// Of the removals that are due: gives up those whose sync captures there by now, and puts off those of which that
    /// cannot be told, because somebody is just changing it.
    pub(super) fn judge_removals(&mut self, now: Instant) -> Result<()> {
        let mut wanted_again = Vec::new();
        let mut unclear = Vec::new();
        for (token, removal) in self.removals.iter().filter(|(_, r)| r.again_at.is_some_and(|t| now >= t)) {
            let RemovalStep::Forget { control, sync: Some(sync) } = &removal.step else { continue };
            if *control != self.control {
                continue;
            }
            if self.is_unclear(|u| u.sync.get() == sync) {
                unclear.push(*token);
            } else if self.captures_at(sync, &removal.watcher.target.info) {
                wanted_again.push(*token);
            }
        }
        for token in unclear {
            self.removals.get_mut(&token).into_iter().for_each(|r| r.again_at = Some(now + SOON));
        }
        wanted_again.into_iter().try_for_each(|token| self.give_up(token))
    }

    /// The statement that takes a sync's capture off a place where it is not wanted as far as is known. That place may be
    /// a source of the sync by another conninfo: which databases those are, the statement looks for itself.
    fn forget_unless_source(&self, control: &str, capture: &str) -> String {
        let sync = self.entries.values().map(|e| &e.sync).find(|s| s.capture_name() == capture);
        let sources: Vec<String> = sync
            .into_iter()
            .flat_map(Sync::sources)
            .filter_map(|m| match m.db.conninfo.trim() {
                "" => Some(format!("{}/{}", upkeep::this_server().identifier, self.db)),
                _ => m.db.identity.clone(),
            })
            .collect();
        let forget = upkeep::forget_sql(control, Some(capture));
        format!(
            "SELECT CASE WHEN (SELECT s.system_identifier FROM pg_catalog.pg_control_system() s) || '/' || d.oid = ANY ({}) THEN 0 ELSE ({forget}) END \
             FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()",
            quote_literal(&text_array(sources.iter().map(String::as_str).collect::<Vec<_>>()))
        )
    }

    /// Gives the watchers the statements of the removals that are due.
    pub(super) fn send_removals(&mut self, now: Instant) {
        let statement = |removal: &Removal| match &removal.step {
            RemovalStep::Forget { control, sync: Some(sync) } if *control == self.control => {
                self.forget_unless_source(control, sync)
            }
            RemovalStep::Forget { control, sync } => upkeep::forget_sql(control, sync.as_deref()),
            RemovalStep::List => upkeep::listing_sql(&self.control),
            RemovalStep::Release { stale } => stale.clone(),
            RemovalStep::Finish => install::REMOVE_SCRIPT.to_string(),
        };
        let statements: Vec<(u64, String)> = self
            .removals
            .iter()
            .filter(|(_, r)| r.again_at.is_some_and(|t| now >= t))
            .map(|(token, r)| (*token, statement(r)))
            .collect();
        for (token, sql) in statements {
            if let Some(removal) = self.removals.get_mut(&token) {
                removal.again_at = None;
                removal.watcher.add_upkeep(token, sql);
            }
        }
    }
}

/// A stored conninfo; the empty one means this database.
pub(super) fn conninfo_of(text: &str) -> Result<Conninfo> {
    if text.trim().is_empty() { xact::transaction(catalog::db::own_conninfo) } else { Conninfo::parse(text) }
}
