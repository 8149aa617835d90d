//! Whole tables: for a member that is new, and where a source does not know what has changed. A table that is empty takes
//! the rows as they come; any other is made equal, but for what that member has changed itself.

use std::collections::HashMap;

use super::keep::Kept;
use super::offer::Offer;
use super::settle::Written;
use super::{Broken, Mesh};
use crate::catalog::sync::{DeleteMethod, Role};
use crate::ident::text_array;
use crate::kid::apply::{self, Counts, Receiver};
use crate::kid::bits;
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

/// How many statements of [`Writing::apply_whole`] insert, at its end, if it is thorough.
const INSERTS: usize = 2;

/// Makes a table equal to the stage, statement by statement.
fn bring_whole(receiver: &mut Receiver, name: &str, statements: &[(bool, String)]) {
    for (deletes, sql) in statements {
        let Some(rows) = receiver.attempt_on(name, |conn| conn.query(sql)) else { break };
        match deletes {
            true => receiver.counts.deletes += rows.affected(),
            false => receiver.counts.upserts += rows.affected(),
        }
    }
}

impl Model {
    fn reading(&self) -> Reading<'_> {
        Reading::of(&self.table, &self.key, &self.columns)
    }

    fn on<T>(&self, receiver: &Receiver, body: impl FnOnce(&Writing<'_>) -> T) -> Option<T> {
        let table = receiver.shapes.get(&self.relation)?;
        Some(body(&Writing { table, key: &self.key, columns: &self.columns, stage: self.stage(), noted: false }))
    }

    fn stage(&self) -> String {
        format!("bucardo_stage_{}_whole", self.relation)
    }
}

