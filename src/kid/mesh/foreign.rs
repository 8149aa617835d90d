//! Rows whose parent another source has deleted: the check that triggers would make, which are off while rows are applied.
//! What a source has changed is looked at again when everything has arrived there; a row without its parent is removed
//! everywhere (or loses the reference, where the foreign key says SET NULL) and recorded whole. It must never leave a
//! silent orphan.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::settle::{Decision, Written};
use super::{Broken, Mesh};
use crate::error::{Error, SqlState};
use crate::ident::quote_ident;
use crate::kid::shape::{self, ForeignKey, Table};
use crate::kid::statements::{Join, key_object, list};
use crate::libpq::Rows;

/// How often one row may be found without a parent, which each of its references may have lost once.
const AGAIN: usize = 50;

/// A question to one source: which rows have no parent.
struct Question {
    relation: i32,
    foreign: ForeignKey,
    sql: String,
    about: About,
}

/// Which rows a question is about.
#[derive(Clone, Copy)]
enum About {
    /// Those that this source has changed itself.
    Own,
    /// Those whose parents this source has changed, and has no more.
    Bereft,
    All,
}

/// A row without a parent, and who found it.
struct Orphan {
    relation: i32,
    key: Vec<String>,
    /// As JSON, like the row.
    key_json: String,
    image: Value,
    foreign: ForeignKey,
    /// The first source that has found it.
    at: usize,
    /// A source that has changed the parent.
    bereft: Option<usize>,
    /// The sources that have changed the row.
    authors: Vec<usize>,
}

