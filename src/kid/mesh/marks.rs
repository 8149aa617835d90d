//! What concerns whole tables, between sources: whose TRUNCATEs are news for whom, and the marks by which members capture
//! that a run has emptied a table there or made it equal to another one. Several syncs may bring a TRUNCATE to one member:
//! it must not be emptied twice, because what was written there in between nobody sends again.

use std::collections::HashMap;

use super::Mesh;
use super::offer::Offer;
use crate::kid::apply;
use crate::kid::origin::{self, Root};
use crate::libpq::Rows;

/// The TRUNCATEs that a source knows.
pub(super) struct Known {
    /// The source, by its place in the sync.
    member: usize,
    /// What the roots begin with of those that began there.
    own: String,
    /// The last one by relation and root.
    last: HashMap<(i32, String), i64>,
}

/// A TRUNCATE that members have not got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    pub root: Root,
    /// Those members, as bits.
    pub towards: u64,
}

impl Known {
    /// Out of the answer to [`origin::KNOWN`]. `relations`: by oid.
    pub fn of(rows: &Rows, relations: &HashMap<u32, i32>, member: usize) -> Self {
        let mut known = Self { member, own: String::new(), last: HashMap::new() };
        for row in 0..rows.len() {
            match rows.number::<u32>(row, 0) {
                None => known.own = rows.text(row, 1),
                Some(oid) => {
                    let serial = rows.number(row, 2).unwrap_or_default();
                    known.last.extend(relations.get(&oid).map(|relation| ((*relation, rows.text(row, 1)), serial)));
                }
            }
        }
        known
    }

    /// Whether it began there, has been there, or a later one from where it began.
    fn has(&self, relation: i32, root: &Root) -> bool {
        let last = self.last.get(&(relation, root.name.clone()));
        (!self.own.is_empty() && root.name.starts_with(&self.own)) || last.is_some_and(|last| *last >= root.serial)
    }
}

/// The marks of a source, as the answer to [`origin::MARKS`] has them, and what all sources know.
pub(super) fn take_marks(rows: &Rows, relations: &HashMap<u32, i32>, known: &[Known], offer: &mut Offer) {
    for row in 0..rows.len() {
        let Some(relation) = rows.number::<u32>(row, 0).and_then(|oid| relations.get(&oid)) else { continue };
        let xid = rows.number(row, 2).unwrap_or(0);
        let towards = offer.pending(xid);
        if rows.get(row, 1) == Some("truncate") {
            let root = Root::of(rows, row);
            let have = known.iter().filter(|k| k.has(*relation, &root)).fold(0, |bits, k| bits | 1 << k.member);
            if let Some(mark) = offer.truncated.get_mut(relation) {
                mark.sent |= towards;
                let towards = towards & !have;
                mark.towards |= towards;
                mark.xids.push(xid);
                // One that all who are here have had is nobody's any more.
                mark.elsewhere |= towards != 0 && offer.absent.iter().any(|w| !w.holds(xid));
                if towards != 0 {
                    mark.at = mark.pending.iter().map(|p| p.root.at).fold(root.at, i64::max);
                    mark.pending.push(Pending { root, towards });
                }
            }
        } else if let Some(whole) = offer.whole.get_mut(relation) {
            *whole |= towards;
        }
    }
}

impl Mesh<'_> {
    /// The name by which a member is known in roots.
    pub(super) fn root_name(&self, at: usize) -> String {
        format!("{}:{}", self.plan.control, self.name(at))
    }

    /// Has a member know the TRUNCATEs that this run brings to it, if it is a source or passes on what it gets. Whether any is
    /// news there. `survives`: something of the table does, so that to hand on a TRUNCATE would be too much.
    pub(super) fn note_truncates(&mut self, at: usize, relation: i32, survives: bool) -> bool {
        let noted = self.noted().get(&relation).copied().unwrap_or(0) & self.members[at].bit() != 0;
        let Some(oid) = self.members[at].shapes.get(&relation).map(|t| t.oid) else { return true };
        if !noted && self.offers[at].is_none() {
            return true;
        }
        let (here, name, bit) = (self.root_name(at), self.relation_name(relation), self.members[at].bit());
        let mut news = false;
        for by in self.sources() {
            let marks = self.offers[by].as_ref().and_then(|o| o.truncated.get(&relation)).map(|mark| &mark.pending);
            let roots = marks.into_iter().flatten().filter(|p| p.towards & bit != 0).map(|p| p.root.clone()).collect::<Vec<_>>();
            let origins = if survives || !noted { Vec::new() } else { self.mark_origins(at, relation, by) };
            news |= origin::note_truncates(&mut self.members[at], (&name, oid), &roots, &origins, &here);
        }
        news
    }

    pub(super) fn truncated_by(&self, relation: i32) -> Option<usize> {
        self.offers.iter().position(|o| o.as_ref().is_some_and(|o| o.truncated.contains_key(&relation)))
    }

    /// A member that captures what it gets captures what single keys cannot say: the source `by` has changed the table there
    /// as a whole.
    pub(super) fn note_whole(&mut self, at: usize, relation: i32, by: Option<usize>) {
        let (Some(by), Some(oid)) = (by, self.members[at].shapes.get(&relation).map(|t| t.oid)) else { return };
        for origin in self.mark_origins(at, relation, by) {
            self.members[at].attempt(|conn| conn.query(&apply::note_whole(oid, &origin)));
        }
    }

    /// The origins of marks that a member captures; none: it captures none.
    fn mark_origins(&self, at: usize, relation: i32, by: usize) -> Vec<String> {
        let origin = self.origin(self.members[by].index);
        let kept = (self.relayed() & self.members[at].bit() != 0).then(|| origin::kept(&origin));
        self.passes_on(at, relation).map(|_| origin).into_iter().chain(kept).collect()
    }
}
