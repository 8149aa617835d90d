//! What a native capture trigger has to know of its table: where deltas go and which columns are the key, found by the
//! names that the trigger carries. It must never take a table for one whose single rows can be written down when its key
//! is not what the segments hold; nor believe the names: everybody may call the trigger's function in a trigger of his own.

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char};

use pgrx::pg_sys::{self, AttrNumber, Datum, Oid};

use super::{raw, shmem};

/// A key may have this many columns, as an index may.
pub const MAX_KEYS: usize = pg_sys::INDEX_MAX_KEYS as usize;

/// One key column of a captured table.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    pub attnum: AttrNumber,
    pub kind: Oid,
    pub by_value: bool,
    pub length: i16,
    pub align: c_char,
}

/// A captured table, resolved for this backend.
#[derive(Clone, Debug)]
pub struct Captured {
    /// Its number in `bucardo.capture`.
    pub id: i32,
    pub active: Oid,
    pub segments: [Oid; 3],
    pub keys: Vec<Key>,
    /// Which segment writers used, and how often they had been told to look when that was looked at.
    in_use: Cell<Option<(u64, usize)>>,
}

impl Captured {
    /// Which segment writers use now. The sequence is asked anew after each purge that may have sent writers elsewhere. Who comes too late
    /// for one writes into the segment that was left, which harms nobody: he holds its lock, and it is read as all are.
    ///
    /// # Safety
    /// In a transaction, inside a guard; `active` is a sequence.
    #[inline(always)]
    pub unsafe fn segment_in_use(&self) -> Oid {
        // Before the sequence: what is switched after that is not missed the next time.
        let switches = shmem::switches();
        let at = match self.in_use.get() {
            Some((seen, at)) if switches == Some(seen) => at,
            _ => {
                // SAFETY: see above.
                let at = unsafe { last_value(self.active) };
                self.in_use.set(switches.map(|switches| (switches, at)));
                at
            }
        };
        self.segments[at]
    }
}

/// The place of the segment that writers use: the sequence's last value, read from its page, past every snapshot and privilege.
///
/// # Safety
/// See [`Captured::segment_in_use`].
unsafe fn last_value(sequence: Oid) -> usize {
    // SAFETY: a sequence has one page with one tuple whose first column is the int8 last_value; the buffer is pinned
    // and share-locked while it is read.
    let value = unsafe {
        let rel = raw::relation_open(sequence, pg_sys::AccessShareLock as i32);
        let buffer = raw::read_buffer(rel, 0);
        raw::lock_buffer(buffer, pg_sys::BUFFER_LOCK_SHARE as i32);
        let page = pg_sys::BufferGetPage(buffer).cast::<u8>();
        let line = (*page.cast::<pg_sys::PageHeaderData>()).pd_linp.as_ptr();
        let tuple = page.add((*line).lp_off() as usize);
        let header = usize::from((*tuple.cast::<pg_sys::HeapTupleHeaderData>()).t_hoff);
        let value = tuple.add(header).cast::<i64>().read_unaligned();
        raw::unlock_release_buffer(buffer);
        raw::relation_close(rel, pg_sys::AccessShareLock as i32);
        value
    };
    (value - 1).clamp(0, 2) as usize
}

/// What follows the key columns in a segment: xid, at, origin, existed.
const BEHIND_KEYS: [Oid; 4] = [pg_sys::INT8OID, pg_sys::TIMESTAMPTZOID, pg_sys::TEXTOID, pg_sys::BOOLOID];

/// Resolves the names that a trigger carries. None: they do not exist here, as in a restored copy, or are not those of the
/// table's capture. `Some(Err(()))`: the table's key is not what the segments hold, or may be null, so single rows cannot be
/// written down.
pub fn resolve(table: Oid, names: &[CString]) -> Option<Result<Captured, ()>> {
    let (names, keys) = names.split_at_checked(4)?;
    // The first is `seg7_active`, the others begin with `seg7_1_` to `seg7_3_`.
    let id: i32 = names[0].to_str().ok()?.strip_prefix("seg")?.strip_suffix("_active")?.parse().ok()?;
    let ours = |(i, name): (usize, &CString)| name.to_bytes().starts_with(format!("seg{id}_{}_", i + 1).as_bytes());
    if !names[1..].iter().enumerate().all(ours) || keys.is_empty() || keys.len() > MAX_KEYS {
        return None;
    }
    // SAFETY: catalog look-ups by NUL-terminated names and by oids, inside a transaction; what is missing answers 0.
    unsafe {
        let schema = pg_sys::get_namespace_oid(c"bucardo".as_ptr(), true);
        let find = |name: &CStr| pg_sys::get_relname_relid(name.as_ptr(), schema);
        let found = [find(&names[0]), find(&names[1]), find(&names[2]), find(&names[3])];
        if schema == Oid::INVALID || found.contains(&Oid::INVALID) || !captures(schema, id, table) {
            return None;
        }
        let n = keys.len();
        let segments = [found[1], found[2], found[3]];
        if pg_sys::get_rel_relkind(found[0]) as u8 != pg_sys::RELKIND_SEQUENCE || !segments.iter().all(|s| is_segment(*s, n)) {
            return Some(Err(()));
        }
        let mut columns = Vec::with_capacity(n);
        for (i, key) in keys.iter().enumerate() {
            let attnum = pg_sys::get_attnum(table, key.as_ptr());
            // What the segments hold: of a domain, the type under it.
            let place = (i + 1) as AttrNumber;
            let kind = pg_sys::get_atttype(segments[0], place);
            if attnum <= 0
                || segments.iter().any(|s| pg_sys::get_atttype(*s, place) != kind)
                || pg_sys::getBaseType(pg_sys::get_atttype(table, attnum)) != pg_sys::getBaseType(kind)
                || may_be_null(table, attnum)
            {
                return Some(Err(()));
            }
            let (mut length, mut by_value, mut align) = (0, false, 0);
            pg_sys::get_typlenbyvalalign(kind, &mut length, &mut by_value, &mut align);
            columns.push(Key { attnum, kind, by_value, length, align });
        }
        Some(Ok(Captured { id, active: found[0], segments, keys: columns, in_use: Cell::new(None) }))
    }
}

