//! What the members are brought to: every source's rows to all others, but for the keys that it keeps to itself, truncations,
//! rows that no source has as they are, and sequences. It decides nothing, and nothing of it has happened anywhere until
//! `commit` has gone through.

use std::collections::{HashMap, HashSet};

use super::contend::{FewRows, Key};
use super::keep::Kept;
use super::later::Group;
use super::offer::Offer;
use super::record::Stand;
use super::settle::{Settlement, Written};
use super::written::portions;
use super::{Broken, Mesh};
use crate::catalog::sync::Sync;
use crate::error::Result;
use crate::kid::apply::{self, Pass, Receiver, Work};
use crate::kid::bits;
use crate::kid::bring::{self, Bringing};
use crate::kid::few::Handfuls;
use crate::kid::report::Progress;
use crate::kid::retry::Care;
use crate::kid::sequence;
use crate::kid::shape::Shapes;
use crate::kid::statements::Join;
use crate::kid::writing::Writing;
use crate::libpq::{Conn, Rows};

impl Mesh<'_> {
    /// What is staged goes into the tables, on all members at the same time.
    pub(super) fn bring_in(&mut self, staged: &[(usize, Bringing)]) -> Result<(), Broken> {
        if staged.is_empty() {
            return self.check();
        }
        let of =
            |member: &Receiver| staged.iter().filter(|(index, _)| *index == member.index).map(|(_, b)| b).collect::<Vec<_>>();
        self.members.iter_mut().for_each(|member| bring::send(&of(member), member));
        // Whatever comes of it, the answers must be fetched.
        let recorded = self.record(Stand::Part);
        self.members.iter_mut().for_each(|member| bring::collect(&of(member), member));
        recorded?;
        self.check()
    }

    /// Sends a source's rows to all others, but for those that are staged already. Where other sources have many too, or there are
    /// decisions to be recorded, such rows are only staged: then the members need not wait for each other, nor for the record.
    pub(super) fn send(
        &mut self,
        at: usize,
        few: &FewRows,
        (settlements, kept): (&HashMap<i32, Settlement>, &Kept),
        there: &HashSet<(usize, i32)>,
        staged: &mut Vec<(usize, Bringing)>,
        progress: &mut Progress,
    ) -> Result<(), Broken> {
        let silent = |at: usize, relation: i32| settlements.get(&relation).is_some_and(|o| o.silent.contains(&at));
        let sends = |at: usize, relation: i32| !self.is_few(relation) && !silent(at, relation);
        let many = |at: &usize| self.offers[*at].iter().flat_map(|o| &o.changes).any(|c| c.changes > 0 && sends(*at, c.relation));
        let abreast = !self.decisions.is_empty() || self.sources().iter().filter(|at| many(at)).count() > 1;
        let relations: Vec<i32> = self.offers[at].iter().flat_map(|o| &o.changes).map(|c| c.relation).collect();
        for (nth, group) in self.groups(at, &relations, kept)?.into_iter().enumerate() {
            self.with_source(at, group, |pass, work, source, others| {
                let mut handfuls = Handfuls::default();
                for item in work.iter().filter(|w| w.change.changes > 0 && !there.contains(&(at, w.change.relation))) {
                    progress.relation(&item.name, 0);
                    match few.get(&(at, item.change.relation)) {
                        Some(rows) => {
                            let settlement = settlements.get(&item.change.relation);
                            let which = sent_rows(rows, item.change.key.len(), settlement.and_then(|o| o.kept.get(&at)));
                            if !which.is_empty() {
                                handfuls.add(item, rows, which, others);
                            }
                        }
                        // Every change of it has lost.
                        None if silent(at, item.change.relation) => {}
                        None if abreast && !pass.goes_straight(item, others) => {
                            let range = pass.stage(item, source, others)?;
                            staged.extend(others.iter().filter_map(|r| pass.bringing_within(item, r, range)));
                        }
                        None => pass.write_many(item, source, others)?,
                    }
                    progress.relation(&item.name, if nth == 0 { item.change.changes } else { 0 });
                }
                handfuls.write(others);
                Ok(())
            });
            // One that has failed has nothing for others.
            if self.members[at].failed.is_some() {
                break;
            }
        }
        Ok(())
    }

    /// Calls with what one source has changed, its connection, and the receivers. An error is the source's.
    pub(super) fn with_source(
        &mut self,
        at: usize,
        group: Group,
        body: impl FnOnce(&Pass<'_>, &[Work<'_>], &mut Conn, &mut [Receiver]) -> Result<()>,
    ) {
        let common = self.common(at);
        let Some(offer) = self.offers[at].take() else { return };
        let mut from = self.members.remove(at);
        let (shapes, version) = (from.shapes.clone(), from.session.conn.version());
        let pass = common.pass(&self.plan.sync, self.care, &offer, (&shapes, version), group.excluded);
        let (mut others, mut aside): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.members).into_iter().partition(|member| member.bit() & group.members != 0);
        let sent = pass.work(others.iter()).and_then(|work| {
            for receiver in others.iter_mut() {
                let fits = work.iter().try_for_each(|w| w.table_on(receiver, pass.sync).map(drop));
                receiver.attempt(|_| fits);
            }
            body(&pass, &work, &mut from.session.conn, &mut others)
        });
        from.attempt(|_| sent);
        others.append(&mut aside);
        others.push(from);
        // In the listed order, as before.
        others.sort_by_key(|member| member.index);
        self.members = others;
        self.offers[at] = Some(offer);
    }

    /// What a pass is made of while all members are in their places: who is away is known only then.
    pub(super) fn common(&self, at: usize) -> Common {
        Common {
            news: self.news(),
            noted: self.noted(),
            relayed: self.relayed(),
            origin: self.origin(self.members[at].index),
            tag: format!("_{at}"),
        }
    }

    /// Carries TRUNCATEs to the members that have not got them. What such a member has changed itself, and does not keep
    /// to itself, survives; so a source is emptied by DELETE, unless its writers were locked out before the snapshot:
    /// TRUNCATE would take rows along that came after it.
    pub(super) fn truncate(&mut self, relation: i32, kept: &Kept) -> Result<(), Broken> {
        let late = self.late(relation);
        let towards = bits::union(self.offers.iter().flatten().filter_map(|o| o.truncated.get(&relation)).map(|t| t.towards));
        let towards = towards & !late;
        for at in (0..self.members.len()).filter(|at| self.members[*at].bit() & towards != 0).collect::<Vec<_>>() {
            let own = self.own_keys(at, relation, None, kept)?;
            let own = self.surviving(at, relation, own)?;
            let survives = own.is_some();
            let name = self.relation_name(relation);
            if !self.note_truncates(at, relation, survives) {
                continue;
            }
            let Some(table) = self.members[at].shapes.get(&relation).cloned() else { continue };
            let key = self.key_of(relation);
            let writing = Writing { table: &table, key: &key, columns: &[], stage: String::new(), noted: false };
            match own {
                None if self.locked.contains(&relation) || self.offers[at].is_none() => {
                    apply::truncate_table(&writing, &name, &mut self.members[at]);
                }
                own => {
                    let delete = own.map_or_else(|| writing.delete_all(), |own| writing.delete_all_but(&own));
                    let sql = format!("{}{delete}", Join::Free.settings());
                    if let Some(gone) = self.members[at].attempt_on(&name, |conn| conn.query(&sql)) {
                        self.members[at].counts.truncates += 1;
                        // A truncation would take along what has survived it here and was handed on already.
                        if survives && gone.affected() > 0 {
                            self.note_whole(at, relation, self.truncated_by(relation));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// The statement for the keys that a member has changed itself and does not keep to itself; of those, if one is given, that
    /// this other one (by place) has not got: who has got them has, if any, newer rows of them.
    pub(super) fn own_keys(&self, at: usize, relation: i32, other: Option<usize>, kept: &Kept) -> Result<Option<String>, Broken> {
        if !self.changed(relation).contains(&at) {
            return Ok(None);
        }
        let own = self.with_work(at, relation, |work, offer| {
            let mut reading = work.reading();
            reading.excluded = kept.get(&(at, relation)).map(String::as_str);
            let window = other.and_then(|other| offer.windows.iter().find(|(index, _)| *index == self.members[other].index));
            reading.distinct(&window.map_or_else(|| offer.union(), |(_, window)| window.clone()).condition())
        })?;
        Ok(own)
    }

    /// Writes rows that no source has as they are, on every member.
    pub(super) fn write(&mut self, relation: i32, written: &[Written]) -> Result<(), Broken> {
        let Some(at) = self.sources().first().copied().filter(|_| !written.is_empty()) else { return Ok(()) };
        let Some(model) = self.members[at].shapes.get(&relation).cloned() else { return Ok(()) };
        let key = self.key_of(relation);
        let columns = model.travelling();
        let name = self.relation_name(relation);
        self.note_unasked(relation, written);
        for some in portions(written) {
            let mut sent = Vec::new();
            for (at, receiver) in self.members.iter_mut().enumerate() {
                let Some(table) = receiver.shapes.get(&relation).cloned() else { continue };
                let bit = receiver.bit();
                let mine: Vec<&Written> = some.iter().filter(|one| one.towards & bit != 0).collect();
                if mine.is_empty() {
                    continue;
                }
                let writing = Writing { table: &table, key: &key, columns: &columns, stage: String::new(), noted: false };
                receiver.attempt_on(&name, |conn| send_written(conn, &writing, &mine));
                sent.push((at, mine, writing.upsert_json(&[]).len(), 1 + usize::from(writing.can_update())));
            }
            for (at, mine, whole, cleared) in sent {
                let mut changed = Vec::new();
                let receiver = &mut self.members[at];
                let answers = receiver.attempt_on(&name, |conn| conn.pipeline_collect()).unwrap_or_default();
                let mut answers = answers.iter().map(Rows::affected);
                for one in &mine {
                    let statements = if one.cleared.is_empty() { whole } else { cleared };
                    let (counter, n) = match one.row {
                        Some(_) => (&mut receiver.counts.upserts, answers.by_ref().take(statements).sum::<u64>()),
                        None => (&mut receiver.counts.deletes, answers.next().unwrap_or(0)),
                    };
                    *counter += n;
                    changed.extend((n > 0).then(|| (one.key.as_slice().into(), None)));
                }
                self.note_written(at, relation, &changed);
                self.keep_for_others(at, relation, &mine);
            }
        }
        self.check()
    }

    pub(super) fn moved_sequences(&self, states: &[Option<Rows>]) -> Vec<Vec<String>> {
        let mut all = vec![Vec::new(); self.members.len()];
        let known: Vec<(usize, &Rows)> = states.iter().enumerate().filter_map(|(at, rows)| Some((at, rows.as_ref()?))).collect();
        let sources: Vec<&Rows> = known.iter().filter(|(at, _)| self.offers[*at].is_some()).map(|(_, rows)| *rows).collect();
        for (at, mine) in known {
            all[at] = sequence::agree(&self.plan.sync, &sources, mine, self.offers[at].is_some());
        }
        all
    }

    pub(super) fn move_sequences(&mut self, moved: Vec<Vec<String>>) {
        for (at, statements) in moved.into_iter().enumerate() {
            for sql in statements {
                if self.members[at].attempt(|conn| conn.query(&sql)).is_some() {
                    self.members[at].counts.sequences += 1;
                }
            }
        }
    }
}

/// See [`Mesh::common`].
pub(super) struct Common {
    news: String,
    noted: HashMap<i32, u64>,
    relayed: u64,
    origin: String,
    tag: String,
}

impl Common {
    /// The pass that sends what a source offers.
    pub(super) fn pass<'a>(
        self,
        sync: &'a Sync,
        care: Care,
        offer: &'a Offer,
        source: (&'a Shapes, i32),
        excluded: HashMap<i32, String>,
    ) -> Pass<'a> {
        let Self { news, noted, relayed, origin, tag } = self;
        let level = offer.is_level() && offer.truncated.is_empty() && offer.whole.is_empty();
        Pass { excluded, level, noted, relayed, origin, tag, ..Pass::of_offer(sync, care, offer, source, news) }
    }
}

/// The tables of the keys that a source keeps to itself, by relation.
pub(super) fn excluded(at: usize, kept: &Kept) -> HashMap<i32, String> {
    kept.iter().filter(|((place, _), _)| *place == at).map(|((_, r), t)| (*r, t.clone())).collect()
}

/// The rows of a few changes that are sent: all but those whose keys the source keeps to itself.
fn sent_rows(rows: &Rows, n: usize, kept: Option<&Vec<Key>>) -> Vec<usize> {
    let kept: HashSet<&[String]> = kept.into_iter().flatten().map(|k| &**k).collect();
    let key = |row: usize| (0..n).map(|c| rows.text(row, c)).collect::<Vec<_>>();
    (0..rows.len()).filter(|row| kept.is_empty() || !kept.contains(key(*row).as_slice())).collect()
}

/// Sends what writes rows out of their JSON, or deletes them.
fn send_written(conn: &mut Conn, writing: &Writing<'_>, some: &[&Written]) -> Result<()> {
    let (upsert, delete, types) = (writing.upsert_json(&[]), writing.delete_one(), writing.types());
    conn.pipeline_begin()?;
    for one in some {
        match &one.row {
            Some(row) => {
                let own = (!one.cleared.is_empty()).then(|| writing.upsert_json(&one.cleared));
                let sql = own.as_ref().unwrap_or(&upsert);
                sql.iter().try_for_each(|sql| conn.pipeline_add(sql, &[], &[Some(row.as_bytes())]))?
            }
            None => {
                let key: Vec<Option<&[u8]>> = one.key.iter().map(|k| Some(k.as_bytes())).collect();
                conn.pipeline_add(&delete, &types[..key.len()], &key)?;
            }
        }
    }
    conn.pipeline_send()
}
