//! Most runs bring what the last one brought: a few rows of the same tables, to the same receivers, from where that one ended.
//! A run that follows such a one asks for these rows in the same round trip in which it asks what is pending, and its receivers
//! begin their transactions meanwhile. What it has read so counts only if the source's own account, of the same snapshot, says
//! that this was to be read; otherwise it is thrown away, and the run begins in order. It must never take a guess for what is
//! pending. Pure.

use super::apply::Work;
use super::few::FEW;
use super::gather::{Gathered, TableChanges};
use super::oneway::Read;
use super::reading::Reading;
use crate::libpq::Rows;

/// So many tables are read on the guess that they have changed: each costs the source a look.
const MOST: usize = 8;
/// A table that has not changed in so many runs is no longer usual.
const FORGOTTEN: u32 = 16;

/// What the last runs of a sync have brought.
#[derive(Default)]
pub struct Habit {
    /// The tables, and how many runs ago each has changed.
    tables: Vec<(TableChanges, u32)>,
    /// The snapshot up to which the last run has served these members.
    served: (String, u64),
    /// Whether the tables of the last run were usual before it.
    foreseen: bool,
}

/// What the next run is likely to bring.
#[derive(Clone)]
pub struct Guess {
    pub served: String,
    pub changes: Vec<TableChanges>,
}

/// What was read on a guess, when the guess was right.
pub struct Foreseen {
    /// All tables that were read, also those that have not changed.
    pub changes: Vec<TableChanges>,
    pub read: Read,
}

impl Habit {
    /// What to read for these members; None: better ask first.
    pub fn guess(&self, members: u64) -> Option<Guess> {
        let (served, last) = &self.served;
        let likely = self.foreseen && *last == members && !self.tables.is_empty();
        // What is read has bounds that are made for as many as may come.
        let change = |(change, _): &(TableChanges, u32)| TableChanges { changes: FEW, ..change.clone() };
        likely.then(|| Guess { served: served.clone(), changes: self.tables.iter().map(change).collect() })
    }

    /// Takes in a run that has served these members, if any needed it. `well`: nobody failed.
    pub fn learn(&mut self, gathered: &Gathered, served: u64, well: bool) {
        match gathered.groups.as_slice() {
            [group] if well && served == group.members => self.note(&gathered.snapshot, served, &group.changes),
            [group] if well && served == 0 && group.changes.is_empty() => self.note_nothing(),
            _ => *self = Self::default(),
        }
    }

    /// Takes in what a run has brought to these members, all of which it has served up to the snapshot.
    fn note(&mut self, snapshot: &str, members: u64, changes: &[TableChanges]) {
        if changes.iter().any(|c| !is_little(c)) {
            *self = Self::default();
            return;
        }
        self.foreseen = true;
        self.tables.iter_mut().for_each(|(_, ago)| *ago += 1);
        for change in changes {
            let known = self.tables.iter_mut().find(|(known, _)| is_same_capture(known, change));
            self.foreseen &= known.is_some();
            match known {
                Some((_, ago)) => *ago = 0,
                None => self.tables.push((change.clone(), 0)),
            }
        }
        self.tables.retain(|(_, ago)| *ago <= FORGOTTEN);
        if self.tables.len() > MOST {
            self.tables.sort_by_key(|(_, ago)| *ago);
            self.tables.truncate(MOST);
        }
        self.tables.sort_by_key(|(change, _)| change.order);
        self.served = (snapshot.to_string(), members);
    }

    /// A run with nothing to bring: everybody stands where he stood.
    fn note_nothing(&mut self) {
        self.tables.iter_mut().for_each(|(_, ago)| *ago += 1);
        self.tables.retain(|(_, ago)| *ago <= FORGOTTEN);
    }
}

/// Whether it may be read by its keys without a look at how much there is.
fn is_little(change: &TableChanges) -> bool {
    change.changes <= FEW && !change.truncated && !change.whole
}