/// Whether a relation has the shape of a segment for so many key columns: a heap, which the writer fills past everything
/// that could refuse a wrong value.
///
/// # Safety
/// In a transaction.
unsafe fn is_segment(segment: Oid, keys: usize) -> bool {
    // SAFETY: a look-up in the server's cache, released before anything else; a missing column's type answers 0.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::RELOID as i32, Datum::from(segment));
        if tuple.is_null() {
            return false;
        }
        let class = &*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_class>();
        let (kind, method, columns) = (class.relkind as u8, class.relam, class.relnatts as usize);
        pg_sys::ReleaseSysCache(tuple);
        let arrays = || {
            (0..keys).all(|i| {
                let of = pg_sys::get_atttype(segment, (i + 1) as AttrNumber);
                let array = pg_sys::get_atttype(segment, (keys + BEHIND_KEYS.len() + i + 1) as AttrNumber);
                of != Oid::INVALID && pg_sys::get_element_type(array) == of
            })
        };
        kind == pg_sys::RELKIND_RELATION
            && method == HEAP
            && BEHIND_KEYS.iter().enumerate().all(|(i, kind)| pg_sys::get_atttype(segment, (keys + i + 1) as AttrNumber) == *kind)
            && (columns == keys + BEHIND_KEYS.len() || (columns == 2 * keys + BEHIND_KEYS.len() && arrays()))
    }
}

/// The access method `heap`; its number is fixed by the server's catalog.
const HEAP: Oid = Oid::from_u32(2);

/// Whether the capture of this number is that of the table, or of one that it is a partition of. Asked past all snapshots:
/// a transaction's may be older than the capture.
///
/// # Safety
/// In a transaction.
unsafe fn captures(schema: Oid, id: i32, table: Oid) -> bool {
    // SAFETY: the table is opened, read and closed as the server does with its own, and an ERROR in between releases all of
    // it. Its first two columns, which are never null, are the number and the captured table.
    unsafe {
        let list = pg_sys::get_relname_relid(c"capture".as_ptr(), schema);
        let index = pg_sys::get_relname_relid(c"capture_pkey".as_ptr(), schema);
        if list == Oid::INVALID {
            return false;
        }
        let mut key = pg_sys::ScanKeyData::default();
        let strategy = pg_sys::BTEqualStrategyNumber as pg_sys::StrategyNumber;
        pg_sys::ScanKeyInit(&raw mut key, 1, strategy, pg_sys::F_INT4EQ.into(), Datum::from(id));
        let rel = pg_sys::table_open(list, pg_sys::AccessShareLock as i32);
        let snapshot = &raw mut pg_sys::SnapshotSelfData;
        let scan = pg_sys::systable_beginscan(rel, index, index != Oid::INVALID, snapshot, 1, &raw mut key);
        let tuple = pg_sys::systable_getnext(scan);
        let captured = (!tuple.is_null()).then(|| (*pg_sys::GETSTRUCT(tuple).cast::<(i32, Oid)>()).1);
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(rel, pg_sys::AccessShareLock as i32);
        captured.is_some_and(|captured| captured == table || is_partition_of(table, captured))
    }
}

/// # Safety
/// In a transaction.
unsafe fn is_partition_of(table: Oid, ancestor: Oid) -> bool {
    // SAFETY: the list is memory of the server; its members are oids.
    unsafe {
        pg_sys::get_rel_relispartition(table)
            && pgrx::PgList::<Oid>::from_pg(pg_sys::ffi::pg_guard_ffi_boundary(|| raw::get_partition_ancestors(table)))
                .iter_oid()
                .any(|oid| oid == ancestor)
    }
}

/// # Safety
/// In a transaction.
unsafe fn may_be_null(table: Oid, attnum: AttrNumber) -> bool {
    // SAFETY: a look-up in the server's cache, released before anything else; a missing column answers NULL.
    unsafe {
        let tuple = pg_sys::SearchSysCacheAttNum(table, attnum);
        if tuple.is_null() {
            return true;
        }
        let required = (*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_attribute>()).attnotnull;
        pg_sys::ReleaseSysCache(tuple);
        !required
    }
}
