//! The first steps of a run between sources: a transaction with a snapshot on every member at the same time, how far each
//! has been served by each, and what each source has for the others. Reads only.

use std::collections::{HashMap, HashSet};

use super::carry::Carried;
use super::hearsay::Hearsay;
use super::later::Unsent;
use super::offer::{self, Offer, Settled, Truncated};
use super::{Broken, Mesh};
use crate::catalog::sync::{Relation, Role, Sync};
use crate::error::{Error, Result, SqlState};
use crate::kid::apply::{self, Receiver};
use crate::kid::bits;
use crate::kid::failure::Failure;
use crate::kid::gather::{self, TableChanges, strings, window};
use crate::kid::members::{self, Pool};
use crate::kid::plan::Plan;
use crate::kid::renew;
use crate::kid::replaced;
use crate::kid::report::Progress;
use crate::kid::retry::Care;
use crate::kid::shape::{Shapes, Table};
use crate::kid::{flush, who};
use crate::libpq::Rows;

/// A member's snapshot, who it is, whether it keeps the times of commits; then come [`flush::COLUMNS`], and what time it is.
const HERE: &str = "SELECT pg_catalog.pg_current_snapshot(), (SELECT s.system_identifier FROM pg_catalog.pg_control_system() s) || '/' || \
    pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8), \
    pg_catalog.current_setting('track_commit_timestamp')::pg_catalog.bool";
const TRACK: &str =
    "SELECT member, served, copy, identity FROM bucardo.capture_track WHERE control = $1 AND sync = $2 AND source = $3";
/// To be asked after [`TRACK`]. A row without a source says that one of the two tables has got another file since the snapshot
/// was taken: what is not found there may yet be so.
const PROGRESS: &str = "SELECT source, served, identity, run FROM bucardo.capture_progress WHERE control = $1 AND sync = $2 AND member = $3 \
    UNION ALL SELECT NULL, NULL, NULL, NULL FROM pg_catalog.pg_class c \
    WHERE c.oid IN ('bucardo.capture_track'::pg_catalog.regclass, 'bucardo.capture_progress'::pg_catalog.regclass) \
    AND c.relfilenode <> pg_catalog.pg_relation_filenode(c.oid)";
/// The source's own changes that are settled, and then those of other sources, with their names and what these were, that it has
/// got by way of a third one.
const SETTLED: &str = "SELECT relid, snapshot, keys, pg_catalog.to_json(open), NULL, NULL, NULL FROM bucardo.capture_settled \
    WHERE control = $1 AND sync = $2 UNION ALL SELECT relid, served, keys, NULL, source, identity, older FROM bucardo.capture_heard \
    WHERE control = $1 AND sync = $2";
const GATHER: &str = "SELECT g.relid, g.keys, g.segments, g.batched, g.changes, g.existed, g.truncated, g.whole, g.latest \
    FROM bucardo.capture_gather($1, $2, $3::pg_catalog.int8, $4::pg_catalog.int8[], $5::pg_catalog.bool) g";

/// What a member answered to [`Mesh::begin`].
pub(super) struct Begun {
    here: Rows,
    track: Option<Rows>,
    pub progress: Option<Rows>,
    pub settled: Option<Rows>,
    sequences: Option<Rows>,
}

impl Begun {
    /// The timeline on which a source was found to have lost commits, if it was.
    pub fn rewound(&self) -> Option<&str> {
        let rows = self.track.as_ref()?;
        (0..rows.len()).find_map(|row| rows.get(row, 3))
    }
}

impl<'a> Mesh<'a> {
    /// Connects to the members; those that cannot be reached are left out and reported.
    pub(super) fn open(plan: &'a mut Plan, pool: &mut Pool, todo: u64, care: Care, progress: &Progress) -> (Self, Vec<Failure>) {
        let (mut opened, mut failures) = plan.open(pool, todo, progress);
        // All are asked as receivers: an error is one of theirs.
        let _no_other = renew::recognise_all(plan, None, &mut opened, &mut failures);
        // Between sources texts are compared and recorded, not only passed on.
        let encoding = match plan.sync.sources().count() {
            1 => members::common_encoding(opened.iter().map(|r| &r.session)),
            _ => "UTF8",
        };
        let mut offers = Vec::new();
        for member in &mut opened {
            member.attempt(|conn| members::speak(conn, encoding));
            offers.push((plan.sync.members[member.index].role == Role::Source).then(Offer::default));
        }
        progress.doubt_clocks(&plan.sync, &doubt(plan, &opened));
        let (run, attempt) = (progress.run, progress.attempts);
        let mesh = Self {
            plan,
            care,
            run,
            attempt,
            members: opened,
            offers,
            copied: Vec::new(),
            carried: Carried::default(),
            hearsay: Hearsay::default(),
            unsent: Unsent::default(),
            kept: HashSet::new(),
            spared: HashSet::new(),
            locked: HashSet::new(),
            wide: HashSet::new(),
            errands: HashMap::new(),
            decisions: Vec::new(),
            recorded: 0,
            since: 0,
            committing: false,
        };
        (mesh, failures)
    }

