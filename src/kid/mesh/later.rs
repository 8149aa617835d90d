//! Who gets what a source sends. A change goes to all members as soon as one of them waits for it, because what was decided must be
//! everywhere; but a source that has got more of one that is away may hold a later row than the one that is sent, which would come
//! back as if it had been written upon that. Such a source gets what it waits for, and what this run has decided. It must never miss
//! these, nor what a whole table, or a truncation, has just put back there.

use std::collections::HashMap;

use super::contend::Key;
use super::deliver::excluded;
use super::keep::Kept;
use super::offer::Settled;
use super::settle::Settlement;
use super::{Broken, Mesh};
use crate::ident::text_array;

/// Receivers that get the same of a source.
pub(super) struct Group {
    /// As bits.
    pub members: u64,
    /// The keys that they do not get, as [`Pass::excluded`](crate::kid::apply::Pass::excluded) has them.
    pub excluded: HashMap<i32, String>,
    /// Whether of few rows they get those only that are pending towards them, or that their source has won.
    pub later: bool,
}

impl Mesh<'_> {
    /// The receivers of what a source sends of these relations. Those of which some rows are at hand need no table.
    pub(super) fn groups(
        &mut self,
        at: usize,
        relations: &[i32],
        settlements: &HashMap<i32, Settlement>,
        kept: &Kept,
    ) -> Result<Vec<Group>, Broken> {
        let later = self.later_than(at);
        let aside = later.iter().fold(self.members[at].bit(), |bits, place| bits | self.members[*place].bit());
        let rest = self.present() & !aside;
        let mut groups = vec![Group { members: rest, excluded: excluded(at, kept), later: false }];
        for to in later {
            let mut excluded = excluded(at, kept);
            for relation in relations.iter().copied() {
                if self.is_few(relation) {
                    continue;
                }
                let won = settlements.get(&relation).and_then(|s| s.won.get(&at)).map_or(&[][..], Vec::as_slice);
                let table = self.not_for(at, to, relation, kept, won)?;
                excluded.extend(table.map(|table| (relation, table)));
            }
            groups.push(Group { members: self.members[to].bit(), excluded, later: true });
        }
        groups.retain(|group| group.members != 0);
        Ok(groups)
    }

    /// On a source, the table of the keys that it does not send to a member with later rows. None: it sends all that others get.
    fn not_for(&mut self, at: usize, to: usize, relation: i32, kept: &Kept, won: &[Key]) -> Result<Option<String>, Broken> {
        let bit = self.members[to].bit();
        let is_put_back = self.copied.iter().any(|(of, members)| *of == relation && members & bit != 0);
        if is_put_back || self.offers.iter().flatten().any(|o| o.truncated.contains_key(&relation)) {
            return Ok(None);
        }
        if self.offers[at].as_ref().and_then(|o| o.change(relation)).is_none_or(|c| c.changes == 0) {
            return Ok(None);
        }
        let (present, sources) = (self.present(), self.present_sources());
        let towards = |entry: &Settled| entry.open & if entry.older { sources } else { present };
        let settled = self.table_of_settled(at, relation, towards)?;
        let name = format!("bucardo_later_{relation}_{}", self.members[to].index);
        let made = self.with_work(at, relation, |work, offer| {
            let reading = work.reading();
            let (keys, same) = (reading.keys(""), reading.same("u.", "x."));
            let changes = reading.changes(&offer.union(), "d.at", &offer.towards(), settled.as_deref());
            let create = format!(
                "CREATE TEMP TABLE {name} ON COMMIT DROP AS SELECT {keys} FROM ({changes}) d WHERE d.towards & {bit}::pg_catalog.int8 = 0"
            );
            let take = format!("DELETE FROM pg_temp.{name} x USING (SELECT * FROM ({}) u({keys})) u WHERE {same}", reading.typed_keys(0));
            let add = kept.get(&(at, relation)).map(|kept| format!("INSERT INTO pg_temp.{name} SELECT {keys} FROM {kept}"));
            (create, take, add)
        })?;
        let Some((create, take, add)) = made else { return Ok(None) };
        self.errand(at, create, Vec::new());
        if let Some(n) = won.first().map(|key| key.len()) {
            let texts = |c: usize| text_array(won.iter().map(|k| k[c].as_str()).collect::<Vec<_>>());
            self.errand(at, take, (0..n).map(texts).collect());
        }
        add.into_iter().for_each(|add| self.errand(at, add, Vec::new()));
        self.run_errands()?;
        Ok(Some(format!("pg_temp.{name}")))
    }

    /// Takes note of a key that goes to all as this source (by its place in the sync) has it, because others have changed it too.
    pub(super) fn note_won(&self, key: &Key, source: usize, settlement: &mut Settlement) {
        if let Some(at) = self.place(source).filter(|_| self.is_ahead()) {
            settlement.won.entry(at).or_default().push(key.clone());
        }
    }
}
