//! What a source has got of another one by way of a third. Its own account says only what that other one has served to it; but
//! who gives a row gives all that the row was written upon, also of one that is away. This is noted key by key beside the rows, so that
//! changes which are known do not come once more, as if nobody had heard of them, when their author is back. It must never
//! take for known what the giver had not got when it was read, nor for older what nobody has written upon.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::rc::Rc;

use super::contend::Key;
use super::decide::KeyChange;
use super::keep::Kept;
use super::offer::{Settled, covers};
use super::open::{Begun, keys_json, settled_keys};
use super::settle::Settlement;
use super::{Broken, Mesh};
use crate::catalog::sync::Role;
use crate::ident::{quote_literal, text_array};
use crate::kid::bits;
use crate::kid::gather::window;
use crate::kid::origin;
use crate::kid::statements::list;
use crate::libpq::Rows;

/// Of more changes than these, only keys are noted of which the giver keeps a change of the one that is away.
const MANY: u64 = 10_000;
/// How many keys go into one note, and are asked about at once.
const AT_ONCE: usize = 10_000;

const NOTE: &str = "INSERT INTO bucardo.capture_heard (control, sync, relid, source, served, identity, keys, older) \
    VALUES ($1, $2, $3::pg_catalog.oid, $4, $5, $6, $7::pg_catalog.jsonb, $8::pg_catalog.bool)";
/// Forgets notes of sources by how far these go, as they stand in two arrays.
const FORGET: &str = "DELETE FROM bucardo.capture_heard WHERE control = $1 AND sync = $2 \
    AND (source, served) IN (SELECT u.source, u.served FROM unnest($3::pg_catalog.text[], $4::pg_catalog.text[]) u(source, served))";
/// Who gets a table as it is on another source has no more of others than that one.
const FORGET_TABLE: &str = "DELETE FROM bucardo.capture_heard WHERE control = $1 AND sync = $2 AND relid = $3::pg_catalog.oid";

/// How far a source was served by another one, and what that one was then.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Served {
    snapshot: String,
    identity: String,
}

impl Served {
    /// Whether it goes as far as another one.
    fn reaches(&self, other: &Served) -> bool {
        // The numbers of another server, or of another timeline, say nothing.
        let server = |served: &Served| served.identity.split(':').next().unwrap_or_default().to_string();
        self == other || (server(self) == server(other) && covers(&window(&other.snapshot), &window(&self.snapshot)))
    }
}

type Keys = HashSet<Vec<String>>;
type Listed = Vec<Vec<String>>;

/// Keys of which a source has got, by way of others, what another one had changed.
#[derive(Clone, Debug)]
struct Heard {
    /// Where that is noted, by place.
    at: usize,
    relation: i32,
    /// Whose changes they are, by his place in the sync.
    of: usize,
    served: Served,
    /// See [`Settled::older`].
    older: bool,
    keys: Rc<Keys>,
}

/// A key of which something was decided.
#[derive(Clone, Debug)]
pub(super) struct Met {
    pub key: Key,
    /// By their places in the sync, with the members towards which their changes are pending, as bits.
    pub contenders: Vec<(usize, u64)>,
    /// Whether what has come of it was made of all their rows.
    pub merged: bool,
}

/// What the sources say of others.
#[derive(Debug, Default)]
pub(super) struct Hearsay {
    /// By place, and by the place in the sync of one that is away: how far that one has served it.
    accounts: HashMap<(usize, usize), Served>,
    /// Of those that are away: what is noted, and what this run notes.
    heard: Vec<Heard>,
    fresh: Vec<Heard>,
    ahead: Vec<Ahead>,
    /// The sources, by place, that have notes, also of those that are here.
    noted: HashSet<usize>,
    /// The notes of a source, by place, that nobody needs after this run: whose, and how far they go.
    over: HashMap<usize, HashSet<(String, String)>>,
}

/// That one source (by place) has got more of one that is away (by its place in the sync) than another source has.
#[derive(Clone, Copy, Debug)]
struct Ahead {
    giver: usize,
    taker: usize,
    of: usize,
}

