//! A few rows into every receiver, each by its key, with prepared statements: what most runs bring. The rows of all relations
//! go in one round trip. It must never hold more than some hundred of them, or some megabytes.

use super::apply::{Receiver, Work};
use super::statements::{AS_BEFORE, BY_INDEX};
use super::writing::Writing;
use crate::error::{Error, Result};
use crate::libpq::{Conn, Rows};

/// Up to so many changes of a table are written by their keys.
pub const FEW: u64 = 100;

/// A few rows of several relations, each written by its key, in one round trip to each receiver.
#[derive(Default)]
pub struct Handfuls<'a> {
    all: Vec<Handful<'a>>,
    rows: usize,
    bytes: usize,
}

/// How wide a row may be, for the parameter of [`Reading::few`](super::reading::Reading::few): all changed ones together are
/// held as the source's answer.
pub fn widest(changes: u64) -> String {
    (4 * Handfuls::BYTES as u64 / changes.max(1)).to_string()
}

/// Whether one was wider: then the rows are streamed, however few they are.
pub fn is_wide(rows: &Rows, keys: usize) -> bool {
    (0..rows.len()).any(|row| rows.get(row, keys) == Some("f"))
}

/// A few rows of one relation: those that are gone, and those that live.
struct Handful<'a> {
    item: &'a Work<'a>,
    rows: &'a Rows,
    gone: Vec<usize>,
    alive: Vec<usize>,
}

impl<'a> Handfuls<'a> {
    /// So many rows and bytes are written at once: they are held until they are sent, and the answers until all are there.
    const MOST: usize = 500;
    const BYTES: usize = 1024 * 1024;

    /// Adds rows of the source's answer; writes when there are enough.
    pub fn add(&mut self, item: &'a Work<'a>, rows: &'a Rows, which: Vec<usize>, receivers: &mut [Receiver]) {
        let keys = item.change.key.len();
        let size = |row: &usize| (0..rows.columns()).filter_map(|c| rows.bytes(*row, c)).map(<[u8]>::len).sum::<usize>();
        let (alive, gone): (Vec<usize>, Vec<usize>) = which.into_iter().partition(|row| rows.bool(*row, keys));
        self.rows += gone.len();
        self.bytes += gone.iter().map(size).sum::<usize>();
        let mut part = Handful { item, rows, gone, alive: Vec::new() };
        for row in alive {
            let bytes = size(&row);
            if self.rows > 0 && self.bytes + bytes > Self::BYTES {
                self.all.push(std::mem::replace(&mut part, Handful { item, rows, gone: Vec::new(), alive: Vec::new() }));
                self.write(receivers);
            }
            self.rows += 1;
            self.bytes += bytes;
            part.alive.push(row);
        }
        self.all.push(part);
        if self.rows >= Self::MOST || self.bytes >= Self::BYTES {
            self.write(receivers);
        }
    }

