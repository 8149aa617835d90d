//! The shared state of the fault points; test builds only.

use std::sync::atomic::{AtomicI32, AtomicI64, Ordering};

use pgrx::{PGRXSharedMemory, PgAtomic, pg_guard, pg_shmem_init, pg_sys};

const MAX: usize = 32;
const CLOCKS: usize = 256;

#[derive(Clone, Copy)]
pub enum Action {
    Error,
    Kill,
    Panic,
    Wait,
}

struct Point {
    action: AtomicI32,
    times: AtomicI32,
    hits: AtomicI64,
}

/// The points, and the shift of each clock.
pub struct Points([Point; MAX], [AtomicI64; CLOCKS]);

// SAFETY: atomics of fixed size without pointers.
unsafe impl PGRXSharedMemory for Points {}

// SAFETY: the name is used for nothing else.
static POINTS: PgAtomic<Points> = unsafe { PgAtomic::new(c"bucardo fault points") };

pub fn init() {
    pg_shmem_init!(
        POINTS = Points(
            [const { Point { action: AtomicI32::new(0), times: AtomicI32::new(0), hits: AtomicI64::new(0) } }; MAX],
            [const { AtomicI64::new(0) }; CLOCKS]
        )
    );
}

/// Counts the passing, and what should happen at it.
pub fn pass(at: usize) -> Option<Action> {
    let point = &POINTS.get().0[at];
    point.hits.fetch_add(1, Ordering::Relaxed);
    let taken = point.times.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n > 0).then(|| n - 1));
    taken.ok().and_then(|_| match point.action.load(Ordering::Acquire) {
        1 => Some(Action::Error),
        2 => Some(Action::Kill),
        3 => Some(Action::Panic),
        4 => Some(Action::Wait),
        _ => None,
    })
}

pub fn set(at: usize, action: Action, times: i32) {
    let point = &POINTS.get().0[at];
    let number = match action {
        Action::Error => 1,
        Action::Kill => 2,
        Action::Panic => 3,
        Action::Wait => 4,
    };
    point.action.store(number, Ordering::Release);
    point.times.store(times, Ordering::Release);
}

/// Whether the point still has something set; a waiting process waits so long.
pub fn is_set(at: usize) -> bool {
    POINTS.get().0[at].action.load(Ordering::Acquire) != 0
}

/// Whether what was set has happened as often as it should.
pub fn is_taken(at: usize) -> bool {
    POINTS.get().0[at].times.load(Ordering::Acquire) == 0
}

pub fn clear() {
    for point in &POINTS.get().0 {
        point.times.store(0, Ordering::Release);
        point.action.store(0, Ordering::Release);
    }
}

/// By how much a clock is shifted, in microseconds.
pub fn clock(at: usize) -> i64 {
    POINTS.get().1.get(at).map_or(0, |shift| shift.load(Ordering::Acquire))
}

pub fn set_clock(at: usize, shift: i64) {
    if let Some(clock) = POINTS.get().1.get(at) {
        clock.store(shift, Ordering::Release);
    }
}

pub fn hits(at: usize) -> i64 {
    POINTS.get().0[at].hits.load(Ordering::Relaxed)
}
