//! The text of the statement that a session carries out, as the server's log and `pg_stat_activity` would show it. It must
//! never change what the statement does.

use std::ffi::CStr;

use pgrx::pg_sys;

/// Of this statement nobody is shown more than `instead` from now on: it holds what is to stay secret. The log of an error
/// leaves it out.
pub fn hide(instead: &CStr) {
    // SAFETY: the server reads the variable only to show it, and takes null for a statement that has no text; it sets it anew
    // for the next one. The other text is copied.
    unsafe {
        pg_sys::debug_query_string = std::ptr::null();
        pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_RUNNING, instead.as_ptr());
    }
}
