//! Which runs of a sync began when it had other members: their bits mean those, and what they say of a member counts for
//! nobody any more. Pure. It must never outlive the runs that it is about.

use super::controller::Job;

#[derive(Debug, Default)]
pub(super) struct Outdated {
    /// The main run.
    pub(super) main: bool,
    /// Those of single members.
    pub(super) alone: u64,
}

impl Outdated {
    /// Whether the run that ends is one of them.
    pub(super) fn take(&mut self, job: Job) -> bool {
        if job.main {
            return std::mem::take(&mut self.main);
        }
        let one = self.alone & job.members != 0;
        self.alone &= !job.members;
        one
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use crate::master::controller::Job;
    use crate::master::controller::tests::{MAX, MIN, controller, report};
    use crate::master::slot::{Outcome, Shown};

    /// A member was taken out while a run waited for it: the run says that it is down, and there is no such member any more.
    #[test]
    fn what_a_run_says_of_members_of_before_counts_for_nobody() {
        let now = Instant::now();
        let mut c = controller(now);
        c.changed = true;
        let job = c.due(now).unwrap();
        c.started(job);
        c.set_members(0b010);
        c.finished(job, &report(Outcome::Good, 0b100, 0), now, MIN, MAX);
        assert_eq!(c.troubled(), 0);
        assert_eq!(c.shown(600).0, Shown::Last);
        // The next run is one of today's members.
        let job = c.due(now).unwrap();
        assert_eq!(job, Job { members: 0b010, main: true });
        c.started(job);
        c.finished(job, &report(Outcome::Empty, 0b010, 0), now, MIN, MAX);
        assert_eq!(c.shown(600).0, Shown::Stalled);
        // The same of one that was tried alone.
        let alone = c.due(now + MIN).unwrap();
        assert!(!alone.main);
        c.started(alone);
        c.set_members(0b110);
        c.finished(alone, &report(Outcome::Empty, 0b010, 0), now + MIN, MIN, MAX);
        assert_eq!(c.troubled(), 0);
        assert_eq!(c.due(now + MIN), Some(Job { members: 0b110, main: true }));
    }

    #[test]
    fn who_catches_up_alone_is_told_to_the_kick_that_went_without_it() {
        let now = Instant::now();
        let mut c = controller(now);
        c.kicked = true;
        let both = c.due(now).unwrap();
        c.started(both);
        c.finished(both, &report(Outcome::Good, 0b10, 0), now, MIN, MAX);
        let later = now + MIN;
        let alone = c.due(later).unwrap();
        c.started(alone);
        c.kicked = true;
        let other = c.due(later).unwrap();
        assert_eq!((alone.members, other.members, other.main), (0b10, 0b100, true));
        c.started(other);
        c.finished(other, &report(Outcome::Empty, 0, 0), later, MIN, MAX);
        assert!(c.left_out(other).count() == 1);
        assert!(c.left_out(both).count() == 0);
    }
}
