//! Transactions of a worker. A body that returns an error or raises one of PostgreSQL is rolled back, always.

use std::panic::AssertUnwindSafe;

use pgrx::pg_sys::panic::CaughtError;
use pgrx::{PgTryBuilder, pg_sys};

use crate::error::{Error, Result, SqlState};

impl From<&CaughtError> for Error {
    fn from(caught: &CaughtError) -> Self {
        let report = match caught {
            CaughtError::PostgresError(report) | CaughtError::ErrorReport(report) => report,
            CaughtError::RustPanic { ereport, .. } => ereport,
        };
        let mut error = Error::new(SqlState::unpack(report.sql_error_code() as i32), report.message());
        error.hint = report.hint().map(str::to_string);
        error.said_by_server(report.function_name(), report.detail().map(str::to_string), None)
    }
}

/// Runs the body; an ERROR of PostgreSQL in it becomes an error of ours. Rolls nothing back by itself.
pub fn caught<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    PgTryBuilder::new(AssertUnwindSafe(body)).catch_others(|e| Err(Error::from(&e))).execute()
}

/// Runs the body in a transaction with a snapshot: committed when it returns Ok, rolled back otherwise.
/// To be called outside of any transaction, by workers only.
pub fn transaction<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    let result = caught(|| {
        // SAFETY: a worker outside of a transaction; commit stands inside the guard because it may raise errors too.
        unsafe {
            pg_sys::SetCurrentStatementStartTimestamp();
            pg_sys::StartTransactionCommand();
            pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        }
        let value = body()?;
        // SAFETY: pops what was pushed above.
        unsafe {
            pg_sys::PopActiveSnapshot();
            pg_sys::CommitTransactionCommand();
        }
        Ok(value)
    });
    if result.is_err() {
        // SAFETY: ends the failed transaction and everything it holds.
        unsafe { pg_sys::AbortCurrentTransaction() };
    }
    // SAFETY: a worker must hand over its statistics itself; outside of a transaction.
    unsafe { pg_sys::pgstat_report_stat(true) };
    result
}

/// Whether it is the number of this transaction, or of one within it.
pub fn is_mine(xid: u32) -> bool {
    // SAFETY: it only reads the state of the current transaction.
    unsafe { pg_sys::TransactionIdIsCurrentTransactionId(xid.into()) }
}

/// The number of the subtransaction that is current, or of the transaction outside of any.
pub fn subtransaction() -> u32 {
    // SAFETY: it only reads the state of the current transaction.
    unsafe { pg_sys::GetCurrentSubTransactionId() }
}

/// Releases what an ERROR outside of any transaction left behind (locks of shared memory, error state).
pub fn recover() {
    // SAFETY: as PostgreSQL's own workers do after catching an error.
    unsafe {
        pg_sys::LWLockReleaseAll();
        if pg_sys::IsTransactionState() {
            pg_sys::AbortCurrentTransaction();
        }
    }
}
