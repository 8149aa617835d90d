//! Every wait of this extension: the process latch, a socket and a deadline together. A wait ends early with an
//! ERROR of PostgreSQL when the process is cancelled or told to end, which is how kids are interrupted in any phase.

use std::time::{Duration, Instant};

use pgrx::pg_sys;

/// What ended a wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Woken {
    Latch,
    Socket,
    Timeout,
}

/// Which readiness of a socket to wait for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Ready {
    Read,
    ReadWrite,
}

impl Ready {
    pub fn events(self) -> u32 {
        match self {
            Ready::Read => pg_sys::WL_SOCKET_READABLE,
            Ready::ReadWrite => pg_sys::WL_SOCKET_READABLE | pg_sys::WL_SOCKET_WRITEABLE,
        }
    }
}

fn milliseconds(timeout: Option<Duration>) -> (i64, u32) {
    match timeout {
        // Rounded up, so that a wait of less than a millisecond does not spin.
        Some(t) => (t.as_micros().div_ceil(1000).min(i64::MAX as u128) as i64, pg_sys::WL_TIMEOUT),
        None => (-1, 0),
    }
}

/// Waits for the latch, the socket (if any) or the timeout (if any), then serves interrupts.
pub fn wait(socket: Option<(i32, Ready)>, timeout: Option<Duration>) -> Woken {
    let (millis, timeout_event) = milliseconds(timeout);
    let base = pg_sys::WL_LATCH_SET | pg_sys::WL_EXIT_ON_PM_DEATH | timeout_event;
    // SAFETY: MyLatch is this process's own latch and valid for its life; the socket is open while its owner waits.
    let events = unsafe {
        match socket {
            Some((fd, ready)) => pg_sys::WaitLatchOrSocket(
                pg_sys::MyLatch,
                (base | ready.events()) as i32,
                fd,
                millis as _,
                pg_sys::PG_WAIT_EXTENSION,
            ),
            None => pg_sys::WaitLatch(pg_sys::MyLatch, base as i32, millis as _, pg_sys::PG_WAIT_EXTENSION),
        }
    } as u32;
    if events & pg_sys::WL_LATCH_SET != 0 {
        // SAFETY: as above.
        unsafe { pg_sys::ResetLatch(pg_sys::MyLatch) };
    }
    pgrx::check_for_interrupts!();
    if events & (pg_sys::WL_SOCKET_READABLE | pg_sys::WL_SOCKET_WRITEABLE) != 0 {
        Woken::Socket
    } else if events & pg_sys::WL_LATCH_SET != 0 {
        Woken::Latch
    } else {
        Woken::Timeout
    }
}

/// Waits for the latch or for any of the sockets to become ready; sockets that are not open (negative) are left out.
pub fn wait_any(sockets: &[i32], ready: Ready, timeout: Option<Duration>) -> Woken {
    let (millis, _) = milliseconds(timeout);
    // SAFETY: the set is made, used and freed here; the sockets are open while their owners wait. An ERROR in between
    // frees the set with the memory context (its kernel object is closed by FreeWaitEventSet on the ordinary way out).
    let events = unsafe {
        let set = pg_sys::CreateWaitEventSet(pg_sys::CurrentMemoryContext, sockets.len() as i32 + 2);
        pg_sys::AddWaitEventToSet(set, pg_sys::WL_LATCH_SET, pg_sys::PGINVALID_SOCKET, pg_sys::MyLatch, std::ptr::null_mut());
        pg_sys::AddWaitEventToSet(
            set,
            pg_sys::WL_EXIT_ON_PM_DEATH,
            pg_sys::PGINVALID_SOCKET,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        );
        for fd in sockets.iter().filter(|fd| **fd >= 0) {
            pg_sys::AddWaitEventToSet(set, ready.events(), *fd, std::ptr::null_mut(), std::ptr::null_mut());
        }
        let mut event = pg_sys::WaitEvent::default();
        let n = pg_sys::WaitEventSetWait(set, millis as _, &mut event, 1, pg_sys::PG_WAIT_EXTENSION);
        pg_sys::FreeWaitEventSet(set);
        if n == 0 { 0 } else { event.events }
    };
    if events & pg_sys::WL_LATCH_SET != 0 {
        // SAFETY: MyLatch is this process's own latch.
        unsafe { pg_sys::ResetLatch(pg_sys::MyLatch) };
    }
    pgrx::check_for_interrupts!();
    match events {
        0 => Woken::Timeout,
        e if e & pg_sys::WL_LATCH_SET != 0 => Woken::Latch,
        _ => Woken::Socket,
    }
}

/// Whether the socket is ready now. Leaves the latch alone, so that nobody's wake-up is lost.
pub fn is_ready(socket: i32, ready: Ready) -> bool {
    let events = match ready {
        Ready::Read => libc::POLLIN,
        Ready::ReadWrite => libc::POLLIN | libc::POLLOUT,
    };
    let mut poll = libc::pollfd { fd: socket, events, revents: 0 };
    // SAFETY: one structure of ours, for the length of the call, which does not wait.
    unsafe { libc::poll(&mut poll, 1, 0) > 0 }
}

/// What is left until a deadline; None when it has passed.
pub fn left(deadline: Instant) -> Option<Duration> {
    deadline.checked_duration_since(Instant::now()).filter(|d| !d.is_zero())
}
