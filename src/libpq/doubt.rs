//! Whether a server that keeps us waiting is still there. A long statement is no reason to give it up; but a frozen
//! server, or a network that swallows everything, leaves a connection open for ever. So after some time of silence the
//! server is asked over a second connection: if it says anything there, the wait goes on, else the first one is closed.

use std::time::{Duration, Instant};

use super::conn::{Conn, Target};
use super::ffi;
use super::opening::{Opening, Step};
use crate::error::Result;
use crate::pg::latch::{self, Ready};

/// How often a second connection is looked at while it is being made.
const STEP: Duration = Duration::from_millis(50);

/// What is known about the silence of a connection.
pub struct Doubt {
    /// How long it may be silent, and how long the second one may take.
    patience: Duration,
    /// Until when its silence is nothing.
    fine_until: Instant,
    /// The second connection.
    probe: Option<Box<Opening>>,
    /// The server was given up.
    pub silent: bool,
}

impl Doubt {
    pub fn new(patience: Duration) -> Self {
        Self { patience, fine_until: Instant::now() + patience, probe: None, silent: false }
    }

    /// Something was sent, or came.
    pub fn heard(&mut self) {
        self.fine_until = Instant::now() + self.patience;
        self.probe = None;
    }
}

enum Answer {
    /// The server has said something, or its machine has: as long as that one lives it also tells when the connection is gone.
    Alive,
    Silent,
    NotYet(Box<Opening>),
}

/// Goes on with the second connection as far as possible without waiting. The first words are enough: whether we may
/// connect is not the question.
fn look(probe: Box<Opening>) -> Answer {
    let deadline = probe.deadline;
    let late = || latch::left(deadline).is_none();
    match latch::is_ready(probe.socket(), probe.ready) {
        true if probe.ready == Ready::Read => Answer::Alive,
        _ if late() => Answer::Silent,
        false => Answer::NotYet(probe),
        true => match probe.step() {
            Ok(Step::Opening(probe)) => Answer::NotYet(Box::new(probe)),
            Err(_) if late() => Answer::Silent,
            Ok(Step::Open(_)) | Err(_) => Answer::Alive,
        },
    }
}

impl Conn {
    /// In which time to call [`Conn::doubt`] if nothing comes until then.
    pub fn doubt_in(&self) -> Duration {
        match self.doubt.probe {
            Some(_) => STEP,
            None => self.doubt.fine_until.saturating_duration_since(Instant::now()),
        }
    }

    /// What was sent last will be answered after so long: its silence means nothing until then.
    pub fn expect_silence(&mut self, time: Duration) {
        self.doubt.fine_until += time;
    }

    /// Nothing has come: asks the server over a second connection when that has lasted. An error when it is silent there
    /// too; this connection is broken then. Never waits.
    pub fn doubt(&mut self) -> Result<()> {
        let answer = match self.doubt.probe.take() {
            Some(probe) => look(probe),
            None if Instant::now() < self.doubt.fine_until => return Ok(()),
            None => Self::start(&self.same_server(), "bucardo probe", self.doubt.patience)
                .map_or(Answer::Alive, |probe| Answer::NotYet(Box::new(probe))),
        };
        match answer {
            Answer::Alive => self.doubt.heard(),
            Answer::NotYet(probe) => self.doubt.probe = Some(probe),
            Answer::Silent => {
                self.hang_up();
                return Err(self.lost());
            }
        }
        Ok(())
    }

    /// Breaks the connection on our side, so that nobody waits for it or uses it again.
    fn hang_up(&mut self) {
        self.doubt.silent = true;
        // SAFETY: the socket belongs to raw, which is live; after the shutdown libpq finds its end and closes it.
        unsafe {
            libc::shutdown(self.socket(), libc::SHUT_RDWR);
            while ffi::PQconsumeInput(self.raw) != 0 {}
        }
    }

    /// The server that this connection has ended up at, of several that the conninfo may name.
    fn same_server(&self) -> Target {
        let mut info = self.info.clone();
        info.options.retain(|(keyword, _)| !["host", "hostaddr", "port"].contains(&keyword.as_str()));
        for (keyword, value) in self.address().into_iter().filter(|(_, value)| !value.is_empty()) {
            info.options.push((keyword.into(), value));
        }
        Target { name: self.name.clone(), info }
    }
}
