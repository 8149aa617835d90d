//! Who is at the other end of a connection: which database it is, where its log stands, how its clock goes. Asked of
//! every new connection; what the answers mean is judged by pure functions. It must never take a copy for the member.

use std::collections::BTreeMap;

use crate::error::{Error, Result, SqlState};
use crate::fault;
use crate::ident::quote_literal;
use crate::libpq::Conn;
use crate::pg::shmem;

/// The database, whether it is a standby, since when its server runs, what time it has (microseconds since 2000), and whether it
/// can tell who waits for the disk.
const ASK: &str = "SELECT (SELECT s.system_identifier FROM pg_catalog.pg_control_system() s) || '/' || d.oid, \
    pg_catalog.pg_is_in_recovery(), extract(epoch FROM pg_catalog.pg_postmaster_start_time())::text, \
    (extract(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::pg_catalog.int8 - 946684800000000, \
    pg_catalog.to_regprocedure('bucardo.capture_all_wait()') IS NOT NULL \
    FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()";
/// The timeline, up to where the log is safe (as far as the session waits for that), and when that was.
pub const PLACE: &str = "pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8) || ':' || \
    CASE pg_catalog.current_setting('synchronous_commit') WHEN 'off' THEN pg_catalog.pg_current_wal_insert_lsn() \
    ELSE pg_catalog.pg_current_wal_flush_lsn() END || ':' || extract(epoch FROM pg_catalog.clock_timestamp())";
/// Which database each member was (by its place in the sync), and where its log was after it had committed.
pub type Places = BTreeMap<usize, (String, String)>;

/// Where the timelines before this one ended.
const HISTORY: &str = "SELECT pg_catalog.pg_read_file('pg_wal/' || $1 || '.history', 0, 1000000, true)";

/// Clocks that differ by more (microseconds) can make an earlier change look like the later one.
const SKEW: i64 = 1_000_000;

/// What a connection leads to.
#[derive(Clone, Debug)]
pub struct Who {
    /// System identifier and the database's oid: a promoted standby has the same, and so has a copy of the files.
    pub identity: String,
    /// When its server started: who has the same of this too is the same database.
    pub started: String,
    pub clock: Clock,
    /// Whether it can tell whether everybody who commits captured changes waits for the disk.
    pub knows_who_waits: bool,
}

/// How far a clock is ahead of the control server's, and how wrong that may be; microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    pub ahead: i64,
    pub error: i64,
}

impl Clock {
    /// From our clock before and after the question, and theirs in between.
    fn measured(before: i64, theirs: i64, after: i64) -> Self {
        Self { ahead: theirs - before.midpoint(after), error: (after - before) / 2 }
    }
}

/// Asks who it is; a standby is refused.
pub fn ask(conn: &mut Conn) -> Result<Who> {
    let before = shmem::now();
    let rows = conn.query(ASK)?;
    let after = shmem::now();
    if rows.bool(0, 1) {
        return Err(Error::new(SqlState::WRONG_STATE, "it is a standby and cannot be written").hint(format!(
            "Promote it, or point the member at the primary: SELECT bucardo.update_db({}, conninfo => '…');",
            quote_literal(&conn.name)
        )));
    }
    let theirs = rows.number(0, 3).unwrap_or(before) + fault::clock(&conn.name);
    let clock = Clock::measured(before, theirs, after);
    Ok(Who { identity: rows.text(0, 0), started: rows.text(0, 2), clock, knows_who_waits: rows.bool(0, 4) })
}

/// Sends COMMIT, to be collected by [`committed`].
pub fn commit(conn: &mut Conn) -> Result<()> {
    conn.pipeline_begin()?;
    queue_commit(conn)?;
    conn.pipeline_send()
}

/// Puts COMMIT, and the question where the log is after it, into a pipeline.
pub fn queue_commit(conn: &mut Conn) -> Result<()> {
    conn.pipeline_add("COMMIT", &[], &[])?;
    queue_place(conn)
}

/// Puts the question where the log is into a pipeline.
pub fn queue_place(conn: &mut Conn) -> Result<()> {
    conn.pipeline_add(&format!("SELECT {PLACE}"), &[], &[])
}

/// Where the member's log is after its commit.
pub fn committed(conn: &mut Conn) -> Result<String> {
    Ok(conn.pipeline_collect()?.get(1).map(|place| place.text(0, 0)).unwrap_or_default())
}

/// Where the member's log is.
pub fn place(conn: &mut Conn) -> Result<String> {
    Ok(conn.query(&format!("SELECT {PLACE}"))?.text(0, 0))
}

/// Whether what had been committed at a place may be gone. Asks the member when it went on to another timeline.
pub fn has_lost(conn: &mut Conn, seen: &str, now: &str) -> bool {
    let history = || {
        let timeline = now.split(':').next().unwrap_or("");
        let read = conn.query_params(HISTORY, &[Some(timeline)]);
        read.map(|rows| rows.text(0, 0)).unwrap_or_default()
    };
    lost(seen, now, history)
}

/// The same with the history of the timeline `now` at hand. What cannot be told counts as lost: to send again is harmless.
fn lost(seen: &str, now: &str, history: impl FnOnce() -> String) -> bool {
    let (Some((seen_on, seen_at)), Some((now_on, now_at))) = (parse(seen), parse(now)) else { return true };
    if seen_on == now_on {
        return now_at < seen_at;
    }
    let ended = |line: &str| {
        let mut words = line.split_whitespace();
        let timeline: u32 = words.next()?.parse().ok()?;
        (timeline == seen_on).then(|| location(words.next()?)).flatten()
    };
    history().lines().find_map(ended).is_none_or(|end| end < seen_at)
}

