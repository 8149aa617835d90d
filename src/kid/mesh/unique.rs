//! Rows of different keys that cannot live together, because a unique index of theirs would hold the same value twice, or
//! because an exclusion constraint forbids it.
//! Looked for only when a receiver has refused such a value: what all sources are about to send is brought together on
//! one of them and compared by the indexes' own expressions. The strategy decides between the sources; the losing row is
//! removed everywhere and recorded whole.

use std::collections::{BTreeMap, HashSet};

use serde_json::Value;

use super::decide::{self, Choice, Circumstances, KeyChange, Strategy};
use super::settle::{Decision, Image, Settlement, Written, random, rows_json};
use super::{Broken, Mesh};
use crate::kid::apply::Receiver;
use crate::kid::bits;
use crate::kid::shape::{Table, UniqueIndex};
use crate::kid::statements::Join;
use crate::kid::stream::stream;
use crate::libpq::{Conn, Rows};

/// The rows that have lost: source and key.
type Doomed = HashSet<(usize, Vec<String>)>;

/// A row that takes part in a clash.
struct Clashing {
    key: Vec<String>,
    /// The source, and when it changed the row.
    change: KeyChange,
}

impl Mesh<'_> {
    /// Finds the clashes between rows that sources are about to send, and adds to the settlement what becomes of them.
    pub(super) fn decide_clashes(&mut self, relation: i32, settlement: &mut Settlement) -> Result<(), Broken> {
        let sources = self.changed(relation);
        let Some(hub) = sources.first().copied().filter(|_| sources.len() > 1) else { return Ok(()) };
        let Some(table) = self.members[hub].shapes.get(&relation).cloned() else { return Ok(()) };
        let key = self.key_of(relation);
        let mut indexes: Vec<UniqueIndex> = Vec::new();
        // One that a single member has must hold there too.
        for index in self.members.iter().filter_map(|m| m.shapes.get(&relation)).flat_map(|t| &t.uniques) {
            // An exclusion constraint may need operators that only who has it has, and a collation is not everywhere.
            let here = match index.method {
                _ if index.has_collations() => table.uniques.contains(index),
                Some(_) => table.uniques.contains(index),
                None => index.columns.iter().all(|c| table.column(c).is_some()),
            };
            if here && !index.is_on(&key) && !indexes.contains(index) {
                indexes.push(index.clone());
            }
        }
        if indexes.is_empty() {
            return Ok(());
        }
        let name = format!("bucardo_rows_{relation}");
        let (source, time) = (table.free_name("bucardo_source"), table.free_name("bucardo_time"));
        self.bring_together(relation, hub, &name, (&source, &time), settlement)?;
        let mut doomed = Doomed::new();
        for index in &indexes {
            let sql = index.clashes(&name, &key, &source, &time);
            let Some(rows) = self.members[hub].attempt(|conn| conn.query(&sql)) else { break };
            self.choose_rows(relation, &key, &rows, &mut doomed, settlement)?;
        }
        self.check()
    }

    /// Whether clashes must be looked for before any is refused, because a deferred index refuses none.
    pub(super) fn must_look(&self, relations: &[i32]) -> bool {
        let deferred = |r: &i32| {
            let tables = self.members.iter().filter_map(|m| m.shapes.get(r));
            self.changed(*r).len() > 1 && tables.flat_map(|t| &t.uniques).any(|u| u.deferred)
        };
        relations.iter().any(deferred)
    }

    /// Copies the rows that every source is about to send into a table of one of them, with source and time of each.
    fn bring_together(
        &mut self,
        relation: i32,
        hub: usize,
        name: &str,
        (source, time): (&str, &str),
        settlement: &mut Settlement,
    ) -> Result<(), Broken> {
        let only = self.members[hub].shapes.get(&relation).map_or_else(String::new, |t| t.name.clone());
        let create = format!(
            "CREATE TEMP TABLE {name} (LIKE {only} INCLUDING GENERATED, {source} pg_catalog.int4, {time} pg_catalog.int8) ON COMMIT DROP"
        );
        self.members[hub].attempt(|conn| conn.query(&create));
        for at in self.changed(relation) {
            let kept = self.kept_table(at, relation, settlement)?;
            let index = self.members[at].index;
            let sql = self.with_work(at, relation, |work, offer| {
                let reading = work.reading();
                let keys = reading.changes(&offer.union(), offer.time(), &offer.towards(), None);
                let left_out = kept.as_ref().map_or_else(String::new, |kept| {
                    format!(" AND NOT EXISTS (SELECT FROM {kept} x WHERE {})", reading.same("k.", "x."))
                });
                (reading.rows_of(&keys, &left_out, &format!("{index}, k.time")), reading.column_list())
            })?;
            let Some((select, columns)) = sql else { continue };
            let place = format!("pg_temp.{name} ({columns}, {source}, {time})");
            let free = Join::Free.settings();
            if at == hub {
                self.members[hub].attempt(|conn| conn.query(&format!("{free}INSERT INTO {place} {select}")));
                continue;
            }
            self.check()?;
            let mut from = self.members.remove(at);
            let to = hub - usize::from(at < hub);
            let into = |_: &Receiver| format!("COPY {place} FROM STDIN");
            let out = format!("{free}COPY ({select}) TO STDOUT");
            let copied = stream(&mut from.session.conn, &out, &mut self.members[to..=to], "rows", into);
            from.attempt(|_| copied);
            self.members.insert(at, from);
        }
        self.check()
    }

    /// Decides the clashes of one index: rows with the number of their group.
    fn choose_rows(
        &mut self,
        relation: i32,
        key: &[String],
        rows: &Rows,
        doomed: &mut Doomed,
        settlement: &mut Settlement,
    ) -> Result<(), Broken> {
        let mut groups: BTreeMap<i64, Vec<Clashing>> = BTreeMap::new();
        let n = key.len();
        for row in 0..rows.len() {
            let source: usize = rows.number(row, n).unwrap_or_default();
            let one = Clashing {
                key: (0..n).map(|c| rows.text(row, c)).collect(),
                change: KeyChange { source, towards: u64::MAX, at: rows.number(row, n + 1).unwrap_or(i64::MIN), held: false },
            };
            groups.entry(rows.number(row, n + 2).unwrap_or_default()).or_default().push(one);
        }
        for mut group in groups.into_values() {
            // Rows that have lost already, maybe in another group, are in nobody's way.
            group.retain(|one| !doomed.contains(&(one.change.source, one.key.clone())));
            if group.len() > 1 {
                group.sort_by_key(|c| c.change.source);
                self.choose_row(relation, group, doomed, settlement)?;
            }
        }
        Ok(())
    }

    fn choose_row(
        &mut self,
        relation: i32,
        group: Vec<Clashing>,
        doomed: &mut Doomed,
        settlement: &mut Settlement,
    ) -> Result<(), Broken> {
        let names: Vec<String> = self.plan.sync.members.iter().map(|m| m.db.name.clone()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let text = self.strategy_of(relation);
        let latest: Vec<i64> = (0..names.len()).map(|i| self.latest_of(i)).collect();
        let contenders: Vec<KeyChange> = group.iter().map(|c| c.change).collect();
        let present = bits::of(contenders.iter().map(|c| c.source));
        let given = Circumstances { latest: &latest, present, random: random() };
        let choice = decide::choose(&Strategy::parse(&text, &names), &contenders, &given);
        let winner = match choice {
            Choice::Abort => {
                let shown = Value::from(group[0].key.clone());
                return Err(self.stopped(relation, &shown));
            }
            Choice::Winner(winner) => Some(winner),
            Choice::Nobody => None,
        };
        let mut images = Vec::new();
        for one in &group {
            images.push(self.image_of(one.change.source, relation, &one.key)?);
        }
        let rows = group.iter().zip(&images).map(|(c, (_, row))| (names[c.change.source], row.clone()));
        let rows = rows_json(&rows.collect::<Vec<_>>());
        for (one, (key_json, _)) in group.into_iter().zip(images).filter(|(c, _)| Some(c.change.source) != winner) {
            let Some(place) = self.place(one.change.source) else { continue };
            settlement.kept.entry(place).or_default().push(one.key.as_slice().into());
            // Where nobody wins each row stays where it is, and goes nowhere.
            if winner.is_some() {
                settlement.removed.push(Written::everywhere(one.key.clone(), None));
                // For who is away: the loser's change, which stays pending, brings the removal only where it was not served.
                self.tell_removed(&one.key, &one.change, settlement);
            }
            if winner.is_none() {
                settlement.open.entry(place).or_default().push(one.key.as_slice().into());
            }
            settlement.decisions.push(Decision {
                relation,
                key: key_json.unwrap_or_default(),
                strategy: text.as_str().into(),
                winner: winner.map(|w| names[w].into()),
                rows: rows.clone(),
                made: winner.map(|_| "null".to_string()),
                ..Decision::default()
            });
            doomed.insert((one.change.source, one.key));
        }
        Ok(())
    }

    /// A row of a source as JSON, with its key.
    pub(super) fn image_of(&mut self, index: usize, relation: i32, key: &[String]) -> Result<Image, Broken> {
        let Some(at) = self.place(index) else { return Ok((None, None)) };
        self.ask_rows(at, relation, &[key], true)?;
        Ok(self.take_rows(at).into_iter().next().unwrap_or_default())
    }

    /// On a receiver, removes the rows that nobody sends and that clash with what a source has staged there. They are
    /// recorded: only that member had them.
    pub(super) fn remove_clashing(
        &mut self,
        at: usize,
        from: usize,
        relation: i32,
        stage: &str,
    ) -> Result<Vec<Decision>, Broken> {
        let mut decisions = Vec::new();
        let (winner, loser) = (self.member_name(from).to_string(), self.name(at).to_string());
        let Some(table) = self.members[at].shapes.get(&relation).cloned() else { return Ok(decisions) };
        let key = self.key_of(relation);
        let Some(columns) = self.place(from).and_then(|place| self.members[place].shapes.get(&relation).map(Table::travelling))
        else {
            return Ok(decisions);
        };
        let name = self.relation_name(relation);
        for index in table.uniques.iter().filter(|u| !u.is_on(&key) && u.columns.iter().all(|c| columns.contains(c))) {
            let sql = index.remove_clashing(&table, &key, &columns, stage);
            let Some(rows) = self.members[at].attempt_on(&name, |conn: &mut Conn| conn.query(&sql)) else { continue };
            self.note_removed(at, relation, &(0..rows.len()).filter_map(|row| rows.get(row, 0)).collect::<Vec<_>>());
            for row in 0..rows.len() {
                let json = |column: usize| rows.get(row, column).map(str::to_string);
                let images = [(winner.clone(), json(2)), (loser.clone(), json(1))];
                self.members[at].counts.deletes += 1;
                decisions.push(Decision {
                    relation,
                    key: json(0).unwrap_or_default(),
                    strategy: self.strategy_of(relation).into(),
                    winner: Some(winner.as_str().into()),
                    rows: rows_json(&images),
                    made: Some("null".to_string()),
                    ..Decision::default()
                });
            }
        }
        Ok(decisions)
    }
}