    /// Writes what there is: of each relation deletes first, then updates and inserts, all receivers at the same time.
    pub fn write(&mut self, receivers: &mut [Receiver]) {
        let these = std::mem::take(self);
        if these.is_empty() {
            return;
        }
        for receiver in receivers.iter_mut() {
            let statements = these.statements(receiver);
            receiver.attempt(|conn| {
                conn.pipeline_begin()?;
                these.queue(conn, &statements?)?;
                conn.pipeline_add(AS_BEFORE, &[], &[])?;
                conn.pipeline_send()
            });
        }
        for receiver in receivers.iter_mut() {
            if let Some(answers) = receiver.attempt(|conn| Ok(conn.pipeline_collect())) {
                these.written(receiver, answers, |error, _| error);
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The statements that bring it to a receiver.
    pub fn statements(&self, receiver: &Receiver) -> Result<Vec<Few>> {
        self.all.iter().map(|one| one.statements(receiver)).collect()
    }

    /// Puts them into a pipeline, together with how they are to be planned. Nothing, if there is nothing.
    pub fn queue(&self, conn: &mut Conn, statements: &[Few]) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        conn.pipeline_add(BY_INDEX, &[], &[])?;
        self.all.iter().zip(statements).try_for_each(|(one, few)| few.queue(conn, one))
    }

    /// Takes the answers to a pipeline that began with [`Handfuls::queue`]; the rest of them is returned. `other` says what the
    /// failure of a statement behind these means, by its place there.
    pub fn written(
        &self,
        receiver: &mut Receiver,
        answers: Result<Vec<Rows>>,
        other: impl FnOnce(Error, usize) -> Error,
    ) -> Option<Vec<Rows>> {
        let settings = usize::from(!self.is_empty());
        match answers {
            Ok(mut all) => {
                let mut answers = all.drain(settings.min(all.len())..).collect::<Vec<_>>();
                for one in &self.all {
                    let mut rest = answers.split_off(one.gone.len().min(answers.len()));
                    let deletes = std::mem::take(&mut answers);
                    answers = rest.split_off((one.alive.len() * one.per_row(receiver)).min(rest.len()));
                    let written = |range: &[Rows]| range.iter().map(Rows::affected).sum::<u64>();
                    receiver.counts.deletes += written(&deletes);
                    receiver.counts.upserts += written(&rest);
                }
                Some(answers)
            }
            Err(error) => {
                let mut at = receiver.session.conn.failed_at.saturating_sub(settings);
                let size = |one: &Handful| one.gone.len() + one.alive.len() * one.per_row(receiver);
                let failed = self.all.iter().find(|one| {
                    let here = at < size(one);
                    at -= if here { 0 } else { size(one) };
                    here
                });
                receiver.failed = Some(match failed {
                    Some(one) => error.without_row().at(format_args!("{} {}", one.item.name, one.key_of(at, receiver))),
                    None => other(error, at),
                });
                None
            }
        }
    }
}

impl Handful<'_> {
    fn statements(&self, receiver: &Receiver) -> Result<Few> {
        let writing = self.item.writing(receiver)?;
        Ok(Few {
            types: writing.types(),
            delete: writing.delete_one(),
            renew: writing.renew_one(),
            update: writing.can_update().then(|| writing.update_one()),
            insert: writing.insert_one(),
        })
    }

    /// How many statements a row that lives takes.
    fn per_row(&self, receiver: &Receiver) -> usize {
        let more = |w: Writing<'_>| usize::from(w.can_update()) + usize::from(w.has_fixed_identity());
        1 + self.item.writing(receiver).map_or(0, more)
    }

    /// The key that one of its statements is about.
    fn key_of(&self, at: usize, receiver: &Receiver) -> String {
        let gone = self.gone.len();
        let row = if at < gone { self.gone.get(at) } else { self.alive.get((at - gone) / self.per_row(receiver)) };
        row.map_or_else(String::new, |row| key_text(self.item, self.rows, *row))
    }
}

/// The key of a row as users read it: `(id)=(7)`.
fn key_text(item: &Work, rows: &Rows, row: usize) -> String {
    let values: Vec<String> = (0..item.change.key.len()).map(|i| rows.text(row, i)).collect();
    format!("({})=({})", item.change.key.join(", "), values.join(", "))
}

/// The prepared statements for a handful on one receiver.
pub struct Few {
    types: Vec<u32>,
    delete: String,
    renew: Option<String>,
    update: Option<String>,
    insert: String,
}

impl Few {
    fn queue(&self, conn: &mut Conn, few: &Handful<'_>) -> Result<()> {
        let keys = few.item.change.key.len();
        for row in &few.gone {
            let key: Vec<Option<&[u8]>> = (0..keys).map(|c| few.rows.bytes(*row, c)).collect();
            conn.pipeline_add(&self.delete, &self.types[..keys], &key)?;
        }
        for row in &few.alive {
            // Keys, then columns; between them stands whether the row lives.
            let columns = (0..=self.types.len()).filter(|c| *c != keys);
            let values: Vec<Option<&[u8]>> = columns.map(|c| few.rows.bytes(*row, c)).collect();
            for sql in self.renew.iter().chain(&self.update).chain([&self.insert]) {
                conn.pipeline_add(sql, &self.types, &values)?;
            }
        }
        Ok(())
    }
}
