//! What is noted at the sources while conflicts are decided, in tables of theirs: which keys a source keeps to itself, and
//! which of its changes are settled.

use std::collections::HashMap;

use super::contend::Key;
use super::offer::Settled;
use super::open::keys_json;
use super::settle::Settlement;
use super::{Broken, Errand, Mesh};
use crate::error::Error;
use crate::ident::text_array;
use crate::kid::statements::list;
use crate::libpq::Conn;

/// From so many settled keys on they are looked up by an index, once for each change.
const INDEXED: usize = 100;

/// The tables of the keys that sources keep to themselves, by the source's place and the relation.
pub(super) type Kept = HashMap<(usize, i32), String>;

impl Mesh<'_> {
    /// A table of the changes of a relation that are handled already, on the source that has some.
    pub(super) fn settled_table(&mut self, at: usize, relation: i32) -> Result<Option<String>, Broken> {
        if self.offers[at].as_ref().is_none_or(|o| o.change(relation).is_none()) {
            return Ok(None);
        }
        let (present, sources) = (self.present(), self.present_sources());
        // Who is away contends with nobody now; nor for what is not sent, because somebody here has got more.
        let open = |entry: &Settled| match entry {
            Settled { older: true, .. } => entry.open & sources,
            Settled { known: true, heard: false, .. } => entry.open,
            _ => entry.open & present,
        };
        self.table_of_settled(at, relation, open)
    }

    /// The same, each with what `open` says of it.
    pub(super) fn table_of_settled(
        &mut self,
        at: usize,
        relation: i32,
        open: impl Fn(&Settled) -> u64,
    ) -> Result<Option<String>, Broken> {
        let Some(settled) = self.settled_of(at, relation).cloned() else { return Ok(None) };
        let name = format!("bucardo_settled_{relation}");
        let columns = self.any_reading(at, relation, |r| r.key_columns())?;
        let n = self.key_of(relation).len();
        let create = format!(
            "CREATE TEMP TABLE IF NOT EXISTS {name} ON COMMIT DROP AS SELECT {columns}, 0::pg_catalog.int8 AS ended, \
             '{{}}'::pg_catalog.int8[] AS running, 0::pg_catalog.int8 AS open, true AS known FROM {} t WITH NO DATA; TRUNCATE pg_temp.{name}",
            self.members[at].shapes.get(&relation).map_or("", |t| t.only.as_str())
        );
        self.members[at].attempt(|conn| conn.query(&create));
        let mut many = false;
        for entry in settled {
            let open = (open(&entry) as i64).to_string();
            let known = if entry.known { "t" } else { "f" };
            let more = [entry.snapshot.xmax.as_str(), entry.snapshot.xip.as_str(), open.as_str(), known];
            // Those of another key than the table has now mean nothing any more.
            let keys: Vec<&Vec<String>> = entry.keys.iter().filter(|k| k.len() == n).collect();
            many |= keys.len() > INDEXED;
            self.insert_keys(at, relation, &name, n, &keys, &more)?;
        }
        if many {
            let keys = list(n, |i| format!("k{}", i + 1), ", ");
            self.errand(at, format!("CREATE INDEX IF NOT EXISTS {name}_keys ON pg_temp.{name} ({keys})"), Vec::new());
        }
        self.run_errands()?;
        Ok(Some(format!("pg_temp.{name}")))
    }

    /// Has a statement sent to a member with the next question, or by [`Mesh::run_errands`].
    pub(super) fn errand(&mut self, at: usize, sql: String, params: Vec<String>) {
        self.errands.entry(self.members[at].index).or_default().push((sql, params));
    }

    /// The statements that wait for a member.
    pub(super) fn take_errands(&mut self, at: usize) -> Vec<Errand> {
        self.errands.remove(&self.members[at].index).unwrap_or_default()
    }

    /// Sends what waits, to all members at the same time, and waits for it.
    pub(super) fn run_errands(&mut self) -> Result<(), Broken> {
        let mut asked = Vec::new();
        for at in 0..self.members.len() {
            let errands = self.take_errands(at);
            if !errands.is_empty() {
                self.members[at].attempt(|conn| {
                    conn.pipeline_begin()?;
                    add_errands(conn, &errands)?;
                    conn.pipeline_send()
                });
                asked.push(at);
            }
        }
        for at in asked {
            self.members[at].attempt(Conn::pipeline_collect);
        }
        self.check()
    }

    /// Makes a table of keys of a relation on a member, with further columns (`more` begins with a comma), with the next question.
    pub(super) fn create_keys(&mut self, at: usize, relation: i32, name: &str, more: &str) -> Result<(), Broken> {
        let columns = self.any_reading(at, relation, |r| r.key_columns())?;
        let only = self.members[at].shapes.get(&relation).map_or("", |t| t.only.as_str());
        self.errand(
            at,
            format!("CREATE TEMP TABLE {name} ON COMMIT DROP AS SELECT {columns}{more} FROM {only} t WITH NO DATA"),
            Vec::new(),
        );
        Ok(())
    }

    /// Has keys, given as texts, put into a temporary table, each with the same further values.
    pub(super) fn insert_keys(
        &mut self,
        at: usize,
        relation: i32,
        table: &str,
        n: usize,
        keys: &[impl AsRef<[String]>],
        more: &[&str],
    ) -> Result<(), Broken> {
        let casts = self.any_reading(at, relation, |r| r.typed_keys(more.len()))?;
        let sql = format!("INSERT INTO pg_temp.{table} {casts}");
        let arrays: Vec<String> =
            (0..n).map(|c| text_array(keys.iter().map(|k| k.as_ref()[c].as_str()).collect::<Vec<_>>())).collect();
        let params = arrays.into_iter().chain(more.iter().map(ToString::to_string)).collect();
        self.errand(at, sql, params);
        Ok(())
    }

    /// On a source, the table of the keys of a relation that it keeps to itself, with those of the settlement, which are not
    /// held any longer; None: it keeps none.
    pub(super) fn kept_table(&mut self, at: usize, relation: i32, settlement: &mut Settlement) -> Result<Option<String>, Broken> {
        let table = self.keep(at, relation, settlement)?;
        self.run_errands()?;
        Ok(table)
    }

    /// The same with the keys still on their way.
    pub(super) fn keep(&mut self, at: usize, relation: i32, settlement: &mut Settlement) -> Result<Option<String>, Broken> {
        let kept = settlement.kept.remove(&at).unwrap_or_default();
        let name = format!("bucardo_kept_{relation}");
        let Some(columns) = self.with_work(at, relation, |w, _| w.reading().key_columns())? else { return Ok(None) };
        if !self.kept.contains(&(at, relation)) {
            let (present, sources) = (self.present(), self.present_sources());
            // Nothing is sent for who is away.
            let towards = |entry: &Settled| entry.open & if entry.older { sources } else { present };
            let settled = self.table_of_settled(at, relation, towards)?;
            if kept.is_empty() && settled.is_none() {
                return Ok(None);
            }
            let create = format!(
                "CREATE TEMP TABLE {name} ON COMMIT DROP AS SELECT {columns} FROM {} t WITH NO DATA",
                self.members[at].shapes.get(&relation).map_or("", |t| t.only.as_str())
            );
            self.members[at].attempt(|conn| conn.query(&create));
            self.kept.insert((at, relation));
            if let Some(settled) = settled {
                // Settled, and not changed since; of what some know only what nobody else waits for.
                let sql = self.with_work(at, relation, |w, offer| {
                    let reading = w.reading();
                    let again = reading.changes(&offer.union(), "d.at", &offer.towards(), Some(&settled));
                    format!(
                        "INSERT INTO pg_temp.{name} SELECT {} FROM {settled} s WHERE NOT EXISTS (SELECT FROM ({again}) d WHERE {} AND NOT d.held)",
                        reading.keys("s."),
                        reading.same("d.", "s.")
                    )
                })?;
                self.members[at].attempt(|conn| conn.query(&sql.unwrap_or_default()));
            }
        }
        if let Some(n) = kept.first().map(|k| k.len()) {
            self.insert_keys(at, relation, &name, n, &kept, &[])?;
        }
        Ok(Some(format!("pg_temp.{name}")))
    }

    /// Has keys put on every member that a truncation must leave there.
    pub(super) fn spare(&mut self, relation: i32, keys: Vec<Key>) -> Result<(), Broken> {
        let truncated = self.offers.iter().flatten().any(|o| o.truncated.contains_key(&relation));
        let Some(n) = keys.first().map(|k| k.len()).filter(|_| truncated) else { return Ok(()) };
        let name = format!("bucardo_spared_{relation}");
        let fresh = self.spared.insert(relation);
        for at in 0..self.members.len() {
            if fresh {
                self.create_keys(at, relation, &name, "")?;
            }
            self.insert_keys(at, relation, &name, n, &keys, &[])?;
        }
        Ok(())
    }

    /// The keys that a truncation leaves on a member: its own, as [`Mesh::own_keys`] says, and those that are spared.
    pub(super) fn surviving(&self, at: usize, relation: i32, own: Option<String>) -> Result<Option<String>, Broken> {
        if !self.spared.contains(&relation) {
            return Ok(own);
        }
        let keys = self.any_reading(at, relation, |r| r.keys(""))?;
        let spared = format!("SELECT {keys} FROM pg_temp.bucardo_spared_{relation}");
        Ok(Some(own.map_or_else(|| spared.clone(), |own| format!("{own} UNION ALL {spared}"))))
    }

    /// Notes at the sources, in the run's own transaction, which of their changes have lost for good, and which nobody has
    /// won: these still contend with what sources have changed that are away now; and what must be told again. It is on its
    /// way afterwards. That nobody has won is told by the source's own name among those that are away.
    pub(super) fn note_lost(&mut self, relation: i32, settlement: &mut Settlement) {
        self.note_heard_of(relation, settlement);
        settlement.again.drain().for_each(|(at, keys)| self.note_again(at, relation, &keys));
        let is_here = |name: &str| self.members.iter().any(|m| self.member_name(m.index) == name);
        let sources = self.plan.sync.sources().map(|s| s.db.name.clone());
        let away: Vec<String> = sources.filter(|name| !is_here(name)).collect();
        for (keys, is_open) in [(&mut settlement.lost, false), (&mut settlement.open, true)] {
            for (at, keys) in keys.drain() {
                let Some(snapshot) = self.offers[at].as_ref().map(|o| o.snapshot.clone()) else { continue };
                let all = away.iter().map(String::as_str).chain([self.name(at)]).filter(|_| is_open);
                let open = text_array(all.collect::<Vec<_>>());
                self.note_settled(at, relation, &snapshot, &keys, &open);
            }
        }
    }

    /// Has it noted at a source that its changes of these keys, as far as that snapshot has seen them, are settled.
    pub(super) fn note_settled(&mut self, at: usize, relation: i32, snapshot: &str, keys: &[impl AsRef<[String]>], open: &str) {
        let sql = "INSERT INTO bucardo.capture_settled (control, sync, relid, snapshot, keys, open) \
            VALUES ($1, $2, $3::pg_catalog.oid, $4, $5::pg_catalog.jsonb, $6::pg_catalog.text[])";
        let Some(oid) = self.members[at].shapes.get(&relation).map(|t| t.oid.to_string()) else { return };
        let (sync, keys) = (self.plan.sync.capture_name(), keys_json(keys));
        let params = [self.plan.control.as_str(), &sync, &oid, snapshot, &keys, open].map(String::from).into();
        self.errand(at, sql.to_string(), params);
    }
}

/// Queues statements in a pipeline.
pub(super) fn add_errands(conn: &mut Conn, errands: &[Errand]) -> Result<(), Error> {
    for (sql, params) in errands {
        let params: Vec<Option<&[u8]>> = params.iter().map(|p| Some(p.as_bytes())).collect();
        conn.pipeline_add(sql, &[], &params)?;
    }
    Ok(())
}
