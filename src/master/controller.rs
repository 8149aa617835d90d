//! The controller of one sync: what should run now, and what a finished run means for the next. Pure: it reads no
//! clock, no catalog and no shared memory; the master asks it and carries out what it says.
//!
//! ```text
//!             kick / changes / checktime                 run ends well
//!   idle ───────────────────────────────► running ─────────────────────► idle
//!                                            │ a member is away or refuses
//!                                            ▼
//!                         troubled: that member is left out of the runs of the others
//!                         and tried alone, later and later; served again, it rejoins
//! ```

use std::time::{Duration, Instant};

use super::outdated::Outdated;
use super::slot::{Outcome, Report};
use crate::error::with_mend;

/// Why a member is left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// It cannot be reached.
    Down,
    /// It answered and refused the rows.
    Refused,
}

/// A member (or the whole sync) in trouble.
#[derive(Clone, Debug)]
pub struct Trouble {
    pub kind: Kind,
    pub attempts: u32,
    pub next_try: Instant,
    pub error: String,
}

/// One run to be given to a kid.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Job {
    /// The receivers, as bits in the order of the sync's members.
    pub members: u64,
    /// Whether this is the run of the sync, or only a troubled member catching up.
    pub main: bool,
}

/// How long to wait before the next try: doubling from `min` to `max`.
pub fn back_off(attempts: u32, min: Duration, max: Duration) -> Duration {
    min.saturating_mul(1 << attempts.saturating_sub(1).min(20)).min(max)
}

/// The wait after a second run in a row that was started for changes and found none. After the first there is none: the
/// changes may have been served by the run before, in which they were heard of.
const IDLE_MIN: Duration = Duration::from_millis(20);
/// The longest such wait: a change that comes meanwhile waits as long.
const IDLE_MAX: Duration = Duration::from_secs(1);

/// The state of one sync.
#[derive(Debug)]
pub struct Controller {
    pub active: bool,
    pub paused: bool,
    pub checktime: Option<Duration>,
    /// All receivers.
    pub members: u64,
    /// Whether several sources decide together: then a member that was away is only asked alone whether it is back, and
    /// one that refused is tried together with the others.
    pub mesh: bool,
    /// Changes wait to be served.
    pub changed: bool,
    /// Somebody kicked.
    pub kicked: bool,
    main: Option<Job>,
    recovering: u64,
    outdated: Outdated,
    pub(super) troubles: Vec<Option<Trouble>>,
    pub(super) whole: Option<Trouble>,
    last_run: Instant,
    /// How many runs in a row were started for changes and found none, and until when the next such run waits.
    idle_runs: u32,
    hold: Instant,
    /// Whether the running main run was started for changes alone.
    for_changes: bool,
}

impl Controller {
    pub fn new(now: Instant) -> Self {
        Self {
            active: true,
            paused: false,
            checktime: None,
            members: 0,
            mesh: false,
            changed: false,
            kicked: false,
            main: None,
            recovering: 0,
            outdated: Outdated::default(),
            troubles: Vec::new(),
            whole: None,
            last_run: now,
            idle_runs: 0,
            hold: now,
            for_changes: false,
        }
    }

    /// What should start now, if anything. Ask again until it says None; tell it of each start by [`Controller::started`].
    pub fn due(&self, now: Instant) -> Option<Job> {
        if !self.active || self.paused {
            return None;
        }
        if self.main.is_none() {
            let free = self.members & !self.recovering;
            // Who kicks wants it tried now, with everybody.
            if self.kicked && free != 0 {
                return Some(Job { members: free, main: true });
            }
            let healthy = free & !self.troubled();
            if self.mesh {
                let again = self.ready(now, Kind::Refused) & free;
                if again != 0 && self.whole.as_ref().is_none_or(|t| now >= t.next_try) {
                    // All of them: two that have lost commits can only be mended together, and must not miss each other.
                    return Some(Job { members: healthy | (self.those(|t| t.kind == Kind::Refused) & free), main: true });
                }
            }
            let timed = self.checktime.is_some_and(|t| now >= self.last_run + t);
            let wanted = (self.changed && now >= self.hold) || timed || self.whole.is_some();
            let allowed = self.whole.as_ref().is_none_or(|t| now >= t.next_try);
            if healthy != 0 && wanted && allowed {
                return Some(Job { members: healthy, main: true });
            }
        }
        let busy = self.recovering | self.main.map_or(0, |j| j.members);
        let ready = self.ready(now, Kind::Down) | if self.mesh { 0 } else { self.ready(now, Kind::Refused) };
        let member = (0..self.troubles.len()).map(|i| 1 << i).find(|bit| ready & bit & !busy & self.members != 0)?;
        Some(Job { members: member, main: false })
    }