impl Mesh<'_> {
    /// The source, by place, that a table is copied from, and the members, as bits, that are made equal to it: surely, and
    /// if the table is empty there. As with single rows, who knows of all others that do not know what they have changed is
    /// newer than they are; of those that know nothing of each other the first is the model. All that any of them wants goes
    /// from that one, to whom the others have become equal; but who shall itself be made equal is none.
    fn model(&mut self, relation: i32) -> Option<(usize, u64, u64)> {
        let of = |which: &dyn Fn(&Offer) -> u64| -> Vec<u64> {
            self.offers.iter().map(|offer| offer.as_ref().map_or(0, which)).collect()
        };
        let all = |bits: &[u64]| bits.iter().fold(0, |all, one| all | one);
        let whole = of(&|o| o.whole.get(&relation).copied().unwrap_or(0));
        let (given, fills) = (of(&|o| o.copy_all), of(&|o| o.copy_empty));
        let late = all(&of(&|o| o.late.get(&relation).copied().unwrap_or(0)));
        let bits: Vec<u64> = self.members.iter().map(Receiver::bit).collect();
        let places = 0..bits.len();
        // Who is filled now has nothing to tell.
        let asked = places.clone().filter(|at| all(&whole) != 0 && all(&fills) & bits[*at] != 0);
        let empty = asked.filter(|at| self.is_empty(*at, relation)).fold(0, |all, at| all | bits[at]);
        let pending: Vec<u64> = places.clone().map(|at| whole[at] | given[at] | fills[at] & empty).collect();
        let beaten = |at: usize| places.clone().any(|other| pending[other] & bits[at] != 0 && pending[at] & bits[other] == 0);
        let wants = |at: &usize| (whole[*at] | given[*at] | fills[*at]) != 0 && late & bits[*at] == 0;
        let at = places.clone().filter(wants).min_by_key(|at| (all(&given) & bits[*at] != 0, beaten(*at)))?;
        let contend = places.filter(|other| whole[*other] & bits[at] != 0).fold(0, |all, other| all | bits[other]);
        Some((at, (all(&whole) | all(&given) | contend) & !bits[at], all(&fills) & !bits[at]))
    }

    /// Copies a whole table where that is wanted.
    pub(super) fn copy_whole(&mut self, relation: i32, kept: &Kept, progress: &mut Progress) -> Result<(), Broken> {
        let Some((at, sure, if_empty)) = self.model(relation) else { return Ok(()) };
        let Some(table) = self.members[at].shapes.get(&relation).cloned() else { return Ok(()) };
        let columns = table.travelling();
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
            if let Some(keys) = self.own_keys(to, relation, Some(at), kept)? {
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
            self.copy_staged(at, staged, &model, &own)?;
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

    /// Empties the tables of the targets that are to get all of them, all at once, where the sync is to do that: then the rows
    /// go straight into them. Where PostgreSQL or somebody's lock forbids it, they are made equal as they are.
    pub(super) fn empty_first(&mut self, relations: &[i32]) {
        let cascade = match self.plan.sync.delete_method {
            DeleteMethod::Delete => return,
            DeleteMethod::Truncate => "",
            DeleteMethod::TruncateCascade => " CASCADE",
        };
        let given = bits::union(self.offers.iter().flatten().map(|o| o.copy_all));
        let (noted, sources) = (self.noted(), bits::sources(&self.plan.sync));
        // Where a source is to be made equal itself, others may have to wait for their copy.
        if relations.iter().any(|r| self.late(*r) & sources != 0) {
            return;
        }
        for member in self.members.iter_mut().filter(|m| given & m.bit() != 0) {
            // What a source has changed itself stays, and what is captured is captured row by row.
            let captured = relations.iter().any(|r| noted.get(r).is_some_and(|bits| bits & member.bit() != 0));
            if captured || self.plan.sync.members[member.index].role == Role::Source {
                continue;
            }
            let tables: Vec<&str> = relations.iter().filter_map(|r| Some(member.shapes.get(r)?.only.as_str())).collect();
            let truncate = format!("TRUNCATE {}{cascade}", tables.join(", "));
            let emptied = member.attempt(|conn| apply::if_allowed(conn, &truncate));
            if emptied == Some(true) {
                member.counts.truncates += relations.len() as u64;
            }
        }
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

    /// By way of a staging table. What a receiver has changed itself stays there, unless that clashes with the model's rows.
    fn copy_staged(&mut self, at: usize, towards: u64, model: &Model, own: &HashMap<u64, String>) -> Result<(), Broken> {
        let thorough = self.care.thorough;
        let inserts = self.apart(at, towards, |from, receivers| {
            for receiver in receivers.iter_mut() {
                let create = model.on(receiver, |w| w.create_stage()).unwrap_or_default();
                receiver.attempt_on(&model.name, |conn| conn.query(&create));
            }
            let into = |r: &Receiver| model.on(r, |w| w.copy_stage(false)).unwrap_or_default();
            let copied = stream::stream(&mut from.session.conn, &model.reading().whole(false), receivers, &model.name, into);
            from.attempt(|_| copied);
            let mut inserts = Vec::new();
            for receiver in receivers.iter_mut() {
                let merge = receiver.session.conn.version() >= 150_000;
                receiver.attempt(|conn| conn.query(Join::Free.settings()));
                let spare = own.get(&receiver.bit()).map(String::as_str);
                let mut all = model.on(receiver, |w| w.apply_whole(merge, thorough, spare)).unwrap_or_default();
                if thorough {
                    inserts.push((receiver.index, all.split_off(all.len().saturating_sub(INSERTS))));
                }
                bring_whole(receiver, &model.name, &all);
            }
            inserts
        });
        let receivers: Vec<usize> = inserts.iter().filter_map(|(index, _)| self.place(*index)).collect();
        let changed = |to: &usize| own.contains_key(&self.members[*to].bit());
        for to in receivers.iter().copied().filter(changed).collect::<Vec<_>>() {
            let removed = self.decide_whole(to, at, model.relation, &model.stage())?;
            self.unstage(&receivers, model, &removed)?;
            self.write(model.relation, &removed)?;
        }
        for (index, inserts) in inserts {
            let receiver = self.members.iter_mut().find(|m| m.index == index);
            receiver.into_iter().for_each(|receiver| bring_whole(receiver, &model.name, &inserts));
        }
        Ok(())
    }

    /// Takes rows out of what is staged.
    fn unstage(&mut self, receivers: &[usize], model: &Model, removed: &[Written]) -> Result<(), Broken> {
        if removed.is_empty() {
            return Ok(());
        }
        let text = |c: usize| text_array(removed.iter().map(|one| one.key[c].as_str()).collect::<Vec<_>>());
        let params: Vec<String> = (0..model.key.len()).map(text).collect();
        for at in receivers {
            let typed = self.any_reading(*at, model.relation, |r| format!("({}) u({})", r.typed_keys(0), r.keys("")))?;
            let same = self.any_reading(*at, model.relation, |r| r.same("s.", "u."))?;
            let sql = format!("DELETE FROM pg_temp.{} s USING {typed} WHERE {same}", model.stage());
            let params: Vec<Option<&str>> = params.iter().map(|p| Some(p.as_str())).collect();
            self.members[*at].attempt_on(&model.name, |conn| conn.query_params(&sql, &params));
        }
        self.check()
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
                let (conn, patience) = (&mut member.session.conn, &member.session.patience);
                if rebuilt.contains(&relation) {
                    // Others wait behind whoever waits for this lock: not for long.
                    let set = conn.query(&format!("SET lock_timeout = '{patience}'"));
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
