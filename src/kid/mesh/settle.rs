//! What becomes of contended keys: each is judged, conflicts are decided by their strategy or by a customcode, and the
//! settlement is turned into what `deliver` and `record` carry out: which source keeps which key to itself, which rows are
//! new altogether, which changes have lost for good.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::rc::Rc;

use serde_json::Value;

use super::contend::{FewRows, Key, Search};
use super::decide::{self, Choice, Circumstances, Judgement, KeyChange, Strategy};
use super::hearsay::Met;
use super::keep::add_errands;
use super::meet::PlainKey;
use super::record::{self, Stand};
pub(super) use super::written::{Noted, Written};
use super::{Broken, Errand, Mesh};
use crate::catalog::sync::Relation;
use crate::error::{Error, Result, SqlState};
use crate::guc;
use crate::ident::{quote_literal, text_array};
use crate::kid::reading::Reading;
use crate::kid::shape;

/// A decision, as `bucardo.conflict` keeps it.
#[derive(Clone, Debug, Default)]
pub(super) struct Decision {
    pub relation: i32,
    /// As JSON, like the rows.
    pub key: String,
    pub strategy: Rc<str>,
    pub winner: Option<Rc<str>>,
    pub rows: String,
    /// What is written beside the winner's change, for a run that must carry the decision on: the key's row, null if it goes.
    pub made: Option<String>,
    /// See [`Written::cleared`].
    pub cleared: Vec<String>,
}

impl Decision {
    /// The memory that it takes, roughly.
    fn size(&self) -> usize {
        size_of::<Self>() + self.key.len() + self.strategy.len() + self.rows.len() + self.made.as_ref().map_or(0, String::len)
    }
}

/// What is to be done with the contended keys of a relation.
#[derive(Clone, Debug, Default)]
pub(super) struct Settlement {
    /// Keys that a source (by place) does not send.
    pub kept: HashMap<usize, Vec<Key>>,
    /// How many contended keys a source (by place) keeps to itself.
    withheld: HashMap<usize, usize>,
    /// The sources (by place) that keep all to themselves that they have changed.
    pub silent: HashSet<usize>,
    /// Keys that go to all from a source (by place), though others have changed them; see [`Mesh::note_won`].
    pub won: HashMap<(usize, u64), Vec<Key>>,
    /// Keys whose change at a source (by place) is handled for everybody.
    pub lost: HashMap<usize, Vec<Key>>,
    /// Keys whose change at a source (by place) nobody has won.
    pub open: HashMap<usize, Vec<Key>>,
    /// Keys that a source (by place) captures once more; see [`Mesh::tell_again`].
    pub again: HashMap<usize, Vec<Noted>>,
    /// Contended keys of which something was decided, while some source has got more of another one that is away than the rest.
    pub met: Vec<Met>,
    pub written: Vec<Written>,
    /// Keys that are written as this source (by its place in the sync) has them, with the decision that says so.
    wanted: HashMap<usize, Vec<(Key, Decision)>>,
    /// Keys that nobody has won: no truncation takes their rows along.
    pub spared: Vec<Key>,
    /// Keys that are deleted on every member, before anything is sent.
    pub removed: Vec<Written>,
    pub decisions: Vec<Decision>,
}

/// A conflict with the rows of its contenders.
pub(super) struct Conflict {
    key: Key,
    changes: Vec<KeyChange>,
    pub contenders: Vec<KeyChange>,
    /// As JSON, like the rows.
    pub key_json: String,
    /// By member; None: deleted.
    pub rows: Vec<(Rc<str>, Option<String>)>,
}

impl Conflict {
    /// One contender for each row.
    pub fn heads(&self) -> impl Iterator<Item = &KeyChange> {
        self.contenders.iter().filter(|c| decide::head(&self.contenders, c.source) == c.source)
    }
}

/// Rows by member as `bucardo.conflict` keeps them. They pass through as texts: to read them would be most of a storm's work.
pub(super) fn rows_json(rows: &[(impl AsRef<str>, Option<String>)]) -> String {
    let size = |(name, row): &(_, Option<String>)| AsRef::<str>::as_ref(name).len() + row.as_ref().map_or(4, String::len) + 4;
    let mut json = String::with_capacity(2 + rows.iter().map(size).sum::<usize>());
    for (name, row) in rows {
        json.push(if json.is_empty() { '{' } else { ',' });
        json.push_str(&Value::from(name.as_ref()).to_string());
        json.push(':');
        json.push_str(row.as_deref().unwrap_or("null"));
    }
    json.push('}');
    json
}

