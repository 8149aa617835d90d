//! The hot path of native capture: keys of changed rows, out of a statement's transition tables (or a row trigger's
//! tuples) into a delta segment. No SPI, no plan, no look-up per row. Written inside the statement, so a rolled-back
//! subtransaction takes its deltas along.
//!
//! All of it runs inside one guard, where the server is called as in `raw` only: an ERROR jumps over these frames, which
//! therefore own nothing but memory of the server.

use std::ffi::c_int;
use std::mem::MaybeUninit;

use pgrx::pg_sys::{self, Datum, HeapTuple, Relation, TriggerData, TupleDesc, TupleTableSlot, Tuplestorestate};

use super::captured::{Captured, Key, MAX_KEYS};
use super::raw;
use super::touched::Segment;

/// How many rows are written at once.
const ROWS: usize = 1000;
/// How many keys go into one row's arrays at most, and how many bytes of them: the row must fit into a page, where it
/// is written as fast as any other.
const BATCH: usize = 1500;
const BATCH_BYTES: usize = 6000;
/// What follows the keys in a segment: xid, at, origin, existed. Then come the arrays of keys, if it has them.
const EXTRA: usize = 4;
const COLUMNS: usize = 2 * MAX_KEYS + EXTRA;

/// The writer of one statement. Owns nothing that a jump could leak: all of it is memory of the current context.
struct Writer {
    capture: i32,
    rel: Relation,
    desc: TupleDesc,
    keys: *const Key,
    key_count: usize,
    /// Rows that are formed and not yet written.
    slots: *mut *mut TupleTableSlot,
    made: usize,
    filled: usize,
    /// Keys that are not yet in a row, `BATCH` places for each column; None of them when the segment has no arrays.
    batched: bool,
    waiting: *mut Datum,
    waits: usize,
    bytes: usize,
    /// Whether a row had no key.
    keyless: bool,
    cid: pg_sys::CommandId,
    /// What lives until the rows are written.
    memory: pg_sys::MemoryContext,
    values: [Datum; COLUMNS],
    nulls: [bool; COLUMNS],
}

/// A row of the segment that writers use now, but for its keys, which are null as yet.
struct Row {
    rel: Relation,
    values: [Datum; COLUMNS],
    nulls: [bool; COLUMNS],
}

impl Row {
    /// # Safety
    /// In a transaction, inside the guard. Opens a heap of ours with the lock that every INSERT takes, to be kept to the
    /// transaction's end.
    #[inline(always)]
    unsafe fn new(captured: &Captured, existed: bool) -> Self {
        let n = captured.keys.len();
        let (mut values, mut nulls) = ([Datum::null(); COLUMNS], [true; COLUMNS]);
        nulls[n..n + EXTRA].copy_from_slice(&[false, false, true, !existed]);
        values[n + 3] = Datum::from(true);
        // SAFETY: see above.
        unsafe {
            values[n] = Datum::from(raw::top_full_transaction_id().value as i64);
            values[n + 1] = Datum::from(raw::current_timestamp());
            let rel = raw::table_open(captured.segment_in_use(), pg_sys::RowExclusiveLock as i32);
            Self { rel, values, nulls }
        }
    }
}

/// Writes down the key of a statement's only row, which most have, without the writer's buffers. Where to.
///
/// # Safety
/// Inside the guard; the slot holds a row of the captured table.
unsafe fn single(slot: *mut TupleTableSlot, captured: &Captured, existed: bool) -> Segment {
    // SAFETY: as in [`Writer::add`] and [`Writer::write`]; the tuple is memory of the current context, which ends with the trigger.
    unsafe {
        let Row { rel, mut values, mut nulls } = Row::new(captured, existed);
        let mut keyless = false;
        for (i, key) in captured.keys.iter().enumerate() {
            let (value, null) = column(slot, key);
            (values[i], nulls[i]) = (value, false);
            keyless |= null;
        }
        if !keyless {
            let tuple = raw::heap_form_tuple((*rel).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr());
            raw::heap_insert(rel, tuple, raw::current_command_id(true), 0, std::ptr::null_mut());
        }
        let segment = Segment { capture: captured.id, oid: (*rel).rd_id, file: (*rel).rd_node.relNode, keyless };
        raw::table_close(rel, pg_sys::NoLock as i32);
        segment
    }
}

/// A key column of a row, and whether it is null.
///
/// # Safety
/// Inside the guard; the slot holds a row of the captured table.
#[inline(always)]
unsafe fn column(slot: *mut TupleTableSlot, key: &Key) -> (Datum, bool) {
    // SAFETY: key numbers are within the table's columns, which the slot has after slot_getsomeattrs.
    unsafe {
        if (*slot).tts_nvalid < key.attnum {
            raw::deform(slot, c_int::from(key.attnum));
        }
        let at = key.attnum as usize - 1;
        (*(*slot).tts_values.add(at), *(*slot).tts_isnull.add(at))
    }
}

