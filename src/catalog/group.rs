//! The named lists: dbgroups with their members, relgroups with their relations. Only stores them; whether a sync
//! that uses one still works is judged by `change`.

use super::Noun;
use crate::error::Result;
use crate::ident::Role;
use crate::pg::spi;

/// Adds a dbgroup; false when there is one of that name.
pub fn insert_dbgroup(name: &str) -> Result<bool> {
    Ok(spi::execute("INSERT INTO bucardo.dbgroup (name) VALUES ($1) ON CONFLICT DO NOTHING", &[name.into()])? > 0)
}

/// Adds a relgroup; false when there is one of that name.
pub fn insert_relgroup(name: &str) -> Result<bool> {
    Ok(spi::execute("INSERT INTO bucardo.relgroup (name) VALUES ($1) ON CONFLICT DO NOTHING", &[name.into()])? > 0)
}

/// Puts the members into the dbgroup in the given order, in place of those that it has. All of them must exist.
pub fn set_members(dbgroup: &str, members: &[(String, Role)]) -> Result<()> {
    spi::execute("DELETE FROM bucardo.dbmap WHERE dbgroup = $1", &[dbgroup.into()])?;
    for (place, (db, role)) in members.iter().enumerate() {
        add_member(dbgroup, db, *role, Some(place as i32))?;
    }
    Ok(())
}

/// Puts one member into the dbgroup; without a place at the end.
pub fn add_member(dbgroup: &str, db: &str, role: Role, place: Option<i32>) -> Result<()> {
    // The member's row is locked first, so that it cannot be removed meanwhile: a clear error instead of a foreign key's.
    let sql = "SELECT name FROM bucardo.db WHERE name = $1 FOR KEY SHARE";
    if spi::write(sql, &[db.into()], |row| row.get::<String>(1))?.is_empty() {
        return Err(Noun::Db.unknown(db));
    }
    let sql = "INSERT INTO bucardo.dbmap (dbgroup, db, role, priority) VALUES ($1, $2, $3, \
        coalesce($4, (SELECT coalesce(max(priority) + 1, 0) FROM bucardo.dbmap WHERE dbgroup = $1)))";
    spi::execute(sql, &[dbgroup.into(), db.into(), role.as_str().into(), place.into()])?;
    Ok(())
}

/// The dbgroup's members in their order.
pub fn members(dbgroup: &str) -> Result<Vec<(String, Role)>> {
    let sql = "SELECT db, role FROM bucardo.dbmap WHERE dbgroup = $1 ORDER BY priority, db";
    spi::select(sql, &[dbgroup.into()], |row| Ok((row.get(1)?, Role::parse(&row.get::<String>(2)?)?)))
}

/// The syncs that use the group, by name.
pub fn syncs_of(noun: Noun, group: &str) -> Result<Vec<String>> {
    let sql = format!("SELECT name FROM bucardo.sync WHERE {} = $1 ORDER BY name", noun.word());
    spi::select(&sql, &[group.into()], |row| row.get(1))
}

/// The syncs that use the member, by name.
pub fn syncs_of_db(db: &str) -> Result<Vec<String>> {
    let sql = "SELECT s.name FROM bucardo.sync s JOIN bucardo.dbmap m ON m.dbgroup = s.dbgroup WHERE m.db = $1 ORDER BY s.name";
    spi::select(sql, &[db.into()], |row| row.get(1))
}

/// Removes the group, with the relations that no other relgroup holds.
pub fn delete(noun: Noun, name: &str) -> Result<()> {
    spi::execute(&format!("DELETE FROM bucardo.{} WHERE name = $1", noun.word()), &[name.into()])?;
    if noun == Noun::Relgroup { super::relation::delete_unused() } else { Ok(()) }
}
