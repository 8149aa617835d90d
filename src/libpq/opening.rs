//! A connection that is being made, step by step and without blocking, for the master that must wait for nobody and
//! for those who wait. Every host of a conninfo, and every address of a name, is given a time of its own; the names
//! are looked up by a thread beside. It must never call libpq with a socket that is not ready.

use std::collections::VecDeque;
use std::ffi::{CString, c_char};
use std::ptr;
use std::time::{Duration, Instant};

use pgrx::pg_sys;

use super::cancel;
use super::conn::{Conn, Target};
use super::conninfo::Conninfo;
use super::doubt::Doubt;
use super::ffi;
use super::hosts::{self, Attempt};
use super::resolve::Lookup;
use crate::error::{Error, Result, SqlState};
use crate::pg::latch::{self, Ready};

/// A connection that is being made. Dropped, it is closed.
pub struct Opening {
    target: Target,
    application_name: String,
    /// The time for all, and what the conninfo gives to each host.
    timeout: Duration,
    each: Option<Duration>,
    state: State,
    /// What is tried when this has failed, and why what was tried before has.
    rest: VecDeque<Attempt>,
    failed: Vec<String>,
    /// What the socket must be ready for before the next step.
    pub ready: Ready,
    /// When to take the next step although nothing has come: the time of this attempt is over then.
    pub deadline: Instant,
    /// The end of all attempts, where the conninfo gives none to each.
    end: Instant,
    began: Instant,
}

enum State {
    /// Nothing is under way.
    Idle,
    Resolving(Lookup, Attempt),
    Connecting(Box<Conn>),
}

/// What a step of connecting came to.
pub enum Step {
    Open(Conn),
    Opening(Opening),
}

fn refused(name: &str, info: &Conninfo, text: &str) -> Error {
    // libpq's own words, on one line.
    let text = info.scrub(text).split_whitespace().collect::<Vec<_>>().join(" ");
    Error::new(SqlState::CANNOT_CONNECT, format!("could not connect to db \"{name}\": {text}"))
        .hint(format!("See whether the server runs and takes this conninfo: {}", info.masked()))
}

/// Drops notices of a member: they belong to nobody's terminal.
unsafe extern "C" fn ignore_notice(_arg: *mut std::ffi::c_void, _res: *const ffi::PGresult) {}

impl Opening {
    pub fn socket(&self) -> i32 {
        match &self.state {
            State::Connecting(conn) => conn.socket(),
            _ => -1,
        }
    }

    /// When to call [`Opening::step`] again for who cannot wait for the socket: connecting is short, or it takes long.
    pub fn look_again(&self) -> Duration {
        (self.began.elapsed() / 4).clamp(Duration::from_millis(2), Duration::from_millis(100))
    }

    /// Waits until a step may be worth it.
    fn wait(&self) {
        let left = latch::left(self.deadline).unwrap_or_default();
        match self.socket() {
            0.. => latch::wait(Some((self.socket(), self.ready)), Some(left)),
            // A thread sets no latch.
            _ => latch::wait(None, Some(left.min(self.look_again()))),
        };
    }

