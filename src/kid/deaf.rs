//! Members that shall capture what runs bring (`makedelta`), but have nothing yet that could: no sync takes changes from them, so
//! nobody would learn of it. Capture may be installed there while a run goes on. What the run has not captured then must not
//! be committed: asked when it has written, and so keeps capture from the tables until it ends.

use crate::error::{Error, Result, SqlState};
use crate::libpq::Conn;

const DEAF: &str = "SELECT pg_catalog.to_regprocedure('bucardo.capture_note(oid,text[],text,text)') IS NULL";
/// An error of the statement, which keeps a COMMIT behind it in the pipeline from being carried out.
const STILL: &str =
    "SELECT 1 / CASE WHEN pg_catalog.to_regprocedure('bucardo.capture_note(oid,text[],text,text)') IS NULL THEN 1 ELSE 0 END";

/// Whether a member is.
pub fn look(conn: &mut Conn) -> Result<bool> {
    Ok(conn.query(DEAF)?.bool(0, 0))
}

/// Puts the question whether it still is into a pipeline. It is for a `receiver` that [is](super::plan::Plan::is_deaf).
pub fn queue(conn: &mut Conn) -> Result<()> {
    conn.pipeline_add(STILL, &[], &[])
}

/// What the failure of that statement means: the run begins again, and looks again.
pub fn explained(error: Error) -> Error {
    match error.code {
        SqlState::DIVISION_BY_ZERO => Error::new(SqlState::WRONG_STATE, "capture was installed during the run"),
        _ => error,
    }
}
