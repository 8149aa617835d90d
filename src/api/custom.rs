//! Customname and customcols: the functions are there with their arguments, which are checked, and then
//! say that they are not supported yet. They must never store what nothing would obey.

use pgrx::prelude::*;

use super::{Answer, required};
use crate::catalog::Noun;
use crate::error::{Error, Result, SqlState};
use crate::ident::parse_qualified;

/// What is checked and not built yet.
pub(super) fn later(what: &str) -> Error {
    Error::new(SqlState::NOT_SUPPORTED, format!("{what} is not supported yet"))
}

/// Checks what a customname or customcols names, as far as it is given.
fn check_place(relation: Option<&str>, db: Option<&str>, sync: Option<&str>) -> Result<()> {
    parse_qualified(required(relation, "relation")?)?;
    check_objects(db, sync)
}

/// Checks that what is named exists.
pub(super) fn check_objects(db: Option<&str>, sync: Option<&str>) -> Result<()> {
    for (noun, name) in [(Noun::Db, db), (Noun::Sync, sync)] {
        if let Some(name) = name
            && !noun.exists(name)?
        {
            return Err(noun.unknown(name));
        }
    }
    Ok(())
}

/// Gives a relation another name on members that are not sources.
#[pg_extern(security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn add_customname(
    relation: Option<&str>,
    newname: Option<&str>,
    db: default!(Option<&str>, "NULL"),
    sync: default!(Option<&str>, "NULL"),
) -> Answer {
    check_place(relation, db, sync)?;
    parse_qualified(required(newname, "newname")?)?;
    Err(later("customname").into())
}

/// Takes a customname away.
#[pg_extern(security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn remove_customname(relation: Option<&str>, db: default!(Option<&str>, "NULL"), sync: default!(Option<&str>, "NULL")) -> Answer {
    check_place(relation, db, sync)?;
    Err(later("customname").into())
}

/// Has other columns sent than the table's own.
#[pg_extern(security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn add_customcols(
    relation: Option<&str>,
    clause: Option<&str>,
    db: default!(Option<&str>, "NULL"),
    sync: default!(Option<&str>, "NULL"),
) -> Answer {
    check_place(relation, db, sync)?;
    required(clause, "clause")?;
    Err(later("customcols").into())
}

/// Takes customcols away.
#[pg_extern(security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn remove_customcols(relation: Option<&str>, db: default!(Option<&str>, "NULL"), sync: default!(Option<&str>, "NULL")) -> Answer {
    check_place(relation, db, sync)?;
    Err(later("customcols").into())
}
