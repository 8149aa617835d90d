//! Syncs: add_sync, update_sync, remove_sync, and what changes only their state. A sync is checked against all of its
//! members before anything is created on one of them; all faults are reported at once.

use pgrx::datum::Interval;
use pgrx::prelude::*;

use super::{Answer, notice, required};
use crate::catalog::check::Opened;
use crate::catalog::compare::Fault;
use crate::catalog::options::Options;
use crate::catalog::pick::{self, Item, Picked};
use crate::catalog::relation::{self, Named};
use crate::catalog::{Noun, change, check, db, group, sync};
use crate::error::{Error, Result, SqlState};
use crate::ident::{Role, check_name, scan_dbs};
use crate::master::notify;
use crate::pg::spi;

/// Adds a sync and starts it.
#[pg_extern(security_definer)]
#[search_path(pg_catalog, pg_temp)]
#[expect(clippy::too_many_arguments, reason = "they are those of the SQL function")]
fn add_sync(
    name: Option<&str>,
    dbs: Option<&str>,
    tables: default!(Option<&str>, "NULL"),
    relgroup: default!(Option<&str>, "NULL"),
    conflict_strategy: default!(Option<&str>, "'bucardo_latest'"),
    onetimecopy: default!(Option<i32>, "0"),
    autokick: default!(Option<bool>, "true"),
    checktime: default!(Option<Interval>, "NULL"),
    stayalive: default!(Option<bool>, "true"),
    kidsalive: default!(Option<bool>, "true"),
    lifetime: default!(Option<Interval>, "NULL"),
    maxkicks: default!(Option<i32>, "0"),
    isolation_level: default!(Option<&str>, "'repeatable read'"),
    deletemethod: default!(Option<&str>, "'delete'"),
    rebuild_index: default!(Option<bool>, "false"),
    analyze_after_copy: default!(Option<bool>, "true"),
    vacuum_after_copy: default!(Option<bool>, "false"),
    strict_checking: default!(Option<bool>, "true"),
    priority: default!(Option<i32>, "0"),
    status: default!(Option<&str>, "'active'"),
) -> Answer {
    let options = Options {
        conflict_strategy,
        onetimecopy,
        autokick,
        checktime,
        stayalive,
        kidsalive,
        lifetime,
        maxkicks,
        isolation_level,
        deletemethod,
        rebuild_index,
        analyze_after_copy,
        vacuum_after_copy,
        strict_checking,
        priority,
        status,
    };
    Ok(add(required(name, "name")?, required(dbs, "dbs")?, tables, relgroup, &options)?)
}

/// The members that a sync is to have: a dbgroup that is there, or a list.
enum Members {
    Group(String),
    List(Vec<(String, Role)>),
}

/// What a list of members means; what is wrong with it becomes faults, and the rest of it stays.
fn parse_members(dbs: &str, faults: &mut Vec<Fault>) -> Result<Members> {
    let name = dbs.trim();
    if !name.contains([':', ',']) && !name.is_empty() && Noun::Dbgroup.exists(name)? {
        return Ok(Members::Group(name.to_string()));
    }
    let (members, wrong) = scan_dbs(dbs, &db::names()?);
    if members.is_empty() && wrong.is_empty() {
        return Err(Error::new(SqlState::INVALID_PARAMETER, "the list of dbs is empty")
            .hint("Give dbs as 'A:source,B:target', or the name of a dbgroup."));
    }
    faults.extend(wrong.into_iter().map(Fault::own));
    Ok(Members::List(members))
}

/// Members of a list that do not exist, as faults; the others stay.
fn unknown_members(members: &mut Vec<(String, Role)>) -> Result<Vec<Fault>> {
    let known = db::names()?;
    let (good, unknown): (Vec<_>, Vec<_>) = members.drain(..).partition(|(name, _)| known.contains(name));
    *members = good;
    let fault = |(name, _): (String, Role)| {
        let error = Noun::Db.unknown(&name);
        Fault { code: error.code, db: name, relation: None, fault: error.message, fix: error.hint }
    };
    Ok(unknown.into_iter().map(fault).collect())
}

