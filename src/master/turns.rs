//! Whose turn it is when more runs are due than kids are free. What is only tried again, and may wait for a silent member
//! in vain, comes after what is due for the first time and gets a part of the kids only; within a priority whoever has
//! waited longest comes first. The order is pure; `assign` carries it out. Nothing here waits.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::controller::{Controller, Job};
use super::hear;
use super::kids::Manners;
use super::main::Master;
use crate::error::Result;
use crate::fault;
use crate::guc;
use crate::pg::shmem;

/// Whoever waits longer for a kid is said to.
const MOMENT: Duration = Duration::from_secs(3);

/// A sync whose next run is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Due {
    pub sync: i32,
    pub priority: i32,
    /// Whether it is only tried again.
    pub retry: bool,
}

/// Since when each sync waits for a kid, for a first try and for another.
#[derive(Default)]
pub(super) struct Turns {
    since: HashMap<(i32, bool), Instant>,
}

impl Turns {
    /// The order in which kids are given to all that is due now.
    pub fn order(&mut self, mut due: Vec<Due>, now: Instant) -> Vec<Due> {
        self.since.retain(|(sync, _), _| due.iter().any(|d| d.sync == *sync));
        for d in &due {
            self.since.entry((d.sync, d.retry)).or_insert(now);
        }
        due.sort_by_key(|d| (d.retry, -i64::from(d.priority), self.since.get(&(d.sync, d.retry)).copied(), d.sync));
        due
    }

    /// Such a run of the sync was started. One for the first time may have had part in it what was to be tried again.
    pub fn served(&mut self, sync: i32, retry: bool) {
        self.since.retain(|(id, again), _| *id != sync || retry && !again);
    }

    /// Whether the sync waits for more than a moment.
    pub fn starves(&self, sync: i32, now: Instant) -> bool {
        [false, true].iter().any(|retry| self.since.get(&(sync, *retry)).is_some_and(|since| now >= *since + MOMENT))
    }

    /// Whether any does.
    pub fn short(&self, now: Instant) -> bool {
        self.since.values().any(|since| now >= *since + MOMENT)
    }

    /// When to look again whether one does.
    pub fn next_time(&self, now: Instant) -> Option<Instant> {
        self.since.values().map(|since| *since + MOMENT).filter(|t| *t > now).min()
    }
}

/// Whether such a run is only tried again, and may take long in vain.
fn is_retry(controller: &Controller, job: Job) -> bool {
    !job.main || controller.whole.is_some() && !controller.kicked
}

/// How many kids may be busy with what is only tried again.
fn share(kids: usize) -> usize {
    kids.div_ceil(2)
}

impl Master {
    /// Gives due runs to kids.
    pub(super) fn assign(&mut self, now: Instant) -> Result<()> {
        let due = self.entries.iter().filter_map(|(id, e)| {
            let retry = is_retry(&e.controller, e.controller.due(now)?);
            Some(Due { sync: *id, priority: e.sync.priority, retry })
        });
        let due = self.turns.order(due.collect(), now);
        if !due.is_empty() {
            fault::point("master.before_assign")?;
        }
        let firsts = due.iter().filter(|d| !d.retry).count();
        // What a sync has to try again beside its run comes after the runs of all others.
        let again = due.iter().filter(|d| !d.retry).map(|d| Due { retry: true, ..*d });
        for turn in due.iter().copied().chain(again) {
            self.serve(turn, firsts, now)?;
        }
        Ok(())
    }

    /// Starts what is due of one sync, in that kind of turn.
    fn serve(&mut self, turn: Due, firsts: usize, now: Instant) -> Result<()> {
        let id = turn.sync;
        let counted_at = hear::counted_at(&self.entries, &self.sources, id).filter(|_| firsts == 1);
        let Some(entry) = self.entries.get_mut(&id) else { return Ok(()) };
        while let Some(job) = entry.controller.due(now).filter(|job| is_retry(&entry.controller, *job) == turn.retry) {
            let left = share(guc::max_kids()).saturating_sub(self.kids.retries());
            if turn.retry && left == 0 {
                break;
            }
            let sync = &entry.sync;
            let manners = Manners {
                kidsalive: sync.kidsalive,
                stayalive: sync.stayalive,
                lifetime: sync.lifetime,
                maxkicks: sync.maxkicks,
                // Only where no other sync is due, or it would wait longer.
                counted_at: counted_at.filter(|_| job.main),
            };
            let ticket = shmem::with(|s| s.sync(self.db, id).map_or(0, |y| y.kicked));
            let commits = hear::commits(&self.sources, sync);
            let waiting = firsts + if turn.retry { left } else { 0 };
            if !self.kids.assign(id, job, turn.retry, manners, waiting, now) {
                break;
            }
            entry.controller.started(job);
            self.turns.served(id, turn.retry);
            if job.main {
                entry.ticket = ticket;
                entry.commits = commits;
                shmem::with(|s| s.sync(self.db, id).map(|y| y.begun = ticket));
            }
            fault::point("master.after_assign")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Due = Due { sync: 1, priority: 0, retry: false };

    fn syncs(order: &[Due]) -> Vec<i32> {
        order.iter().map(|d| d.sync).collect()
    }

    #[test]
    fn who_has_waited_longest_comes_first() {
        let mut turns = Turns::default();
        let now = Instant::now();
        let mut served = [0; 5];
        for round in 0..25 {
            let due = (0..5).map(|sync| Due { sync, ..FIRST }).collect();
            for turn in turns.order(due, now + Duration::from_secs(round)).iter().take(4) {
                served[turn.sync as usize] += 1;
                turns.served(turn.sync, false);
            }
        }
        // Nobody is left out twice in a row.
        assert!(served.iter().all(|n| *n >= 12), "{served:?}");
    }

    #[test]
    fn higher_priority_comes_first_and_what_is_tried_again_last() {
        let mut turns = Turns::default();
        let now = Instant::now();
        turns.order(vec![Due { retry: true, priority: 9, ..FIRST }], now);
        let due =
            vec![Due { retry: true, priority: 9, ..FIRST }, Due { sync: 2, ..FIRST }, Due { sync: 3, priority: 1, ..FIRST }];
        assert_eq!(syncs(&turns.order(due, now + MOMENT)), [3, 2, 1]);
    }

    #[test]
    fn who_waits_for_long_is_told() {
        let mut turns = Turns::default();
        let now = Instant::now();
        turns.order(vec![FIRST], now);
        assert_eq!(turns.next_time(now), Some(now + MOMENT));
        assert!(!turns.starves(1, now) && !turns.short(now));
        assert!(turns.starves(1, now + MOMENT) && turns.short(now + MOMENT) && !turns.starves(2, now + MOMENT));
        assert_eq!(turns.next_time(now + MOMENT), None);
        turns.served(1, false);
        assert!(!turns.short(now + MOMENT));
        turns.order(vec![FIRST], now);
        turns.order(vec![], now);
        assert!(!turns.short(now + MOMENT));
    }

    #[test]
    fn one_kid_is_enough_to_try_again() {
        assert_eq!([1, 2, 3, 4, 8].map(share), [1, 1, 2, 2, 4]);
    }
}