/// Whether the same is captured in the same place.
fn is_same_capture(a: &TableChanges, b: &TableChanges) -> bool {
    (a.relation, a.order, &a.key, &a.segments, a.batched) == (b.relation, b.order, &b.key, &b.segments, b.batched)
}

impl Guess {
    /// What was read, if it is what the source tells to be pending.
    pub fn confirm(&self, mut gathered: Gathered, read: Read, work: &[Work]) -> Option<(Gathered, Foreseen)> {
        let counted: Vec<u64> = work.iter().zip(&read.rows).map(|(w, rows)| count(rows, &w.reading())).collect::<Option<_>>()?;
        if !self.holds(&mut gathered, &counted) {
            return None;
        }
        let changes = self.changes.iter().zip(&counted).map(|(c, n)| TableChanges { changes: *n, ..c.clone() }).collect();
        Some((gathered, Foreseen { changes, read }))
    }

    /// Whether what the source tells is what was guessed: the changes with how many there were (`counted`), and those without
    /// any left out. Takes the place of what the source could not count.
    fn holds(&self, gathered: &mut Gathered, counted: &[u64]) -> bool {
        let [group] = gathered.groups.as_mut_slice() else { return false };
        if group.served != self.served || counted.len() != self.changes.len() {
            return false;
        }
        let read = |told: &TableChanges| self.changes.iter().position(|guessed| is_same_capture(guessed, told));
        // A table that was not read has changes, or more than rows of it.
        if group.changes.iter().any(|told| read(told).is_none() || !is_little(told)) {
            return false;
        }
        // More than were asked for, or in a table of which the source says that it cannot have any.
        let told = |guessed: &TableChanges| group.changes.iter().any(|told| is_same_capture(guessed, told));
        if self.changes.iter().zip(counted).any(|(guessed, n)| *n > FEW || (*n > 0 && !told(guessed))) {
            return false;
        }
        let changed = self.changes.iter().zip(counted).filter(|(_, n)| **n > 0);
        group.changes = changed.map(|(guessed, n)| TableChanges { changes: *n, ..guessed.clone() }).collect();
        true
    }
}

