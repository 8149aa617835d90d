//! What a change of the catalog needs beyond its rows: the sync that they now make is checked against its members,
//! capture is put onto its sources, and taken off those that fell away. Called with the new rows written and the
//! transaction open: an error takes all of it back. It must not touch a member before every check has passed.

use std::collections::HashSet;

use super::check::{self, Opened};
use super::compare::Fault;
use super::options::check_strategy;
use super::sync::{self, Role, Sync};
use super::{Noun, cleanup, db, group, interleave, pick, relation};
use crate::error::{Error, Result, SqlState};
use crate::ident::quote_literal;
use crate::master::notify;
use crate::master::slot::MAX_MEMBERS;
use crate::pg::spi;

/// What a sync must be whatever its members look like: first what is plainly wrong, then what is not built yet.
pub fn check_shape(sync: &Sync) -> Result<()> {
    let bad = |message: &str| {
        Error::new(SqlState::INVALID_PARAMETER, format!("sync \"{}\": {message}", sync.name))
            .hint("Give dbs as 'A:source,B:target', or names alone: the first is the source.")
    };
    if sync.sources().next().is_none() {
        return Err(bad("no db is a source"));
    }
    if sync.members.len() < 2 {
        return Err(bad("there is no db to send to"));
    }
    if sync.members.len() > MAX_MEMBERS {
        return Err(bad(&format!("{} dbs are too many", sync.members.len()))
            .hint(format!("A sync has at most {MAX_MEMBERS} dbs: make a second sync of the same tables for the others.")));
    }
    let sources: Vec<String> = sync.sources().map(|m| m.db.name.clone()).collect();
    let own: Vec<&str> = std::iter::once(sync.conflict_strategy.as_str())
        .chain(sync.relations.iter().filter_map(|r| r.conflict_strategy.as_deref()))
        .collect();
    for strategy in own {
        check_strategy(Some(strategy), &sources)?;
    }
    let later = |what: &str| Error::new(SqlState::NOT_SUPPORTED, format!("sync \"{}\": {what} is not supported yet", sync.name));
    if sync.members.iter().any(|m| m.role == Role::Fullcopy) {
        return Err(later("the role fullcopy").hint("Make it a target."));
    }
    Ok(())
}

/// Loads a sync that must be there.
pub fn load(name: &str) -> Result<Sync> {
    sync::load(name)?.ok_or_else(|| Noun::Sync.unknown(name))
}

/// The same of several.
pub fn load_all(names: &[String]) -> Result<Vec<Sync>> {
    names.iter().map(|name| load(name)).collect()
}

/// Checks the sync as it now stands in the catalog, all of it or only some relations, and installs its capture.
/// `faults` are those that are known already.
pub fn engage(name: &str, only: Option<&[i32]>, function: &str, opened: Opened, faults: Vec<Fault>) -> Result<()> {
    engage_changed(name, None, only, function, opened, faults)
}

/// The same for a sync that was another before.
pub fn engage_changed(
    name: &str,
    before: Option<&Sync>,
    only: Option<&[i32]>,
    function: &str,
    opened: Opened,
    mut faults: Vec<Fault>,
) -> Result<()> {
    let mut opened = opened;
    let mut sync = load(name)?;
    // Members that are missing may be what its shape lacks.
    if faults.iter().all(|f| f.db.is_empty())
        && let Err(error) = check_shape(&sync)
    {
        faults.push(Fault::own(error));
    }
    let unresolved = relation::unresolved(&sync.relgroup)?;
    if !unresolved.is_empty() {
        // A source that is away is a fault among others, but where a sync that lives would get what nobody has looked up.
        let must = before.is_some() && unresolved.iter().any(|(_, given)| given.schema.is_none());
        opened = resolve(&sync, function, opened, unresolved, must)?;
        let before: HashSet<i32> = sync.relations.iter().map(|r| r.id).collect();
        sync = load(name)?;
        if let Some(only) = only {
            sync.relations.retain(|r| only.contains(&r.id) || !before.contains(&r.id));
        }
    } else if let Some(only) = only {
        sync.relations.retain(|r| only.contains(&r.id));
    }
    let mut checked = check::check(&sync, before, function, opened, &mut faults)?;
    if let Some(error) = Fault::error(&format!("sync \"{name}\""), &faults) {
        return Err(error);
    }
    let new = before.is_none() && only.is_none();
    if new {
        interleave::advise(&sync, &mut checked);
    }
    check::install_capture(&sync, &mut checked, new)?;
    notify::catalog_changed();
    Ok(())
}

/// The same for relations whose capture is new: a source that is away would not capture them, and could not be told from
/// one that has lost what it had; a target finds out when it is back.
pub fn engage_captured(before: &Sync, only: &[i32], function: &str, opened: Opened) -> Result<()> {
    let mut before = before.clone();
    before.members.retain(|m| m.role != Role::Source);
    engage_changed(&before.name, Some(&before), Some(only), function, opened, Vec::new())
}

