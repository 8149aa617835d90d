//! The SQL that a run sends to a receiver, made from the shape of its table: rows one by one with prepared statements, or
//! set-wise out of a staging table. Names and operators are always qualified and quoted.

use super::apply::note_whole;
use super::range::Range;
use super::shape::Table;
use super::statements::{format_of, list};
use crate::catalog::describe::Column;
use crate::ident::{quote_ident, quote_literal, text_array};

/// One table of a run on one receiver.
pub struct Writing<'a> {
    pub table: &'a Table,
    pub key: &'a [String],
    /// The columns that travel, in the order in which they come.
    pub columns: &'a [String],
    /// The name of the staging table.
    pub stage: String,
    /// Whether the time of each change comes too.
    pub noted: bool,
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
        self.table.is_exact(&self.columns[i])
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
        self.set_these(&self.settable(), value)
    }

    fn set_these(&self, which: &[usize], value: impl Fn(usize) -> String) -> String {
        which.iter().map(|i| format!("{} = {}", quote_ident(&self.columns[*i]), value(*i))).collect::<Vec<_>>().join(", ")
    }

    /// Whether the row there differs in any byte. Columns whose equal values are the same are compared one by one; the
    /// others as an image, which works for every type, also those without an equality.
    fn differs(&self, which: &[usize], value: impl Fn(usize) -> String) -> String {
        let (exact, other): (Vec<usize>, Vec<usize>) =
            which.iter().filter(|i| !self.is_fixed_key(**i)).partition(|i| self.is_exact(**i));
        let one = |i: &usize| format!("t.{} IS DISTINCT FROM {}", quote_ident(&self.columns[*i]), value(*i));
        let mut conditions: Vec<String> = exact.iter().map(one).collect();
        if !other.is_empty() {
            // A domain is compared as what it is over, which the staging tables have.
            let bare = |i: &usize, of: String| match self.table.domain_of(&self.columns[*i]) {
                Some(base) => format!("{of}::{base}"),
                None => of,
            };
            let new = other.iter().map(|i| bare(i, value(*i))).collect::<Vec<_>>().join(", ");
            let old =
                other.iter().map(|i| bare(i, format!("t.{}", quote_ident(&self.columns[*i])))).collect::<Vec<_>>().join(", ");
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
        self.stored().len() == self.columns.len() && self.table.refuses_doubles(self.key)
    }

    /// The identity columns that always generate, and so take a value only at INSERT: no UPDATE can carry their change.
    fn fixed_identities(&self) -> Vec<usize> {
        let fixed = |i: &usize| self.table.column(&self.columns[*i]).is_some_and(|c| c.identity == 'a') && !self.is_fixed_key(*i);
        self.stored().into_iter().filter(fixed).collect()
    }

    pub fn has_fixed_identity(&self) -> bool {
        !self.fixed_identities().is_empty()
    }

    /// Takes a row out and stores it anew where such a column differs. Columns that only this receiver has keep their values.
    /// `new`: where the rows come from, beginning with USING, or nothing; `on`: which is whose.
    fn renew(&self, new: &str, on: &str, value: impl Fn(usize) -> String) -> String {
        let (stored, extra) = (self.stored(), self.extra());
        let out = |i: &usize| format!("{} AS a{}", value(*i), i + 1);
        let kept = |(i, c): (usize, &String)| format!("t.{c} AS x{}", i + 1);
        let returned: Vec<String> = stored.iter().map(out).chain(extra.iter().enumerate().map(kept)).collect();
        let into: Vec<String> = stored.iter().map(|i| quote_ident(&self.columns[*i])).chain(extra.iter().cloned()).collect();
        let from: Vec<String> =
            stored.iter().map(|i| format!("o.a{}", i + 1)).chain((1..=extra.len()).map(|i| format!("o.x{i}"))).collect();
        format!(
            "WITH o AS (DELETE FROM {only} t {new} WHERE {on} AND {differs} RETURNING t.ctid AS place, {returned}) \
             INSERT INTO {name} ({into}) OVERRIDING SYSTEM VALUE SELECT {from} FROM (SELECT * FROM o ORDER BY o.place OFFSET 0) o",
            only = self.table.only,
            // All are out before the first is stored: the values may have moved between rows.
            differs = self.differs(&self.fixed_identities(), &value),
            returned = returned.join(", "),
            name = self.table.name,
            into = into.join(", "),
            from = from.join(", "),
        )
    }

    /// The columns, quoted, that only this receiver has.
    fn extra(&self) -> Vec<String> {
        let own = |c: &&Column| !c.generated && !self.columns.contains(&c.name);
        self.table.columns.iter().filter(own).map(|c| quote_ident(&c.name)).collect()
    }

    /// Stores one row anew if it is there and an UPDATE cannot make it right.
    pub fn renew_one(&self) -> Option<String> {
        self.has_fixed_identity().then(|| self.renew("", &self.on(Self::key_param), self.column_param()))
    }

    pub fn copy_straight(&self, binary: bool) -> String {
        let all: Vec<usize> = (0..self.columns.len()).collect();
        format!("COPY {} ({}) FROM STDIN{}", self.table.name, self.names(&all, ""), format_of(binary))
    }

    /// The columns are of the types under domains: those of a row that is gone are null, which a domain may forbid.
    pub fn create_stage(&self) -> String {
        let bare = |column: &String| match self.table.domain_of(column) {
            Some(base) => format!("t.{}::{base}", quote_ident(column)),
            None => format!("t.{}", quote_ident(column)),
        };
        let keys = list(self.key.len(), |i| format!("t.{} AS k{}", quote_ident(&self.key[i]), i + 1), ", ");
        let columns = list(self.columns.len(), |i| format!("{} AS a{}", bare(&self.columns[i]), i + 1), ", ");
        format!(
            "CREATE TEMP TABLE {} ON COMMIT DROP AS SELECT {keys}, true AS alive, {columns}{} FROM {} t WITH NO DATA",
            self.stage,
            if self.noted { ", NULL::pg_catalog.timestamptz AS at" } else { "" },
            self.table.only
        )
    }

    /// The call that captures what is staged: all of it, or only what will change a row. For before anything is written.
    pub fn note(&self, all: bool, origin: &str) -> String {
        let keys = list(self.key.len(), |i| format!("s.k{}", i + 1), ", ");
        let changed = match (all, self.key.first()) {
            (false, Some(first)) => format!(
                " LEFT JOIN {} t ON {} WHERE CASE WHEN s.alive THEN t.{first} IS NULL OR {} ELSE t.{first} IS NOT NULL END",
                self.table.only,
                self.on_stage(),
                self.differs(&self.stored(), Self::staged),
                first = quote_ident(first)
            ),
            _ => String::new(),
        };
        let query = format!("SELECT {keys}, s.at FROM {} s{changed}", self.stage_name());
        let names: Vec<&str> = self.key.iter().map(String::as_str).collect();
        format!(
            "bucardo.capture_note({}, {}, {}, {})",
            self.table.oid,
            quote_literal(&text_array(&names)),
            quote_literal(&query),
            quote_literal(origin)
        )
    }

    pub fn copy_stage(&self, binary: bool) -> String {
        format!("COPY {} FROM STDIN{}", self.stage_name(), format_of(binary))
    }

    /// Makes room for the next part.
    pub fn empty_stage(&self) -> String {
        format!("TRUNCATE {}", self.stage_name())
    }

    pub(super) fn stage_name(&self) -> String {
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
            let new = format!("USING {} s", self.stage_name());
            all.push(self.renew(&new, &format!("s.alive AND {}", self.on_stage()), Self::staged));
        }
        if merge && !self.table.has_rules {
            all.push(self.merge(None));
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

    /// Updates and inserts in one pass. `within`: bounds of the staged keys, for a key that is one number.
    pub fn merge(&self, within: Option<Range>) -> String {
        let stored = self.stored();
        let update = match self.can_update() {
            true => format!(
                "WHEN MATCHED AND {} THEN UPDATE SET {} ",
                self.differs(&self.settable(), Self::staged),
                self.set(Self::staged)
            ),
            false => String::new(),
        };
        let bounds = match (within, self.key.first()) {
            (Some(range), Some(key)) => format!(" AND {}", range.holds(&format!("t.{}", quote_ident(key)))),
            _ => String::new(),
        };
        format!(
            "MERGE INTO {} t USING (SELECT * FROM {} WHERE alive) s ON {}{bounds} {update}WHEN NOT MATCHED THEN INSERT ({}) OVERRIDING SYSTEM VALUE VALUES ({})",
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
        let extra = self.extra();
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

    /// Captures that [`Writing::delete_unstaged`] will delete something, if it will.
    pub fn note_unstaged(&self, origin: &str) -> String {
        format!(
            "{} FROM (SELECT 1 FROM {} t WHERE NOT EXISTS (SELECT FROM {} s WHERE {}) LIMIT 1) x",
            note_whole(self.table.oid, origin),
            self.table.only,
            self.stage_name(),
            self.on_stage()
        )
    }

    /// Empties the table but for the given keys.
    pub fn delete_all_but(&self, keys: &str) -> String {
        format!("DELETE FROM {} t WHERE NOT EXISTS (SELECT FROM ({keys}) s WHERE {})", self.table.only, self.on_stage())
    }

    /// Makes the table equal to the stage, which holds a whole table, but for the keys that it has changed itself. Each
    /// statement with whether what it writes are deletions.
    /// `thorough`: as [`Writing::apply_stage_thoroughly`].
    pub fn apply_whole(&self, merge: bool, thorough: bool, own: Option<&str>) -> Vec<(bool, String)> {
        let mut all = Vec::new();
        let mut spared = String::new();
        if let Some(own) = own {
            let same = list(self.key.len(), |i| format!("s.k{0} {1} o.k{0}", i + 1, self.table.equal(&self.key[i])), " AND ");
            all.push(format!("DELETE FROM {} s USING ({own}) o WHERE {same}", self.stage_name()));
            spared = format!(" AND NOT EXISTS (SELECT FROM ({own}) s WHERE {})", self.on_stage());
        }
        let mut all: Vec<(bool, String)> =
            all.into_iter().map(|sql| (true, format!("WITH x AS ({sql} RETURNING 1) SELECT FROM x WHERE false"))).collect();
        all.push((true, format!("{}{spared}", self.delete_unstaged())));
        let rest = if thorough { self.apply_stage_thoroughly() } else { self.apply_stage(merge) };
        all.extend(rest.into_iter().enumerate().map(|(i, sql)| (i == 0, sql)));
        all
    }

    /// Stores one row out of its JSON: changed where it is there, else inserted. `only`: the columns that are changed where
    /// it is there, so that the others keep their values to the byte, which JSON does not; none: all.
    pub fn upsert_json(&self, only: &[String]) -> Vec<String> {
        let record = format!("pg_catalog.jsonb_populate_record(NULL::{}, $1::pg_catalog.jsonb) r", self.table.name);
        let value = |i: usize| format!("r.{}", quote_ident(&self.columns[i]));
        let on = self.on(|i| format!("r.{}", quote_ident(&self.key[i])));
        let stored = self.stored();
        let mut all = Vec::new();
        if only.is_empty() && self.has_fixed_identity() {
            all.push(self.renew(&format!("USING {record}"), &on, value));
        }
        if self.can_update() {
            let named = |i: &usize| only.is_empty() || only.contains(&self.columns[*i]);
            let which: Vec<usize> = self.settable().into_iter().filter(named).collect();
            let differs = self.differs(&which, value);
            let set = self.set_these(&which, value);
            all.push(format!("UPDATE {} t SET {set} FROM {record} WHERE {on} AND {differs}", self.table.only));
        }
        all.push(format!(
            "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {record} WHERE NOT EXISTS (SELECT FROM {} t WHERE {on})",
            self.table.name,
            self.names(&stored, ""),
            self.names(&stored, "r."),
            self.table.only
        ));
        all
    }

    pub fn truncate(&self) -> String {
        format!("TRUNCATE {}", self.table.only)
    }

    pub fn delete_all(&self) -> String {
        format!("DELETE FROM {}", self.table.only)
    }
}

#[cfg(test)]
mod tests;