/// How many changes stand behind the rows of [`Reading::few_uncounted`]; more than [`FEW`]: there may be more. None: a row was
/// too wide.
fn count(rows: &Rows, reading: &Reading<'_>) -> Option<u64> {
    let column = reading.key.len() + 1 + reading.columns.len();
    let wide = |row: &usize| rows.get(*row, reading.key.len()) == Some("f");
    if (0..rows.len()).any(|row| wide(&row)) {
        return None;
    }
    Some((0..rows.len()).filter_map(|row| rows.number::<u64>(row, column)).sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kid::gather::Group;

    fn change(relation: i32, changes: u64) -> TableChanges {
        TableChanges {
            relation,
            order: relation as usize,
            key: vec!["id".into()],
            slots: Vec::new(),
            segments: vec![format!("seg{relation}")],
            batched: true,
            changes,
            existed: 0,
            truncated: false,
            whole: false,
        }
    }

    fn told(served: &str, changes: Vec<TableChanges>) -> Gathered {
        let group = Group { served: served.into(), members: 2, changes };
        Gathered { snapshot: "9:9:".into(), unflushed: None, groups: vec![group], sequences: None, strangers: Vec::new() }
    }

    fn usual(habit: &Habit) -> Vec<i32> {
        habit.guess(2).map(|g| g.changes.iter().map(|c| c.relation).collect()).unwrap_or_default()
    }

    #[test]
    fn a_run_is_foreseen_when_the_last_one_would_have_been() {
        let mut habit = Habit::default();
        assert!(habit.guess(2).is_none());
        habit.note("1:1:", 2, &[change(1, 3), change(2, 1)]);
        assert!(habit.guess(2).is_none(), "nothing was known of these tables");
        habit.note("2:2:", 2, &[change(2, 1)]);
        assert_eq!(usual(&habit), [1, 2]);
        assert_eq!(habit.guess(2).map(|g| g.served), Some("2:2:".into()));
        assert!(habit.guess(6).is_none(), "another member takes part");
        habit.note("3:3:", 2, &[change(3, 1)]);
        assert!(habit.guess(2).is_none(), "a new table");
        habit.note("4:4:", 2, &[change(3, 1)]);
        assert_eq!(usual(&habit), [1, 2, 3]);
    }

    #[test]
    fn what_rests_is_forgotten_and_the_number_is_bounded() {
        let mut habit = Habit::default();
        habit.note("1:1:", 2, &[change(1, 1), change(2, 1)]);
        for _ in 0..=FORGOTTEN {
            habit.note("2:2:", 2, &[change(2, 1)]);
        }
        assert_eq!(usual(&habit), [2]);
        for relation in 10..30 {
            habit.note("3:3:", 2, &[change(2, 1), change(relation, 1)]);
        }
        habit.note("4:4:", 2, &[change(2, 1)]);
        assert_eq!(usual(&habit).len(), MOST);
        assert!(usual(&habit).contains(&2));
        for _ in 0..=FORGOTTEN {
            habit.note_nothing();
        }
        assert!(habit.guess(2).is_none());
    }

    #[test]
    fn whoever_brings_much_has_no_habits() {
        for much in
            [change(1, FEW + 1), TableChanges { truncated: true, ..change(1, 0) }, TableChanges { whole: true, ..change(1, 0) }]
        {
            let mut habit = Habit::default();
            habit.note("1:1:", 2, &[change(1, 1)]);
            habit.note("2:2:", 2, &[change(1, 1)]);
            habit.note("3:3:", 2, &[much]);
            assert!(habit.guess(2).is_none());
            habit.note("4:4:", 2, &[change(1, 1)]);
            assert!(habit.guess(2).is_none());
        }
    }

    fn guess() -> Guess {
        Guess { served: "5:5:".into(), changes: vec![change(1, 0), change(2, 0)] }
    }

    #[test]
    fn a_guess_holds_when_the_source_says_the_same() {
        let mut source = told("5:5:", vec![change(1, 0), change(2, 0)]);
        assert!(guess().holds(&mut source, &[3, 0]));
        let brought: Vec<_> = source.groups[0].changes.iter().map(|c| (c.relation, c.changes)).collect();
        assert_eq!(brought, [(1, 3)], "what has not changed is left out");
        assert!(guess().holds(&mut told("5:5:", Vec::new()), &[0, 0]), "nothing is pending");
    }

    #[test]
    fn a_guess_does_not_hold_against_what_the_source_says() {
        let refuted = |mut source: Gathered, counted: &[u64]| !guess().holds(&mut source, counted);
        assert!(refuted(told("4:4:", vec![change(1, 0)]), &[1, 0]), "served up to elsewhere");
        assert!(refuted(told("5:5:", vec![change(1, 0), change(3, 1)]), &[1, 0]), "another table has changed");
        assert!(refuted(told("5:5:", vec![TableChanges { truncated: true, ..change(1, 0) }]), &[1, 0]));
        assert!(refuted(told("5:5:", vec![TableChanges { whole: true, ..change(1, 0) }]), &[1, 0]));
        assert!(refuted(told("5:5:", vec![TableChanges { segments: vec!["new".into()], ..change(1, 0) }]), &[0, 0]));
        assert!(refuted(told("5:5:", vec![change(1, 0)]), &[FEW + 1, 0]), "perhaps more than were read");
        assert!(refuted(told("5:5:", vec![change(1, 0)]), &[1, 1]), "rows where none can be");
        let mut two = told("5:5:", Vec::new());
        two.groups.push(Group { served: "4:4:".into(), members: 4, changes: Vec::new() });
        assert!(refuted(two, &[0, 0]), "receivers at different places");
    }
}