/// A key and a row of it as JSON; None: there is none.
pub(super) type Image = (Option<String>, Option<String>);

/// Conflicts whose rows the sources are asked for.
struct Asked {
    conflicts: Vec<Conflict>,
    questions: Vec<Question>,
}

/// What one source (by place) is asked, with its parameters, and which conflicts it is about.
struct Question {
    at: usize,
    about: Vec<usize>,
    sql: String,
    params: Vec<String>,
}

/// How many contended keys are settled at first; then as many as their rows leave room for, up to the most.
const PORTION: usize = 250;
/// At first, where their rows are known to be wide.
const NARROW: usize = 4;
const MOST: usize = 2000;

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

/// A key or a row out of its JSON.
pub(super) fn parsed(json: &str) -> Result<Value> {
    serde_json::from_str(json).map_err(|e| Error::internal(format!("a row's image cannot be read: {e}")))
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

    /// Decides all contended keys of a relation, some at a time: while they are decided here, the sources fetch the rows of
    /// the next, but where codes are asked, which may use the sources themselves.
    pub(super) fn settle(&mut self, relation: i32, few: &FewRows) -> Result<Settlement, Broken> {
        let mut settlement = Settlement::default();
        // Of the rows that runs which died have left, those that somebody has changed since.
        let mut changed = HashSet::new();
        // A quarter of the memory is for rows: as texts they are here twice, and once in the answers.
        let room = guc::kid_work_mem() as usize * 1024 / 4;
        let mut portion = if self.wide.contains(&relation) { NARROW } else { PORTION };
        let codes = self.codes(relation).next().is_some();
        let mut search = self.search(relation, few)?;
        let mut asked = self.prepare(relation, &mut search, portion, &mut changed, &mut settlement)?;
        asked.iter().for_each(|asked| self.ask(asked));
        while let Some(current) = asked {
            // While the sources are at it, unless one of them must tell which keys are the next.
            let next = search.is_here().then(|| self.prepare(relation, &mut search, portion, &mut changed, &mut settlement));
            let conflicts = self.take_some(current)?;
            let bytes: usize = conflicts.iter().flat_map(|c| &c.rows).map(|(_, row)| row.as_ref().map_or(0, String::len)).sum();
            portion = match bytes {
                _ if bytes > room => (portion / 2).max(1),
                _ if bytes * 3 < room => (portion * 3).min(MOST),
                _ => portion,
            };
            self.put_away(relation, &mut settlement)?;
            asked = match next {
                Some(next) => next?,
                None => self.prepare(relation, &mut search, portion, &mut changed, &mut settlement)?,
            };
            asked.iter().filter(|_| !codes).for_each(|asked| self.ask(asked));
            let chosen =
                self.choose_all(relation, conflicts, &mut settlement).and_then(|()| self.hand_over(&mut settlement, room));
            if let Err(broken) = chosen {
                // Whatever comes of it, the answers must be fetched.
                asked.filter(|_| !codes).map(|asked| self.take_some(asked));
                return Err(broken);
            }
            asked.iter().filter(|_| codes).for_each(|asked| self.ask(asked));
        }
        self.put_away(relation, &mut settlement)?;
        self.run_errands()?;
        for (source, listed) in search.listed() {
            let place = self.place(source).filter(|at| settlement.withheld.get(at) == Some(&listed));
            settlement.silent.extend(place.filter(|at| self.settled_of(*at, relation).is_none()));
        }
        self.carried.rows_for(relation, &changed, &mut settlement);
        Ok(settlement)
    }

    /// Judges the next contended keys, and makes the questions for the contenders' rows. None: there are no more.
    fn prepare(
        &mut self,
        relation: i32,
        search: &mut Search,
        most: usize,
        changed: &mut HashSet<Vec<String>>,
        settlement: &mut Settlement,
    ) -> Result<Option<Asked>, Broken> {
        let Some(mut contended) = self.contended(search, most)? else { return Ok(None) };
        // Numbers in their own order, texts of the same length too: rows are found sooner beside each other.
        contended.sort_by(|a, b| a.key.iter().map(|k| (k.len(), k)).cmp(b.key.iter().map(|k| (k.len(), k))));
        let plain = PlainKey::of(self, relation);
        let mut conflicts = Vec::new();
        for one in contended {
            let carried = search.carried.contains(&*one.key);
            if carried {
                changed.insert(one.key.to_vec());
                self.carried.is_changed(relation, &one.key, &one.changes);
            }
            let held = |source: &usize| one.changes.iter().any(|c| c.source == *source && c.held);
            match decide::judge(&one.changes) {
                Judgement::Newest(source) => {
                    let newest = Some(self.newest_of(&one.changes, source)).filter(|s| !held(s));
                    self.keep_others(settlement, &one.key, &one.changes, newest);
                    if let Some(newest) = newest {
                        self.tell_again(&one.key, &one.changes, newest, settlement);
                        self.note_newest(&one.key, &one.changes, newest, carried, settlement);
                    }
                }
                Judgement::Conflict(sources) if sources.iter().all(held) => {
                    self.keep_others(settlement, &one.key, &one.changes, None);
                    settlement.spared.push(one.key);
                }
                Judgement::Conflict(sources) => {
                    let contenders = one.changes.iter().copied().filter(|c| sources.contains(&c.source)).collect();
                    let (key_json, rows) = (plain.as_ref().map_or_else(String::new, |p| p.json(&one.key)), Vec::new());
                    conflicts.push(Conflict { key: one.key, changes: one.changes, contenders, key_json, rows });
                }
            }
        }
        let mut questions = Vec::new();
        // Where it is not plain how the key reads, one of them tells.
        let mut told = vec![plain.is_some(); conflicts.len()];
        for at in self.sources() {
            let index = self.members[at].index;
            let about: Vec<usize> = (0..conflicts.len()).filter(|i| conflicts[*i].heads().any(|c| c.source == index)).collect();
            if !about.is_empty() {
                let keys: Vec<&[String]> = about.iter().map(|i| &*conflicts[*i].key).collect();
                let tells = about.iter().any(|i| !told[*i]);
                about.iter().for_each(|i| told[*i] = true);
                let (sql, params) = self.question(at, relation, &keys, tells)?;
                questions.push(Question { at, about, sql, params });
            }
        }
        Ok(Some(Asked { conflicts, questions }))
    }

    /// Asks all sources at the same time.
    fn ask(&mut self, asked: &Asked) {
        asked.questions.iter().for_each(|q| self.send_question(q.at, &q.sql, &q.params));
    }

    /// Takes the rows that were asked for.
    fn take_some(&mut self, asked: Asked) -> Result<Vec<Conflict>, Broken> {
        let Asked { mut conflicts, questions } = asked;
        for Question { at, about, .. } in questions {
            let name: Rc<str> = self.name(at).into();
            for (i, (key, image)) in about.into_iter().zip(self.take_rows(at)) {
                if let Some(key) = key {
                    conflicts[i].key_json = key;
                }
                conflicts[i].rows.push((name.clone(), image));
            }
        }
        self.check()?;
        Ok(conflicts)
    }

    /// Brings what was decided to the members, so that it need not be held here; not a few keys, which travel as they are.
    fn put_away(&mut self, relation: i32, settlement: &mut Settlement) -> Result<(), Broken> {
        for (winner, wanted) in std::mem::take(&mut settlement.wanted) {
            let Some(at) = self.place(winner) else { continue };
            self.ask_rows(at, relation, &wanted.iter().map(|(key, _)| &**key).collect::<Vec<_>>(), false)?;
            for ((key, mut decision), (_, row)) in wanted.into_iter().zip(self.take_rows(at)) {
                decision.made = Some(row.clone().unwrap_or_else(|| "null".to_string()));
                settlement.decisions.push(decision);
                settlement.written.push(Written::everywhere(key.to_vec(), row));
            }
            self.check()?;
        }
        if self.is_few(relation) {
            return Ok(());
        }
        self.put_won(relation, settlement)?;
        self.spare(relation, std::mem::take(&mut settlement.spared))?;
        for at in self.changed(relation) {
            if settlement.kept.contains_key(&at) {
                self.keep(at, relation, settlement)?;
            }
        }
        // Who has only truncated sends no keys.
        settlement.kept.clear();
        self.note_lost(relation, settlement);
        Ok(())
    }

    /// Takes over the decisions. They are recorded while receivers work on their tables, unless that takes too much memory.
    fn hand_over(&mut self, settlement: &mut Settlement, room: usize) -> Result<(), Broken> {
        self.decisions.append(&mut settlement.decisions);
        let many = self.decisions.iter().map(Decision::size).sum::<usize>() > room;
        if many { self.record(Stand::Part) } else { Ok(()) }
    }

    /// All sources but one keep the key to themselves.
    fn keep_others(&self, settlement: &mut Settlement, key: &Key, changes: &[KeyChange], but: Option<usize>) {
        for change in changes.iter().filter(|c| Some(c.source) != but) {
            if let Some(place) = self.place(change.source) {
                settlement.kept.entry(place).or_default().push(key.clone());
                *settlement.withheld.entry(place).or_default() += 1;
            }
        }
    }

    /// Asks a source for the rows of keys as JSON, and for the keys themselves if it `tells` them.
    pub(super) fn ask_rows(&mut self, at: usize, relation: i32, keys: &[&[String]], tells: bool) -> Result<(), Broken> {
        let (sql, params) = self.question(at, relation, keys, tells)?;
        self.send_question(at, &sql, &params);
        Ok(())
    }

    fn question(&self, at: usize, relation: i32, keys: &[&[String]], tells: bool) -> Result<Errand, Broken> {
        let sql = self.any_reading(at, relation, |reading| reading.as_json(tells))?;
        let n = keys.first().map_or(0, |k| k.len());
        Ok((sql, (0..n).map(|c| text_array(keys.iter().map(|k| k[c].as_str()).collect::<Vec<_>>())).collect()))
    }

    fn send_question(&mut self, at: usize, sql: &str, params: &[String]) {
        let errands = self.take_errands(at);
        let params: Vec<Option<&[u8]>> = params.iter().map(|p| Some(p.as_bytes())).collect();
        self.members[at].attempt(|conn| {
            conn.pipeline_begin()?;
            add_errands(conn, &errands)?;
            conn.pipeline_add(sql, &[], &params)?;
            conn.pipeline_send()
        });
    }

    pub(super) fn take_rows(&mut self, at: usize) -> Vec<Image> {
        let answers = self.members[at].attempt(|conn| conn.pipeline_collect());
        let Some(rows) = answers.as_ref().and_then(|answers| answers.last()) else { return Vec::new() };
        let text = |row: usize, column: usize| rows.get(row, column).map(str::to_string);
        let mut images = vec![Image::default(); rows.len()];
        for row in 0..rows.len() {
            let place = rows.number::<usize>(row, 0).and_then(|ord| images.get_mut(ord.wrapping_sub(1)));
            place.into_iter().for_each(|place| *place = (text(row, 1), text(row, 2)));
        }
        images
    }

    /// The SQL of a relation on a source, also where that source has not changed it.
    pub(super) fn any_reading(
        &self,
        at: usize,
        relation: i32,
        body: impl FnOnce(&Reading<'_>) -> String,
    ) -> Result<String, Broken> {
        let table = self.members[at].shapes.get(&relation).ok_or_else(|| shape::missing(&self.plan.sync, relation))?;
        Ok(body(&Reading::of(table, &self.key_of(relation), &[])))
    }

    fn choose_all(&mut self, relation: i32, conflicts: Vec<Conflict>, settlement: &mut Settlement) -> Result<(), Broken> {
        let names: Vec<&str> = self.plan.sync.members.iter().map(|m| m.db.name.as_str()).collect();
        let text: Rc<str> = self.strategy_of(relation).into();
        let strategy = Strategy::parse(&text, &names);
        let shared: Vec<Rc<str>> = names.iter().map(|name| (*name).into()).collect();
        let latest: Vec<i64> = (0..names.len()).map(|i| self.latest_of(i)).collect();
        let present = self.present_sources();
        let (gone, conflicts): (Vec<_>, Vec<_>) =
            conflicts.into_iter().partition(|c| c.rows.iter().all(|(_, row)| row.is_none()));
        for conflict in gone {
            // Deleted by all: there is nothing to decide.
            let first = conflict.contenders.first().map(|c| c.source);
            self.keep_others(settlement, &conflict.key, &conflict.changes, first);
            first.into_iter().for_each(|first| self.note_won(&conflict.key, first, u64::MAX, settlement));
            self.note_met(&conflict.key, &conflict.contenders, true, settlement);
        }
        let ruled = self.ask_codes(relation, &conflicts)?;
        for (conflict, ruled) in conflicts.into_iter().zip(ruled) {
            let given = Circumstances { latest: &latest, present, random: random() };
            let (ruling, by) = match ruled {
                Some(ruled) => ruled,
                None => match decide::choose(&strategy, &conflict.contenders, &given) {
                    Choice::Winner(winner) => (Ruling::Winner(decide::head(&conflict.contenders, winner)), text.clone()),
                    Choice::Nobody => (Ruling::Nobody, text.clone()),
                    Choice::Abort => return Err(self.abort(relation, conflict.key_json, rows_json(&conflict.rows))?),
                },
            };
            self.carry_out(relation, conflict, ruling, by, &shared, settlement)?;
        }
        Ok(())
    }

    pub(super) fn strategy_of(&self, relation: i32) -> String {
        let own = self.plan.sync.relation(relation).and_then(|r| r.conflict_strategy.clone());
        own.unwrap_or_else(|| self.plan.sync.conflict_strategy.clone())
    }

    pub(super) fn latest_of(&self, index: usize) -> i64 {
        self.place(index).and_then(|at| self.offers[at].as_ref()).map_or(i64::MIN, |o| o.latest)
    }

    /// The conflict that stops the sync is recorded at once: nobody has won it.
    pub(super) fn abort(&self, relation: i32, key: String, rows: String) -> Result<Broken, Broken> {
        let stopped = self.stopped(relation, &parsed(&key)?);
        let decision = Decision { relation, key, strategy: self.strategy_of(relation).into(), rows, ..Decision::default() };
        record::record(&self.record_of(), |r| self.relation_name(r), vec![decision], Stand::Stop)?;
        Ok(stopped)
    }

    /// The error by which a conflict stops the sync.
    fn stopped(&self, relation: i32, key: &Value) -> Broken {
        let name = self.relation_name(relation);
        let error = Error::new(
            SqlState::TRANSACTION_ROLLBACK,
            format!("conflict in {name}, key {key}: the strategy bucardo_abort stops the sync"),
        )
        .hint(format!(
            "Make the rows equal, or choose another conflict_strategy with bucardo.update_sync, then SELECT bucardo.resume({});",
            quote_literal(&self.plan.sync.name)
        ));
        Broken::Run { error, pause: true }
    }

    pub(super) fn relation_name(&self, relation: i32) -> String {
        self.plan.sync.relation(relation).map(Relation::full_name).unwrap_or_default()
    }

    fn carry_out(
        &self,
        relation: i32,
        conflict: Conflict,
        ruling: Ruling,
        strategy: Rc<str>,
        names: &[Rc<str>],
        settlement: &mut Settlement,
    ) -> Result<(), Broken> {
        let winner = if let Ruling::Winner(winner) = &ruling { Some(*winner) } else { None };
        self.keep_others(settlement, &conflict.key, &conflict.changes, winner);
        if ruling != Ruling::Nobody {
            self.note_met(&conflict.key, &conflict.contenders, winner.is_none(), settlement);
        }
        let (rows, name) = (rows_json(&conflict.rows), winner.map(|w| names[w].clone()));
        let mut decision = Decision { relation, key: conflict.key_json, strategy, winner: name, rows, ..Decision::default() };
        match ruling {
            // What all write alike has lost nowhere: whoever commits first tells the rest.
            Ruling::Row(row) => {
                self.tell_made(&conflict.key, &conflict.contenders, settlement);
                let row = row.map(|r| r.to_string());
                decision.made = Some(row.clone().unwrap_or_else(|| "null".to_string()));
                settlement.written.push(Written::everywhere(conflict.key.to_vec(), row));
            }
            Ruling::Winner(_) | Ruling::Nobody => {
                // One that has not changed the key wins, or keeps it to itself: then its row, as it is there, goes to all, and
                // the losers' changes stay pending: they bring that row to members that are away now.
                if let Some(winner) = winner.filter(|w| !conflict.changes.iter().any(|c| c.source == *w && !c.held)) {
                    self.tell_made(&conflict.key, &conflict.contenders, settlement);
                    settlement.wanted.entry(winner).or_default().push((conflict.key, decision));
                    return Ok(());
                }
                match winner {
                    Some(winner) => {
                        self.tell_again(&conflict.key, &conflict.changes, winner, settlement);
                        self.note_won(&conflict.key, winner, u64::MAX, settlement);
                    }
                    None => settlement.spared.push(conflict.key.clone()),
                }
                let lost = if winner.is_some() { &mut settlement.lost } else { &mut settlement.open };
                for change in conflict.contenders.iter().filter(|c| Some(c.source) != winner) {
                    if let Some(place) = self.place(change.source) {
                        lost.entry(place).or_default().push(conflict.key.clone());
                    }
                }
            }
        }
        settlement.decisions.push(decision);
        Ok(())
    }
}
