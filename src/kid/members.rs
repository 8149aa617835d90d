//! The open connections of a run, by role. Connections outlive runs in the kid's pool; a run takes them out, and only
//! those that are idle and whole go back, so an error in between closes what it left in an unknown state.

use std::collections::HashMap;

use super::who::{self, Who};
use crate::catalog::db::Db;
use crate::error::{Error, Result, SqlState};
use crate::guc;
use crate::libpq::Conn;

/// The session of every member, whatever its server, database and role are set to: no triggers, no surprises in names,
/// one text format for all types, no time-outs but our own.
const SESSION: &str = "SET session_replication_role = replica; SET search_path = pg_catalog; SET DateStyle = 'ISO, MDY'; \
    SET IntervalStyle = postgres; SET TimeZone = 'UTC'; SET extra_float_digits = 3; SET bytea_output = hex; \
    SET lc_monetary = 'C'; SET xmloption = content; SET standard_conforming_strings = on; SET array_nulls = on; \
    SET client_encoding = 'UTF8'; SET statement_timeout = 0; SET lock_timeout = 0; \
    SET idle_in_transaction_session_timeout = 0; SET default_transaction_read_only = off; \
    SET default_transaction_deferrable = off; SET default_transaction_isolation = 'read committed'; SET row_security = off; SET jit = off; SET client_min_messages = error; \
    SET deadlock_timeout = '100ms'";

/// The connections that wait for the next run, by the member's name.
#[derive(Default)]
pub struct Pool {
    idle: HashMap<String, Session>,
    made: u64,
}

/// A connection taken for a run.
pub struct Session {
    pub conn: Conn,
    /// Whether it was made for this run.
    pub fresh: bool,
    pub who: Who,
    /// Where the member's log was after it had committed in this run.
    pub place: Option<String>,
    /// Which of this kid's connections it is.
    pub number: u64,
    key: String,
}

impl Pool {
    /// A session on the member: a kept one if it is whole and its conninfo is still the same, else a new one. A conninfo
    /// that leads to another database than the one that is known is refused.
    pub fn take(&mut self, db: &Db) -> Result<Session> {
        let key = db.target.info.options.iter().map(|(k, v)| format!("{k}={v}\0")).collect::<String>();
        let known = |who: &Who| db.identity.as_ref().is_none_or(|known| *known == who.identity);
        if let Some(kept) = self.idle.remove(&db.name)
            && kept.key == key
            && known(&kept.who)
            && kept.conn.is_idle()
            && !kept.conn.is_broken()
        {
            return Ok(Session { fresh: false, ..kept });
        }
        let mut conn = Conn::open(&db.target, "bucardo kid", guc::connect_timeout())?;
        if conn.version() < 130_000 {
            return Err(Error::new(SqlState::NOT_SUPPORTED, format!("db \"{}\" is older than PostgreSQL 13", db.name)));
        }
        conn.query(&format!("{SESSION}; SET work_mem = {}", guc::kid_work_mem())).map_err(|e| {
            e.at(format_args!("db \"{}\"", db.name))
                .hint("The role in the conninfo must be a superuser (or may set session_replication_role).")
        })?;
        let who = who::ask(&mut conn)?;
        if !known(&who) {
            return Err(who::other_database(&db.name, db.identity.as_deref().unwrap_or_default(), &who.identity));
        }
        self.made += 1;
        Ok(Session { conn, fresh: true, who, place: None, number: self.made, key })
    }

    /// Takes a session back, if it can be used again.
    pub fn give_back(&mut self, session: Session) {
        if session.conn.is_idle() && !session.conn.is_broken() {
            self.idle.insert(session.conn.name.clone(), session);
        }
    }

    /// Closes all.
    pub fn clear(&mut self) {
        self.idle.clear();
    }
}

/// The encoding in which rows travel: UTF8, into which every server converts. Databases without an encoding convert
/// nothing, and among themselves their bytes must pass as they are.
pub fn common_encoding<'a>(mut sessions: impl Iterator<Item = &'a Session>) -> &'static str {
    if sessions.all(|s| s.conn.parameter(c"server_encoding") == "SQL_ASCII") { "SQL_ASCII" } else { "UTF8" }
}

/// Makes the session speak the encoding.
pub fn speak(conn: &mut Conn, encoding: &str) -> Result<()> {
    if conn.parameter(c"client_encoding") != encoding {
        conn.query(&format!("SET client_encoding = '{encoding}'"))?;
    }
    Ok(())
}
