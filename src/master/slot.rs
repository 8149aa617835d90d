//! The shared table by which SQL functions, master and kids speak: who runs, what was asked, what came out.
//! Plain data of fixed size. Whoever holds its lock copies in or out and does nothing else; the lock is never held
//! over SPI, libpq, logging or a wait.

use super::trouble::{Said, WARNING};
use crate::error::Error;

pub const MAX_MASTERS: usize = 32;
pub const MAX_SYNCS: usize = 512;
pub const MAX_KIDS: usize = 64;
/// How many receivers a sync may have: their failures travel as a bit mask.
pub const MAX_MEMBERS: usize = 64;
const MAX_WAITERS: usize = 8;
const MAX_UNDO: usize = 64;

/// The longest beginning of a text that fits into so many bytes, cut at a character.
pub fn clip(text: &str, bytes: usize) -> &str {
    let end = (0..=text.len().min(bytes)).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
    &text[..end]
}

/// A text of at most N bytes; longer ones are cut at a character.
#[derive(Clone, Copy)]
pub struct Text<const N: usize> {
    length: u16,
    bytes: [u8; N],
}

impl<const N: usize> Text<N> {
    pub const EMPTY: Self = Self { length: 0, bytes: [0; N] };

    pub fn new(text: &str) -> Self {
        let text = clip(text, N);
        let mut bytes = [0; N];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Self { length: text.len() as u16, bytes }
    }

    pub fn get(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.length)]).unwrap_or("")
    }

    pub fn is_empty(&self) -> bool {
        self.length == 0
    }
}

/// The master of one control database.
#[derive(Clone, Copy)]
pub struct MasterSlot {
    /// The database's oid; 0: the slot is free.
    pub db: u32,
    /// Whether it should run: set by CREATE EXTENSION, `start` and the scout, cleared by `stop` and when the extension is gone.
    pub wanted: bool,
    /// How often it was asked for: a master that finds in the catalog that it is stopped may have looked before the last time.
    pub asked: u64,
    /// The process, 0 when it does not run; and the number of its latch.
    pub pid: i32,
    pub procno: i32,
    /// Changed by every committed change of the catalog.
    pub generation: u64,
    /// The number of the last run that has begun.
    pub last_run: i64,
    /// `stop` asks the master to end.
    pub stop: bool,
    /// The master has ended because it was asked to: that is no failure to wait for.
    pub ended_as_asked: bool,
    /// Wanted only to take capture off the members when the extension goes, although it is stopped.
    pub for_drop: bool,
    /// The generation of the catalog that it has read since it started; 0: none.
    pub loaded: u64,
    /// Whether runs are due for more than a moment and have no kid: then no kid waits for long.
    pub short: bool,
    /// How many open transactions have installed capture and found no undo slot; whether one has ended since: then all members
    /// are asked what they capture.
    pub unnoted: u32,
    pub unswept: bool,
    /// No kid may be started until this process (a DROP EXTENSION or DROP DATABASE) has ended its transaction.
    pub held_by: i32,
    pub ping_asked: u64,
    pub ping_answered: u64,
    /// Why it could not be started, as when no worker slot is free; or what the last one has ended by, and the next one comes.
    pub trouble: Text<300>,
    pub fails: bool,
}

impl MasterSlot {
    const FREE: Self = Self {
        db: 0,
        wanted: false,
        asked: 0,
        pid: 0,
        procno: -1,
        generation: 0,
        last_run: 0,
        stop: false,
        ended_as_asked: false,
        for_drop: false,
        loaded: 0,
        short: false,
        unnoted: 0,
        unswept: false,
        held_by: 0,
        ping_asked: 0,
        ping_answered: 0,
        trouble: Text::EMPTY,
        fails: false,
    };
}

/// What a finished run was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    None,
    Good,
    Empty,
    Bad,
}

/// What `bucardo.status` says of a sync while the master runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shown {
    /// Nothing special: the last run's outcome counts.
    Last,
    Running,
    Bad,
    Stalled,
    /// Work waits because no kid could be started.
    Waiting,
}

