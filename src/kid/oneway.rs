//! What one source has into every receiver that needs it, from the receivers' BEGIN on: sequences, then a few rows of all tables
//! in one round trip, then the tables of which many changed. It commits nothing: until a receiver commits, nothing of it has
//! happened there.

use super::apply::{Pass, Receiver, Work};
use super::few::{self, FEW, Handfuls};
use super::gather::{self, TableChanges};
use super::members::HOLD;
use super::replaced;
use super::sequence;
use super::shape::{self, Table};
use super::statements::BY_INDEX;
use super::writing::Writing;
use crate::error::Result;
use crate::libpq::{Conn, Rows};

/// A pass with what only a run with one source needs.
pub struct OneWay<'a> {
    pub pass: Pass<'a>,
    /// See [`HOLD`].
    pub guard: String,
    pub sequences: Option<&'a Rows>,
    pub sequence_query: Option<&'a str>,
}

impl OneWay<'_> {
    /// Opens the receivers' transactions and applies everything. Commits nothing. An error is the source's.
    pub fn apply(&self, source: &mut Conn, receivers: &mut [Receiver], done: &mut dyn FnMut(&str, u64)) -> Result<()> {
        let work = self.pass.work(receivers)?;
        let few: Vec<&Work> = work.iter().filter(|w| self.is_few(w.change)).collect();
        self.ask_source(source, &few, &work)?;
        for receiver in receivers.iter_mut() {
            self.open(receiver, &work);
        }
        let rows = self.source_rows(source, &work)?;
        for receiver in receivers.iter_mut() {
            self.opened(receiver, &work);
        }
        let mut handfuls = Handfuls::default();
        let mut wide = Vec::new();
        for (item, rows) in few.into_iter().zip(&rows) {
            if few::is_wide(rows, item.change.key.len()) {
                wide.push(item.change.relation);
                continue;
            }
            done(&item.name, 0);
            handfuls.add(item, rows, (0..rows.len()).collect(), receivers);
        }
        handfuls.write(receivers);
        for item in &work {
            if !self.is_few(item.change) || wide.contains(&item.change.relation) {
                done(&item.name, 0);
                self.pass.write_many(item, source, receivers)?;
            }
            done(&item.name, item.change.changes);
        }
        let many = work.iter().filter(|w| !self.is_few(w.change)).map(|w| w.table.oid);
        if many.clone().next().is_some() {
            replaced::check(source, many)?;
        }
        Ok(())
    }

    fn ask_source(&self, source: &mut Conn, few: &[&Work], work: &[Work]) -> Result<()> {
        source.pipeline_begin()?;
        let (sql, oids) = shape::fingerprint_query(work.iter().map(|w| w.table.oid));
        source.pipeline_add(sql, &[], &[Some(oids.as_bytes())])?;
        source.pipeline_add(BY_INDEX, &[], &[])?;
        for item in few {
            let widest = few::widest(item.change.changes);
            let params = [&self.pass.window.xmax, &self.pass.window.xip, &widest].map(|p| Some(p.as_bytes()));
            source.pipeline_add(&item.reading().few(), &[], &params)?;
        }
        replaced::queue(source, few.iter().map(|item| item.table.oid))?;
        source.pipeline_send()
    }

    fn source_rows(&self, source: &mut Conn, work: &[Work]) -> Result<Vec<Rows>> {
        let mut rows = source.pipeline_collect()?;
        replaced::judge(rows.pop().as_ref())?;
        let answers = rows.split_off(rows.len().min(2));
        if let Some(fingerprints) = rows.first() {
            shape::check_fingerprints(fingerprints, work.iter().map(|w| w.table))?;
        }
        Ok(answers)
    }

    /// Sends the receiver's BEGIN, with locks before the snapshot when earlier attempts were defeated.
    fn open(&self, receiver: &mut Receiver, work: &[Work]) {
        let oids: Vec<u32> = work.iter().filter_map(|w| receiver.table(w.change.relation).ok()).map(|t| t.oid).collect();
        let locks = self.locks(receiver, work);
        let patient = format!("SET LOCAL lock_timeout = '{}'", receiver.session.patience);
        receiver.attempt(|conn| {
            conn.pipeline_begin()?;
            conn.pipeline_add(gather::begin(self.pass.sync), &[], &[])?;
            conn.pipeline_add(&patient, &[], &[])?;
            for lock in &locks {
                conn.pipeline_add(lock, &[], &[])?;
            }
            conn.pipeline_add(HOLD, &[], &[Some(self.guard.as_bytes())])?;
            let (sql, oids) = shape::fingerprint_query(oids.iter().copied());
            conn.pipeline_add(sql, &[], &[Some(oids.as_bytes())])?;
            if let Some(sql) = self.sequence_query {
                conn.pipeline_add(sql, &[], &[])?;
            }
            conn.pipeline_send()
        });
    }

    /// What keeps writers out: after some defeats, and where the key is deferrable, so that nothing else tells of a row that
    /// somebody stores at the same time.
    fn locks(&self, receiver: &Receiver, work: &[Work]) -> Vec<String> {
        let loose = |w: &Writing<'_>| w.table.is_unique_on(w.key) && !w.table.refuses_doubles(w.key);
        let wanted = work.iter().filter_map(|w| w.writing(receiver).ok());
        wanted.filter(|w| self.pass.care.locked || loose(w)).map(|w| w.table.lock()).collect()
    }

    /// Takes the answers to [`OneWay::open`], and brings the sequences up to date.
    fn opened(&self, receiver: &mut Receiver, work: &[Work]) {
        let locks = self.locks(receiver, work).len();
        let Some(mut answers) = receiver.attempt(|conn| conn.pipeline_collect()) else { return };
        let mut answers = answers.drain((3 + locks).min(answers.len())..);
        let fingerprints = answers.next();
        let tables: Result<Vec<&Table>> = work.iter().map(|w| w.table_on(receiver, self.pass.sync)).collect();
        let checked = tables.and_then(|t| fingerprints.map_or(Ok(()), |f| shape::check_fingerprints(&f, t.into_iter())));
        receiver.attempt(|_| checked);
        if let (Some(source), Some(mine)) = (self.sequences, answers.next()) {
            for sql in sequence::agree(self.pass.sync, &[source], &mine, false) {
                if receiver.attempt(|conn| conn.query(&sql)).is_some() {
                    receiver.counts.sequences += 1;
                }
            }
        }
    }

    fn is_few(&self, change: &TableChanges) -> bool {
        change.changes <= FEW
            && !self.pass.noted.contains_key(&change.relation)
            && !change.truncated
            && !change.whole
            && !self.pass.care.thorough
    }
}
