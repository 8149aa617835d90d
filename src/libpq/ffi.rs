//! The functions and constants of libpq 15 that we use, as C declares them, and nothing else.
//! Only names of libpq 15's own export list may stand here: a newer one would make the library unloadable.

use std::ffi::{c_char, c_int, c_uint};

/// `PGconn`, opaque.
pub enum PGconn {}
/// `PGresult`, opaque.
pub enum PGresult {}
/// `PGcancel`, opaque.
pub enum PGcancel {}

pub type Oid = c_uint;

/// One keyword of a conninfo (`PQconninfoOption`, fixed by libpq's ABI).
#[repr(C)]
pub struct PQconninfoOption {
    pub keyword: *mut c_char,
    pub envvar: *mut c_char,
    pub compiled: *mut c_char,
    pub val: *mut c_char,
    pub label: *mut c_char,
    pub dispchar: *mut c_char,
    pub dispsize: c_int,
}

pub const CONNECTION_OK: c_int = 0;
pub const CONNECTION_BAD: c_int = 1;

pub const PGRES_POLLING_FAILED: c_int = 0;
pub const PGRES_POLLING_READING: c_int = 1;
pub const PGRES_POLLING_OK: c_int = 3;

pub const PGRES_EMPTY_QUERY: c_int = 0;
pub const PGRES_COMMAND_OK: c_int = 1;
pub const PGRES_TUPLES_OK: c_int = 2;
pub const PGRES_COPY_OUT: c_int = 3;
pub const PGRES_COPY_IN: c_int = 4;
pub const PGRES_PIPELINE_SYNC: c_int = 10;
pub const PGRES_PIPELINE_ABORTED: c_int = 11;

pub const PG_DIAG_SQLSTATE: c_int = b'C' as c_int;
pub const PG_DIAG_MESSAGE_PRIMARY: c_int = b'M' as c_int;
pub const PG_DIAG_MESSAGE_DETAIL: c_int = b'D' as c_int;
pub const PG_DIAG_MESSAGE_HINT: c_int = b'H' as c_int;
pub const PG_DIAG_CONTEXT: c_int = b'W' as c_int;
pub const PG_DIAG_SOURCE_FUNCTION: c_int = b'R' as c_int;

pub const PQTRANS_IDLE: c_int = 0;
pub const PQTRANS_ACTIVE: c_int = 1;

pub type NoticeReceiver = unsafe extern "C" fn(arg: *mut std::ffi::c_void, res: *const PGresult);

#[link(name = "pq")]
unsafe extern "C" {
    pub fn PQconnectStartParams(
        keywords: *const *const c_char,
        values: *const *const c_char,
        expand_dbname: c_int,
    ) -> *mut PGconn;
    pub fn PQconnectPoll(conn: *mut PGconn) -> c_int;
    pub fn PQfinish(conn: *mut PGconn);
    pub fn PQstatus(conn: *const PGconn) -> c_int;
    pub fn PQtransactionStatus(conn: *const PGconn) -> c_int;
    pub fn PQsocket(conn: *const PGconn) -> c_int;
    pub fn PQsslInUse(conn: *mut PGconn) -> c_int;
    pub fn PQerrorMessage(conn: *const PGconn) -> *const c_char;
    pub fn PQhost(conn: *const PGconn) -> *const c_char;
    pub fn PQhostaddr(conn: *const PGconn) -> *const c_char;
    pub fn PQport(conn: *const PGconn) -> *const c_char;
    pub fn PQserverVersion(conn: *const PGconn) -> c_int;
    pub fn PQparameterStatus(conn: *const PGconn, name: *const c_char) -> *const c_char;
    pub fn PQsetnonblocking(conn: *mut PGconn, arg: c_int) -> c_int;
    pub fn PQsetNoticeReceiver(
        conn: *mut PGconn,
        receiver: Option<NoticeReceiver>,
        arg: *mut std::ffi::c_void,
    ) -> Option<NoticeReceiver>;
    pub fn PQflush(conn: *mut PGconn) -> c_int;
    pub fn PQisBusy(conn: *mut PGconn) -> c_int;
    pub fn PQconsumeInput(conn: *mut PGconn) -> c_int;
    pub fn PQgetResult(conn: *mut PGconn) -> *mut PGresult;
    pub fn PQclear(res: *mut PGresult);
    pub fn PQresultStatus(res: *const PGresult) -> c_int;
    pub fn PQresultErrorField(res: *const PGresult, field: c_int) -> *const c_char;
    pub fn PQntuples(res: *const PGresult) -> c_int;
    pub fn PQnfields(res: *const PGresult) -> c_int;
    pub fn PQgetvalue(res: *const PGresult, row: c_int, col: c_int) -> *const c_char;
    pub fn PQgetlength(res: *const PGresult, row: c_int, col: c_int) -> c_int;
    pub fn PQgetisnull(res: *const PGresult, row: c_int, col: c_int) -> c_int;
    pub fn PQcmdTuples(res: *mut PGresult) -> *const c_char;
    pub fn PQsendQuery(conn: *mut PGconn, query: *const c_char) -> c_int;
    pub fn PQsendQueryParams(
        conn: *mut PGconn,
        command: *const c_char,
        n: c_int,
        types: *const Oid,
        values: *const *const c_char,
        lengths: *const c_int,
        formats: *const c_int,
        result_format: c_int,
    ) -> c_int;
    pub fn PQsendPrepare(conn: *mut PGconn, name: *const c_char, query: *const c_char, n: c_int, types: *const Oid) -> c_int;
    pub fn PQsendQueryPrepared(
        conn: *mut PGconn,
        name: *const c_char,
        n: c_int,
        values: *const *const c_char,
        lengths: *const c_int,
        formats: *const c_int,
        result_format: c_int,
    ) -> c_int;
    pub fn PQenterPipelineMode(conn: *mut PGconn) -> c_int;
    pub fn PQexitPipelineMode(conn: *mut PGconn) -> c_int;
    pub fn PQpipelineSync(conn: *mut PGconn) -> c_int;
    pub fn PQgetCopyData(conn: *mut PGconn, buffer: *mut *mut c_char, is_async: c_int) -> c_int;
    pub fn PQputCopyData(conn: *mut PGconn, buffer: *const c_char, n: c_int) -> c_int;
    pub fn PQputCopyEnd(conn: *mut PGconn, error: *const c_char) -> c_int;
    pub fn PQgetCancel(conn: *mut PGconn) -> *mut PGcancel;
    pub fn PQcancel(cancel: *mut PGcancel, errbuf: *mut c_char, size: c_int) -> c_int;
    pub fn PQfreeCancel(cancel: *mut PGcancel);
    pub fn PQconninfoParse(conninfo: *const c_char, errmsg: *mut *mut c_char) -> *mut PQconninfoOption;
    pub fn PQconninfoFree(options: *mut PQconninfoOption);
    pub fn PQfreemem(ptr: *mut std::ffi::c_void);
}
