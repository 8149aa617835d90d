//! The SQL that a run sends, made from the shape of a table on the source and on a receiver. Pure text: it decides how
//! rows are read and written, never which. Names and operators are always qualified and quoted.

use super::shape::Table;
use crate::ident::{quote_ident, quote_literal};

/// A window as SQL literals: deltas not visible in the snapshot that was served last.
pub struct Window {
    pub xmax: String,
    pub xip: String,
}

/// How changed keys find their rows. The planner knows nothing of our tables (they are never analyzed) and chooses badly;
/// the run knows how many keys there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Join {
    /// Each key by the index, in the order of the keys: work grows with the changes, not with the table.
    Lookup,
    /// All at once, by merge or hash: for a good part of the table.
    Bulk,
    /// As the planner likes.
    Free,
}

impl Join {
    /// All at once is cheaper from half of the table on; but it must be built before the first row comes, while receivers
    /// work on what single lookups bring.
    pub fn of(changes: u64, rows: u64) -> Self {
        if changes.saturating_mul(2) >= rows { Join::Bulk } else { Join::Lookup }
    }

    /// The settings to put before a statement, for the rest of the transaction.
    pub fn settings(self) -> &'static str {
        match self {
            Join::Lookup => {
                // A table that was empty when it was planned for would be scanned once for each key.
                "SET LOCAL enable_nestloop = on; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; \
                 SET LOCAL enable_hashagg = off; SET LOCAL enable_material = off; SET LOCAL enable_seqscan = off; \
                 SET LOCAL enable_bitmapscan = off; "
            }
            Join::Bulk => {
                "SET LOCAL enable_nestloop = off; SET LOCAL enable_hashjoin = on; SET LOCAL enable_mergejoin = on; \
                 SET LOCAL enable_hashagg = off; SET LOCAL enable_material = on; SET LOCAL enable_seqscan = on; \
                 SET LOCAL enable_bitmapscan = on; "
            }
            Join::Free => {
                "SET LOCAL enable_nestloop = on; SET LOCAL enable_hashjoin = on; SET LOCAL enable_mergejoin = on; \
                 SET LOCAL enable_hashagg = on; SET LOCAL enable_material = on; SET LOCAL enable_seqscan = on; \
                 SET LOCAL enable_bitmapscan = on; "
            }
        }
    }
}

/// One table of a run: what is captured, and what is read from the source.
pub struct Reading<'a> {
    pub source: &'a Table,
    /// The key columns in the order of the delta's k1, k2, …
    pub key: &'a [String],
    /// The columns that travel: all of the source that are not generated.
    pub columns: &'a [String],
    /// The delta segments, quoted.
    pub segments: &'a [String],
    /// Whether they hold arrays of keys too.
    pub batched: bool,
    /// Keys of deleted rows that cannot be written in this encoding are left out.
    pub fitting: Option<&'a str>,
}

fn list(n: usize, item: impl Fn(usize) -> String, separator: &str) -> String {
    (0..n).map(item).collect::<Vec<_>>().join(separator)
}

