//! Which of many staged rows a receiver refuses. A statement for all of them says only that there is one; so in an attempt of its
//! own, whose writes are undone, the staging table is halved until one row is left. It never changes what is written.

use super::statements::list;
use crate::error::{Result, SqlState};
use crate::libpq::Conn;

/// What the attempt goes back to.
pub const SAVEPOINT: &str = "SAVEPOINT bucardo_bring";
pub const RELEASE: &str = "RELEASE SAVEPOINT bucardo_bring";

/// What is only tried does not fill the receiver's log.
const QUIET: &str =
    "SELECT pg_catalog.set_config('log_min_messages', 'fatal', true) WHERE pg_catalog.current_setting('is_superuser') = 'on'";
/// So many pages are searched at most: every step looks at all of them, and what the attempt has locked stays so meanwhile.
const MOST: u64 = 4096;
/// Places in a page, more than there can be rows in one.
const PLACES: u64 = 1 << 12;

/// A staging table, and what brings its rows into the table.
#[derive(Clone)]
pub struct Staged {
    /// Its name as SQL.
    pub table: String,
    /// The columns of the key.
    pub key: Vec<String>,
}

/// The key of the first row that is refused with the given code, after the statements have failed so behind a [`SAVEPOINT`]; None:
/// no row is by itself, or something else happened meanwhile, as an application's change of one of them.
pub fn find<'a>(
    conn: &mut Conn,
    staged: &Staged,
    statements: impl Iterator<Item = &'a str>,
    code: SqlState,
) -> Result<Option<String>> {
    conn.query("ROLLBACK TO SAVEPOINT bucardo_bring")?;
    let pages = conn.query(&format!(
        "SELECT pg_catalog.pg_relation_size('{}') / pg_catalog.current_setting('block_size')::pg_catalog.int8",
        staged.table
    ))?;
    let all: Vec<&str> = statements.collect();
    let refused = |conn: &mut Conn, from: u64, to: u64| -> Result<bool> {
        let others = format!("DELETE FROM {} WHERE ctid < '{}' OR ctid >= '{}'", staged.table, place(from), place(to));
        let tried = conn.query(&format!("{SAVEPOINT}; {QUIET}; {others}; {}", all.join("; ")));
        conn.query("ROLLBACK TO SAVEPOINT bucardo_bring; RELEASE SAVEPOINT bucardo_bring")?;
        match tried {
            Err(error) if error.code != code => Err(error),
            tried => Ok(tried.is_err()),
        }
    };
    let pages = pages.number::<u64>(0, 0).unwrap_or(0);
    let (mut from, mut to) = (0, pages * PLACES);
    // What is refused without any row is no row's fault.
    if pages > MOST || refused(conn, 0, 0)? {
        return Ok(None);
    }
    while to - from > 1 {
        let middle = from + (to - from) / 2;
        match refused(conn, from, middle)? {
            true => to = middle,
            false => from = middle,
        }
    }
    if to == from || !refused(conn, from, to)? {
        return Ok(None);
    }
    let columns = list(staged.key.len(), |i| format!("k{}", i + 1), ", ");
    let row = conn.query(&format!("SELECT {columns} FROM {} WHERE ctid = '{}'", staged.table, place(from)))?;
    let values: Vec<String> = (0..staged.key.len()).map(|i| row.text(0, i)).collect();
    Ok((row.len() == 1).then(|| format!("({})=({})", staged.key.join(", "), values.join(", "))))
}

/// A row's place as SQL: page and number within it.
fn place(at: u64) -> String {
    format!("({},{})", at / PLACES, at % PLACES)
}
