//! Which keys several sources have changed. A few changes are compared in memory, with the rows at hand; many by their
//! keys alone; too many for `bucardo.kid_work_mem`, or keys whose equality is not that of their texts, in a temporary
//! table of one source. Keys that one source alone has changed go no further than this file.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use super::decide::KeyChange;
use super::marks::{Known, take_marks};
use super::meet::{List, Places, contended, grouped, meet};
use super::offer::{Offer, Settled};
use super::{Broken, Mesh};
use crate::error::Result;
use crate::guc;
use crate::kid::apply::{Pass, Receiver, Work};
use crate::kid::bits;
use crate::kid::few::{self, FEW};
use crate::kid::origin;
use crate::kid::shape;
use crate::kid::statements::{Join, Window};
use crate::kid::stream::stream;
use crate::libpq::{Conn, Rows};

/// What a key takes in memory while it is compared, roughly.
const KEY_BYTES: u64 = 256;

/// A key by the texts of its columns. Those of many conflicts stand in several lists at once.
pub(super) type Key = Rc<[String]>;

/// A key that more than one source has changed.
#[derive(Clone, Debug)]
pub(super) struct Contended {
    pub key: Key,
    /// In the listed order of the sources.
    pub changes: Vec<KeyChange>,
}

/// The rows of a few changes, by the source's place and the relation.
pub(super) type FewRows = HashMap<(usize, i32), Rows>;

