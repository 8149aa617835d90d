//! Whole tables: for a member that is new, and where a source does not know what has changed. A table that is empty takes
//! the rows as they come; any other is made equal, but for what that member has changed itself.

use std::collections::HashMap;

use super::{Broken, Mesh};
use crate::kid::apply::{Counts, Receiver};
use crate::kid::members;
use crate::kid::reading::Reading;
use crate::kid::report::Progress;
use crate::kid::shape::{Table, is_binary_safe};
use crate::kid::statements::Join;
use crate::kid::stream;
use crate::kid::writing::Writing;

/// One table that is copied, as its source has it.
struct Model {
    relation: i32,
    name: String,
    table: Table,
    key: Vec<String>,
    columns: Vec<String>,
}

impl Model {
    fn reading(&self) -> Reading<'_> {
        Reading {
            source: &self.table,
            key: &self.key,
            slots: &[],
            columns: &self.columns,
            segments: &[],
            batched: false,
            fitting: None,
            news: "",
            excluded: None,
            noted: false,
        }
    }

    fn on<T>(&self, receiver: &Receiver, body: impl FnOnce(&Writing<'_>) -> T) -> Option<T> {
        let table = receiver.shapes.get(&self.relation)?;
        let stage = format!("bucardo_stage_{}_whole", self.relation);
        Some(body(&Writing { table, key: &self.key, columns: &self.columns, stage, noted: false }))
    }
}

