//! Dbgroups: add_dbgroup, update_dbgroup, remove_dbgroup. What a change means for the syncs that use one is done at
//! once: they are checked against the new members, and capture follows.

use pgrx::prelude::*;

use super::{Answer, notice, required};
use crate::catalog::{Noun, change, db, group};
use crate::ident::{check_name, parse_dbs};
use crate::master::notify;

/// Adds a dbgroup.
#[pg_extern(security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn add_dbgroup(name: Option<&str>, dbs: default!(Option<&str>, "''")) -> Answer {
    let name = required(name, "name")?;
    check_name("dbgroup", name)?;
    let members = parse_dbs(dbs.unwrap_or_default(), &db::names()?)?;
    if !group::insert_dbgroup(name)? {
        return Err(Noun::Dbgroup.duplicate(name).into());
    }
    group::set_members(name, &members)?;
    Ok(name.to_string())
}

/// Gives a dbgroup other members.
#[pg_extern(security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn update_dbgroup(name: Option<&str>, dbs: Option<&str>) -> Answer {
    let name = required(name, "name")?;
    Noun::Dbgroup.lock(name)?;
    let Some(dbs) = dbs else { return Ok(name.to_string()) };
    let members = parse_dbs(dbs, &db::names()?)?;
    let before = change::load_all(&group::syncs_of(Noun::Dbgroup, name)?)?;
    group::set_members(name, &members)?;
    for sync in &before {
        notify::require_preload()?;
        change::engage_changed(&sync.name, Some(sync), None, "update_dbgroup", None, Vec::new())?;
        change::disengage(sync, Some(&change::load(&sync.name)?))?;
    }
    Ok(name.to_string())
}

/// Removes a dbgroup; forced, with the syncs that use it.
#[pg_extern(security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn remove_dbgroup(name: Option<&str>, force: default!(Option<bool>, "false")) -> Answer {
    remove_group(Noun::Dbgroup, name, force)
}

/// Removes a list; forced, with the syncs that use it.
pub(super) fn remove_group(noun: Noun, name: Option<&str>, force: Option<bool>) -> Answer {
    let name = required(name, "name")?;
    noun.lock(name)?;
    let syncs = group::syncs_of(noun, name)?;
    if !force.unwrap_or(false) {
        change::refuse_in_use(noun, name, &syncs)?;
    }
    for sync in &syncs {
        change::remove_sync(sync)?;
        notice(&format!("sync \"{sync}\" was removed with it"));
    }
    group::delete(noun, name)?;
    notify::catalog_changed();
    Ok(name.to_string())
}
