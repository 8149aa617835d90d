//! What a statement answered: rows as text, or the error with its SQLSTATE, detail and hint kept.

use std::ffi::{CStr, c_int};

use super::ffi;
use crate::error::{Error, SqlState};

/// The answer of one statement. Values are text as the member sent them.
pub struct Rows {
    raw: *mut ffi::PGresult,
}

impl Rows {
    /// Takes over a result of libpq; it is cleared when this is dropped.
    pub(super) fn new(raw: *mut ffi::PGresult) -> Self {
        Self { raw }
    }

    pub(super) fn status(&self) -> c_int {
        // SAFETY: raw is a live result (libpq accepts NULL too and says fatal error).
        unsafe { ffi::PQresultStatus(self.raw) }
    }

    pub fn len(&self) -> usize {
        // SAFETY: raw is live.
        unsafe { ffi::PQntuples(self.raw) }.max(0) as usize
    }

    pub fn columns(&self) -> usize {
        // SAFETY: raw is live.
        unsafe { ffi::PQnfields(self.raw) }.max(0) as usize
    }

    /// The bytes of a value, or None for NULL and for a place that is not there.
    pub fn bytes(&self, row: usize, col: usize) -> Option<&[u8]> {
        if row >= self.len() || col >= self.columns() {
            return None;
        }
        let (row, col) = (row as c_int, col as c_int);
        // SAFETY: row and column are in range; the value lives as long as the result.
        unsafe {
            if ffi::PQgetisnull(self.raw, row, col) != 0 {
                return None;
            }
            let length = ffi::PQgetlength(self.raw, row, col).max(0) as usize;
            Some(std::slice::from_raw_parts(ffi::PQgetvalue(self.raw, row, col).cast(), length))
        }
    }

    /// A value as text; None for NULL.
    pub fn get(&self, row: usize, col: usize) -> Option<&str> {
        self.bytes(row, col).and_then(|b| std::str::from_utf8(b).ok())
    }

    /// A value as text; NULL as the empty string.
    pub fn text(&self, row: usize, col: usize) -> String {
        self.bytes(row, col).map_or_else(String::new, |b| String::from_utf8_lossy(b).into_owned())
    }

    /// A boolean value; NULL is false.
    pub fn bool(&self, row: usize, col: usize) -> bool {
        self.bytes(row, col) == Some(b"t")
    }

    /// A number; None for NULL and for what is no number.
    pub fn number<T: std::str::FromStr>(&self, row: usize, col: usize) -> Option<T> {
        self.get(row, col).and_then(|t| t.parse().ok())
    }

    /// How many rows the statement wrote.
    pub fn affected(&self) -> u64 {
        // SAFETY: raw is live; PQcmdTuples returns a NUL-terminated text in the result.
        let text = unsafe { CStr::from_ptr(ffi::PQcmdTuples(self.raw)) };
        text.to_str().ok().and_then(|t| t.parse().ok()).unwrap_or(0)
    }

    fn field(&self, field: c_int) -> Option<String> {
        // SAFETY: raw is live; the field is NULL or NUL-terminated.
        unsafe {
            let text = ffi::PQresultErrorField(self.raw, field);
            (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
        }
    }

    /// The error that this result carries, or None when the statement went well.
    pub(super) fn error(&self) -> Option<Error> {
        match self.status() {
            ffi::PGRES_EMPTY_QUERY
            | ffi::PGRES_COMMAND_OK
            | ffi::PGRES_TUPLES_OK
            | ffi::PGRES_COPY_IN
            | ffi::PGRES_COPY_OUT
            | ffi::PGRES_PIPELINE_SYNC => None,
            ffi::PGRES_PIPELINE_ABORTED => Some(Error::internal("an earlier statement failed")),
            _ => {
                let code = self.field(ffi::PG_DIAG_SQLSTATE);
                let code = code.map_or(SqlState::CONNECTION_FAILURE, |c| SqlState::parse(&c));
                let message = self.field(ffi::PG_DIAG_MESSAGE_PRIMARY);
                let mut error = Error::new(code, message.unwrap_or_else(|| "the connection was lost".into()));
                error.hint = self.field(ffi::PG_DIAG_MESSAGE_HINT);
                let (detail, context) = (self.field(ffi::PG_DIAG_MESSAGE_DETAIL), self.field(ffi::PG_DIAG_CONTEXT));
                Some(error.said_by_server(self.field(ffi::PG_DIAG_SOURCE_FUNCTION).as_deref(), detail, context))
            }
        }
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        // SAFETY: raw came from libpq and is cleared once; NULL is allowed.
        unsafe { ffi::PQclear(self.raw) }
    }
}