impl Writer {
    /// # Safety
    /// In a transaction; `captured` outlives the writer; [`Writer::finish`] follows unless an ERROR does.
    unsafe fn new(captured: &Captured, existed: bool) -> Self {
        // SAFETY: all of it is the server's.
        unsafe {
            let Row { rel, values, nulls } = Row::new(captured, existed);
            let n = captured.keys.len();
            let desc = (*rel).rd_att;
            let memory = raw::create_memory_context(
                pg_sys::CurrentMemoryContext,
                c"bucardo deltas".as_ptr(),
                0,
                pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
            );
            let batched = (*desc).natts as usize == 2 * n + EXTRA;
            Self {
                capture: captured.id,
                rel,
                desc,
                keys: captured.keys.as_ptr(),
                key_count: n,
                slots: raw::palloc(ROWS * size_of::<*mut TupleTableSlot>()).cast(),
                made: 0,
                filled: 0,
                batched,
                waiting: if batched { raw::palloc(n * BATCH * size_of::<Datum>()).cast() } else { std::ptr::null_mut() },
                waits: 0,
                bytes: 0,
                keyless: false,
                cid: raw::current_command_id(true),
                memory,
                values,
                nulls,
            }
        }
    }

    /// Adds the key of the row in the slot. A row in which it is null, as may be left from before its column was NOT NULL,
    /// cannot be named: then the segment says so.
    ///
    /// # Safety
    /// Inside the guard; the slot holds a row of the captured table.
    #[inline(always)]
    unsafe fn add(&mut self, slot: *mut TupleTableSlot) {
        // SAFETY: places of `waiting` are within BATCH, because it is emptied when it is full; no null gets there.
        unsafe {
            for i in 0..self.key_count {
                let (value, null) = column(slot, &*self.keys.add(i));
                if null {
                    self.keyless = true;
                    return;
                }
                if !self.batched {
                    self.values[i] = value;
                    self.nulls[i] = false;
                } else {
                    self.put(i, value);
                }
            }
            if !self.batched {
                self.form();
            } else {
                self.waits += 1;
                if self.waits == BATCH || self.bytes >= BATCH_BYTES {
                    self.batch();
                }
            }
        }
    }

    /// Keeps one key column for the next batch.
    ///
    /// # Safety
    /// Inside the guard; the segment has arrays.
    #[inline(always)]
    unsafe fn put(&mut self, column: usize, value: Datum) {
        // SAFETY: see `add`; what is passed by reference is copied, because the slot's row goes.
        unsafe {
            let key = &*self.keys.add(column);
            let place = self.waiting.add(column * BATCH + self.waits);
            if key.by_value {
                *place = value;
                self.bytes += key.length as usize;
            } else {
                let outer = pg_sys::CurrentMemoryContext;
                pg_sys::CurrentMemoryContext = self.memory;
                *place = raw::datum_copy(value, false, c_int::from(key.length));
                pg_sys::CurrentMemoryContext = outer;
                // With the room that alignment and a longer header may take.
                self.bytes += raw::datum_size(value, false, c_int::from(key.length)) + 8;
            }
        }
    }

    /// Makes one row of the waiting keys: as it is when there is one, else arrays.
    ///
    /// # Safety
    /// Inside the guard; the segment has arrays.
    unsafe fn batch(&mut self) {
        if self.waits == 0 {
            return;
        }
        let arrays = self.key_count + EXTRA;
        let single = self.waits == 1;
        // SAFETY: `waiting` holds `waits` values for each column.
        unsafe {
            let outer = pg_sys::CurrentMemoryContext;
            pg_sys::CurrentMemoryContext = self.memory;
            for i in 0..self.key_count {
                let values = self.waiting.add(i * BATCH);
                self.nulls[i] = !single;
                self.nulls[arrays + i] = single;
                if single {
                    self.values[i] = *values;
                } else {
                    let key = &*self.keys.add(i);
                    let array = raw::construct_array(
                        values,
                        self.waits as c_int,
                        key.kind,
                        c_int::from(key.length),
                        key.by_value,
                        key.align,
                    );
                    self.values[arrays + i] = Datum::from(array.cast::<u8>());
                }
            }
            pg_sys::CurrentMemoryContext = outer;
            self.waits = 0;
            self.bytes = 0;
            self.form();
            // A batch is as large as many rows.
            if self.filled >= ROWS / 16 {
                self.write();
            }
        }
    }

