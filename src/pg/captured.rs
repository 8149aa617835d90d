//! What a native capture trigger has to know of its table: where deltas go and which columns are the key, found by the
//! names that the trigger carries. It must never take a table for one whose single rows can be written down when its key
//! is not what the segments hold.

use std::ffi::{CStr, c_char};

use pgrx::pg_sys::{self, AttrNumber, Oid};

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
}

/// Resolves the names that a trigger carries. None: they do not exist here, as in a restored copy.
/// `Some(Err(()))`: the table's key is not what the segments hold, or may be null, so single rows cannot be written down.
pub fn resolve(table: Oid, arguments: &[&CStr]) -> Option<Result<Captured, ()>> {
    let (names, keys) = arguments.split_at_checked(4)?;
    // The first is `seg7_active`.
    let id = names[0].to_str().ok()?.strip_prefix("seg")?.strip_suffix("_active")?.parse().ok()?;
    // SAFETY: catalog look-ups by NUL-terminated names, inside a transaction; a missing object answers 0.
    unsafe {
        let schema = pg_sys::get_namespace_oid(c"bucardo".as_ptr(), true);
        let find = |name: &CStr| pg_sys::get_relname_relid(name.as_ptr(), schema);
        let found = [find(names[0]), find(names[1]), find(names[2]), find(names[3])];
        if schema == Oid::INVALID || found.contains(&Oid::INVALID) || keys.is_empty() || keys.len() > MAX_KEYS {
            return None;
        }
        let mut columns = Vec::with_capacity(keys.len());
        for (i, key) in keys.iter().enumerate() {
            let attnum = pg_sys::get_attnum(table, key.as_ptr());
            // What the segment holds: of a domain, the type under it.
            let kind = pg_sys::get_atttype(found[1], (i + 1) as AttrNumber);
            if attnum <= 0
                || pg_sys::getBaseType(pg_sys::get_atttype(table, attnum)) != pg_sys::getBaseType(kind)
                || may_be_null(table, attnum)
            {
                return Some(Err(()));
            }
            let (mut length, mut by_value, mut align) = (0, false, 0);
            pg_sys::get_typlenbyvalalign(kind, &mut length, &mut by_value, &mut align);
            columns.push(Key { attnum, kind, by_value, length, align });
        }
        Some(Ok(Captured { id, active: found[0], segments: [found[1], found[2], found[3]], keys: columns }))
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
