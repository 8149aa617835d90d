//! Whether the catalog still has the sync as the run knows it. Asked when the sources' snapshots are taken and nothing is
//! committed: what was committed after a change of the catalog was answered must not be served by a plan from before it,
//! because what that plan does not know would count as served. It must never let a catalog that changes without end
//! keep a run from getting on.

use super::plan::Plan;
use crate::catalog;
use crate::catalog::sync::{Member, Sync};
use crate::error::Result;
use crate::pg::{shmem, xact};

/// So often a run begins again because the sync is another one, though nothing that it has found is unknown to it.
const PATIENCE: u32 = 3;

/// The sync is another one than the run's plan has: the run begins again with a new plan.
pub struct Outdated;

impl Plan {
    /// Whether what the snapshots show is to be served by this plan. `strangers`: captured tables in which something has
    /// changed, and which it does not know.
    pub fn is_current(&mut self, strangers: &[u32]) -> Result<bool> {
        let new = strangers.iter().filter(|oid| self.strangers.insert(**oid)).count();
        if new > 0 {
            // It may have been made anew under the name of one that was dropped.
            self.forget_shapes();
        } else if self.renewals >= PATIENCE || !self.has_changed()? {
            return Ok(true);
        }
        Ok(false)
    }

    fn has_changed(&self) -> Result<bool> {
        if shmem::generation(shmem::my_database()) == self.generation {
            return Ok(false);
        }
        let now = xact::transaction(|| catalog::sync::load_by_id(self.sync.id))?;
        Ok(now.is_none_or(|now| !is_same(&self.sync, &now)))
    }
}

/// Whether two states of a sync bring the same rows to the members that both have.
fn is_same(old: &Sync, new: &Sync) -> bool {
    let both = |same: &dyn Fn(&Member, &Member) -> bool| {
        let now = |m: &Member| new.members.iter().find(|other| other.db.name == m.db.name);
        old.members.iter().all(|m| now(m).is_none_or(|now| same(m, now)))
    };
    let passes_on = |sync: &Sync| sync.relations.iter().any(|r| r.makedelta.is_none());
    old.relations == new.relations
        && old.conflict_strategy == new.conflict_strategy
        && both(&|old, now| old.role == now.role)
        && (!passes_on(new) || both(&|old, now| old.db.makedelta == now.db.makedelta))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::sync::{Role, tests::sync};

    #[test]
    fn only_what_changes_the_rows_makes_it_another_sync() {
        let old = sync(&[("A", Role::Source), ("B", Role::Target)], &["t", "u"]);
        let same = |change: &dyn Fn(&mut Sync)| {
            let mut new = old.clone();
            change(&mut new);
            is_same(&old, &new)
        };
        assert!(same(&|_| ()));
        assert!(same(&|s| (s.priority, s.paused, s.maxkicks) = (3, true, 1)));
        assert!(same(&|s| s.members.truncate(1)), "who is gone gets nothing that would be wrong");
        assert!(!same(&|s| s.relations.truncate(1)));
        assert!(!same(&|s| s.relations[0].pkey = Some("i".into())));
        assert!(!same(&|s| s.conflict_strategy = "bucardo_source".into()));
        assert!(!same(&|s| s.members[0].db.makedelta = true));
        assert!(!same(&|s| s.members[1].role = Role::Source), "what it writes itself is from now on its own");
    }

    #[test]
    fn what_a_member_passes_on_counts_where_a_table_leaves_that_to_it() {
        let mut old = sync(&[("A", Role::Source), ("B", Role::Target)], &["t"]);
        old.relations[0].makedelta = Some(false);
        let mut new = old.clone();
        new.members[0].db.makedelta = true;
        assert!(is_same(&old, &new));
    }
}
