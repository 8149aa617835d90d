//! How the master hears of changes on one source, without ever waiting for it: a connection that is made, asked and
//! read step by step beside all others. On the control database's own server a committing transaction wakes the master
//! through shared memory; a source elsewhere that has the library preloaded answers a waiting call; any other is polled,
//! quickly after a change and slowly at rest. The same connection carries the upkeep of that source.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::guc;
use crate::kid::{retry, who};
use crate::libpq::{Conn, Opening, Rows, Step, Target};
use crate::pg::shmem::{self, Watching};

/// How long a waiting call waits on a quiet source; it holds a snapshot there meanwhile, so not for long.
const WAIT_CALL: Duration = Duration::from_secs(5);
/// From when on a question counts as one that takes long, and how long the source is left alone after it at most.
const LONG: Duration = Duration::from_millis(10);
const MOST_REST: Duration = Duration::from_secs(1);
/// A source that wakes us is looked at so long after a run, for what its capture has grown to.
const LOOK_AFTER: Duration = Duration::from_millis(100);
/// Even a source that wakes us is looked at this often, against what no wake-up reports (a prepared transaction that
/// was committed while the master was away).
const SAFETY_LOOK: Duration = Duration::from_secs(10);

/// What a source can do for us.
enum Wake {
    Unknown,
    /// It is a database of this server: shared memory.
    Shared(Watching),
    /// It answers `bucardo.wait_for_changes`.
    Call,
    Poll,
}

/// What was sent and not yet answered.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Asked {
    Nothing,
    Session,
    Kind,
    Pending,
    Waiting,
    Upkeep(u64),
}

enum Line {
    Closed { next_try: Instant },
    Opening(Opening),
    Open(Conn),
}

/// What the watcher tells the master.
#[derive(Debug)]
pub enum News {
    /// A transaction that changed something captured has just committed on the source.
    Woken,
    /// The receivers of syncs that have something to be served: (sync, receiver).
    Pending(Vec<(String, String)>),
    /// An upkeep statement ended; the first value that it answered.
    Upkeep { token: u64, result: Result<String> },
}

/// The watcher of one source.
pub struct Watcher {
    pub target: Target,
    control: String,
    line: Line,
    wake: Wake,
    asked: Asked,
    /// Upkeep that waits for its turn.
    upkeep: VecDeque<(u64, String)>,
    /// Whether to look for pending changes as soon as the line is free.
    look: bool,
    next_look: Instant,
    /// When the question under way was sent, and until when there is none after one that took long.
    sent: Instant,
    rests: Instant,
    /// Whether the last look was made because its time had come.
    looked_in_time: bool,
    interval: Duration,
    failures: u32,
    only_upkeep: bool,
    /// The tables whose changes are not asked for, as `bucardo.capture_pending` reads them; empty: none.
    quiet: String,
    /// Why the source cannot be asked, since the last answer.
    trouble: Option<String>,
    /// Which database it must be, if that is known; any other is left alone.
    known: Option<String>,
    /// The bytes of capture at the last look, for purging early.
    pub bytes: i64,
    /// Whether it was told that what the member captures cannot be learned.
    pub told: bool,
}

/// Whatever the source is set to: purging relies on a snapshot for each statement, a serializable session would leave a
/// lock for each look, and a waiting call takes its time.
const SESSION: &str = "SET statement_timeout = 0; SET lock_timeout = 0; SET default_transaction_deferrable = off; \
    SET default_transaction_isolation = 'read committed'; SET default_transaction_read_only = off; \
    SELECT pg_catalog.set_config(s, '0', false) FROM unnest('{idle_session_timeout,transaction_timeout}'::pg_catalog.text[]) s \
    WHERE pg_catalog.current_setting(s, true) IS NOT NULL; \
    SELECT pg_catalog.set_config('deadlock_timeout', '1ms', false) WHERE pg_catalog.current_setting('is_superuser') = 'on'";

/// Tells what kind of source this is: whether it is this very server (and which database of it), and what it has.
const KIND: &str = "SELECT extract(epoch FROM pg_catalog.pg_postmaster_start_time())::text, \
    (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()), \
    (SELECT s.system_identifier FROM pg_catalog.pg_control_system() s), \
    pg_catalog.to_regprocedure('bucardo.wait_for_changes(interval)') IS NOT NULL \
    AND pg_catalog.current_setting('shared_preload_libraries') ~ '(^|[ ,\"/])bucardo($|[ ,\".])'";