    /// The members in such trouble whose time has come.
    fn ready(&self, now: Instant, kind: Kind) -> u64 {
        self.those(|t| t.kind == kind && now >= t.next_try)
    }

    /// The members whose trouble is such.
    fn those(&self, such: impl Fn(&Trouble) -> bool) -> u64 {
        let bits = self.troubles.iter().enumerate().filter(|(_, t)| t.as_ref().is_some_and(&such)).map(|(i, _)| 1 << i);
        bits.fold(0, |all, bit| all | bit)
    }

    /// When to ask [`Controller::due`] again if nothing happens before, after it has said that nothing is due `now`: at one of
    /// the times that are still to come. What has its time behind it waits for something to happen, and not for the clock.
    pub fn next_time(&self, now: Instant) -> Option<Instant> {
        if !self.active || self.paused {
            return None;
        }
        let timed = self.checktime.map(|t| self.last_run + t);
        let whole = self.whole.as_ref().map(|t| t.next_try);
        let held = self.changed.then_some(self.hold);
        let troubles = self.troubles.iter().flatten().map(|t| t.next_try);
        troubles.chain(timed).chain(whole).chain(held).filter(|t| *t > now).min()
    }

    /// Whether nothing runs, nobody is in trouble, and one of the last two runs that were started for changes found some.
    pub fn is_at_rest(&self) -> bool {
        let untroubled = self.whole.is_none() && self.troubled() == 0;
        self.active && !self.paused && self.main.is_none() && self.recovering == 0 && untroubled && self.idle_runs <= 1
    }

    /// Whether its main run goes on.
    pub fn runs(&self) -> bool {
        self.main.is_some()
    }

    pub fn started(&mut self, job: Job) {
        if job.main {
            self.main = Some(job);
            self.for_changes = self.changed && !self.kicked;
            self.changed = false;
            self.kicked = false;
        } else {
            self.recovering |= job.members;
        }
    }

    /// Takes in how a run ended.
    pub fn finished(&mut self, job: Job, report: &Report, now: Instant, min: Duration, max: Duration) {
        if job.main {
            self.main = None;
            self.last_run = now;
            // Who says that something is pending may be wrong for a while; that must not keep a kid busy.
            if !report.idle || report.whole {
                self.idle_runs = 0;
                self.hold = now;
            } else if self.for_changes {
                self.idle_runs += 1;
                let wait = (self.idle_runs > 1).then(|| back_off(self.idle_runs - 1, IDLE_MIN, IDLE_MAX));
                self.hold = now + wait.unwrap_or_default();
            }
        } else {
            self.recovering &= !job.members;
        }
        if self.outdated.take(job) {
            // Who is in trouble shows in the next run.
            self.changed |= report.whole || report.down | report.refused != 0 || !job.main;
            return;
        }
        let kind = if report.down != 0 { Kind::Down } else { Kind::Refused };
        if report.whole {
            // Who looks is told the mend as well.
            let error = with_mend(report.message.get(), report.hint.get());
            let attempts = self.whole.as_ref().map_or(0, |t| t.attempts) + 1;
            let next_try = now + back_off(attempts, min, max);
            self.whole = Some(Trouble { kind, attempts, next_try, error });
            self.changed |= job.main;
            // A member that was to catch up waits too: its part was in vain for the same reason.
            for trouble in
                self.troubles.iter_mut().enumerate().filter(|(i, _)| job.members & (1 << i) != 0).filter_map(|(_, t)| t.as_mut())
            {
                trouble.attempts += 1;
                trouble.next_try = now + back_off(trouble.attempts, min, max);
            }
            return;
        }
        // Of several sources a member alone is only asked whether it is there.
        if job.main || !self.mesh {
            self.whole = None;
        }
        for i in 0..super::slot::MAX_MEMBERS {
            let bit = 1_u64 << i;
            if job.members & bit == 0 {
                continue;
            }
            if self.troubles.len() <= i {
                self.troubles.resize(i + 1, None);
            }
            let failed =
                if report.down & bit != 0 { Some(Kind::Down) } else { (report.refused & bit != 0).then_some(Kind::Refused) };
            self.troubles[i] = failed.map(|kind| {
                let attempts = self.troubles[i].as_ref().map_or(0, |t| t.attempts) + 1;
                Trouble { kind, attempts, next_try: now + back_off(attempts, min, max), error: report.said_by(bit) }
            });
        }
        if report.outcome == Outcome::Good && !job.main {
            // A member caught up while the others went on: what came meanwhile is served together.
            self.changed = true;
        }
    }

