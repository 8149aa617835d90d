//! Background workers: start-up in the order of PostgreSQL's own, and the start of dynamic ones.

use std::ffi::CStr;
use std::time::Duration;

use pgrx::bgworkers::{BackgroundWorkerBuilder, BgWorkerStartTime, DynamicBackgroundWorker};
use pgrx::{PgMemoryContexts, pg_sys};

unsafe extern "C-unwind" {
    // The server's own handlers. The bindings wrap them in Rust functions, which are not C pointers.
    fn die(signal: i32);
    fn SignalHandlerForConfigReload(signal: i32);
}

/// Installs the signal handlers and connects to a database (or to none). SIGTERM ends the process in any wait.
pub fn start(database: Option<u32>) {
    // SAFETY: the first thing a worker does; the handlers are the server's own.
    unsafe {
        pg_sys::pqsignal(libc::SIGHUP, Some(SignalHandlerForConfigReload));
        pg_sys::pqsignal(libc::SIGTERM, Some(die));
        pg_sys::BackgroundWorkerUnblockSignals();
        if let Some(database) = database {
            pg_sys::BackgroundWorkerInitializeConnectionByOid(database.into(), pg_sys::InvalidOid, 0);
            pin_settings();
        }
        pg_sys::before_shmem_exit(Some(cancel_members), pg_sys::Datum::null());
    }
}

/// What our statements rely on, whatever the database is set to: its owner may set that, and is no superuser as we are.
const PINNED: [(&CStr, &CStr); 7] = [
    (c"search_path", c"pg_catalog, pg_temp"),
    (c"default_transaction_isolation", c"read committed"),
    (c"default_transaction_read_only", c"off"),
    (c"default_transaction_deferrable", c"off"),
    (c"lock_timeout", c"0"),
    (c"statement_timeout", c"0"),
    (c"jit", c"off"),
];

fn pin_settings() {
    PINNED.iter().for_each(|(name, value)| set_for_session(name, value));
}

/// A FATAL exit runs no destructors: what the members do for this process is cancelled here.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn cancel_members(_code: i32, _arg: pg_sys::Datum) {
    crate::libpq::cancel_all();
}

/// What `at_exit` calls: plain functions, because an exit hook has no closure.
static AT_EXIT: std::sync::OnceLock<(fn(usize), usize)> = std::sync::OnceLock::new();