    /// # Safety
    /// Inside the guard; the row stands in `values` and `nulls`.
    #[inline(always)]
    unsafe fn form(&mut self) {
        // SAFETY: the arrays have a value for each column of the segment; a slot exists for each row.
        unsafe {
            let outer = pg_sys::CurrentMemoryContext;
            if self.filled == self.made {
                *self.slots.add(self.made) = raw::make_slot(self.desc, &pg_sys::TTSOpsHeapTuple);
                self.made += 1;
            }
            pg_sys::CurrentMemoryContext = self.memory;
            let tuple = raw::heap_form_tuple(self.desc, self.values.as_mut_ptr(), self.nulls.as_mut_ptr());
            pg_sys::CurrentMemoryContext = outer;
            raw::store_heap_tuple(tuple, *self.slots.add(self.filled), false);
            self.filled += 1;
            if self.filled == ROWS {
                self.write();
            }
        }
    }

    /// # Safety
    /// Inside the guard; no key waits for a batch.
    unsafe fn write(&mut self) {
        if self.filled == 0 {
            return;
        }
        // SAFETY: a plain heap without indexes or triggers; the slots hold tuples of its shape.
        unsafe {
            let outer = pg_sys::CurrentMemoryContext;
            pg_sys::CurrentMemoryContext = self.memory;
            raw::heap_multi_insert(self.rel, self.slots, self.filled as c_int, self.cid, 0, std::ptr::null_mut());
            pg_sys::CurrentMemoryContext = outer;
            raw::reset_memory_context(self.memory);
        }
        self.filled = 0;
    }

    /// Where everything went.
    ///
    /// # Safety
    /// Inside the guard; last call.
    unsafe fn finish(&mut self) -> Segment {
        // SAFETY: writes what is left, drops the slots and closes the relation, keeping its lock.
        unsafe {
            self.batch();
            self.write();
            let (oid, file) = ((*self.rel).rd_id, (*self.rel).rd_node.relNode);
            let segment = Segment { capture: self.capture, oid, file, keyless: self.keyless };
            for i in 0..self.made {
                raw::drop_slot(*self.slots.add(i));
            }
            raw::delete_memory_context(self.memory);
            raw::table_close(self.rel, pg_sys::NoLock as i32);
            segment
        }
    }
}

/// A reader of a transition table, from its beginning, beside whoever else reads it.
///
/// # Safety
/// The tuplestore belongs to a trigger that runs.
unsafe fn reader(store: *mut Tuplestorestate, desc: TupleDesc) -> *mut TupleTableSlot {
    // SAFETY: as PostgreSQL's own scans of transition tables do.
    unsafe {
        let pointer = raw::tuplestore_alloc_read_pointer(store, pg_sys::EXEC_FLAG_REWIND as c_int);
        raw::tuplestore_select_read_pointer(store, pointer);
        raw::tuplestore_rescan(store);
        raw::make_slot(desc, &pg_sys::TTSOpsMinimalTuple)
    }
}

/// Writes down the keys of a statement's rows, those of the transition tables that it has. Where to; None: nothing changed.
///
/// # Safety
/// Called from a running AFTER STATEMENT trigger with its own data.
pub unsafe fn statement(trigger: *mut TriggerData, captured: &Captured) -> Option<Segment> {
    // SAFETY: the tuplestores belong to the trigger; everything is opened, used and closed inside the guard.
    unsafe {
        pg_sys::ffi::pg_guard_ffi_boundary(|| {
            let desc = (*(*trigger).tg_relation).rd_att;
            let (old, new) = ((*trigger).tg_oldtable, (*trigger).tg_newtable);
            match (old.is_null(), new.is_null()) {
                (false, false) => updated(old, new, desc, captured),
                (true, false) => written(new, desc, captured, false),
                (false, true) => written(old, desc, captured, true),
                (true, true) => None,
            }
        })
    }
}

/// # Safety
/// Inside the guard.
unsafe fn written(store: *mut Tuplestorestate, desc: TupleDesc, captured: &Captured, existed: bool) -> Option<Segment> {
    // SAFETY: see `statement`.
    unsafe {
        let slot = reader(store, desc);
        let segment = raw::tuplestore_gettupleslot(store, true, false, slot).then(|| {
            if raw::tuplestore_tuple_count(store) == 1 {
                return single(slot, captured, existed);
            }
            let mut writer = Writer::new(captured, existed);
            loop {
                writer.add(slot);
                if !raw::tuplestore_gettupleslot(store, true, false, slot) {
                    return writer.finish();
                }
            }
        });
        raw::drop_slot(slot);
        segment
    }
}

