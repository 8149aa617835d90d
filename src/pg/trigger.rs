//! The native capture trigger's entry: a C-callable function, the cache of resolved tables, and the note at commit
//! that wakes whoever waits for changes. It must never make the application's statement fail because of a table that
//! was altered, and it needs no right of the application's role.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, CString};
use std::rc::Rc;

use pgrx::pg_sys::{self, Datum, FunctionCallInfo, Oid, TriggerData};
use pgrx::{pg_guard, warning};

use super::captured::{self, Captured};
use super::{delta, role, shmem, touched};

/// What the cache knows of a table.
#[derive(Clone)]
enum Known {
    Ready(Rc<Captured>),
    /// The key is not what the segments hold.
    Altered,
    /// The objects are not here.
    Absent,
}

thread_local! {
    /// By table and trigger: a partition has the triggers of all that capture it.
    static KNOWN: RefCell<BTreeMap<(u32, u32), Known>> = const { RefCell::new(BTreeMap::new()) };
    static REGISTERED: Cell<bool> = const { Cell::new(false) };
    /// Whether this transaction captured anything.
    static CAPTURED: Cell<bool> = const { Cell::new(false) };
    static WARNED: Cell<bool> = const { Cell::new(false) };
    /// The tables that this transaction has marked, with the subtransaction that did: a statement calls for each row.
    static MARKED: RefCell<HashMap<Oid, pg_sys::SubTransactionId>> = RefCell::new(HashMap::new());
}

/// The record by which the server knows the calling convention.
#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_bucardo_capture() -> &'static pg_sys::Pg_finfo_record {
    const V1: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &V1
}

/// `bucardo.capture()`: writes down which rows a statement changed.
///
/// # Safety
/// Called by the server.
#[pg_guard]
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn bucardo_capture(fcinfo: FunctionCallInfo) -> Datum {
    // SAFETY: fcinfo is valid; its context says whether a trigger calls.
    let trigger = unsafe { (*fcinfo).context.cast::<TriggerData>() };
    // SAFETY: a node starts with its tag.
    if trigger.is_null() || unsafe { (*trigger).type_ } != pg_sys::NodeTag::T_TriggerData {
        pgrx::error!("bucardo.capture() is a trigger function");
    }
    register_once();
    // SAFETY: the trigger's relation is open while it runs.
    let table = unsafe { (*(*trigger).tg_relation).rd_id };
    match known(table, trigger) {
        Known::Ready(captured) => {
            // SAFETY: the trigger's data are its own; see `delta`.
            let segment = unsafe {
                match (*trigger).tg_event & pg_sys::TRIGGER_EVENT_ROW {
                    0 => delta::statement(trigger, &captured),
                    _ => delta::row(trigger, &captured),
                }
            };
            if let Some(segment) = segment {
                if let Err(error) = touched::tell(segment) {
                    pgrx::error!("bucardo: a changed table could not be noted: {error}");
                }
                CAPTURED.set(true);
                if segment.keyless {
                    mark_whole(table);
                }
            }
        }
        Known::Altered => mark_whole(table),
        Known::Absent => warn_absent(),
    }
    Datum::null()
}

fn known(table: Oid, trigger: *mut TriggerData) -> Known {
    // SAFETY: the trigger's definition is there while it runs.
    let key = (table.to_u32(), unsafe { (*(*trigger).tg_trigger).tgoid }.to_u32());
    if let Some(known) = KNOWN.with_borrow(|k| k.get(&key).cloned()) {
        return known;
    }
    // SAFETY: the trigger has tgnargs NUL-terminated arguments.
    let arguments: Vec<&CStr> = unsafe {
        let definition = (*trigger).tg_trigger;
        (0..usize::try_from((*definition).tgnargs).unwrap_or(0)).map(|i| CStr::from_ptr(*(*definition).tgargs.add(i))).collect()
    };
    // All names may stand in one argument.
    let names: Vec<CString> = match arguments.as_slice() {
        [all] => all.to_bytes().split(|byte| *byte == b' ').filter_map(|name| CString::new(name).ok()).collect(),
        each => each.iter().map(|name| CString::from(*name)).collect(),
    };
    let known = match captured::resolve(table, &names) {
        Some(Ok(captured)) => Known::Ready(Rc::new(captured)),
        Some(Err(())) => Known::Altered,
        None => Known::Absent,
    };
    KNOWN.with_borrow_mut(|k| k.insert(key, known.clone()));
    known
}

