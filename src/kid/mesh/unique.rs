//! Rows of different keys that cannot live together, because a unique index of theirs would hold the same value twice, or
//! because an exclusion constraint forbids it.
//! Looked for only when a receiver has refused such a value: what all sources are about to send is brought together on
//! one of them and compared by the indexes' own expressions. The strategy decides between the sources; the losing row is
//! removed everywhere and recorded whole.

use std::collections::{BTreeMap, HashSet};

use super::decide::{self, Choice, Circumstances, KeyChange, Strategy};
use super::settle::{Decision, Image, Settlement, Written, random, rows_json};
use super::{Broken, Mesh};
use crate::ident::quote_ident;
use crate::kid::apply::Receiver;
use crate::kid::bits;
use crate::kid::shape::{Table, UniqueIndex};
use crate::kid::statements::{Join, key_object, list};
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
            let changed = self.changed(*r).len();
            // A whole table may clash with what a single one has changed.
            let whole = |o: &super::offer::Offer| o.whole.contains_key(r) || o.copy_all != 0;
            (changed > 1 || changed > 0 && self.offers.iter().flatten().any(whole))
                && tables.flat_map(|t| &t.uniques).any(|u| u.deferred)
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
        let mut images = Vec::new();
        for one in &group {
            images.push(self.image_of(one.change.source, relation, &one.key)?);
        }
        let rows = group.iter().zip(&images).map(|(c, (_, row))| (names[c.change.source], row.clone()));
        let rows = rows_json(&rows.collect::<Vec<_>>());
        self.check()?;
        let winner = match choice {
            Choice::Abort => {
                let key = images.into_iter().find_map(|(key, _)| key).unwrap_or_default();
                return Err(self.abort(relation, key, rows)?);
            }
            Choice::Winner(winner) => Some(winner),
            Choice::Nobody => None,
        };
        for one in group.iter().filter(|one| Some(one.change.source) == winner) {
            self.note_won(&one.key.as_slice().into(), one.change.source, u64::MAX, settlement);
        }
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

    /// On a receiver, decides between the rows of a whole table that are staged there and what it has changed itself, where
    /// these clash. Nobody knows when the source has changed its row: where times decide it is a tie, and where nobody wins
    /// the whole table goes on. The staged rows that have lost are told, to be removed everywhere.
    pub(super) fn decide_whole(&mut self, to: usize, from: usize, relation: i32, stage: &str) -> Result<Vec<Written>, Broken> {
        let names: Vec<&str> = self.plan.sync.members.iter().map(|m| m.db.name.as_str()).collect();
        let mut sides = [self.members[to].index, self.members[from].index];
        sides.sort_unstable();
        let contenders = sides.map(|source| KeyChange { source, towards: u64::MAX, at: 0, held: false });
        let latest: Vec<i64> = (0..names.len()).map(|i| self.latest_of(i)).collect();
        let present = sides.iter().fold(0, |bits, source| bits | 1 << source);
        let given = Circumstances { latest: &latest, present, random: super::settle::random() };
        let text = self.strategy_of(relation);
        let choice = decide::choose(&Strategy::parse(&text, &names), &contenders, &given);
        let own = Choice::Winner(self.members[to].index);
        if choice != own && choice != Choice::Abort {
            let decisions = self.remove_clashing(to, self.members[from].index, relation, stage)?;
            self.tell_gone(to, relation, &decisions.iter().map(|d| d.key.as_str()).collect::<Vec<_>>());
            self.decisions.extend(decisions);
            return Ok(Vec::new());
        }
        let (winner, loser) = (self.name(to).to_string(), self.name(from).to_string());
        let (key, name) = (self.key_of(relation), self.relation_name(relation));
        let (mut removed, mut gone) = (Vec::new(), Vec::new());
        for (index, columns) in self.comparable(to, from, relation) {
            let Some(table) = self.members[to].shapes.get(&relation) else { continue };
            let sql = index.give_way(table, &key, &columns, stage);
            let Some(rows) = self.members[to].attempt_on(&name, |conn: &mut Conn| conn.query(&sql)) else { continue };
            for row in 0..rows.len() {
                let json = |column: usize| rows.get(row, column).map(str::to_string);
                let key_json = rows.text(row, 0);
                let images = [(loser.clone(), json(2)), (winner.clone(), json(1))];
                if choice == Choice::Abort {
                    return Err(self.abort(relation, key_json, rows_json(&images))?);
                }
                removed.push(Written::everywhere((0..key.len()).map(|c| rows.text(row, 3 + c)).collect(), None));
                self.decisions.push(Decision {
                    relation,
                    key: key_json.clone(),
                    strategy: text.as_str().into(),
                    winner: Some(winner.as_str().into()),
                    rows: rows_json(&images),
                    made: Some("null".to_string()),
                    ..Decision::default()
                });
                gone.push(key_json);
            }
        }
        self.tell_gone(from, relation, &gone.iter().map(String::as_str).collect::<Vec<_>>());
        Ok(removed)
    }

    /// The unique indexes of a member whose values a source's rows tell, with the columns that these have.
    fn comparable(&self, at: usize, from: usize, relation: i32) -> Vec<(UniqueIndex, Vec<String>)> {
        let shape = |at: usize| self.members[at].shapes.get(&relation);
        let (Some(table), Some(source)) = (shape(at), shape(from)) else { return Vec::new() };
        let key = self.key_of(relation);
        let columns: Vec<String> = source.columns.iter().filter(|c| !c.generated).map(|c| c.name.clone()).collect();
        let told = |u: &&UniqueIndex| !u.is_on(&key) && u.columns.iter().all(|c| columns.contains(c));
        table.uniques.iter().filter(told).map(|u| (u.clone(), columns.clone())).collect()
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
        let Some(place) = self.place(from) else { return Ok(decisions) };
        let (key, name) = (self.key_of(relation), self.relation_name(relation));
        for (index, columns) in self.comparable(at, place, relation) {
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

impl UniqueIndex {
    /// The rows that are staged, `s`, and those of the table, `o`, as CTEs; and those of them that clash with another key's.
    fn sides(&self, table: &Table, key: &[String], columns: &[String], stage: &str) -> (String, String) {
        let staged = list(columns.len(), |i| format!("a{} AS {}", i + 1, quote_ident(&columns[i])), ", ");
        let same = list(
            self.expressions.len(),
            |i| match self.operators.get(i) {
                Some(operator) => format!("o.e{0} {operator} s.e{0}", i + 1),
                None if self.nulls_not_distinct => {
                    format!("(o.e{0} {1} s.e{0} OR (o.e{0} IS NULL AND s.e{0} IS NULL))", i + 1, self.equal(i))
                }
                None => format!("o.e{0} {1} s.e{0}", i + 1, self.equal(i)),
            },
            " AND ",
        );
        let other = list(key.len(), |i| format!("o.k{0} {1} s.k{0}", i + 1, table.equal(&key[i])), " AND ");
        let (exprs, predicate, only) = (self.named("e"), self.predicate(), &table.only);
        let keys = list(key.len(), |i| format!("t.{} AS k{}", quote_ident(&key[i]), i + 1), ", ");
        (
            format!(
                "s AS (SELECT {keys}, pg_catalog.to_json(t.*) AS image, {exprs} FROM (SELECT {staged} FROM pg_temp.{stage} WHERE alive) t WHERE {predicate}), \
                 o AS (SELECT t.ctid AS place, t.tableoid AS part, pg_catalog.to_json(t.*) AS image, {keys}, {exprs} FROM {only} t WHERE {predicate})"
            ),
            format!("o JOIN s ON {same} WHERE NOT ({other})"),
        )
    }

    /// Deletes the rows of the table that clash with staged ones of other keys, and tells them: key and row as JSON, and
    /// the staged row.
    fn remove_clashing(&self, table: &Table, key: &[String], columns: &[String], stage: &str) -> String {
        let (sides, met) = self.sides(table, key, columns, stage);
        let object = key_object(key, |i| format!("t.{}", quote_ident(&key[i])));
        format!(
            "WITH {sides}, c AS (SELECT DISTINCT ON (o.part, o.place) o.part, o.place, s.image FROM {met}) \
             DELETE FROM {only} t USING c WHERE t.ctid = c.place AND t.tableoid = c.part \
             RETURNING {object}, pg_catalog.to_json(t.*), c.image",
            only = table.only,
        )
    }

    /// Deletes the staged rows that clash with the table's of other keys, and tells them: the key as JSON, the table's row,
    /// the staged row, and the key's columns.
    fn give_way(&self, table: &Table, key: &[String], columns: &[String], stage: &str) -> String {
        let (sides, met) = self.sides(table, key, columns, stage);
        let n = key.len();
        let keys = |of: &str| list(n, |i| format!("{of}.k{}", i + 1), ", ");
        let object = key_object(key, |i| format!("t.k{}", i + 1));
        let same = list(n, |i| format!("t.k{0} {1} c.k{0}", i + 1, table.equal(&key[i])), " AND ");
        format!(
            "WITH {sides}, c AS (SELECT DISTINCT ON ({staged}) {staged}, s.image, o.image AS own FROM {met}) \
             DELETE FROM pg_temp.{stage} t USING c WHERE {same} \
             RETURNING {object}, c.own, c.image, {}",
            keys("t"),
            staged = keys("s"),
        )
    }
}