/// One sync of one control database.
#[derive(Clone, Copy)]
pub struct SyncSlot {
    /// The control database's oid; 0: the slot is free.
    pub db: u32,
    pub sync: i32,
    /// The last ticket given to a kick, the last one that a started run covers, the last one that a finished run covers.
    pub kicked: u64,
    pub begun: u64,
    pub done: u64,
    /// Whether the last kicks were answered with why the sync rests, as the catalog was then.
    pub resting: bool,
    pub outcome: Outcome,
    pub sqlstate: [u8; 5],
    pub message: Text<600>,
    pub hint: Text<300>,
    /// What a kick should warn of although the run went well: a member that is down.
    pub warning: Text<WARNING>,
    pub shown: Shown,
    /// The trouble that `shown` is about, and when it is tried again (microseconds of PostgreSQL's clock; 0: not).
    pub error: Text<600>,
    pub next_try: i64,
    /// What makes the decisions of conflicts doubtful.
    pub doubt: Text<300>,
    /// The latches of waiting kicks; -1: free.
    pub waiters: [i32; MAX_WAITERS],
    /// The number of its last run that has begun.
    pub last_run: i64,
    /// It was kicked by the transaction that has added it: a master that is just reading an older catalog must not forget that.
    pub fresh: bool,
}

impl SyncSlot {
    const FREE: Self = Self {
        db: 0,
        sync: 0,
        kicked: 0,
        begun: 0,
        done: 0,
        resting: false,
        outcome: Outcome::None,
        sqlstate: *b"00000",
        message: Text::EMPTY,
        hint: Text::EMPTY,
        warning: Text::EMPTY,
        shown: Shown::Last,
        error: Text::EMPTY,
        next_try: 0,
        doubt: Text::EMPTY,
        waiters: [-1; MAX_WAITERS],
        last_run: 0,
        fresh: false,
    };
}

/// The life of a kid's slot: Free → Starting → Idle ⇄ Assigned/Busy → Reported → Idle … → Free.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KidState {
    Free,
    Starting,
    Idle,
    /// The master gave it a run that it has not begun.
    Assigned,
    Busy,
    /// The run is over and the master has not read its report.
    Reported,
}

/// Where a run stands, in the words of `bucardo.activity`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    Idle,
    Connect,
    Gather,
    Apply,
    Commit,
    Mark,
}

impl Phase {
    pub fn name(self) -> &'static str {
        match self {
            Phase::Idle => "idle",
            Phase::Connect => "connect",
            Phase::Gather => "gather",
            Phase::Apply => "apply",
            Phase::Commit => "commit",
            Phase::Mark => "mark",
        }
    }
}

/// How a run ended, from kid to master. Members are bits, in the order of the sync's members.
#[derive(Clone, Copy)]
pub struct Report {
    pub outcome: Outcome,
    /// Members that could not be reached.
    pub down: u64,
    /// Members that refused the run.
    pub refused: u64,
    /// The whole run was in vain (the source is away, the sync is wrong), not only one member's part.
    pub whole: bool,
    /// Nothing was pending.
    pub idle: bool,
    /// A conflict strategy asked for the sync to be paused.
    pub pause: bool,
    /// The commits of its source, as they are counted, that it has seen, where it was told to count.
    pub commits: Option<u64>,
    /// The run that its kid could not record, because it was ended; 0: none. Since when it ran.
    pub lost: i64,
    pub since: i64,
    pub sqlstate: [u8; 5],
    pub message: Text<600>,
    pub hint: Text<300>,
    /// What each of the members in `down` and `refused` said.
    pub said: Said,
}

impl Report {
    pub const NONE: Self = Self {
        outcome: Outcome::None,
        down: 0,
        refused: 0,
        whole: false,
        idle: false,
        pause: false,
        commits: None,
        lost: 0,
        since: 0,
        sqlstate: *b"00000",
        message: Text::EMPTY,
        hint: Text::EMPTY,
        said: Said::NOTHING,
    };

