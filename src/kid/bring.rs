//! What is staged on a receiver goes into its table: the statements for it, sent without waiting, so that all receivers
//! work at the same time, and what they have written. It never stages anything itself.

use super::apply::{Pass, Receiver, Work};
use super::culprit::{self, Staged};
use super::range::Range;
use super::statements::Join;
use super::writing::Writing;
use crate::error::{Error, Result};
use crate::libpq::{Conn, Rows};

/// How one staging table goes into its table on one receiver.
#[derive(Clone)]
pub struct Bringing {
    /// The relation, for messages.
    relation: String,
    /// The columns of the key, if the table begins with them: a row that is refused is named by them.
    key: Vec<String>,
    /// What goes first and is not counted: how keys find their rows, and the capture of what is staged.
    before: Vec<String>,
    statements: Vec<String>,
    /// How many of the statements delete for good, and how many after them do what others undo.
    deletes: usize,
    silent: usize,
    /// Where the settings and the MERGE stand that rows with a dense range replace.
    walks_at: Option<usize>,
    /// The rows, where the one that is refused is to be found.
    searched: Option<Staged>,
}

impl Pass<'_> {
    pub fn bringing(&self, item: &Work, receiver: &Receiver) -> Result<Bringing> {
        let writing = item.writing(receiver)?;
        let merge = receiver.session.conn.version() >= 150_000 && !writing.table.has_rules;
        let mut statements = if self.care.thorough { writing.apply_stage_thoroughly() } else { writing.apply_stage(merge) };
        if item.change.whole {
            statements.insert(0, writing.delete_unstaged());
        }
        statements.push(writing.empty_stage());
        // The stage has no index, and the table perhaps none on these columns: then it is for the planner.
        let lookup = !item.change.whole && writing.table.is_unique_on(writing.key);
        let join = if lookup { Join::Seek } else { Join::Free };
        let before = settings(join).chain(self.note(item, receiver)).collect::<Vec<_>>();
        // Which rows are deleted for being nowhere no stage says.
        let unsaid = (item.change.whole && item.noted & receiver.bit() != 0).then(|| writing.note_unstaged(&self.origin));
        let before = before.into_iter().chain(unsaid).collect();
        // Deletes that are followed by an insert of the same key are no deletes for the user.
        let deletes = if item.change.whole { 2 } else { 1 };
        let silent = if self.care.thorough { 2 } else { 0 };
        let mut walks_at = None;
        if lookup && merge && !self.care.thorough {
            let renewed = deletes + usize::from(writing.has_fixed_identity());
            statements.splice(renewed..renewed, settings(Join::Lookup));
            walks_at = Some(renewed).filter(|_| writing.table.number(writing.key).is_some());
        }
        // By a walk, statements of one row that come later would go along the whole index.
        statements.extend(settings(Join::Free));
        let key = writing.table.begins_with(writing.key);
        let searched =
            (self.care.named && !item.change.whole).then(|| Staged { table: writing.stage_name(), key: writing.key.to_vec() });
        Ok(Bringing { relation: item.name.clone(), key, before, statements, deletes, silent, walks_at, searched })
    }
}

/// The settings one by one.
fn settings(join: Join) -> impl Iterator<Item = String> {
    join.settings().split(';').map(str::trim).filter(|s| !s.is_empty()).map(str::to_string)
}

impl Bringing {
    /// The same for rows whose keys lie in the range, in as many statements.
    pub fn within(&self, range: Range, writing: &Writing<'_>) -> Option<Self> {
        let at = self.walks_at.filter(|_| range.is_dense())?;
        let mut statements = self.statements.clone();
        let walk = settings(Join::Walk).chain([writing.merge(Some(range))]);
        statements.splice(at..=at + settings(Join::Lookup).count(), walk);
        Some(Self { statements, ..self.clone() })
    }

    fn len(&self) -> usize {
        self.all().count()
    }

    /// All that is sent, in its order.
    fn all(&self) -> impl Iterator<Item = &str> {
        let begin = self.searched.iter().map(|_| culprit::SAVEPOINT);
        let end = self.searched.iter().map(|_| culprit::RELEASE);
        begin.chain(self.own()).chain(end)
    }

    fn own(&self) -> impl Iterator<Item = &str> {
        self.before.iter().chain(&self.statements).map(String::as_str)
    }

    fn queue(&self, conn: &mut Conn) -> Result<()> {
        self.all().try_for_each(|sql| conn.pipeline_add_unprepared(sql))
    }

    /// The error of one of them, with the key of the row, if that can be told.
    fn explained(&self, error: Error, conn: &mut Conn) -> Error {
        let error = error.with_key(&self.key).of_some_row();
        let searched = self.searched.as_ref().filter(|_| error.is_of_some_row());
        // An error that is met on the way is no news.
        match searched.and_then(|staged| culprit::find(conn, staged, self.own(), error.code).ok().flatten()) {
            Some(key) => error.at(format_args!("{} {key}", self.relation)),
            None => error.at(&self.relation),
        }
    }

    fn count(&self, answers: &[Rows], receiver: &mut Receiver) {
        let begun = self.before.len() + usize::from(self.searched.is_some());
        for (i, rows) in answers.iter().skip(begun).enumerate() {
            if i < self.deletes {
                receiver.counts.deletes += rows.affected();
            } else if i >= self.deletes + self.silent {
                receiver.counts.upserts += rows.affected();
            }
        }
    }
}

/// Sends off all of them to one receiver: [`collect`] waits for it.
pub fn send(all: &[&Bringing], receiver: &mut Receiver) {
    if all.is_empty() {
        return;
    }
    receiver.attempt(|conn| {
        conn.pipeline_begin()?;
        all.iter().try_for_each(|one| one.queue(conn))?;
        conn.pipeline_send()
    });
}

/// Waits for what was sent, and counts it.
pub fn collect(all: &[&Bringing], receiver: &mut Receiver) {
    if all.is_empty() {
        return;
    }
    let answers = receiver.attempt(|conn| {
        conn.pipeline_collect().map_err(|error| {
            let ends = all.iter().scan(0, |end, one| {
                *end += one.len();
                Some(*end)
            });
            let failed = ends.zip(all).find(|(end, _)| conn.failed_at < *end);
            match failed {
                Some((_, one)) => one.explained(error, conn),
                None => error,
            }
        })
    });
    let mut answers = answers.as_deref().unwrap_or_default();
    for one in all {
        let (mine, rest) = answers.split_at(one.len().min(answers.len()));
        one.count(mine, receiver);
        answers = rest;
    }
}
