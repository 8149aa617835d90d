//! Whether a run goes on: while its source tells that more was committed than it has seen, it brings that as well, instead of
//! ending, being recorded, and being started again by the master. It must never keep a kick, a change of the catalog or another
//! sync waiting for longer than a run takes anyway.

use std::time::{Duration, Instant};

use super::plan::Plan;
use super::report::Progress;
use crate::pg::shmem;

/// A run that has gone on for so long ends, however much comes.
const LONGEST: Duration = Duration::from_millis(20);

/// The rounds of a run.
pub struct Rounds {
    /// Where this server counts the commits of the source's database; None: nobody tells, and there is one round.
    watched: Option<usize>,
    began: Instant,
    /// The commits before the round: its snapshot sees all of them.
    commits: u64,
}

/// What is seen after a round.
struct Seen {
    /// It has brought something, and nothing went wrong.
    well: bool,
    /// Something was committed that its snapshot need not have seen.
    more: bool,
    /// Somebody waits for another run, or for the kid, or has changed the catalog.
    wanted: bool,
    lasts: Duration,
}

impl Seen {
    fn goes_on(&self) -> bool {
        self.well && self.more && !self.wanted && self.lasts < LONGEST
    }
}

impl Rounds {
    pub fn new(watched: Option<usize>) -> Self {
        Self { watched, began: Instant::now(), commits: 0 }
    }

    /// A round begins. To be called before its snapshot is taken.
    pub fn begin(&mut self, progress: &mut Progress) {
        if let Some(place) = self.watched {
            self.commits = shmem::commits(place);
            progress.commits = Some(self.commits);
        }
    }

    /// Whether there is to be another one.
    pub fn go_on(&self, plan: &Plan, progress: &Progress) -> bool {
        let Some(place) = self.watched else { return false };
        let db = shmem::my_database();
        let wanted = shmem::with(|s| {
            // Also who has kicked before the run began, and has what he waits for by now.
            let kicked = s.sync(db, plan.sync.id).is_none_or(|sync| sync.kicked != sync.done);
            kicked || s.master(db).is_none_or(|master| master.short || master.generation != plan.generation)
        });
        let more = shmem::commits(place) != self.commits;
        Seen { well: progress.brought && progress.is_clean(), more, wanted, lasts: self.began.elapsed() }.goes_on()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_goes_on_only_while_more_comes_and_nobody_waits() {
        let seen = |well, more, wanted, ms| Seen { well, more, wanted, lasts: Duration::from_millis(ms) }.goes_on();
        assert!(seen(true, true, false, 19));
        assert!(!seen(false, true, false, 0), "it had nothing to bring, or something went wrong");
        assert!(!seen(true, false, false, 0), "nothing was committed meanwhile");
        assert!(!seen(true, true, true, 0), "somebody waits");
        assert!(!seen(true, true, false, 20), "it takes too long");
    }
}
