//! What a kid knows of a sync: its catalog, read once for as long as that does not change, what its tables look like on each
//! member, and what the last run has seen. It outlives runs, and must never outlive a change of the catalog.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use super::ahead::Habit;
use super::apply::Receiver;
use super::bits;
use super::deaf;
use super::failure::Failure;
use super::gather::Asker;
use super::members::{Pool, Session};
use super::mend;
use super::report::Progress;
use super::sequence;
use super::shape::{self, Shapes};
use crate::catalog::sync::{Role, Sync};
use crate::error::{Error, Result, SqlState};
use crate::libpq::Rows;
use crate::pg::shmem;

/// What a kid keeps of a sync between runs.
pub struct Plan {
    pub sync: Sync,
    pub control: String,
    /// The catalog's generation in which it was read.
    pub generation: u64,
    pub(super) shapes: HashMap<usize, Rc<Shapes>>,
    /// What the plan before this one knew of the same tables: it counts where it is found unchanged.
    before: HashMap<usize, Rc<Shapes>>,
    /// When the server started on which each source was found to capture.
    mended: HashMap<usize, String>,
    /// The members on which there is nothing that could capture; as seen with their tables.
    pub(super) deaf: u64,
    pub(super) sequence_query: Option<String>,
    /// The sequences' state that each receiver was given last.
    sequences: HashMap<usize, String>,
    /// The connection by which each member was recognised last.
    pub(super) recognised: HashMap<usize, u64>,
    /// What its runs have brought.
    pub(super) habit: Habit,
    /// The last run, if it was this kid's and all went well; and whether the present one follows right after it. If not, a
    /// transaction of a run that died may be open still, and have its COMMIT under way.
    pub clean_run: Option<i64>,
    pub follows: bool,
    /// Whether the present run waits for locks however long they are held, unless its kid is needed: no other member waits for it.
    pub patient: bool,
    /// Where the commits are counted while which it goes on.
    pub counted_at: Option<usize>,
    /// The relations whose rows were too wide to be held while several sources are read at the same time.
    pub(super) too_wide: HashSet<i32>,
    /// How many plans the present run has given up, and the captured tables (by their oids) that are known not to be of the
    /// sync.
    pub(super) renewals: u32,
    pub(super) strangers: HashSet<u32>,
}

impl Plan {
    pub fn new(sync: Sync, control: String, generation: u64) -> Self {
        let sequence_query = sequence::query(&sync);
        Self {
            sync,
            control,
            generation,
            shapes: HashMap::new(),
            before: HashMap::new(),
            mended: HashMap::new(),
            deaf: 0,
            sequence_query,
            sequences: HashMap::new(),
            recognised: HashMap::new(),
            habit: Habit::default(),
            clean_run: None,
            follows: false,
            patient: false,
            counted_at: None,
            too_wide: HashSet::new(),
            renewals: 0,
            strangers: HashSet::new(),
        }
    }

    /// Takes over what another plan knows of the tables, if it is of the same tables of the same members.
    pub fn succeed(&mut self, old: Plan) {
        let reached =
            |plan: &Plan| plan.sync.members.iter().map(|m| (m.db.name.clone(), m.db.target.info.clone())).collect::<Vec<_>>();
        if old.sync.relations == self.sync.relations && reached(&old) == reached(self) {
            self.before = old.shapes;
            self.too_wide = old.too_wide;
        }
    }

    /// The tables are looked at again.
    pub(super) fn forget_shapes(&mut self) {
        self.shapes.clear();
        self.before.clear();
    }

    /// The first source, by its place among the members.
    pub fn source(&self) -> Result<usize> {
        self.sync.first_source().ok_or_else(|| Error::new(SqlState::WRONG_STATE, "the sync has no source"))
    }

    /// What the transactions of a sync's runs hold on every member that receives.
    pub fn guard(&self) -> String {
        format!("bucardo run {} {}", self.control, self.sync.capture_name())
    }

    /// What deltas are marked with that a run writes for other syncs: through which sync they came, and from whom.
    pub fn origin(&self, source: usize) -> String {
        format!("{}:{}:{}", self.control, self.sync.capture_name(), self.sync.members[source].db.name)
    }

    /// Whether it goes on waiting for a lock: as long as no other sync waits for the kid.
    pub fn waits_on(&self, error: &Error) -> bool {
        let short = || shmem::read(|s| s.masters.iter().any(|m| m.db == shmem::my_database() && m.short));
        self.patient && error.code == SqlState::LOCK_NOT_AVAILABLE && !short()
    }