/// Looks up, on the first source, the relations that were given when there was none to be asked.
fn resolve(sync: &Sync, function: &str, opened: Opened, unresolved: Vec<(i32, relation::Named)>, must: bool) -> Result<Opened> {
    let Some(source) = sync.sources().find(|m| m.db.active) else { return Ok(opened) };
    let attempt = match opened {
        Some((name, attempt)) if name == source.db.name => attempt,
        _ => check::open(&source.db.target, function),
    };
    let (mut conn, identity) = match attempt {
        Err(error) if !must => return Ok(Some((source.db.name.clone(), Err(error)))),
        attempt => attempt?,
    };
    for (id, given) in unresolved {
        let (mut named, found) = pick::look_up(&mut conn, &[(given.schema, given.name)])?
            .into_iter()
            .next()
            .ok_or_else(|| Error::internal("nothing was looked up"))?;
        if found.is_none() {
            named.is_sequence = given.is_sequence;
        }
        relation::settle(&sync.relgroup, id, &named, &source.db.name)?;
    }
    Ok(Some((source.db.name.clone(), Ok((conn, identity)))))
}

/// What a source that is taken out gave last may not have reached all of the others, and nobody waits for that: a run
/// sees to it.
pub fn source_left(sync: &Sync) {
    if sync.autokick {
        notify::kick_at_commit(sync.id);
    }
}

/// Has the master take this sync's capture off the sources that it had and has no more.
pub fn disengage(before: &Sync, after: Option<&Sync>) -> Result<()> {
    let stays = |name: &str| after.is_some_and(|s| s.captures() && s.sources().any(|m| m.db.name == name));
    let gone: Vec<&str> = before.sources().map(|m| m.db.name.as_str()).filter(|name| !stays(name)).collect();
    for name in &gone {
        queue_cleanup(name, &before.capture_name())?;
    }
    if let Some(sync) = after.filter(|_| !gone.is_empty()) {
        source_left(sync);
    }
    notify::catalog_changed();
    Ok(())
}

/// Has the master take a sync's capture off a member after this transaction.
pub fn queue_cleanup(member: &str, sync: &str) -> Result<()> {
    cleanup::add(&super::control_id()?, member, &db::secret(member)?.unwrap_or_default(), Some(sync))
}

/// Removes a sync, with the lists that were made for it.
pub fn remove_sync(name: &str) -> Result<()> {
    Noun::Sync.lock(name)?;
    let sync = load(name)?;
    let sql = "DELETE FROM bucardo.sync WHERE name = $1 RETURNING own_dbgroup, own_relgroup";
    let own = spi::write(sql, &[name.into()], |row| Ok((row.get::<bool>(1)?, row.get::<bool>(2)?)))?;
    spi::execute("DELETE FROM bucardo.syncrun WHERE sync = $1", &[name.into()])?;
    spi::execute("DELETE FROM bucardo.seen WHERE sync = $1", &[sync.id.into()])?;
    spi::execute("DELETE FROM bucardo.doubt WHERE sync = $1", &[name.into()])?;
    let (own_dbgroup, own_relgroup) = own.into_iter().next().unwrap_or((false, false));
    drop_own(Noun::Dbgroup, &sync.dbgroup, own_dbgroup)?;
    drop_own(Noun::Relgroup, &sync.relgroup, own_relgroup)?;
    disengage(&sync, None)
}

/// Removes a list that was made for a sync. Where other syncs have come to use it, it is theirs now and goes with the last.
pub fn drop_own(noun: Noun, group: &str, own: bool) -> Result<()> {
    if !own {
        return Ok(());
    }
    if group::syncs_of(noun, group)?.is_empty() {
        return group::delete(noun, group);
    }
    let word = noun.word();
    spi::execute(&format!("UPDATE bucardo.sync SET own_{word} = true WHERE {word} = $1"), &[group.into()]).map(drop)
}

/// Refuses with 2BP01 while syncs use something.
pub fn refuse_in_use(noun: Noun, name: &str, syncs: &[String]) -> Result<()> {
    if syncs.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = syncs.iter().map(|s| format!("\"{s}\"")).collect();
    let what = if syncs.len() == 1 { "sync" } else { "syncs" };
    Err(Error::new(SqlState::IN_USE, format!("{} \"{name}\" is used by {what} {}", noun.word(), list.join(", "))).hint(format!(
        "Remove the sync first, or force it: SELECT bucardo.remove_{}({}, force => true);",
        noun.word(),
        quote_literal(name)
    )))
}

/// After a member was taken away by force: a sync without a source, or with nobody to send to, can only rest.
pub fn rest_if_broken(name: &str) -> Result<()> {
    let sync = load(name)?;
    if sync.is_whole() {
        return Ok(());
    }
    spi::execute("UPDATE bucardo.sync SET status = 'inactive' WHERE name = $1", &[name.into()])?;
    pgrx::warning!("sync \"{name}\" has too few dbs left and is inactive now");
    Ok(())
}