impl Watcher {
    pub fn new(target: Target, control: &str, now: Instant) -> Self {
        Self {
            target,
            control: control.to_string(),
            line: Line::Closed { next_try: now },
            wake: Wake::Unknown,
            asked: Asked::Nothing,
            upkeep: VecDeque::new(),
            look: true,
            next_look: now,
            sent: now,
            rests: now,
            looked_in_time: true,
            interval: guc::poll_min(),
            failures: 0,
            only_upkeep: false,
            quiet: String::new(),
            trouble: None,
            known: None,
            bytes: 0,
            told: false,
        }
    }

    /// A watcher that only carries upkeep, to a member that need not be a source.
    pub fn for_upkeep(target: Target, now: Instant) -> Self {
        let mut watcher = Self::new(target, "", now);
        watcher.only_upkeep = true;
        watcher
    }

    /// Says which database it must be. Where another one was met it is tried again at once.
    pub fn must_be(&mut self, known: Option<String>, now: Instant) {
        if self.known != known {
            self.known = known;
            self.reached(now);
        }
    }

    /// Says of which tables changes start no run.
    pub fn leave_out(&mut self, quiet: &[serde_json::Value]) {
        self.quiet = if quiet.is_empty() { String::new() } else { serde_json::json!(quiet).to_string() };
    }

    /// Looks for changes soon.
    pub fn look_soon(&mut self) {
        self.look = true;
    }

    /// Queues a statement that answers with one number.
    pub fn add_upkeep(&mut self, token: u64, sql: String) {
        self.upkeep.push_back((token, sql));
    }

    /// Warns, once, of an answer that says nothing of what the member captures. That it is away is told by others.
    pub fn tell(&mut self, error: &Error) {
        if !retry::is_away(error.code) && !std::mem::replace(&mut self.told, true) {
            pgrx::warning!("bucardo: what db \"{}\" captures cannot be learned: {error}", self.target.name);
        }
    }

    /// Why the source cannot be asked, and when it is tried again.
    pub fn trouble(&self) -> Option<(&str, Instant)> {
        match (&self.trouble, &self.line) {
            (Some(text), Line::Closed { next_try }) => Some((text, *next_try)),
            (Some(text), Line::Opening(opening)) => Some((text, opening.deadline)),
            _ => None,
        }
    }

    /// A run has just reached the source: what was in its way is gone, and what is changed next is looked for soon.
    pub fn reached(&mut self, now: Instant) {
        self.trouble = None;
        self.interval = guc::poll_min();
        if let Line::Closed { next_try } = &mut self.line {
            *next_try = now;
        }
        self.look = true;
    }

    /// The same where it is known whether anything has changed since the run began: there is no hurry to look.
    pub fn reached_knowing(&mut self, now: Instant) {
        let look = std::mem::replace(&mut self.look, false);
        self.reached(now);
        self.look = look;
        self.next_look = self.next_look.min(now + LOOK_AFTER);
    }

    /// Whether it wakes us, and has.
    pub fn is_dirty(&self) -> bool {
        matches!(&self.wake, Wake::Shared(watching) if watching.is_dirty())
    }

    /// How often it has woken us; 0 where it does not.
    pub fn commits(&self) -> u64 {
        self.counted_at().map_or(0, shmem::commits)
    }

    /// Where this server counts its commits, if it does.
    pub fn counted_at(&self) -> Option<usize> {
        if let Wake::Shared(watching) = &self.wake { Some(watching.place()) } else { None }
    }

    /// Whether it wakes us. If so, forgets that it has.
    pub fn calm(&self) -> bool {
        let Wake::Shared(watching) = &self.wake else { return false };
        watching.take();
        true
    }

    /// The socket to wait on, -1 for none.
    pub fn socket(&self) -> i32 {
        match (&self.line, &self.asked) {
            (Line::Opening(opening), _) if opening.ready == crate::pg::latch::Ready::Read => opening.socket(),
            (Line::Open(conn), asked) if *asked != Asked::Nothing => conn.socket(),
            _ => -1,
        }
    }

    /// When to come back although nothing happened.
    pub fn next_time(&self, now: Instant) -> Option<Instant> {
        match &self.line {
            Line::Closed { .. } if self.only_upkeep && self.upkeep.is_empty() => None,
            Line::Closed { next_try } => Some(*next_try),
            // A socket that must become writable is not in the master's wait set.
            Line::Opening(opening) if opening.ready != crate::pg::latch::Ready::Read => Some(now + opening.look_again()),
            Line::Opening(opening) => Some(opening.deadline),
            Line::Open(conn) if self.asked != Asked::Nothing => Some(now + conn.doubt_in()),
            Line::Open(_) if self.only_upkeep && self.upkeep.is_empty() => None,
            Line::Open(_) if !self.upkeep.is_empty() => Some(now),
            Line::Open(_) if self.look => Some(self.rests.max(now)),
            Line::Open(_) => Some(self.next_look.max(self.rests)),
        }
    }