    /// The members that are left out of the runs of the others.
    pub fn troubled(&self) -> u64 {
        self.those(|_| true)
    }

    /// The members of another catalog: troubles are forgotten, because bits may mean others now. What they kept from being
    /// served is tried again, as nothing else might.
    pub fn set_members(&mut self, members: u64) {
        self.changed |= self.troubled() != 0 || self.whole.is_some();
        self.members = members;
        self.outdated = Outdated { main: self.main.is_some(), alone: self.recovering };
        self.troubles.clear();
        self.whole = None;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::master::slot::{Shown, Text};

    pub(crate) const MIN: Duration = Duration::from_millis(500);
    pub(crate) const MAX: Duration = Duration::from_secs(30);

    pub(crate) fn report(outcome: Outcome, down: u64, refused: u64) -> Report {
        Report { outcome, down, refused, message: Text::new("why"), ..Report::NONE }
    }

    pub(crate) fn controller(now: Instant) -> Controller {
        let mut c = Controller::new(now);
        c.set_members(0b110);
        c
    }

    #[test]
    fn at_rest_nothing_is_due() {
        let now = Instant::now();
        let c = controller(now);
        assert_eq!(c.due(now + MAX), None);
        assert_eq!(c.next_time(now), None);
    }

    #[test]
    fn a_kick_during_a_run_makes_one_more() {
        let now = Instant::now();
        let mut c = controller(now);
        c.kicked = true;
        let job = c.due(now).unwrap();
        assert_eq!(job, Job { members: 0b110, main: true });
        c.started(job);
        c.kicked = true;
        assert_eq!(c.due(now), None);
        c.finished(job, &report(Outcome::Empty, 0, 0), now, MIN, MAX);
        assert_eq!(c.due(now), Some(job));
    }

    #[test]
    fn a_member_that_is_down_holds_back_nobody_and_comes_back() {
        let now = Instant::now();
        let mut c = controller(now);
        c.changed = true;
        let job = c.due(now).unwrap();
        c.started(job);
        c.finished(job, &report(Outcome::Good, 0b100, 0), now, MIN, MAX);
        assert_eq!(c.shown(600).0, Shown::Stalled);
        c.changed = true;
        assert_eq!(c.due(now), Some(Job { members: 0b010, main: true }));
        c.changed = false;
        assert_eq!(c.due(now), None);
        let later = now + MIN;
        assert_eq!(c.next_time(now), Some(later));
        let alone = c.due(later).unwrap();
        assert_eq!(alone, Job { members: 0b100, main: false });
        c.started(alone);
        assert_eq!(c.due(later), None);
        c.finished(alone, &report(Outcome::Good, 0, 0), later, MIN, MAX);
        assert_eq!(c.shown(600).0, Shown::Last);
        assert_eq!(c.due(later), Some(Job { members: 0b110, main: true }));
    }

    #[test]
    fn between_sources_a_member_that_refused_is_tried_with_the_others() {
        let now = Instant::now();
        let mut c = controller(now);
        c.mesh = true;
        c.changed = true;
        let job = c.due(now).unwrap();
        c.started(job);
        c.finished(job, &report(Outcome::Bad, 0, 0b100), now, MIN, MAX);
        assert_eq!(c.due(now), None);
        assert_eq!(c.due(now + MIN), Some(Job { members: 0b110, main: true }));
        c.started(job);
        c.finished(job, &report(Outcome::Good, 0b100, 0), now, MIN, MAX);
        assert_eq!(c.due(now + MIN * 2), Some(Job { members: 0b100, main: false }), "one that is away is asked alone");
    }

    #[test]
    fn a_failed_run_is_tried_again_later_and_later() {
        let now = Instant::now();
        let mut c = controller(now);
        c.changed = true;
        let job = c.due(now).unwrap();
        let bad = Report { whole: true, ..report(Outcome::Bad, 1, 0) };
        for wait in [MIN, MIN * 2, MIN * 4] {
            c.started(job);
            c.finished(job, &bad, now, MIN, MAX);
            assert_eq!(c.next_time(now), Some(now + wait));
            assert_eq!(c.due(now), None);
            assert_eq!(c.due(now + wait), Some(job));
        }
        assert_eq!(back_off(60, MIN, MAX), MAX);
    }

    #[test]
    fn a_member_that_catches_up_in_vain_waits() {
        let now = Instant::now();
        let mut c = controller(now);
        c.changed = true;
        let job = c.due(now).unwrap();
        c.started(job);
        c.finished(job, &report(Outcome::Good, 0b100, 0), now, MIN, MAX);
        let later = now + MIN;
        let alone = c.due(later).unwrap();
        assert_eq!(alone, Job { members: 0b100, main: false });
        c.started(alone);
        c.finished(alone, &Report { whole: true, ..report(Outcome::Bad, 1, 0) }, later, MIN, MAX);
        assert_eq!(c.due(later).filter(|j| !j.main), None);
    }

    #[test]
    fn members_of_a_mesh_that_refused_are_tried_together() {
        let now = Instant::now();
        let mut c = controller(now);
        c.mesh = true;
        c.kicked = true;
        let all = c.due(now).unwrap();
        c.started(all);
        c.finished(all, &report(Outcome::Bad, 0, 0b10), now, MIN, MAX);
        // Another one refuses a little later: their next tries are at different times.
        let later = now + MIN / 2;
        c.kicked = true;
        let all = c.due(later).unwrap();
        c.started(all);
        c.finished(all, &report(Outcome::Bad, 0, 0b110), later, MIN, MAX);
        let at = c.next_time(later).unwrap();
        assert!(c.troubles.iter().flatten().any(|t| t.next_try > at), "they are at the same time");
        let job = c.due(at).unwrap();
        assert_eq!(job.members & 0b110, 0b110);
    }

    #[test]
    fn runs_that_find_nothing_become_rarer() {
        let now = Instant::now();
        let mut c = controller(now);
        let idle = Report { idle: true, ..report(Outcome::Empty, 0, 0) };
        let mut at = now;
        for wait in [Duration::ZERO, IDLE_MIN, IDLE_MIN * 2, IDLE_MIN * 4] {
            c.changed = true;
            let job = c.due(at).unwrap();
            c.started(job);
            c.finished(job, &idle, at, MIN, MAX);
            c.changed = true;
            assert_eq!(c.due(at).is_none(), wait > Duration::ZERO);
            assert_eq!(c.next_time(at), (wait > Duration::ZERO).then_some(at + wait));
            at += wait;
        }
        c.kicked = true;
        assert!(c.due(now).is_some());
    }

    /// Else the master would turn without a pause.
    #[test]
    fn what_cannot_start_now_does_not_call_for_it() {
        let now = Instant::now();
        let rests = |c: &Controller, at: Instant| {
            assert_eq!(c.due(at), None);
            assert!(c.next_time(at).is_none_or(|t| t > at));
        };
        let mut c = Controller::new(now);
        (c.changed, c.checktime) = (true, Some(MIN));
        rests(&c, now + MAX);
        c.set_members(0b10);
        let job = c.due(now).unwrap();
        c.started(job);
        c.finished(job, &report(Outcome::Bad, 0b10, 0), now, MIN, MAX);
        c.changed = true;
        rests(&c, now);
        let alone = c.due(now + MIN).unwrap();
        c.started(alone);
        c.finished(alone, &Report { whole: true, ..report(Outcome::Bad, 1, 0) }, now + MIN * 3, MIN, MAX);
        rests(&c, now + MIN * 3);
    }

    #[test]
    fn kicks_that_find_nothing_hold_up_no_change() {
        let now = Instant::now();
        let mut c = controller(now);
        c.checktime = Some(Duration::from_secs(1));
        let idle = Report { idle: true, ..report(Outcome::Empty, 0, 0) };
        let mut at = now;
        for round in 0..40 {
            at += Duration::from_secs(1);
            c.kicked = round % 2 == 0;
            let job = c.due(at).unwrap();
            c.started(job);
            c.finished(job, &idle, at, MIN, MAX);
        }
        assert!(c.is_at_rest());
        c.changed = true;
        assert!(c.due(at).is_some());
    }

    #[test]
    fn a_paused_sync_runs_in_no_case() {
        let now = Instant::now();
        let mut c = controller(now);
        (c.kicked, c.paused) = (true, true);
        assert_eq!(c.due(now), None);
    }
}