impl Mesh<'_> {
    /// The relations of this run, in their order.
    pub(super) fn relations(&self) -> Vec<i32> {
        let wanted = |r: &i32| {
            self.offers.iter().flatten().any(|o| o.change(*r).is_some() || o.copy_all != 0 || o.copy_empty != 0)
                || self.carried.has_rows(*r)
                || self.may_be_stale(*r)
        };
        let tables = self.plan.sync.relations.iter().filter(|r| !r.is_sequence);
        tables.map(|r| r.id).filter(wanted).collect()
    }

    /// The sources that have changed single rows of a relation, by place.
    pub(super) fn changed(&self, relation: i32) -> Vec<usize> {
        let has = |at: &usize| self.offers[*at].as_ref().and_then(|o| o.change(relation)).is_some_and(|c| c.changes > 0);
        (0..self.members.len()).filter(has).collect()
    }

    /// The key of a relation in the order in which it goes through this run: as on the first source.
    pub(super) fn key_of(&self, relation: i32) -> Vec<String> {
        let key = |at: &usize| self.members[*at].shapes.get(&relation).and_then(|t| t.key.clone());
        self.sources().iter().find_map(key).unwrap_or_default()
    }

    pub(super) fn total(&self, relation: i32) -> u64 {
        self.offers.iter().flatten().filter_map(|o| o.change(relation)).map(|c| c.changes).sum()
    }

    /// Whether a relation was truncated anywhere, changed as a whole, has settled changes, or rows of a run that died.
    fn is_special(&self, relation: i32) -> bool {
        self.carried.has_rows(relation)
            || (0..self.members.len()).any(|at| {
                self.offers[at].as_ref().is_some_and(|o| {
                    o.truncated.contains_key(&relation)
                        || o.whole.contains_key(&relation)
                        || self.settled_of(at, relation).is_some()
                })
            })
    }

    pub(super) fn settled_of(&self, at: usize, relation: i32) -> Option<&Vec<Settled>> {
        let oid = self.members[at].shapes.get(&relation)?.oid;
        self.offers[at].as_ref()?.settled.get(&oid)
    }

    /// Whether the changes of a relation, over all sources, travel with their rows at once.
    pub(super) fn is_few(&self, relation: i32) -> bool {
        let copied = self.offers.iter().flatten().any(|o| o.copy_all != 0 || o.copy_empty != 0);
        self.total(relation) <= FEW
            && !self.wide.contains(&relation)
            && !copied
            && !self.noted().contains_key(&relation)
            && !self.care.thorough
            && !self.is_special(relation)
            && self.is_exact(relation)
    }

    /// The members that capture what they get, by relation: because `makedelta` says so, or for members that are away,
    /// whom the change may reach only through them.
    pub(super) fn noted(&self) -> HashMap<i32, u64> {
        let mut noted = self.plan.noted();
        let relayed = self.relayed();
        if relayed != 0 {
            for relation in self.plan.sync.relations.iter().filter(|r| !r.is_sequence) {
                *noted.entry(relation.id).or_default() |= relayed;
            }
        }
        noted
    }

    /// The sources that keep what they get for members that do not take part.
    pub(super) fn relayed(&self) -> u64 {
        if self.members.len() == self.plan.sync.members.len() {
            return 0;
        }
        self.present_sources()
    }

    pub(super) fn origin(&self, source: usize) -> String {
        self.plan.origin(source)
    }

    /// Whether equal keys have equal texts on every source.
    fn is_exact(&self, relation: i32) -> bool {
        self.changed(relation).iter().all(|at| {
            let key = self.offers[*at].as_ref().and_then(|o| o.change(relation)).map(|c| c.key.clone()).unwrap_or_default();
            self.members[*at].shapes.get(&relation).is_some_and(|t| key.iter().all(|k| t.is_exact(k)))
        })
    }

    /// The pass of one source; `others` are not the source.
    pub(super) fn pass(&self, at: usize) -> Option<Pass<'_>> {
        let (offer, from) = (self.offers[at].as_ref()?, &self.members[at]);
        Some(Pass::of_offer(&self.plan.sync, self.care, offer, (&from.shapes, from.session.conn.version()), self.news()))
    }

    /// All members but one.
    pub(super) fn others(&self, at: usize) -> impl Iterator<Item = &Receiver> {
        self.members.iter().enumerate().filter(move |(place, _)| *place != at).map(|(_, receiver)| receiver)
    }

    /// See [`crate::kid::origin::news`].
    pub(super) fn news(&self) -> String {
        origin::news(self.plan)
    }

    /// Whether the tables still look as they did, the marks of those that have some, and the rows of a few changes.
    pub(super) fn look(&mut self, relations: &[i32]) -> Result<FewRows, Broken> {
        let marked = self.offers.iter().flatten().any(|o| !o.truncated.is_empty() || !o.whole.is_empty());
        // A truncate that a source has kept for one that is away is none of its own.
        let marks = format!("{}{}", origin::MARKS, self.news());
        let mut asked: Vec<Vec<i32>> = Vec::new();
        for at in 0..self.members.len() {
            let few = self.few_statements(at, relations)?;
            let shapes = self.members[at].shapes.clone();
            let tables = || relations.iter().filter_map(|r| shapes.get(r)).map(|t| t.oid);
            let (fingerprint, oids) = shape::fingerprint_query(tables());
            let window = self.offers[at].as_ref().map(Offer::union);
            let name = self.root_name(at);
            let totals: HashMap<i32, u64> = few.iter().map(|(relation, _)| (*relation, self.total(*relation))).collect();
            self.members[at].attempt(|conn| {
                conn.pipeline_begin()?;
                conn.pipeline_add(fingerprint, &[], &[Some(oids.as_bytes())])?;
                if let Some(window) = &window {
                    if marked {
                        let of = [Some(oids.as_bytes()), Some(name.as_bytes())];
                        conn.pipeline_add(&marks, &[], &of)?;
                        conn.pipeline_add(origin::KNOWN, &[], &of)?;
                    }
                    for (relation, sql) in &few {
                        let widest = few::widest(totals[relation]);
                        conn.pipeline_add(sql, &[], &[&window.xmax, &window.xip, &widest].map(|p| Some(p.as_bytes())))?;
                    }
                }
                conn.pipeline_send()
            });
            asked.push(few.into_iter().map(|(relation, _)| relation).collect());
        }
        let (mut rows, mut found, mut known) = (FewRows::new(), Vec::new(), Vec::new());
        for (at, few) in asked.into_iter().enumerate() {
            let Some(answers) = self.members[at].attempt(|conn| conn.pipeline_collect()) else { continue };
            let mut answers = answers.into_iter();
            let shapes = self.members[at].shapes.clone();
            if let Some(prints) = answers.next() {
                let missing = relations.iter().find(|r| !shapes.contains_key(r));
                let checked = shape::check_fingerprints(&prints, relations.iter().filter_map(|r| shapes.get(r)));
                self.members[at].attempt(|_| match missing {
                    Some(r) => Err(shape::missing(&self.plan.sync, *r)),
                    None => checked,
                });
            }
            if marked && self.offers[at].is_some() {
                let oids: HashMap<u32, i32> = relations.iter().filter_map(|r| shapes.get(r).map(|t| (t.oid, *r))).collect();
                let marks = answers.next();
                known.extend(answers.next().map(|roots| Known::of(&roots, &oids, self.members[at].index)));
                found.extend(marks.map(|marks| (at, marks, oids)));
            }
            rows.extend(few.into_iter().zip(answers).map(|(relation, r)| ((at, relation), r)));
        }
        self.check()?;
        for (at, marks, oids) in found {
            self.offers[at].iter_mut().for_each(|offer| take_marks(&marks, &oids, &known, offer));
        }
        relations.iter().for_each(|r| self.find_late(*r));
        let wide = rows.iter().filter(|((_, relation), rows)| few::is_wide(rows, self.key_of(*relation).len()));
        self.wide = wide.map(|((_, relation), _)| *relation).collect();
        rows.retain(|(_, relation), _| !self.wide.contains(relation));
        Ok(rows)
    }

    /// A truncate that comes to a member after others have had it would take rows along that were written since, and that
    /// nobody sends again: such a member is made equal to a source that has had all of them.
    fn find_late(&mut self, relation: i32) {
        let present = self.present();
        let mut late = 0;
        for (member, offer) in self.members.iter().zip(&self.offers) {
            let Some(mark) = offer.as_ref().and_then(|o| o.truncated.get(&relation)) else { continue };
            let towards = mark.towards & present;
            if mark.elsewhere || mark.sent & present != present & !member.bit() {
                late |= towards;
            }
        }
        let model = self.sources().into_iter().find(|at| self.members[*at].bit() & late == 0);
        if let Some(offer) = model.filter(|_| late != 0).and_then(|at| self.offers[at].as_mut()) {
            *offer.whole.entry(relation).or_default() |= late;
            offer.late.insert(relation, late);
        }
    }

    /// The statements that read a few changes with their rows.
    fn few_statements(&self, at: usize, relations: &[i32]) -> Result<Vec<(i32, String)>> {
        let (Some(pass), Some(offer)) = (self.pass(at), self.offers[at].as_ref()) else { return Ok(Vec::new()) };
        let work = pass.work(self.others(at))?;
        let few = work
            .iter()
            .filter(|w| relations.contains(&w.change.relation) && w.change.changes > 0 && self.is_few(w.change.relation));
        Ok(few.map(|w| (w.change.relation, w.reading().few_timed(offer.time(), &offer.towards()))).collect())
    }

    /// Begins to look for the contended keys of a relation: [`Mesh::contended`] fetches them.
    pub(super) fn search(&mut self, relation: i32, few: &FewRows) -> Result<Search, Broken> {
        let sources = self.changed(relation);
        let marks = self.truncations(relation);
        let truncated = !marks.is_empty();
        let settled = sources.iter().any(|at| self.settled_of(*at, relation).is_some());
        let carried = self.carried.keys(relation);
        if sources.is_empty() || (sources.len() < 2 && !truncated && !settled && carried.is_empty()) {
            return Ok(Search::default());
        }
        let all = truncated || !carried.is_empty();
        if self.is_few(relation) {
            let list = |at: &usize| {
                let (rows, n) = (few.get(&(*at, relation))?, self.key_length(*at, relation)?);
                Some(List { rows, keys: n, time: rows.columns() - 3, source: self.members[*at].index })
            };
            let lists: Vec<List> = sources.iter().filter_map(list).collect();
            let found = meet(&lists, all).iter().map(|p| contended(&lists, p)).collect();
            return Ok(Search { marks, lost: HashMap::new(), carried, way: Way::Few(found) });
        }
        let way = if self.is_exact(relation) && self.total(relation) * KEY_BYTES <= guc::kid_work_mem() as u64 * 1024 {
            self.compare_keys(relation, &sources, all)?
        } else {
            self.compare_in_table(relation, &sources, all)?
        };
        let lost = marks.iter().map(|mark| (mark.source, self.lost_truncation(mark.source, relation))).collect();
        Ok(Search { marks, lost, carried, way })
    }

    /// The next contended keys, at most so many; None: there are no more.
    pub(super) fn contended(&mut self, search: &mut Search, most: usize) -> Result<Option<Vec<Contended>>, Broken> {
        let mut found: Vec<Contended> = match &mut search.way {
            Way::Few(found) => std::mem::take(found),
            Way::Memory { answers, keys, places } => {
                let lists: Vec<List> = answers.iter().map(|(source, rows)| List::of_keys(rows, *keys, *source)).collect();
                places.by_ref().take(most).map(|places| contended(&lists, &places)).collect()
            }
            Way::Table { hub, cursor, keys, sources } => {
                let sql = format!("FETCH FORWARD {most} FROM {cursor}");
                let rows = self.members[*hub].attempt(|conn| conn.query(&sql));
                self.check()?;
                let rows = rows.iter().flat_map(|rows| (0..rows.len()).map(move |row| (rows, row)));
                rows.map(|(rows, row)| grouped(rows, row, *keys, sources)).collect()
            }
        };
        if found.is_empty() {
            return Ok(None);
        }
        found.iter_mut().for_each(|one| one.add_marks(&search.marks, &search.lost));
        found.retain(|one| one.changes.len() > 1 || search.carried.contains(&*one.key));
        Ok(Some(found))
    }

    fn key_length(&self, at: usize, relation: i32) -> Option<usize> {
        self.offers[at].as_ref()?.change(relation).map(|c| c.key.len())
    }

    fn truncations(&self, relation: i32) -> Vec<KeyChange> {
        let one = |at: usize| {
            let offer = self.offers[at].as_ref()?;
            let mark = offer.truncated.get(&relation).filter(|mark| mark.towards != 0)?;
            let waits = |(_, w): &&(usize, Window)| mark.xids.iter().any(|xid| w.holds(*xid));
            let away = bits::of(offer.away.iter().filter(waits).map(|(member, _)| *member));
            Some(KeyChange { source: self.members[at].index, towards: mark.towards | away, at: mark.at, held: false })
        };
        (0..self.members.len()).filter_map(one).collect()
    }

    /// The keys of a relation for which a source's truncation, by its place in the sync, is settled, with the members against
    /// which it still contends, as bits, and whether the others know it.
    fn lost_truncation(&self, source: usize, relation: i32) -> LostTruncation {
        let mark = self.place(source).and_then(|at| Some((at, self.offers[at].as_ref()?.truncated.get(&relation)?)));
        let Some((at, mark)) = mark else { return LostTruncation::new() };
        let settled = self.settled_of(at, relation).into_iter().flatten();
        let after = settled.filter(|entry| !mark.xids.iter().any(|xid| entry.snapshot.holds(*xid)));
        let mut lost = LostTruncation::new();
        let present = self.present();
        for (key, open, known) in after.flat_map(|entry| entry.keys.iter().map(|key| (key, entry.open & present, entry.known))) {
            let (all, by_all) = lost.entry(key.clone()).or_insert((u64::MAX, true));
            (*all, *by_all) = (*all & open, *by_all && known);
        }
        lost
    }

    /// The statement that lists a source's changed keys of a relation with their times.
    fn keys_statement(&mut self, at: usize, relation: i32) -> Result<String, Broken> {
        let settled = self.settled_table(at, relation)?;
        let sql = self.with_work(at, relation, |work, offer| {
            work.reading().changes(&offer.union(), offer.time(), &offer.towards(), settled.as_deref())
        })?;
        Ok(sql.unwrap_or_default())
    }

    /// Calls with what is known of a relation on a source.
    pub(super) fn with_work<T>(&self, at: usize, relation: i32, body: impl FnOnce(&Work<'_>, &Offer) -> T) -> Result<Option<T>> {
        let (Some(pass), Some(offer)) = (self.pass(at), self.offers[at].as_ref()) else { return Ok(None) };
        let work = pass.work(self.others(at))?;
        Ok(work.iter().find(|w| w.change.relation == relation).map(|w| body(w, offer)))
    }

    /// Compares keys in memory, asking all sources at the same time.
    fn compare_keys(&mut self, relation: i32, sources: &[usize], all: bool) -> Result<Way, Broken> {
        for at in sources {
            let sql = self.keys_statement(*at, relation)?;
            self.members[*at].attempt(|conn| conn.send(&sql));
        }
        let mut answers = Vec::new();
        for at in sources {
            let index = self.members[*at].index;
            answers.extend(self.members[*at].attempt(Conn::collect).map(|rows| (index, rows)));
        }
        self.check()?;
        let keys = self.key_of(relation).len();
        let lists: Vec<List> = answers.iter().map(|(source, rows)| List::of_keys(rows, keys, *source)).collect();
        let places = meet(&lists, all).into_iter();
        Ok(Way::Memory { answers, keys, places })
    }

    /// Compares keys in a table of the source that has most of them: the others' are copied there.
    fn compare_in_table(&mut self, relation: i32, sources: &[usize], all: bool) -> Result<Way, Broken> {
        let changes = |at: &usize| self.offers[*at].as_ref().and_then(|o| o.change(relation)).map_or(0, |c| c.changes);
        let Some(hub) = sources.iter().copied().max_by_key(changes) else { return Ok(Way::default()) };
        let table = format!("bucardo_keys_{relation}");
        let create = self.with_work(hub, relation, |w, _| w.reading().create_keys(&table))?.unwrap_or_default();
        self.members[hub].attempt(|conn| conn.query(&create));
        for at in sources {
            let index = self.members[*at].index;
            let sql = self.keys_statement(*at, relation)?;
            if *at == hub {
                self.members[hub]
                    .attempt(|conn| conn.query(&format!("INSERT INTO pg_temp.{table} SELECT k.*, {index} FROM ({sql}) k")));
                continue;
            }
            let out = format!("COPY (SELECT k.*, {index} FROM ({sql}) k) TO STDOUT");
            self.check()?;
            let mut from = self.members.remove(*at);
            let place = hub - usize::from(*at < hub);
            let into = |_: &Receiver| format!("COPY pg_temp.{table} FROM STDIN");
            let copied = stream(&mut from.session.conn, &out, &mut self.members[place..=place], "keys", into);
            from.attempt(|_| copied);
            self.members.insert(*at, from);
        }
        let sources: Vec<usize> = sources.iter().map(|at| self.members[*at].index).collect();
        let cursor = format!("bucardo_contended_{relation}");
        let select = self.with_work(hub, relation, |w, _| w.reading().same_keys(&table, &sources, all))?.unwrap_or_default();
        let sql = format!("{}DECLARE {cursor} NO SCROLL CURSOR FOR {select}", Join::Free.settings());
        self.members[hub].attempt(|conn| conn.query(&sql));
        self.check()?;
        Ok(Way::Table { hub, cursor, keys: self.key_of(relation).len(), sources })
    }
}

