//! Runs that died after they had recorded decisions. What is recorded was decided: if a source has committed it, or might
//! have and is away, the others carry it on as it was recorded, and nothing is decided again. Only when every source that
//! took part says that it has not committed is the record forgotten.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::decide::KeyChange;
use super::offer::{self, Settled};
use super::open::Begun;
use super::record::{self, Decided, Doubt, Made, Stood};
use super::settle::{Settlement, Written};
use super::{Broken, Mesh};
use crate::catalog::sync::{Member, Role};
use crate::ident::{quote_ident, text_array};
use crate::kid::bits;
use crate::kid::gather::window;
use crate::kid::statements::{Window, list};

/// How many recorded keys a source is asked about at once.
const KEYS: usize = 10_000;

/// What this run does for runs that died.
#[derive(Default)]
pub(super) struct Carried {
    /// Rows that members need, by relation and key.
    rows: HashMap<i32, HashMap<Vec<String>, Row>>,
    /// Changes that are handled for good.
    lost: Vec<Lost>,
    /// Runs of which nobody has anything.
    void: Vec<i64>,
    /// Runs that everybody has when this one has committed.
    taken: Vec<i64>,
    /// Whether it must be known who took part.
    judged: bool,
    /// Keys whose recorded row has not gone to who lacked it, because he had changed it since without knowing: with the runs that
    /// decided about them.
    unaware: Vec<(i64, i64, String)>,
}

/// A row that a run which died has left.
struct Row {
    written: Written,
    run: i64,
    since: i64,
    /// The sources, by their places in the sync, that lack it, as bits.
    lack: u64,
    /// As it is recorded.
    relation: String,
    key: Map<String, Value>,
}

/// Changes of a source (by place) that have lost in a run that died, or that nobody has won in it.
struct Lost {
    at: usize,
    relation: i32,
    /// Of that run.
    snapshot: String,
    keys: Vec<Vec<String>>,
    /// The names of those against which they still contend.
    open: Vec<String>,
}

/// What becomes of a source's change of a key about which a run that died has decided.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Fate {
    Lost,
    /// Nobody has won.
    Open,
    /// All write another row, which it brings to whoever waits for it.
    Made,
}

/// What a run that died has decided, as far as its tables and keys are there still.
struct Recorded {
    decided: Vec<(i32, Vec<String>, Decided)>,
    made: Vec<(i32, Vec<String>, Made)>,
    /// The keys of these.
    made_keys: HashSet<(i32, Vec<String>)>,
    /// The keys of which not everybody who has the decision knows the rows.
    unknown: HashSet<(i32, Vec<String>)>,
}

impl Carried {
    pub fn has_rows(&self, relation: i32) -> bool {
        self.rows.contains_key(&relation)
    }

    /// Whether sources need not note that they took part, where they get nothing.
    pub fn is_empty(&self) -> bool {
        !self.judged
    }

    pub fn keys(&self, relation: i32) -> HashSet<Vec<String>> {
        self.rows.get(&relation).into_iter().flatten().map(|(key, _)| key.clone()).collect()
    }

    /// Takes note of a key of these that somebody has changed since.
    pub fn is_changed(&mut self, relation: i32, key: &[String], changes: &[KeyChange]) {
        let Some(row) = self.rows.get(&relation).and_then(|rows| rows.get(key)) else { return };
        if changes.iter().any(|c| row.lack & (1 << c.source) != 0) {
            self.unaware.push((row.run, row.since, record::unaware(&row.relation, &row.key)));
        }
    }

    fn put(&mut self, relation: i32, row: Row) {
        self.rows.entry(relation).or_default().insert(row.written.key.clone(), row);
    }

    /// What a later run has decided goes before what an earlier one had.
    fn supersede(&mut self, relation: i32, key: &[String]) {
        self.rows.get_mut(&relation).map(|rows| rows.remove(key));
    }

