//! Customcode: add_customcode, update_customcode, remove_customcode, and what a customcode calls while it runs. Only
//! `conflict` is built: for the other places everything is checked and then refused, because nothing would obey it.
//! A code runs with the rights of the role that registered it, so that role must never be another than the caller.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::custom::{check_objects, later};
use super::{Answer, required};
use crate::catalog::customcode::{self, Fields};
use crate::catalog::{Noun, options};
use crate::error::{Error, Result, SqlState};
use crate::ident::{check_name, quote_literal, shown};
use crate::kid::customcode::on_member;
use crate::master::notify;
use crate::pg::{role, spi};

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

/// What add_customcode and update_customcode are given.
struct Given<'a> {
    whenrun: &'a str,
    code: Option<pg_sys::Oid>,
    sql: Option<&'a str>,
    db: Option<&'a str>,
    sync: Option<&'a str>,
    relation: Option<&'a str>,
    priority: Option<i32>,
    status: Option<&'a str>,
}

impl<'a> Given<'a> {
    /// Checks all of it; what is to be stored.
    fn checked(&self, registrar: u32) -> Result<Fields<'a>> {
        if !WHENRUN.contains(&self.whenrun) {
            let hint = format!("whenrun is one of: {}.", WHENRUN.join(", "));
            return Err(
                Error::new(SqlState::INVALID_PARAMETER, format!("whenrun \"{}\" is not known", shown(self.whenrun))).hint(hint)
            );
        }
        options::check_status(self.status)?;
        self.check_what_runs()?;
        check_objects(self.db, self.sync)?;
        let relation = self.relation.map(customcode::relation_name).transpose()?;
        let function = self.code.map(|code| customcode::check_function(code, registrar)).transpose()?;
        if self.whenrun != "conflict" {
            return Err(later(&format!("customcode {}", self.whenrun)).hint("Of the places of a run, conflict is supported."));
        }
        Ok(Fields {
            code: function.map(|function| (function, registrar)),
            sync: self.sync,
            relation,
            priority: self.priority,
            status: self.status,
        })
    }

    fn check_what_runs(&self) -> Result<()> {
        let bad = |message: &str, hint: &str| Err(Error::new(SqlState::INVALID_PARAMETER, message).hint(hint));
        if self.code.is_some() && self.sql.is_some() {
            return bad(EITHER, EITHER_HINT);
        }
        if self.whenrun == "conflict" && self.sql.is_some() {
            return bad(
                "a conflict needs code, not sql",
                "Give code => 'schema.name(jsonb)': a function that returns the decision.",
            );
        }
        if self.whenrun == "conflict" && self.db.is_some() {
            return bad("a conflict has no db", "Leave db out: a function runs in the control database; see sync and relation.");
        }
        Ok(())
    }
}

const EITHER: &str = "give either code or sql";
const EITHER_HINT: &str = "code names a function of this database, sql holds statements for the members.";

/// Runs the body with the rights of the catalog's owner, and tells it who called. Not SECURITY DEFINER, as the other
/// functions are: under that, the caller cannot be told any more. The session's role will not do, because a function
/// that somebody else's session is led into (as an index expression is by ANALYZE) could then register with its rights.
fn as_owner<T>(body: impl FnOnce(u32) -> Result<T>) -> Result<T> {
    let sql = "SELECT c.relowner FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
        WHERE n.nspname = 'bucardo' AND c.relname = 'customcode'";
    let owner = spi::value::<pg_sys::Oid>(sql, &[])?.ok_or_else(|| Error::internal("bucardo.customcode is missing"))?;
    let caller = role::current();
    role::with_rights_of(owner.to_u32(), || body(caller))
}

/// Adds code that runs at a place of a run.
#[pg_extern(sql = r#"
CREATE FUNCTION bucardo."add_customcode"("name" text, "whenrun" text, "code" regprocedure DEFAULT NULL, "sql" text DEFAULT NULL, "db" text DEFAULT NULL,
    "sync" text DEFAULT NULL, "relation" text DEFAULT NULL, "priority" integer DEFAULT 0, "status" text DEFAULT 'active') RETURNS text
