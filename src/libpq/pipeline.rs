//! Many prepared statements in one round trip. A pipeline is begun, filled, sent with one sync and collected; several
//! connections are sent first and collected afterwards, so that members work at the same time.

use std::ffi::CString;
use std::ptr;

use super::conn::{Conn, Params, c_sql};
use super::ffi;
use super::result::Rows;
use crate::error::{Error, Result, SqlState};

impl Conn {
    /// Enters pipeline mode. The session must be idle on the wire.
    pub fn pipeline_begin(&mut self) -> Result<()> {
        if self.stale_prepared {
            self.query("DEALLOCATE ALL")?;
            self.prepared.clear();
            self.stale_prepared = false;
        }
        // SAFETY: raw is live.
        if unsafe { ffi::PQenterPipelineMode(self.raw) } == 0 { Err(self.lost()) } else { Ok(()) }
    }

    /// Queues one statement, prepared once per session. `types` names the parameters' types (empty: the server infers).
    pub fn pipeline_add(&mut self, sql: &str, types: &[u32], params: &[Option<&[u8]>]) -> Result<()> {
        let given = Params::new(params)?;
        let name = self.statement(sql, types)?;
        // SAFETY: all arrays have the given length and outlive the call.
        let sent = unsafe {
            ffi::PQsendQueryPrepared(self.raw, name.as_ptr(), given.len(), given.values(), given.lengths(), given.formats(), 0)
        };
        self.queued.push(true);
        if sent == 0 { Err(self.unsent()) } else { Ok(()) }
    }

    /// Queues one statement that is planned now, for what it finds now, and not kept.
    pub fn pipeline_add_unprepared(&mut self, sql: &str) -> Result<()> {
        let command = c_sql(sql)?;
        let given = Params::new(&[])?;
        // SAFETY: the text is NUL-terminated; there are no parameters.
        let sent = unsafe {
            ffi::PQsendQueryParams(
                self.raw,
                command.as_ptr(),
                0,
                ptr::null(),
                given.values(),
                given.lengths(),
                given.formats(),
                0,
            )
        };
        self.queued.push(true);
        if sent == 0 { Err(self.unsent()) } else { Ok(()) }
    }

    fn statement(&mut self, sql: &str, types: &[u32]) -> Result<CString> {
        let known = self.prepared.get(sql).into_iter().flatten().find(|(of, _)| of == types);
        if let Some((_, name)) = known {
            return Ok(name.clone());
        }
        let name = c_sql(&format!("bucardo_{}", self.prepared.values().map(Vec::len).sum::<usize>()))?;
        let command = c_sql(sql)?;
        let list = if types.is_empty() { ptr::null() } else { types.as_ptr() };
        // SAFETY: the texts are NUL-terminated and the array has the given length.
        if unsafe { ffi::PQsendPrepare(self.raw, name.as_ptr(), command.as_ptr(), types.len() as i32, list) } == 0 {
            return Err(self.unsent());
        }
        self.queued.push(false);
        self.prepared.entry(sql.to_string()).or_default().push((types.to_vec(), name.clone()));
        Ok(name)
    }

    /// The error for a statement that cannot be queued: what waits to be sent has its bounds too, and a member is not away
    /// because of them.
    fn unsent(&self) -> Error {
        if self.is_broken() {
            return self.lost();
        }
        Error::new(SqlState(*b"54000"), format!("too much at once for the connection: {}", self.wire_message()))
    }

    /// Ends the pipeline with a sync point and sends what can be sent at once.
    pub fn pipeline_send(&mut self) -> Result<()> {
        // SAFETY: raw is live and in pipeline mode.
        if unsafe { ffi::PQpipelineSync(self.raw) } == 0 {
            return Err(self.lost());
        }
        self.doubt.heard();
        self.flush_some()
    }

    /// Waits for all answers of the pipeline and leaves pipeline mode. Returns the answers of the executed statements
    /// in order (those of preparations are left out because they are not rows and wrote none), or the first error;
    /// `failed_at` then tells which execution it was.
    pub fn pipeline_collect(&mut self) -> Result<Vec<Rows>> {
        let mut queued = std::mem::take(&mut self.queued).into_iter();
        // A wire that breaks fails none of them.
        self.failed_at = usize::MAX;
        let mut answers = Vec::new();
        let mut failed: Option<Error> = None;
        let mut empty = 0;
        loop {
            let Some(rows) = self.next()? else {
                // One NULL ends each statement; two in a row mean that the wire is gone.
                empty += 1;
                if empty > 1 && self.is_broken() {
                    return Err(self.lost());
                }
                continue;
            };
            empty = 0;
            match rows.status() {
                ffi::PGRES_PIPELINE_SYNC => break,
                ffi::PGRES_PIPELINE_ABORTED => {}
                _ => {
                    let executed = queued.next() == Some(true);
                    match rows.error() {
                        Some(error) => {
                            failed.get_or_insert(error);
                            self.failed_at = answers.len();
                            if self.is_broken() {
                                break;
                            }
                        }
                        None if executed => answers.push(rows),
                        None => {}
                    }
                }
            }
        }
        // SAFETY: raw is live; all answers were read.
        unsafe { ffi::PQexitPipelineMode(self.raw) };
        match failed {
            None => Ok(answers),
            Some(error) => {
                // A failed preparation leaves names of which we do not know whether they exist.
                self.stale_prepared = true;
                Err(self.scrubbed(error))
            }
        }
    }
}
