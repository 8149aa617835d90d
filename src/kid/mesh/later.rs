//! Who gets what a source sends. A change goes to all members as soon as one of them waits for it, because who has lost must be told;
//! but a source that has got more of one that is away may hold a later row than the one that is sent, which would come back as if it
//! had been written upon that. Such rows it gets only where it waits for the change, or the run has decided about the key. It must
//! never miss anything else.

use std::collections::{HashMap, HashSet};

use super::contend::Key;
use super::decide::{self, KeyChange};
use super::deliver::excluded;
use super::keep::Kept;
use super::offer::Settled;
use super::settle::Settlement;
use super::{Broken, Mesh};
use crate::ident::quote_literal;
use crate::kid::apply::Receiver;
use crate::kid::bits;
use crate::kid::statements::Join;
use crate::kid::stream::stream;

/// Receivers that get the same of a source.
pub(super) struct Group {
    /// As bits.
    pub members: u64,
    /// The keys that they do not get, as [`Pass::excluded`](crate::kid::apply::Pass::excluded) has them.
    pub excluded: HashMap<i32, String>,
}

/// Tables, while a run lasts in which some source has got more of one that is away than others.
#[derive(Debug, Default)]
pub(super) struct Unsent {
    /// On a source (by place), of the keys of a relation that it does not send to a member (by place).
    tables: HashMap<(usize, usize, i32), String>,
    /// The sources, by place, and relations for which a table of the keys is there that have won over others.
    won: HashSet<(usize, i32)>,
}

