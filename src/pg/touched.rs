//! Native capture tells once which segments hold anything, so that a run does not look at the tables that nobody wrote to.
//! A row in `bucardo.capture_touched` is written by the transaction that writes deltas, unless it sees one that somebody else
//! has committed for the segment's file; what this backend has seen it remembers. It must never be left out on the
//! strength of a row that may yet be rolled back: then deltas would be there that nobody looks for.

use std::cell::RefCell;
use std::collections::HashMap;

use pgrx::pg_sys::{self, Oid};

use super::{role, spi, xact};
use crate::error::Result;

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
    static SEEN: RefCell<HashMap<Oid, Seen>> = RefCell::new(HashMap::new());
}

/// To be called after deltas were written, in the same subtransaction.
pub fn tell(segment: Segment) -> Result<()> {
    if SEEN.with_borrow(|seen| seen.get(&segment.oid).is_some_and(|s| s.counts(segment.file))) {
        return Ok(());
    }
    let own = role::with_rights_of(pg_sys::BOOTSTRAP_SUPERUSERID, || look_or_write(segment))?;
    // SAFETY: they only read the state of the current transaction.
    let here = || unsafe { (pg_sys::GetTopFullTransactionId().value, pg_sys::GetCurrentSubTransactionId()) };
    SEEN.with_borrow_mut(|seen| seen.insert(segment.oid, Seen { file: segment.file, own: own.then(here) }));
    Ok(())
}

/// Whether the row that is there now is this transaction's own. Runs as a superuser: nothing may be found by `search_path`.
fn look_or_write(Segment { capture, file, .. }: Segment) -> Result<bool> {
    let file = file.to_u32();
    let select = format!(
        "SELECT t.xmin::pg_catalog.text FROM bucardo.capture_touched t \
         WHERE t.capture OPERATOR(pg_catalog.=) {capture} AND t.file OPERATOR(pg_catalog.=) {file}::pg_catalog.oid"
    );
    let is_own = |xid: &String| xid.parse().is_ok_and(xact::is_mine);
    let rows: Vec<String> = spi::select(&select, &[], |row| row.get(1))?;
    if rows.is_empty() {
        spi::execute(&format!("INSERT INTO bucardo.capture_touched VALUES ({capture}, {file})"), &[])?;
    }
    Ok(rows.iter().all(is_own))
}
