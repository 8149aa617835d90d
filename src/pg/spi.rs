//! SQL on the control database itself, through SPI. Two ways: `select` reads and never burns a transaction id, so the
//! master may call it for ever; `write` changes, or reads what this transaction has just written. It must never be
//! used for a member: those are reached over libpq, the control database's own data included.

use std::cell::RefCell;
use std::collections::HashMap;

use pgrx::datum::DatumWithOid;
use pgrx::pg_sys::PgOid;
use pgrx::prelude::Spi;
use pgrx::spi::{OwnedPreparedStatement, SpiClient, SpiHeapTupleData};
use pgrx::{FromDatum, IntoDatum};

use crate::error::{Error, Result, SqlState};

/// One row of an answer; columns count from 1.
pub struct Row<'a>(SpiHeapTupleData<'a>);

impl Row<'_> {
    /// A value; None for NULL.
    pub fn opt<T: IntoDatum + FromDatum>(&self, column: usize) -> Result<Option<T>> {
        Ok(self.0.get::<T>(column)?)
    }

    /// A value that cannot be NULL.
    pub fn get<T: IntoDatum + FromDatum>(&self, column: usize) -> Result<T> {
        self.opt(column)?.ok_or_else(|| Error::internal(format!("column {column} of the catalog's answer is null")))
    }
}

/// Reads rows. Sees what this transaction has written only when it has written through [`write`] before.
pub fn select<T>(sql: &str, args: &[DatumWithOid<'_>], row: impl FnMut(&Row<'_>) -> Result<T>) -> Result<Vec<T>> {
    Spi::connect(|client| read(client, sql, args, row))
}

fn read<T>(
    client: &SpiClient<'_>,
    sql: &str,
    args: &[DatumWithOid<'_>],
    mut row: impl FnMut(&Row<'_>) -> Result<T>,
) -> Result<Vec<T>> {
    client.select(sql, None, args)?.map(|tuple| row(&Row(tuple))).collect()
}

/// The first row's only value.
pub fn value<T: IntoDatum + FromDatum>(sql: &str, args: &[DatumWithOid<'_>]) -> Result<Option<T>> {
    Ok(select(sql, args, |row| row.opt(1))?.into_iter().next().flatten())
}

/// Changes the catalog; the rows of RETURNING, or of a SELECT that locks.
pub fn write<T>(sql: &str, args: &[DatumWithOid<'_>], mut row: impl FnMut(&Row<'_>) -> Result<T>) -> Result<Vec<T>> {
    require_primary()?;
    Spi::connect_mut(|client| client.update(sql, None, args)?.map(|tuple| row(&Row(tuple))).collect())
}

/// Changes the catalog; how many rows.
pub fn execute(sql: &str, args: &[DatumWithOid<'_>]) -> Result<usize> {
    require_primary()?;
    Spi::connect_mut(|client| Ok(client.update(sql, None, args)?.len()))
}

thread_local! {
    /// The statements of [`execute_kept`], by their texts. They stay as long as the process: a text is a constant, so there are few.
    static KEPT: RefCell<HashMap<&'static str, &'static OwnedPreparedStatement>> = RefCell::default();
}

/// The same as [`execute`] for a statement of every run: it is planned once.
pub fn execute_kept(sql: &'static str, args: &[DatumWithOid<'_>]) -> Result<usize> {
    require_primary()?;
    Spi::connect_mut(|client| {
        let known = KEPT.with_borrow(|kept| kept.get(sql).copied());
        let statement = match known {
            Some(statement) => statement,
            None => {
                let types: Vec<PgOid> = args.iter().map(|arg| PgOid::from(arg.oid())).collect();
                let kept: &'static OwnedPreparedStatement = Box::leak(Box::new(client.prepare_mut(sql, &types)?.keep()));
                KEPT.with_borrow_mut(|all| all.insert(sql, kept));
                kept
            }
        };
        Ok(client.update(statement, None, args)?.len())
    })
}

/// Says 25006 on a standby: its catalog cannot be changed, and no master works there.
pub fn require_primary() -> Result<()> {
    // SAFETY: reads the state of this process and of shared memory.
    if unsafe { pgrx::pg_sys::RecoveryInProgress() } {
        return Err(Error::new(SqlState::READ_ONLY, "this server is a standby, on which bucardo does nothing")
            .hint("Call it on the primary server, or promote this one: SELECT pg_promote();"));
    }
    Ok(())
}
