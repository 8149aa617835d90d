//! Many rows of one table that several sources have changed are fetched from all of them at the same time, and then staged by all
//! members at the same time: a source has but one connection, so otherwise each would be read while it receives nothing. They
//! are held in memory between the two; what is too much for that goes one source after the other, by `deliver`. It only stages.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;

use super::deliver::{Common, excluded};
use super::keep::Kept;
use super::offer::Offer;
use super::settle::Settlement;
use super::{Broken, Mesh};
use crate::guc;
use crate::kid::apply::{self, Pass, Receiver, Work};
use crate::kid::bring::Bringing;
use crate::kid::range::Range;
use crate::kid::report::Progress;
use crate::kid::shape::Shapes;
use crate::libpq::{Conn, read_together, write_together};

/// Of more changes of a table than these nothing is tried: they would hardly find room.
const MOST: u64 = 250_000;
/// Which part of `bucardo.kid_work_mem` the rows may take.
const PART: usize = 4;

/// What one source has of a relation: its place, the pass, and the change.
type Given<'a> = (usize, &'a Pass<'a>, &'a Work<'a>);

/// How a source is read: the statement, whether its rows come in binary, the range that holds all their keys.
type Way = (String, bool, Option<Range>);

impl Mesh<'_> {
    /// Stages the relations of which several sources have many rows. Which of them, each with the source's place.
    pub(super) fn stage_abreast(
        &mut self,
        settlements: &HashMap<i32, Settlement>,
        kept: &Kept,
        staged: &mut Vec<(usize, Bringing)>,
        progress: &mut Progress,
    ) -> Result<HashSet<(usize, i32)>, Broken> {
        // Once begun again for rows that are too wide, a run goes the other way with all; so does one in which not all get the same.
        let shared = if self.attempt == 1 && !self.is_ahead() { self.shared(settlements) } else { Vec::new() };
        let places: Vec<usize> = self.sources().into_iter().filter(|at| shared.iter().any(|s| s.contains_key(at))).collect();
        if places.is_empty() {
            return Ok(HashSet::new());
        }
        let commons: Vec<Common> = places.iter().map(|at| self.common(*at)).collect();
        let mut taken: Vec<(usize, Offer, Rc<Shapes>, i32)> = Vec::new();
        for at in places {
            let (shapes, version) = (self.members[at].shapes.clone(), self.members[at].session.conn.version());
            taken.extend(self.offers[at].take().map(|offer| (at, offer, shapes, version)));
        }
        let mut done = HashSet::new();
        let mut too_wide = None;
        {
            let passes: Vec<Pass<'_>> = taken
                .iter()
                .zip(commons)
                .map(|((at, offer, shapes, version), common)| {
                    common.pass(&self.plan.sync, self.care, offer, (shapes, *version), excluded(*at, kept))
                })
                .collect();
            let mut works: HashMap<usize, (&Pass<'_>, Vec<Work<'_>>)> = HashMap::new();
            for ((at, ..), pass) in taken.iter().zip(&passes) {
                let work = pass.work(self.others(*at));
                works.extend(self.members[*at].attempt(|_| work).map(|work| (*at, (pass, work))));
            }
            for changes in &shared {
                let of = |(at, nth): (&usize, &usize)| works.get(at).map(|(pass, work)| (*at, *pass, &work[*nth]));
                let given: Vec<Given<'_>> = changes.iter().filter_map(of).collect();
                let Some((_, _, item)) = given.first() else { continue };
                if given.iter().any(|(_, pass, item)| pass.goes_straight(item, &self.members)) {
                    continue;
                }
                progress.relation(&item.name, 0);
                if !stage(&given, &mut self.members, staged) {
                    too_wide = Some(item.change.relation);
                    break;
                }
                done.extend(given.iter().map(|(at, _, item)| (*at, item.change.relation)));
                progress.relation(&item.name, given.iter().map(|(_, _, item)| item.change.changes).sum());
            }
        }
        for (at, offer, ..) in taken {
            self.offers[at] = Some(offer);
        }
        self.check()?;
        if let Some(relation) = too_wide {
            self.plan.too_wide.insert(relation);
            return Err(Broken::Otherwise);
        }
        Ok(done)
    }

    /// For each relation that is worth it, in their order: the sources that have many rows of it to send, in their order, each with the place of
    /// the change in its offer.
    fn shared(&self, settlements: &HashMap<i32, Settlement>) -> Vec<BTreeMap<usize, usize>> {
        let mut shared: BTreeMap<(usize, i32), BTreeMap<usize, usize>> = BTreeMap::new();
        for at in self.sources() {
            for (nth, change) in self.offers[at].iter().flat_map(|o| &o.changes).enumerate() {
                let silent = settlements.get(&change.relation).is_some_and(|s| s.silent.contains(&at));
                if change.changes > 0 && !silent && !self.plan.too_wide.contains(&change.relation) {
                    shared.entry((change.order, change.relation)).or_default().insert(at, nth);
                }
            }
        }
        shared.retain(|(_, relation), of| of.len() > 1 && self.total(*relation) <= MOST && !self.is_few(*relation));
        shared.into_values().collect()
    }
}

