//! What transactions of the catalog leave the master to do when they have committed: capture that is to be taken off a
//! member, or off a place where a member was. All of it is called in a transaction. It must never wait for a row that somebody
//! else holds where the master calls.

use crate::error::Result;
use crate::pg::spi;

/// A removal that a committed transaction left to do.
pub struct Cleanup {
    pub id: i64,
    pub control: String,
    pub db: String,
    pub conninfo: String,
    /// Whose capture goes; none: all of the control database.
    pub sync: Option<String>,
}

/// Leaves a sync's capture, or all of a control database, to be taken off a place.
pub fn add(control: &str, db: &str, conninfo: &str, sync: Option<&str>) -> Result<()> {
    let sql = "INSERT INTO bucardo.cleanup (control, db, conninfo, sync) VALUES ($1, $2, $3, $4)";
    spi::execute(sql, &[control.into(), db.into(), conninfo.into(), sync.into()]).map(drop)
}

/// Leaves at a place what was to be taken off it: the sync captures there again.
pub fn forget(control: &str, conninfo: &str, sync: &str) -> Result<()> {
    let sql = "DELETE FROM bucardo.cleanup WHERE control = $1 AND conninfo = $2 AND sync = $3";
    spi::execute(sql, &[control.into(), conninfo.into(), sync.into()]).map(drop)
}

/// A member is reached another way: what waits to be taken off it is taken off there. `same`: it is known to be the same
/// database; else that is tried in both places.
pub fn follow(db: &str, from: &str, to: &str, same: bool) -> Result<()> {
    let found = "SELECT control, sync FROM bucardo.cleanup WHERE db = $1 AND conninfo = $2";
    let taken = "DELETE FROM bucardo.cleanup WHERE db = $1 AND conninfo = $2 RETURNING control, sync";
    let sql = format!(
        "WITH known AS ({}) INSERT INTO bucardo.cleanup (control, db, conninfo, sync) SELECT control, $1, $3, sync FROM known",
        if same { taken } else { found }
    );
    spi::execute(&sql, &[db.into(), from.into(), to.into()]).map(drop)
}

/// The removals that wait.
pub fn waiting() -> Result<Vec<Cleanup>> {
    spi::select("SELECT id::bigint, control, db, conninfo, sync FROM bucardo.cleanup ORDER BY id", &[], |row| {
        Ok(Cleanup { id: row.get(1)?, control: row.get(2)?, db: row.get(3)?, conninfo: row.get(4)?, sync: row.opt(5)? })
    })
}

/// A removal is done. Where somebody holds the row it is carried out once more another time.
pub fn done(id: i64) -> Result<()> {
    let sql =
        "DELETE FROM bucardo.cleanup WHERE id = ANY (ARRAY(SELECT id FROM bucardo.cleanup WHERE id = $1 FOR UPDATE SKIP LOCKED))";
    spi::execute(sql, &[id.into()]).map(drop)
}