/// # Safety
/// Inside the guard. Old and new rows of an UPDATE stand in the same order.
unsafe fn updated(old: *mut Tuplestorestate, new: *mut Tuplestorestate, desc: TupleDesc, captured: &Captured) -> Option<Segment> {
    // SAFETY: see `statement`.
    unsafe {
        let (before, after) = (reader(old, desc), reader(new, desc));
        let mut writer = MaybeUninit::<Writer>::uninit();
        let mut begun = false;
        let mut segment = None;
        let only = raw::tuplestore_tuple_count(new) == 1;
        while raw::tuplestore_gettupleslot(new, true, false, after) {
            let paired = raw::tuplestore_gettupleslot(old, true, false, before);
            if paired && same_row(before, after) {
                continue;
            }
            if only && paired && same_key(before, after, &captured.keys) {
                segment = Some(single(after, captured, true));
                break;
            }
            if !begun {
                writer.write(Writer::new(captured, true));
                begun = true;
            }
            let writer = writer.assume_init_mut();
            writer.add(after);
            if paired && !same_key(before, after, &captured.keys) {
                writer.add(before);
            }
        }
        if begun {
            segment = Some(writer.assume_init_mut().finish());
        }
        raw::drop_slot(before);
        raw::drop_slot(after);
        segment
    }
}

/// Whether two rows are the same to the byte.
///
/// # Safety
/// Both slots hold a minimal tuple.
unsafe fn same_row(a: *mut TupleTableSlot, b: *mut TupleTableSlot) -> bool {
    // SAFETY: the tuples begin with their length; the header's flags tell of visibility too, so only what describes the
    // row is compared: the number of columns, whether there are nulls, the null bitmap and the data.
    unsafe {
        let tuple = |slot: *mut TupleTableSlot| (*slot.cast::<pg_sys::MinimalTupleTableSlot>()).mintuple;
        let (a, b) = (tuple(a), tuple(b));
        let start = std::mem::offset_of!(pg_sys::MinimalTupleData, t_hoff);
        let length = (*a).t_len as usize;
        let bytes = |t: pg_sys::MinimalTuple| std::slice::from_raw_parts(t.cast::<u8>().add(start), length - start);
        let columns = |t: pg_sys::MinimalTuple| u32::from((*t).t_infomask2) & pg_sys::HEAP_NATTS_MASK;
        let nulls = |t: pg_sys::MinimalTuple| u32::from((*t).t_infomask) & pg_sys::HEAP_HASNULL;
        (*b).t_len as usize == length && columns(a) == columns(b) && nulls(a) == nulls(b) && bytes(a) == bytes(b)
    }
}

/// # Safety
/// Inside the guard; both slots hold rows of the captured table.
unsafe fn same_key(a: *mut TupleTableSlot, b: *mut TupleTableSlot, keys: &[Key]) -> bool {
    // SAFETY: see above.
    unsafe {
        keys.iter().all(|key| {
            let ((x, x_null), (y, y_null)) = (column(a, key), column(b, key));
            x_null == y_null && (x_null || raw::datum_image_eq(x, y, key.by_value, c_int::from(key.length)))
        })
    }
}

/// Writes down the key of one row, and the old key when it changed, for a row trigger. Where to.
///
/// # Safety
/// Called from a running AFTER ROW trigger with its own data.
pub unsafe fn row(trigger: *mut TriggerData, captured: &Captured) -> Option<Segment> {
    // SAFETY: the tuples belong to the trigger and have the shape of its relation.
    unsafe {
        pg_sys::ffi::pg_guard_ffi_boundary(|| {
            let desc = (*(*trigger).tg_relation).rd_att;
            let slot = |tuple: HeapTuple| {
                let slot = raw::make_slot(desc, &pg_sys::TTSOpsHeapTuple);
                raw::store_heap_tuple(tuple, slot, false)
            };
            let first = slot((*trigger).tg_trigtuple);
            let existed = (*trigger).tg_event & pg_sys::TRIGGER_EVENT_OPMASK != pg_sys::TRIGGER_EVENT_INSERT;
            let mut second = std::ptr::null_mut();
            if !(*trigger).tg_newtuple.is_null() {
                second = slot((*trigger).tg_newtuple);
            }
            let segment = if second.is_null() || same_key(first, second, &captured.keys) {
                single(first, captured, existed)
            } else {
                let mut writer = Writer::new(captured, existed);
                writer.add(first);
                writer.add(second);
                writer.finish()
            };
            if !second.is_null() {
                raw::drop_slot(second);
            }
            raw::drop_slot(first);
            Some(segment)
        })
    }
}
