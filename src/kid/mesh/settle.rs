//! What becomes of contended keys: each is judged, conflicts are decided by their strategy or by a customcode, and the
//! outcome is turned into what `deliver` and `record` carry out: which source keeps which key to itself, which rows are
//! new altogether, which changes have lost for good.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};

use serde_json::{Map, Value};

use super::contend::Contended;
use super::decide::{self, Change, Choice, Circumstances, Strategy, Verdict};
use super::{Broken, Mesh};
use crate::error::{Error, Result, SqlState};
use crate::kid::gather::text_array;
use crate::kid::mesh::open::keys_json;

/// A key that is written as it is said here, on every member.
#[derive(Clone, Debug)]
pub(super) struct Written {
    pub key: Vec<String>,
    /// None: the row is deleted.
    pub row: Option<Value>,
    /// The members that need it, as bits.
    pub towards: u64,
}

impl Written {
    /// What all need.
    pub fn everywhere(key: Vec<String>, row: Option<Value>) -> Self {
        Self { key, row, towards: u64::MAX }
    }
}

/// A decision, as `bucardo.conflict` keeps it.
#[derive(Clone, Debug)]
pub(super) struct Decision {
    pub relation: i32,
    pub key: Value,
    pub strategy: String,
    pub winner: Option<String>,
    pub rows: Value,
    /// What is written beside the winner's change, for a run that must carry the decision on: the key's row, null if it goes.
    pub made: Option<Value>,
}

/// What is to be done with the contended keys of a relation.
#[derive(Clone, Debug, Default)]
pub(super) struct Outcome {
    /// Keys that a source (by place) does not send.
    pub kept: HashMap<usize, Vec<Vec<String>>>,
    /// Keys whose change at a source (by place) is handled for everybody.
    pub lost: HashMap<usize, Vec<Vec<String>>>,
    /// Keys whose change at a source (by place) nobody has won.
    pub open: HashMap<usize, Vec<Vec<String>>>,
    pub written: Vec<Written>,
    /// Keys that are deleted on every member, before anything is sent.
    pub removed: Vec<Written>,
    pub decisions: Vec<Decision>,
}

/// A conflict with the rows of its contenders.
pub(super) struct Conflict {
    key: Vec<String>,
    changes: Vec<Change>,
    pub contenders: Vec<Change>,
    pub key_json: Value,
    /// By member; null: deleted.
    pub rows: Map<String, Value>,
}

impl Conflict {
    /// One contender for each row.
    pub fn heads(&self) -> impl Iterator<Item = &Change> {
        self.contenders.iter().filter(|c| decide::head(&self.contenders, c.source) == c.source)
    }
}

/// How a conflict was decided.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Ruling {
    /// The row of this source, by its place in the sync, goes to everybody.
    Winner(usize),
    /// Every row stays as it is.
    Nobody,
    /// Another row is written everywhere; None: it is deleted everywhere.
    Row(Option<Value>),
}

/// A number that nobody can foresee.
pub(super) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

