//! What members in trouble have said: the text of each one that failed, on its way from the kid to the master in one
//! report, and what the status and the kicks are told of all of them together. Pure. It must never decide what runs.

use std::time::Instant;

use super::controller::{Controller, Job, Kind, Trouble};
use super::slot::{Report, Shown, Text, clip};
use crate::error::with_mend;

const ROOM: usize = 1600;
/// How long the warning of a kick may be.
pub const WARNING: usize = 600;
/// Stands between two members' texts in a report.
const PARTS: &str = "\u{1e}";
/// The same for people.
const AND: &str = "; ";

/// What each member said that failed in a run, in the order of their bits.
#[derive(Clone, Copy)]
pub struct Said(Text<ROOM>);

impl Said {
    pub const NOTHING: Self = Self(Text::EMPTY);

    pub fn new(texts: &[String]) -> Self {
        let texts: Vec<String> = texts.iter().map(|text| text.replace(PARTS, " ")).collect();
        Self(Text::new(&fitted(&texts, PARTS, ROOM)))
    }

    /// What one of the members said, given all that failed.
    fn of(&self, all: u64, bit: u64) -> Option<&str> {
        let before = (all & (bit - 1)).count_ones() as usize;
        self.0.get().split(PARTS).nth(before).filter(|text| !text.is_empty())
    }
}

/// Several texts as one of at most so many bytes, each text once.
pub fn together<T: AsRef<str>>(texts: impl IntoIterator<Item = T>, bytes: usize) -> String {
    let mut once: Vec<String> = Vec::new();
    for text in texts {
        let text = text.as_ref();
        if !once.iter().any(|known| known == text) {
            once.push(text.to_string());
        }
    }
    fitted(&once, AND, bytes)
}

/// The texts in one of at most so many bytes: where they are too long, the longest ones are cut to the same length.
fn fitted(texts: &[String], between: &str, bytes: usize) -> String {
    let mut lengths: Vec<usize> = texts.iter().map(String::len).collect();
    lengths.sort_unstable();
    let mut left = bytes.saturating_sub(between.len() * texts.len().saturating_sub(1));
    let mut each = left;
    for (at, length) in lengths.iter().enumerate() {
        let even = left / (lengths.len() - at);
        if *length > even {
            each = even;
            break;
        }
        left -= length;
    }
    texts.iter().map(|text| clip(text, each)).collect::<Vec<_>>().join(between)
}

impl Report {
    /// What a member that failed has said, with the mend.
    pub(super) fn said_by(&self, bit: u64) -> String {
        let own = self.said.of(self.down | self.refused, bit).map(str::to_string);
        own.unwrap_or_else(|| with_mend(self.message.get(), self.hint.get()))
    }
}

/// The bits of a mask, each for itself.
fn each(mask: u64) -> impl Iterator<Item = u64> {
    (0..u64::BITS).map(|i| 1 << i).filter(move |bit| mask & bit != 0)
}

/// What a kick should warn of although its run went well: all members that were away, or not in it, with the reasons.
pub(super) fn warning(controller: &Controller, job: Job, report: &Report) -> String {
    if report.whole {
        return String::new();
    }
    let away = each(report.down & job.members).map(|bit| report.said_by(bit));
    together(away.chain(controller.left_out(job).map(|t| t.error.clone())), WARNING)
}

impl Controller {
    /// The members that are not in this run because each catches up, or is being tried, in one of its own.
    pub fn left_out(&self, job: Job) -> impl Iterator<Item = &Trouble> {
        let out = self.members & !job.members;
        self.troubles.iter().enumerate().filter(move |(i, _)| out & (1 << i) != 0).filter_map(|(_, t)| t.as_ref())
    }

