//! One connection to one member: opened under a deadline (see `opening`), used without blocking, cancelled and closed in
//! every way out. After an error of the wire it is `broken` and must be replaced; it never reconnects by itself.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr;

use pgrx::pg_sys;

use super::cancel;
use super::conninfo::Conninfo;
use super::doubt::Doubt;
use super::ffi;
use super::result::Rows;
use crate::error::{Error, Result, SqlState};
use crate::pg::latch::{self, Ready, Woken};

/// Where to connect: the member's short name (for messages) and its conninfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub name: String,
    pub info: Conninfo,
}

/// An open connection.
pub struct Conn {
    pub(super) raw: *mut ffi::PGconn,
    /// The member's short name.
    pub name: String,
    pub(super) info: Conninfo,
    pub(super) doubt: Doubt,
    /// Prepared statements of this session: the text, the types of the parameters, and the name it has there. A column may get
    /// another type while the text stays, and the server goes on to take the parameter for one of the old.
    pub(super) prepared: HashMap<String, Vec<(Vec<u32>, CString)>>,
    /// Whether the session may hold prepared statements that `prepared` does not know.
    pub(super) stale_prepared: bool,
    /// What the running pipeline holds: true for an execution, false for a preparation.
    pub(super) queued: Vec<bool>,
    /// How many executions of the last pipeline went well before one failed; none of them did: more than there are.
    pub failed_at: usize,
}

impl Conn {
    pub(super) fn new(raw: *mut ffi::PGconn, target: &Target, doubt: Doubt) -> Self {
        Self {
            raw,
            name: target.name.clone(),
            info: target.info.clone(),
            doubt,
            prepared: HashMap::new(),
            stale_prepared: false,
            queued: Vec::new(),
            failed_at: 0,
        }
    }