    /// Of a run that was in vain as a whole.
    pub fn bad(error: &Error) -> Self {
        Self {
            outcome: Outcome::Bad,
            whole: true,
            sqlstate: error.code.0,
            message: Text::new(&error.to_string()),
            hint: Text::new(error.hint.as_deref().unwrap_or_default()),
            ..Self::NONE
        }
    }
}

/// What a kid is told at its start. Until it is up, its master may have ended, and another one may have taken the slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    pub slot: usize,
    /// The pid of the master.
    pub master: i32,
}

impl Place {
    /// As a worker's argument.
    pub fn pack(self) -> i32 {
        self.master * MAX_KIDS as i32 + self.slot as i32
    }

    pub fn unpack(argument: usize) -> Self {
        Self { slot: argument % MAX_KIDS, master: (argument / MAX_KIDS) as i32 }
    }
}

/// One kid.
#[derive(Clone, Copy)]
pub struct KidSlot {
    pub db: u32,
    /// The pid of its master.
    pub master: i32,
    pub state: KidState,
    pub pid: i32,
    pub procno: i32,
    /// The run it was given: the sync, and which members receive.
    pub sync: i32,
    pub members: u64,
    /// Whether it is the run of the sync, not only of a member that was in trouble.
    pub main: bool,
    /// Whether the kid ends after this run, and whether it closes its connections.
    pub last: bool,
    pub close: bool,
    /// Where the commits are counted while which the run may go on; None: it ends.
    pub counted_at: Option<usize>,
    pub report: Report,
    // What bucardo.activity shows.
    pub run: i64,
    pub phase: Phase,
    pub member: Text<64>,
    pub relation: Text<130>,
    pub rows_done: u64,
    pub rows_total: u64,
    pub since: i64,
}

impl KidSlot {
    pub const FREE: Self = Self {
        db: 0,
        master: 0,
        state: KidState::Free,
        pid: 0,
        procno: -1,
        sync: 0,
        members: 0,
        main: true,
        last: false,
        close: false,
        counted_at: None,
        report: Report::NONE,
        run: 0,
        phase: Phase::Idle,
        member: Text::EMPTY,
        relation: Text::EMPTY,
        rows_done: 0,
        rows_total: 0,
        since: 0,
    };
}

/// Capture that a transaction installed on a member before it committed. Should it roll back (or its process vanish),
/// the master takes the capture away again.
#[derive(Clone, Copy)]
pub struct UndoSlot {
    /// The control database's oid; 0: the slot is free.
    pub db: u32,
    /// The process whose transaction it was; 0: that transaction rolled back.
    pub owner: i32,
    pub member: Text<64>,
    pub conninfo: Text<1000>,
    /// The name of the capture, which holds the sync's number too.
    pub sync: Text<96>,
}

/// Everything.
pub struct Shared {
    pub launcher: i32,
    /// The control databases were looked for, and found or not.
    pub scouted: bool,
    /// No worker slot was free to look for control databases: no master can be started either.
    pub crowded: bool,
    /// The server is shutting down, and may be waiting for the connections of our workers to end.
    pub stopping: bool,
    pub masters: [MasterSlot; MAX_MASTERS],
    pub syncs: [SyncSlot; MAX_SYNCS],
    pub kids: [KidSlot; MAX_KIDS],
    pub undo: [UndoSlot; MAX_UNDO],
}

impl Shared {
    pub const fn new() -> Self {
        Self {
            launcher: -1,
            scouted: false,
            crowded: false,
            stopping: false,
            masters: [MasterSlot::FREE; MAX_MASTERS],
            syncs: [SyncSlot::FREE; MAX_SYNCS],
            kids: [KidSlot::FREE; MAX_KIDS],
            undo: [UndoSlot { db: 0, owner: 0, member: Text::EMPTY, conninfo: Text::EMPTY, sync: Text::EMPTY }; MAX_UNDO],
        }
    }

    /// The master's slot of a database, if it has one.
    pub fn master(&mut self, db: u32) -> Option<&mut MasterSlot> {
        self.masters.iter_mut().find(|m| m.db == db)
    }