    /// What the status should show, with all errors, the worst one first, and the time of its next try.
    pub fn shown(&self, bytes: usize) -> (Shown, Option<(String, Instant)>) {
        let all = || self.whole.iter().chain(self.troubles.iter().flatten());
        // What nobody is served for, and a user must mend, goes before members that come back by themselves.
        let broken = self.whole.as_ref().filter(|t| t.kind == Kind::Refused);
        let Some(worst) = broken.or_else(|| all().find(|t| t.kind == Kind::Down)).or_else(|| all().next()) else {
            return (if self.runs() { Shown::Running } else { Shown::Last }, None);
        };
        let shown = if worst.kind == Kind::Down { Shown::Stalled } else { Shown::Bad };
        let errors = std::iter::once(worst).chain(all()).map(|t| &t.error);
        (shown, Some((together(errors, bytes), worst.next_try)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::master::controller::tests::{MAX, MIN, controller, report};
    use crate::master::slot::Outcome;

    fn said(texts: &[&str]) -> Said {
        Said::new(&texts.iter().map(|t| t.to_string()).collect::<Vec<_>>())
    }

    fn error(c: &Controller) -> String {
        c.shown(600).1.unwrap().0
    }

    #[test]
    fn each_member_keeps_its_own_words() {
        let two = said(&["B says\u{1e}no", "C is away"]);
        assert_eq!((two.of(0b110, 0b10), two.of(0b110, 0b100)), (Some("B says no"), Some("C is away")));
        assert_eq!(Said::NOTHING.of(0b10, 0b10), None);
        let long = said(&["short", &"x".repeat(2000), &"ä".repeat(2000)]);
        assert_eq!(long.of(0b111, 0b001), Some("short"));
        for bit in [0b010, 0b100] {
            assert!(long.of(0b111, bit).unwrap().len() > 700);
        }
        assert_eq!(together(["a", "b", "a"], 10), "a; b");
        assert_eq!(together(["a", "bcdefghijk", "lm"], 10), "a; bcd; lm");
        assert_eq!(together(["", "x"], 0), "; ");
    }

    #[test]
    fn of_a_member_that_is_down_and_one_that_refuses_both_are_named() {
        let now = Instant::now();
        let mut c = controller(now);
        c.kicked = true;
        let job = c.due(now).unwrap();
        c.started(job);
        let both = Report { said: said(&["B says no", "C is away"]), ..report(Outcome::Bad, 0b100, 0b010) };
        c.finished(job, &both, now, MIN, MAX);
        assert_eq!((c.shown(600).0, error(&c)), (Shown::Stalled, "C is away; B says no".to_string()));
        assert_eq!(warning(&c, job, &both), "C is away");
    }

    /// Nobody is served then, and nothing mends itself.
    #[test]
    fn a_sync_that_fails_is_bad_although_a_member_is_down() {
        let now = Instant::now();
        let mut c = controller(now);
        c.mesh = true;
        c.kicked = true;
        let job = c.due(now).unwrap();
        c.started(job);
        c.finished(job, &Report { said: said(&["C is away"]), ..report(Outcome::Good, 0b100, 0) }, now, MIN, MAX);
        assert_eq!(c.shown(600).0, Shown::Stalled);
        c.changed = true;
        let job = c.due(now).unwrap();
        c.started(job);
        let bad = Report { whole: true, message: Text::new("A has no t"), hint: Text::new("make it"), ..Report::NONE };
        c.finished(job, &bad, now, MIN, MAX);
        assert_eq!((c.shown(600).0, error(&c)), (Shown::Bad, "A has no t (make it); C is away".to_string()));
        // That the other one is still away says nothing about it.
        let later = now + MIN;
        c.started(job);
        let alone = Job { members: 0b100, main: false };
        assert_eq!(c.due(later), Some(alone));
        c.started(alone);
        c.finished(alone, &Report { said: said(&["C is away"]), ..report(Outcome::Bad, 0b100, 0) }, later, MIN, MAX);
        assert_eq!(c.shown(600).0, Shown::Bad);
    }

    #[test]
    fn what_failed_before_the_members_changed_is_tried_again() {
        let now = Instant::now();
        for whole in [false, true] {
            let mut c = controller(now);
            c.kicked = true;
            let job = c.due(now).unwrap();
            c.started(job);
            c.finished(job, &Report { whole, ..report(Outcome::Bad, 0b100, 0) }, now, MIN, MAX);
            c.changed = false;
            c.set_members(0b1110);
            assert_eq!(c.due(now), Some(Job { members: 0b1110, main: true }));
        }
        let mut c = controller(now);
        c.set_members(0b1110);
        assert_eq!(c.due(now), None);
    }
}
