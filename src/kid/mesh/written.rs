//! Rows that a run writes as it says itself, on every member, beside what sources send; and what is captured because of it and
//! of what was decided: for members that are away, or fail, where no source has it to send, and for further syncs. It must
//! never be captured where a source has it to send anyway, nor so that it contends with what was written knowing it.

use std::collections::BTreeMap;

use super::Mesh;
use super::contend::Key;
use super::decide::KeyChange;
use super::settle::Settlement;
use crate::catalog::sync::Role;
use crate::ident::{quote_ident, quote_literal, text_array};
use crate::kid::bits;
use crate::kid::gather::window;
use crate::kid::origin;
use crate::kid::statements::{Window, list};

/// A key that is written as it is said here, on every member.
#[derive(Clone, Debug)]
pub(super) struct Written {
    pub key: Vec<String>,
    /// As JSON; None: the row is deleted.
    pub row: Option<String>,
    /// The columns that are written where the row is there, null by then; none: all.
    pub cleared: Vec<String>,
    /// The members that need it, as bits.
    pub towards: u64,
    /// Whether the run does it unasked: no source has changed the key, so that none has anything to send to who is away.
    pub unasked: bool,
    /// The source, by its place in the sync, that is away and has it to send. Where it never comes back, who gets the row now has it
    /// for those that do not.
    pub of: Option<usize>,
}

impl Written {
    /// What all need.
    pub fn everywhere(key: Vec<String>, row: Option<String>) -> Self {
        Self { key, row, cleared: Vec::new(), towards: u64::MAX, unasked: false, of: None }
    }
}

/// A key to be captured, with the time of its change; None: now.
pub(super) type Noted = (Key, Option<i64>);

/// How many rows, and bytes of them, are written by one round trip.
const AT_ONCE: usize = 500;
const BYTES: usize = 1024 * 1024;

/// The rows in parts for one round trip each.
pub(super) fn portions(written: &[Written]) -> Vec<&[Written]> {
    let (mut all, mut rest) = (Vec::new(), written);
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = |one: &&Written| {
            bytes += one.row.as_ref().map_or(0, String::len);
            bytes <= BYTES
        };
        let (some, more) = rest.split_at(rest.iter().take(AT_ONCE).take_while(fits).count().max(1));
        all.push(some);
        rest = more;
    }
    all
}