    /// Goes on as far as possible without waiting. `deaf`: it is not heard that it wakes us.
    pub fn advance(&mut self, now: Instant, deaf: bool) -> Vec<News> {
        let mut news = Vec::new();
        if let Wake::Shared(watching) = &self.wake
            && !deaf
            && watching.take()
        {
            news.push(News::Woken);
        }
        if let Err(error) = self.step(now, &mut news) {
            self.close(now, error, &mut news);
        }
        news
    }

    fn close(&mut self, now: Instant, error: Error, news: &mut Vec<News>) {
        self.failures += 1;
        let wait = super::controller::back_off(self.failures, guc::retry_min(), guc::retry_max());
        if self.failures == 1 && guc::logs(guc::LogLevel::Normal) {
            pgrx::log!("bucardo: {error}");
        }
        self.trouble = Some(error.to_string());
        self.line = Line::Closed { next_try: now + wait };
        self.wake = Wake::Unknown;
        self.look = true;
        if let Asked::Upkeep(token) = std::mem::replace(&mut self.asked, Asked::Nothing) {
            news.push(News::Upkeep { token, result: Err(error.clone()) });
        }
        for (token, _) in self.upkeep.drain(..) {
            news.push(News::Upkeep { token, result: Err(error.clone()) });
        }
    }