    pub(super) fn name(&self, at: usize) -> &str {
        &self.plan.sync.members[self.members[at].index].db.name
    }

    /// The places of the sources among `members`.
    pub(super) fn sources(&self) -> Vec<usize> {
        (0..self.members.len()).filter(|at| self.offers[*at].is_some()).collect()
    }

    /// The members that take part, as bits.
    pub(super) fn present(&self) -> u64 {
        bits::union(self.members.iter().map(Receiver::bit))
    }

    /// The sources that do.
    pub(super) fn present_sources(&self) -> u64 {
        bits::union(self.sources().into_iter().map(|at| self.members[at].bit()))
    }

    /// The members to which others' truncates of a relation come late, as bits; see [`Offer::late`].
    pub(super) fn late(&self, relation: i32) -> u64 {
        bits::union(self.offers.iter().flatten().filter_map(|o| o.late.get(&relation).copied()))
    }

    /// Whether all sources are well: a run goes on with all of them or not at all.
    pub(super) fn check(&self) -> Result<(), Broken> {
        let failed = |at: &usize| self.members[*at].failed.is_some();
        if self.sources().iter().any(failed) { Err(Broken::Members(Vec::new())) } else { Ok(()) }
    }

    /// Opens the transactions, learns how far everybody was served, and what each source has for the others.
    pub(super) fn gather(&mut self, touched: &HashSet<i32>) -> Result<Vec<Option<Rows>>, Broken> {
        let mut begun = self.begin(touched)?;
        self.windows(&begun)?;
        self.settle_doubt(&begun)?;
        self.hear(&begun)?;
        let sequences = begun.iter_mut().map(|b| b.as_mut().and_then(|b| b.sequences.take())).collect();
        let strangers = self.changes()?;
        if !self.plan.is_current(&strangers)? {
            return Err(Broken::Outdated);
        }
        self.forget_void()?;
        Ok(sequences)
    }

    /// Whether nothing of an earlier run or attempt can be under way.
    pub(super) fn follows(&self) -> bool {
        self.plan.follows && self.attempt == 1
    }

