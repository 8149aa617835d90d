//! Members: add_db, update_db, remove_db. A member is connected to before anything about it is stored, so that a
//! conninfo that does not work is never in the catalog. No password leaves this file but to libpq and db_secret.

use std::ffi::CStr;

use pgrx::prelude::*;

use super::{Answer, notice, required};
use crate::catalog::{Noun, change, check, cleanup, control_id, db, group, options};
use crate::error::{Error, Result, SqlState};
use crate::ident::{Role, check_name};
use crate::libpq::{Conninfo, Target};
use crate::master::notify;
use crate::pg::{spi, statement};

/// Adds a member.
#[pg_extern(security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn add_db(
    name: Option<&str>,
    conninfo: default!(Option<&str>, "''"),
    dbgroup: default!(Option<&str>, "NULL"),
    role: default!(Option<&str>, "NULL"),
    makedelta: default!(Option<bool>, "false"),
    status: default!(Option<&str>, "'active'"),
    check_connection: default!(Option<bool>, "true"),
) -> Answer {
    hide_secret(conninfo, c"SELECT bucardo.add_db(...)");
    let name = required(name, "name")?;
    check_name("db", name)?;
    spi::require_primary()?;
    options::check_status(status)?;
    let role = role.map(Role::parse).transpose()?;
    if role.is_some() && dbgroup.is_none() {
        return Err(Error::new(SqlState::INVALID_PARAMETER, "role needs a dbgroup")
            .hint("Give dbgroup => '…' too, or name the role in add_sync's dbs.")
            .into());
    }
    let conninfo = conninfo.unwrap_or_default().trim();
    let target = db::target(name, conninfo)?;
    if Noun::Db.exists(name)? {
        return Err(Noun::Db.duplicate(name).into());
    }
    let identity = if check_connection.unwrap_or(true) { Some(check::open(&target, "add_db")?.1.lasting) } else { None };
    if !db::insert(name, conninfo, makedelta.unwrap_or(false), status.unwrap_or("active"))? {
        return Err(Noun::Db.duplicate(name).into());
    }
    db::set_identity(name, identity.as_deref())?;
    if let Some(dbgroup) = dbgroup {
        join(name, dbgroup, role)?;
    }
    notify::catalog_changed();
    Ok(name.to_string())
}

/// A password that stands in a call is in its text too, which the server would write into its log when the call fails, and
/// show to others for as long as the session does nothing else.
fn hide_secret(conninfo: Option<&str>, instead: &CStr) {
    if conninfo.is_some_and(Conninfo::may_be_secret) {
        statement::hide(instead);
    }
}

/// Puts a new member at the end of a dbgroup, which is made when it is not there.
fn join(name: &str, dbgroup: &str, role: Option<Role>) -> Result<()> {
    check_name("dbgroup", dbgroup)?;
    if group::insert_dbgroup(dbgroup)? {
        notice(&format!("dbgroup \"{dbgroup}\" was made"));
    }
    Noun::Dbgroup.lock(dbgroup)?;
    let role = match role {
        Some(role) => role,
        None if group::members(dbgroup)?.is_empty() => Role::Source,
        None => Role::Target,
    };
    let before = change::load_all(&group::syncs_of(Noun::Dbgroup, dbgroup)?)?;
    group::add_member(dbgroup, name, role, None)?;
    for sync in &before {
        notify::require_preload()?;
        change::engage_changed(&sync.name, Some(sync), None, "add_db", None, Vec::new())?;
    }
    Ok(())
}

/// Changes a member; a null leaves the value. Where it is, or that it takes part, is said anew: then it may be another
/// database than before.
#[pg_extern(security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn update_db(
    name: Option<&str>,
    conninfo: default!(Option<&str>, "NULL"),
    makedelta: default!(Option<bool>, "NULL"),
    status: default!(Option<&str>, "NULL"),
) -> Answer {
    hide_secret(conninfo, c"SELECT bucardo.update_db(...)");
    let name = required(name, "name")?;
    options::check_status(status)?;
    let conninfo = conninfo.map(str::trim);
    let target = conninfo.map(|c| db::target(name, c)).transpose()?;
    Noun::Db.lock(name)?;
    let before = db::load(name)?.ok_or_else(|| Noun::Db.unknown(name))?;
    let active = status.map_or(before.active, |s| s == "active");
    let syncs = group::syncs_of_db(name)?;
    db::update(name, conninfo, makedelta, status)?;
    let confirmed = conninfo.is_some() || status == Some("active");
    if confirmed {
        db::set_identity(name, None)?;
    }
    // Where a member is said to be it must answer; one that is only to take part again may still be away.
    if active && confirmed {
        if syncs.is_empty() {
            match check::open(target.as_ref().unwrap_or(&before.target), "update_db") {
                Ok((_, identity)) => db::set_identity(name, Some(&identity.lasting))?,
                Err(error) if target.is_none() && error.code.class() == "08" => {
                    warning!("{}: it is not checked now", error.message)
                }
                Err(error) => return Err(error.into()),
            }
        }
        for sync in &syncs {
            let mut known = change::load(sync)?;
            known.members.retain(|m| target.is_none() || m.db.name != name);
            change::engage_changed(sync, Some(&known), None, "update_db", None, Vec::new())?;
        }
    }
    if let Some(conninfo) = conninfo.filter(|conninfo| *conninfo != before.conninfo) {
        let now = db::load(name)?.and_then(|db| db.identity);
        cleanup::follow(name, &before.conninfo, conninfo, now.is_some() && now == before.identity)?;
    }
    if let Some(target) = target.as_ref().filter(|_| active) {
        leave(&before, target, &syncs)?;
    }
    notify::catalog_changed();
    Ok(name.to_string())
}

/// Has capture taken off the place that a member is moved away from, if that is another database.
fn leave(before: &db::Db, now: &Target, syncs: &[String]) -> Result<()> {
    if before.target == *now || syncs.is_empty() {
        return Ok(());
    }
    match (check::open(&before.target, "update_db"), check::open(now, "update_db")) {
        (Ok((_, old)), Ok((_, new))) if old != new => {
            for sync in syncs {
                let capture = change::load(sync)?.capture_name();
                cleanup::add(&control_id()?, &before.name, &before.conninfo, Some(&capture))?;
            }
        }
        (Err(error), _) => {
            warning!("where db \"{}\" was before, capture may be left, because it cannot be reached: {error}", before.name)
        }
        _ => {}
    }
    Ok(())
}

/// Removes a member.
#[pg_extern(security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn remove_db(name: Option<&str>, force: default!(Option<bool>, "false")) -> Answer {
    let name = required(name, "name")?;
    Noun::Db.lock(name)?;
    let syncs = group::syncs_of_db(name)?;
    if !force.unwrap_or(false) {
        change::refuse_in_use(Noun::Db, name, &syncs)?;
    }
    for sync in &syncs {
        let sync = change::load(sync)?;
        change::queue_cleanup(name, &sync.capture_name())?;
        if sync.sources().any(|m| m.db.name == name) {
            change::source_left(&sync);
        }
    }
    db::delete(name)?;
    for sync in &syncs {
        change::rest_if_broken(sync)?;
    }
    notify::catalog_changed();
    Ok(name.to_string())
}