/// By key, the members against which a truncation still contends, or to which it still goes, as bits; and whether the others know it.
type LostTruncation = HashMap<Vec<String>, (u64, bool)>;

/// A search for the contended keys of a relation, of which a part is fetched at a time.
#[derive(Default)]
pub(super) struct Search {
    /// The truncations, which concern every key.
    marks: Vec<KeyChange>,
    /// Keys for which the truncation of a source, by its place in the sync, has lost already; and those for which it still
    /// contends with somebody.
    lost: HashMap<usize, LostTruncation>,
    /// Keys that runs which died have left: of these also what one source alone has changed.
    pub carried: HashSet<Vec<String>>,
    way: Way,
}

impl Search {
    /// Whether the next keys are known here.
    pub(super) fn is_here(&self) -> bool {
        !matches!(self.way, Way::Table { .. })
    }

    /// How many keys each source has changed, by its place in the sync, where all of them are known here and nothing else
    /// concerns them.
    pub(super) fn listed(&self) -> Vec<(usize, usize)> {
        match &self.way {
            Way::Memory { answers, .. } if self.marks.is_empty() && self.carried.is_empty() => {
                answers.iter().map(|(source, rows)| (*source, rows.len())).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// Where the contended keys are found.
enum Way {
    Few(Vec<Contended>),
    /// In what the sources have answered: by source, all changed keys; and where the contended ones stand there.
    Memory {
        answers: Vec<(usize, Rows)>,
        keys: usize,
        places: std::vec::IntoIter<Places>,
    },
    /// By a cursor of one member.
    Table {
        hub: usize,
        cursor: String,
        keys: usize,
        sources: Vec<usize>,
    },
}

impl Default for Way {
    fn default() -> Self {
        Way::Few(Vec::new())
    }
}

impl Contended {
    /// Adds the truncations, which concern every key.
    fn add_marks(&mut self, marks: &[KeyChange], lost: &HashMap<usize, LostTruncation>) {
        for mark in marks {
            let open = lost.get(&mark.source).and_then(|keys| keys.get(&*self.key)).copied();
            if let Some((open, known)) = open {
                let towards = mark.towards & open;
                match self.changes.iter_mut().find(|c| c.source == mark.source) {
                    Some(own) if own.held || known => {
                        own.at = own.at.max(mark.at);
                        own.towards |= towards;
                    }
                    // What the source has done to the key since says all.
                    Some(_) => {}
                    None if towards == 0 => {}
                    None => self.changes.push(KeyChange { towards, held: !known, ..*mark }),
                }
                continue;
            }
            match self.changes.iter_mut().find(|c| c.source == mark.source) {
                Some(own) => {
                    own.at = own.at.max(mark.at);
                    own.towards |= mark.towards;
                    own.held = false;
                }
                None => self.changes.push(*mark),
            }
        }
        self.changes.sort_by_key(|c| c.source);
    }
}