    /// The master's slot of a database, made when there is none. None: the table is full.
    pub fn master_or_new(&mut self, db: u32) -> Option<&mut MasterSlot> {
        let at = self.masters.iter().position(|m| m.db == db).or_else(|| self.masters.iter().position(|m| m.db == 0))?;
        let slot = &mut self.masters[at];
        if slot.db == 0 {
            *slot = MasterSlot { db, generation: slot.generation + 1, ..MasterSlot::FREE };
        }
        Some(slot)
    }

    /// The slot of a sync, made when there is none. None: the table is full.
    pub fn sync(&mut self, db: u32, sync: i32) -> Option<&mut SyncSlot> {
        let found = self.syncs.iter().position(|s| s.db == db && s.sync == sync);
        let at = found.or_else(|| self.syncs.iter().position(|s| s.db == 0))?;
        let slot = &mut self.syncs[at];
        if slot.db == 0 {
            *slot = SyncSlot { db, sync, ..SyncSlot::FREE };
        }
        Some(slot)
    }

    /// Whether this master is there.
    pub fn is_master(&self, db: u32, pid: i32) -> bool {
        self.masters.iter().any(|m| m.db == db && m.pid == pid)
    }

    /// Frees the slots of kids that are gone, or not up yet, and whose master is gone: nobody else would.
    pub fn forget_kids(&mut self) {
        for at in 0..self.kids.len() {
            let kid = &self.kids[at];
            if kid.state != KidState::Free && kid.pid == 0 && !self.is_master(kid.db, kid.master) {
                self.kids[at] = KidSlot::FREE;
            }
        }
    }

    /// Frees the slots of syncs of a database that are not in `keep`; a fresh one the next time.
    pub fn keep_syncs(&mut self, db: u32, keep: &[i32]) {
        for slot in self.syncs.iter_mut().filter(|s| s.db == db) {
            if !std::mem::take(&mut slot.fresh) && !keep.contains(&slot.sync) {
                *slot = SyncSlot::FREE;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{KidSlot, KidState, MAX_KIDS, MasterSlot, Place, Shared, Text};

    #[test]
    fn a_text_is_cut_at_a_character() {
        assert_eq!(Text::<4>::new("aä€").get(), "aä");
        assert_eq!(Text::<4>::new("abc").get(), "abc");
        assert!(Text::<4>::new("").is_empty());
    }

    #[test]
    fn a_kid_finds_its_place() {
        for place in [Place { slot: 0, master: 1 }, Place { slot: MAX_KIDS - 1, master: 4_194_304 }] {
            assert_eq!(Place::unpack(place.pack() as usize), place);
        }
    }

    #[test]
    fn slots_are_found_again_and_freed() {
        // The table is larger than a test thread's stack.
        let body = || {
            let mut shared = Box::new(Shared::new());
            shared.masters[0] = MasterSlot { db: 5, pid: 77, ..MasterSlot::FREE };
            for (at, (pid, master)) in [(0, 77), (0, 66), (99, 66)].into_iter().enumerate() {
                shared.kids[at] = KidSlot { db: 5, master, pid, state: KidState::Reported, ..KidSlot::FREE };
            }
            shared.forget_kids();
            assert_eq!([0, 1, 2].map(|at| shared.kids[at].state == KidState::Free), [false, true, false]);
            shared.sync(5, 1).unwrap().kicked = 7;
            assert_eq!(shared.sync(5, 1).unwrap().kicked, 7);
            assert_eq!(shared.sync(6, 1).unwrap().kicked, 0);
            shared.keep_syncs(5, &[]);
            assert_eq!(shared.sync(5, 1).unwrap().kicked, 0);
            *shared.sync(5, 1).unwrap() = super::SyncSlot { kicked: 7, fresh: true, ..*shared.sync(5, 1).unwrap() };
            shared.keep_syncs(5, &[]);
            assert_eq!(shared.sync(5, 1).unwrap().kicked, 7);
            shared.keep_syncs(5, &[]);
            assert_eq!(shared.sync(5, 1).unwrap().kicked, 0);
        };
        std::thread::Builder::new().stack_size(64 << 20).spawn(body).unwrap().join().unwrap();
    }
}
