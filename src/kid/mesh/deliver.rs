//! The second half of a run between sources: every source's rows to all others, but for the keys that it keeps to itself;
//! then each receiver notes how far it was served, in the same transaction, and all commit together.

use std::collections::{HashMap, HashSet};

use super::contend::{FewRows, Key};
use super::record::{self, Run, Stand};
use super::settle::{Outcome, Written};
use super::written::portions;
use super::{Broken, Mesh};
use crate::error::Result;
use crate::fault;
use crate::ident::text_array;
use crate::kid::apply::{self, Pass, Receiver, Work};
use crate::kid::bring::{self, Bringing};
use crate::kid::few::Handfuls;
use crate::kid::members::Pool;
use crate::kid::report::Progress;
use crate::kid::writing::Writing;
use crate::kid::{flush, progress as track, replaced, sequence, who};
use crate::libpq::{Conn, Rows};
use crate::master::slot::Phase;

const SERVED: &str = "INSERT INTO bucardo.capture_progress (control, sync, source, member, served, identity, run) \
    SELECT $1, $2, u.source, $3, u.served, u.identity, $4::pg_catalog.int8 \
    FROM unnest($5::pg_catalog.text[], $6::pg_catalog.text[], $7::pg_catalog.text[]) u(source, served, identity) \
    ON CONFLICT (control, sync, source, member) DO UPDATE SET served = excluded.served, identity = excluded.identity, run = excluded.run";