    fn begin(&mut self, touched: &HashSet<i32>) -> Result<Vec<Option<Begun>>, Broken> {
        let captured = self.plan.sync.capture_name();
        let begin = gather::begin(&self.plan.sync);
        let guard = self.plan.guard();
        // The only source receives nothing: beside this run it may have that of a member which catches up.
        let only = bits::only_source(&self.plan.sync);
        let shared = self.members.iter().position(|m| m.bit() & only != 0);
        if !self.follows() {
            let (before, rest) = self.members.split_at_mut(shared.unwrap_or(0));
            apply::be_alone(before, &guard);
            apply::be_alone(&mut rest[usize::from(shared.is_some())..], &guard);
            self.check()?;
        }
        self.locked = self.to_lock(touched);
        let mut locked = Vec::new();
        for at in 0..self.members.len() {
            let name = self.name(at).to_string();
            let is_source = self.offers[at].is_some();
            let locks = self.locks(at);
            let holds = shared != Some(at);
            locked.push(locks.len() + usize::from(holds));
            let (control, sequences) = (&self.plan.control, self.plan.sequence_query.as_deref());
            let patient = format!("SET LOCAL lock_timeout = '{}'", self.members[at].session.patience);
            self.members[at].attempt(|conn| {
                let who = [Some(control.as_bytes()), Some(captured.as_bytes()), Some(name.as_bytes())];
                conn.pipeline_begin()?;
                conn.pipeline_add(begin, &[], &[])?;
                conn.pipeline_add(&patient, &[], &[])?;
                for lock in &locks {
                    conn.pipeline_add(lock, &[], &[])?;
                }
                if holds {
                    conn.pipeline_add(members::HOLD, &[], &[Some(guard.as_bytes())])?;
                }
                conn.pipeline_add(
                    &format!("{HERE}, {}, extract(epoch FROM pg_catalog.clock_timestamp())", flush::COLUMNS),
                    &[],
                    &[],
                )?;
                if is_source {
                    conn.pipeline_add(TRACK, &[], &who)?;
                    conn.pipeline_add(PROGRESS, &[], &who)?;
                    conn.pipeline_add(SETTLED, &[], &who[..2])?;
                }
                if let Some(sql) = sequences {
                    conn.pipeline_add(sql, &[], &[])?;
                }
                conn.pipeline_send()
            });
        }
        let mut begun = Vec::new();
        for (at, locks) in locked.into_iter().enumerate() {
            let missing = |e| gather::capture_missing(&self.plan.sync, e);
            let answers = self.members[at].attempt(|conn| conn.pipeline_collect().map_err(missing));
            begun.push(answers.and_then(|all| {
                let mut rest = all.into_iter().skip(2 + locks);
                let here = rest.next()?;
                let mut for_source = || if self.offers[at].is_some() { rest.next() } else { None };
                let (track, progress, settled) = (for_source(), for_source(), for_source());
                let renewed = progress.as_ref().is_some_and(|rows| (0..rows.len()).any(|row| rows.get(row, 0).is_none()));
                if renewed {
                    self.members[at].failed = Some(replaced::replaced("the account of what was served"));
                    return None;
                }
                Some(Begun { here, track, progress, settled, sequences: rest.next() })
            }));
        }
        self.check()?;
        Ok(begun)
    }

    /// The relations from which writers are kept out: of those that earlier attempts have touched, all if they were defeated,
    /// else those with a deferrable index, which refuses no row that somebody stores at the same time.
    fn to_lock(&self, touched: &HashSet<i32>) -> HashSet<i32> {
        touched.iter().copied().filter(|r| self.care.locked || self.is_loose(*r)).collect()
    }

    fn is_loose(&self, relation: i32) -> bool {
        let tables = self.members.iter().filter_map(|m| m.shapes.get(&relation));
        self.sources().len() > 1 && tables.flat_map(|t| &t.uniques).any(|u| u.deferred)
    }

    /// Whether anything is to be written to a relation that must be locked first, and is not. It counts as touched then. A
    /// table to which nothing is written is not locked: behind a lock that waits for a long transaction all writers wait.
    pub(super) fn lacks_locks(&self, relations: &[i32], touched: &mut HashSet<i32>) -> bool {
        let lacking = relations.iter().filter(|r| self.is_loose(**r) && !self.locked.contains(r));
        lacking.fold(false, |any, r| any | touched.insert(*r))
    }

    /// The statements that keep writers out.
    fn locks(&self, at: usize) -> Vec<String> {
        let tables = self.plan.sync.relations.iter().filter(|r| self.locked.contains(&r.id));
        tables.filter_map(|r| self.members[at].shapes.get(&r.id).map(Table::lock)).collect()
    }

