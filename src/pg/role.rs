//! Whose rights count: the role that is current, and doing something with another's. It must never leave a body with
//! the wrong role: an ERROR unwinds to whoever aborts the (sub)transaction, and that puts the role and the settings back.

use pgrx::pg_sys;

/// The role whose rights count now.
pub fn current() -> u32 {
    // SAFETY: reads a variable of this process.
    unsafe { pg_sys::GetUserId() }.to_u32()
}

/// Whether there is a role of this number.
pub fn exists(role: u32) -> bool {
    // SAFETY: inside a transaction, a look-up that answers NULL for what is missing.
    unsafe { !pg_sys::GetUserNameFromId(role.into(), true).is_null() }
}

/// Runs the body with the rights of a role, as a SECURITY DEFINER function of that role would.
pub fn with_rights_of<T>(role: u32, body: impl FnOnce() -> T) -> T {
    switched(role, 0, body)
}

/// Runs foreign code with the rights of a role in a process of the superuser. Nothing that the code leaves behind may
/// act with the superuser's rights later: settings are put back, and a role that is none itself can queue nothing for
/// the end of the transaction (deferred triggers, held cursors) and make no temporary table.
pub fn sandboxed<T>(role: u32, body: impl FnOnce() -> T) -> T {
    // SAFETY: inside a transaction; both texts are NUL-terminated and copied. An ERROR ends the settings' level by itself.
    let (level, sandbox) = unsafe {
        let level = pg_sys::NewGUCNestLevel();
        pg_sys::set_config_option(
            c"search_path".as_ptr(),
            c"pg_catalog, pg_temp".as_ptr(),
            pg_sys::GucContext::PGC_USERSET,
            pg_sys::GucSource::PGC_S_SESSION,
            pg_sys::GucAction::GUC_ACTION_SAVE,
            true,
            0,
            false,
        );
        let trusted = pg_sys::superuser_arg(role.into());
        (level, if trusted { 0 } else { pg_sys::SECURITY_RESTRICTED_OPERATION as i32 })
    };
    let value = switched(role, sandbox, body);
    // SAFETY: ends the level that was begun above.
    unsafe { pg_sys::AtEOXact_GUC(false, level) };
    value
}

/// Inside, SET ROLE and SET SESSION AUTHORIZATION are refused, so that the body cannot switch back by itself.
fn switched<T>(role: u32, context: i32, body: impl FnOnce() -> T) -> T {
    let (mut before, mut before_context) = (pg_sys::Oid::INVALID, 0);
    // SAFETY: reads and sets variables of this process; both are put back below, or by the abort after an ERROR.
    unsafe {
        pg_sys::GetUserIdAndSecContext(&raw mut before, &raw mut before_context);
        let context = before_context | context | pg_sys::SECURITY_LOCAL_USERID_CHANGE as i32;
        pg_sys::SetUserIdAndSecContext(role.into(), context);
    }
    let value = body();
    // SAFETY: what was read above.
    unsafe { pg_sys::SetUserIdAndSecContext(before, before_context) };
    value
}
