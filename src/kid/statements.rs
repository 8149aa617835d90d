//! What the SQL of a run has in common, on the side of the source (`reading`) and of a receiver (`writing`): windows, and
//! how keys find their rows. Pure text: it decides how rows are read and written, never which. A column may have any name:
//! it is always written with its table's alias, a whole row as `t.*` (a bare `t` would be the column of that name), and no
//! alias of ours stands in one list with columns of the user's.

use crate::ident::quote_literal;

/// A window as SQL literals: deltas not visible in the snapshot that was served last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    pub xmax: String,
    pub xip: String,
}

impl Window {
    /// The condition on a delta or a mark.
    pub fn condition(&self) -> String {
        format!("(xid >= {} OR xid = ANY ('{}'::pg_catalog.int8[]))", self.xmax, self.xip)
    }

    /// The transactions that ran while the snapshot was taken.
    pub fn running(&self) -> impl Iterator<Item = i64> + '_ {
        self.xip.trim_matches(['{', '}']).split(',').filter_map(|x| x.parse().ok())
    }

    /// Whether a transaction's changes lie in the window.
    pub fn holds(&self, xid: i64) -> bool {
        self.xmax.parse::<i64>().is_ok_and(|xmax| xid >= xmax) || self.running().any(|x| x == xid)
    }
}

/// For statements about one key whose plans are kept: a plan that was made while the table was small must not scan it
/// when it has grown.
pub const BY_INDEX: &str = "SET LOCAL enable_seqscan = off";
pub const AS_BEFORE: &str = "SET LOCAL enable_seqscan = DEFAULT";

/// How changed keys find their rows. The planner knows nothing of our tables (they are never analyzed) and chooses badly;
/// the run knows how many keys there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Join {
    /// Each key by the index, in the order of the keys: work grows with the changes, not with the table. For outer joins, in
    /// which nothing but the keys can come first.
    Lookup,
    /// The same for inner joins. Statistics that were taken while a table was being filled say that it is empty: then its whole
    /// index would be read first, and all keys for each of its rows. A bitmap cannot be had without a key.
    Seek,
    /// One walk along the index beside the sorted keys, between bounds that the statement names: where keys lie close together.
    Walk,
    /// All at once, by merge or hash: for a good part of the table.
    Bulk,
    /// As the planner likes.
    Free,
}

impl Join {
    /// All at once is cheaper from half of the table on; but it must be built before the first row comes, while receivers
    /// work on what single lookups bring.
    pub fn of(keys: u64, rows: u64) -> Self {
        if keys.saturating_mul(2) >= rows { Join::Bulk } else { Join::Lookup }
    }

    /// The settings to put before a statement: they hold until others are set, or the transaction ends.
    pub fn settings(self) -> &'static str {
        match self {
            Join::Lookup => {
                // A table that was empty when it was planned for would be scanned once for each key.
                "SET LOCAL enable_nestloop = on; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; \
                 SET LOCAL enable_hashagg = off; SET LOCAL enable_material = off; SET LOCAL enable_seqscan = off; \
                 SET LOCAL enable_bitmapscan = off; SET LOCAL enable_indexscan = on; SET LOCAL enable_indexonlyscan = on; "
            }
            Join::Seek => {
                // Tables without an index, as staging tables, are joined by hash.
                "SET LOCAL enable_nestloop = on; SET LOCAL enable_hashjoin = on; SET LOCAL enable_mergejoin = off; \
                 SET LOCAL enable_hashagg = off; SET LOCAL enable_material = off; SET LOCAL enable_seqscan = off; \
                 SET LOCAL enable_bitmapscan = on; SET LOCAL enable_indexscan = off; SET LOCAL enable_indexonlyscan = off; "
            }
            Join::Walk => {
                "SET LOCAL enable_nestloop = off; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = on; \
                 SET LOCAL enable_hashagg = off; SET LOCAL enable_material = off; SET LOCAL enable_seqscan = off; \
                 SET LOCAL enable_bitmapscan = off; SET LOCAL enable_indexscan = on; SET LOCAL enable_indexonlyscan = on; "
            }
            Join::Bulk => {
                "SET LOCAL enable_nestloop = off; SET LOCAL enable_hashjoin = on; SET LOCAL enable_mergejoin = on; \
                 SET LOCAL enable_hashagg = off; SET LOCAL enable_material = on; SET LOCAL enable_seqscan = on; \
                 SET LOCAL enable_bitmapscan = on; SET LOCAL enable_indexscan = on; SET LOCAL enable_indexonlyscan = on; "
            }
            Join::Free => {
                "SET LOCAL enable_nestloop = on; SET LOCAL enable_hashjoin = on; SET LOCAL enable_mergejoin = on; \
                 SET LOCAL enable_hashagg = on; SET LOCAL enable_material = on; SET LOCAL enable_seqscan = on; \
                 SET LOCAL enable_bitmapscan = on; SET LOCAL enable_indexscan = on; SET LOCAL enable_indexonlyscan = on; "
            }
        }
    }
}