/// Calls the function with the argument when this process ends, in whatever way the server notices. Once per process.
pub fn at_exit(hook: fn(usize), argument: usize) {
    if AT_EXIT.set((hook, argument)).is_ok() {
        // SAFETY: the hook is a function of this library, which is never unloaded.
        unsafe { pg_sys::before_shmem_exit(Some(run_at_exit), pg_sys::Datum::null()) };
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn run_at_exit(_code: i32, _arg: pg_sys::Datum) {
    if let Some((hook, argument)) = AT_EXIT.get() {
        hook(*argument);
    }
}

/// Sets a parameter for the rest of this process.
pub fn set_for_session(name: &CStr, value: &CStr) {
    // SAFETY: both texts are NUL-terminated; a worker may set its own parameters.
    unsafe {
        pg_sys::SetConfigOption(name.as_ptr(), value.as_ptr(), pg_sys::GucContext::PGC_SUSET, pg_sys::GucSource::PGC_S_OVERRIDE)
    };
}

/// Connects to a database by name, also to one that takes no connections. For the one worker that does not know an oid.
pub fn start_by_name(database: &CStr) {
    start(None);
    // SAFETY: once per process, after the signals are unblocked.
    unsafe {
        pg_sys::BackgroundWorkerInitializeConnection(database.as_ptr(), std::ptr::null(), pg_sys::BGWORKER_BYPASS_ALLOWCONN);
    }
    pin_settings();
}

/// Re-reads the configuration when SIGHUP asked for it.
pub fn reload_if_asked() {
    // SAFETY: flags of this process; ProcessConfigFile is what every worker calls.
    unsafe {
        if pg_sys::ConfigReloadPending != 0 {
            pg_sys::ConfigReloadPending = 0;
            pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
        }
    }
}

/// Ends the process. Code 0: never restarted; 1: a static worker comes back.
pub fn exit(code: i32) -> ! {
    // SAFETY: the server's own way out of a worker.
    unsafe { pg_sys::proc_exit(code) }
}

/// Registers the static launcher. Only while the server loads its preloaded libraries.
pub fn register_launcher() {
    BackgroundWorkerBuilder::new("bucardo launcher")
        .set_type("bucardo launcher")
        .set_library("bucardo")
        .set_function("bucardo_launcher_main")
        .enable_shmem_access(None)
        .set_start_time(BgWorkerStartTime::RecoveryFinished)
        .set_restart_time(Some(Duration::from_secs(1)))
        .load();
}

/// Starts a dynamic worker that this process is told about. None: no worker slot is free.
pub fn launch(name: &str, kind: &str, function: &str, argument: i32) -> Option<DynamicBackgroundWorker> {
    let name = crate::master::slot::clip(name, 90);
    // The handle must outlive the transaction in which it is made.
    // SAFETY: switching to the top context is always allowed.
    unsafe {
        PgMemoryContexts::TopMemoryContext.switch_to(|_| {
            BackgroundWorkerBuilder::new(name)
                .set_type(kind)
                .set_library("bucardo")
                .set_function(function)
                .enable_spi_access()
                .set_argument(Some(pg_sys::Datum::from(argument)))
                .set_notify_pid(pg_sys::MyProcPid)
                .load_dynamic()
                .ok()
        })
    }
}

/// What a dynamic worker is doing now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Life {
    NotStarted,
    Running(i32),
    Gone,
}

/// Asks the server about a worker.
pub fn life(worker: &DynamicBackgroundWorker) -> Life {
    match worker.pid() {
        Ok(pid) => Life::Running(pid),
        Err(pgrx::bgworkers::BackgroundWorkerStatus::NotYetStarted) => Life::NotStarted,
        Err(_) => Life::Gone,
    }
}

/// Sends a signal to a process of this server; a process that is gone is no error.
pub fn signal(pid: i32, signal: i32) {
    if pid > 0 {
        // SAFETY: kill only sends.
        unsafe { libc::kill(pid, signal) };
    }
}

/// This process's pid and the number under which others find its latch.
pub fn me() -> (i32, i32) {
    // SAFETY: set at process start.
    unsafe { (pg_sys::MyProcPid, (*pg_sys::MyProc).pgprocno) }
}

/// Sets the latch of the process with this number. A process that took the number over is woken for nothing.
pub fn set_latch(procno: i32) {
    // SAFETY: ProcGlobal's array is fixed at server start; the number is checked against its length.
    unsafe {
        let all = pg_sys::ProcGlobal;
        if procno >= 0 && (procno as u32) < (*all).allProcCount {
            pg_sys::SetLatch(&raw mut (*(*all).allProcs.add(procno as usize)).procLatch);
        }
    }
}

/// Says in pg_stat_activity and the process title what this worker does.
pub fn report_activity(running: bool, what: &str) {
    let text = std::ffi::CString::new(what).unwrap_or_default();
    let state = if running { pg_sys::BackendState::STATE_RUNNING } else { pg_sys::BackendState::STATE_IDLE };
    // SAFETY: the text is copied.
    unsafe { pg_sys::pgstat_report_activity(state, text.as_ptr()) };
}

/// The process of a worker, 0 when it has none.
pub fn pid(worker: &DynamicBackgroundWorker) -> i32 {
    match life(worker) {
        Life::Running(pid) => pid,
        Life::NotStarted | Life::Gone => 0,
    }
}

/// Refuses settings `bucardo.*` that do not exist.
pub fn reserve_settings() {
    // SAFETY: a NUL-terminated prefix; registers it in the process's list.
    unsafe { pg_sys::MarkGUCPrefixReserved(c"bucardo".as_ptr()) };
}
