//! What the rows of one source go by: the receivers, the pass, and what is known of each table in it; and the way of many rows
//! of a table: set-wise through a staging table, or, where all are new, straight into the table. A receiver that fails keeps
//! its error and is left out of the rest; it never stops the others.

use std::collections::HashMap;
use std::rc::Rc;

use super::bring::{self, Bringing};
use super::few::FEW;
use super::gather::TableChanges;
use super::members::{self, Session};
use super::origin::{self, Root};
use super::range::Range;
use super::reading::Reading;
use super::retry::Care;
use super::shape::{self, Shapes, Table};
use super::statements::{Join, Window, planned_rows};
use super::stream::{Parts, stream, stream_parts};
use super::writing::Writing;
use crate::catalog::sync::{Role, Sync};
use crate::error::{Error, Result, SqlState};
use crate::ident::quote_literal;
use crate::libpq::{Conn, Rows};

/// What was written.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Counts {
    pub upserts: u64,
    pub deletes: u64,
    pub truncates: u64,
    pub sequences: u64,
}

impl Counts {
    pub fn add(&mut self, other: Counts) {
        self.upserts += other.upserts;
        self.deletes += other.deletes;
        self.truncates += other.truncates;
        self.sequences += other.sequences;
    }
}

/// One member that receives in this pass.
pub struct Receiver {
    pub index: usize,
    pub session: Session,
    pub shapes: Rc<Shapes>,
    pub failed: Option<Error>,
    /// Its transaction was given up because another member failed, whose error it is.
    pub spoilt: bool,
    pub counts: Counts,
    /// Rows that the last COPY stored.
    pub copied: u64,
    /// The state of its sequences when its transaction began.
    pub sequences: Option<Rows>,
}

impl Receiver {
    pub fn new(index: usize, session: Session, shapes: Rc<Shapes>) -> Self {
        let counts = Counts::default();
        Self { index, session, shapes, failed: None, spoilt: false, counts, copied: 0, sequences: None }
    }

    pub fn bit(&self) -> u64 {
        1 << self.index
    }

    /// Does something on the member unless it has failed already or is spoilt; an error is kept.
    pub fn attempt<T>(&mut self, action: impl FnOnce(&mut Conn) -> Result<T>) -> Option<T> {
        if self.spoilt || self.failed.is_some() {
            return None;
        }
        match action(&mut self.session.conn) {
            Ok(value) => Some(value),
            Err(error) => {
                self.failed = Some(error);
                None
            }
        }
    }

    /// The same for an action whose error belongs to a relation.
    pub fn attempt_on<T>(&mut self, relation: &str, action: impl FnOnce(&mut Conn) -> Result<T>) -> Option<T> {
        self.attempt(|conn| action(conn).map_err(|e| e.at(relation)))
    }

    pub fn table(&self, relation: i32) -> Result<&Table> {
        self.shapes.get(&relation).ok_or_else(|| Error::new(SqlState::UNDEFINED_TABLE, "a table of the sync is missing"))
    }
}

/// Ends what a run that died has left open on the members; see [`members::ask_alone`].
pub fn be_alone(receivers: &mut [Receiver], guard: &str) {
    for receiver in receivers.iter_mut() {
        receiver.attempt(|conn| members::ask_alone(conn, guard));
    }
    for receiver in receivers.iter_mut() {
        receiver.attempt(|conn| conn.pipeline_collect());
    }
}

/// A pass: one snapshot of one source, for receivers that get the same of it.
pub struct Pass<'a> {
    pub sync: &'a Sync,
    pub changes: &'a [TableChanges],
    pub window: Window,
    pub care: Care,
    pub source: &'a Shapes,
    pub source_version: i32,
    /// See [`Reading::news`].
    pub news: String,
    /// The relations of which some keys are left out, with the source's table of those keys.
    pub excluded: HashMap<i32, String>,
    /// Whether all receivers were served up to the same place: then a row that is new is new to all.
    pub level: bool,
    /// The receivers that capture what they get, as bits, by relation; and those of them that capture all of it, changed
    /// or not.
    pub noted: HashMap<i32, u64>,
    pub relayed: u64,
    /// The origin that such deltas are given.
    pub origin: String,
    /// What tells this pass's staging tables from those of others in the same transactions.
    pub tag: String,
}

