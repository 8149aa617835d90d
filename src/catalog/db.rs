//! The members as they are reached. An empty conninfo means the control database itself, by its own socket.
//! A [`Db`] holds the whole conninfo: it goes to libpq and nowhere else.

use crate::error::Result;
use crate::libpq::{Conninfo, Target};
use crate::pg::spi;

/// A member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Db {
    pub name: String,
    /// As it was given, password and all: for libpq and for the list of what is to be cleaned up.
    pub conninfo: String,
    pub target: Target,
    pub makedelta: bool,
    pub active: bool,
    /// Which database it is, as far as it is known; see `kid/who.rs`.
    pub identity: Option<String>,
}

const LOAD: &str = "SELECT d.name, s.conninfo, d.makedelta, d.status = 'active', d.identity \
    FROM bucardo.db d JOIN bucardo.db_secret s ON s.db = d.name WHERE $1 IS NULL OR d.name = $1 ORDER BY d.name";

fn load_where(name: Option<&str>) -> Result<Vec<Db>> {
    let rows = spi::select(LOAD, &[name.into()], |row| {
        let db = (row.get::<String>(1)?, row.get::<String>(2)?, row.get::<bool>(3)?, row.get::<bool>(4)?);
        Ok((db, row.opt::<String>(5)?))
    })?;
    let own = if rows.iter().any(|(r, _)| r.1.trim().is_empty()) { Some(own_conninfo()?) } else { None };
    let make = |((name, text, makedelta, active), identity): ((String, String, bool, bool), Option<String>)| {
        let info = match &own {
            Some(own) if text.trim().is_empty() => own.clone(),
            _ => Conninfo::parse(&text)?,
        };
        // The control database is itself, wherever it was restored.
        let identity = identity.filter(|_| !text.trim().is_empty());
        Ok(Db { target: Target { name: name.clone(), info }, name, conninfo: text, makedelta, active, identity })
    };
    rows.into_iter().map(make).collect()
}

/// The member of that name.
pub fn load(name: &str) -> Result<Option<Db>> {
    Ok(load_where(Some(name))?.into_iter().next())
}

/// All members, by name.
pub fn load_all() -> Result<Vec<Db>> {
    load_where(None)
}

/// The names of all members.
pub fn names() -> Result<Vec<String>> {
    spi::select("SELECT name FROM bucardo.db ORDER BY name", &[], |row| row.get(1))
}

/// The whole conninfo as it was given. For libpq only.
pub fn secret(name: &str) -> Result<Option<String>> {
    spi::value("SELECT conninfo FROM bucardo.db_secret WHERE db = $1", &[name.into()])
}

/// What a conninfo looks like to users.
fn masked(conninfo: &str) -> Result<String> {
    if conninfo.trim().is_empty() { Ok(String::new()) } else { Ok(Conninfo::parse(conninfo)?.masked()) }
}

/// Adds a member; false when there is one of that name.
pub fn insert(name: &str, conninfo: &str, makedelta: bool, status: &str) -> Result<bool> {
    let sql = "INSERT INTO bucardo.db (name, conninfo, makedelta, status) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING";
    if spi::execute(sql, &[name.into(), masked(conninfo)?.into(), makedelta.into(), status.into()])? == 0 {
        return Ok(false);
    }
    spi::execute("INSERT INTO bucardo.db_secret (db, conninfo) VALUES ($1, $2)", &[name.into(), conninfo.into()])?;
    Ok(true)
}

/// Changes what is given of a member.
pub fn update(name: &str, conninfo: Option<&str>, makedelta: Option<bool>, status: Option<&str>) -> Result<()> {
    let sql = "UPDATE bucardo.db SET makedelta = coalesce($2, makedelta), status = coalesce($3, status) WHERE name = $1";
    spi::execute(sql, &[name.into(), makedelta.into(), status.into()])?;
    if let Some(conninfo) = conninfo {
        spi::execute("UPDATE bucardo.db SET conninfo = $2 WHERE name = $1", &[name.into(), masked(conninfo)?.into()])?;
        spi::execute("UPDATE bucardo.db_secret SET conninfo = $2 WHERE db = $1", &[name.into(), conninfo.into()])?;
    }
    Ok(())
}

/// Notes which database the member is, or that it is not known any more.
pub fn set_identity(name: &str, identity: Option<&str>) -> Result<()> {
    spi::execute("UPDATE bucardo.db SET identity = $2 WHERE name = $1 AND conninfo <> ''", &[name.into(), identity.into()])
        .map(drop)
}

/// Takes the member out of all dbgroups and out of the catalog.
pub fn delete(name: &str) -> Result<()> {
    spi::execute("DELETE FROM bucardo.dbmap WHERE db = $1", &[name.into()])?;
    // Which of its runs all have got is still asked.
    spi::execute("UPDATE bucardo.seen SET identity = '', place = '' WHERE db = $1", &[name.into()])?;
    spi::execute("DELETE FROM bucardo.db WHERE name = $1", &[name.into()])?;
    Ok(())
}

/// Where a member of that name and conninfo is, before it stands in the catalog.
pub fn target(name: &str, conninfo: &str) -> Result<Target> {
    let info = if conninfo.trim().is_empty() { own_conninfo()? } else { Conninfo::parse(conninfo)? };
    Ok(Target { name: name.to_string(), info })
}

/// The way to the control database itself: its socket, else the loopback, as the bootstrap superuser.
pub fn own_conninfo() -> Result<Conninfo> {
    let sql = "SELECT current_setting('unix_socket_directories'), current_setting('port'), current_database()::text, \
        rolname::text FROM pg_catalog.pg_roles WHERE oid = 10";
    let rows = spi::select(sql, &[], |row| Ok([row.get::<String>(1)?, row.get(2)?, row.get(3)?, row.get(4)?]))?;
    let Some([sockets, port, dbname, user]) = rows.into_iter().next() else {
        return Err(crate::error::Error::internal("the bootstrap superuser is gone"));
    };
    let options = [("host", first_directory(&sockets)), ("port", port), ("dbname", dbname), ("user", user)];
    Ok(Conninfo { options: options.map(|(k, v)| (k.to_string(), v)).to_vec() })
}

/// The first of `unix_socket_directories`, a comma list with double quotes; without any the loopback.
fn first_directory(setting: &str) -> String {
    let setting = setting.trim();
    let first = match setting.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next(),
        None => setting.split(',').next(),
    };
    first.map(str::trim).filter(|d| !d.is_empty()).unwrap_or("localhost").to_string()
}

#[cfg(test)]
mod tests {
    use super::first_directory;

    #[test]
    fn the_first_socket_directory() {
        assert_eq!(first_directory("/tmp, /run"), "/tmp");
        assert_eq!(first_directory("\"/a, b\",/run"), "/a, b");
        assert_eq!(first_directory(""), "localhost");
    }
}
