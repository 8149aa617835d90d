//! The SQL that a run sends to a source: which keys its window holds, and their current rows. Names and operators are
//! always qualified and quoted. Reads only; which keys go to whom is decided elsewhere.

use super::range::{Range, SPREAD};
use super::shape::Table;
use super::statements::{Join, Window, commit_time, copy_out, format_of, key_object, list};
use crate::ident::{quote_ident, quote_literal};

/// The condition of a window given as parameters: xmax, xip.
const BY_PARAMETERS: &str = "(xid >= $1::pg_catalog.int8 OR xid = ANY ($2::pg_catalog.int8[]))";
/// The same where the planner shall not see the values, so that it keeps one plan for all of them.
const BY_HIDDEN_PARAMETERS: &str =
    "(xid >= (SELECT $1::pg_catalog.int8) OR xid = ANY ((SELECT $2::pg_catalog.int8[])::pg_catalog.int8[]))";

/// One table of a run: what is captured, and what is read from the source.
pub struct Reading<'a> {
    pub source: &'a Table,
    /// The key columns, which go by the names k1, k2, …
    pub key: &'a [String],
    /// Where the segments have each of them, from 1; empty: in the same order.
    pub slots: &'a [usize],
    /// The columns that travel: all of the source that are not generated.
    pub columns: &'a [String],
    /// The delta segments, quoted.
    pub segments: &'a [String],
    /// Whether they hold arrays of keys too.
    pub batched: bool,
    /// Keys of deleted rows that cannot be written in this encoding are left out.
    pub fitting: Option<&'a str>,
    /// A further condition on deltas, beginning with AND; or nothing.
    pub news: &'a str,
    /// A table of keys that are left out, whatever happened to them.
    pub excluded: Option<&'a str>,
    /// Whether the time of each change travels too, for receivers that capture it.
    pub noted: bool,
}

/// Built-in types whose values are all short: bool, "char", name, int8, int2, int4, oid, float4, float8, date, time,
/// timestamp, timestamptz, interval, timetz, uuid.
const NARROW: [u32; 16] = [16, 18, 19, 20, 21, 23, 26, 700, 701, 1082, 1083, 1114, 1184, 1186, 1266, 2950];
/// Those of which it is known without fetching them how long they are: bytea, text, bpchar, varchar.
const TEXTS: [u32; 4] = [17, 25, 1042, 1043];

/// From so many keys in an array on a walk of its own is cheaper than look-ups: with five both take the same, with twenty a walk
/// takes two thirds.
const WORTH_A_WALK: usize = 16;

impl<'a> Reading<'a> {
    /// One of a table itself, whatever is captured of it.
    pub fn of(source: &'a Table, key: &'a [String], columns: &'a [String]) -> Self {
        let (slots, segments, news) = (&[], &[], "");
        Self { source, key, slots, columns, segments, batched: false, fitting: None, news, excluded: None, noted: false }
    }

    /// The key columns k1, k2, … of a table of keys.
    pub fn keys(&self, prefix: &str) -> String {
        list(self.key.len(), |i| format!("{prefix}k{}", i + 1), ", ")
    }

    /// The keys of the window, with duplicates, and with more columns of each delta: `also` begins with a comma.
    fn deltas_with(&self, condition: &str, also: &str) -> String {
        let n = self.key.len();
        let news = self.news;
        let slot = |i: usize| self.slots.get(i).copied().unwrap_or(i + 1);
        let arrays = list(n, |i| format!("coalesce(ks{0}, ARRAY[k{0}])", slot(i)), ", ");
        let columns = list(n, |i| format!("d.k{} AS k{}", slot(i), i + 1), ", ");
        let part = |i: usize| match self.batched {
            true => format!(
                "SELECT {keys}{also} FROM (SELECT * FROM {} WHERE {condition}{news} OFFSET 0) d, LATERAL unnest({arrays}) u({plain})",
                self.segments[i],
                keys = self.keys("u."),
                plain = self.keys("")
            ),
            false => format!("SELECT {columns}{also} FROM {} d WHERE {condition}{news}", self.segments[i]),
        };
        list(self.segments.len(), part, " UNION ALL ")
    }