    /// The host and address that it leads to, of those that the conninfo may name.
    pub(super) fn address(&self) -> [(&'static str, String); 3] {
        // SAFETY: raw is live, so each is a NUL-terminated text that lives as long, or NULL when memory is short.
        unsafe {
            [("host", ffi::PQhost(self.raw)), ("hostaddr", ffi::PQhostaddr(self.raw)), ("port", ffi::PQport(self.raw))].map(
                |(keyword, value)| {
                    (keyword, if value.is_null() { String::new() } else { CStr::from_ptr(value).to_string_lossy().into_owned() })
                },
            )
        }
    }

    /// The same for messages, as `db.example:5432 (10.0.0.1)`.
    pub(super) fn place(&self) -> String {
        let [(_, host), (_, address), (_, port)] = self.address();
        if address.is_empty() || address == host { format!("{host}:{port}") } else { format!("{host}:{port} ({address})") }
    }

    pub(super) fn wire_message(&self) -> String {
        if self.doubt.silent {
            return "the server is silent, and does not answer a second connection either".into();
        }
        // SAFETY: raw is live; the text is NUL-terminated.
        let text = unsafe { CStr::from_ptr(ffi::PQerrorMessage(self.raw)) }.to_string_lossy();
        self.info.scrub(text.trim())
    }

    /// The error for a wire that broke.
    pub(super) fn lost(&self) -> Error {
        Error::new(
            SqlState::CONNECTION_FAILURE,
            format!("the connection to db \"{}\" was lost: {}", self.name, self.wire_message()),
        )
    }

    pub fn socket(&self) -> i32 {
        // SAFETY: raw is live.
        unsafe { ffi::PQsocket(self.raw) }
    }

    /// The member's version as a number, as 150012.
    pub fn version(&self) -> i32 {
        // SAFETY: raw is live.
        unsafe { ffi::PQserverVersion(self.raw) }
    }

    /// A setting that the server reports by itself, as `server_encoding`.
    pub fn parameter(&self, name: &CStr) -> String {
        // SAFETY: raw is live and name NUL-terminated; the answer is NULL or NUL-terminated.
        unsafe {
            let value = ffi::PQparameterStatus(self.raw, name.as_ptr());
            if value.is_null() { String::new() } else { CStr::from_ptr(value).to_string_lossy().into_owned() }
        }
    }

    /// Whether the wire is gone.
    pub fn is_broken(&self) -> bool {
        // SAFETY: raw is live.
        unsafe { ffi::PQstatus(self.raw) != ffi::CONNECTION_OK }
    }

    /// Whether the session stands outside of any transaction and nothing runs.
    pub fn is_idle(&self) -> bool {
        // SAFETY: raw is live.
        unsafe { ffi::PQtransactionStatus(self.raw) == ffi::PQTRANS_IDLE }
    }

    /// Makes the next pipeline begin without any prepared statement, as after a table was altered.
    pub fn forget_prepared(&mut self) {
        self.stale_prepared = true;
    }

    /// Runs one or more statements by the simple protocol and returns the last answer.
    pub fn query(&mut self, sql: &str) -> Result<Rows> {
        self.send(sql)?;
        self.collect()
    }

    /// Runs one statement with text parameters.
    pub fn query_params(&mut self, sql: &str, params: &[Option<&str>]) -> Result<Rows> {
        let values: Vec<Option<&[u8]>> = params.iter().map(|p| p.map(str::as_bytes)).collect();
        let command = c_sql(sql)?;
        let given = Params::new(&values)?;
        // SAFETY: all arrays have the given length and outlive the call.
        let sent = unsafe {
            ffi::PQsendQueryParams(
                self.raw,
                command.as_ptr(),
                given.len(),
                ptr::null(),
                given.values(),
                given.lengths(),
                given.formats(),
                0,
            )
        };
        self.sent(sent)?;
        self.collect()
    }

    /// Sends statements by the simple protocol without waiting for the answer: [`Conn::collect`] fetches it.
    pub fn send(&mut self, sql: &str) -> Result<()> {
        let command = c_sql(sql)?;
        // SAFETY: raw is live and the text NUL-terminated.
        let sent = unsafe { ffi::PQsendQuery(self.raw, command.as_ptr()) };
        self.sent(sent)
    }

    pub(super) fn sent(&mut self, sent: c_int) -> Result<()> {
        if sent == 0 {
            return Err(self.lost());
        }
        self.doubt.heard();
        self.flush_some()
    }

    /// Sends what can be sent at once; the rest goes with the next wait.
    pub(super) fn flush_some(&mut self) -> Result<()> {
        // SAFETY: raw is live.
        if unsafe { ffi::PQflush(self.raw) } < 0 { Err(self.lost()) } else { Ok(()) }
    }

    /// Sends all that is buffered, reading meanwhile, so that two full buffers cannot block each other.
    pub(super) fn flush(&mut self) -> Result<()> {
        loop {
            // SAFETY: raw is live.
            match unsafe { ffi::PQflush(self.raw) } {
                0 => return Ok(()),
                1 => self.wait_io(Ready::ReadWrite)?,
                _ => return Err(self.lost()),
            }
        }
    }

    pub(super) fn wait_io(&mut self, ready: Ready) -> Result<()> {
        match latch::wait(Some((self.socket(), ready)), Some(self.doubt_in())) {
            Woken::Socket => {
                self.doubt.heard();
                self.consume()
            }
            Woken::Latch => Ok(()),
            Woken::Timeout => self.doubt(),
        }
    }

    /// Takes in what has come.
    pub(super) fn consume(&mut self) -> Result<()> {
        // SAFETY: raw is live.
        unsafe {
            if ffi::PQconsumeInput(self.raw) == 0 {
                return Err(self.lost());
            }
            // A record of TLS holds up to 16 kB, of which libpq may take 8 at once: the rest waits in the library, and no socket
            // tells of it.
            if ffi::PQsslInUse(self.raw) != 0 && ffi::PQconsumeInput(self.raw) == 0 {
                return Err(self.lost());
            }
        }
        Ok(())
    }

    /// Whether an idle wire is still there, as far as that is known here without asking the server: what it has said is read up to
    /// where it has hung up.
    pub fn is_there(&mut self) -> bool {
        while !self.is_broken() && latch::is_ready(self.socket(), Ready::Read) {
            if self.consume().is_err() {
                return false;
            }
        }
        !self.is_broken()
    }

    /// Whether the next answer has not come yet.
    fn is_busy(&self) -> bool {
        // SAFETY: raw is live.
        unsafe { ffi::PQisBusy(self.raw) != 0 }
    }

    /// The next answer of what was sent, waiting for it; None when there is no more.
    pub(super) fn next(&mut self) -> Result<Option<Rows>> {
        if self.doubt.silent {
            return Err(self.lost());
        }
        self.flush()?;
        // What has come while another member was waited for is there without a wait.
        if self.is_busy() {
            pgrx::check_for_interrupts!();
            self.consume()?;
        }
        while self.is_busy() {
            self.wait_io(Ready::Read)?;
        }
        // SAFETY: raw is live and not busy, so this does not block.
        let result = unsafe { ffi::PQgetResult(self.raw) };
        Ok((!result.is_null()).then(|| Rows::new(result)))
    }

    /// Waits for all answers of what was sent: the last one, or the first error.
    pub fn collect(&mut self) -> Result<Rows> {
        let mut last = None;
        let mut failed: Option<Error> = None;
        while let Some(rows) = self.next()? {
            if let Some(error) = rows.error() {
                failed.get_or_insert(error);
                if self.is_broken() {
                    break;
                }
            }
            let copying = matches!(rows.status(), ffi::PGRES_COPY_IN | ffi::PGRES_COPY_OUT);
            last = Some(rows);
            if copying {
                break;
            }
        }
        match (failed, last) {
            (Some(error), _) => Err(self.scrubbed(error)),
            (None, Some(rows)) => Ok(rows),
            (None, None) => Err(self.lost()),
        }
    }

    pub(super) fn scrubbed(&self, mut error: Error) -> Error {
        error.message = self.info.scrub(&error.message);
        error.detail = error.detail.map(|d| self.info.scrub(&d));
        error
    }

    /// Whether an answer can be fetched without waiting. For those who wait on many sockets.
    pub fn answer_ready(&mut self) -> Result<bool> {
        self.flush_some()?;
        self.consume()?;
        Ok(!self.is_busy())
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        // SAFETY: raw is open until it is finished below.
        unsafe { cancel::cancel(self.raw) };
        cancel::closed(self.raw);
        // SAFETY: raw is closed once; the descriptor was acquired in open.
        unsafe {
            ffi::PQfinish(self.raw);
            pg_sys::ReleaseExternalFD();
        }
    }
}

/// A statement as C wants it.
pub(super) fn c_sql(sql: &str) -> Result<CString> {
    CString::new(sql).map_err(|_| Error::new(SqlState::INVALID_PARAMETER, "a statement must not contain a null byte"))
}

/// Text parameters in the three arrays that libpq wants.
pub(super) struct Params {
    _terminated: Vec<Option<CString>>,
    values: Vec<*const c_char>,
    lengths: Vec<c_int>,
    formats: Vec<c_int>,
}

impl Params {
    /// Copies the values, because text parameters must end with a NUL; one inside would end them there.
    pub(super) fn new(values: &[Option<&[u8]>]) -> Result<Self> {
        let c_value = |v: &[u8]| {
            CString::new(v)
                .map_err(|_| Error::new(SqlState::NO_SUCH_CHARACTER, "a value for a statement must not contain a null byte"))
        };
        let terminated = values.iter().map(|v| v.map(c_value).transpose()).collect::<Result<Vec<Option<CString>>>>()?;
        Ok(Self {
            values: terminated.iter().map(|v| v.as_ref().map_or(ptr::null(), |v| v.as_ptr())).collect(),
            lengths: terminated.iter().map(|v| v.as_ref().map_or(0, |v| v.as_bytes().len() as c_int)).collect(),
            formats: vec![0; values.len()],
            _terminated: terminated,
        })
    }

    pub(super) fn len(&self) -> c_int {
        self.values.len() as c_int
    }

    pub(super) fn values(&self) -> *const *const c_char {
        self.values.as_ptr()
    }

    pub(super) fn lengths(&self) -> *const c_int {
        self.lengths.as_ptr()
    }

    pub(super) fn formats(&self) -> *const c_int {
        self.formats.as_ptr()
    }
}

#[cfg(test)]
mod tests {
    use super::Params;

    #[test]
    fn a_value_with_a_null_byte_is_refused() {
        assert!(Params::new(&[Some(b"a\0b")]).is_err());
        assert!(Params::new(&[Some(b"ab"), None]).is_ok());
    }
}
