//! Are two tables equal? One hash per table when they are, the rows that differ when they are not.
//!
//! Only the source's columns are compared, by name: a member may have columns of its own, in another order, in another
//! encoding. Nothing here may depend on a database's own settings; `wire` fixes them per session.

use crate::wire::Conn;
use std::collections::BTreeMap;

/// How many differing rows of each kind a failure shows.
const SHOWN: usize = 12;

/// The row as text over the columns of `source`'s table: the expression to select on every member.
pub fn row_expression(source: &mut Conn, table: &str) -> String {
    let columns = source.one(&format!(
        "SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute \
         WHERE attrelid = {}::regclass AND attnum > 0 AND NOT attisdropped",
        literal(table)
    ));
    format!("ROW({columns})::text COLLATE \"C\"")
}

pub fn fingerprint(conn: &mut Conn, table: &str, row: &str) -> String {
    conn.one(&format!(
        "SELECT count(*) || ' rows ' || coalesce(md5(convert_to(string_agg(r, E'\\n' ORDER BY r), 'UTF8')), '') \
         FROM (SELECT {row} AS r FROM {table}) AS rows"
    ))
}

/// The rows that only one side has, in words.
pub fn difference(source: &mut Conn, member: &mut Conn, table: &str, row: &str) -> String {
    let mut count: BTreeMap<String, i64> = BTreeMap::new();
    for (side, conn) in [(1, source), (-1, member)] {
        for found in conn.query(&format!("SELECT {row} FROM {table}")) {
            *count.entry(found[0].clone().unwrap_or_default()).or_default() += side;
        }
    }
    let of = |sign: i64| -> Vec<&str> { count.iter().filter(|(_, n)| n.signum() == sign).map(|(row, _)| row.as_str()).collect() };
    format!("missing on the member: {}\ntoo much on the member: {}", list(&of(1)), list(&of(-1)))
}

fn list(rows: &[&str]) -> String {
    let shown: Vec<String> = rows.iter().take(SHOWN).map(|row| format!("\n    {}", crate::wire::shorten(row))).collect();
    format!("{} rows{}", rows.len(), shown.concat())
}

pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