impl Reading<'_> {
    fn keys(&self, prefix: &str) -> String {
        list(self.key.len(), |i| format!("{prefix}k{}", i + 1), ", ")
    }

    /// The keys of the window, with duplicates.
    fn deltas(&self, condition: &str) -> String {
        let n = self.key.len();
        let arrays = list(n, |i| format!("coalesce(ks{0}, ARRAY[k{0}])", i + 1), ", ");
        let part = |i: usize| match self.batched {
            true => format!(
                "SELECT {keys} FROM {} d, LATERAL unnest({arrays}) u({plain}) WHERE {condition}",
                self.segments[i],
                keys = self.keys("u."),
                plain = self.keys("")
            ),
            false => format!("SELECT {} FROM {} WHERE {condition}", self.keys(""), self.segments[i]),
        };
        list(self.segments.len(), part, " UNION ALL ")
    }

    fn literal(window: &Window) -> String {
        format!("(xid >= {} OR xid = ANY ('{}'::pg_catalog.int8[]))", window.xmax, window.xip)
    }

    /// The condition that leaves out what cannot be there; `alive` tells whether the row lives.
    fn fits(&self, alive: &str) -> String {
        self.fitting.map_or_else(String::new, |encoding| {
            let keys = self.keys("k.");
            format!(" WHERE {alive} OR bucardo.capture_fits(ROW({keys})::pg_catalog.text, {})", quote_literal(encoding))
        })
    }

    fn select_columns(&self) -> String {
        list(self.columns.len(), |i| format!("t.{}", quote_ident(&self.columns[i])), ", ")
    }

    fn matches(&self) -> String {
        let one = |i: usize| {
            let column = &self.key[i];
            format!("t.{} {} k.k{}", quote_ident(column), self.source.equal(column), i + 1)
        };
        list(self.key.len(), one, " AND ")
    }

    /// A few keys with their current rows: keys, whether the row lives, the columns. Parameters: xmax, xip. The key of
    /// each row is looked up by the index whatever the planner thinks of the tables' sizes.
    pub fn few(&self) -> String {
        let aliases = list(self.columns.len(), |i| format!("t.{} AS a{}", quote_ident(&self.columns[i]), i + 1), ", ");
        let out = list(self.columns.len(), |i| format!("r.a{}", i + 1), ", ");
        format!(
            "SELECT {keys}, r.alive, {out} FROM (SELECT DISTINCT {plain} FROM ({deltas}) d) k \
             LEFT JOIN LATERAL (SELECT true AS alive, {aliases} FROM {only} t WHERE {on} OFFSET 0) r ON true{fits}",
            fits = self.fits("r.alive"),
            keys = self.keys("k."),
            plain = self.keys(""),
            deltas = self.deltas("(xid >= $1::pg_catalog.int8 OR xid = ANY ($2::pg_catalog.int8[]))"),
            only = self.source.only,
            on = self.matches(),
        )
    }

    /// Many keys with their current rows, as COPY: keys in their order, whether the row lives, the columns.
    pub fn many(&self, window: &Window, join: Join, binary: bool) -> String {
        format!(
            "{join}COPY (SELECT {keys}, t.alive, {columns} FROM (SELECT DISTINCT {plain} FROM ({deltas}) d) k \
             LEFT JOIN (SELECT true AS alive, t.* FROM {only} t) t ON {on}{fits}) TO STDOUT{format}",
            join = join.settings(),
            fits = self.fits("t.alive"),
            keys = self.keys("k."),
            columns = self.select_columns(),
            plain = self.keys(""),
            deltas = self.deltas(&Self::literal(window)),
            only = self.source.only,
            on = self.matches(),
            format = format_of(binary),
        )
    }

    /// The current rows of keys that were all new, as COPY of the bare columns.
    pub fn fresh(&self, window: &Window, binary: bool) -> String {
        format!(
            "{join}COPY (SELECT {columns} FROM ({deltas}) k JOIN {only} t ON {on}) TO STDOUT{format}",
            join = Join::Lookup.settings(),
            columns = self.select_columns(),
            deltas = self.deltas(&Self::literal(window)),
            only = self.source.only,
            on = self.matches(),
            format = format_of(binary),
        )
    }

    /// All rows of the table, in the form of [`Reading::many`].
    pub fn whole(&self, binary: bool) -> String {
        let keys = list(self.key.len(), |i| format!("t.{}", quote_ident(&self.key[i])), ", ");
        format!(
            "{}COPY (SELECT {keys}, true, {} FROM {} t) TO STDOUT{}",
            Join::Free.settings(),
            self.select_columns(),
            self.source.only,
            format_of(binary)
        )
    }
}

fn format_of(binary: bool) -> &'static str {
    if binary { " (FORMAT binary)" } else { "" }
}

/// Built-in types of which two values are equal only if they are the same to the byte: bool, bytea, "char", name, int8,
/// int2, int4, text, oid, varchar, date, time, timestamp, timestamptz, uuid.
const EXACT: [u32; 15] = [16, 17, 18, 19, 20, 21, 23, 25, 26, 1043, 1082, 1083, 1114, 1184, 2950];