    fn step(&mut self, now: Instant, news: &mut Vec<News>) -> Result<()> {
        loop {
            match std::mem::replace(&mut self.line, Line::Closed { next_try: now }) {
                Line::Closed { next_try } if now < next_try => {
                    self.line = Line::Closed { next_try };
                    return Ok(());
                }
                Line::Closed { .. } => {
                    self.line = Line::Opening(Conn::start(&self.target, "bucardo master", guc::connect_timeout())?);
                    return Ok(());
                }
                Line::Opening(opening) => match opening.step()? {
                    Step::Opening(opening) => {
                        self.line = Line::Opening(opening);
                        return Ok(());
                    }
                    Step::Open(conn) => {
                        self.line = Line::Open(conn);
                        self.send(Asked::Session, SESSION.to_string())?;
                    }
                },
                Line::Open(conn) => {
                    self.line = Line::Open(conn);
                    if self.asked != Asked::Nothing && !self.take_answer(now, news)? {
                        return Ok(());
                    }
                    if !self.ask(now)? {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn send(&mut self, what: Asked, sql: String) -> Result<()> {
        if let Line::Open(conn) = &mut self.line {
            conn.send(&sql)?;
            if what == Asked::Waiting {
                conn.expect_silence(WAIT_CALL);
            }
            self.asked = what;
        }
        Ok(())
    }

    /// Takes the answer if it is there; false if not yet.
    fn take_answer(&mut self, now: Instant, news: &mut Vec<News>) -> Result<bool> {
        let Line::Open(conn) = &mut self.line else { return Ok(false) };
        if !conn.answer_ready()? {
            conn.doubt()?;
            return Ok(false);
        }
        let answer = conn.collect();
        let broken = conn.is_broken();
        match (std::mem::replace(&mut self.asked, Asked::Nothing), answer) {
            (Asked::Upkeep(token), result) if !broken => {
                let result = result.map(|r| r.text(0, 0));
                let failed = result.is_err();
                news.push(News::Upkeep { token, result });
                if failed {
                    return Ok(true);
                }
            }
            (asked, Err(error)) => {
                self.asked = asked;
                return Err(error.at(format_args!("db \"{}\"", self.target.name)));
            }
            // Whether it is well is told by the answers to come.
            (Asked::Session, Ok(_)) if self.only_upkeep => return Ok(true),
            (Asked::Session, Ok(_)) => return self.send(Asked::Kind, KIND.to_string()).map(|()| true),
            (Asked::Kind, Ok(rows)) => return self.learn(&rows).map(|()| true),
            (Asked::Pending, Ok(rows)) => self.pending(&rows, now, news),
            (Asked::Waiting, Ok(rows)) => self.look |= rows.bool(0, 0),
            (Asked::Upkeep(_) | Asked::Nothing, Ok(_)) => {}
        }
        self.failures = 0;
        self.trouble = None;
        Ok(true)
    }

    fn learn(&mut self, rows: &Rows) -> Result<()> {
        let found = format!("{}/{}", rows.text(0, 2), rows.text(0, 1));
        if let Some(known) = self.known.as_ref().filter(|known| **known != found) {
            let name = &self.target.name;
            return Err(who::other_database(name, known, &found).at(format_args!("db \"{name}\"")));
        }
        let here = super::upkeep::this_server();
        let same = rows.text(0, 0) == here.started && rows.text(0, 2) == here.identifier;
        let able = rows.bool(0, 3);
        let database = rows.number(0, 1).unwrap_or(0);
        let (_, procno) = crate::pg::worker::me();
        self.wake = match able {
            true if same => shmem::watch(database, procno).map_or(Wake::Poll, Wake::Shared),
            true => Wake::Call,
            false => Wake::Poll,
        };
        self.look = true;
        Ok(())
    }

    fn pending(&mut self, rows: &Rows, now: Instant, news: &mut Vec<News>) {
        let all: Vec<(String, String)> =
            (0..rows.len()).filter(|i| rows.get(*i, 0).is_some()).map(|i| (rows.text(i, 0), rows.text(i, 1))).collect();
        self.bytes = rows.number(0, 2).unwrap_or(0);
        // Until it is told what that means.
        self.next_look = now + SAFETY_LOOK;
        self.rests = now + rest_after(now.saturating_duration_since(self.sent));
        news.push(News::Pending(all));
    }

    /// Says whether the look has just found anything that starts a run, and so when the next one is: soon after a change another one
    /// is likely. What is being served, or waits for a member that is away or for a paused sync, is found by each look again.
    pub fn looked(&mut self, found: bool, now: Instant) {
        self.interval = interval_after(self.interval, found, self.looked_in_time, guc::poll_min(), guc::poll_max());
        self.next_look = now + if matches!(self.wake, Wake::Poll) { self.interval } else { SAFETY_LOOK };
    }

    /// Asks the next question, if there is one; false when there is nothing to ask now.
    fn ask(&mut self, now: Instant) -> Result<bool> {
        if self.asked != Asked::Nothing {
            return Ok(true);
        }
        if let Some((token, sql)) = self.upkeep.pop_front() {
            self.send(Asked::Upkeep(token), sql)?;
            return Ok(true);
        }
        if self.only_upkeep {
            return Ok(false);
        }
        if (self.look || now >= self.next_look) && now >= self.rests {
            self.look = false;
            self.sent = now;
            self.looked_in_time = now >= self.next_look;
            let quoted = crate::ident::quote_literal;
            let quiet = if self.quiet.is_empty() { String::new() } else { format!(", {}", quoted(&self.quiet)) };
            let sql =
                format!("SELECT p.sync, p.member, p.bytes FROM bucardo.capture_pending({}{quiet}) p", quoted(&self.control));
            self.send(Asked::Pending, sql)?;
            return Ok(true);
        }
        if matches!(self.wake, Wake::Call) && !self.look {
            self.send(Asked::Waiting, format!("SELECT bucardo.wait_for_changes('{} s')", WAIT_CALL.as_secs()))?;
            return Ok(true);
        }
        Ok(false)
    }
}

/// How long to wait until the next look: after a change the next one is likely soon. A look that was made because a run
/// had ended (not `in_time`) says nothing of how often changes come, and must not slow the next ones down.
fn interval_after(interval: Duration, found: bool, in_time: bool, min: Duration, max: Duration) -> Duration {
    match (found, in_time) {
        (true, _) => min,
        (false, true) => (interval * 2).min(max),
        (false, false) => interval,
    }
}

/// How long a source is left alone after a question that it took so long to answer: one that has much to look at shall not do
/// nothing else.
fn rest_after(took: Duration) -> Duration {
    if took < LONG { Duration::ZERO } else { took.min(MOST_REST) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_answers_slowly_is_left_alone() {
        let ms = Duration::from_millis;
        assert_eq!([1, 9, 10, 70, 60_000].map(|took| rest_after(ms(took))), [ms(0), ms(0), ms(10), ms(70), ms(1000)]);
    }

    #[test]
    fn polling_slows_down_at_rest_only() {
        let ms = Duration::from_millis;
        let after = |interval, found, in_time| interval_after(ms(interval), found, in_time, ms(20), ms(1000));
        assert_eq!(after(1000, true, true), ms(20), "a change");
        assert_eq!(after(20, false, true), ms(40), "nothing when it was time");
        assert_eq!(after(640, false, true), ms(1000), "not above the most");
        assert_eq!(after(20, false, false), ms(20), "nothing after the run that took it");
        assert_eq!(after(1000, true, false), ms(20));
    }
}
