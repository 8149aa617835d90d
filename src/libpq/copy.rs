//! COPY over the wire, bytes passed through undecoded. Rows are collected into large chunks, because libpq copies
//! and sends once for each call; the boundaries of the messages need not be those of the rows.

use std::ffi::{CString, c_char};
use std::ptr;

use super::conn::Conn;
use super::ffi;
use super::result::Rows;
use crate::error::{Error, Result};
use crate::pg::latch::Ready;

/// How many bytes are collected before they are passed on.
const CHUNK: usize = 256 * 1024;

/// A `COPY … TO STDOUT` that runs.
pub struct CopyOut<'a> {
    pub(super) conn: &'a mut Conn,
    pub(super) done: bool,
}

impl Conn {
    /// Starts a `COPY … TO STDOUT`.
    pub fn copy_out(&mut self, sql: &str) -> Result<CopyOut<'_>> {
        self.send(sql)?;
        self.copy_out_sent()
    }

    /// The same where the statement was sent before.
    pub(super) fn copy_out_sent(&mut self) -> Result<CopyOut<'_>> {
        let rows = self.collect()?;
        if rows.status() != ffi::PGRES_COPY_OUT {
            return Err(Error::internal(format!("db \"{}\" did not answer COPY with data", self.name)));
        }
        Ok(CopyOut { conn: self, done: false })
    }

    /// Starts a `COPY … FROM STDIN`: [`Conn::copy_put`] sends, [`Conn::copy_end`] ends it.
    pub fn copy_in(&mut self, sql: &str) -> Result<()> {
        let rows = self.query(sql)?;
        if rows.status() == ffi::PGRES_COPY_IN {
            Ok(())
        } else {
            Err(Error::internal(format!("db \"{}\" did not answer COPY by taking data", self.name)))
        }
    }

    /// Sends a chunk, waiting until the member has taken it, so that no memory grows here.
    pub fn copy_put(&mut self, chunk: &[u8]) -> Result<()> {
        // SAFETY: raw is live, the chunk has the given length.
        let put = unsafe { ffi::PQputCopyData(self.raw, chunk.as_ptr().cast(), chunk.len() as i32) };
        if put <= 0 {
            return Err(self.copy_failed());
        }
        self.flush().map_err(|_| self.copy_failed())
    }

    /// The member's own reason when it ended a COPY before we did.
    pub(super) fn copy_failed(&mut self) -> Error {
        match self.collect() {
            Err(error) => error,
            Ok(_) => self.lost(),
        }
    }

    /// Ends the COPY and returns how many rows the member stored.
    pub fn copy_end(&mut self) -> Result<u64> {
        // SAFETY: raw is live.
        if unsafe { ffi::PQputCopyEnd(self.raw, ptr::null()) } < 0 {
            return Err(self.copy_failed());
        }
        Ok(self.collect()?.affected())
    }

    /// Ends the COPY with an error, so that the member keeps nothing of it; what the member says is expected.
    pub fn copy_abort(&mut self, reason: &str) -> Result<()> {
        let reason = CString::new(reason).unwrap_or_default();
        // SAFETY: raw is live and the text NUL-terminated.
        if unsafe { ffi::PQputCopyEnd(self.raw, reason.as_ptr()) } < 0 {
            return Err(self.lost());
        }
        let _expected: Result<Rows> = self.collect();
        if self.is_broken() { Err(self.lost()) } else { Ok(()) }
    }
}

impl CopyOut<'_> {
    /// Fills the buffer with the next rows; false when the COPY has ended well.
    pub fn next_chunk(&mut self, buffer: &mut Vec<u8>) -> Result<bool> {
        buffer.clear();
        Ok(self.append(buffer)? > 0)
    }

    /// Appends the next whole rows to the buffer, waiting for the first; how many, none when the COPY has ended well.
    pub fn append(&mut self, buffer: &mut Vec<u8>) -> Result<usize> {
        loop {
            let rows = self.take(buffer)?;
            if rows > 0 || self.done {
                return Ok(rows);
            }
            self.conn.wait_io(Ready::Read)?;
        }
    }

    /// Appends the whole rows that have come; how many.
    pub(super) fn take(&mut self, buffer: &mut Vec<u8>) -> Result<usize> {
        let before = buffer.len();
        let mut rows = 0;
        while !self.done && buffer.len() - before < CHUNK {
            let mut row: *mut c_char = ptr::null_mut();
            // SAFETY: raw is live and copying out; the row is malloc'ed by libpq and ours to free.
            let length = unsafe { ffi::PQgetCopyData(self.conn.raw, &mut row, 1) };
            match length {
                0 => break,
                -1 => {
                    self.done = true;
                    self.conn.collect()?;
                }
                n if n > 0 => {
                    // SAFETY: libpq gives n bytes at row; freed once, after the copy.
                    unsafe {
                        buffer.extend_from_slice(std::slice::from_raw_parts(row.cast(), n as usize));
                        ffi::PQfreemem(row.cast());
                    }
                    rows += 1;
                }
                _ => return Err(self.conn.lost()),
            }
        }
        Ok(rows)
    }
}
