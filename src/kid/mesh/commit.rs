//! The end of a run between sources: what was decided is recorded, each receiver notes how far it was served in the transaction
//! that brings it the rows, all commit together, and then the sources are told. A member must never be told to commit
//! before everything is recorded that others need to carry the run on, should it die.

use super::record::{self, Run, Stand};
use super::{Broken, Mesh};
use crate::fault;
use crate::ident::text_array;
use crate::kid::apply::Receiver;
use crate::kid::gather::Asker;
use crate::kid::members::Pool;
use crate::kid::report::Progress;
use crate::kid::who::Places;
use crate::kid::{deaf, flush, replaced, track, who};

const SERVED: &str = "INSERT INTO bucardo.capture_progress (control, sync, source, member, served, identity, run) \
    SELECT $1, $2, u.source, $3, u.served, u.identity, $4::pg_catalog.int8 \
    FROM unnest($5::pg_catalog.text[], $6::pg_catalog.text[], $7::pg_catalog.text[]) u(source, served, identity) \
    ON CONFLICT (control, sync, source, member) DO UPDATE SET served = excluded.served, identity = excluded.identity, run = excluded.run";

impl Mesh<'_> {
    /// Each receiver that is a source notes up to where it was served, in its own transaction. `all`: also those for whom
    /// there was nothing, because it must be known that they took part. A member on which a table was replaced under this run
    /// is defeated: what was read there is not what its snapshot had, and what came after it would be taken for older.
    pub(super) fn note_progress(&mut self, relations: &[i32], all: bool) {
        let sync = self.plan.sync.capture_name();
        let run = self.run.to_string();
        let sources = self.sources();
        for at in 0..self.members.len() {
            let me = self.name(at).to_string();
            let is_source = self.offers[at].is_some();
            // One that is alone notes of itself that it took part.
            let other = |s: usize| s != at || (all && sources.len() == 1);
            let gives = |s: &&usize| is_source && other(**s) && self.offers[**s].as_ref().is_some_and(|o| all || o.has_news());
            let from: Vec<usize> = sources.iter().filter(gives).copied().collect();
            let offers: Vec<_> = from.iter().filter_map(|s| self.offers[*s].as_ref()).collect();
            let names = text_array(from.iter().map(|s| self.name(*s)).collect::<Vec<_>>());
            let served = text_array(offers.iter().map(|o| o.snapshot.as_str()).collect::<Vec<_>>());
            let identities = text_array(offers.iter().map(|o| o.identity.as_str()).collect::<Vec<_>>());
            let control = self.plan.control.clone();
            let params = [control.as_str(), &sync, &me, &run, &names, &served, &identities].map(|p| Some(p.as_bytes()));
            let is_deaf = self.plan.is_deaf(self.members[at].index, relations.iter().copied());
            let oids: Vec<u32> = relations.iter().filter_map(|r| self.members[at].shapes.get(r)).map(|t| t.oid).collect();
            self.members[at].attempt(|conn| {
                conn.pipeline_begin()?;
                if !from.is_empty() {
                    conn.pipeline_add(SERVED, &[], &params)?;
                }
                if is_deaf {
                    deaf::queue(conn)?;
                }
                replaced::queue(conn, oids.iter().copied())?;
                conn.pipeline_send()
            });
        }
        for member in &mut self.members {
            member.attempt(|conn| replaced::judge(conn.pipeline_collect().map_err(deaf::explained)?.last()));
        }
    }

    /// Whether all sources note that they took part, also those for whom there is nothing.
    pub(super) fn all_take_part(&self) -> bool {
        self.decides() || !self.carried.is_empty()
    }

    /// Whether the run has decided anything.
    pub(super) fn decides(&self) -> bool {
        self.recorded > 0 || !self.decisions.is_empty()
    }

    pub(super) fn record_of(&self) -> Run<'_> {
        Run { number: self.run, sync: &self.plan.sync.name, since: self.since }
    }

    /// Records what was decided since the last time.
    pub(super) fn record(&mut self, stand: Stand) -> Result<(), Broken> {
        let decisions = std::mem::take(&mut self.decisions);
        if decisions.is_empty() && matches!(stand, Stand::Part) {
            return Ok(());
        }
        if self.recorded == 0 {
            self.since = record::newest()?;
        }
        self.recorded += decisions.len() as u64;
        record::record(&self.record_of(), |r| self.relation_name(r), decisions, stand)?;
        Ok(())
    }

    /// Records the decisions, then commits all members: sends to all, then collects.
    pub(super) fn commit(&mut self, pool: &mut Pool, progress: &mut Progress) -> Result<u64, Broken> {
        fault::point("kid.before_commit")?;
        self.flush(pool)?;
        // What others are about to have of it, it must be found to have lost, also if it never answers again.
        for at in self.sources() {
            let (member, offer) = (&self.members[at], self.offers[at].as_ref().filter(|o| o.has_news()));
            let seen = offer.map(|o| (member.index, (member.session.who.identity.clone(), o.place.clone())));
            progress.seen.extend(seen);
        }
        if self.decides() {
            self.record(Stand::Whole(self.doubt()))?;
        }
        self.note_unaware()?;
        self.committing = true;
        // Sources first: what one of them holds alone can be found there, should all others be gone.
        let (sources, targets): (Vec<usize>, Vec<usize>) = (0..self.members.len()).partition(|at| self.offers[*at].is_some());
        for at in sources.into_iter().chain(targets) {
            self.members[at].attempt(who::commit);
            fault::point("kid.between_commits")?;
        }
        let mut committed = 0;
        for member in &mut self.members {
            if let Some(place) = member.attempt(who::committed) {
                member.session.place = Some(place);
                committed |= member.bit();
            }
        }
        fault::point("kid.after_commit")?;
        if committed != 0 {
            progress.conflicts += self.recorded;
        }
        // A target that refuses a row gets it as any other, and decides nothing.
        if self.check().is_ok() && self.all_take_part() {
            self.end_doubt()?;
        }
        Ok(committed)
    }

    /// Waits until what was read of the sources is on their disks, and all that is noted of them.
    fn flush(&mut self, pool: &mut Pool) -> Result<(), Broken> {
        let all = self.all_take_part();
        for at in self.sources() {
            let noted = self.offers[at].as_ref().filter(|o| all || o.has_news());
            let Some(lsn) = noted.and_then(|o| o.unflushed.clone()) else { continue };
            let db = &self.plan.sync.members[self.members[at].index].db;
            self.members[at].attempt(|conn| flush::wait(conn, pool, db, &lsn));
        }
        self.check()
    }

    /// Notes at each source how far the others were served: the only place for pure targets, a copy for the rest.
    pub(super) fn mark(&mut self, served: u64) {
        let sync = &self.plan.sync;
        let place = |m: &Receiver| Some((m.index, (m.session.who.identity.clone(), m.session.place.clone()?)));
        let places: Places = self.members.iter().filter_map(place).collect();
        for at in (0..self.members.len()).filter(|at| self.offers[*at].is_some()).collect::<Vec<_>>() {
            let member = &mut self.members[at];
            let others = served & !member.bit();
            let Some(offer) = self.offers[at].as_ref().filter(|o| o.has_news() && others != 0) else { continue };
            let asker = Asker { control: &self.plan.control, sync, source: member.index };
            let (snapshot, copied) = (offer.snapshot.clone(), (offer.copy_all, offer.copy_empty));
            member.attempt(|conn| track::mark(conn, &asker, &snapshot, others, (copied, &places)));
        }
    }
}
