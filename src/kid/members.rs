//! The open connections of a run, by role. Connections outlive runs in the kid's pool; a run takes them out, and only
//! those that are idle and whole go back, so an error in between closes what it left in an unknown state.

use std::collections::HashMap;

use super::who::{self, Who};
use crate::catalog::db::Db;
use crate::error::{Error, Result, SqlState};
use crate::guc;
use crate::libpq::Conn;

/// The session of every member, whatever its server, database and role are set to: no triggers, no surprises in names,
/// one text format for all types, no time-outs but our own, no Memoize node (each key is looked up once, and to remember that
/// takes half as long as to do it). What it says to have committed is on its disk, also when the server is
/// set to something else meanwhile: the deltas are thrown away on the strength of that.
const SESSION: &str = "SET session_replication_role = replica; SET search_path = pg_catalog; SET DateStyle = 'ISO, MDY'; \
    SET IntervalStyle = postgres; SET TimeZone = 'UTC'; SET extra_float_digits = 3; SET bytea_output = hex; \
    SET lc_monetary = 'C'; SET xmloption = content; SET standard_conforming_strings = on; SET array_nulls = on; \
    SET client_encoding = 'UTF8'; SET lock_timeout = 0; SET log_parameter_max_length_on_error = 0; \
    SET idle_in_transaction_session_timeout = 0; SET default_transaction_read_only = off; \
    SET default_transaction_deferrable = off; SET default_transaction_isolation = 'read committed'; SET row_security = off; SET jit = off; SET client_min_messages = error; \
    SELECT pg_catalog.set_config('enable_memoize', 'off', false) WHERE pg_catalog.current_setting('enable_memoize', true) IS NOT NULL; \
    SELECT pg_catalog.set_config('deadlock_timeout', '100ms', false) WHERE pg_catalog.current_setting('is_superuser') = 'on'; \
    SELECT pg_catalog.set_config('synchronous_commit', coalesce(nullif(pg_catalog.current_setting('synchronous_commit'), 'off'), 'on'), false); \
    SELECT pg_catalog.set_config(s, '0', false) FROM unnest('{idle_session_timeout,transaction_timeout}'::pg_catalog.text[]) s \
    WHERE pg_catalog.current_setting(s, true) IS NOT NULL";

/// How long a run waits for a lock on a member, in milliseconds: whoever waits holds up others, and rows that it has changed.
/// Two seconds at most, and less than an application waits there before it looks for a deadlock: of a circle that closes
/// after the run's own look at it the run must be the one that gives up, and it has begun to wait before the other. To be
/// asked before [`SESSION`] changes what it asks for. The first statement of a session is the only one that the member's own
/// `statement_timeout` can end, and is the one that sets it.
const PATIENCE: &str = "SET statement_timeout = 0; SELECT greatest(1, least(2000, pg_catalog.floor(900 * \
    pg_catalog.date_part('epoch', pg_catalog.current_setting('deadlock_timeout')::pg_catalog.interval))))";

/// The connections that wait for the next run, by the member's name and which of its connections it is.
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
    /// How long it waits for locks that others hold, as `lock_timeout`.
    pub patience: String,
    /// Where the member's log was after it had committed in this run.
    pub place: Option<String>,
    /// Which of this kid's connections it is.
    pub number: u64,
    key: String,
    /// Under which name it waits.
    kept_as: String,
}

impl Session {
    /// It is not kept for another run.
    pub fn never_again(&mut self) {
        self.key.clear();
    }
}

impl Pool {
    /// A session on the member: a kept one if it is whole and its conninfo is still the same, else a new one. A conninfo
    /// that leads to another database than the one that is known is refused.
    pub fn take(&mut self, db: &Db) -> Result<Session> {
        self.take_as(db, db.name.clone())
    }

    /// A second one, for what must not wait for the first one's transaction.
    pub fn take_beside(&mut self, db: &Db) -> Result<Session> {
        self.take_as(db, format!("{}\0beside", db.name))
    }

    fn take_as(&mut self, db: &Db, kept_as: String) -> Result<Session> {
        let key = key(db);
        let known = |who: &Who| db.identity.as_ref().is_none_or(|known| *known == who.identity);
        if let Some(mut kept) = self.idle.remove(&kept_as)
            && kept.key == key
            && known(&kept.who)
            && kept.conn.is_idle()
            // A run that has nothing for a member asks it nothing, and would take it for being there.
            && kept.conn.is_there()
        {
            return Ok(Session { fresh: false, ..kept });
        }
        let mut conn = Conn::open(&db.target, "bucardo kid", guc::connect_timeout())?;
        if conn.version() < 130_000 {
            return Err(Error::new(SqlState::NOT_SUPPORTED, format!("db \"{}\" is older than PostgreSQL 13", db.name)));
        }
        let patience = format!("{}ms", conn.query(PATIENCE)?.text(0, 0));
        conn.query(&format!("{SESSION}; SET work_mem = {}", guc::kid_work_mem())).map_err(|e| {
            e.at(format_args!("db \"{}\"", db.name))
                .hint("The role in the conninfo must be a superuser (or may set session_replication_role).")
        })?;
        let who = who::ask(&mut conn)?;
        if !known(&who) {
            return Err(who::other_database(&db.name, db.identity.as_deref().unwrap_or_default(), &who.identity));
        }
        self.made += 1;
        Ok(Session { conn, fresh: true, who, patience, place: None, number: self.made, key, kept_as })
    }

    /// Takes a session back, if it can be used again.
    pub fn give_back(&mut self, session: Session) {
        if session.conn.is_idle() && !session.conn.is_broken() {
            self.idle.insert(session.kept_as.clone(), session);
        }
    }

    /// Closes those to others than these, as they are reached now.
    pub fn keep(&mut self, dbs: &[Db]) {
        let name = |kept_as: &str| kept_as.split('\0').next().unwrap_or_default().to_string();
        self.idle.retain(|kept_as, session| dbs.iter().any(|db| db.name == name(kept_as) && key(db) == session.key));
    }

    /// Closes all.
    pub fn clear(&mut self) {
        self.idle.clear();
    }
}

/// By what a member is reached.
fn key(db: &Db) -> String {
    db.target.info.options.iter().map(|(k, v)| format!("{k}={v}\0")).collect()
}

/// Held by a run's transaction for as long as it is open.
pub const HOLD: &str = "SELECT pg_catalog.pg_advisory_xact_lock_shared(pg_catalog.hashtextextended($1, 0))";
/// A sync has one run at a time: who else holds its guard is left over from one that died, and waits for nobody.
const END: &str = "SELECT count(pg_catalog.pg_terminate_backend(l.pid)) FROM pg_catalog.pg_locks l, pg_catalog.hashtextextended($1, 0) g \
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND l.pid <> pg_catalog.pg_backend_pid() \
    AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()) \
    AND l.classid = ((g >> 32) & 4294967295)::pg_catalog.oid AND l.objid = (g & 4294967295)::pg_catalog.oid";
const ALONE: &str = "SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended($1, 0)) \
    FROM pg_catalog.set_config('lock_timeout', '2s', true)";

/// Asks the member to end what a run that died has left open there, in a transaction of its own: a snapshot that is taken
/// afterwards sees what that one has committed, and nothing of it comes later.
pub fn ask_alone(conn: &mut Conn, guard: &str) -> Result<()> {
    conn.pipeline_begin()?;
    conn.pipeline_add(END, &[], &[Some(guard.as_bytes())])?;
    conn.pipeline_add(ALONE, &[], &[Some(guard.as_bytes())])?;
    conn.pipeline_send()
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
