//! What a source has got of another one by way of a third. Its own account says only what that other one has served to it; but
//! who gives a row gives all that the row was written upon, also of one that is away. This is noted key by key beside the rows, so that
//! changes which are known do not come once more, as if nobody had heard of them, when their author is back. It must never
//! take for known what the giver had not got when it was read.

use std::collections::{HashMap, HashSet};

use super::contend::Key;
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
/// How many keys go into one note.
const AT_ONCE: usize = 10_000;

const NOTE: &str = "INSERT INTO bucardo.capture_heard (control, sync, relid, source, served, identity, keys) \
    VALUES ($1, $2, $3::pg_catalog.oid, $4, $5, $6, $7::pg_catalog.jsonb)";
/// Who has been served by a source itself knows all that was heard of it.
pub(super) const FORGET: &str =
    "DELETE FROM bucardo.capture_heard WHERE control = $1 AND sync = $2 AND source = ANY($3::pg_catalog.text[])";

/// How far a source was served by another one, and what that one was then.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Served {
    snapshot: String,
    identity: String,
}

/// Keys of which a source has got, by way of others, what one that is away had changed.
#[derive(Clone, Debug)]
struct Heard {
    /// Where that is noted, by place.
    at: usize,
    relation: i32,
    /// The one that is away, by its place in the sync.
    of: usize,
    served: Served,
    keys: Vec<Vec<String>>,
}