/// One table of a run on one receiver.
pub struct Writing<'a> {
    pub table: &'a Table,
    pub key: &'a [String],
    /// The columns that travel, in the order in which they come.
    pub columns: &'a [String],
    /// The name of the staging table.
    pub stage: String,
}

impl Writing<'_> {
    /// The travelling columns that this receiver stores: not those that it generates itself.
    fn stored(&self) -> Vec<usize> {
        let stores = |i: &usize| self.table.column(&self.columns[*i]).is_none_or(|c| !c.generated);
        (0..self.columns.len()).filter(stores).collect()
    }

    /// The stored columns that an UPDATE sets. Not GENERATED ALWAYS AS IDENTITY, which takes values only at INSERT; not
    /// a key column whose equal values are the same: setting it would lock out whoever inserts rows that refer to it.
    fn settable(&self) -> Vec<usize> {
        let may = |i: &usize| {
            let column = self.table.column(&self.columns[*i]);
            column.is_none_or(|c| c.identity != 'a') && !self.is_fixed_key(*i)
        };
        self.stored().into_iter().filter(may).collect()
    }

    fn is_exact(&self, i: usize) -> bool {
        self.table.column(&self.columns[i]).is_some_and(|c| EXACT.contains(&c.type_oid) && c.collation.is_none())
    }

    fn is_fixed_key(&self, i: usize) -> bool {
        self.key.contains(&self.columns[i]) && self.is_exact(i)
    }

    fn names(&self, which: &[usize], prefix: &str) -> String {
        which.iter().map(|i| format!("{prefix}{}", quote_ident(&self.columns[*i]))).collect::<Vec<_>>().join(", ")
    }

    fn on(&self, value: impl Fn(usize) -> String) -> String {
        let one = |i: usize| {
            let column = &self.key[i];
            format!("t.{} {} {}", quote_ident(column), self.table.equal(column), value(i))
        };
        list(self.key.len(), one, " AND ")
    }

    fn set(&self, value: impl Fn(usize) -> String) -> String {
        self.settable()
            .iter()
            .map(|i| format!("{} = {}", quote_ident(&self.columns[*i]), value(*i)))
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// Whether the row there differs in any byte. Columns whose equal values are the same are compared one by one; the
    /// others as an image, which works for every type, also those without an equality.
    fn differs(&self, which: &[usize], value: impl Fn(usize) -> String) -> String {
        let (exact, other): (Vec<usize>, Vec<usize>) =
            which.iter().filter(|i| !self.is_fixed_key(**i)).partition(|i| self.is_exact(**i));
        let one = |i: &usize| format!("t.{} IS DISTINCT FROM {}", quote_ident(&self.columns[*i]), value(*i));
        let mut conditions: Vec<String> = exact.iter().map(one).collect();
        if !other.is_empty() {
            let new = other.iter().map(|i| value(*i)).collect::<Vec<_>>().join(", ");
            let old = self.names(&other, "t.");
            conditions.push(format!("ROW({old})::pg_catalog.record OPERATOR(pg_catalog.*<>) ROW({new})::pg_catalog.record"));
        }
        if conditions.is_empty() { "false".into() } else { format!("({})", conditions.join(" OR ")) }
    }

    fn key_param(i: usize) -> String {
        format!("${}", i + 1)
    }

    fn column_param(&self) -> impl Fn(usize) -> String + '_ {
        |i| format!("${}", self.key.len() + i + 1)
    }

    /// The types of the parameters of [`Writing::update_one`] and [`Writing::insert_one`]: keys, then columns.
    pub fn types(&self) -> Vec<u32> {
        let of = |name: &String| self.table.column(name).map_or(0, |c| c.type_oid);
        self.key.iter().map(of).chain(self.columns.iter().map(of)).collect()
    }

    /// Whether an UPDATE has anything to set.
    pub fn can_update(&self) -> bool {
        !self.settable().is_empty()
    }

    pub fn delete_one(&self) -> String {
        format!("DELETE FROM {} t WHERE {}", self.table.only, self.on(Self::key_param))
    }

    /// Changes one row if it is there and differs.
    pub fn update_one(&self) -> String {
        let set = self.set(self.column_param());
        let differs = self.differs(&self.settable(), self.column_param());
        format!("UPDATE {} t SET {set} WHERE {} AND {differs}", self.table.only, self.on(Self::key_param))
    }

    /// Stores one row if it is not there. All parameters are mentioned, so that their types are those given.
    pub fn insert_one(&self) -> String {
        let stored = self.stored();
        let param = self.column_param();
        let values = stored.iter().map(|i| param(*i)).collect::<Vec<_>>().join(", ");
        format!(
            "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {values} WHERE NOT EXISTS (SELECT FROM {} t WHERE {})",
            self.table.name,
            self.names(&stored, ""),
            self.table.only,
            self.on(Self::key_param)
        )
    }

    /// Whether rows can be copied straight into the table: nothing is generated there, and a row that is there already
    /// is refused by a unique index instead of stored twice.
    pub fn takes_copy(&self) -> bool {
        self.stored().len() == self.columns.len() && self.table.is_unique_on(self.key)
    }

    /// Whether an UPDATE cannot carry the change of an identity column that always generates.
    pub fn has_fixed_identity(&self) -> bool {
        let fixed = |i: &usize| self.table.column(&self.columns[*i]).is_some_and(|c| c.identity == 'a');
        self.stored().iter().any(|i| fixed(i) && !self.is_fixed_key(*i))
    }

    pub fn copy_straight(&self, binary: bool) -> String {
        let all: Vec<usize> = (0..self.columns.len()).collect();
        format!("COPY {} ({}) FROM STDIN{}", self.table.name, self.names(&all, ""), format_of(binary))
    }

    pub fn create_stage(&self) -> String {
        let keys = list(self.key.len(), |i| format!("t.{} AS k{}", quote_ident(&self.key[i]), i + 1), ", ");
        let columns = list(self.columns.len(), |i| format!("t.{} AS a{}", quote_ident(&self.columns[i]), i + 1), ", ");
        format!(
            "CREATE TEMP TABLE {} ON COMMIT DROP AS SELECT {keys}, true AS alive, {columns} FROM {} t WITH NO DATA",
            self.stage, self.table.only
        )
    }

    pub fn copy_stage(&self, binary: bool) -> String {
        format!("COPY {} FROM STDIN{}", self.stage_name(), format_of(binary))
    }

    /// Makes room for the next part.
    pub fn empty_stage(&self) -> String {
        format!("TRUNCATE {}", self.stage_name())
    }

    fn stage_name(&self) -> String {
        format!("pg_temp.{}", self.stage)
    }

    fn on_stage(&self) -> String {
        self.on(|i| format!("s.k{}", i + 1))
    }

    fn staged(i: usize) -> String {
        format!("s.a{}", i + 1)
    }

    /// Makes the table equal to the stage for the staged keys: deletes first, then updates, then inserts.
    /// `merge`: the receiver knows MERGE, which looks each row up only once.
    pub fn apply_stage(&self, merge: bool) -> Vec<String> {
        let mut all = vec![self.delete_gone()];
        if self.has_fixed_identity() {
            all.push(format!(
                "DELETE FROM {} t USING {} s WHERE s.alive AND {} AND {}",
                self.table.only,
                self.stage_name(),
                self.on_stage(),
                self.differs(&self.stored(), Self::staged)
            ));
        }
        if merge {
            all.push(self.merge());
            return all;
        }
        if self.can_update() {
            all.push(format!(
                "UPDATE {} t SET {} FROM {} s WHERE s.alive AND {} AND {}",
                self.table.only,
                self.set(Self::staged),
                self.stage_name(),
                self.on_stage(),
                self.differs(&self.settable(), Self::staged)
            ));
        }
        all.push(self.insert_missing());
        all
    }

    /// Updates and inserts in one pass.
    fn merge(&self) -> String {
        let stored = self.stored();
        let update = match self.can_update() {
            true => format!(
                "WHEN MATCHED AND {} THEN UPDATE SET {} ",
                self.differs(&self.settable(), Self::staged),
                self.set(Self::staged)
            ),
            false => String::new(),
        };
        format!(
            "MERGE INTO {} t USING (SELECT * FROM {} WHERE alive) s ON {} {update}WHEN NOT MATCHED THEN INSERT ({}) OVERRIDING SYSTEM VALUE VALUES ({})",
            self.table.only,
            self.stage_name(),
            self.on_stage(),
            self.names(&stored, ""),
            stored.iter().map(|i| Self::staged(*i)).collect::<Vec<_>>().join(", ")
        )
    }

    fn delete_gone(&self) -> String {
        format!("DELETE FROM {} t USING {} s WHERE s.alive IS NULL AND {}", self.table.only, self.stage_name(), self.on_stage())
    }

    fn insert_missing(&self) -> String {
        let stored = self.stored();
        let values = stored.iter().map(|i| Self::staged(*i)).collect::<Vec<_>>().join(", ");
        format!(
            "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {values} FROM {} s WHERE s.alive AND NOT EXISTS (SELECT FROM {} t WHERE {})",
            self.table.name,
            self.names(&stored, ""),
            self.stage_name(),
            self.table.only,
            self.on_stage()
        )
    }

    /// The same with every changed row deleted before any is written, so that unique values may move between rows.
    /// Columns that only this receiver has keep their values. Only the first statement deletes for good.
    pub fn apply_stage_thoroughly(&self) -> Vec<String> {
        let old = format!("{}_old", self.stage);
        let stored = self.stored();
        let differs = self.differs(&stored, Self::staged);
        let extra: Vec<String> = self
            .table
            .columns
            .iter()
            .filter(|c| !c.generated && !self.columns.contains(&c.name))
            .map(|c| quote_ident(&c.name))
            .collect();
        let comma = |prefix: &str| extra.iter().map(|c| format!(", {prefix}{c}")).collect::<String>();
        let values = stored.iter().map(|i| Self::staged(*i)).collect::<Vec<_>>().join(", ");
        let on_old = list(
            self.key.len(),
            |i| format!("o.{0} {1} s.k{2}", quote_ident(&self.key[i]), self.table.equal(&self.key[i]), i + 1),
            " AND ",
        );
        vec![
            self.delete_gone(),
            format!(
                "CREATE TEMP TABLE {old} ON COMMIT DROP AS SELECT t.* FROM {} t JOIN {} s ON {} WHERE s.alive AND {differs}",
                self.table.only,
                self.stage_name(),
                self.on_stage()
            ),
            format!(
                "DELETE FROM {} t USING {} s WHERE s.alive AND {} AND {differs}",
                self.table.only,
                self.stage_name(),
                self.on_stage()
            ),
            format!(
                "INSERT INTO {} ({}{}) OVERRIDING SYSTEM VALUE SELECT {values}{} FROM {} s JOIN pg_temp.{old} o ON {on_old} WHERE s.alive",
                self.table.name,
                self.names(&stored, ""),
                comma(""),
                comma("o."),
                self.stage_name()
            ),
            self.insert_missing(),
        ]
    }

    /// Deletes what the source no longer has at all, when the stage holds the whole table.
    pub fn delete_unstaged(&self) -> String {
        format!(
            "DELETE FROM {} t WHERE NOT EXISTS (SELECT FROM {} s WHERE {})",
            self.table.only,
            self.stage_name(),
            self.on_stage()
        )
    }

    pub fn truncate(&self) -> String {
        format!("TRUNCATE {}", self.table.only)
    }

    pub fn delete_all(&self) -> String {
        format!("DELETE FROM {}", self.table.only)
    }

    /// Keeps writers out before the snapshot is taken.
    pub fn lock(&self) -> String {
        format!("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE", self.table.only)
    }
}