impl Mesh<'_> {
    /// Copies a whole table where that is wanted. Of several sources that do not know what has changed the first is the model,
    /// but not one that shall itself get all.
    pub(super) fn copy_whole(
        &mut self,
        relation: i32,
        kept: &HashMap<(usize, i32), String>,
        progress: &mut Progress,
    ) -> Result<(), Broken> {
        let wants = |o: &super::offer::Offer| o.whole.get(&relation).copied().unwrap_or(0) | o.copy_all | o.copy_empty;
        let given = self.offers.iter().flatten().fold(0, |bits, o| bits | o.copy_all);
        let mut places: Vec<usize> = (0..self.members.len()).collect();
        places.sort_by_key(|at| given & self.members[*at].bit() != 0);
        let model = places.into_iter().find_map(|at| {
            let offer = self.offers[at].as_ref().filter(|o| wants(o) != 0)?;
            // Who is to be made equal itself is no model.
            let others = self.offers.iter().flatten().filter_map(|o| o.late.get(&relation)).fold(0, |bits, t| bits | t);
            if others & self.members[at].bit() != 0 {
                return None;
            }
            Some((at, offer.whole.get(&relation).copied().unwrap_or(0) | offer.copy_all, offer.copy_empty))
        });
        let Some((at, sure, if_empty)) = model else { return Ok(()) };
        let Some(table) = self.members[at].shapes.get(&relation).cloned() else { return Ok(()) };
        let columns = table.columns.iter().filter(|c| !c.generated).map(|c| c.name.clone()).collect();
        let model = Model { relation, name: self.relation_name(relation), table, key: self.key_of(relation), columns };
        let (mut straight, mut staged, mut own) = (0, 0, HashMap::new());
        for to in (0..self.members.len()).filter(|to| *to != at).collect::<Vec<_>>() {
            let bit = self.members[to].bit();
            if (sure | if_empty) & bit == 0 {
                continue;
            }
            let empty = self.is_empty(to, relation);
            if empty && !self.care.thorough && model.on(&self.members[to], |w| w.takes_copy()) == Some(true) {
                straight |= bit;
            } else if empty || sure & bit != 0 {
                staged |= bit;
            }
            if let Some(keys) = self.own_keys(to, relation, kept)? {
                own.insert(bit, keys);
            }
        }
        let before: Vec<Counts> = self.members.iter().map(|m| m.counts).collect();
        if straight | staged != 0 {
            progress.relation(&model.name, 0);
        }
        if straight != 0 {
            self.copy_straight(at, straight, &model);
        }
        if staged != 0 {
            self.copy_staged(at, staged, &model, &own);
        }
        for (to, before) in before.into_iter().enumerate() {
            if self.members[to].counts != before {
                self.note_whole(to, relation, Some(at));
            }
        }
        // How many there are is known when all are there.
        let got = self.members.iter().filter(|m| (straight | staged) & m.bit() != 0);
        let rows = got.map(|m| m.copied).max().unwrap_or(0);
        progress.total(rows);
        if rows > 0 {
            progress.relation(&model.name, rows);
        }
        let late = self.offers.iter().flatten().filter_map(|o| o.late.get(&relation)).fold(0, |bits, t| bits | t);
        for to in (0..self.members.len()).filter(|to| late & self.members[*to].bit() != 0).collect::<Vec<_>>() {
            self.note_truncates(to, relation, true);
        }
        self.copied.push((relation, straight | staged));
        self.check()
    }

    fn copy_straight(&mut self, at: usize, towards: u64, model: &Model) {
        self.apart(at, towards, |from, receivers| {
            let version = from.session.conn.version() / 10_000;
            let fits = |r: &Receiver| {
                let table = r.shapes.get(&model.relation);
                r.session.conn.version() / 10_000 == version
                    && table.is_some_and(|t| is_binary_safe(&model.table, t, &model.columns))
            };
            let binary = receivers.iter().all(fits);
            let into = |r: &Receiver| model.on(r, |w| w.copy_straight(binary)).unwrap_or_default();
            let out = model.reading().bare(binary);
            let copied = stream::stream(&mut from.session.conn, &out, receivers, &model.name, into);
            from.attempt(|_| copied);
            for receiver in receivers.iter_mut().filter(|r| r.failed.is_none()) {
                receiver.counts.upserts += receiver.copied;
            }
        });
    }

    fn copy_staged(&mut self, at: usize, towards: u64, model: &Model, own: &HashMap<u64, String>) {
        let thorough = self.care.thorough;
        self.apart(at, towards, |from, receivers| {
            for receiver in receivers.iter_mut() {
                let create = model.on(receiver, |w| w.create_stage()).unwrap_or_default();
                receiver.attempt_on(&model.name, |conn| conn.query(&create));
            }
            let into = |r: &Receiver| model.on(r, |w| w.copy_stage(false)).unwrap_or_default();
            let copied = stream::stream(&mut from.session.conn, &model.reading().whole(false), receivers, &model.name, into);
            from.attempt(|_| copied);
            for receiver in receivers.iter_mut() {
                let merge = receiver.session.conn.version() >= 150_000;
                receiver.attempt(|conn| conn.query(Join::Free.settings()));
                let spare = own.get(&receiver.bit()).map(String::as_str);
                for (deletes, sql) in model.on(receiver, |w| w.apply_whole(merge, thorough, spare)).unwrap_or_default() {
                    let Some(rows) = receiver.attempt_on(&model.name, |conn| conn.query(&sql)) else { break };
                    match deletes {
                        true => receiver.counts.deletes += rows.affected(),
                        false => receiver.counts.upserts += rows.affected(),
                    }
                }
            }
        });
    }

    fn is_empty(&mut self, at: usize, relation: i32) -> bool {
        let Some(only) = self.members[at].shapes.get(&relation).map(|t| t.only.clone()) else { return false };
        let asked = self.members[at].attempt(|conn| conn.query(&format!("SELECT NOT EXISTS (SELECT FROM {only})")));
        asked.is_some_and(|rows| rows.bool(0, 0))
    }

    /// Calls with one source and some of the other members.
    fn apart<T>(&mut self, at: usize, towards: u64, body: impl FnOnce(&mut Receiver, &mut [Receiver]) -> T) -> T {
        let mut all = std::mem::take(&mut self.members);
        let mut from = all.remove(at);
        let (mut chosen, rest): (Vec<_>, Vec<_>) = all.into_iter().partition(|r| r.bit() & towards != 0);
        let answer = body(&mut from, &mut chosen);
        let mut all: Vec<Receiver> = rest.into_iter().chain(chosen).chain([from]).collect();
        all.sort_by_key(|r| r.index);
        self.members = all;
        answer
    }

    /// After the commit: the indexes and statistics of copied tables, as the sync wants it. A failure harms nothing.
    pub(super) fn after_copy(&mut self) {
        let sync = &self.plan.sync;
        let rebuilt: Vec<i32> = sync.relations.iter().filter(|r| r.rebuild_index).map(|r| r.id).collect();
        let verb = match (sync.vacuum_after_copy, sync.analyze_after_copy) {
            (true, true) => Some("VACUUM ANALYZE"),
            (true, false) => Some("VACUUM"),
            (false, true) => Some("ANALYZE"),
            (false, false) => None,
        };
        for (relation, members) in std::mem::take(&mut self.copied) {
            for member in self.members.iter_mut().filter(|m| members & m.bit() != 0 && m.failed.is_none()) {
                let Some(name) = member.shapes.get(&relation).map(|t| t.name.clone()) else { continue };
                let conn = &mut member.session.conn;
                if rebuilt.contains(&relation) {
                    // Others wait behind whoever waits for this lock: not for long.
                    let set = conn.query(&format!("SET lock_timeout = '{}'", members::PATIENCE));
                    if let Err(error) = set.and_then(|_| conn.query(&format!("REINDEX TABLE {name}"))) {
                        pgrx::warning!("bucardo: the indexes of {name} were not rebuilt on db \"{}\": {error}", conn.name);
                    }
                    let _harmless = conn.query("SET lock_timeout = 0");
                }
                let _harmless = verb.map(|verb| conn.query(&format!("{verb} {name}")));
            }
        }
    }
}