fn add(name: &str, dbs: &str, tables: Option<&str>, relgroup: Option<&str>, options: &Options<'_>) -> Result<String> {
    notify::require_preload()?;
    check_name("sync", name)?;
    let mut faults: Vec<Fault> = options.faults(true, &db::names()?).into_iter().map(Fault::own).collect();
    // What cannot be stored is reported, and its default stands in for it until all the rest is checked.
    let options = if faults.is_empty() { options } else { &Options::default() };
    if let Err(error) = store_lists(name, dbs, tables, relgroup, options, &mut faults).and_then(|opened| {
        // Takes the faults along, and fails if there are any.
        change::engage(name, None, "add_sync", opened, std::mem::take(&mut faults))
    }) {
        // Nothing can be checked beyond this one.
        let alone = faults.is_empty();
        faults.push(Fault::own(error.clone()));
        return Err(Fault::error(&format!("sync \"{name}\""), &faults).filter(|_| !alone).unwrap_or(error));
    }
    Ok(name.to_string())
}

/// Writes the sync with its lists into the catalog. What is wrong with a list becomes a fault, and the rest of it stays, so that
/// it can be checked; an error is what leaves nothing to be checked.
fn store_lists(
    name: &str,
    dbs: &str,
    tables: Option<&str>,
    relgroup: Option<&str>,
    options: &Options<'_>,
    faults: &mut Vec<Fault>,
) -> Result<Opened> {
    let listed = match (tables, relgroup) {
        (Some(tables), None) => Ok(Some(tables)),
        (None, Some(_)) => Ok(None),
        (None, None) => Err(Error::new(SqlState::INVALID_PARAMETER, "there is nothing to replicate")
            .hint("Give tables => '…' or relgroup => '…'.")),
        (Some(_), Some(_)) => {
            Err(Error::new(SqlState::INVALID_PARAMETER, "both tables and relgroup are given").hint("Give one of them."))
        }
    };
    let items = listed.and_then(|tables| tables.map(pick::parse).transpose()).or_else(|error| {
        faults.push(Fault::own(error));
        Ok::<_, Error>(Some(Vec::new()))
    })?;
    let mut members = parse_members(dbs, faults)?;
    claim(name)?;
    if let Members::List(list) = &mut members {
        faults.extend(unknown_members(list)?);
    }
    let dbgroup = store_members(name, &members)?;
    let found = match (&items, relgroup) {
        (None, Some(relgroup)) => existing_relgroup(relgroup).map_err(|error| faults.push(Fault::own(error))).ok(),
        _ => None,
    };
    let (relgroup, own, opened) = match found {
        Some(relgroup) => (relgroup, false, None),
        None => {
            let items = items.unwrap_or_default();
            (name.to_string(), true, store_tables(name, &dbgroup, &items, faults)?)
        }
    };
    store(name, &dbgroup, &relgroup, (matches!(members, Members::List(_)), own), options)?;
    Ok(opened)
}

/// Of several sessions that add the same sync at once, one goes on; the others wait here and then find it there.
fn claim(name: &str) -> Result<()> {
    let lock = "SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('bucardo sync ' || $1, 0))";
    spi::execute(lock, &[name.into()])?;
    if Noun::Sync.exists(name)? { Err(Noun::Sync.duplicate(name)) } else { Ok(()) }
}

fn store_members(name: &str, members: &Members) -> Result<String> {
    match members {
        Members::Group(group) => Ok(group.clone()),
        Members::List(list) => {
            if !group::insert_dbgroup(name)? {
                return Err(Noun::Dbgroup.duplicate(name));
            }
            group::set_members(name, list)?;
            Ok(name.to_string())
        }
    }
}

fn existing_relgroup(relgroup: &str) -> Result<String> {
    Noun::Relgroup.lock(relgroup)?;
    let count: i64 = spi::value("SELECT count(*) FROM bucardo.relmap WHERE relgroup = $1", &[relgroup.into()])?.unwrap_or(0);
    if count == 0 {
        return Err(Error::new(SqlState::INVALID_PARAMETER, format!("relgroup \"{relgroup}\" has no tables"))
            .hint("Add some with bucardo.add_table or bucardo.add_all_tables."));
    }
    Ok(relgroup.to_string())
}