impl Mesh<'_> {
    /// Everything between the first BEGIN and the last COMMIT. The members that have committed, as bits.
    pub(super) fn exchange(
        &mut self,
        touched: &mut HashSet<i32>,
        pool: &mut Pool,
        progress: &mut Progress,
    ) -> Result<u64, Broken> {
        let committed = self.try_exchange(touched, pool, progress);
        progress.recorded |= self.recorded > 0;
        // Nobody was told to commit: then it is certain that what was recorded has not happened, whoever is away.
        if committed.is_err() && self.recorded > 0 && !self.committing {
            record::forget_runs(&self.plan.sync.name, &[self.run])?;
            progress.recorded = false;
        }
        committed
    }

    fn try_exchange(&mut self, touched: &mut HashSet<i32>, pool: &mut Pool, progress: &mut Progress) -> Result<u64, Broken> {
        let sequences = self.gather(touched)?;
        fault::point("kid.after_gather")?;
        let relations = self.relations();
        if self.lacks_locks(&relations, touched) {
            return Err(Broken::Unlocked);
        }
        self.care.thorough |= self.must_look(&relations);
        let moved = self.moved_sequences(&sequences);
        if relations.is_empty() && moved.iter().all(Vec::is_empty) {
            // Nothing to do; but that is to be noted where a copy of the progress says something else, or where something is kept.
            if self.offers.iter().flatten().any(|o| o.echoed) {
                self.note_progress(&[], false);
                self.check()?;
            }
            let noted = self.offers.iter().flatten().any(|o| o.behind != 0 || o.echoed);
            return if noted { self.commit(pool, progress) } else { Ok(0) };
        }
        touched.extend(&relations);
        progress.saw_changes |= !relations.is_empty();
        progress.phase(Phase::Apply);
        progress.total(self.offers.iter().flatten().flat_map(|o| &o.changes).map(|c| c.changes).sum());
        self.apply(&relations, progress)?;
        self.note_carried()?;
        self.note_progress(&relations, self.decides() || !self.carried.is_empty());
        // Last, because a lock on a sequence holds up who takes numbers.
        self.move_sequences(moved);
        self.check()?;
        progress.phase(Phase::Commit);
        self.commit(pool, progress)
    }

    /// Decides and writes all relations.
    fn apply(&mut self, relations: &[i32], progress: &mut Progress) -> Result<(), Broken> {
        let few = self.look(relations)?;
        let mut outcomes = HashMap::new();
        for relation in relations {
            let outcome = self.settle(*relation, &few)?;
            outcomes.insert(*relation, outcome);
        }
        let many: Vec<i32> = relations.iter().copied().filter(|r| !self.is_few(*r)).collect();
        let mut kept = HashMap::new();
        for relation in &many {
            let mut outcome = outcomes.remove(relation).unwrap_or_default();
            if self.care.thorough {
                self.decide_clashes(*relation, &mut outcome)?;
            }
            for at in self.changed(*relation) {
                if let Some(table) = self.kept_table(at, *relation, &mut outcome)? {
                    kept.insert((at, *relation), table);
                }
            }
            self.truncate(*relation, &kept)?;
            self.copy_whole(*relation, &kept, progress)?;
            self.write(*relation, &outcome.removed)?;
            outcomes.insert(*relation, outcome);
        }
        self.check()?;
        if self.care.thorough {
            for relation in relations {
                let decisions = self.send_thoroughly(*relation, &kept, progress)?;
                self.decisions.extend(decisions);
            }
        } else {
            let mut staged = Vec::new();
            for at in self.sources() {
                self.send(at, &few, &outcomes, &kept, &mut staged, progress)?;
                self.check()?;
            }
            self.bring_in(&staged)?;
        }
        for relation in relations {
            let Some(mut outcome) = outcomes.remove(relation) else { continue };
            self.write(*relation, &outcome.written)?;
            self.note_lost(*relation, &mut outcome);
            self.decisions.extend(outcome.decisions);
        }
        self.run_errands()?;
        let decisions = self.adopt_orphans(relations)?;
        self.decisions.extend(decisions);
        Ok(())
    }

    /// What is staged goes into the tables, on all members at the same time.
    fn bring_in(&mut self, staged: &[(usize, Bringing)]) -> Result<(), Broken> {
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

    /// Whether the run has decided anything.
    fn decides(&self) -> bool {
        self.recorded > 0 || !self.decisions.is_empty()
    }

    pub(super) fn record_of(&self) -> Run<'_> {
        Run { number: self.run, sync: &self.plan.sync.name, since: self.since }
    }

    /// Records what was decided since the last time.
    pub(super) fn record(&mut self, stand: Stand) -> Result<(), Broken> {
        let decisions = std::mem::take(&mut self.decisions);
        if decisions.is_empty() && matches!(stand, Stand::Part) {
            return Ok(());
        }
        if self.recorded == 0 {
            self.since = record::newest()?;
        }
        self.recorded += decisions.len() as u64;
        record::record(&self.record_of(), |r| self.relation_name(r), decisions, stand)?;
        Ok(())
    }

    /// Sends a source's rows to all others. Where other sources have many too, or there are decisions to be recorded, such rows
    /// are only staged: then the members need not wait for each other, nor for the record.
    fn send(
        &mut self,
        at: usize,
        few: &FewRows,
        outcomes: &HashMap<i32, Outcome>,
        kept: &HashMap<(usize, i32), String>,
        staged: &mut Vec<(usize, Bringing)>,
        progress: &mut Progress,
    ) -> Result<(), Broken> {
        let silent = |at: usize, relation: i32| outcomes.get(&relation).is_some_and(|o| o.silent.contains(&at));
        let sends = |at: usize, relation: i32| !self.is_few(relation) && !silent(at, relation);
        let many = |at: &usize| self.offers[*at].iter().flat_map(|o| &o.changes).any(|c| c.changes > 0 && sends(*at, c.relation));
        let abreast = !self.decisions.is_empty() || self.sources().iter().filter(|at| many(at)).count() > 1;
        let excluded = kept.iter().filter(|((place, _), _)| *place == at).map(|((_, r), t)| (*r, t.clone())).collect();
        self.with_source(at, excluded, |pass, work, source, others| {
            let mut handfuls = Handfuls::default();
            for item in work.iter().filter(|w| w.change.changes > 0) {
                progress.relation(&item.name, 0);
                match few.get(&(at, item.change.relation)) {
                    Some(rows) => {
                        let outcome = outcomes.get(&item.change.relation);
                        let which = sent_rows(rows, item.change.key.len(), outcome.and_then(|o| o.kept.get(&at)));
                        if !which.is_empty() {
                            handfuls.add(item, rows, which, others);
                        }
                    }
                    // Every change of it has lost.
                    None if silent(at, item.change.relation) => {}
                    None if abreast && !pass.goes_straight(item, others) => {
                        pass.stage(item, source, others)?;
                        let bringing = |r: &Receiver| Some((r.index, pass.bringing(item, r).ok()?));
                        staged.extend(others.iter().filter_map(bringing));
                    }
                    None => pass.write_many(item, source, others)?,
                }
                progress.relation(&item.name, item.change.changes);
            }
            handfuls.write(others);
            Ok(())
        });
        Ok(())
    }

    /// Calls with what one source has changed, its connection, and all other members. An error is the source's.
    pub(super) fn with_source(
        &mut self,
        at: usize,
        excluded: HashMap<i32, String>,
        body: impl FnOnce(&Pass<'_>, &[Work<'_>], &mut Conn, &mut [Receiver]) -> Result<()>,
    ) {
        // Who is away is known only while all members are in their places.
        let (news, noted, relayed, origin) = (self.news(), self.noted(), self.relayed(), self.origin(self.members[at].index));
        let Some(offer) = self.offers[at].take() else { return };
        let mut from = self.members.remove(at);
        let shapes = from.shapes.clone();
        let pass = Pass {
            sync: &self.plan.sync,
            changes: &offer.changes,
            window: offer.union(),
            care: self.care,
            source: &shapes,
            source_version: from.session.conn.version(),
            sequences: None,
            sequence_query: None,
            news,
            excluded,
            level: offer.is_level() && offer.truncated.is_empty() && offer.whole.is_empty(),
            noted,
            relayed,
            guard: String::new(),
            origin,
            tag: format!("_{at}"),
        };
        let others = &mut self.members;
        let sent = pass.work(others).and_then(|work| {
            for receiver in others.iter_mut() {
                let fits = work.iter().try_for_each(|w| w.table_on(receiver, pass.sync).map(drop));
                receiver.attempt(|_| fits);
            }
            body(&pass, &work, &mut from.session.conn, others)
        });
        from.attempt(|_| sent);
        self.members.insert(at, from);
        self.offers[at] = Some(offer);
    }

    /// Carries TRUNCATEs to the members that have not got them. What such a member has changed itself, and does not keep
    /// to itself, survives; so a source is emptied by DELETE, unless its writers were locked out before the snapshot:
    /// TRUNCATE would take rows along that came after it.
    fn truncate(&mut self, relation: i32, kept: &HashMap<(usize, i32), String>) -> Result<(), Broken> {
        let late = self.offers.iter().flatten().filter_map(|o| o.late.get(&relation)).fold(0, |bits, t| bits | t);
        let towards = self.offers.iter().flatten().filter_map(|o| o.truncated.get(&relation)).fold(0, |bits, t| bits | t.towards);
        let towards = towards & !late;
        for at in (0..self.members.len()).filter(|at| self.members[*at].bit() & towards != 0).collect::<Vec<_>>() {
            let own = self.own_keys(at, relation, kept)?;
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
                    let sql = format!("{}{delete}", crate::kid::statements::Join::Free.settings());
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

    /// The statement for the keys that a member has changed itself and does not keep to itself.
    pub(super) fn own_keys(
        &self,
        at: usize,
        relation: i32,
        kept: &HashMap<(usize, i32), String>,
    ) -> Result<Option<String>, Broken> {
        if !self.changed(relation).contains(&at) {
            return Ok(None);
        }
        let own = self.with_work(at, relation, |work, offer| {
            let mut reading = work.reading();
            reading.excluded = kept.get(&(at, relation)).map(String::as_str);
            reading.distinct(&offer.union().condition())
        })?;
        Ok(own)
    }

    /// Writes rows that no source has as they are, on every member.
    pub(super) fn write(&mut self, relation: i32, written: &[Written]) -> Result<(), Broken> {
        let Some(at) = self.sources().first().copied().filter(|_| !written.is_empty()) else { return Ok(()) };
        let Some(model) = self.members[at].shapes.get(&relation).cloned() else { return Ok(()) };
        let key = self.key_of(relation);
        let columns: Vec<String> = model.columns.iter().filter(|c| !c.generated).map(|c| c.name.clone()).collect();
        let name = self.relation_name(relation);
        self.note_unasked(at, relation, written);
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
                for one in mine {
                    let statements = if one.cleared.is_empty() { whole } else { cleared };
                    let (counter, n) = match one.row {
                        Some(_) => (&mut receiver.counts.upserts, answers.by_ref().take(statements).sum::<u64>()),
                        None => (&mut receiver.counts.deletes, answers.next().unwrap_or(0)),
                    };
                    *counter += n;
                    changed.extend((n > 0).then(|| (one.key.as_slice().into(), None)));
                }
                self.note_written(at, relation, &changed);
            }
        }
        self.check()
    }

    /// Each receiver that is a source notes up to where it was served, in its own transaction. `all`: also those for whom
    /// there was nothing, because it must be known that they took part. A member on which a table was replaced under this run
    /// is defeated: what was read there is not what its snapshot had, and what came after it would be taken for older.
    fn note_progress(&mut self, relations: &[i32], all: bool) {
        let sync = self.plan.sync.capture_name();
        let run = self.run.to_string();
        let sources = self.sources();
        for at in 0..self.members.len() {
            let me = self.name(at).to_string();
            let is_source = self.offers[at].is_some();
            let gives = |s: &&usize| is_source && **s != at && self.offers[**s].as_ref().is_some_and(|o| all || o.has_news());
            let from: Vec<usize> = sources.iter().filter(gives).copied().collect();
            let offers: Vec<_> = from.iter().filter_map(|s| self.offers[*s].as_ref()).collect();
            let names = text_array(from.iter().map(|s| self.name(*s)).collect::<Vec<_>>());
            let served = text_array(offers.iter().map(|o| o.snapshot.as_str()).collect::<Vec<_>>());
            let identities = text_array(offers.iter().map(|o| o.identity.as_str()).collect::<Vec<_>>());
            let control = self.plan.control.clone();
            let params = [control.as_str(), &sync, &me, &run, &names, &served, &identities].map(|p| Some(p.as_bytes()));
            let oids: Vec<u32> = relations.iter().filter_map(|r| self.members[at].shapes.get(r)).map(|t| t.oid).collect();
            self.members[at].attempt(|conn| {
                conn.pipeline_begin()?;
                if !from.is_empty() {
                    conn.pipeline_add(SERVED, &[], &params)?;
                }
                replaced::queue(conn, oids.iter().copied())?;
                conn.pipeline_send()
            });
        }
        for member in &mut self.members {
            member.attempt(|conn| replaced::judge(conn.pipeline_collect()?.last()));
        }
    }

    fn moved_sequences(&self, states: &[Option<Rows>]) -> Vec<Vec<String>> {
        let mut all = vec![Vec::new(); self.members.len()];
        let known: Vec<(usize, &Rows)> = states.iter().enumerate().filter_map(|(at, rows)| Some((at, rows.as_ref()?))).collect();
        let sources: Vec<&Rows> = known.iter().filter(|(at, _)| self.offers[*at].is_some()).map(|(_, rows)| *rows).collect();
        for (at, mine) in known {
            all[at] = sequence::agree(&self.plan.sync, &sources, mine, self.offers[at].is_some());
        }
        all
    }

    fn move_sequences(&mut self, moved: Vec<Vec<String>>) {
        for (at, statements) in moved.into_iter().enumerate() {
            for sql in statements {
                if self.members[at].attempt(|conn| conn.query(&sql)).is_some() {
                    self.members[at].counts.sequences += 1;
                }
            }
        }
    }

    /// Records the decisions, then commits all members: sends to all, then collects.
    fn commit(&mut self, pool: &mut Pool, progress: &mut Progress) -> Result<u64, Broken> {
        fault::point("kid.before_commit")?;
        self.flush(pool)?;
        if self.decides() {
            self.record(Stand::Whole(self.doubt()))?;
        }
        self.committing = true;
        // Sources first: what one of them holds alone can be found there, should all others be gone.
        let (sources, targets): (Vec<usize>, Vec<usize>) = (0..self.members.len()).partition(|at| self.offers[*at].is_some());
        for at in sources.into_iter().chain(targets) {
            self.members[at].attempt(who::commit);
            fault::point("kid.between_commits")?;
        }
        let mut committed = 0;
        for member in &mut self.members {
            if let Some(place) = member.attempt(who::committed) {
                member.session.place = Some(place);
                committed |= member.bit();
            }
        }
        fault::point("kid.after_commit")?;
        if committed != 0 {
            progress.conflicts += self.recorded;
        }
        if self.members.iter().all(|m| m.failed.is_none()) && (self.decides() || !self.carried.is_empty()) {
            self.end_doubt()?;
        }
        Ok(committed)
    }

    /// Waits until what was read of the sources is on their disks.
    fn flush(&mut self, pool: &mut Pool) -> Result<(), Broken> {
        for at in self.sources() {
            let Some(lsn) = self.offers[at].as_ref().filter(|o| o.has_news()).and_then(|o| o.unflushed.clone()) else { continue };
            let db = &self.plan.sync.members[self.members[at].index].db;
            self.members[at].attempt(|conn| flush::wait(conn, pool, db, &lsn));
        }
        self.check()
    }

    /// Notes at each source how far the others were served: the only place for pure targets, a copy for the rest.
    pub(super) fn mark(&mut self, served: u64) {
        let sync = &self.plan.sync;
        for at in (0..self.members.len()).filter(|at| self.offers[*at].is_some()).collect::<Vec<_>>() {
            let member = &mut self.members[at];
            let others = served & !member.bit();
            let Some(offer) = self.offers[at].as_ref().filter(|o| o.has_news() && others != 0) else { continue };
            let asker = crate::kid::gather::Asker { control: &self.plan.control, sync, source: member.index };
            let (snapshot, copied) = (offer.snapshot.clone(), (offer.copy_all, offer.copy_empty));
            member.attempt(|conn| track::mark(conn, &asker, &snapshot, others, copied));
        }
    }
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
