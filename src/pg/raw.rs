//! The server's functions as they are, for what runs inside a guard of its own: an ERROR in one of them jumps to that guard,
//! over frames that own nothing. The bindings of the same names are guards themselves and make a panic of an ERROR, which may not
//! leave the outer guard's closure: the server would be aborted. So nothing inside a guard may call those (`tests/lint.py`).

use std::ffi::{c_char, c_int, c_void};

use pgrx::pg_sys::{
    BlockNumber, Buffer, BulkInsertState, CommandId, Datum, FullTransactionId, HeapTuple, LOCKMODE, List, MemoryContext, Oid,
    Relation, TimestampTz, TupleDesc, TupleTableSlot, TupleTableSlotOps, Tuplestorestate,
};

unsafe extern "C-unwind" {
    pub fn relation_open(relation: Oid, lock: LOCKMODE) -> Relation;
    pub fn relation_close(relation: Relation, lock: LOCKMODE);
    pub fn table_open(relation: Oid, lock: LOCKMODE) -> Relation;
    pub fn table_close(relation: Relation, lock: LOCKMODE);
    #[link_name = "ReadBuffer"]
    pub fn read_buffer(relation: Relation, block: BlockNumber) -> Buffer;
    #[link_name = "LockBuffer"]
    pub fn lock_buffer(buffer: Buffer, mode: c_int);
    #[link_name = "UnlockReleaseBuffer"]
    pub fn unlock_release_buffer(buffer: Buffer);
    #[link_name = "GetTopFullTransactionId"]
    pub fn top_full_transaction_id() -> FullTransactionId;
    #[link_name = "GetCurrentTimestamp"]
    pub fn current_timestamp() -> TimestampTz;
    #[link_name = "GetCurrentCommandId"]
    pub fn current_command_id(used: bool) -> CommandId;
    pub fn palloc(size: usize) -> *mut c_void;
    #[link_name = "AllocSetContextCreateInternal"]
    pub fn create_memory_context(
        parent: MemoryContext,
        name: *const c_char,
        least: usize,
        first: usize,
        most: usize,
    ) -> MemoryContext;
    #[link_name = "MemoryContextReset"]
    pub fn reset_memory_context(context: MemoryContext);
    #[link_name = "MemoryContextDelete"]
    pub fn delete_memory_context(context: MemoryContext);
    #[link_name = "MakeSingleTupleTableSlot"]
    pub fn make_slot(desc: TupleDesc, ops: *const TupleTableSlotOps) -> *mut TupleTableSlot;
    #[link_name = "ExecDropSingleTupleTableSlot"]
    pub fn drop_slot(slot: *mut TupleTableSlot);
    #[link_name = "ExecStoreHeapTuple"]
    pub fn store_heap_tuple(tuple: HeapTuple, slot: *mut TupleTableSlot, should_free: bool) -> *mut TupleTableSlot;
    #[link_name = "slot_getsomeattrs_int"]
    pub fn deform(slot: *mut TupleTableSlot, attnum: c_int);
    pub fn heap_form_tuple(desc: TupleDesc, values: *mut Datum, isnull: *mut bool) -> HeapTuple;
    pub fn heap_insert(relation: Relation, tuple: HeapTuple, cid: CommandId, options: c_int, bistate: BulkInsertState);
    pub fn heap_multi_insert(
        relation: Relation,
        slots: *mut *mut TupleTableSlot,
        n: c_int,
        cid: CommandId,
        options: c_int,
        bistate: BulkInsertState,
    );
    pub fn tuplestore_alloc_read_pointer(state: *mut Tuplestorestate, flags: c_int) -> c_int;
    pub fn tuplestore_select_read_pointer(state: *mut Tuplestorestate, pointer: c_int);
    pub fn tuplestore_tuple_count(state: *mut Tuplestorestate) -> i64;
    pub fn tuplestore_rescan(state: *mut Tuplestorestate);
    pub fn tuplestore_gettupleslot(state: *mut Tuplestorestate, forward: bool, copy: bool, slot: *mut TupleTableSlot) -> bool;
    pub fn datum_image_eq(a: Datum, b: Datum, by_value: bool, length: c_int) -> bool;
    #[link_name = "datumCopy"]
    pub fn datum_copy(value: Datum, by_value: bool, length: c_int) -> Datum;
    #[link_name = "datumGetSize"]
    pub fn datum_size(value: Datum, by_value: bool, length: c_int) -> usize;
    pub fn get_partition_ancestors(table: Oid) -> *mut List;
    pub fn construct_array(values: *mut Datum, n: c_int, kind: Oid, length: c_int, by_value: bool, align: c_char) -> *mut c_void;
}