/// Makes the sync's own relgroup of what the list means on the first source. Returns the connection that it used.
fn store_tables(name: &str, dbgroup: &str, items: &[Item], faults: &mut Vec<Fault>) -> Result<Opened> {
    if !group::insert_relgroup(name)? {
        return Err(Noun::Relgroup.duplicate(name));
    }
    let members = group::members(dbgroup)?;
    let need_key = sync::captures(members.iter().map(|(_, role)| *role));
    let sources = members.iter().filter(|(_, role)| *role == Role::Source).map(|(source, _)| db::load(source));
    let sources = sources.collect::<Result<Vec<_>>>()?;
    let Some(source) = sources.into_iter().flatten().find(|s| s.active) else {
        // Which tables there are can only be said by a source; without one the sync fails for that alone.
        store_relations(name, None, &guessed(items))?;
        if faults.iter().all(|f| f.db.is_empty()) && members.iter().any(|(_, role)| *role == Role::Source) {
            faults.push(Fault::own(no_active_source(name)));
        }
        return Ok(None);
    };
    match check::open(&source.target, "add_sync") {
        Ok((mut conn, identity)) => {
            let Picked { relations, without_key, faults: wrong } = pick::pick(&mut conn, items, need_key)?;
            faults.extend(wrong.into_iter().map(Fault::own));
            if !without_key.is_empty() {
                notice(&format!("left out, because they have no key: {}", without_key.join(", ")));
            }
            store_relations(name, Some(&source.name), &relations)?;
            Ok(Some((source.name.clone(), Ok((conn, identity)))))
        }
        Err(error) => {
            store_relations(name, None, &guessed(items))?;
            Ok(Some((source.name.clone(), Err(error))))
        }
    }
}

fn no_active_source(name: &str) -> Error {
    Error::new(SqlState::INVALID_PARAMETER, format!("sync \"{name}\": no active db is a source"))
        .hint("Give dbs as 'A:source,B:target', and activate the source with bucardo.update_db.")
}

/// The plainly named relations, for when no source can say more: enough to find the faults of the other members.
fn guessed(items: &[Item]) -> Vec<Named> {
    let name = |item: &Item| match item {
        Item::Name(schema, name) => Some(Named {
            schema: Some(schema.clone().unwrap_or_else(|| "public".into())),
            name: name.clone(),
            is_sequence: false,
        }),
        _ => None,
    };
    items.iter().filter_map(name).collect()
}

fn store_relations(relgroup: &str, db: Option<&str>, relations: &[Named]) -> Result<()> {
    for relation in relations {
        relation::add(relgroup, relation, db, &relation::Options::default())?;
    }
    Ok(())
}

fn store(name: &str, dbgroup: &str, relgroup: &str, own: (bool, bool), options: &Options<'_>) -> Result<()> {
    let sql = "INSERT INTO bucardo.sync (name, dbgroup, relgroup, own_dbgroup, own_relgroup) VALUES ($1, $2, $3, $4, $5) ON CONFLICT (name) DO NOTHING";
    if spi::execute(sql, &[name.into(), dbgroup.into(), relgroup.into(), own.0.into(), own.1.into()])? == 0 {
        return Err(Noun::Sync.duplicate(name));
    }
    options.update(name)
}

/// Changes a sync; a null leaves the value.
#[pg_extern(security_definer)]
#[search_path(pg_catalog, pg_temp)]
#[expect(clippy::too_many_arguments, reason = "they are those of the SQL function")]
fn update_sync(
    name: Option<&str>,
    dbs: default!(Option<&str>, "NULL"),
    relgroup: default!(Option<&str>, "NULL"),
    conflict_strategy: default!(Option<&str>, "NULL"),
    onetimecopy: default!(Option<i32>, "NULL"),
    autokick: default!(Option<bool>, "NULL"),
    checktime: default!(Option<Interval>, "NULL"),
    stayalive: default!(Option<bool>, "NULL"),
    kidsalive: default!(Option<bool>, "NULL"),
    lifetime: default!(Option<Interval>, "NULL"),
    maxkicks: default!(Option<i32>, "NULL"),
    isolation_level: default!(Option<&str>, "NULL"),
    deletemethod: default!(Option<&str>, "NULL"),
    rebuild_index: default!(Option<bool>, "NULL"),
    analyze_after_copy: default!(Option<bool>, "NULL"),
    vacuum_after_copy: default!(Option<bool>, "NULL"),
    strict_checking: default!(Option<bool>, "NULL"),
    priority: default!(Option<i32>, "NULL"),
    status: default!(Option<&str>, "NULL"),
) -> Answer {
    let options = Options {
        conflict_strategy,
        onetimecopy,
        autokick,
        checktime,
        stayalive,
        kidsalive,
        lifetime,
        maxkicks,
        isolation_level,
        deletemethod,
        rebuild_index,
        analyze_after_copy,
        vacuum_after_copy,
        strict_checking,
        priority,
        status,
    };
    Ok(update(required(name, "name")?, dbs, relgroup, &options)?)
}