    fn windows(&mut self, begun: &[Option<Begun>]) -> Result<(), Broken> {
        for at in self.sources() {
            let Some(mine) = &begun[at] else { continue };
            let here = mine.here.text(0, 1);
            let timeline = here.rsplit('/').next().unwrap_or_default();
            let mut offer = Offer {
                snapshot: mine.here.text(0, 0),
                place: format!("{timeline}:{}:{}", mine.here.text(0, 3), mine.here.text(0, 5)),
                identity: format!("{}:{}", mine.here.text(0, 1), mine.here.text(0, 3)),
                commit_times: mine.here.bool(0, 2),
                unflushed: flush::unflushed(&mine.here, 3),
                settled: mine.settled.as_ref().map(|rows| settled(rows, &self.plan.sync)).transpose()?.unwrap_or_default(),
                ..Offer::default()
            };
            let name = self.name(at).to_string();
            for (other, theirs) in begun.iter().enumerate().filter(|(other, _)| *other != at) {
                let (Some(theirs), index) = (theirs, self.members[other].index) else { continue };
                let member = self.name(other);
                let track = mine.track.as_ref().and_then(|rows| find(rows, member).map(|row| (rows, row)));
                let Some((track, row)) = track else {
                    return Err(Error::new(
                        SqlState::WRONG_STATE,
                        format!("db \"{name}\" does not know how far db \"{member}\" was served"),
                    )
                    .hint(format!("Run {}", gather::install_again(&self.plan.sync)))
                    .into());
                };
                match track.get(row, 2) {
                    Some("all") => offer.copy_all |= 1 << index,
                    Some(_) => offer.copy_empty |= 1 << index,
                    None => {}
                }
                // What the receiver says goes before the source's copy, if that source has still got what it had then.
                let own = theirs.progress.as_ref().and_then(|rows| find(rows, &name).map(|row| (rows, row)));
                let rewound = track.get(row, 3);
                let asked = own.is_some();
                let own = own.filter(|(rows, row)| self.still_has(at, &offer.identity, &rows.text(*row, 2), rewound));
                offer.unbelieved |= asked && own.is_none();
                let noted = track.text(row, 1);
                let served = own.map_or_else(|| noted.clone(), |(rows, row)| rows.text(row, 1));
                if served != noted {
                    offer.behind |= 1 << index;
                    offer.noted.push((index, window(&noted)));
                }
                offer.windows.push((index, window(&served)));
            }
            let here = |name: &str| self.members.iter().any(|m| self.member_name(m.index) == name);
            let tracked =
                mine.track.iter().flat_map(|rows| (0..rows.len()).map(move |row| (rows.text(row, 0), rows.text(row, 1))));
            for (member, served) in tracked.filter(|(member, _)| !here(member)) {
                let place = self.plan.sync.members.iter().position(|m| m.db.name == member);
                offer.away.extend(place.map(|index| (index, window(&served))));
                offer.absent.push(window(&served));
            }
            self.offers[at] = Some(offer);
        }
        Ok(())
    }

    /// Every source has the columns of a key in its own order: all are read in that of the first.
    fn order_keys(&mut self) -> Result<(), Broken> {
        let keys: HashMap<i32, Vec<String>> =
            self.offers.iter().flatten().flat_map(|o| &o.changes).map(|c| (c.relation, self.key_of(c.relation))).collect();
        for at in self.sources() {
            let Some(mut offer) = self.offers[at].take() else { continue };
            for change in &mut offer.changes {
                let key = keys.get(&change.relation).cloned().unwrap_or_default();
                let slot = |k: &String| change.key.iter().position(|own| own == k).map(|i| i + 1);
                let slots: Option<Vec<usize>> = key.iter().map(slot).collect();
                change.slots = slots.filter(|s| s.len() == change.key.len()).ok_or_else(|| {
                    let name = self.relation_name(change.relation);
                    Error::new(
                        SqlState::WRONG_STATE,
                        format!("table {name} has another key on db \"{}\" than on the first source", self.name(at)),
                    )
                    .hint("Give it the same primary key on all sources.")
                })?;
                change.key = key;
            }
            self.offers[at] = Some(offer);
        }
        Ok(())
    }

    /// What the sources have; the captured tables that are not of the sync.
    fn changes(&mut self) -> Result<Vec<u32>, Broken> {
        let mut strangers = Vec::new();
        let sources = self.sources();
        let captured = self.plan.sync.capture_name();
        let latest = uses_latest_of_all(&self.plan.sync);
        for at in &sources {
            let Some(offer) = &mut self.offers[*at] else { continue };
            let union = offer::union(&offer.windows);
            let control = self.plan.control.as_bytes();
            let params =
                [control, captured.as_bytes(), union.xmax.as_bytes(), union.xip.as_bytes(), if latest { b"t" } else { b"f" }];
            offer.window = Some(union.clone());
            self.members[*at].attempt(|conn| {
                conn.pipeline_begin()?;
                conn.pipeline_add(GATHER, &[], &params.map(Some))?;
                conn.pipeline_send()
            });
        }
        for at in &sources {
            let Some(answers) = self.members[*at].attempt(|conn| conn.pipeline_collect()) else { continue };
            let Some(rows) = answers.first() else { continue };
            let shapes = self.members[*at].shapes.clone();
            strangers.extend(gather::strangers(rows, 0, &shapes));
            let all_here = self.members.len() == self.plan.sync.members.len();
            let Some(offer) = &mut self.offers[*at] else { continue };
            offer.echoed = all_here && offer.absent.is_empty() && (0..rows.len()).any(|row| rows.get(row, 0).is_none());
            for row in 0..rows.len() {
                take_change(&self.plan.sync, &shapes, rows, row, offer)?;
            }
            offer.changes.sort_by_key(|c| c.order);
        }
        self.order_keys()?;
        self.check()?;
        Ok(strangers)
    }
}