    /// Goes on connecting as far as the socket is ready for it; with the next host when this one has failed or its time is
    /// over; fails after the last one. libpq must not be called before the socket is ready: it would send over one that is
    /// not connected, and wait there for as long as TCP tries.
    pub fn step(mut self) -> Result<Step> {
        let late = latch::left(self.deadline).is_none();
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Idle => {}
            State::Resolving(lookup, attempt) => {
                let host = attempt.get("host").unwrap_or_default().to_string();
                match lookup.answer() {
                    Some(Ok(addresses)) => {
                        for (i, address) in addresses.iter().enumerate().rev() {
                            let mut one = attempt.clone();
                            one.set("hostaddr", address);
                            one.further_address = i > 0;
                            self.rest.push_front(one);
                        }
                    }
                    Some(Err(text)) => self.failed.push(format!("could not translate host name \"{host}\" to address: {text}")),
                    None if late => self.failed.push(format!("could not translate host name \"{host}\" to address in time")),
                    None => {
                        self.state = State::Resolving(lookup, attempt);
                        return Ok(Step::Opening(self));
                    }
                }
            }
            State::Connecting(conn) => {
                if !late && conn.socket() >= 0 && !latch::is_ready(conn.socket(), self.ready) {
                    self.state = State::Connecting(conn);
                    return Ok(Step::Opening(self));
                }
                // SAFETY: raw is a connection being made.
                match if late { None } else { Some(unsafe { ffi::PQconnectPoll(conn.raw) }) } {
                    None if self.failed.is_empty() && self.rest.is_empty() => self.failed.push("timeout expired".into()),
                    None => self.failed.push(format!("connection to server at \"{}\" failed: timeout expired", conn.place())),
                    Some(ffi::PGRES_POLLING_FAILED) => {
                        // What a server says against us it says at its other addresses too.
                        while self.ready == Ready::Read && self.rest.front().is_some_and(|a| a.further_address) {
                            self.rest.pop_front();
                        }
                        self.failed.push(conn.wire_message());
                    }
                    Some(ffi::PGRES_POLLING_OK) => {
                        // SAFETY: raw is open.
                        unsafe {
                            ffi::PQsetnonblocking(conn.raw, 1);
                            ffi::PQsetNoticeReceiver(conn.raw, Some(ignore_notice), ptr::null_mut());
                        }
                        return Ok(Step::Open(*conn));
                    }
                    Some(step) => {
                        self.ready = if step == ffi::PGRES_POLLING_READING { Ready::Read } else { Ready::ReadWrite };
                        self.state = State::Connecting(conn);
                        return Ok(Step::Opening(self));
                    }
                }
            }
        }
        self.next().map(Step::Opening)
    }

    /// Begins with the next host or address, or fails with what all have said.
    fn next(mut self) -> Result<Self> {
        while let Some(attempt) = self.rest.pop_front() {
            self.ready = Ready::ReadWrite;
            self.began = Instant::now();
            self.deadline = self.began
                + match self.each {
                    Some(each) => each,
                    // A fair share of what is left.
                    None => self.end.saturating_duration_since(self.began) / (self.rest.len() as u32 + 1),
                };
            if let Some(host) = attempt.name_to_resolve() {
                self.state = State::Resolving(Lookup::start(host), attempt);
                return Ok(self);
            }
            match self.connect(&attempt) {
                Ok(conn) => {
                    self.state = State::Connecting(Box::new(conn));
                    return Ok(self);
                }
                Err(text) => self.failed.push(text),
            }
        }
        Err(refused(&self.target.name, &self.target.info, &self.failed.join(" ")))
    }

    /// Begins to connect, to one host only; else says why not.
    fn connect(&self, attempt: &Attempt) -> Result<Conn, String> {
        let mut options = attempt.options.clone();
        // Names in statements are UTF-8, whatever the conninfo or the server says.
        options.retain(|(k, _)| k != "client_encoding");
        options.push(("client_encoding".into(), "UTF8".into()));
        options.push(("fallback_application_name".into(), self.application_name.clone()));
        for (keyword, value) in
            [("keepalives_idle", "10"), ("keepalives_interval", "5"), ("keepalives_count", "3"), ("tcp_user_timeout", "30000")]
        {
            if self.target.info.get(keyword).is_none() {
                options.push((keyword.into(), value.into()));
            }
        }
        let c_text = |t: &String| CString::new(t.as_str()).map_err(|_| "a value holds a null byte".to_string());
        let keywords = options.iter().map(|(k, _)| c_text(k)).collect::<Result<Vec<_>, _>>()?;
        let values = options.iter().map(|(_, v)| c_text(v)).collect::<Result<Vec<_>, _>>()?;
        let mut k: Vec<*const c_char> = keywords.iter().map(|t| t.as_ptr()).collect();
        let mut v: Vec<*const c_char> = values.iter().map(|t| t.as_ptr()).collect();
        k.push(ptr::null());
        v.push(ptr::null());
        // SAFETY: no arguments; it only counts.
        if !unsafe { pg_sys::AcquireExternalFD() } {
            return Err("too many open files in this server process".into());
        }
        // SAFETY: both arrays end with NULL and outlive the call.
        let raw = unsafe { ffi::PQconnectStartParams(k.as_ptr(), v.as_ptr(), 0) };
        if raw.is_null() {
            // SAFETY: pairs with AcquireExternalFD above.
            unsafe { pg_sys::ReleaseExternalFD() };
            return Err("out of memory".into());
        }
        cancel::opened(raw);
        let conn = Conn::new(raw, &self.target, Doubt::new(self.timeout));
        // SAFETY: raw is a connection being made. If it is not bad, libpq says: wait as if the last poll had answered WRITING.
        if unsafe { ffi::PQstatus(raw) } == ffi::CONNECTION_BAD { Err(conn.wire_message()) } else { Ok(conn) }
    }
}

impl Conn {
    /// Connects within `timeout`, or within the conninfo's own time for each of its hosts; an error has libpq's own words
    /// under 08001.
    pub fn open(target: &Target, application_name: &str, timeout: Duration) -> Result<Self> {
        let mut opening = Self::start(target, application_name, timeout)?;
        loop {
            opening.wait();
            match opening.step()? {
                Step::Open(conn) => return Ok(conn),
                Step::Opening(again) => opening = again,
            }
        }
    }

    /// Begins to connect and returns at once: [`Opening::step`] goes on whenever the socket is ready.
    pub fn start(target: &Target, application_name: &str, timeout: Duration) -> Result<Opening> {
        let began = Instant::now();
        Opening {
            target: target.clone(),
            application_name: application_name.into(),
            timeout,
            each: hosts::time_for_each(&target.info).map(|each| each.min(timeout)),
            state: State::Idle,
            rest: hosts::attempts(&target.info),
            failed: Vec::new(),
            ready: Ready::ReadWrite,
            deadline: began,
            end: began + timeout,
            began,
        }
        .next()
    }
}