impl Mesh<'_> {
    /// Removes the rows that have no parent any more; what was decided.
    pub(super) fn adopt_orphans(&mut self, relations: &[i32]) -> Result<Vec<Decision>, Broken> {
        let mut decisions = Vec::new();
        let mut removed: HashSet<i32> = HashSet::new();
        // A chain of rows that refer to each other goes link by link, however long it is.
        let mut times: HashMap<(i32, Vec<String>), usize> = HashMap::new();
        loop {
            let mut asked = Vec::new();
            for at in self.sources() {
                let questions = self.questions(at, relations, &removed)?;
                if !questions.is_empty() {
                    // The run has not looked at those of which nothing was changed: their keys may be gone by now.
                    let shapes = self.members[at].shapes.clone();
                    let about = || questions.iter().filter_map(|q| shapes.get(&q.relation));
                    let (print, oids) = shape::fingerprint_query(about().map(|t| t.oid));
                    self.members[at].attempt(|conn| {
                        conn.query(Join::Free.settings())?;
                        conn.pipeline_begin()?;
                        questions.iter().try_for_each(|q| conn.pipeline_add_unprepared(&q.sql))?;
                        conn.pipeline_add(print, &[], &[Some(oids.as_bytes())])?;
                        conn.pipeline_send()
                    });
                    asked.push((at, questions));
                }
            }
            let mut found: Vec<Orphan> = Vec::new();
            for (at, questions) in asked {
                let shapes = self.members[at].shapes.clone();
                let about = questions.iter().filter_map(|q| shapes.get(&q.relation));
                let collected = self.members[at].attempt(|conn| {
                    let mut answers = conn.pipeline_collect()?;
                    answers.pop().map_or(Ok(()), |prints| shape::check_fingerprints(&prints, about))?;
                    Ok(answers)
                });
                let answers = collected.unwrap_or_default();
                for (question, rows) in questions.iter().zip(&answers) {
                    self.take_orphans(at, question, rows, &mut found)?;
                }
            }
            self.check()?;
            if found.is_empty() {
                return Ok(decisions);
            }
            removed.clear();
            for (relation, written, decision) in found.into_iter().map(|o| self.judge_orphan(o)).collect::<Vec<_>>() {
                self.write(relation, std::slice::from_ref(&written))?;
                removed.insert(relation);
                decisions.push(decision);
                let times = times.entry((relation, written.key)).or_default();
                *times += 1;
                if *times > AGAIN {
                    let text =
                        format!("a row of {} is without a parent, however often it is removed", self.relation_name(relation));
                    let error = Error::new(SqlState::WRONG_STATE, text);
                    return Err(error.hint("See whether a trigger that is ENABLE ALWAYS stores it anew.").into());
                }
            }
        }
    }

    /// The questions to a source: about the rows that it has changed itself; about those that refer to parents which it has
    /// changed, since such a row may have come there while the parent was deleted, when neither saw the other; and, on the
    /// first source, about all rows that refer to a table from which something was removed.
    fn questions(&self, at: usize, relations: &[i32], removed: &HashSet<i32>) -> Result<Vec<Question>, Broken> {
        let mut questions = Vec::new();
        let shapes = &self.members[at].shapes;
        let first = self.sources().first() == Some(&at);
        for relation in self.plan.sync.relations.iter().map(|r| r.id).filter(|r| shapes.contains_key(r)) {
            let Some(table) = shapes.get(&relation) else { continue };
            let own = if relations.contains(&relation) && self.changed(relation).contains(&at) {
                self.with_work(at, relation, |w, offer| w.reading().distinct(&offer.union().condition()))?
            } else {
                None
            };
            let key = self.key_of(relation);
            for foreign in &table.references {
                let parent = shapes.iter().find(|(_, t)| t.oid == foreign.parent);
                let Some((parent_relation, parent)) = parent else { continue };
                // Where the key is not validated, only a parent that went now tells that a row may not stay.
                let all = first && removed.contains(parent_relation) && foreign.validated;
                if let Some(gone) = self.deleted_parents(at, relations, *parent_relation, parent, foreign)?.filter(|_| !all) {
                    let sql = orphans(table, parent, foreign, &key, Some(&gone), true);
                    questions.push(Question { relation, foreign: foreign.clone(), sql, about: About::Bereft });
                }
                if (own.is_none() && !all) || !foreign.validated {
                    continue;
                }
                let only = own.as_deref().filter(|_| !all);
                let sql = orphans(table, parent, foreign, &key, only, false);
                let about = if all { About::All } else { About::Own };
                questions.push(Question { relation, foreign: foreign.clone(), sql, about });
            }
        }
        Ok(questions)
    }

    /// The query of the keys of a parent table that a source has changed and that are there no more, in the order in which
    /// the foreign key names them. None: nothing of it was changed there, or the key is another one.
    fn deleted_parents(
        &self,
        at: usize,
        relations: &[i32],
        relation: i32,
        parent: &Table,
        foreign: &ForeignKey,
    ) -> Result<Option<String>, Broken> {
        if !relations.contains(&relation) || !self.changed(relation).contains(&at) {
            return Ok(None);
        }
        let key = self.key_of(relation);
        let places: Option<Vec<usize>> = foreign.to.iter().map(|c| key.iter().position(|k| k == c)).collect();
        let Some(places) = places.filter(|p| p.len() == key.len()) else { return Ok(None) };
        let Some(changed) = self.with_work(at, relation, |w, offer| w.reading().distinct(&offer.union().condition()))? else {
            return Ok(None);
        };
        let same = list(key.len(), |i| format!("p.{} {} k.k{}", quote_ident(&key[i]), parent.equal(&key[i]), i + 1), " AND ");
        let columns = list(places.len(), |i| format!("k.k{} AS k{}", places[i] + 1, i + 1), ", ");
        Ok(Some(format!("SELECT {columns} FROM ({changed}) k WHERE NOT EXISTS (SELECT FROM {} p WHERE {same})", parent.only)))
    }

    /// Takes an answer; a row that several sources have found is one orphan.
    fn take_orphans(&self, at: usize, question: &Question, rows: &Rows, found: &mut Vec<Orphan>) -> Result<(), Broken> {
        let n = self.key_of(question.relation).len();
        for row in 0..rows.len() {
            let key: Vec<String> = (0..n).map(|c| rows.text(row, c)).collect();
            let known = found.iter().position(|o| o.relation == question.relation && o.key == key);
            let place = known.unwrap_or(found.len());
            if known.is_none() {
                let image = serde_json::from_str(rows.get(row, n + 1).unwrap_or("null"))
                    .map_err(|e| Error::internal(format!("a row's image cannot be read: {e}")))?;
                found.push(Orphan {
                    relation: question.relation,
                    key,
                    key_json: rows.text(row, n),
                    image,
                    foreign: question.foreign.clone(),
                    at,
                    bereft: None,
                    authors: Vec::new(),
                });
            }
            match question.about {
                About::Own => found[place].authors.push(at),
                About::Bereft => drop(found[place].bereft.get_or_insert(at)),
                About::All => {}
            }
        }
        Ok(())
    }

    /// What becomes of an orphan.
    fn judge_orphan(&self, orphan: Orphan) -> (i32, Written, Decision) {
        let Orphan { relation, key, key_json, image, foreign, at, bereft, authors } = orphan;
        let cleared = self.cleared(relation, &foreign);
        let kept = match &image {
            Value::Object(row) if !cleared.is_empty() => {
                let mut row = row.clone();
                cleared.iter().for_each(|c| drop(row.insert(c.clone(), Value::Null)));
                Some(Value::Object(row).to_string())
            }
            _ => None,
        };
        // A source whose parent lost a clash has deleted it no more than the others: it may have written the child itself.
        let author = authors.iter().copied().find(|a| Some(*a) != bereft).or(authors.first().copied());
        let loser = author.or_else(|| bereft.and_then(|b| self.who_deleted(b, &foreign))).unwrap_or(at);
        let winner = bereft.filter(|b| *b != loser).or_else(|| self.who_deleted(loser, &foreign));
        let decision = Decision {
            relation,
            key: key_json,
            strategy: "foreign_key".into(),
            winner: winner.map(|w| self.name(w).into()),
            rows: Value::Object(Map::from_iter([(self.name(loser).to_string(), image)])).to_string(),
            made: Some(kept.clone().unwrap_or_else(|| "null".to_string())),
            cleared: cleared.to_vec(),
        };
        (relation, Written { cleared: cleared.to_vec(), unasked: true, ..Written::everywhere(key, kept) }, decision)
    }

    /// The columns that an orphan loses instead of going altogether; none: it goes, also where some member allows no null.
    fn cleared<'f>(&self, relation: i32, foreign: &'f ForeignKey) -> &'f [String] {
        let tables = || self.members.iter().filter_map(|m| m.shapes.get(&relation));
        let refused = |c: &String| tables().any(|t| t.column(c).is_some_and(|c| c.not_null));
        if foreign.cleared.iter().any(refused) { &[] } else { &foreign.cleared }
    }

    /// The source whose deletion of the parent stands: another one that has changed the parent's table.
    fn who_deleted(&self, child: usize, foreign: &ForeignKey) -> Option<usize> {
        let parent = self.members[child].shapes.iter().find(|(_, t)| t.oid == foreign.parent).map(|(r, _)| *r)?;
        let others = || self.sources().into_iter().filter(|at| *at != child);
        let changed = self.changed(parent);
        others().find(|at| changed.contains(at)).or_else(|| others().next())
    }
}