impl Mesh<'_> {
    /// Takes what the sources have noted: of those that are here their changes count as known; the rest is handed on.
    pub(super) fn hear(&mut self, begun: &[Option<Begun>]) -> Result<(), Broken> {
        let sources = bits::where_member(&self.plan.sync, |m| m.role == Role::Source);
        let absent = sources & !self.present();
        let place_of =
            |mesh: &Self, name: &str| mesh.plan.sync.members.iter().position(|m| m.db.name == name && m.role == Role::Source);
        let mut notes: HashMap<(usize, i32, usize, Served, bool), Keys> = HashMap::new();
        for at in self.sources() {
            let Some(begun) = &begun[at] else { continue };
            for (rows, row) in all_rows(begun.progress.as_ref().filter(|_| absent != 0)) {
                if let Some(of) = place_of(self, &rows.text(row, 0)).filter(|of| absent & (1 << of) != 0) {
                    let served = Served { snapshot: rows.text(row, 1), identity: rows.text(row, 2) };
                    self.hearsay.accounts.insert((at, of), served);
                }
            }
            for (rows, row) in all_rows(begun.settled.as_ref()) {
                let (Some(source), Some(oid)) = (rows.get(row, 4), rows.number::<u32>(row, 0)) else { continue };
                self.hearsay.noted.insert(at);
                let relation = self.members[at].shapes.iter().find(|(_, table)| table.oid == oid).map(|(relation, _)| *relation);
                let served = Served { snapshot: rows.text(row, 1), identity: rows.text(row, 5) };
                let Some(of) = place_of(self, source) else {
                    self.hearsay.over.entry(at).or_default().insert((source.to_string(), served.snapshot));
                    continue;
                };
                // What is captured no more takes its notes along; there may be others of the same source.
                let Some(relation) = relation else { continue };
                let keys = self.in_order(at, relation, settled_keys(rows, row)?, false);
                notes.entry((at, relation, of, served, rows.bool(row, 6))).or_default().extend(keys);
            }
        }
        let mut sound: HashMap<(usize, String), bool> = HashMap::new();
        for ((at, relation, of, served, older), keys) in notes {
            let Some(author) = self.place(of) else {
                self.hearsay.heard.push(Heard { at, relation, of, served, older, keys: Rc::new(keys) });
                continue;
            };
            let asked = (author, served.identity.clone());
            let holds = match sound.get(&asked) {
                Some(holds) => *holds,
                None => {
                    let here = self.offers[author].as_ref().map(|o| o.identity.clone()).unwrap_or_default();
                    let rewound = begun[author].as_ref().and_then(Begun::rewound);
                    let holds = self.still_has(author, &here, &served.identity, rewound);
                    sound.insert(asked, holds);
                    holds
                }
            };
            let snapshot = window(&served.snapshot);
            // As long as somebody who is away waits for what it is about, that must not go to all others when he is back.
            let waits = self.offers[author].iter().flat_map(|o| &o.away).any(|(_, w)| !covers(&snapshot, w));
            if !holds || !waits {
                let name = self.member_name(of).to_string();
                self.hearsay.over.entry(at).or_default().insert((name, served.snapshot.clone()));
                self.offers[author].iter_mut().for_each(|offer| offer.heard = true);
            }
            if holds {
                let (open, keys) = (!self.members[at].bit(), keys.into_iter().collect());
                self.settle_at(author, relation, Settled { snapshot, keys, open, known: true, heard: true, older });
            }
        }
        self.hearsay.ahead = self.ahead();
        self.check()
    }

    /// Whether a source has got more of one that is away than another one has.
    pub(super) fn is_ahead(&self) -> bool {
        !self.hearsay.ahead.is_empty()
    }

    /// The sources, by place, that have got more of one that is away than this one has.
    pub(super) fn later_than(&self, at: usize) -> Vec<usize> {
        let later: BTreeSet<usize> =
            self.hearsay.ahead.iter().filter(|ahead| ahead.taker == at).map(|ahead| ahead.giver).collect();
        later.into_iter().collect()
    }

    /// Takes note of a key of which something was decided. `merged`: the row is made of the contenders', or all have deleted it.
    pub(super) fn note_met(&self, key: &Key, contenders: &[KeyChange], merged: bool, settlement: &mut Settlement) {
        if self.is_ahead() {
            let contenders = contenders.iter().map(|c| (c.source, c.towards)).collect();
            settlement.met.push(Met { key: key.clone(), contenders, merged });
        }
    }

    /// What one source may have of those that are away more than another one has: the origins of what it keeps of them, and the keys of
    /// which it has heard more.
    pub(super) fn more_at(&self, at: usize, giver: usize, relation: i32) -> (Vec<String>, Listed) {
        let of_both = self.hearsay.ahead.iter().filter(|ahead| (ahead.giver, ahead.taker) == (giver, at));
        let kept = of_both.clone().filter(|ahead| self.more_of(ahead).is_some());
        let heard: Keys = of_both.flat_map(|ahead| self.heard_by(ahead, relation)).flat_map(|h| (*h.keys).clone()).collect();
        (kept.map(|ahead| origin::kept(&self.origin(ahead.of))).collect(), heard.into_iter().collect())
    }

    fn ahead(&self) -> Vec<Ahead> {
        let mut all = Vec::new();
        let of_heard = self.hearsay.heard.iter().map(|h| (h.at, h.of));
        let givers: HashSet<(usize, usize)> = self.hearsay.accounts.keys().copied().chain(of_heard).collect();
        for (giver, of) in givers {
            let takers = self.sources().into_iter().filter(|taker| *taker != giver);
            let lacks = |taker: &usize| {
                let heard = self.hearsay.heard.iter().filter(|h| (h.at, h.of) == (giver, of)).map(|h| &h.served);
                self.hearsay.accounts.get(&(giver, of)).into_iter().chain(heard).any(|served| self.lacks(*taker, of, served))
            };
            all.extend(takers.filter(lacks).map(|taker| Ahead { giver, taker, of }));
        }
        all
    }

    /// Whether a source, by its own account, has not got all that was served to another one.
    fn lacks(&self, taker: usize, of: usize, served: &Served) -> bool {
        self.hearsay.accounts.get(&(taker, of)).is_none_or(|own| !own.reaches(served))
    }

    /// How far the giver was served by the one that is away, if the taker was not as far.
    fn more_of(&self, ahead: &Ahead) -> Option<Served> {
        let served = self.hearsay.accounts.get(&(ahead.giver, ahead.of));
        served.filter(|served| self.lacks(ahead.taker, ahead.of, served)).cloned()
    }

    /// What the giver has heard of the one that is away, and the taker lacks.
    fn heard_by(&self, ahead: &Ahead, relation: i32) -> Vec<Heard> {
        let of_it = self.hearsay.heard.iter().filter(|h| (h.at, h.of, h.relation) == (ahead.giver, ahead.of, relation));
        of_it.filter(|h| self.lacks(ahead.taker, ahead.of, &h.served)).cloned().collect()
    }

    /// Notes at each source what it gets of those that are away, beside what this run brings of a relation.
    pub(super) fn note_heard(&mut self, relation: i32, kept: &Kept) -> Result<(), Broken> {
        for ahead in self.hearsay.ahead.clone() {
            if let Some(served) = self.more_of(&ahead) {
                let change = self.offers[ahead.giver].as_ref().and_then(|o| o.change(relation));
                let which = if change.is_some_and(|c| c.changes > MANY) { self.kept_of(&ahead, relation)? } else { None };
                let (upon, same) = self.given(&ahead, relation, kept, which.as_deref(), &[])?;
                self.note_at(ahead.taker, relation, ahead.of, &served, true, upon);
                self.note_at(ahead.taker, relation, ahead.of, &served, false, same);
            }
            let heard = self.heard_by(&ahead, relation);
            let all: HashSet<&Vec<String>> = heard.iter().flat_map(|h| &*h.keys).collect();
            let all: Vec<Vec<String>> = all.into_iter().cloned().collect();
            for some in all.chunks(AT_ONCE) {
                let typed = self.any_reading(ahead.giver, relation, |r| r.typed_keys(0))?;
                let names = self.any_reading(ahead.giver, relation, |r| r.keys(""))?;
                let which = format!("SELECT * FROM ({typed}) u({names})");
                let (upon, same) = self.given(&ahead, relation, kept, Some(&which), some)?;
                for Heard { served, older, keys: heard, .. } in &heard {
                    for (given, newer) in [(&upon, true), (&same, false)] {
                        let keys = given.iter().filter(|key| heard.contains(*key)).cloned().collect();
                        self.note_at(ahead.taker, relation, ahead.of, served, *older || newer, keys);
                    }
                }
            }
        }
        self.run_errands()
    }

    /// The same of keys about which the run has decided: all know afterwards what the contenders had written upon.
    pub(super) fn note_heard_of(&mut self, relation: i32, settlement: &mut Settlement) {
        let met = std::mem::take(&mut settlement.met);
        for ahead in self.hearsay.ahead.clone().into_iter().filter(|_| !met.is_empty()) {
            let (giver, of) = (self.members[ahead.giver].index, ahead.of);
            // A change that has come to the author may be what his own were written upon: then it says nothing of these.
            let tells = |one: &&Met| {
                one.contenders.iter().any(|(source, towards)| *source == giver && (one.merged || towards & (1 << of) != 0))
            };
            let keys: Vec<&Key> = met.iter().filter(tells).map(|one| &one.key).collect();
            if let Some(served) = self.more_of(&ahead) {
                self.note_at(ahead.taker, relation, of, &served, true, keys.iter().map(|key| key.to_vec()).collect());
            }
            for Heard { served, keys: heard, .. } in self.heard_by(&ahead, relation) {
                let keys = keys.iter().filter(|key| heard.contains(&****key)).map(|key| key.to_vec()).collect();
                self.note_at(ahead.taker, relation, of, &served, true, keys);
            }
        }
    }

    /// Notes at a source what it does not know yet.
    fn note_at(&mut self, at: usize, relation: i32, of: usize, served: &Served, older: bool, mut keys: Vec<Vec<String>>) {
        for heard in self.hearsay.heard.iter().chain(&self.hearsay.fresh) {
            let says = heard.older || !older;
            if says && (heard.at, heard.relation, heard.of) == (at, relation, of) && heard.served.reaches(served) {
                keys.retain(|key| !heard.keys.contains(key));
            }
        }
        let Some(oid) = self.members[at].shapes.get(&relation).map(|t| t.oid.to_string()).filter(|_| !keys.is_empty()) else {
            return;
        };
        let own = self.in_order(at, relation, keys.clone(), true);
        for some in own.chunks(AT_ONCE) {
            let (sync, source, json) = (self.plan.sync.capture_name(), self.member_name(of).to_string(), keys_json(some));
            let older = older.to_string();
            let params = [&self.plan.control, &sync, &oid, &source, &served.snapshot, &served.identity, &json, &older];
            let params = params.map(String::clone).into();
            self.errand(at, NOTE.to_string(), params);
        }
        let keys = Rc::new(keys.into_iter().collect());
        self.hearsay.fresh.push(Heard { at, relation, of, served: served.clone(), older, keys });
    }

    /// Keys in the order of columns that they have there (`there`), out of that in which they go through this run, or the other way
    /// round: notes are read by other runs, in which another source is the first. Those of another key mean nothing any more.
    fn in_order(&self, at: usize, relation: i32, keys: Vec<Vec<String>>, there: bool) -> Vec<Vec<String>> {
        let here = self.key_of(relation);
        let own = self.members[at].shapes.get(&relation).and_then(|t| t.key.clone()).unwrap_or_default();
        let (from, to) = if there { (&here, &own) } else { (&own, &here) };
        let slots: Option<Vec<usize>> = to.iter().map(|k| from.iter().position(|f| f == k)).collect();
        let Some(slots) = slots.filter(|s| s.len() == from.len()) else { return Vec::new() };
        let fits = keys.into_iter().filter(|key| key.len() == slots.len());
        fits.map(|key| slots.iter().map(|slot| key[*slot].clone()).collect()).collect()
    }

    /// The statement for the keys of which the giver keeps, for members that were away, what it has got of the one that is away
    /// now.
    fn kept_of(&self, ahead: &Ahead, relation: i32) -> Result<Option<String>, Broken> {
        let news = format!(" AND origin = {}", quote_literal(&origin::kept(&self.origin(ahead.of))));
        Ok(self.with_work(ahead.giver, relation, |work, _| {
            let mut reading = work.reading();
            reading.news = &news;
            reading.distinct("true")
        })?)
    }

    /// The keys of a relation that the giver gives to the taker in this run: first those that it has changed since the one that
    /// is away was served by it, and then those of which that one has got all that the giver has changed. Only those of `which`, a query
    /// with these keys as its parameters, if there is one.
    fn given(
        &mut self,
        ahead: &Ahead,
        relation: i32,
        kept: &Kept,
        which: Option<&str>,
        params: &[Vec<String>],
    ) -> Result<(Listed, Listed), Broken> {
        let Ahead { giver, of, .. } = *ahead;
        if !self.changed(relation).contains(&giver) {
            return Ok(Default::default());
        }
        let own = self.with_work(giver, relation, |work, offer| {
            let mut reading = work.reading();
            let unsent = self.unsent(giver, ahead.taker, relation);
            reading.excluded = unsent.or_else(|| kept.get(&(giver, relation)).map(String::as_str));
            let (_, away) = offer.away.iter().find(|(index, _)| *index == of)?;
            let keys = reading.keys("d.");
            let fits = reading.fitting.map_or_else(String::new, |encoding| {
                format!(" AND bucardo.capture_fits(ROW({keys})::pg_catalog.text, {})", quote_literal(encoding))
            });
            // What others wait for goes there too.
            let given = offer.union().condition();
            let newer = reading.distinct(&format!("{given} AND {}", away.condition()));
            let same = [reading.same("d.", "w."), reading.same("d.", "a.")];
            Some((reading.distinct(&given), newer, same, fits))
        })?;
        let Some((own, newer, [same, since], fits)) = own.flatten() else { return Ok(Default::default()) };
        let n = self.key_of(relation).len();
        // As they are noted, where equal keys have other texts.
        let (from, of_those) = match which {
            Some(which) if !params.is_empty() => (format!(" JOIN ({which}) w ON {same}"), String::new()),
            Some(which) => (String::new(), format!(" AND EXISTS (SELECT FROM ({which}) w WHERE {same})")),
            None => Default::default(),
        };
        let told = if from.is_empty() { "d" } else { "w" };
        let sql = format!(
            "SELECT a.newer IS TRUE, {} FROM ({own}) d{from} LEFT JOIN (SELECT *, true AS newer FROM ({newer}) n) a ON {since} WHERE true{of_those}{fits}",
            list(n, |i| format!("{told}.k{}", i + 1), ", ")
        );
        let arrays: Vec<String> = match params {
            [] => Vec::new(),
            keys => (0..n).map(|c| text_array(keys.iter().map(|k| k[c].as_str()).collect::<Vec<_>>())).collect(),
        };
        let params: Vec<Option<&str>> = arrays.iter().map(|a| Some(a.as_str())).collect();
        let rows = self.members[giver].attempt(|conn| conn.query_params(&sql, &params));
        self.check()?;
        let keys = all_rows(rows.as_ref())
            .map(|(rows, row)| (rows.bool(row, 0), (1..=n).map(|c| rows.text(row, c)).collect::<Vec<String>>()));
        let (upon, same): (Vec<_>, Vec<_>) = keys.partition(|(newer, _)| *newer);
        let plain = |keys: Vec<(bool, Vec<String>)>| keys.into_iter().map(|(_, key)| key).collect();
        Ok((plain(upon), plain(same)))
    }

    /// Forgets the notes that nobody needs after this run, once all that take part have committed it. One that has not would get
    /// what they are about with the next run, as all others would.
    pub(super) fn forget_heard(&mut self, served: u64) {
        let over = std::mem::take(&mut self.hearsay.over);
        let all = served == self.present();
        for (at, over) in over.into_iter().filter(|_| all) {
            let (sources, notes): (Vec<&str>, Vec<&str>) = over.iter().map(|(s, n)| (s.as_str(), n.as_str())).unzip();
            let (sync, sources, notes) = (self.plan.sync.capture_name(), text_array(sources), text_array(notes));
            let params = [&self.plan.control, &sync, &sources, &notes].map(|p| Some(p.as_str()));
            self.members[at].attempt(|conn| conn.query_params(FORGET, &params));
        }
    }

    /// Forgets what sources have noted of a relation that they have got as it is on another one.
    pub(super) fn forget_copied(&mut self, relation: i32) {
        let copied = bits::union(self.copied.iter().filter(|(of, _)| *of == relation).map(|(_, members)| *members));
        for at in self.sources() {
            if self.members[at].bit() & copied == 0 {
                continue;
            }
            let oid = self.members[at].shapes.get(&relation).map(|t| t.oid.to_string());
            let Some(oid) = oid.filter(|_| self.hearsay.noted.contains(&at)) else { continue };
            let params = vec![self.plan.control.clone(), self.plan.sync.capture_name(), oid];
            self.errand(at, FORGET_TABLE.to_string(), params);
            self.hearsay.heard.retain(|heard| (heard.at, heard.relation) != (at, relation));
        }
    }
}

fn all_rows(rows: Option<&Rows>) -> impl Iterator<Item = (&Rows, usize)> {
    rows.into_iter().flat_map(|rows| (0..rows.len()).map(move |row| (rows, row)))
}