/// A change with everything that is known of it on the source.
pub struct Work<'a> {
    pub change: &'a TableChanges,
    pub table: &'a Table,
    pub columns: Vec<String>,
    /// The relation's name for messages.
    pub name: String,
    /// See [`Reading::fitting`].
    fitting: Option<String>,
    news: &'a str,
    excluded: Option<&'a str>,
    tag: &'a str,
    /// The receivers that capture what they get.
    pub noted: u64,
}

impl Work<'_> {
    pub fn reading(&self) -> Reading<'_> {
        Reading {
            source: self.table,
            key: &self.change.key,
            slots: &self.change.slots,
            columns: &self.columns,
            segments: &self.change.segments,
            batched: self.change.batched,
            fitting: self.fitting.as_deref(),
            news: self.news,
            excluded: self.excluded,
            noted: self.noted != 0,
        }
    }

    /// The receiver's table, if it is there and takes all columns that travel.
    pub fn table_on<'b>(&self, receiver: &'b Receiver, sync: &Sync) -> Result<&'b Table> {
        let found = receiver.table(self.change.relation);
        let whole = found.and_then(|table| shape::check_columns(sync, table, &self.columns).map(|()| table));
        whole.map_err(|e| e.at(&self.name))
    }

    pub fn writing<'b>(&'b self, receiver: &'b Receiver) -> Result<Writing<'b>> {
        let stage = format!("bucardo_stage_{}{}", self.change.relation, self.tag);
        let table = receiver.table(self.change.relation)?;
        Ok(Writing { table, key: &self.change.key, columns: &self.columns, stage, noted: self.noted != 0 })
    }
}