/// What the sources say of others.
#[derive(Debug, Default)]
pub(super) struct Hearsay {
    /// By place, and by the place in the sync of one that is away: how far that one has served it.
    accounts: HashMap<(usize, usize), Served>,
    /// Of those that are away.
    heard: Vec<Heard>,
    /// The sources, by place, that have notes, also of those that are here.
    noted: HashSet<usize>,
    ahead: Vec<Ahead>,
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
        let absent = bits::where_member(&self.plan.sync, |m| m.role == Role::Source) & !self.present();
        let place_of = |name: &str| self.plan.sync.members.iter().position(|m| m.db.name == name);
        let mut known = Vec::new();
        for at in self.sources() {
            let Some(begun) = &begun[at] else { continue };
            for (rows, row) in
                begun.progress.iter().filter(|_| absent != 0).flat_map(|rows| (0..rows.len()).map(move |r| (rows, r)))
            {
                if let Some(of) = place_of(&rows.text(row, 0)).filter(|of| absent & (1 << of) != 0) {
                    let served = Served { snapshot: rows.text(row, 1), identity: rows.text(row, 2) };
                    self.hearsay.accounts.insert((at, of), served);
                }
            }
            for (rows, row) in begun.settled.iter().flat_map(|rows| (0..rows.len()).map(move |r| (rows, r))) {
                let (Some(source), Some(oid)) = (rows.get(row, 4), rows.number::<u32>(row, 0)) else { continue };
                self.hearsay.noted.insert(at);
                let relation = self.members[at].shapes.iter().find(|(_, table)| table.oid == oid).map(|(relation, _)| *relation);
                let (Some(of), Some(relation)) = (place_of(source), relation) else { continue };
                let served = Served { snapshot: rows.text(row, 1), identity: rows.text(row, 5) };
                let heard = Heard { at, relation, of, served, keys: settled_keys(rows, row)? };
                if absent & (1 << of) != 0 { self.hearsay.heard.push(heard) } else { known.push(heard) }
            }
        }
        for Heard { at, relation, of, served, keys } in known {
            let Some(author) = self.place(of) else { continue };
            let here = self.offers[author].as_ref().map(|o| o.identity.clone()).unwrap_or_default();
            let rewound = begun[author].as_ref().and_then(Begun::rewound);
            if self.still_has(author, &here, &served.identity, rewound) {
                let open = !self.members[at].bit();
                let settled = Settled { snapshot: window(&served.snapshot), keys, open, known: true, older: true };
                self.settle_at(author, relation, settled);
            }
        }
        self.hearsay.ahead = self.ahead();
        self.check()
    }

    /// Whether a source has got more of one that is away than another one has.
    pub(super) fn is_ahead(&self) -> bool {
        !self.hearsay.ahead.is_empty()
    }

    fn ahead(&self) -> Vec<Ahead> {
        let mut all = Vec::new();
        let of_heard = self.hearsay.heard.iter().map(|h| (h.at, h.of));
        let mut givers: Vec<(usize, usize)> = self.hearsay.accounts.keys().copied().chain(of_heard).collect();
        givers.sort_unstable();
        givers.dedup();
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
        let own = self.hearsay.accounts.get(&(taker, of));
        own.is_none_or(|own| own != served && !covers(&window(&served.snapshot), &window(&own.snapshot)))
    }

    /// Notes at each source what it gets of those that are away, beside what this run brings of a relation.
    pub(super) fn note_heard(&mut self, relation: i32, kept: &Kept) -> Result<(), Broken> {
        for Ahead { giver, taker, of } in self.hearsay.ahead.clone() {
            if let Some(served) = self.hearsay.accounts.get(&(giver, of)).cloned().filter(|s| self.lacks(taker, of, s)) {
                let only_kept = self.offers[giver].as_ref().and_then(|o| o.change(relation)).is_some_and(|c| c.changes > MANY);
                let which = only_kept.then(|| self.kept_of(giver, relation, of, taker)).transpose()?.flatten();
                let keys = self.given(giver, taker, relation, kept, which.as_deref(), &[])?;
                self.note_keys_heard(taker, relation, of, &served, &keys);
            }
            for Heard { served, keys, .. } in self.heard_by(giver, of, relation, taker) {
                for some in keys.chunks(AT_ONCE) {
                    let typed = self.any_reading(giver, relation, |r| r.typed_keys(0))?;
                    let names = self.any_reading(giver, relation, |r| r.keys(""))?;
                    let which = format!("SELECT * FROM ({typed}) u({names})");
                    let keys = self.given(giver, taker, relation, kept, Some(&which), some)?;
                    self.note_keys_heard(taker, relation, of, &served, &keys);
                }
            }
        }
        self.run_errands()
    }

    /// The same of keys about which the run has decided: all know afterwards what any of the contenders did.
    pub(super) fn note_heard_of(&mut self, relation: i32, settlement: &mut Settlement) {
        let met = std::mem::take(&mut settlement.met);
        for Ahead { giver, taker, of } in self.hearsay.ahead.clone() {
            let contended = |(_, contenders): &&(Key, u64)| contenders & self.members[giver].bit() != 0;
            let keys: Vec<Key> = met.iter().filter(contended).map(|(key, _)| key.clone()).collect();
            if let Some(served) = self.hearsay.accounts.get(&(giver, of)).cloned().filter(|s| self.lacks(taker, of, s)) {
                self.note_keys_heard(taker, relation, of, &served, &keys);
            }
            for Heard { served, keys: heard, .. } in self.heard_by(giver, of, relation, taker) {
                let heard: HashSet<Vec<String>> = heard.into_iter().collect();
                let keys: Vec<Key> = keys.iter().filter(|key| heard.contains(&***key)).cloned().collect();
                self.note_keys_heard(taker, relation, of, &served, &keys);
            }
        }
    }

    /// What a source has heard of one that is away, and another source lacks.
    fn heard_by(&self, giver: usize, of: usize, relation: i32, taker: usize) -> Vec<Heard> {
        let of_it = self.hearsay.heard.iter().filter(|h| (h.at, h.of, h.relation) == (giver, of, relation));
        of_it.filter(|h| self.lacks(taker, of, &h.served)).cloned().collect()
    }

    fn note_keys_heard(&mut self, at: usize, relation: i32, of: usize, served: &Served, keys: &[impl AsRef<[String]>]) {
        let Some(oid) = self.members[at].shapes.get(&relation).map(|t| t.oid.to_string()) else { return };
        for some in keys.chunks(AT_ONCE) {
            let (sync, source, keys) = (self.plan.sync.capture_name(), self.member_name(of).to_string(), keys_json(some));
            let params = [&self.plan.control, &sync, &oid, &source, &served.snapshot, &served.identity, &keys];
            let params = params.map(String::clone).into();
            self.errand(at, NOTE.to_string(), params);
        }
    }

    /// The statement for the keys of which a source keeps, for members that were away, what it has got of one that is away
    /// now, and has not given to another one.
    fn kept_of(&self, giver: usize, relation: i32, of: usize, taker: usize) -> Result<Option<String>, Broken> {
        let news = format!(" AND origin = {}", quote_literal(&origin::kept(&self.origin(of))));
        let taker = self.members[taker].index;
        Ok(self.with_work(giver, relation, |work, offer| {
            let mut reading = work.reading();
            reading.news = &news;
            let window = offer.windows.iter().find(|(index, _)| *index == taker).map(|(_, window)| window.clone());
            reading.distinct(&window.unwrap_or_else(|| offer.union()).condition())
        })?)
    }

    /// The keys of a relation that a source gives to another one in this run; only those of `which`, a query with these keys as its
    /// parameters, if there is one.
    fn given(
        &mut self,
        giver: usize,
        taker: usize,
        relation: i32,
        kept: &Kept,
        which: Option<&str>,
        params: &[Vec<String>],
    ) -> Result<Vec<Vec<String>>, Broken> {
        let Some(own) = self.own_keys(giver, relation, Some(taker), kept)? else { return Ok(Vec::new()) };
        let n = self.key_of(relation).len();
        let same = self.any_reading(giver, relation, |r| r.same("d.", "w."))?;
        let of_those = which.map_or_else(String::new, |which| format!(" WHERE EXISTS (SELECT FROM ({which}) w WHERE {same})"));
        let sql = format!("SELECT {} FROM ({own}) d{of_those}", list(n, |i| format!("d.k{}::pg_catalog.text", i + 1), ", "));
        let arrays: Vec<String> = match params {
            [] => Vec::new(),
            keys => (0..n).map(|c| text_array(keys.iter().map(|k| k[c].as_str()).collect::<Vec<_>>())).collect(),
        };
        let params: Vec<Option<&str>> = arrays.iter().map(|a| Some(a.as_str())).collect();
        let rows = self.members[giver].attempt(|conn| conn.query_params(&sql, &params));
        self.check()?;
        let texts = |rows: &Rows| (0..rows.len()).map(|row| (0..n).map(|c| rows.text(row, c)).collect()).collect();
        Ok(rows.as_ref().map(texts).unwrap_or_default())
    }

    /// Whether a source has notes of what it has heard.
    pub(super) fn has_heard(&self, at: usize) -> bool {
        self.hearsay.noted.contains(&at)
    }
}