impl Mesh<'_> {
    /// The receivers of what a source sends of these relations.
    pub(super) fn groups(&mut self, at: usize, relations: &[i32], kept: &Kept) -> Result<Vec<Group>, Broken> {
        let mut rest = Group { members: self.present() & !self.members[at].bit(), excluded: excluded(at, kept) };
        let mut groups = Vec::new();
        // Where unique values have clashed, one row less would have another one seem alone with its value.
        let later = if self.care.thorough { Vec::new() } else { self.later_than(at) };
        for to in later {
            let mut apart = rest.excluded.clone();
            for relation in relations {
                if let Some(table) = self.not_for(at, to, *relation, kept)? {
                    self.unsent.tables.insert((at, to, *relation), table.clone());
                    apart.insert(*relation, table);
                }
            }
            if apart != rest.excluded {
                let members = self.members[to].bit();
                rest.members &= !members;
                groups.push(Group { members, excluded: apart });
            }
        }
        groups.insert(0, rest);
        groups.retain(|group| group.members != 0);
        Ok(groups)
    }

    /// The table of the keys of a relation that a source does not send to a member: see [`Mesh::groups`]. None: it sends all that
    /// others get.
    pub(super) fn unsent(&self, at: usize, to: usize, relation: i32) -> Option<&str> {
        self.unsent.tables.get(&(at, to, relation)).map(String::as_str)
    }

    fn not_for(&mut self, at: usize, to: usize, relation: i32, kept: &Kept) -> Result<Option<String>, Broken> {
        let (bit, index) = (self.members[to].bit(), self.members[to].index);
        let is_put_back = self.copied.iter().any(|(of, members)| *of == relation && members & bit != 0);
        let as_whole =
            self.offers.iter().flatten().any(|o| o.truncated.contains_key(&relation) || o.whole.contains_key(&relation));
        let changes = self.offers[at].as_ref().and_then(|o| o.change(relation)).map_or(0, |c| c.changes);
        if is_put_back || as_whole || changes == 0 {
            return Ok(None);
        }
        let Some(theirs) = self.later_rows(at, to, relation)? else { return Ok(None) };
        let (present, sources) = (self.present(), self.present_sources());
        let towards = |entry: &Settled| entry.open & if entry.older { sources } else { present };
        let settled = self.table_of_settled(at, relation, towards)?;
        let name = format!("pg_temp.bucardo_unsent_{relation}_{index}");
        let (won, towards) = (self.unsent.won.contains(&(at, relation)), format!("towards & (1::pg_catalog.int8 << {index})"));
        let sql = self.with_work(at, relation, |work, offer| {
            let reading = work.reading();
            let keys = reading.keys("");
            let changes = reading.changes(&offer.union(), "d.at", &offer.towards(), settled.as_deref());
            let decided = if won {
                let same = reading.same("w.", "d.");
                format!(" AND NOT EXISTS (SELECT FROM {} w WHERE {same} AND w.{towards} <> 0)", won_table(relation))
            } else {
                String::new()
            };
            let add = kept.get(&(at, relation)).map_or_else(String::new, |kept| format!(" UNION ALL SELECT {keys} FROM {kept}"));
            format!(
                "{}CREATE TEMP TABLE {name} ON COMMIT DROP AS SELECT {} FROM ({changes}) d \
                 WHERE d.{towards} = 0 AND EXISTS (SELECT FROM {theirs} t WHERE {}){decided}{add}",
                Join::Free.settings(),
                reading.keys("d."),
                reading.same("t.", "d.")
            )
        })?;
        let Some(sql) = sql else { return Ok(None) };
        self.members[at].attempt(|conn| conn.query(&sql));
        self.check()?;
        Ok(Some(name))
    }

    /// On a source, a table of the keys of which a member has got more than it of one that is away: by what that member keeps, and by
    /// what it has heard. None: there are none.
    fn later_rows(&mut self, at: usize, to: usize, relation: i32) -> Result<Option<String>, Broken> {
        let (origins, mut heard) = self.more_at(at, to, relation);
        // What cannot be written there is not there either.
        let encoding = self.members[at].session.conn.parameter(c"server_encoding");
        if encoding != "UTF8" {
            heard.retain(|key| key.iter().all(|text| text.is_ascii()));
        }
        let theirs = self.kept_keys(to, relation, &origins, &encoding)?;
        if theirs.is_none() && heard.is_empty() {
            return Ok(None);
        }
        let (n, name) = (self.key_of(relation).len(), format!("bucardo_later_{relation}_{}", self.members[to].index));
        self.create_keys(at, relation, &name, "")?;
        self.insert_keys(at, relation, &name, n, &heard, &[])?;
        self.run_errands()?;
        if let Some(theirs) = theirs {
            let out = format!("COPY ({theirs}) TO STDOUT");
            let mut from = self.members.remove(to);
            let place = at - usize::from(to < at);
            let into = |_: &Receiver| format!("COPY pg_temp.{name} FROM STDIN");
            let copied = stream(&mut from.session.conn, &out, &mut self.members[place..=place], "keys", into);
            from.attempt(|_| copied);
            self.members.insert(to, from);
            self.check()?;
        }
        Ok(Some(format!("pg_temp.{name}")))
    }

    /// The statement for the keys that a source keeps with these origins, as far as they can be written in an encoding. None: it keeps none.
    fn kept_keys(&mut self, at: usize, relation: i32, origins: &[String], encoding: &str) -> Result<Option<String>, Broken> {
        if origins.is_empty() {
            return Ok(None);
        }
        let Some(captured) = self.captured(at, relation)? else { return Ok(None) };
        let news = format!(" AND origin IN ({})", origins.iter().map(|o| quote_literal(o)).collect::<Vec<_>>().join(", "));
        let Some(table) = self.members[at].shapes.get(&relation).cloned() else { return Ok(None) };
        let key = self.key_of(relation);
        let reading = captured.reading(&table, &key, &news);
        let (mut sql, keys) = (reading.distinct("true"), reading.keys("k."));
        if encoding != "UTF8" {
            let encoding = quote_literal(encoding);
            sql = format!("SELECT * FROM ({sql}) k WHERE bucardo.capture_fits(ROW({keys})::pg_catalog.text, {encoding})");
        }
        let found = self.members[at].attempt(|conn| conn.query(&format!("SELECT EXISTS ({sql})")));
        self.check()?;
        Ok(found.filter(|rows| rows.bool(0, 0)).map(|_| sql))
    }

    /// Of changes of a key that are in no conflict, the source (by its place in the sync) whose row goes to all: of those that know each
    /// other one of which no other has got more of a source that is away.
    pub(super) fn newest_of(&self, changes: &[KeyChange], newest: usize) -> usize {
        if !self.is_ahead() {
            return newest;
        }
        let peers = [vec![newest], decide::peers(changes, newest)].concat();
        let places: Vec<Option<usize>> = peers.iter().map(|source| self.place(*source)).collect();
        let knows_more = |one: usize, than: usize| self.later_than(than).contains(&one);
        let behind = |at: usize| places.iter().flatten().any(|other| knows_more(*other, at) && !knows_more(at, *other));
        let best = peers.iter().zip(&places).find(|(_, at)| at.is_some_and(|at| !behind(at)));
        best.map_or(newest, |(source, _)| *source)
    }

    /// Takes note of a key that goes to all as this source (by its place in the sync) has it, though others have changed it too.
    /// `towards`: who gets it also where he has later rows, as bits.
    pub(super) fn note_won(&self, key: &Key, source: usize, towards: u64, settlement: &mut Settlement) {
        if let Some(at) = self.place(source).filter(|_| self.is_ahead()) {
            settlement.won.entry((at, towards)).or_default().push(key.clone());
        }
    }

    /// The same where one is the newest: who has been served all the others' changes, or knows the newest beside his own, has it. Of a
    /// key that a run which died has left (`carried`) nobody can tell who has it.
    pub(super) fn note_newest(
        &self,
        key: &Key,
        changes: &[KeyChange],
        newest: usize,
        carried: bool,
        settlement: &mut Settlement,
    ) {
        if !self.is_ahead() {
            return;
        }
        let peers = decide::peers(changes, newest);
        let others = || changes.iter().filter(|c| c.source != newest);
        let lacking = others().filter(|c| !peers.contains(&c.source)).map(|c| 1 << c.source);
        let towards = bits::union(others().map(|c| c.towards).chain(lacking));
        self.note_won(key, newest, if carried { u64::MAX } else { towards }, settlement);
    }

    /// Brings these keys to the sources that have won them.
    pub(super) fn put_won(&mut self, relation: i32, settlement: &mut Settlement) -> Result<(), Broken> {
        for ((at, towards), keys) in settlement.won.drain() {
            let (n, name) = (self.key_of(relation).len(), format!("bucardo_won_{relation}"));
            if self.unsent.won.insert((at, relation)) {
                self.create_keys(at, relation, &name, ", 0::pg_catalog.int8 AS towards")?;
            }
            self.insert_keys(at, relation, &name, n, &keys, &[&(towards as i64).to_string()])?;
        }
        Ok(())
    }
}

/// The table of the keys that a source has won, with who gets them in any case.
fn won_table(relation: i32) -> String {
    format!("pg_temp.bucardo_won_{relation}")
}