fn register_once() {
    if !REGISTERED.replace(true) {
        // SAFETY: both callbacks are functions of this library, which is never unloaded.
        unsafe {
            pg_sys::CacheRegisterRelcacheCallback(Some(forget), Datum::null());
            pg_sys::RegisterXactCallback(Some(at_end), std::ptr::null_mut());
        }
    }
}

/// A relation changed: what was resolved through it is looked up again. 0 means all.
#[pg_guard]
unsafe extern "C-unwind" fn forget(_arg: Datum, relation: Oid) {
    // It may have been truncated: what changes afterwards is marked anew.
    forget_marks();
    let _ = KNOWN.try_with(|known| {
        if let Ok(mut known) = known.try_borrow_mut() {
            let uses = |(table, _): &(u32, u32), entry: &Known| match entry {
                _ if relation == Oid::INVALID || *table == relation.to_u32() => true,
                Known::Ready(c) => c.active == relation || c.segments.contains(&relation),
                Known::Altered | Known::Absent => true,
            };
            known.retain(|table, entry| !uses(table, entry));
        }
    });
}

/// At the end of a transaction that captured: tells how it commits, and wakes who waits. Cannot fail; takes no lock.
#[pg_guard]
unsafe extern "C-unwind" fn at_end(event: pg_sys::XactEvent::Type, _arg: *mut std::ffi::c_void) {
    use pg_sys::XactEvent::{XACT_EVENT_ABORT, XACT_EVENT_COMMIT, XACT_EVENT_PRE_COMMIT, XACT_EVENT_PREPARE};
    if event == XACT_EVENT_PRE_COMMIT && CAPTURED.get() && shmem::is_loaded() {
        shmem::committing();
    }
    forget_marks();
    if matches!(event, XACT_EVENT_COMMIT | XACT_EVENT_ABORT | XACT_EVENT_PREPARE)
        && CAPTURED.take()
        && event == XACT_EVENT_COMMIT
        && shmem::is_loaded()
    {
        shmem::committed(shmem::my_database());
    }
}

/// Notes that this transaction captured something by other means than the trigger above.
pub fn note_captured() {
    register_once();
    CAPTURED.set(true);
}

fn forget_marks() {
    let _ = MARKED.try_with(|marked| marked.try_borrow_mut().map(|mut marked| marked.clear()));
}

/// The key changed under the triggers: single rows cannot be written down, so the whole table is.
fn mark_whole(table: Oid) {
    // SAFETY: both only read the state of the current transaction.
    let alive = |sub| unsafe { pg_sys::SubTransactionIsActive(sub) };
    if MARKED.with_borrow(|marked| marked.get(&table).is_some_and(|sub| alive(*sub))) {
        return;
    }
    let sql = format!("SELECT bucardo.capture_whole({}::pg_catalog.oid)", table.to_u32());
    if let Err(error) = role::with_rights_of(pg_sys::BOOTSTRAP_SUPERUSERID, || pgrx::Spi::run(&sql)) {
        warning!("bucardo: a changed table could not be marked: {error}");
    } else {
        // SAFETY: it only reads the state of the current transaction.
        let sub = unsafe { pg_sys::GetCurrentSubTransactionId() };
        MARKED.with_borrow_mut(|marked| marked.insert(table, sub));
    }
    CAPTURED.set(true);
}

fn warn_absent() {
    if !WARNED.replace(true) {
        warning!(
            "bucardo: a capture trigger stands on a table whose capture is not in this database, as in a restored copy; drop the triggers bucardo_capture_*"
        );
    }
}
