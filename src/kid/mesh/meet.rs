//! Keys of several sources brought together, to find those that more than one has changed: in memory, by their texts as
//! the sources sent them and without a copy of any that is not contended; or by the SQL with which a server does it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{Hash, Hasher};

use serde_json::Value;

use super::Mesh;
use super::contend::Contended;
use super::decide::KeyChange;
use crate::kid::reading::Reading;
use crate::kid::statements::list;
use crate::libpq::Rows;

/// A source's changed keys: key columns, and at `time` the time, the members waiting for it, and whether nobody has won it.
pub(super) struct List<'a> {
    pub rows: &'a Rows,
    pub keys: usize,
    pub time: usize,
    pub source: usize,
}

impl<'a> List<'a> {
    pub(super) fn of_keys(rows: &'a Rows, keys: usize, source: usize) -> Self {
        Self { rows, keys, time: keys, source }
    }
}

/// Where a key stands: the list and the row, for each source that has changed it.
pub(super) type Places = Vec<(u32, u32)>;

/// A key by its texts, which are not copied.
#[derive(Clone, Copy)]
struct Texts<'a> {
    list: &'a List<'a>,
    row: u32,
}

impl<'a> Texts<'a> {
    fn texts(self) -> impl Iterator<Item = &'a [u8]> {
        let List { rows, keys, .. } = self.list;
        (0..*keys).map(move |column| rows.bytes(self.row as usize, column).unwrap_or_default())
    }
}

impl Hash for Texts<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.texts().for_each(|text| text.hash(state));
    }
}

impl PartialEq for Texts<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.texts().eq(other.texts())
    }
}

impl Eq for Texts<'_> {}

/// The keys that stand in more than one list, or all of them.
pub(super) fn meet(lists: &[List<'_>], all: bool) -> Vec<Places> {
    const ALONE: usize = usize::MAX;
    let mut groups: Vec<Places> = Vec::new();
    // For each key the list that had it first, and its group as soon as there is one.
    let mut seen: HashMap<Texts<'_>, (u32, usize)> =
        HashMap::with_capacity(lists.iter().map(|l| l.rows.len()).max().unwrap_or(0));
    for (number, list) in (0..).zip(lists) {
        for row in 0..list.rows.len() as u32 {
            match seen.entry(Texts { list, row }) {
                Entry::Vacant(entry) if all => {
                    entry.insert((number, groups.len()));
                    groups.push(vec![(number, row)]);
                }
                Entry::Vacant(entry) => drop(entry.insert((number, ALONE))),
                Entry::Occupied(mut entry) => {
                    let first = (entry.get().0, entry.key().row);
                    if entry.get().1 == ALONE {
                        entry.get_mut().1 = groups.len();
                        groups.push(vec![first]);
                    }
                    groups[entry.get().1].push((number, row));
                }
            }
        }
    }
    groups
}

/// A key with its changes out of the lists.
pub(super) fn contended(lists: &[List<'_>], places: &Places) -> Contended {
    let change = |(number, row): &(u32, u32)| {
        let List { rows, time, source, .. } = &lists[*number as usize];
        change(rows, *row as usize, *time, *source)
    };
    let key = places.first().map(|(number, row)| {
        let list = &lists[*number as usize];
        (0..list.keys).map(|column| list.rows.text(*row as usize, column)).collect()
    });
    Contended { key: key.unwrap_or_default(), changes: places.iter().map(change).collect() }
}

/// A key with its changes as a server has brought them together: see [`Reading::same_keys`].
pub(super) fn grouped(rows: &Rows, row: usize, keys: usize, sources: &[usize]) -> Contended {
    let places = sources.iter().enumerate().map(|(i, source)| (keys + 3 * i, *source));
    let changes = places.filter(|(column, _)| rows.get(row, column + 1).is_some());
    let changes = changes.map(|(column, source)| change(rows, row, column, source)).collect();
    Contended { key: (0..keys).map(|column| rows.text(row, column)).collect(), changes }
}

fn change(rows: &Rows, row: usize, time: usize, source: usize) -> KeyChange {
    KeyChange {
        source,
        at: rows.number(row, time).unwrap_or(i64::MIN),
        towards: rows.number::<i64>(row, time + 1).unwrap_or(0) as u64,
        held: rows.bool(row, time + 2),
    }
}

/// How the keys of a relation read as JSON, where that is plain from their texts.
pub(super) struct PlainKey(Vec<(String, bool)>);

/// Types whose text is the number that JSON has for them, and types whose text is what JSON has in quotes.
const NUMBERS: [u32; 3] = [20, 21, 23];
const TEXTS: [u32; 3] = [25, 1043, 2950];

impl PlainKey {
    pub(super) fn of(mesh: &Mesh<'_>, relation: i32) -> Option<Self> {
        let sources = mesh.sources();
        let kind = |at: &usize, name: &str| Some(mesh.members[*at].shapes.get(&relation)?.column(name)?.type_oid);
        let column = |name: &String| {
            let kind = kind(sources.first()?, name).filter(|first| sources.iter().all(|at| kind(at, name) == Some(*first)))?;
            let number = NUMBERS.contains(&kind);
            (number || TEXTS.contains(&kind)).then(|| (Value::from(name.as_str()).to_string(), number))
        };
        mesh.key_of(relation).iter().map(column).collect::<Option<_>>().map(Self)
    }

    pub(super) fn json(&self, key: &[String]) -> String {
        let one = |((name, number), text): (&(String, bool), &String)| match number {
            true => format!("{name}:{text}"),
            false => format!("{name}:{}", Value::from(text.as_str())),
        };
        format!("{{{}}}", self.0.iter().zip(key).map(one).collect::<Vec<_>>().join(","))
    }
}

impl Reading<'_> {
    /// The statement that a temporary table of keys is made with.
    pub(super) fn create_keys(&self, table: &str) -> String {
        format!(
            "CREATE TEMP TABLE {table} ON COMMIT DROP AS SELECT {}, 0::pg_catalog.int8 AS time, 0::pg_catalog.int8 AS towards, \
             false AS held, 0::pg_catalog.int4 AS source FROM {} t WITH NO DATA",
            self.key_columns(),
            self.source.only
        )
    }

    /// The keys that stand in the table for more than one source (or all of them), each with the time, the members
    /// waiting and whether nobody has won it, for each of the sources.
    pub(super) fn same_keys(&self, table: &str, sources: &[usize], all: bool) -> String {
        let keys = self.keys("");
        let of = |i: usize| {
            let source = sources[i];
            let of = format!("FILTER (WHERE source = {source})");
            format!("max(time) {of}, bit_or(towards) {of}, bool_and(held) {of}")
        };
        let only = if all { "" } else { " HAVING count(*) > 1" };
        format!("SELECT {keys}, {} FROM pg_temp.{table} GROUP BY {keys}{only}", list(sources.len(), of, ", "))
    }
}