impl Mesh<'_> {
    /// Has a source capture, as changes of its own, what the run does to rows that nobody has changed: a member that is away,
    /// or that fails in this run, gets it from there. If all take part and are sources, they commit it together.
    pub(super) fn note_unasked(&mut self, relation: i32, written: &[Written]) {
        let all_sources = self.members.len() == self.plan.sync.members.len() && self.offers.iter().all(Option::is_some);
        let unasked: Vec<&Written> = written.iter().filter(|one| one.unasked).collect();
        let sources = self.sources();
        // Best where those who take part know it afterwards: what they write then does not contend with it.
        let known = sources.iter().copied().find(|at| self.known(*at).is_some());
        let Some(at) = known.or(sources.first().copied()).filter(|_| !all_sources && !unasked.is_empty()) else { return };
        let keys: Vec<Noted> = unasked.iter().map(|one| (one.key.as_slice().into(), None)).collect();
        self.note_again(at, relation, &keys);
    }

    /// The members, as bits, that may have to get from a source later what is written now: those that are away, as far as that
    /// source knows of them, and those that may fail without taking the others along.
    fn may_miss(&self, at: usize) -> u64 {
        let away = self.away_from(at);
        let targets = self.members.iter().zip(&self.offers).filter(|(_, offer)| offer.is_none());
        away | bits::union(targets.map(|(member, _)| member.bit()))
    }

    /// The members, as bits, that are away, as far as the source knows of them.
    fn away_from(&self, at: usize) -> u64 {
        bits::of(self.offers[at].iter().flat_map(|o| &o.away).map(|(member, _)| *member))
    }

    /// Has the source (by its place in the sync) whose change of a key goes to all capture it once more, if there is a member
    /// that may miss it now, and that has been served this change and another one of these already: the other one may have
    /// come there last.
    pub(super) fn tell_again(&self, key: &Key, changes: &[KeyChange], source: usize, settlement: &mut Settlement) {
        let (Some(own), Some(at)) = (changes.iter().find(|c| c.source == source), self.place(source)) else { return };
        let others = bits::union(changes.iter().filter(|c| c.source != source).map(|c| !c.towards));
        let missed = self.may_miss(at) & !own.towards;
        // Of a target nobody knows surely what it has, and it contends with nobody. But a source that is away and has this change
        // alone has written in the knowledge of it, and would contend with it once more.
        let sources = bits::sources(&self.plan.sync);
        let spared = missed & sources & self.away_from(at) != 0;
        if others & missed != 0 || (missed & !sources != 0 && !spared) {
            settlement.again.entry(at).or_default().push((key.clone(), Some(own.at)));
        }
    }

    /// The same for a row that all write alike: the contenders' changes bring it to whoever waits for any of them.
    pub(super) fn tell_made(&self, key: &Key, contenders: &[KeyChange], settlement: &mut Settlement) {
        let Some((own, at)) = contenders.first().and_then(|own| Some((own, self.place(own.source)?))) else { return };
        if contenders.iter().fold(self.may_miss(at), |bits, c| bits & !c.towards) != 0 {
            settlement.again.entry(at).or_default().push((key.clone(), Some(own.at)));
        }
    }

    /// The same for a row of a source that is removed everywhere.
    pub(super) fn tell_removed(&self, key: &[String], change: &KeyChange, settlement: &mut Settlement) {
        if let Some(at) = self.place(change.source).filter(|at| self.may_miss(*at) != 0) {
            settlement.again.entry(at).or_default().push((key.into(), Some(change.at)));
        }
    }

    /// Has a source capture keys for members that were served what it, or others, had changed of them. It is noted as if it
    /// had been done by the last transaction that was over when the run began: who takes part has that by then, and what it
    /// writes afterwards it writes in the knowledge of the decision.
    pub(super) fn note_again(&mut self, at: usize, relation: i32, keys: &[Noted]) {
        let Some(oid) = self.members[at].shapes.get(&relation).map(|t| t.oid) else { return };
        let xid = self.known(at).unwrap_or_default();
        // With an origin the time counts that is given, which is that of the change.
        self.note_keys(at, relation, oid, keys, &origin::again(self.plan), &xid);
    }

    /// The last transaction of a source that was over when the run began, if all wait for it that may miss this run.
    fn known(&self, at: usize) -> Option<String> {
        let offer = self.offers[at].as_ref()?;
        let last = window(&offer.snapshot).xmax.parse::<i64>().map_or(0, |xmax| xmax - 1);
        let missing = self.may_miss(at);
        let waits = |(member, w): &(usize, Window)| missing & (1 << member) == 0 || w.holds(last);
        offer.windows.iter().chain(&offer.away).all(waits).then(|| last.to_string())
    }

    /// The same for rows, by their keys as JSON, that the run has removed from a source that had changed them itself.
    pub(super) fn tell_gone(&mut self, at: usize, relation: i32, keys: &[&str]) {
        if self.offers[at].is_some() && self.may_miss(at) != 0 {
            let oid = self.members[at].shapes.get(&relation).map(|t| t.oid);
            let xid = self.known(at).unwrap_or_default();
            oid.into_iter().for_each(|oid| self.note_json(at, relation, oid, keys, &origin::again(self.plan), &xid));
        }
    }

    /// Has a member that passes on what it gets capture what the run has written there.
    pub(super) fn note_written(&mut self, at: usize, relation: i32, keys: &[Noted]) {
        let passes_on = self.passes_on(at, relation).filter(|_| !keys.is_empty());
        let (Some(oid), Some(origin)) = (passes_on, self.origin_for(at)) else { return };
        self.note_keys(at, relation, oid, keys, &origin, "");
    }

    /// Has one source keep what it gets of one that is away, as [`Mesh::relayed`] has what is got of others: two that kept it would
    /// contend with each other for the same row.
    pub(super) fn keep_for_others(&mut self, at: usize, relation: i32, written: &[&Written]) {
        let Some(oid) = self.members[at].shapes.get(&relation).map(|t| t.oid).filter(|_| self.offers[at].is_some()) else {
            return;
        };
        let mut keys: BTreeMap<usize, Vec<Noted>> = BTreeMap::new();
        let sources = self.sources();
        let keeps = |one: &Written| sources.iter().find(|s| one.towards & self.members[**s].bit() != 0) == Some(&at);
        for (of, key) in written.iter().filter(|one| keeps(one)).filter_map(|one| Some((one.of?, &one.key))) {
            keys.entry(of).or_default().push((key.as_slice().into(), None));
        }
        for (of, keys) in keys {
            self.note_keys(at, relation, oid, &keys, &origin::kept(&self.origin(of)), "");
        }
    }

    /// The same for rows that the run has removed there, by their keys as JSON.
    pub(super) fn note_removed(&mut self, at: usize, relation: i32, keys: &[&str]) {
        let passes_on = self.passes_on(at, relation).filter(|_| !keys.is_empty());
        let (Some(oid), Some(origin)) = (passes_on, self.origin_for(at)) else { return };
        self.note_json(at, relation, oid, keys, &origin, "");
    }

    fn note_json(&mut self, at: usize, relation: i32, oid: u32, keys: &[&str], origin: &str, xid: &str) {
        if keys.is_empty() {
            return;
        }
        let key = self.key_of(relation);
        let columns = list(key.len(), |i| format!("r.{} AS k{}", quote_ident(&key[i]), i + 1), ", ");
        let typed = list(key.len(), |i| format!("{} {}", quote_ident(&key[i]), self.kind(at, relation, &key[i])), ", ");
        let json = quote_literal(&format!("[{}]", keys.join(",")));
        let query = format!(
            "SELECT {columns}, pg_catalog.clock_timestamp() AS at FROM pg_catalog.jsonb_to_recordset({json}::pg_catalog.jsonb) r({typed})"
        );
        self.note_query(at, oid, &key, query, origin, xid);
    }

    /// The table, if the member passes on what it gets of it because `makedelta` says so.
    pub(super) fn passes_on(&self, at: usize, relation: i32) -> Option<u32> {
        let noted = self.plan.noted().get(&relation).copied().unwrap_or(0);
        self.members[at].shapes.get(&relation).map(|t| t.oid).filter(|_| noted & self.members[at].bit() != 0)
    }

    /// What marks that as a change of this sync: it comes from another source.
    fn origin_for(&self, at: usize) -> Option<String> {
        let here = self.sources().into_iter().filter(|source| *source != at).map(|source| self.members[source].index);
        // One that is alone has it of one that is away.
        let sources = (0..self.plan.sync.members.len()).filter(|i| self.plan.sync.members[*i].role == Role::Source);
        here.chain(sources.filter(|i| *i != self.members[at].index)).next().map(|source| self.origin(source))
    }

    fn note_keys(&mut self, at: usize, relation: i32, oid: u32, keys: &[Noted], origin: &str, xid: &str) {
        let key = self.key_of(relation);
        let texts = |i: usize| quote_literal(&text_array(keys.iter().map(|(k, _)| k[i].as_str()).collect::<Vec<_>>()));
        let time = |(_, at): &Noted| at.map_or_else(|| "NULL".to_string(), |at| at.max(0).to_string());
        let times = keys.iter().map(time).collect::<Vec<_>>().join(",");
        let query = format!(
            "SELECT {}, coalesce('epoch'::pg_catalog.timestamptz + u.at * '1 microsecond'::pg_catalog.interval, \
             pg_catalog.clock_timestamp()) AS at FROM unnest({}, '{{{times}}}'::pg_catalog.int8[]) u({}, at)",
            list(key.len(), |i| format!("u.t{0}::{1} AS k{0}", i + 1, self.kind(at, relation, &key[i])), ", "),
            list(key.len(), |i| format!("{}::pg_catalog.text[]", texts(i)), ", "),
            list(key.len(), |i| format!("t{}", i + 1), ", "),
        );
        self.note_query(at, oid, &key, query, origin, xid);
    }

    /// The type of a column of the key there, as SQL writes it.
    pub(super) fn kind(&self, at: usize, relation: i32, column: &str) -> &str {
        let found = self.members[at].shapes.get(&relation).and_then(|t| t.column(column));
        found.map_or("pg_catalog.text", |c| c.type_name.as_str())
    }

    fn note_query(&mut self, at: usize, oid: u32, key: &[String], query: String, origin: &str, xid: &str) {
        let names = text_array(key.iter().map(String::as_str).collect::<Vec<_>>());
        let sql = "SELECT bucardo.capture_note_as($1::pg_catalog.oid, $2::pg_catalog.text[], $3, nullif($4, ''), \
            nullif($5, '')::pg_catalog.int8)";
        self.errand(at, sql.to_string(), vec![oid.to_string(), names, query, origin.to_string(), xid.to_string()]);
    }
}

#[cfg(test)]
mod tests {
    use super::{AT_ONCE, BYTES, Written, portions};

    #[test]
    fn portions_are_bounded_and_hold_all() {
        let row = |size: usize| Written::everywhere(Vec::new(), Some("x".repeat(size)));
        let sizes = |all: &[Written]| portions(all).iter().map(|p| p.len()).collect::<Vec<_>>();
        assert_eq!(sizes(&[]), Vec::<usize>::new());
        assert_eq!(sizes(&vec![row(1); AT_ONCE + 1]), [AT_ONCE, 1]);
        assert_eq!(sizes(&[row(1), row(BYTES), row(BYTES + 1), row(BYTES / 2), row(BYTES / 2)]), [1, 1, 1, 2]);
    }
}
