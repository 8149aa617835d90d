//! COPY on several connections at the same time: out of all of them into memory, and out of memory into all of them, so that
//! their servers work side by side. One that fails keeps its error to itself. It must never hold more than it was allowed
//! to, nor wait for one while another has something to say.

use std::time::Duration;

use super::conn::Conn;
use super::copy::CopyOut;
use super::ffi;
use crate::error::{Error, Result};
use crate::pg::latch::{self, Ready};

/// How many bytes are handed to libpq at once, which copies them.
const CHUNK: usize = 256 * 1024;

/// Runs a `COPY … TO STDOUT` on each connection. The bytes of each, or its error; None: they are more than `most` in all, and the
/// connections are left in the midst of it.
pub fn read_together(sources: Vec<(&mut Conn, &str)>, most: usize) -> Option<Vec<Result<Vec<u8>>>> {
    let sent: Vec<(&mut Conn, Result<()>)> = sources
        .into_iter()
        .map(|(conn, sql)| {
            let sent = conn.send(sql);
            (conn, sent)
        })
        .collect();
    let mut all: Vec<Result<(CopyOut<'_>, Vec<u8>)>> = Vec::new();
    for (conn, sent) in sent {
        all.push(sent.and_then(move |()| conn.copy_out_sent()).map(|out| (out, Vec::new())));
    }
    loop {
        let mut came = false;
        for one in &mut all {
            advance(one, |(out, bytes)| {
                if !out.done {
                    out.conn.consume()?;
                    let before = bytes.len();
                    out.take(bytes)?;
                    if out.done || bytes.len() > before {
                        out.conn.doubt.heard();
                        came = true;
                    }
                }
                Ok(())
            });
        }
        if all.iter().flatten().map(|(_, bytes)| bytes.len()).sum::<usize>() > most {
            return None;
        }
        let mut waiting: Vec<_> = all.iter_mut().filter(|one| one.as_ref().is_ok_and(|(out, _)| !out.done)).collect();
        if waiting.is_empty() {
            return Some(all.into_iter().map(|one| one.map(|(_, bytes)| bytes)).collect());
        }
        if !came {
            wait(waiting.iter().flat_map(|one| one.as_ref()).map(|(out, _)| &*out.conn), Ready::Read);
        }
        // Whether or not others have something to say.
        waiting.iter_mut().for_each(|one| advance(one, |(out, _)| out.conn.doubt()));
    }
}

/// What is written by one connection.
struct Write<'a> {
    conn: &'a mut Conn,
    rest: &'a [u8],
    ended: bool,
    /// All of it has been handed to the system.
    sent: bool,
}

/// Runs a `COPY … FROM STDIN` on each connection, of the given bytes. The error of each, if it failed.
pub fn write_together(receivers: Vec<(&mut Conn, &str, &[u8])>) -> Vec<Result<()>> {
    let mut all: Vec<Result<Write<'_>>> = receivers
        .into_iter()
        .map(|(conn, sql, bytes)| {
            conn.copy_in(sql)?;
            Ok(Write { conn, rest: bytes, ended: false, sent: false })
        })
        .collect();
    loop {
        let mut went = false;
        for one in &mut all {
            advance(one, |write| {
                went |= write.step()?;
                Ok(())
            });
        }
        let mut waiting: Vec<_> = all.iter_mut().filter(|one| one.as_ref().is_ok_and(|write| !write.sent)).collect();
        if waiting.is_empty() {
            break;
        }
        if !went {
            wait(waiting.iter().flat_map(|one| one.as_ref()).map(|write| &*write.conn), Ready::ReadWrite);
        }
        waiting.iter_mut().for_each(|one| advance(one, |write| write.conn.doubt()));
    }
    all.into_iter().map(|one| one.and_then(|write| write.conn.collect().map(drop))).collect()
}

impl Write<'_> {
    /// Hands over what can be taken at once, one chunk at most; whether anything was.
    fn step(&mut self) -> Result<bool> {
        if self.sent {
            return Ok(false);
        }
        // What the server says meanwhile is read, so that two full buffers cannot block each other.
        self.conn.consume().map_err(|_| self.conn.copy_failed())?;
        // SAFETY: raw is live.
        match unsafe { ffi::PQflush(self.conn.raw) } {
            0 if self.ended => self.sent = true,
            0 => self.put()?,
            1 => return Ok(false),
            _ => return Err(self.conn.copy_failed()),
        }
        self.conn.doubt.heard();
        Ok(true)
    }

    /// The next bytes, or the end.
    fn put(&mut self) -> Result<()> {
        let (chunk, rest) = self.rest.split_at(self.rest.len().min(CHUNK));
        self.rest = rest;
        self.ended = chunk.is_empty();
        // SAFETY: raw is live and copying in, the chunk has the given length.
        let put = unsafe {
            match self.ended {
                true => ffi::PQputCopyEnd(self.conn.raw, std::ptr::null()),
                false => ffi::PQputCopyData(self.conn.raw, chunk.as_ptr().cast(), chunk.len() as i32),
            }
        };
        if put <= 0 { Err(self.conn.copy_failed()) } else { Ok(()) }
    }
}

/// Does a step of one that has not failed.
fn advance<T>(one: &mut Result<T>, step: impl FnOnce(&mut T) -> Result<()>) {
    let failed: Option<Error> = one.as_mut().ok().and_then(|state| step(state).err());
    if let Some(error) = failed {
        *one = Err(error);
    }
}

/// Waits until one of them is ready, or one of their servers is to be doubted.
fn wait<'a>(conns: impl Iterator<Item = &'a Conn> + Clone, ready: Ready) {
    let sockets: Vec<i32> = conns.clone().map(Conn::socket).collect();
    let patience = conns.map(Conn::doubt_in).min().unwrap_or(Duration::ZERO);
    latch::wait_any(&sockets, ready, Some(patience));
}
