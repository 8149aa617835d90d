//! Single relations of a relgroup: add_table, add_sequence, update_table, remove_table. In a live sync a change takes
//! effect at once: the relation is checked on all members and captured on the sources before the call returns.

use pgrx::prelude::*;

use super::{Answer, required};
use crate::catalog::check::Opened;
use crate::catalog::describe::Described;
use crate::catalog::relation::{self, Named, Options};
use crate::catalog::{Noun, change, check, db, group, options, pick};
use crate::error::{Error, Result, SqlState};
use crate::ident::{one_line, parse_qualified, quote_literal, shown};
use crate::master::notify;

/// Adds a table to a relgroup.
#[pg_extern(security_definer)]
#[search_path(pg_catalog, pg_temp)]
#[expect(clippy::too_many_arguments, reason = "they are those of the SQL function")]
fn add_table(
    name: Option<&str>,
    relgroup: Option<&str>,
    db: default!(Option<&str>, "NULL"),
    pkey: default!(Option<&str>, "NULL"),
    conflict_strategy: default!(Option<&str>, "NULL"),
    makedelta: default!(Option<bool>, "NULL"),
    strict_checking: default!(Option<bool>, "NULL"),
    rebuild_index: default!(Option<bool>, "NULL"),
    autokick: default!(Option<bool>, "NULL"),
    priority: default!(Option<i32>, "0"),
) -> Answer {
    let options = Options { pkey, conflict_strategy, makedelta, strict_checking, rebuild_index, autokick, priority };
    Ok(add(name, relgroup, db, false, &options)?)
}

/// Adds a sequence to a relgroup.
#[pg_extern(security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn add_sequence(
    name: Option<&str>,
    relgroup: Option<&str>,
    db: default!(Option<&str>, "NULL"),
    priority: default!(Option<i32>, "0"),
) -> Answer {
    Ok(add(name, relgroup, db, true, &Options { priority, ..Options::default() })?)
}

fn check_options(options: &Options<'_>) -> Result<()> {
    options::check_strategy(options.conflict_strategy, &db::names()?)?;
    Ok(())
}

fn add(name: Option<&str>, relgroup: Option<&str>, db: Option<&str>, is_sequence: bool, options: &Options<'_>) -> Result<String> {
    let name = required(name, "name")?;
    let relgroup = required(relgroup, "relgroup")?;
    let (schema, relname) = parse_qualified(name)?;
    Noun::Relgroup.lock(relgroup)?;
    check_options(options)?;
    let syncs = group::syncs_of(Noun::Relgroup, relgroup)?;
    if !syncs.is_empty() {
        notify::require_preload()?;
    }
    let function = if is_sequence { "add_sequence" } else { "add_table" };
    let (relation, found_on, opened) = match looked_up_on(db, &syncs)? {
        Some(db) => look_up(&db, schema, relname, is_sequence, options, function)?,
        None => (Named { schema, name: relname, is_sequence }, None, None),
    };
    let before = change::load_all(&syncs)?;
    let Some(id) = relation::add(relgroup, &relation, found_on.as_deref(), options)? else {
        let message = format!("{} is in relgroup \"{relgroup}\" already", one_line(&relation.display()));
        return Err(Error::new(SqlState::DUPLICATE_OBJECT, message).hint("Change its options with bucardo.update_table."));
    };
    let mut opened = opened;
    for sync in &before {
        change::engage_captured(sync, &[id], function, opened.take())?;
    }
    Ok(relation.display())
}

/// The member on which a name is looked up: the one that was given, else the first source of a sync that uses it.
fn looked_up_on(db: Option<&str>, syncs: &[String]) -> Result<Option<db::Db>> {
    if let Some(name) = db {
        return Ok(Some(db::load(name)?.ok_or_else(|| Noun::Db.unknown(name))?));
    }
    let Some(sync) = syncs.first() else { return Ok(None) };
    Ok(change::load(sync)?.sources().map(|m| m.db.clone()).find(|db| db.active))
}

type Found = (Named, Option<String>, Opened);

fn look_up(
    db: &db::Db,
    schema: Option<String>,
    relname: String,
    is_sequence: bool,
    options: &Options<'_>,
    function: &str,
) -> Result<Found> {
    let (mut conn, identity) = check::open(&db.target, function)?;
    let (named, found) = pick::look_up(&mut conn, &[(schema, relname)])?
        .into_iter()
        .next()
        .ok_or_else(|| Error::internal("nothing was looked up"))?;
    check_found(&db.name, &named, found.as_ref(), is_sequence, options)?;
    Ok((named, Some(db.name.clone()), Some((db.name.clone(), Ok((conn, identity))))))
}