/// Brings the changes of one relation into the staging tables of all members but the one that they are from. False: the rows are
/// too wide, and the sources are left in the midst of reading. What fails is noted with its member.
fn stage(given: &[Given<'_>], members: &mut [Receiver], staged: &mut Vec<(usize, Bringing)>) -> bool {
    for (at, pass, item) in given {
        let (before, others) = members.split_at_mut(*at);
        let Some((_, after)) = others.split_first_mut() else { continue };
        for others in [before, after] {
            for receiver in others.iter_mut() {
                let fits = item.table_on(receiver, pass.sync).map(drop);
                receiver.attempt(|_| fits);
            }
            apply::make_stages(item, others);
        }
    }
    for (at, pass, item) in given {
        members[*at].attempt_on(&item.name, |conn| pass.ask(item, conn));
    }
    let mut ways: HashMap<usize, Way> = HashMap::new();
    for (at, pass, item) in given {
        let binary = pass.is_binary(item, members);
        let way = members[*at].attempt_on(&item.name, |conn| pass.answered(item, binary, conn));
        ways.extend(way.map(|(out, range)| (*at, (out, binary, range))));
    }
    let Some(rows) = fetch(given, &ways, members) else { return false };
    if rows.len() == given.len() {
        send(given, &ways, &rows, members);
        for (at, pass, item) in given {
            let range = ways.get(at).and_then(|(.., range)| *range);
            let others = members.iter().enumerate().filter(|(place, _)| place != at).map(|(_, receiver)| receiver);
            staged.extend(others.filter_map(|r| pass.bringing_within(item, r, range)));
        }
    }
    true
}

/// Reads all sources at the same time: the rows by place, but of those that failed. None: too much.
fn fetch(given: &[Given<'_>], ways: &HashMap<usize, Way>, members: &mut [Receiver]) -> Option<HashMap<usize, Vec<u8>>> {
    let most = guc::kid_work_mem() as usize * 1024 / PART;
    let (mut places, mut asked) = (Vec::new(), Vec::new());
    for (at, receiver) in members.iter_mut().enumerate() {
        if let Some((out, ..)) = ways.get(&at) {
            places.push(at);
            asked.push((&mut receiver.session.conn, out.as_str()));
        }
    }
    let read = read_together(asked, most)?;
    let name = given.first().map_or("", |(_, _, item)| item.name.as_str());
    let rows = places.into_iter().zip(read);
    Some(rows.filter_map(|(at, read)| Some((at, members[at].attempt_on(name, |_| read)?))).collect())
}

/// Has every member take in what the others have given, all at the same time.
fn send(given: &[Given<'_>], ways: &HashMap<usize, Way>, rows: &HashMap<usize, Vec<u8>>, members: &mut [Receiver]) {
    // In each turn every member takes from one source, as long as there are others.
    for turn in 0..given.len() {
        let (mut places, mut orders) = (Vec::new(), Vec::new());
        for (place, receiver) in members.iter().enumerate().filter(|(_, r)| r.failed.is_none() && !r.spoilt) {
            let from = given.iter().filter(|(at, ..)| *at != place).nth(turn);
            let order = from.and_then(|(at, _, item)| {
                let binary = ways.get(at)?.1;
                Some((item.writing(receiver).ok()?.copy_stage(binary), rows.get(at)?.as_slice()))
            });
            places.extend(order.is_some().then_some(place));
            orders.extend(order);
        }
        let taking = members.iter_mut().enumerate().filter(|(place, _)| places.contains(place)).map(|(_, r)| &mut r.session.conn);
        let jobs: Vec<(&mut Conn, &str, &[u8])> =
            taking.zip(&orders).map(|(conn, (sql, bytes))| (conn, sql.as_str(), *bytes)).collect();
        let written = write_together(jobs);
        let name = given.first().map_or("", |(_, _, item)| item.name.as_str());
        for (place, done) in places.into_iter().zip(written) {
            members[place].attempt_on(name, |_| done);
        }
    }
}
