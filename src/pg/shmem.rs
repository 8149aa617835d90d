//! Shared memory: the table of `master::slot` under one lock, and the flags that a committing transaction sets without
//! any lock. Only there when the library was preloaded; every user asks [`is_loaded`] first.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use pgrx::lwlock::PgLwLock;
use pgrx::{PGRXSharedMemory, PgAtomic, pg_guard, pg_shmem_init, pg_sys};

use super::worker::set_latch;
use crate::master::slot::Shared;

// SAFETY: plain data of fixed size without pointers; valid in every process.
unsafe impl PGRXSharedMemory for Shared {}

// SAFETY: the name is used for nothing else.
static SHARED: PgLwLock<Shared> = unsafe { PgLwLock::new(c"bucardo") };

/// Somebody who wants to know of captured changes in a database of this server.
struct Watch {
    /// 0: free.
    db: AtomicU32,
    procno: AtomicI32,
    dirty: AtomicBool,
    /// How often something was committed, for whoever wants to know whether anything was since.
    commits: AtomicU64,
}

/// How often a purge has told writers to look which segment they are to use. Each statement reads it, and hardly anybody writes
/// it: it has a cache line of its own.
#[repr(align(64))]
struct Switches(AtomicU64);

const MAX_WATCHES: usize = 128;

/// All who watch.
pub struct Flags {
    /// How many of the first ones were ever taken: a commit looks at no more.
    used: AtomicUsize,
    /// Whether anybody has committed captured changes of any database without waiting for the disk, since the server started.
    hasty: AtomicBool,
    switches: Switches,
    watches: [Watch; MAX_WATCHES],
}

// SAFETY: atomics of fixed size without pointers.
unsafe impl PGRXSharedMemory for Flags {}

// SAFETY: the name is used for nothing else.
static FLAGS: PgAtomic<Flags> = unsafe { PgAtomic::new(c"bucardo flags") };

static LOADED: AtomicBool = AtomicBool::new(false);

/// Whether the library was preloaded and shared memory is there.
pub fn is_loaded() -> bool {
    LOADED.load(Ordering::Relaxed)
}

/// Whether the server is loading its preloaded libraries right now.
pub fn is_preloading() -> bool {
    // SAFETY: a flag of this process.
    unsafe { pg_sys::process_shared_preload_libraries_in_progress }
}

/// Whether pg_upgrade has started this server: what it moves must not change under it.
pub fn is_upgrading() -> bool {
    // SAFETY: a flag of the postmaster, set before libraries are loaded.
    unsafe { pg_sys::IsBinaryUpgrade }
}

/// Asks for shared memory. Only while the server loads its preloaded libraries.
pub fn init() {
    pg_shmem_init!(SHARED = Shared::new());
    flags_init();
    #[cfg(feature = "fault_points")]
    super::fault::init();
    LOADED.store(true, Ordering::Relaxed);
}

fn flags_init() {
    pg_shmem_init!(
        FLAGS = Flags {
            used: AtomicUsize::new(0),
            hasty: AtomicBool::new(false),
            switches: Switches(AtomicU64::new(0)),
            watches: [const {
                Watch {
                    db: AtomicU32::new(0),
                    procno: AtomicI32::new(-1),
                    dirty: AtomicBool::new(false),
                    commits: AtomicU64::new(0),
                }
            }; MAX_WATCHES],
        }
    );
}

/// Changes the shared table under its lock. The closure only copies. Not preloaded, there is an empty one for the moment: who
/// forgets to ask must not raise an error while a transaction commits, which would end the whole server.
pub fn with<T>(body: impl FnOnce(&mut Shared) -> T) -> T {
    if !is_loaded() {
        return with_none(body);
    }
    body(&mut SHARED.exclusive())
}

/// Made on the stack, which has no room for it in every function that asks.
#[cold]
#[inline(never)]
fn with_none<T>(body: impl FnOnce(&mut Shared) -> T) -> T {
    body(&mut Box::new(Shared::new()))
}

/// Reads the shared table under its lock. The closure only copies.
pub fn read<T>(body: impl FnOnce(&Shared) -> T) -> T {
    if !is_loaded() {
        return with_none(|shared| body(shared));
    }
    body(&SHARED.share())
}

/// The generation of a database's catalog, which every committed change of it changes.
pub fn generation(db: u32) -> u64 {
    with(|s| s.master(db).map_or(0, |m| m.generation))
}