impl Mesh<'_> {
    pub(super) fn place(&self, index: usize) -> Option<usize> {
        self.members.iter().position(|m| m.index == index)
    }

    pub(super) fn member_name(&self, index: usize) -> &str {
        &self.plan.sync.members[index].db.name
    }

    /// Decides all contended keys of a relation.
    pub(super) fn settle(&mut self, relation: i32, contended: Vec<Contended>) -> Result<Outcome, Broken> {
        let mut outcome = Outcome::default();
        self.carried.rows_for(relation, &contended, &mut outcome);
        let mut conflicts = Vec::new();
        for one in contended {
            let held = |source: &usize| one.changes.iter().any(|c| c.source == *source && c.held);
            match decide::judge(&one.changes) {
                Verdict::Newest(source) => {
                    let newest = Some(source).filter(|s| !held(s));
                    self.keep_others(&mut outcome, &one.key, &one.changes, newest);
                }
                Verdict::Conflict(sources) if sources.iter().all(held) => {
                    self.keep_others(&mut outcome, &one.key, &one.changes, None);
                }
                Verdict::Conflict(sources) => {
                    let contenders = one.changes.iter().copied().filter(|c| sources.contains(&c.source)).collect();
                    let (key_json, rows) = (Value::Null, Map::new());
                    conflicts.push(Conflict { key: one.key, changes: one.changes, contenders, key_json, rows });
                }
            }
        }
        if conflicts.is_empty() {
            return Ok(outcome);
        }
        self.fetch_rows(relation, &mut conflicts)?;
        self.choose_all(relation, conflicts, &mut outcome)?;
        Ok(outcome)
    }

    /// All sources but one keep the key to themselves.
    fn keep_others(&self, outcome: &mut Outcome, key: &[String], changes: &[Change], but: Option<usize>) {
        for change in changes.iter().filter(|c| Some(c.source) != but) {
            if let Some(place) = self.place(change.source) {
                outcome.kept.entry(place).or_default().push(key.to_vec());
            }
        }
    }

    /// Fetches the contenders' rows, from all sources at the same time.
    fn fetch_rows(&mut self, relation: i32, conflicts: &mut [Conflict]) -> Result<(), Broken> {
        let mut asked: Vec<(usize, Vec<usize>)> = Vec::new();
        for at in self.sources() {
            let index = self.members[at].index;
            let mine: Vec<usize> = (0..conflicts.len()).filter(|i| conflicts[*i].heads().any(|c| c.source == index)).collect();
            if !mine.is_empty() {
                let keys: Vec<&[String]> = mine.iter().map(|i| conflicts[*i].key.as_slice()).collect();
                self.ask_rows(at, relation, &keys)?;
                asked.push((at, mine));
            }
        }
        for (at, mine) in asked {
            let name = self.name(at).to_string();
            let rows = self.take_rows(at)?;
            for (i, (key, image)) in mine.into_iter().zip(rows) {
                conflicts[i].key_json = key;
                conflicts[i].rows.insert(name.clone(), image);
            }
        }
        self.check()
    }

    /// Asks a source for the rows of keys as JSON.
    pub(super) fn ask_rows(&mut self, at: usize, relation: i32, keys: &[&[String]]) -> Result<(), Broken> {
        let sql = self.any_reading(at, relation, |reading| reading.as_json())?;
        let n = keys.first().map_or(0, |k| k.len());
        let arrays: Vec<String> = (0..n).map(|c| text_array(&keys.iter().map(|k| k[c].as_str()).collect::<Vec<_>>())).collect();
        let params: Vec<Option<&[u8]>> = arrays.iter().map(|a| Some(a.as_bytes())).collect();
        self.members[at].attempt(|conn| {
            conn.pipeline_begin()?;
            conn.pipeline_add(&sql, &[], &params)?;
            conn.pipeline_send()
        });
        Ok(())
    }

    pub(super) fn take_rows(&mut self, at: usize) -> Result<Vec<(Value, Value)>, Broken> {
        let Some(answers) = self.members[at].attempt(|conn| conn.pipeline_collect()) else { return Ok(Vec::new()) };
        let Some(rows) = answers.first() else { return Ok(Vec::new()) };
        let json = |row: usize, column: usize| match rows.get(row, column) {
            None => Ok(Value::Null),
            Some(text) => serde_json::from_str(text).map_err(|e| Error::internal(format!("a row's image cannot be read: {e}"))),
        };
        (0..rows.len()).map(|row| Ok((json(row, 1)?, json(row, 2)?))).collect::<Result<_>>().map_err(Broken::from)
    }

    /// The SQL of a relation on a source, also where that source has not changed it.
    fn any_reading(
        &self,
        at: usize,
        relation: i32,
        body: impl FnOnce(&crate::kid::reading::Reading<'_>) -> String,
    ) -> Result<String, Broken> {
        let table =
            self.members[at].shapes.get(&relation).ok_or_else(|| crate::kid::shape::missing(&self.plan.sync, relation))?;
        let key = self.key_of(relation);
        let reading = crate::kid::reading::Reading {
            source: table,
            key: &key,
            slots: &[],
            columns: &[],
            segments: &[],
            batched: false,
            fitting: None,
            news: "",
            excluded: None,
            noted: false,
        };
        Ok(body(&reading))
    }

    fn choose_all(&mut self, relation: i32, conflicts: Vec<Conflict>, outcome: &mut Outcome) -> Result<(), Broken> {
        let names: Vec<&str> = self.plan.sync.members.iter().map(|m| m.db.name.as_str()).collect();
        let text = self.strategy_of(relation);
        let strategy = Strategy::parse(&text, &names);
        let latest: Vec<i64> = (0..names.len()).map(|i| self.latest_of(i)).collect();
        let present = self.sources().iter().fold(0, |bits, at| bits | self.members[*at].bit());
        let (gone, conflicts): (Vec<_>, Vec<_>) = conflicts.into_iter().partition(|c| c.rows.values().all(Value::is_null));
        for conflict in gone {
            // Deleted by all: there is nothing to decide.
            let first = conflict.contenders.first().map(|c| c.source);
            self.keep_others(outcome, &conflict.key, &conflict.changes, first);
        }
        let ruled = self.ask_codes(relation, &conflicts)?;
        for (conflict, ruled) in conflicts.into_iter().zip(ruled) {
            let given = Circumstances { latest: &latest, present, random: random() };
            let (ruling, by) = match ruled {
                Some(ruled) => ruled,
                None => match decide::choose(&strategy, &conflict.contenders, &given) {
                    Choice::Winner(winner) => (Ruling::Winner(decide::head(&conflict.contenders, winner)), text.clone()),
                    Choice::Nobody => (Ruling::Nobody, text.clone()),
                    Choice::Abort => return Err(self.abort(relation, conflict)?),
                },
            };
            self.carry_out(relation, conflict, ruling, by, outcome)?;
        }
        Ok(())
    }

    pub(super) fn strategy_of(&self, relation: i32) -> String {
        let own = self.plan.sync.relations.iter().find(|r| r.id == relation).and_then(|r| r.conflict_strategy.clone());
        own.unwrap_or_else(|| self.plan.sync.conflict_strategy.clone())
    }

    pub(super) fn latest_of(&self, index: usize) -> i64 {
        self.place(index).and_then(|at| self.offers[at].as_ref()).map_or(i64::MIN, |o| o.latest)
    }

    /// The conflict that stops the sync is recorded at once: nobody has won it.
    fn abort(&self, relation: i32, conflict: Conflict) -> Result<Broken, Broken> {
        let stopped = self.stopped(relation, &conflict.key_json);
        let strategy = self.strategy_of(relation);
        let rows = Value::Object(conflict.rows);
        let decision = Decision { relation, key: conflict.key_json, strategy, winner: None, rows, made: None };
        super::record::record(self.run, &self.plan.sync.name, |r| self.relation_name(r), &[decision], None)?;
        Ok(stopped)
    }

    /// The error by which a conflict stops the sync.
    pub(super) fn stopped(&self, relation: i32, key: &Value) -> Broken {
        let name = self.relation_name(relation);
        let error = Error::new(
            SqlState(*b"40000"),
            format!("conflict in {name}, key {key}: the strategy bucardo_abort stops the sync"),
        )
        .hint(format!(
            "Make the rows equal, or choose another conflict_strategy with bucardo.update_sync, then SELECT bucardo.resume({});",
            crate::ident::quote_literal(&self.plan.sync.name)
        ));
        Broken::Run { error, pause: true }
    }

    pub(super) fn relation_name(&self, relation: i32) -> String {
        let found = self.plan.sync.relations.iter().find(|r| r.id == relation);
        found.map_or_else(String::new, |r| format!("{}.{}", r.schema, r.name))
    }

    fn carry_out(
        &mut self,
        relation: i32,
        conflict: Conflict,
        ruling: Ruling,
        strategy: String,
        outcome: &mut Outcome,
    ) -> Result<(), Broken> {
        let winner = if let Ruling::Winner(winner) = &ruling { Some(*winner) } else { None };
        let mut made = None;
        self.keep_others(outcome, &conflict.key, &conflict.changes, winner);
        match ruling {
            // What all write alike has lost nowhere: whoever commits first tells the rest.
            Ruling::Row(row) => made = Some(row),
            Ruling::Winner(_) | Ruling::Nobody => {
                // One that has not changed the key wins, or keeps it to itself: then its row, as it is there, goes to all.
                if let Some(winner) = winner.filter(|w| !conflict.changes.iter().any(|c| c.source == *w && !c.held)) {
                    made = Some(Some(self.image_of(winner, relation, &conflict.key)?.1).filter(|row| !row.is_null()));
                }
                let lost = if winner.is_some() { &mut outcome.lost } else { &mut outcome.open };
                // Else the losers' changes stay pending, and bring that row to members that are away now.
                for change in conflict.contenders.iter().filter(|c| made.is_none() && Some(c.source) != winner) {
                    if let Some(place) = self.place(change.source) {
                        lost.entry(place).or_default().push(conflict.key.clone());
                    }
                }
            }
        }
        outcome.decisions.push(Decision {
            relation,
            key: conflict.key_json,
            strategy,
            winner: winner.map(|w| self.member_name(w).to_string()),
            rows: Value::Object(conflict.rows),
            made: made.clone().map(|row| row.unwrap_or(Value::Null)),
        });
        outcome.written.extend(made.map(|row| Written::everywhere(conflict.key, row)));
        Ok(())
    }

    /// A table of the changes of a relation that are handled already, on the source that has some.
    pub(super) fn settled_table(&mut self, at: usize, relation: i32) -> Result<Option<String>, Broken> {
        let Some(settled) = self.settled_of(at, relation).cloned() else { return Ok(None) };
        let name = format!("bucardo_settled_{relation}");
        let Some(columns) = self.with_work(at, relation, |w, _| w.reading().key_columns())? else { return Ok(None) };
        let n = self.offers[at].as_ref().and_then(|o| o.change(relation)).map_or(0, |c| c.key.len());
        let create = format!(
            "CREATE TEMP TABLE IF NOT EXISTS {name} ON COMMIT DROP AS SELECT {columns}, 0::pg_catalog.int8 AS ended, \
             '{{}}'::pg_catalog.int8[] AS running, 0::pg_catalog.int8 AS open FROM {} t WITH NO DATA; TRUNCATE pg_temp.{name}",
            self.members[at].shapes.get(&relation).map_or("", |t| t.only.as_str())
        );
        self.members[at].attempt(|conn| conn.query(&create));
        for entry in settled {
            let open = (entry.open as i64).to_string();
            let more = [entry.snapshot.xmax.as_str(), entry.snapshot.xip.as_str(), open.as_str()];
            self.insert_keys(at, relation, &name, n, &entry.keys, &more)?;
        }
        Ok(Some(format!("pg_temp.{name}")))
    }

    /// Puts keys, given as texts, into a temporary table, each with the same further values.
    pub(super) fn insert_keys(
        &mut self,
        at: usize,
        relation: i32,
        table: &str,
        n: usize,
        keys: &[Vec<String>],
        more: &[&str],
    ) -> Result<(), Broken> {
        let casts = self.any_reading(at, relation, |r| r.typed_keys(more.len()))?;
        let sql = format!("INSERT INTO pg_temp.{table} {casts}");
        let arrays: Vec<String> = (0..n).map(|c| text_array(&keys.iter().map(|k| k[c].as_str()).collect::<Vec<_>>())).collect();
        let params: Vec<Option<&str>> = arrays.iter().map(String::as_str).chain(more.iter().copied()).map(Some).collect();
        self.members[at].attempt(|conn| conn.query_params(&sql, &params));
        Ok(())
    }

    /// On a source, the table of the keys of a relation that it keeps to itself; None: it keeps none.
    pub(super) fn kept_table(
        &mut self,
        at: usize,
        relation: i32,
        tag: &str,
        outcome: &Outcome,
    ) -> Result<Option<String>, Broken> {
        let kept = outcome.kept.get(&at);
        let settled = self.settled_table(at, relation)?;
        if kept.is_none() && settled.is_none() {
            return Ok(None);
        }
        let name = format!("bucardo_kept_{relation}{tag}");
        let Some(columns) = self.with_work(at, relation, |w, _| w.reading().key_columns())? else { return Ok(None) };
        let n = self.offers[at].as_ref().and_then(|o| o.change(relation)).map_or(0, |c| c.key.len());
        let create = format!(
            "CREATE TEMP TABLE {name} ON COMMIT DROP AS SELECT {columns} FROM {} t WITH NO DATA",
            self.members[at].shapes.get(&relation).map_or("", |t| t.only.as_str())
        );
        self.members[at].attempt(|conn| conn.query(&create));
        if let Some(kept) = kept {
            self.insert_keys(at, relation, &name, n, kept, &[])?;
        }
        if let Some(settled) = settled {
            // Settled, and not changed since.
            let sql = self.with_work(at, relation, |w, offer| {
                let reading = w.reading();
                let again = reading.changes(&offer.union(), "d.at", "0::pg_catalog.int8", Some(&settled));
                format!(
                    "INSERT INTO pg_temp.{name} SELECT {} FROM {settled} s WHERE NOT EXISTS (SELECT FROM ({again}) d WHERE {})",
                    reading.keys("s."),
                    reading.same("d.", "s.")
                )
            })?;
            self.members[at].attempt(|conn| conn.query(&sql.unwrap_or_default()));
        }
        Ok(Some(format!("pg_temp.{name}")))
    }

    /// Notes at the sources, in the run's own transaction, which of their changes have lost for good, and which nobody has
    /// won: these still contend with what sources have changed that are away now.
    pub(super) fn note_lost(&mut self, relation: i32, outcome: &Outcome) -> Result<(), Broken> {
        let is_here = |name: &str| self.members.iter().any(|m| self.member_name(m.index) == name);
        let away: Vec<&str> = self.plan.sync.sources().map(|s| s.db.name.as_str()).filter(|name| !is_here(name)).collect();
        let away = text_array(&away);
        for (keys, open) in [(&outcome.lost, "{}"), (&outcome.open, away.as_str())] {
            for (at, keys) in keys {
                let Some(snapshot) = self.offers[*at].as_ref().map(|o| o.snapshot.clone()) else { continue };
                self.note_settled(*at, relation, &snapshot, keys, open);
            }
        }
        self.check()
    }

    /// Notes at a source that its changes of these keys, as far as that snapshot has seen them, are settled.
    pub(super) fn note_settled(&mut self, at: usize, relation: i32, snapshot: &str, keys: &[Vec<String>], open: &str) {
        let sql = "INSERT INTO bucardo.capture_settled (control, sync, relid, snapshot, keys, open) \
            VALUES ($1, $2, $3::pg_catalog.oid, $4, $5::pg_catalog.jsonb, $6::pg_catalog.text[])";
        let Some(oid) = self.members[at].shapes.get(&relation).map(|t| t.oid.to_string()) else { return };
        let (sync, keys) = (self.plan.sync.capture_name(), keys_json(keys));
        let params = [self.plan.control.as_str(), &sync, &oid, snapshot, &keys, open].map(Some);
        self.members[at].attempt(|conn| conn.query_params(sql, &params));
    }
}