/// The number of rows in a line of EXPLAIN.
pub fn planned_rows(line: &str) -> Option<u64> {
    line.rsplit("rows=").next()?.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Items of a list of SQL, counted from 0.
pub fn list(n: usize, item: impl Fn(usize) -> String, separator: &str) -> String {
    (0..n).map(item).collect::<Vec<_>>().join(separator)
}

/// A key as a JSON object, of the values of its columns.
pub fn key_object(key: &[String], value: impl Fn(usize) -> String) -> String {
    let pairs = list(key.len(), |i| format!("{}, {}", quote_literal(&key[i]), value(i)), ", ");
    format!("pg_catalog.json_build_object({pairs})")
}

/// The time of a delta `d`: that of its commit where the server keeps these, which may be `known`. What was written for another
/// sync keeps the time of the original change.
pub fn commit_time(known: bool) -> &'static str {
    macro_rules! time {
        ($and:literal) => {
            concat!(
                "CASE WHEN d.origin IS NULL",
                $and,
                " THEN coalesce(pg_catalog.pg_xact_commit_timestamp((d.xid % 4294967296)::pg_catalog.text::pg_catalog.xid), d.at) ",
                "ELSE d.at END"
            )
        };
    }
    match known {
        true => time!(""),
        false => time!(" AND pg_catalog.current_setting('track_commit_timestamp')::pg_catalog.bool"),
    }
}

/// The COPY of a query, with the settings for it; the statements after it are the planner's own again.
pub fn copy_out(join: Join, rows: &str, binary: bool) -> String {
    format!("{}COPY ({rows}) TO STDOUT{}; {}", join.settings(), format_of(binary), Join::Free.settings())
}

/// The option of a COPY.
pub fn format_of(binary: bool) -> &'static str {
    if binary { " (FORMAT binary)" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::{Join, planned_rows};

    #[test]
    fn a_line_of_explain_tells_rows() {
        for (line, rows) in [
            ("Seq Scan on t  (cost=0.00..35811.00 rows=2550000 width=0)", Some(2_550_000)),
            ("Append  (cost=0.00..0.00 rows=0 width=0)", Some(0)),
            ("Seq Scan on \"rows=\" t  (cost=0.00..1.00 rows=7 width=0)", Some(7)),
            ("", None),
        ] {
            assert_eq!(planned_rows(line), rows, "{line}");
        }
    }

    #[test]
    fn half_of_a_table_is_joined_at_once() {
        for (changes, rows, join) in [
            (0, 1, Join::Lookup),
            (1, 1, Join::Bulk),
            (49, 100, Join::Lookup),
            (50, 100, Join::Bulk),
            (u64::MAX, u64::MAX, Join::Bulk),
        ] {
            assert_eq!(Join::of(changes, rows), join, "{changes} of {rows}");
        }
    }
}