fn update(name: &str, dbs: Option<&str>, relgroup: Option<&str>, options: &Options<'_>) -> Result<String> {
    options.check(false, &db::names()?)?;
    let mut faults = Vec::new();
    let mut members = dbs.map(|dbs| parse_members(dbs, &mut faults)).transpose()?;
    Noun::Sync.lock(name)?;
    let before = change::load(name)?;
    if let Some(Members::List(list)) = &mut members {
        faults.extend(unknown_members(list)?);
    }
    if let Some(members) = &members {
        replace_members(name, &before.dbgroup, members)?;
    }
    if let Some(relgroup) = relgroup {
        replace_relations(name, &before.relgroup, &existing_relgroup(relgroup)?)?;
    }
    options.update(name)?;
    let checks =
        members.is_some() || relgroup.is_some() || options.strict_checking.is_some() || options.conflict_strategy.is_some();
    if checks || options.status == Some("active") {
        notify::require_preload()?;
        change::engage_changed(name, Some(&before), None, "update_sync", None, faults)?;
        change::disengage(&before, Some(&change::load(name)?))?;
    }
    notify::catalog_changed();
    Ok(name.to_string())
}

fn owns(name: &str, column: &str) -> Result<bool> {
    Ok(spi::value(&format!("SELECT {column} FROM bucardo.sync WHERE name = $1"), &[name.into()])?.unwrap_or(false))
}

/// Another list goes into the sync's own dbgroup, made when it had none; another dbgroup takes that one's place.
fn replace_members(name: &str, current: &str, members: &Members) -> Result<()> {
    let own = owns(name, "own_dbgroup")?;
    // One that was another sync's, and that others use as well, stays theirs.
    let alone = current == name || group::syncs_of(Noun::Dbgroup, current)?.len() == 1;
    match members {
        Members::List(list) if own && alone => group::set_members(current, list),
        Members::Group(group) if group == current => Ok(()),
        _ => {
            let dbgroup = store_members(name, members)?;
            let now_own = matches!(members, Members::List(_));
            spi::execute(
                "UPDATE bucardo.sync SET dbgroup = $2, own_dbgroup = $3 WHERE name = $1",
                &[name.into(), dbgroup.into(), now_own.into()],
            )?;
            change::drop_own(Noun::Dbgroup, current, own)
        }
    }
}

fn replace_relations(name: &str, current: &str, relgroup: &str) -> Result<()> {
    if relgroup == current {
        return Ok(());
    }
    let own = owns(name, "own_relgroup")?;
    spi::execute("UPDATE bucardo.sync SET relgroup = $2, own_relgroup = false WHERE name = $1", &[name.into(), relgroup.into()])?;
    change::drop_own(Noun::Relgroup, current, own)
}

/// Removes a sync and its capture.
#[pg_extern(security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn remove_sync(name: Option<&str>) -> Answer {
    let name = required(name, "name")?;
    change::remove_sync(name)?;
    Ok(name.to_string())
}

/// Sets one column of a sync that must be there.
fn set(sync: Option<&str>, assignment: &str) -> Result<String> {
    let sync = required(sync, "sync")?;
    if spi::execute(&format!("UPDATE bucardo.sync SET {assignment} WHERE name = $1"), &[sync.into()])? == 0 {
        return Err(Noun::Sync.unknown(sync));
    }
    notify::catalog_changed();
    Ok(sync.to_string())
}

/// Pauses a sync: capture goes on, runs do not. Holds across restarts.
#[pg_extern(security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn pause(sync: Option<&str>) -> Answer {
    Ok(set(sync, "paused = true")?)
}

/// Ends a pause.
#[pg_extern(security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn resume(sync: Option<&str>) -> Answer {
    Ok(set(sync, "paused = false")?)
}

/// Makes a sync active. A member that is away is no reason to leave the others unserved.
#[pg_extern(security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn activate(sync: Option<&str>) -> Answer {
    let name = required(sync, "sync")?;
    Noun::Sync.lock(name)?;
    let before = change::load(name)?;
    set(Some(name), "status = 'active'")?;
    change::engage_changed(name, Some(&before), None, "activate", None, Vec::new())?;
    Ok(name.to_string())
}

/// Makes a sync inactive: capture goes on, runs do not.
#[pg_extern(security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn deactivate(sync: Option<&str>) -> Answer {
    Ok(set(sync, "status = 'inactive'")?)
}