    fn deltas(&self, condition: &str) -> String {
        self.deltas_with(condition, "")
    }

    /// The keys of the window, each once.
    pub fn distinct(&self, condition: &str) -> String {
        let (plain, deltas) = (self.keys(""), self.deltas(condition));
        match self.excluded {
            Some(excluded) => format!("SELECT {plain} FROM ({deltas}) d EXCEPT SELECT {plain} FROM {excluded}"),
            None => format!("SELECT DISTINCT {plain} FROM ({deltas}) d"),
        }
    }

    /// The same with the time of each key's last change.
    fn distinct_timed(&self, condition: &str) -> String {
        let plain = self.keys("");
        let left_out = self.excluded.map_or_else(String::new, |excluded| {
            format!(" WHERE NOT EXISTS (SELECT FROM {excluded} x WHERE {})", self.same("d.", "x."))
        });
        let deltas = self.deltas_with(condition, &format!(", {} AS at", commit_time(false)));
        format!("SELECT {plain}, max(d.at) AS at FROM ({deltas}) d{left_out} GROUP BY {plain}")
    }

    /// The keys of the window, each once, with the time of its last change (microseconds since 1970), the members towards
    /// which it is pending, and whether nobody has won it yet. `settled`: a table of changes that count no more, but for
    /// the members that are `open` there; of those that are `known` the others have what has won. The time goes through a float number, which is many times cheaper than a numeric
    /// one and exact to the microsecond for two centuries.
    fn timed(&self, condition: &str, time: &str, to: &str, settled: Option<&str>) -> String {
        let plain = self.keys("");
        let also = format!(", d.xid AS xid, {time} AS time, {to} AS towards");
        let (towards, held, left_out) = match settled {
            Some(settled) => (
                "d.towards & coalesce(h.open, -1)",
                "bool_and(NOT coalesce(h.known, true))",
                format!(
                    " CROSS JOIN LATERAL (SELECT bit_and(s.open) AS open, bool_and(s.known) AS known FROM {settled} s \
                     WHERE {} AND d.xid < s.ended AND d.xid <> ALL (s.running)) h WHERE h.open IS NULL OR h.open & d.towards <> 0",
                    self.same("d.", "s.")
                ),
            ),
            None => ("d.towards", "false", String::new()),
        };
        format!(
            "SELECT {plain}, (pg_catalog.date_part('epoch', max(d.time)) * 1000000)::pg_catalog.int8 AS time, \
             bit_or({towards}) AS towards, {held} AS held FROM ({}) d{left_out} GROUP BY {plain}",
            self.deltas_with(condition, &also)
        )
    }

    /// Whether two sets of key columns are equal, by the key's own operators.
    pub fn same(&self, left: &str, right: &str) -> String {
        let one = |i: usize| format!("{left}k{0} {1} {right}k{0}", i + 1, self.source.equal(&self.key[i]));
        list(self.key.len(), one, " AND ")
    }

    /// The key columns of the table `t`, named k1, k2, …: what a table of keys is made from.
    pub fn key_columns(&self) -> String {
        list(self.key.len(), |i| format!("t.{} AS k{}", quote_ident(&self.key[i]), i + 1), ", ")
    }

    /// The columns that travel.
    pub fn column_list(&self) -> String {
        list(self.columns.len(), |i| quote_ident(&self.columns[i]), ", ")
    }

    /// The living rows of a query of keys, but for some, with more columns of `k`.
    pub fn rows_of(&self, keys: &str, left_out: &str, also: &str) -> String {
        format!(
            "SELECT {}, {also} FROM ({keys}) k JOIN {} t ON {}{left_out}",
            self.select_columns(),
            self.source.only,
            self.matches("k.")
        )
    }

