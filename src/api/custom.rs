//! Customname, customcols and customcode: the functions are there with their arguments, which are checked, and then
//! say that they are not supported yet. They must never store what nothing would obey.

use pgrx::prelude::*;

use super::{Answer, required};
use crate::catalog::Noun;
use crate::error::{Error, Result, SqlState};
use crate::ident::{check_name, parse_qualified, shown};

/// The places of a run.
const WHENRUN: [&str; 12] = [
    "before_sync",
    "before_txn",
    "before_check_rows",
    "before_trigger_disable",
    "after_trigger_disable",
    "after_table_sync",
    "conflict",
    "exception",
    "before_trigger_enable",
    "after_trigger_enable",
    "after_txn",
    "after_sync",
];

fn later(what: &str) -> Error {
    Error::new(SqlState::NOT_SUPPORTED, format!("{what} is not supported yet"))
}

/// Checks what a customname or customcols names, as far as it is given.
fn check_place(relation: Option<&str>, db: Option<&str>, sync: Option<&str>) -> Result<()> {
    parse_qualified(required(relation, "relation")?)?;
    check_objects(db, sync)
}

fn check_objects(db: Option<&str>, sync: Option<&str>) -> Result<()> {
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

fn check_code(whenrun: Option<&str>, db: Option<&str>, sync: Option<&str>, status: Option<&str>) -> Result<()> {
    if let Some(whenrun) = whenrun.filter(|w| !WHENRUN.contains(w)) {
        let hint = format!("whenrun is one of: {}.", WHENRUN.join(", "));
        return Err(Error::new(SqlState::INVALID_PARAMETER, format!("whenrun \"{}\" is not known", shown(whenrun))).hint(hint));
    }
    crate::catalog::options::check_status(status)?;
    check_objects(db, sync)
}

/// Adds code that runs at a place of a run.
#[pg_extern(
    security_definer,
    sql = r#"
CREATE FUNCTION bucardo."add_customcode"("name" text, "whenrun" text, "code" regprocedure DEFAULT NULL, "sql" text DEFAULT NULL, "db" text DEFAULT NULL,
    "sync" text DEFAULT NULL, "relation" text DEFAULT NULL, "priority" integer DEFAULT 0, "status" text DEFAULT 'active') RETURNS text
SECURITY DEFINER SET search_path TO pg_catalog, pg_temp LANGUAGE c AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#
)]
#[allow(clippy::too_many_arguments)]
fn add_customcode(
    name: Option<&str>,
    whenrun: Option<&str>,
    code: Option<pg_sys::Oid>,
    sql: Option<&str>,
    db: Option<&str>,
    sync: Option<&str>,
    relation: Option<&str>,
    priority: Option<i32>,
    status: Option<&str>,
) -> Answer {
    check_name("customcode", required(name, "name")?)?;
    let _ = (relation, priority);
    check_code(Some(required(whenrun, "whenrun")?), db, sync, status)?;
    if code.is_some() == sql.is_some() {
        return Err(Error::new(SqlState::INVALID_PARAMETER, "give either code or sql")
            .hint("code names a function of this database, sql holds statements for the members.")
            .into());
    }
    Err(later("customcode").into())
}

/// Changes a customcode; a null leaves the value.
#[pg_extern(
    security_definer,
    sql = r#"
CREATE FUNCTION bucardo."update_customcode"("name" text, "whenrun" text DEFAULT NULL, "code" regprocedure DEFAULT NULL, "sql" text DEFAULT NULL, "db" text DEFAULT NULL,
    "sync" text DEFAULT NULL, "relation" text DEFAULT NULL, "priority" integer DEFAULT NULL, "status" text DEFAULT NULL) RETURNS text
SECURITY DEFINER SET search_path TO pg_catalog, pg_temp LANGUAGE c AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#
)]
#[allow(clippy::too_many_arguments)]
fn update_customcode(
    name: Option<&str>,
    whenrun: Option<&str>,
    code: Option<pg_sys::Oid>,
    sql: Option<&str>,
    db: Option<&str>,
    sync: Option<&str>,
    relation: Option<&str>,
    priority: Option<i32>,
    status: Option<&str>,
) -> Answer {
    required(name, "name")?;
    let _ = (code, sql, relation, priority);
    check_code(whenrun, db, sync, status)?;
    Err(later("customcode").into())
}

/// Takes a customcode away.
#[pg_extern(security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn remove_customcode(name: Option<&str>) -> Answer {
    required(name, "name")?;
    Err(later("customcode").into())
}