SET search_path TO pg_catalog, pg_temp LANGUAGE c AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#)]
#[expect(clippy::too_many_arguments, reason = "they are those of the SQL function")]
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
    let name = required(name, "name")?;
    check_name("customcode", name)?;
    let whenrun = required(whenrun, "whenrun")?;
    if code.is_none() && sql.is_none() {
        return Err(Error::new(SqlState::INVALID_PARAMETER, EITHER).hint(EITHER_HINT).into());
    }
    let given = Given { whenrun, code, sql, db, sync, relation, priority, status };
    as_owner(|caller| {
        if Noun::Customcode.exists(name)? {
            return Err(Noun::Customcode.duplicate(name));
        }
        customcode::insert(name, &given.checked(caller)?)
    })?;
    notify::catalog_changed();
    Ok(name.to_string())
}

/// Changes a customcode; a null leaves the value. Who gives code is from then on whose rights it runs with.
#[pg_extern(sql = r#"
CREATE FUNCTION bucardo."update_customcode"("name" text, "whenrun" text DEFAULT NULL, "code" regprocedure DEFAULT NULL, "sql" text DEFAULT NULL, "db" text DEFAULT NULL,
    "sync" text DEFAULT NULL, "relation" text DEFAULT NULL, "priority" integer DEFAULT NULL, "status" text DEFAULT NULL) RETURNS text
SET search_path TO pg_catalog, pg_temp LANGUAGE c AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#)]
#[expect(clippy::too_many_arguments, reason = "they are those of the SQL function")]
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
    let name = required(name, "name")?;
    // Nothing else can be stored yet.
    let given = Given { whenrun: whenrun.unwrap_or("conflict"), code, sql, db, sync, relation, priority, status };
    as_owner(|caller| {
        Noun::Customcode.lock(name)?;
        customcode::update(name, &given.checked(caller)?)
    })?;
    notify::catalog_changed();
    Ok(name.to_string())
}

/// Takes a customcode away.
#[pg_extern(security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn remove_customcode(name: Option<&str>) -> Answer {
    let name = required(name, "name")?;
    customcode::remove(name)?;
    notify::catalog_changed();
    Ok(name.to_string())
}

fn outside(function: &str) -> Error {
    Error::new(SqlState::WRONG_STATE, format!("{function} can only be called by a customcode, while a run calls it"))
        .hint("Register the function that calls it: SELECT bucardo.add_customcode('…', '…', code => 'schema.name(jsonb)');")
}

/// Within a customcode: the rows of a query in the run's own transaction on a member.
#[pg_extern]
fn member_query(db: Option<&str>, sql: Option<&str>) -> Result<SetOfIterator<'static, pgrx::JsonB>, ErrorReport> {
    let (db, sql) = (required(db, "db")?, bare(required(sql, "sql")?));
    // On a line of its own what follows is not part of a comment.
    let sql = format!("WITH q AS (\n{sql}\n) SELECT pg_catalog.to_jsonb(q) FROM q");
    let rows = on_member(db, |conn| conn.query_params(&sql, &[])).unwrap_or_else(|| Err(outside("member_query")))?;
    let row = |i| serde_json::from_str(rows.get(i, 0).unwrap_or("null")).map(pgrx::JsonB);
    let all = (0..rows.len()).map(row).collect::<Result<Vec<_>, _>>();
    let all = all.map_err(|e| Error::internal(format!("a row of db \"{db}\" cannot be read: {e}")))?;
    Ok(SetOfIterator::new(all))
}

/// Without the semicolon at its end.
fn bare(sql: &str) -> &str {
    sql.trim_end_matches(|c: char| c == ';' || c.is_whitespace())
}

/// How many rows a statement has written. Inside of a block nothing can end the transaction.
fn block(sql: &str) -> String {
    let body = format!(
        "DECLARE n pg_catalog.int8; BEGIN EXECUTE {}; GET DIAGNOSTICS n = ROW_COUNT; PERFORM pg_catalog.set_config('bucardo_code.rows', n::pg_catalog.text, true); END",
        quote_literal(sql)
    );
    format!("DO {}; SELECT pg_catalog.current_setting('bucardo_code.rows')", quote_literal(&body))
}

/// Within a customcode: a statement in the run's own transaction on a member; how many rows.
#[pg_extern]
fn member_exec(db: Option<&str>, sql: Option<&str>) -> Result<i64, ErrorReport> {
    let (db, sql) = (required(db, "db")?, required(sql, "sql")?);
    let rows = on_member(db, |conn| conn.query(&block(sql))).unwrap_or_else(|| Err(outside("member_exec")))?;
    Ok(rows.number(0, 0).unwrap_or(0))
}
