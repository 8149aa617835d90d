//! Rows of all sources brought in together, for when unique values move between rows: everything is staged on every
//! receiver first, then all that changes is deleted there, then rows that only a receiver has make room, and only then is
//! anything inserted. Slower, and taken only after a receiver has refused a value.

use super::keep::Kept;
use super::later::Group;
use super::settle::Decision;
use super::{Broken, Mesh};
use crate::kid::report::Progress;
use crate::kid::statements::Join;

/// What is to be done on one receiver with what one source has staged there.
struct Staged {
    /// The receiver, by its place in the sync.
    receiver: usize,
    /// The source, likewise.
    source: usize,
    stage: String,
    note: Option<String>,
    deletes: Vec<String>,
    inserts: Vec<String>,
}

impl Mesh<'_> {
    /// Sends all sources' rows of a relation. What only a receiver had and had to go is told.
    pub(super) fn send_thoroughly(
        &mut self,
        relation: i32,
        kept: &Kept,
        progress: &mut Progress,
    ) -> Result<Vec<Decision>, Broken> {
        let name = self.relation_name(relation);
        let of_it = self.offers.iter().flatten().flat_map(|o| &o.changes).filter(|c| c.relation == relation);
        let changes: u64 = of_it.map(|c| c.changes).sum();
        if changes > 0 {
            progress.relation(&name, 0);
        }
        let mut staged = Vec::new();
        for at in self.changed(relation) {
            for group in self.groups(at, &[relation], kept)? {
                self.stage(at, relation, group, &mut staged)?;
            }
        }
        for one in &staged {
            let Some(at) = self.place(one.receiver) else { continue };
            let member = &mut self.members[at];
            member.attempt(|conn| conn.query(Join::Seek.settings()));
            if let Some(note) = &one.note {
                member.attempt_on(&name, |conn| conn.query(note));
            }
            for (i, sql) in one.deletes.iter().enumerate() {
                let rows = member.attempt_on(&name, |conn| conn.query(sql));
                // Only the first deletes for good; what the others delete comes back.
                member.counts.deletes += rows.filter(|_| i == 0).map_or(0, |r| r.affected());
            }
        }
        let mut decisions = Vec::new();
        for one in &staged {
            if let Some(at) = self.place(one.receiver) {
                decisions.extend(self.remove_clashing(at, one.source, relation, &one.stage)?);
            }
        }
        for one in &staged {
            let Some(at) = self.place(one.receiver) else { continue };
            let member = &mut self.members[at];
            for sql in &one.inserts {
                let rows = member.attempt_on(&name, |conn| conn.query(sql));
                member.counts.upserts += rows.map_or(0, |r| r.affected());
            }
        }
        self.check()?;
        if changes > 0 {
            progress.relation(&name, changes);
        }
        Ok(decisions)
    }

    /// Brings one source's rows of a relation into staging tables of others.
    fn stage(&mut self, at: usize, relation: i32, group: Group, staged: &mut Vec<Staged>) -> Result<(), Broken> {
        let from = self.members[at].index;
        self.with_source(at, group, |pass, work, source, others| {
            let Some(item) = work.iter().find(|w| w.change.relation == relation) else { return Ok(()) };
            pass.stage(item, source, others)?;
            for receiver in others.iter() {
                let Ok(writing) = item.writing(receiver) else { continue };
                let mut deletes = writing.apply_stage_thoroughly();
                let inserts = deletes.split_off(3);
                let stage = writing.stage.clone();
                let note = pass.note(item, receiver);
                staged.push(Staged { receiver: receiver.index, source: from, stage, note, deletes, inserts });
            }
            Ok(())
        });
        self.check()
    }
}