impl<'a> Pass<'a> {
    /// The changes with what is known of their tables.
    pub fn work<'b>(&'a self, receivers: impl Iterator<Item = &'b Receiver>) -> Result<Vec<Work<'a>>> {
        let mut encodings = receivers.map(|r| r.session.conn.parameter(c"server_encoding"));
        let fitting = if self.care.fitting { encodings.find(|e| e != "UTF8") } else { None };
        let missing = || Error::new(SqlState::UNDEFINED_TABLE, "a table of the sync is missing on the source");
        let one = |change: &'a TableChanges| {
            let table = self.source.get(&change.relation).ok_or_else(missing)?;
            let columns = table.travelling();
            let name = self.sync.relations[change.order].full_name();
            let excluded = self.excluded.get(&change.relation).map(String::as_str);
            let noted = self.noted.get(&change.relation).copied().unwrap_or(0);
            Ok(Work { change, table, columns, name, fitting: fitting.clone(), news: &self.news, excluded, tag: &self.tag, noted })
        };
        self.changes.iter().map(one).collect()
    }

    /// Brings many rows of a table to the receivers; an error is the source's.
    pub fn write_many(&self, item: &Work, source: &mut Conn, receivers: &mut [Receiver]) -> Result<()> {
        if item.change.truncated {
            let roots = if item.noted == 0 { Vec::new() } else { self.truncates(item, source)? };
            for receiver in receivers.iter_mut() {
                if item.noted & receiver.bit() != 0 {
                    let Some(oid) = receiver.table(item.change.relation).ok().map(|t| t.oid) else { continue };
                    let here = origin::name(&self.origin, &self.sync.members[receiver.index].db.name);
                    let origins = std::slice::from_ref(&self.origin);
                    if !origin::note_truncates(receiver, (&item.name, oid), &roots, origins, &here) {
                        continue;
                    }
                }
                truncate(item, receiver);
            }
        }
        let binary = self.is_binary(item, receivers);
        if self.goes_straight(item, receivers) {
            let into = |r: &Receiver| item.writing(r).map(|w| w.copy_straight(binary)).unwrap_or_default();
            let alive: Vec<bool> = receivers.iter().map(|r| r.failed.is_none()).collect();
            stream(source, &item.reading().fresh(&self.window, binary), receivers, &item.name, into)?;
            // What others have failed with before is not about this table.
            for (receiver, _) in receivers.iter_mut().zip(alive).filter(|(_, alive)| *alive) {
                let key = receiver.table(item.change.relation).map(|t| t.begins_with(&item.change.key)).unwrap_or_default();
                receiver.failed = receiver.failed.take().map(|error| error.with_key(&key).of_some_row());
                receiver.counts.upserts += if receiver.failed.is_none() { receiver.copied } else { 0 };
            }
        } else {
            self.through_stage(item, binary, source, receivers)?;
        }
        Ok(())
    }

    /// Whether rows of the table travel in binary.
    pub fn is_binary(&self, item: &Work, receivers: &[Receiver]) -> bool {
        receivers.iter().filter(|r| r.failed.is_none()).all(|r| {
            r.session.conn.version() / 10_000 == self.source_version / 10_000
                && r.table(item.change.relation).is_ok_and(|t| shape::is_binary_safe(item.table, t, &item.columns))
        })
    }

    /// Whether all rows are new, so that they are copied straight into the receivers' tables.
    pub fn goes_straight(&self, item: &Work, receivers: &[Receiver]) -> bool {
        let mut alive = receivers.iter().filter(|r| r.failed.is_none());
        self.level
            && item.noted == 0
            && item.change.existed == 0
            && item.change.changes > 0
            && !item.change.whole
            && !self.care.thorough
            && !self.care.named
            && alive.all(|r| item.writing(r).is_ok_and(|w| w.takes_copy()))
    }

    /// Brings the rows of a table into the receivers' staging tables, and no further. What is returned holds all their keys.
    pub fn stage(&self, item: &Work, source: &mut Conn, receivers: &mut [Receiver]) -> Result<Option<Range>> {
        make_stages(item, receivers);
        let binary = self.is_binary(item, receivers);
        let into = |r: &Receiver| item.writing(r).map(|w| w.copy_stage(binary)).unwrap_or_default();
        let (out, range) = self.many(item, binary, source)?;
        stream(source, &out, receivers, &item.name, into)?;
        Ok(range)
    }

    /// The statement that reads the changed keys with their rows: along the index, where they lie close together there; then the
    /// range that all of them lie in is told. A few are looked up without any question.
    fn many(&self, item: &Work, binary: bool, source: &mut Conn) -> Result<(String, Option<Range>)> {
        self.ask(item, source)?;
        self.answered(item, binary, source)
    }

    /// Asks the source what [`Pass::answered`] wants to know, without waiting.
    pub fn ask(&self, item: &Work, source: &mut Conn) -> Result<()> {
        if item.change.changes <= FEW {
            return Ok(());
        }
        let reading = item.reading();
        let questions = [Some(reading.size()), reading.bounds(&self.window)];
        source.pipeline_begin()?;
        questions.iter().flatten().try_for_each(|sql| source.pipeline_add_unprepared(sql))?;
        source.pipeline_send()
    }

    /// See `many`.
    pub fn answered(&self, item: &Work, binary: bool, source: &mut Conn) -> Result<(String, Option<Range>)> {
        let reading = item.reading();
        if item.change.changes <= FEW {
            return Ok((reading.many(&self.window, Join::Lookup, None, binary), None));
        }
        let answers = source.pipeline_collect().map_err(|e| e.at(&item.name))?;
        let (size, bounds) = (answers.first(), answers.get(1));
        let keys = bounds.and_then(|b| b.number(0, 2)).unwrap_or(item.change.changes);
        let range = bounds.and_then(|b| Some(Range::new(b.number(0, 0)?, b.number(0, 1)?, keys))).filter(Range::is_dense);
        let planned = size.and_then(|rows| rows.get(0, 0)).and_then(planned_rows);
        let join = match planned.map_or(Join::Lookup, |rows| Join::of(keys, rows)) {
            Join::Lookup if range.is_some() => Join::Walk,
            join => join,
        };
        Ok((reading.many(&self.window, join, range.filter(|_| join == Join::Walk), binary), range))
    }

    /// How what is staged goes into the receiver's table, with the receiver, where all its keys lie in the range, if there is one.
    pub fn bringing_within(&self, item: &Work, receiver: &Receiver, range: Option<Range>) -> Option<(usize, Bringing)> {
        let usual = self.bringing(item, receiver).ok()?;
        let walk = range.and_then(|range| usual.within(range, &item.writing(receiver).ok()?));
        Some((receiver.index, walk.unwrap_or(usual)))
    }

    fn through_stage(&self, item: &Work, binary: bool, source: &mut Conn, receivers: &mut [Receiver]) -> Result<()> {
        make_stages(item, receivers);
        let into = |r: &Receiver| item.writing(r).map(|w| w.copy_stage(binary)).unwrap_or_default();
        let bringing: HashMap<usize, Bringing> =
            receivers.iter().filter_map(|r| Some((r.index, self.bringing(item, r).ok()?))).collect();
        let send = |r: &mut Receiver, range: Option<Range>| {
            let Some(usual) = bringing.get(&r.index) else { return };
            let walk = range.and_then(|range| usual.within(range, &item.writing(r).ok()?));
            bring::send(&[walk.as_ref().unwrap_or(usual)], r);
        };
        let collect = |r: &mut Receiver| bringing.get(&r.index).iter().for_each(|b| bring::collect(&[b], r));
        // What must see all rows at once: a whole table, and values that move between rows.
        if item.change.whole || self.care.thorough {
            let out = match item.change.whole {
                true => item.reading().whole(binary),
                false => self.many(item, binary, source)?.0,
            };
            stream(source, &out, receivers, &item.name, into)?;
            receivers.iter_mut().for_each(|r| send(r, None));
            receivers.iter_mut().for_each(collect);
            return Ok(());
        }
        let (out, _) = self.many(item, binary, source)?;
        let parts = Parts { into: &into, send: &send, collect: &collect, binary };
        stream_parts(source, &out, receivers, &item.name, &parts)
    }

    /// The statement by which a receiver captures what is staged, if it does.
    pub fn note(&self, item: &Work, receiver: &Receiver) -> Option<String> {
        let writing = item.writing(receiver).ok().filter(|_| item.noted & receiver.bit() != 0)?;
        let kept = (self.relayed & receiver.bit() != 0).then(|| writing.note(true, &origin::kept(&self.origin)));
        let makes = self.sync.relations[item.change.order].makedelta.unwrap_or(self.sync.members[receiver.index].db.makedelta);
        let calls: Vec<String> = makes.then(|| writing.note(false, &self.origin)).into_iter().chain(kept).collect();
        Some(format!("SELECT {}", calls.join(", ")))
    }

    /// The TRUNCATEs of a table that the receivers have not got from its only source.
    fn truncates(&self, item: &Work, source: &mut Conn) -> Result<Vec<Root>> {
        let from = self.sync.members.iter().find(|m| m.role == Role::Source).map_or("", |m| m.db.name.as_str());
        origin::truncates(source, item.table.oid, &self.window, &origin::name(&self.origin, from))
    }
}