fn check_found(db: &str, named: &Named, found: Option<&Described>, is_sequence: bool, options: &Options<'_>) -> Result<()> {
    let (what, other) = if is_sequence { ("sequence", "add_table") } else { ("table", "add_sequence") };
    let name = one_line(&named.display());
    let Some(found) = found else {
        return Err(Error::new(SqlState::UNDEFINED_OBJECT, format!("{what} {name} does not exist on db \"{db}\""))
            .hint("Create it there first, and write its name as in SQL: schema.table, with double quotes where needed."));
    };
    if found.is_sequence() != is_sequence || !(found.is_table() || found.is_sequence()) {
        let hint = if found.is_table() || found.is_sequence() {
            format!("SELECT bucardo.{other}({}, …);", quote_literal(&named.display()))
        } else {
            "Only tables, partitioned tables and sequences are replicated.".to_string()
        };
        return Err(Error::new(SqlState::INVALID_PARAMETER, format!("{name} is not a {what} on db \"{db}\"")).hint(hint));
    }
    match options.pkey {
        Some(index) if found.key(Some(index)).is_none() => {
            let message = format!("\"{}\" is not a unique index of {name} over NOT NULL columns on db \"{db}\"", shown(index));
            Err(Error::new(SqlState::WRONG_STATE, message)
                .hint("pkey names a unique index that is valid, not partial, and over plain columns that are NOT NULL."))
        }
        _ => Ok(()),
    }
}

/// Changes a table's options; a null leaves the value.
#[pg_extern(security_definer)]
#[search_path(pg_catalog, pg_temp)]
#[expect(clippy::too_many_arguments, reason = "they are those of the SQL function")]
fn update_table(
    name: Option<&str>,
    relgroup: Option<&str>,
    pkey: default!(Option<&str>, "NULL"),
    conflict_strategy: default!(Option<&str>, "NULL"),
    makedelta: default!(Option<bool>, "NULL"),
    strict_checking: default!(Option<bool>, "NULL"),
    rebuild_index: default!(Option<bool>, "NULL"),
    autokick: default!(Option<bool>, "NULL"),
    priority: default!(Option<i32>, "NULL"),
) -> Answer {
    let options = Options { pkey, conflict_strategy, makedelta, strict_checking, rebuild_index, autokick, priority };
    Ok(update(required(name, "name")?, required(relgroup, "relgroup")?, &options)?)
}

fn update(name: &str, relgroup: &str, options: &Options<'_>) -> Result<String> {
    let (schema, relname) = parse_qualified(name)?;
    Noun::Relgroup.lock(relgroup)?;
    check_options(options)?;
    let id = relation::find(relgroup, schema.as_deref(), &relname)?;
    let before = change::load_all(&group::syncs_of(Noun::Relgroup, relgroup)?)?;
    relation::update(relgroup, id, options)?;
    for sync in &before {
        // Only another key, or stricter checking, can be at odds with the members.
        if options.pkey.is_some() {
            change::engage_captured(sync, &[id], "update_table", None)?;
        } else if options.strict_checking.is_some() {
            change::engage_changed(&sync.name, Some(sync), Some(&[id]), "update_table", None, Vec::new())?;
        } else if options.conflict_strategy.is_some() {
            change::check_shape(&change::load(&sync.name)?)?;
        }
    }
    notify::catalog_changed();
    Ok(Named { schema, name: relname, is_sequence: false }.display())
}

/// Takes a table or sequence out of a relgroup. The master takes its capture off after the commit.
#[pg_extern(security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn remove_table(name: Option<&str>, relgroup: Option<&str>) -> Answer {
    Ok(remove(required(name, "name")?, required(relgroup, "relgroup")?)?)
}

fn remove(name: &str, relgroup: &str) -> Result<String> {
    let (schema, relname) = parse_qualified(name)?;
    Noun::Relgroup.lock(relgroup)?;
    let id = relation::find(relgroup, schema.as_deref(), &relname)?;
    relation::remove(relgroup, id)?;
    notify::catalog_changed();
    Ok(Named { schema, name: relname, is_sequence: false }.display())
}