    /// The members that capture what they get because `makedelta` says so, by relation, where anybody could learn of it.
    pub fn noted(&self) -> HashMap<i32, u64> {
        let hear = |(relation, bits): (i32, u64)| (relation, bits & !self.deaf);
        bits::noted(&self.sync).into_iter().map(hear).filter(|(_, bits)| *bits != 0).collect()
    }

    /// Whether a receiver would capture some of these relations, but has nothing that could.
    pub fn is_deaf(&self, index: usize, relations: impl IntoIterator<Item = i32>) -> bool {
        let all = bits::noted(&self.sync);
        self.deaf & (1 << index) != 0
            && relations.into_iter().any(|relation| all.get(&relation).is_some_and(|bits| bits & (1 << index) != 0))
    }

    fn shapes(&mut self, index: usize, session: &mut Session) -> Result<Rc<Shapes>> {
        if let Some(known) = self.shapes.get(&index) {
            return Ok(known.clone());
        }
        // Newer servers lock a table whose expressions they tell. A session that has failed here is not kept.
        session.conn.query(&format!("SET lock_timeout = '{}'", session.patience))?;
        let seen = match self.before.remove(&index) {
            Some(known) if shape::is_unchanged(&mut session.conn, &self.sync, &known)? => known,
            _ => Rc::new(shape::look(&mut session.conn, &self.sync)?),
        };
        let deaf = deaf::look(&mut session.conn)?;
        self.deaf = self.deaf & !(1 << index) | u64::from(deaf) << index;
        session.conn.query("SET lock_timeout = 0")?;
        self.shapes.insert(index, seen.clone());
        Ok(seen)
    }

    /// The same for a source, which must have every table, and capture it. Another server in its place may not have got that.
    pub fn source_shapes(&mut self, index: usize, session: &mut Session) -> Result<Rc<Shapes>> {
        if let Some(known) = self.shapes.remove(&index) {
            if self.mended.get(&index) == Some(&session.who.started) {
                self.shapes.insert(index, known.clone());
                return Ok(known);
            }
            self.before.insert(index, known);
        }
        let seen = self.shapes(index, session)?;
        let asker = Asker { control: &self.control, sync: &self.sync, source: index };
        let checked = shape::check_complete(&self.sync, &seen).and_then(|()| mend::mend(&mut session.conn, &asker, &seen));
        // What was not found whole is looked at again.
        checked.inspect_err(|_| drop(self.shapes.remove(&index)))?;
        self.mended.insert(index, session.who.started.clone());
        Ok(seen)
    }

    /// Connects to the members that take part; those that cannot be reached are left out and reported.
    pub fn open(&mut self, pool: &mut Pool, todo: u64, progress: &Progress) -> (Vec<Receiver>, Vec<Failure>) {
        let (mut opened, mut failures) = (Vec::new(), Vec::new());
        for index in (0..self.sync.members.len()).filter(|i| todo & (1 << i) != 0) {
            progress.member(&self.sync.members[index].db.name);
            match self.open_one(pool, index) {
                Ok(receiver) => opened.push(receiver),
                Err(failure) => failures.push(failure),
            }
        }
        (opened, failures)
    }

    fn open_one(&mut self, pool: &mut Pool, index: usize) -> Result<Receiver, Failure> {
        let mut session = pool.take(&self.sync.members[index].db).map_err(|error| Failure { index, error, fresh: true })?;
        let shapes = match self.sync.members[index].role {
            Role::Source => self.source_shapes(index, &mut session),
            _ => self.shapes(index, &mut session),
        };
        match shapes {
            Ok(shapes) => Ok(Receiver::new(index, session, shapes)),
            Err(error) => Err(Failure { index, error, fresh: session.fresh }),
        }
    }

    /// The sequences' state, if any of the receivers was given another one last.
    pub fn moved_sequences(&self, rows: Option<&Rows>, receivers: &[Receiver]) -> Option<String> {
        let state = sequence::fingerprint(rows?);
        receivers.iter().any(|r| self.sequences.get(&r.index) != Some(&state)).then_some(state)
    }

    /// Keeps which state a receiver was given.
    pub fn gave_sequences(&mut self, receiver: &Receiver, state: &str) {
        self.sequences.insert(receiver.index, state.to_string());
    }
}
