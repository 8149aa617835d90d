//! Telling the members to stop what they do for this process, in every way out. A server may be frozen just then, so
//! this must never wait for one without end.

use std::cell::RefCell;
use std::ffi::{c_char, c_int};
use std::sync::mpsc;
use std::time::Duration;

use super::ffi;

/// How long the way out waits for the word that a request has arrived.
const PATIENCE: Duration = Duration::from_secs(2);

thread_local! {
    /// The open connections of this process, so that a FATAL exit, which runs no destructors, can cancel their work.
    static OPEN: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

pub fn opened(raw: *mut ffi::PGconn) {
    OPEN.with_borrow_mut(|o| o.push(raw as usize));
}

pub fn closed(raw: *mut ffi::PGconn) {
    OPEN.with_borrow_mut(|o| o.retain(|other| *other != raw as usize));
}

/// Cancels what the members are doing for this process. To be called from an exit hook.
pub fn cancel_all() {
    let open = OPEN.try_with(|o| o.try_borrow().map(|o| o.clone()).unwrap_or_default()).unwrap_or_default();
    for raw in open {
        // SAFETY: whoever closes a connection takes it from the list first.
        unsafe { cancel(raw as *mut ffi::PGconn) };
    }
}

/// What libpq needs to ask for it: a copy of its own, independent of the connection.
struct Request(*mut ffi::PGcancel);

// SAFETY: libpq promises that a PGcancel may be used by another thread.
unsafe impl Send for Request {}

impl Request {
    fn send(&self) {
        let mut message = [0 as c_char; 256];
        // SAFETY: the object is live and the buffer has the given size.
        unsafe { ffi::PQcancel(self.0, message.as_mut_ptr(), message.len() as c_int) };
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        // SAFETY: made by PQgetCancel and freed once.
        unsafe { ffi::PQfreeCancel(self.0) }
    }
}

/// Asks the member to stop the running statement; without effect when none runs. PQcancel blocks until the server hangs
/// up, so a thread does it, which touches nothing else and is left alone when that takes too long.
///
/// # Safety
/// `raw` is an open connection of this process.
pub unsafe fn cancel(raw: *mut ffi::PGconn) {
    // SAFETY: the caller promises that raw is open.
    let request = unsafe {
        if ffi::PQtransactionStatus(raw) != ffi::PQTRANS_ACTIVE {
            return;
        }
        ffi::PQgetCancel(raw)
    };
    if request.is_null() {
        return;
    }
    let request = Request(request);
    let (done, finished) = mpsc::channel();
    without_signals(|| {
        let send = move || {
            request.send();
            let _ = done.send(());
        };
        // Without a thread the statement ends by itself, or when the connection is missed.
        if std::thread::Builder::new().spawn(send).is_ok() {
            let _ = finished.recv_timeout(PATIENCE);
        }
    });
}

/// Runs the body with all signals held back: a thread that it starts never takes one, because the server's handlers
/// belong to the main thread.
pub(super) fn without_signals(body: impl FnOnce()) {
    // SAFETY: both sets are filled before they are read; only this thread's mask is changed, and put back.
    unsafe {
        let (mut all, mut before) = (std::mem::zeroed(), std::mem::zeroed());
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        body();
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
    }
}