/// Has everybody read the catalog again.
pub fn bump_generation(db: u32) {
    with(|s| s.master(db).map(|m| m.generation += 1));
}

/// How often something was committed, by the place in the watch list. A snapshot that is taken after this was read sees all that:
/// a commit is visible before it is told of.
pub fn commits(place: usize) -> u64 {
    FLAGS.get().watches.get(place).map_or(0, |watch| watch.commits.load(Ordering::Acquire))
}

/// A place in the watch list, given up when dropped.
pub struct Watching(usize);

/// Begins to watch captured changes in a database. None: the list is full.
pub fn watch(db: u32, procno: i32) -> Option<Watching> {
    let flags = FLAGS.get();
    let at =
        flags.watches.iter().position(|w| w.db.compare_exchange(0, u32::MAX, Ordering::AcqRel, Ordering::Relaxed).is_ok())?;
    flags.used.fetch_max(at + 1, Ordering::AcqRel);
    let watch = &flags.watches[at];
    watch.procno.store(procno, Ordering::Release);
    // Dirty from the start: what was captured before is looked for once.
    watch.dirty.store(true, Ordering::Release);
    watch.db.store(db, Ordering::Release);
    Some(Watching(at))
}

impl Watching {
    /// Whether the next [`Watching::take`] will say so.
    pub fn is_dirty(&self) -> bool {
        FLAGS.get().watches[self.0].dirty.load(Ordering::Acquire)
    }

    /// Which place it is.
    pub fn place(&self) -> usize {
        self.0
    }

    /// Whether something was committed since the last call.
    pub fn take(&self) -> bool {
        FLAGS.get().watches[self.0].dirty.swap(false, Ordering::AcqRel)
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let watch = &FLAGS.get().watches[self.0];
        watch.procno.store(-1, Ordering::Release);
        watch.db.store(0, Ordering::Release);
    }
}

/// Frees the places of a process that ended without giving them up.
pub fn forget_watches(procno: i32) {
    for watch in FLAGS.get().watches.iter().filter(|w| w.procno.load(Ordering::Acquire) == procno) {
        watch.procno.store(-1, Ordering::Release);
        watch.db.store(0, Ordering::Release);
    }
}

/// Tells all who watch the database that captured changes were committed. Takes no lock, cannot fail.
pub fn committed(db: u32) {
    let flags = FLAGS.get();
    let used = flags.used.load(Ordering::Acquire);
    for watch in flags.watches.iter().take(used).filter(|w| w.db.load(Ordering::Acquire) == db) {
        watch.commits.fetch_add(1, Ordering::AcqRel);
        if !watch.dirty.swap(true, Ordering::AcqRel) {
            set_latch(watch.procno.load(Ordering::Acquire));
        }
    }
}

/// A transaction with captured changes is about to commit. Who sees what it has written can see this as well.
pub fn committing() {
    // SAFETY: a setting of this process.
    if unsafe { pg_sys::synchronous_commit } == pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_OFF as i32 {
        let hasty = &FLAGS.get().hasty;
        // Nobody takes it back, and all who commit read what stands beside it.
        if !hasty.load(Ordering::Acquire) {
            hasty.store(true, Ordering::Release);
        }
    }
}

/// Whether all captured changes that a transaction sees are on this server's disk: everybody waits for that before others see
/// what he has committed. Asked after the snapshot was taken. False where it is not known.
pub fn all_wait() -> bool {
    is_loaded() && !FLAGS.get().hasty.load(Ordering::Acquire)
}

/// How often writers of captured changes were told to look which segment they are to use. None: nobody counts.
pub fn switches() -> Option<u64> {
    is_loaded().then(|| FLAGS.get().switches.0.load(Ordering::Acquire))
}

/// Writers may have been sent to another segment.
pub fn switched() {
    if is_loaded() {
        FLAGS.get().switches.0.fetch_add(1, Ordering::AcqRel);
    }
}

/// The database that this process is connected to; 0 for none.
pub fn my_database() -> u32 {
    // SAFETY: set at process start.
    unsafe { pg_sys::MyDatabaseId }.to_u32()
}

/// Now, in microseconds of PostgreSQL's clock.
pub fn now() -> i64 {
    // SAFETY: reads the clock.
    unsafe { pg_sys::GetCurrentTimestamp() }
}