    /// Keys out of parameters: for each key column the texts of its values, as an array; then `more` values for each row,
    /// which must be a number, an array of numbers, a number, and a boolean.
    pub fn typed_keys(&self, more: usize) -> String {
        let n = self.key.len();
        let kinds = ["int8", "int8[]", "int8", "bool"];
        let further = list(more.min(kinds.len()), |i| format!(", ${}::pg_catalog.{}", n + i + 1, kinds[i]), "");
        format!(
            "SELECT {}{further} FROM unnest({}) u({})",
            list(n, |i| format!("u.t{}::{}", i + 1, self.key_type(i)), ", "),
            list(n, |i| format!("${}::pg_catalog.text[]", i + 1), ", "),
            list(n, |i| format!("t{}", i + 1), ", ")
        )
    }

    fn key_type(&self, i: usize) -> &str {
        self.source.column(&self.key[i]).map_or("pg_catalog.text", |c| c.type_name.as_str())
    }

    /// The keys with times as an ordinary statement.
    pub fn changes(&self, window: &Window, time: &str, to: &str, settled: Option<&str>) -> String {
        self.timed(&window.condition(), time, to, settled)
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

    /// The same by the names a1, a2, …, beside which other names can stand.
    fn aliased_columns(&self) -> String {
        list(self.columns.len(), |i| format!("t.{} AS a{}", quote_ident(&self.columns[i]), i + 1), ", ")
    }

    fn aliases(&self, prefix: &str) -> String {
        list(self.columns.len(), |i| format!("{prefix}a{}", i + 1), ", ")
    }

    /// Which row of the table `t` a key belongs to.
    fn matches(&self, prefix: &str) -> String {
        let one = |i: usize| {
            let column = &self.key[i];
            format!("t.{} {} {prefix}k{}", quote_ident(column), self.source.equal(column), i + 1)
        };
        list(self.key.len(), one, " AND ")
    }

    /// What a row takes in a column of any length, without its being fetched: exact for texts, for others as it is stored.
    fn size_of(&self, column: &str) -> Option<String> {
        let (oid, name) = (self.source.column(column).map_or(0, |c| c.type_oid), quote_ident(column));
        match oid {
            _ if NARROW.contains(&oid) => None,
            _ if TEXTS.contains(&oid) => Some(format!("coalesce(pg_catalog.octet_length(t.{name}), 0)")),
            _ => Some(format!("coalesce(pg_catalog.pg_column_size(t.{name}), 0)")),
        }
    }

    /// The columns of a few rows: those of a row that is too wide are null, and false tells that it lives.
    fn few_columns(&self) -> (String, String) {
        let sizes: Vec<Option<String>> = self.columns.iter().map(|c| self.size_of(c)).collect();
        let column = |(i, size): (usize, &Option<String>)| match size {
            Some(_) => format!("CASE WHEN NOT r.wide THEN r.a{} END", i + 1),
            None => format!("r.a{}", i + 1),
        };
        let out = sizes.iter().enumerate().map(column).collect::<Vec<_>>().join(", ");
        let size = sizes.iter().flatten().fold("0::pg_catalog.int8".to_string(), |all, one| format!("{all} + {one}"));
        (
            format!("CASE WHEN r.wide THEN false ELSE r.alive END AS alive, {out}"),
            // Hidden from the planner, which keeps its plan then.
            format!("SELECT true AS alive, {}, {size} > (SELECT $3::pg_catalog.int8) AS wide", self.aliased_columns()),
        )
    }

    /// A few keys with their current rows: keys, whether the row lives, the columns. Parameters: xmax, xip, and how wide a
    /// row may be. To be planned after [`BY_INDEX`](super::statements::BY_INDEX): the plan is kept.
    pub fn few(&self) -> String {
        self.few_of(&self.distinct(BY_HIDDEN_PARAMETERS), "")
    }

    /// The same where nobody knows how many there are, with the number of each key's changes at the end: one more than `most`
    /// changes are looked at, which tells that there may be more.
    pub fn few_uncounted(&self, most: u64) -> String {
        let (plain, deltas) = (self.keys(""), self.deltas(BY_HIDDEN_PARAMETERS));
        let keys = format!(
            "SELECT {plain}, count(*) AS n FROM (SELECT * FROM ({deltas}) d LIMIT {}) d GROUP BY {plain}",
            most.saturating_add(1)
        );
        self.few_of(&keys, ", k.n")
    }

    fn few_of(&self, keys: &str, also: &str) -> String {
        let (out, row) = self.few_columns();
        format!(
            "SELECT {k}, {out}{also} FROM ({keys}) k \
             LEFT JOIN LATERAL ({row} FROM {only} t WHERE {on} OFFSET 0) r ON true{fits}",
            fits = self.fits("r.alive"),
            k = self.keys("k."),
            only = self.source.only,
            on = self.matches("k."),
        )
    }

    /// The same with what [`Reading::timed`] tells of each key at the end.
    pub fn few_timed(&self, time: &str, to: &str) -> String {
        let (out, row) = self.few_columns();
        format!(
            "SELECT {keys}, {out}, k.time, k.towards, k.held FROM ({timed}) k \
             LEFT JOIN LATERAL ({row} FROM {only} t WHERE {on} OFFSET 0) r ON true{fits}",
            fits = self.fits("r.alive"),
            keys = self.keys("k."),
            timed = self.timed(BY_PARAMETERS, time, to, None),
            only = self.source.only,
            on = self.matches("k."),
        )
    }

    /// The rows of given keys as JSON, in any order: the key's place, the key as an object (null if it is not `told`), the
    /// row or null. Parameters: for each key column the texts of its values, as an array.
    pub fn as_json(&self, told: bool) -> String {
        let n = self.key.len();
        let typed = |i: usize| format!("u.t{0}::{1} AS k{0}", i + 1, self.key_type(i));
        format!(
            "SELECT k.ord, {object}, r.image FROM (SELECT {typed}, u.ord FROM \
             unnest({params}) WITH ORDINALITY u({texts}, ord)) k \
             LEFT JOIN LATERAL (SELECT pg_catalog.to_json(t.*) AS image FROM {only} t WHERE {on} OFFSET 0) r ON true",
            object = match told {
                true => key_object(self.key, |i| format!("k.k{}", i + 1)),
                false => "NULL".into(),
            },
            typed = list(n, typed, ", "),
            params = list(n, |i| format!("${}::pg_catalog.text[]", i + 1), ", "),
            texts = list(n, |i| format!("t{}", i + 1), ", "),
            only = self.source.only,
            on = self.matches("k."),
        )
    }

    /// Tells in its first line how many rows the planner takes the table to have, by what is known of it and by its size now: see
    /// [`planned_rows`](super::statements::planned_rows).
    pub fn size(&self) -> String {
        format!("EXPLAIN SELECT FROM {} t", self.source.only)
    }

    /// The least of the changed keys, the greatest, and how many there are, if the key is one whole number.
    pub fn bounds(&self, window: &Window) -> Option<String> {
        let deltas = || self.deltas(&window.condition());
        self.source.number(self.key).map(|_| format!("SELECT min(d.k1), max(d.k1), count(DISTINCT d.k1) FROM ({}) d", deltas()))
    }

    /// Many keys with their current rows, as COPY: keys in their order, whether the row lives, the columns. `within`: a range
    /// that all keys lie in.
    pub fn many(&self, window: &Window, join: Join, within: Option<Range>, binary: bool) -> String {
        let rows = format!(
            "SELECT {keys}, r.alive, {out}{at} FROM ({distinct}) k \
             LEFT JOIN (SELECT true AS alive, {key_columns}, {aliases} FROM {only} t{within}) r ON {on}{fits}",
            fits = self.fits("r.alive"),
            keys = self.keys("k."),
            out = self.aliases("r."),
            key_columns = self.key_columns(),
            aliases = self.aliased_columns(),
            at = if self.noted { ", k.at" } else { "" },
            distinct = if self.noted { self.distinct_timed(&window.condition()) } else { self.distinct(&window.condition()) },
            only = self.source.only,
            on = self.same("r.", "k."),
            within = match (within, self.key.first()) {
                (Some(range), Some(key)) => format!(" WHERE {}", range.holds(&format!("t.{}", quote_ident(key)))),
                _ => String::new(),
            },
        );
        copy_out(join, &rows, binary)
    }

    /// The current rows of keys that were all new, as COPY of the bare columns.
    pub fn fresh(&self, window: &Window, binary: bool) -> String {
        let condition = window.condition();
        match self.source.number(self.key).filter(|_| self.batched && self.excluded.is_none()) {
            Some(key) => copy_out(Join::Walk, &self.fresh_in_arrays(key, &condition), binary),
            None if self.excluded.is_some() => copy_out(Join::Lookup, &self.looked_up(&self.distinct(&condition)), binary),
            None => copy_out(Join::Lookup, &self.looked_up(&self.deltas(&condition)), binary),
        }
    }

    /// The rows of keys, each of which looks for its own: the other way round, which statistics that call the table empty would
    /// choose, every row would be compared with every key.
    fn looked_up(&self, keys: &str) -> String {
        format!(
            "SELECT {columns} FROM ({keys}) k CROSS JOIN LATERAL (SELECT {columns} FROM {only} t WHERE {on} OFFSET 0) t",
            columns = self.select_columns(),
            only = self.source.only,
            on = self.matches("k."),
        )
    }

    /// The rows of new keys that are whole numbers, of which segments hold arrays: of a long array whose numbers lie close together,
    /// one walk along the index between the least and the greatest, beside the array in order. All other keys look for their rows.
    fn fresh_in_arrays(&self, key: &str, condition: &str) -> String {
        let (slot, news) = (self.slots.first().copied().unwrap_or(1), self.news);
        let parts = |what: &str, which: &str| {
            let part = |i: usize| format!("SELECT {what} FROM {} d WHERE {condition}{news} AND {which}", self.segments[i]);
            list(self.segments.len(), part, " UNION ALL ")
        };
        let arrays = |dense: &str| {
            format!(
                "SELECT k.ks, b.least, b.greatest FROM ({arrays}) k(ks) \
                 CROSS JOIN LATERAL (SELECT min(x) AS least, max(x) AS greatest FROM unnest(k.ks) x OFFSET 0) b \
                 WHERE (b.greatest::pg_catalog.float8 - b.least::pg_catalog.float8 < {SPREAD} * cardinality(k.ks)) IS {dense} OFFSET 0",
                arrays = parts(&format!("d.ks{slot}"), &format!("cardinality(d.ks{slot}) >= {WORTH_A_WALK}")),
            )
        };
        let single = parts(&format!("d.k{slot} AS k1"), &format!("d.ks{slot} IS NULL"));
        let small = parts(&format!("unnest(d.ks{slot})"), &format!("cardinality(d.ks{slot}) < {WORTH_A_WALK}"));
        let sparse = format!("SELECT unnest(k.ks) FROM ({}) k", arrays("NOT TRUE"));
        format!(
            "SELECT {columns} FROM ({dense}) k CROSS JOIN LATERAL (SELECT {columns} FROM unnest(k.ks) u(k1) \
             JOIN {only} t ON {on} WHERE t.{key} BETWEEN k.least AND k.greatest OFFSET 0) t UNION ALL {others}",
            columns = self.select_columns(),
            dense = arrays("TRUE"),
            only = self.source.only,
            on = self.matches("u."),
            key = quote_ident(key),
            others = self.looked_up(&format!("{single} UNION ALL {small} UNION ALL {sparse}")),
        )
    }

    /// All rows of the table, as COPY of the bare columns.
    pub fn bare(&self, binary: bool) -> String {
        // A plain COPY of the table is quicker than one of a query, but leaves out the rows of partitions.
        let format = format_of(binary);
        match self.source.only.starts_with("ONLY ") {
            true => format!("COPY {} ({}) TO STDOUT{format}", self.source.name, self.column_list()),
            false => format!("COPY (SELECT {} FROM {} t) TO STDOUT{format}", self.select_columns(), self.source.only),
        }
    }

    /// All rows of the table, in the form of [`Reading::many`].
    pub fn whole(&self, binary: bool) -> String {
        let keys = list(self.key.len(), |i| format!("t.{}", quote_ident(&self.key[i])), ", ");
        let at = if self.noted { ", pg_catalog.now()" } else { "" };
        let rows = format!("SELECT {keys}, true, {}{at} FROM {} t", self.select_columns(), self.source.only);
        copy_out(Join::Free, &rows, binary)
    }
}