    /// The rows of a relation, but for those of the keys that somebody has changed since.
    pub fn rows_for(&self, relation: i32, changed: &HashSet<Vec<String>>, settlement: &mut Settlement) {
        let rows = self.rows.get(&relation).into_iter().flatten().map(|(_, row)| &row.written);
        for one in rows.filter(|w| !changed.contains(&w.key)) {
            if one.row.is_none() { &mut settlement.removed } else { &mut settlement.written }.push(one.clone());
        }
    }
}

/// A relation and a key of it, if both are there still.
type Keyed = Option<(i32, Vec<String>)>;

impl Mesh<'_> {
    /// Judges each run that is in doubt by what the sources say.
    pub(super) fn settle_doubt(&mut self, begun: &[Option<Begun>]) -> Result<(), Broken> {
        if self.follows() {
            return Ok(());
        }
        let sync = self.plan.sync.name.clone();
        for doubt in record::doubts(&sync)? {
            let here: Vec<usize> = self.sources().into_iter().filter(|at| doubt.sources.contains_key(self.name(*at))).collect();
            let missing = |name: &String| {
                self.plan.sync.sources().any(|m| m.db.name == *name) && here.iter().all(|at| self.name(*at) != name)
            };
            let away = doubt.sources.keys().any(missing);
            // A source notes the number of each run in which it takes part, and numbers only grow.
            let has = |at: &usize| {
                let rows = begun[*at].as_ref().and_then(|b| b.progress.as_ref());
                rows.is_some_and(|rows| (0..rows.len()).any(|row| rows.number::<i64>(row, 3).is_some_and(|run| run >= doubt.run)))
            };
            let (have, lack): (Vec<usize>, Vec<usize>) = here.iter().partition(|at| has(at));
            if have.is_empty() && !away {
                self.carried.void.push(doubt.run);
                continue;
            }
            let had = |at: &usize| self.has_what_it_had(*at, begun, &doubt);
            let (lack, anew): (Vec<usize>, Vec<usize>) = lack.into_iter().partition(had);
            let lags = self.who_lags(&doubt, &have, &lack);
            if lack.is_empty() && anew.is_empty() && lags.is_empty() {
                if !away {
                    // At once: one that is added later has not got it, and that is no reason to carry it out over what is newer.
                    record::end_doubt(&sync, &[doubt.run])?;
                }
                continue;
            }
            self.carried.judged = true;
            let recorded = self.recorded(&doubt)?;
            self.acknowledge(&doubt, &recorded, &lags);
            if !lack.is_empty() || !anew.is_empty() {
                record::close(&sync, &doubt)?;
                self.carry(&doubt, recorded, lack, anew);
            }
            if !away {
                self.carried.taken.push(doubt.run);
            }
        }
        Ok(())
    }

    /// Forgets the runs of which nobody has anything: this one's transactions began when all of theirs had ended, so nothing of them
    /// comes any more. Once the sources have committed this run, they would be taken for having those too.
    pub(super) fn forget_void(&mut self) -> Result<(), Broken> {
        let void = std::mem::take(&mut self.carried.void);
        Ok(void.into_iter().try_for_each(|run| record::forget_run(&self.plan.sync.name, run))?)
    }

    /// Whether a source has not lost commits since it took part in a run: what it has changed may else have the numbers of
    /// transactions of which something was decided.
    fn has_what_it_had(&mut self, at: usize, begun: &[Option<Begun>], doubt: &Doubt) -> bool {
        let noted = doubt.sources.get(self.name(at)).and_then(|s| s.identity.clone());
        let here = self.offers[at].as_ref().map(|o| o.identity.clone()).unwrap_or_default();
        let rewound = begun[at].as_ref().and_then(Begun::rewound);
        noted.is_none_or(|noted| self.still_has(at, &here, &noted, rewound))
    }

    /// The sources (by place), whether they have what a run has decided or lack it, whose changes others that have it, as bits, were
    /// not served up to that run: these have carried it out from the record.
    fn who_lags(&self, doubt: &Doubt, have: &[usize], lack: &[usize]) -> Vec<(usize, u64)> {
        let lags = |at: &usize| {
            let seen = window(&doubt.sources.get(self.name(*at))?.snapshot);
            let behind = |(index, served): &&(usize, Window)| {
                have.iter().any(|other| self.members[*other].index == *index) && !offer::covers(&seen, served)
            };
            let behind = bits::of(self.offers[*at].iter().flat_map(|o| &o.windows).filter(behind).map(|(index, _)| *index));
            (behind != 0).then_some((*at, behind))
        };
        have.iter().chain(lack).filter_map(lags).collect()
    }

    /// Who has carried a decision out knows the change that has won, and all that were merged: what was written there since
    /// does not contend with these once more.
    fn acknowledge(&mut self, doubt: &Doubt, recorded: &Recorded, lags: &[(usize, u64)]) {
        for (at, behind) in lags {
            let name = self.name(*at).to_string();
            let Some(snapshot) = doubt.sources.get(&name).map(|s| s.snapshot.clone()) else { continue };
            let mut keys: HashMap<i32, Vec<Vec<String>>> = HashMap::new();
            let won = recorded.decided.iter().filter(|(_, _, d)| d.winner.as_ref() == Some(&name));
            let won: HashSet<(i32, Vec<String>)> = won.map(|(relation, key, _)| (*relation, key.clone())).collect();
            for (relation, key) in won.union(&recorded.made_keys).filter(|one| !recorded.unknown.contains(one)) {
                keys.entry(*relation).or_default().push(key.clone());
            }
            for (relation, keys) in keys {
                self.settle_at(
                    *at,
                    relation,
                    Settled { snapshot: window(&snapshot), keys, open: !behind, known: true, heard: false, older: false },
                );
            }
        }
    }

    /// Has this run take changes of a source as handled.
    pub(super) fn settle_at(&mut self, at: usize, relation: i32, settled: Settled) {
        if let Some(oid) = self.members[at].shapes.get(&relation).map(|t| t.oid)
            && let Some(offer) = &mut self.offers[at]
        {
            offer.settled.entry(oid).or_default().push(settled);
        }
    }

    /// What a run has decided, with the keys as this one names them.
    fn recorded(&mut self, doubt: &Doubt) -> Result<Recorded, Broken> {
        let keys = self.recorded_keys(&doubt.made.iter().map(|m| (m.relation.as_str(), &m.key)).collect::<Vec<_>>())?;
        let made = doubt.made.iter().zip(keys).filter_map(|(m, found)| found.map(|(relation, key)| (relation, key, m.clone())));
        let (unaware, made): (Vec<_>, Vec<_>) = made.partition(|(_, _, made)| made.unaware);
        let mut unknown: HashSet<(i32, Vec<String>)> = unaware.into_iter().map(|(r, key, _)| (r, key)).collect();
        let here: Vec<String> = self.sources().into_iter().map(|at| self.name(at).to_string()).collect();
        let decided = record::decided(&self.plan.sync.name, doubt, &here)?;
        let keys = self.recorded_keys(&decided.iter().map(|d| (d.relation.as_str(), &d.key)).collect::<Vec<_>>())?;
        let decided = decided.into_iter().zip(keys);
        let decided: Vec<_> = decided.filter_map(|(d, found)| found.map(|(relation, key)| (relation, key, d))).collect();
        unknown.extend(decided.iter().filter(|(_, _, d)| d.unfit).map(|(relation, key, _)| (*relation, key.clone())));
        Ok(Recorded { decided, made_keys: made.iter().map(|(r, key, _)| (*r, key.clone())).collect(), made, unknown })
    }

    /// Takes over what a run has decided, for the sources that lack it, and for the targets, which cannot tell. `anew`: sources
    /// that lack it and have lost commits.
    fn carry(&mut self, doubt: &Doubt, recorded: Recorded, lack: Vec<usize>, anew: Vec<usize>) {
        let bits_of = |places: &[usize]| bits::union(places.iter().map(|at| self.members[*at].bit()));
        let lacking = bits_of(&lack) | bits_of(&anew);
        let targets: Vec<usize> = (0..self.members.len()).filter(|at| self.offers[*at].is_none()).collect();
        let towards = lacking | bits_of(&targets);
        let row_of = |(relation, key): (String, Map<String, Value>), texts: Vec<String>, row: &Value, unasked, of| {
            let row = Some(row).filter(|row| !row.is_null()).map(Value::to_string);
            // Whole also where only some columns were written: the change behind the others is not everywhere.
            let written = Written { key: texts, row, cleared: Vec::new(), towards, unasked, of };
            Row { written, run: doubt.run, since: doubt.since(), lack: lacking, relation, key }
        };
        let Recorded { decided, made, made_keys, .. } = recorded;
        for (relation, texts, Made { relation: name, key, row, cleared, .. }) in made {
            // It may be an orphan's, and who has noted that has maybe not committed it.
            let unasked = row.is_null() || !cleared.is_empty();
            self.carried.put(relation, row_of((name, key), texts, &row, unasked, None));
        }
        let mut fates: HashMap<(usize, i32, Fate), Vec<Vec<String>>> = HashMap::new();
        for (relation, key, decision) in decided {
            let is_made = made_keys.contains(&(relation, key.clone()));
            let fate = match decision.winner {
                _ if is_made => Fate::Made,
                Some(_) => Fate::Lost,
                None => Fate::Open,
            };
            // Whatever a source had done to the key by then: it was decided about, or known to who contended.
            for at in lack.iter().filter(|at| is_made || decision.winner.as_deref() != Some(self.name(**at))) {
                fates.entry((*at, relation, fate)).or_default().push(key.clone());
            }
            if is_made {
                continue;
            }
            self.carried.supersede(relation, &key);
            // The winner is away: its row is taken from the record.
            if let Some(row) = decision.away {
                let of = self.plan.sync.members.iter().position(|m| decision.winner.as_ref() == Some(&m.db.name));
                self.carried.put(relation, row_of((decision.relation, decision.key), key, &row, false, of));
            }
        }
        let absent = |m: &Member| !doubt.sources.contains_key(&m.db.name);
        for ((at, relation, fate), keys) in fates {
            let name = self.name(at).to_string();
            let Some(snapshot) = doubt.sources.get(&name).map(|s| s.snapshot.clone()) else { continue };
            // As in `note_lost`: those that were away contend with it, and its own name says that nobody has won.
            let contends = |m: &Member| fate == Fate::Open && m.role == Role::Source && (absent(m) || m.db.name == name);
            let open = bits::where_member(&self.plan.sync, contends);
            let names = self.plan.sync.members.iter().filter(|m| contends(m)).map(|m| m.db.name.clone()).collect();
            self.settle_at(
                at,
                relation,
                Settled { snapshot: window(&snapshot), keys: keys.clone(), open, known: false, heard: false, older: false },
            );
            if fate != Fate::Made {
                self.carried.lost.push(Lost { at, relation, snapshot, keys, open: names });
            }
        }
    }

    /// Relations and keys as they are recorded, as this run names them; None: they are not there any more.
    fn recorded_keys(&mut self, recorded: &[(&str, &Map<String, Value>)]) -> Result<Vec<Keyed>, Broken> {
        let mut found = vec![None; recorded.len()];
        let relations: Vec<(i32, String)> = self.plan.sync.relations.iter().map(|r| (r.id, r.full_name())).collect();
        for (relation, name) in relations {
            let places: Vec<usize> = (0..recorded.len()).filter(|i| recorded[*i].0 == name).collect();
            for some in places.chunks(KEYS) {
                let keys: Vec<&Map<String, Value>> = some.iter().map(|i| recorded[*i].1).collect();
                for (place, key) in some.iter().zip(self.texts_of(relation, &keys)) {
                    found[*place] = key.map(|key| (relation, key));
                }
            }
        }
        self.check()?;
        Ok(found)
    }

    /// The texts of keys, as a source says them: many a value reads otherwise as JSON.
    fn texts_of(&mut self, relation: i32, keys: &[&Map<String, Value>]) -> Vec<Option<Vec<String>>> {
        let mut texts = vec![None; keys.len()];
        let key = self.key_of(relation);
        let at = self.sources().into_iter().find(|at| self.members[*at].shapes.contains_key(&relation));
        let Some(at) = at else { return texts };
        let sql = format!(
            "SELECT e.ord, {} FROM pg_catalog.jsonb_array_elements($1::pg_catalog.jsonb) WITH ORDINALITY e(v, ord), \
             LATERAL pg_catalog.jsonb_to_record(e.v) AS r({})",
            list(key.len(), |i| format!("r.{}", quote_ident(&key[i])), ", "),
            list(key.len(), |i| format!("{} {}", quote_ident(&key[i]), self.kind(at, relation, &key[i])), ", "),
        );
        let json = serde_json::json!(keys).to_string();
        let rows = self.members[at].attempt(|conn| {
            // A key may have another type by now; the transaction must go on.
            conn.query("SAVEPOINT bucardo_keys")?;
            let rows = conn.query_params(&sql, &[Some(&json)]);
            conn.query("ROLLBACK TO SAVEPOINT bucardo_keys; RELEASE SAVEPOINT bucardo_keys")?;
            Ok(rows.ok())
        });
        let Some(rows) = rows.flatten() else { return texts };
        for row in 0..rows.len() {
            let key: Option<Vec<String>> = (1..=key.len()).map(|c| rows.get(row, c).map(str::to_string)).collect();
            let place = rows.number::<usize>(row, 0).and_then(|ord| texts.get_mut(ord.wrapping_sub(1)));
            place.into_iter().for_each(|place| place.clone_from(&key));
        }
        texts
    }

    /// Notes at the sources what has lost in runs that died, as if they had committed them.
    pub(super) fn note_carried(&mut self) -> Result<(), Broken> {
        let lost = std::mem::take(&mut self.carried.lost);
        for Lost { at, relation, snapshot, keys, open } in &lost {
            self.note_settled(*at, *relation, snapshot, keys, &text_array(open.iter().map(String::as_str).collect::<Vec<_>>()));
        }
        self.carried.lost = lost;
        self.run_errands()
    }

    /// Records, before anything is committed, which of the rows that this run has carried on are not known everywhere.
    pub(super) fn note_unaware(&mut self) -> Result<(), Broken> {
        let unaware = std::mem::take(&mut self.carried.unaware);
        Ok(record::note_unaware(&self.plan.sync.name, &unaware)?)
    }

    /// After all sources have committed: this run, and those that everybody has by it.
    pub(super) fn end_doubt(&mut self) -> Result<(), Broken> {
        self.carried.taken.push(self.run);
        record::end_doubt(&self.plan.sync.name, &self.carried.taken)?;
        Ok(())
    }

    /// Where the sources stand, by which this run is carried on if it dies. None: there is nobody to contend with.
    pub(super) fn doubt(&self) -> Option<HashMap<String, Stood>> {
        let sources = self.sources();
        let one = |at: &usize| {
            let offer = self.offers[*at].as_ref()?;
            let stood = Stood { snapshot: offer.snapshot.clone(), identity: Some(offer.identity.clone()) };
            Some((self.name(*at).to_string(), stood))
        };
        Some(sources.iter().filter_map(one).collect()).filter(|_| sources.len() > 1)
    }
}
