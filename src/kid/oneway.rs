//! What one source has into every receiver that needs it, from the receivers' BEGIN on: sequences, then a few rows of all tables
//! in one round trip, then the tables of which many changed; where there are none of those, the few rows are left for the COMMIT
//! to take along. It commits nothing: until a receiver commits, nothing of it has happened there.

use super::apply::{Pass, Receiver, Work};
use super::few::{self, FEW, Handfuls};
use super::flush;
use super::gather::{self, TableChanges};
use super::members::HOLD;
use super::replaced;
use super::sequence;
use super::shape::{self, Table};
use super::statements::BY_INDEX;
use super::writing::Writing;
use crate::error::Result;
use crate::libpq::{Conn, Rows};

/// What was read of a source.
pub struct Read {
    /// The rows of each table of which few have changed.
    pub rows: Vec<Rows>,
    /// Whether the source has on its disk by now what was read, and where its log is.
    pub flushed: bool,
    pub place: String,
}

/// A pass with what only a run with one source needs.
pub struct OneWay<'a> {
    pub pass: Pass<'a>,
    /// See [`HOLD`].
    pub guard: String,
    pub sequences: Option<&'a Rows>,
    pub sequence_query: Option<&'a str>,
}

impl OneWay<'_> {
    /// Opens the receivers' transactions, and reads the few rows of the source meanwhile. An error is the source's.
    pub fn read(&self, source: &mut Conn, receivers: &mut [Receiver], work: &[Work]) -> Result<Read> {
        source.pipeline_begin()?;
        self.queue(source, work, |item| item.reading().few())?;
        source.pipeline_send()?;
        self.open(receivers, work);
        let answers = source.pipeline_collect()?;
        let read = self.understand(answers, work)?;
        self.opened(receivers, work);
        Ok(read)
    }

    /// Puts what is asked of the source into a pipeline; `reading`: the statement that reads a few rows of a table.
    pub fn queue(&self, source: &mut Conn, work: &[Work], reading: impl Fn(&Work) -> String) -> Result<()> {
        let (sql, oids) = shape::fingerprint_query(work.iter().map(|w| w.table.oid));
        source.pipeline_add(sql, &[], &[Some(oids.as_bytes())])?;
        source.pipeline_add(BY_INDEX, &[], &[])?;
        let few = || work.iter().filter(|item| self.is_few(item.change));
        for item in few() {
            let widest = few::widest(item.change.changes);
            let params = [&self.pass.window.xmax, &self.pass.window.xip, &widest].map(|p| Some(p.as_bytes()));
            source.pipeline_add(&reading(item), &[], &params)?;
        }
        replaced::queue(source, few().map(|item| item.table.oid))?;
        source.pipeline_add(&flush::since(), &[], &[])
    }

    /// Takes the answers to [`OneWay::queue`].
    pub fn understand(&self, mut answers: Vec<Rows>, work: &[Work]) -> Result<Read> {
        let (flushed, place) = answers.pop().map(|since| (since.bool(0, 0), since.text(0, 1))).unwrap_or_default();
        replaced::judge(answers.pop().as_ref())?;
        let rows = answers.split_off(answers.len().min(2));
        if let Some(fingerprints) = answers.first() {
            shape::check_fingerprints(fingerprints, work.iter().map(|w| w.table))?;
        }
        Ok(Read { rows, flushed, place })
    }

    /// Applies everything. What is returned is not written yet: it goes with the COMMIT. An error is the source's.
    pub fn apply<'w>(
        &self,
        source: &mut Conn,
        receivers: &mut [Receiver],
        (work, rows): (&'w [Work<'w>], &'w [Rows]),
        done: &mut dyn FnMut(&str, u64),
    ) -> Result<Handfuls<'w>> {
        receivers.iter_mut().for_each(|receiver| self.level_sequences(receiver));
        let mut handfuls = Handfuls::default();
        let mut wide = Vec::new();
        for (item, rows) in work.iter().filter(|w| self.is_few(w.change)).zip(rows) {
            if few::is_wide(rows, item.change.key.len()) {
                wide.push(item.change.relation);
            } else if rows.len() > 0 {
                done(&item.name, 0);
                handfuls.add(item, rows, (0..rows.len()).collect(), receivers);
            }
        }
        let is_many = |item: &Work| !self.is_few(item.change) || wide.contains(&item.change.relation);
        if work.iter().any(is_many) {
            handfuls.write(receivers);
        }
        for item in work.iter().filter(|w| w.change.changes > 0 || !self.is_few(w.change)) {
            if is_many(item) {
                done(&item.name, 0);
                self.pass.write_many(item, source, receivers)?;
            }
            done(&item.name, item.change.changes);
        }
        let many = work.iter().filter(|w| !self.is_few(w.change)).map(|w| w.table.oid);
        if many.clone().next().is_some() {
            replaced::check(source, many)?;
        }
        Ok(handfuls)
    }

    /// Sends the receivers' BEGIN.
    pub fn open(&self, receivers: &mut [Receiver], work: &[Work]) {
        receivers.iter_mut().for_each(|receiver| self.open_one(receiver, work));
    }

    /// Takes the answers to [`OneWay::open`].
    pub fn opened(&self, receivers: &mut [Receiver], work: &[Work]) {
        receivers.iter_mut().for_each(|receiver| self.opened_one(receiver, work));
    }

    /// Sends the receiver's BEGIN, with locks before the snapshot when earlier attempts were defeated.
    fn open_one(&self, receiver: &mut Receiver, work: &[Work]) {
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
            if self.is_early() {
                conn.pipeline_add(flush::EARLY, &[], &[])?;
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

    /// Whether receivers show what they have got before it is on their disk, for which the run waits then: but not where it is
    /// captured for others, who would have to wait for that disk as well.
    pub fn is_early(&self) -> bool {
        self.pass.noted.is_empty()
    }

    /// What keeps writers out: after some defeats, and where the key is deferrable, so that nothing else tells of a row that
    /// somebody stores at the same time.
    fn locks(&self, receiver: &Receiver, work: &[Work]) -> Vec<String> {
        let loose = |w: &Writing<'_>| w.table.is_unique_on(w.key) && !w.table.refuses_doubles(w.key);
        let wanted = work.iter().filter_map(|w| w.writing(receiver).ok());
        wanted.filter(|w| self.pass.care.locked || loose(w)).map(|w| w.table.lock()).collect()
    }

    fn opened_one(&self, receiver: &mut Receiver, work: &[Work]) {
        let locks = self.locks(receiver, work).len() + usize::from(self.is_early());
        let Some(mut answers) = receiver.attempt(|conn| conn.pipeline_collect()) else { return };
        let mut answers = answers.drain((3 + locks).min(answers.len())..);
        let fingerprints = answers.next();
        let tables: Result<Vec<&Table>> = work.iter().map(|w| w.table_on(receiver, self.pass.sync)).collect();
        let checked = tables.and_then(|t| fingerprints.map_or(Ok(()), |f| shape::check_fingerprints(&f, t.into_iter())));
        receiver.sequences = answers.next();
        receiver.attempt(|_| checked);
    }

    /// Brings the receiver's sequences up to date.
    fn level_sequences(&self, receiver: &mut Receiver) {
        if let (Some(source), Some(mine)) = (self.sequences, receiver.sequences.take()) {
            for sql in sequence::agree(self.pass.sync, &[source], &mine, false) {
                if receiver.attempt(|conn| conn.query(&sql)).is_some() {
                    receiver.counts.sequences += 1;
                }
            }
        }
    }

    /// Whether the rows of these tables can be read before it is known that they have changed: they go by their keys, and the
    /// receivers lock nothing.
    pub fn may_guess(&self, receivers: &[Receiver], work: &[Work]) -> bool {
        work.iter().all(|w| self.is_few(w.change)) && receivers.iter().all(|receiver| self.locks(receiver, work).is_empty())
    }

    fn is_few(&self, change: &TableChanges) -> bool {
        change.changes <= FEW
            && !self.pass.noted.contains_key(&change.relation)
            && !change.truncated
            && !change.whole
            && !self.pass.care.thorough
    }
}
