//! Native capture tells once which segments hold anything, so that a run does not look at the tables that nobody wrote to.
//! A row in `bucardo.capture_touched` is written by the transaction that writes deltas, unless there is one that somebody else
//! has committed for the segment's file; what this backend has seen it remembers. It must never be left out on the
//! strength of a row that may yet be rolled back: then deltas would be there that nobody looks for.

use std::cell::RefCell;
use std::collections::BTreeMap;

use pgrx::pg_sys::{self, Datum, Oid};

use super::{role, spi, xact};
use crate::error::{Error, Result, SqlState};

/// A segment with the file that deltas went into, locked against TRUNCATE until the transaction ends.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    pub capture: i32,
    pub oid: Oid,
    pub file: Oid,
    /// Whether rows could not be written into it, because their key is null.
    pub keyless: bool,
}

/// A row that was seen.
#[derive(Clone, Copy)]
struct Seen {
    file: Oid,
    /// Of this transaction, so that it counts while this subtransaction lives; None: committed by another.
    own: Option<(u64, pg_sys::SubTransactionId)>,
}

impl Seen {
    fn counts(&self, file: Oid) -> bool {
        // SAFETY: both only read the state of the current transaction.
        let alive = |(top, sub)| unsafe { pg_sys::GetTopFullTransactionId().value == top && pg_sys::SubTransactionIsActive(sub) };
        self.file == file && self.own.is_none_or(alive)
    }
}

thread_local! {
    /// By segment.
    static SEEN: RefCell<BTreeMap<u32, Seen>> = const { RefCell::new(BTreeMap::new()) };
}

/// To be called after deltas were written, in the same subtransaction.
pub fn tell(segment: Segment) -> Result<()> {
    if SEEN.with_borrow(|seen| seen.get(&segment.oid.to_u32()).is_some_and(|s| s.counts(segment.file))) {
        return Ok(());
    }
    let own = match look(segment)? {
        Some(own) => own,
        None => {
            write(segment)?;
            true
        }
    };
    // SAFETY: they only read the state of the current transaction.
    let here = || unsafe { (pg_sys::GetTopFullTransactionId().value, pg_sys::GetCurrentSubTransactionId()) };
    SEEN.with_borrow_mut(|seen| seen.insert(segment.oid.to_u32(), Seen { file: segment.file, own: own.then(here) }));
    Ok(())
}

/// Whether there is a row for the segment's file, and if so, whether only of this transaction's own. Asked past all
/// snapshots, for what is committed now: a row that a snapshot sees leaves a predicate lock in a serializable transaction,
/// and two first writers would each be in the way of the other.
fn look(Segment { capture, file, .. }: Segment) -> Result<Option<bool>> {
    // SAFETY: catalog look-ups by NUL-terminated names; the table is opened, read and closed as the server does with its
    // own, and an ERROR in between releases all of it. What a tuple says of its transaction is read while it is pinned.
    unsafe {
        let schema = pg_sys::get_namespace_oid(c"bucardo".as_ptr(), true);
        let table = pg_sys::get_relname_relid(c"capture_touched".as_ptr(), schema);
        let index = pg_sys::get_relname_relid(c"capture_touched_capture".as_ptr(), schema);
        if table == Oid::INVALID {
            return Err(Error::new(SqlState::WRONG_STATE, "the table bucardo.capture_touched is missing"));
        }
        let mut keys = [pg_sys::ScanKeyData::default(); 2];
        for (i, (value, equal)) in
            [(Datum::from(capture), pg_sys::F_INT4EQ), (Datum::from(file), pg_sys::F_OIDEQ)].into_iter().enumerate()
        {
            let strategy = pg_sys::BTEqualStrategyNumber as pg_sys::StrategyNumber;
            pg_sys::ScanKeyInit(&raw mut keys[i], i as pg_sys::AttrNumber + 1, strategy, equal.into(), value);
        }
        let rel = pg_sys::table_open(table, pg_sys::AccessShareLock as i32);
        let scan = pg_sys::systable_beginscan(
            rel,
            index,
            index != Oid::INVALID,
            &raw mut pg_sys::SnapshotSelfData,
            2,
            keys.as_mut_ptr(),
        );
        let mut own = None;
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            own = Some(xact::is_mine(pg_sys::HeapTupleHeaderGetXmin((*tuple).t_data).into()) && own.unwrap_or(true));
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(rel, pg_sys::AccessShareLock as i32);
        Ok(own)
    }
}

/// Runs as a superuser: nothing may be found by `search_path`.
fn write(Segment { capture, file, .. }: Segment) -> Result<()> {
    let sql = format!("INSERT INTO bucardo.capture_touched VALUES ({capture}, {})", file.to_u32());
    role::with_rights_of(pg_sys::BOOTSTRAP_SUPERUSERID, || spi::execute(&sql, &[])).map(drop)
}