/// A place as numbers: timeline and location.
fn parse(place: &str) -> Option<(u32, u64)> {
    let mut parts = place.split(':');
    Some((u32::from_str_radix(parts.next()?, 16).ok()?, location(parts.next()?)?))
}

/// When a member was at a place, by its own clock, in seconds since 1970.
pub fn time_of(place: &str) -> Option<&str> {
    place.split(':').nth(2)
}

/// A place in the log as a number.
pub fn location(text: &str) -> Option<u64> {
    let (high, low) = text.split_once('/')?;
    Some((u64::from(u32::from_str_radix(high, 16).ok()?) << 32) | u64::from(u32::from_str_radix(low, 16).ok()?))
}

/// The error for a conninfo that leads to another database than the member's. The mend stands in the detail, so that
/// the status shows it.
pub fn other_database(name: &str, known: &str, found: &str) -> Error {
    let say = |identity: &str| match identity.split_once('/') {
        Some((system, oid)) => format!("database {oid} of system {system}"),
        None => "another".to_string(),
    };
    Error::new(
        SqlState::WRONG_STATE,
        format!("it is another database than before: found {}, known was {}", say(found), say(known)),
    )
    .detail(confirm(name))
}

/// The error for a source that is a copy of another member: all that stands there is that one's.
pub fn copy_of(name: &str, other: &str) -> Error {
    Error::new(SqlState::WRONG_STATE, format!("it is a copy of db \"{other}\": it holds that one's progress and none of its own"))
        .detail(confirm(name))
}

/// How a user says that it is right.
fn confirm(name: &str) -> String {
    format!("if that is right, confirm it: SELECT bucardo.update_db({}, status => 'active');", quote_literal(name))
}

/// What to warn of when the clocks of sources differ so much that the latest change may not be the last one.
pub fn doubtful(clocks: &[(&str, Clock)]) -> Option<String> {
    let (fast, ahead) = clocks.iter().max_by_key(|(_, c)| c.ahead)?;
    let (slow, behind) = clocks.iter().min_by_key(|(_, c)| c.ahead)?;
    let (apart, error) = (ahead.ahead - behind.ahead, ahead.error + behind.error);
    (apart - error > SKEW).then(|| {
        let seconds = |micros: i64| micros as f64 / 1_000_000.0;
        format!(
            "the clock of db \"{fast}\" is {:.1} s ahead of that of db \"{slow}\" (to within {:.3} s): the latest change may be judged wrongly until the clocks agree",
            seconds(apart),
            seconds(error)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HISTORY: &str = "1\t0/3000148\tno recovery target specified\n2\t0/5000000\tno recovery target specified\n";

    fn is_lost(seen: &str, now: &str) -> bool {
        lost(seen, now, || HISTORY.to_string())
    }

    #[test]
    fn a_server_that_goes_on_has_lost_nothing() {
        assert!(!is_lost("00000001:0/3000148", "00000001:0/3000148"));
        assert!(!is_lost("00000001:0/FFFFFFFF:1700000000.5", "00000001:1/0:1700000001"));
        assert_eq!(time_of("00000001:0/FFFFFFFF:1700000000.5"), Some("1700000000.5"));
        assert!(is_lost("00000001:1/0", "00000001:0/FFFFFFFF"), "restored from an older copy");
    }

    #[test]
    fn a_promoted_standby_has_lost_what_came_after_the_old_timelines_end() {
        assert!(!is_lost("00000001:0/3000148", "00000003:0/6000000"));
        assert!(is_lost("00000001:0/3000150", "00000003:0/6000000"));
        assert!(!is_lost("00000002:0/4FFFFFF", "00000003:0/6000000"));
    }

    #[test]
    fn what_cannot_be_told_is_lost() {
        assert!(is_lost("00000009:0/1", "00000003:0/6000000"), "a timeline that it does not come from");
        assert!(lost("00000001:0/1", "00000002:0/2", String::new), "no history can be read");
        assert!(is_lost("", "00000001:0/1"));
    }

    #[test]
    fn clocks_are_read_in_the_midst_of_the_question() {
        assert_eq!(Clock::measured(1_000, 6_500, 2_000), Clock { ahead: 5_000, error: 500 });
    }

    fn clock(seconds: f64, error: f64) -> Clock {
        Clock { ahead: (seconds * 1e6) as i64, error: (error * 1e6) as i64 }
    }

    #[test]
    fn only_clocks_that_surely_differ_are_doubtful() {
        assert_eq!(doubtful(&[("A", clock(0.0, 0.001)), ("B", clock(0.9, 0.001))]), None);
        assert_eq!(doubtful(&[("A", clock(0.0, 0.3)), ("B", clock(1.5, 0.3))]), None, "it may be the way that takes so long");
        assert_eq!(doubtful(&[("A", clock(90.0, 0.001))]), None);
        let text = doubtful(&[("A", clock(-2.0, 0.001)), ("B", clock(0.0, 0.001)), ("C", clock(3.0, 0.001))]).unwrap();
        assert!(text.contains("db \"C\" is 5.0 s ahead of that of db \"A\""), "{text}");
    }
}