/// What there is to say about the clocks of the sources, where they decide anything.
fn doubt(plan: &Plan, opened: &[Receiver]) -> String {
    let by_time = |s: &str| s.starts_with("bucardo_latest");
    let own = |r: &Relation| r.conflict_strategy.as_deref().is_some_and(by_time);
    if !by_time(&plan.sync.conflict_strategy) && !plan.sync.relations.iter().any(own) {
        return String::new();
    }
    let sources = opened.iter().map(|r| (&plan.sync.members[r.index], &r.session)).filter(|(m, _)| m.role == Role::Source);
    let clocks: Vec<_> = sources.map(|(m, session)| (m.db.name.as_str(), session.who.clock)).collect();
    who::doubtful(&clocks).unwrap_or_default()
}

fn find(rows: &Rows, name: &str) -> Option<usize> {
    (0..rows.len()).find(|row| rows.get(*row, 0) == Some(name))
}

fn uses_latest_of_all(sync: &Sync) -> bool {
    let name = "bucardo_latest_all_tables";
    sync.conflict_strategy == name || sync.relations.iter().any(|r| r.conflict_strategy.as_deref() == Some(name))
}

fn settled(rows: &Rows, sync: &Sync) -> Result<HashMap<u32, Vec<Settled>>> {
    let mut all: HashMap<u32, Vec<Settled>> = HashMap::new();
    for row in (0..rows.len()).filter(|row| rows.get(*row, 4).is_none()) {
        let keys = settled_keys(rows, row)?;
        let open = strings(rows.get(row, 3))?;
        let open = bits::where_member(sync, |m| open.contains(&m.db.name));
        let entry = Settled { snapshot: window(&rows.text(row, 1)), keys, open, known: false, heard: false, older: false };
        all.entry(rows.number(row, 0).unwrap_or_default()).or_default().push(entry);
    }
    Ok(all)
}

/// One row of `capture_gather`.
fn take_change(sync: &Sync, shapes: &Shapes, rows: &Rows, row: usize, offer: &mut Offer) -> Result<()> {
    let oid: u32 = rows.number(row, 0).unwrap_or_default();
    let found = sync.relations.iter().enumerate().find(|(_, r)| shapes.get(&r.id).is_some_and(|t| t.oid == oid));
    // Captured but no longer in the sync: the master takes the capture off.
    let Some((order, relation)) = found else { return Ok(()) };
    if let Some(at) = rows.number(row, 6) {
        offer.truncated.insert(relation.id, Truncated { at, ..Truncated::default() });
    }
    if rows.bool(row, 7) {
        offer.whole.insert(relation.id, 0);
    }
    offer.latest = offer.latest.max(rows.number(row, 8).unwrap_or(i64::MIN));
    offer.changes.push(TableChanges {
        relation: relation.id,
        order,
        key: strings(rows.get(row, 1))?,
        slots: Vec::new(),
        segments: strings(rows.get(row, 2))?,
        batched: rows.bool(row, 3),
        changes: rows.number(row, 4).unwrap_or_default(),
        existed: rows.number(row, 5).unwrap_or_default(),
        truncated: false,
        whole: false,
    });
    Ok(())
}

/// The keys in a row of [`SETTLED`].
pub(super) fn settled_keys(rows: &Rows, row: usize) -> Result<Vec<Vec<String>>> {
    let keys = rows.get(row, 2).unwrap_or("[]");
    serde_json::from_str(keys).map_err(|e| Error::internal(format!("settled keys cannot be read: {e}")))
}

/// Keys as the JSON in which they are settled.
pub(super) fn keys_json(keys: &[impl AsRef<[String]>]) -> String {
    let all: Vec<&[String]> = keys.iter().map(AsRef::as_ref).collect();
    serde_json::json!(all).to_string()
}