/// The rows of the table that refer to a parent that is not there: key, key and row as JSON. `only`: a query of their keys,
/// or, if `by_parent`, of their parents'.
fn orphans(table: &Table, parent: &Table, foreign: &ForeignKey, key: &[String], only: Option<&str>, by_parent: bool) -> String {
    let n = foreign.columns.len();
    let keys = list(key.len(), |i| format!("t.{}", quote_ident(&key[i])), ", ");
    let object = key_object(key, |i| format!("t.{}", quote_ident(&key[i])));
    let refers = list(n, |i| format!("t.{} IS NOT NULL", quote_ident(&foreign.columns[i])), " AND ");
    let same = list(
        n,
        |i| format!("p.{} {} t.{}", quote_ident(&foreign.to[i]), parent.equal(&foreign.to[i]), quote_ident(&foreign.columns[i])),
        " AND ",
    );
    let among = only.map_or_else(String::new, |only| {
        let on = match by_parent {
            true => list(
                n,
                |i| format!("k.k{} {} t.{}", i + 1, parent.equal(&foreign.to[i]), quote_ident(&foreign.columns[i])),
                " AND ",
            ),
            false => list(key.len(), |i| format!("t.{} {} k.k{}", quote_ident(&key[i]), table.equal(&key[i]), i + 1), " AND "),
        };
        format!("({only}) k JOIN ") + &format!("{} t ON {on}", table.only)
    });
    let from = if among.is_empty() { format!("{} t", table.only) } else { among };
    format!(
        "SELECT {keys}, {object}, pg_catalog.to_json(t.*) FROM {from} \
         WHERE {refers} AND NOT EXISTS (SELECT FROM {} p WHERE {same})",
        parent.only
    )
}