/// Makes the staging tables of a change.
pub fn make_stages(item: &Work, receivers: &mut [Receiver]) {
    for receiver in receivers.iter_mut() {
        let create = item.writing(receiver).map(|w| w.create_stage());
        receiver.attempt_on(&item.name, |conn| conn.query(&create?).map(drop));
    }
}

/// Captures that a run has made a table equal to another one's.
pub fn note_whole(oid: u32, origin: &str) -> String {
    format!("SELECT bucardo.capture_note_whole({oid}, {})", quote_literal(origin))
}

/// Empties the table: by TRUNCATE where PostgreSQL allows it, else (a foreign key points to it) by DELETE.
fn truncate(item: &Work, receiver: &mut Receiver) {
    let Some(table) = receiver.shapes.get(&item.change.relation).cloned() else { return };
    let writing = Writing { table: &table, key: &item.change.key, columns: &item.columns, stage: String::new(), noted: false };
    truncate_table(&writing, &item.name, receiver);
}

/// The same by the statements of a table.
pub fn truncate_table(writing: &Writing<'_>, name: &str, receiver: &mut Receiver) {
    let (truncate, delete) = (writing.truncate(), writing.delete_all());
    let done = receiver.attempt_on(name, |conn| match if_allowed(conn, &truncate)? {
        true => Ok(()),
        false => conn.query(&delete).map(drop),
    });
    if done.is_some() {
        receiver.counts.truncates += 1;
    }
}

/// Carries out a TRUNCATE, unless PostgreSQL forbids it or somebody holds a lock: whether it did.
pub fn if_allowed(conn: &mut Conn, truncate: &str) -> Result<bool> {
    conn.query("SAVEPOINT bucardo_truncate")?;
    match conn.query(truncate) {
        Ok(_) => conn.query("RELEASE SAVEPOINT bucardo_truncate").map(|_| true),
        Err(e) if matches!(e.code, SqlState::NOT_SUPPORTED | SqlState::LOCK_NOT_AVAILABLE) => {
            conn.query("ROLLBACK TO SAVEPOINT bucardo_truncate").map(|_| false)
        }
        Err(e) => Err(e),
    }
}
