//! Who wins: what becomes of one key that several sources have changed. Pure, and for each key by itself: it knows no
//! table, no clock and no connection, so that every rule is tested without a server.
//!
//! A source *knows* another's change of a key when that change is not pending towards it any more. Who knows all others
//! is newer than they are, and nothing is decided; a conflict is between changes that did not know each other.

/// One source's change of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyChange {
    /// The source, by its place among the members.
    pub source: usize,
    /// The members towards which it is pending, as bits.
    pub towards: u64,
    /// When it was committed, or made where commits are not timed: microseconds.
    pub at: i64,
    /// Whether nobody has won it so far: it stays where it is, unless somebody does who was away.
    pub held: bool,
}

/// What becomes of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// No conflict: this source knows the others' changes, and its row goes to everybody.
    Newest(usize),
    /// These sources did not know each other's changes; in the listed order.
    Conflict(Vec<usize>),
}

fn pending(change: &KeyChange, towards: usize) -> bool {
    change.towards & (1 << towards) != 0
}

/// Whether another one of the changes is newer.
fn beaten(changes: &[KeyChange], x: &KeyChange) -> bool {
    changes.iter().any(|y| y.source != x.source && !pending(x, y.source) && pending(y, x.source))
}

/// The sources that could bring a key as well as the newest, because they and it know each other's changes, and nobody is newer.
pub fn peers(changes: &[KeyChange], newest: usize) -> Vec<usize> {
    let Some(own) = changes.iter().find(|c| c.source == newest) else { return Vec::new() };
    let knows = |c: &&KeyChange| c.source != newest && !pending(c, newest) && !pending(own, c.source);
    changes.iter().filter(knows).filter(|c| !c.held && !beaten(changes, c)).map(|c| c.source).collect()
}

/// Judges the changes of one key, at least one, in the listed order of their sources.
pub fn judge(changes: &[KeyChange]) -> Judgement {
    let mut left: Vec<&KeyChange> = changes.iter().filter(|c| !beaten(changes, c)).collect();
    // Only where everybody is beaten in a circle, which no order of runs can make, all are left.
    if left.is_empty() {
        left = changes.iter().collect();
    }
    let first = left[0].source;
    let contend = |x: &&&KeyChange| left.iter().any(|y| y.source != x.source && pending(x, y.source) && pending(y, x.source));
    let contenders: Vec<usize> = left.iter().filter(contend).map(|c| c.source).collect();
    if contenders.len() < 2 { Judgement::Newest(first) } else { Judgement::Conflict(contenders) }
}

/// The first of the contenders that have the same row as this one: who know each other's changes have brought them together.
/// A row that two have merged is one row, and may be counted once only.
pub fn head(contenders: &[KeyChange], source: usize) -> usize {
    let Some(own) = contenders.iter().find(|c| c.source == source) else { return source };
    let same = |c: &&KeyChange| c.source == source || (!pending(c, source) && !pending(own, c.source));
    contenders.iter().find(same).map_or(source, |c| c.source)
}

/// How conflicts are decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Strategy {
    Latest,
    LatestAllTables,
    First,
    Last,
    Random,
    Skip,
    Abort,
    /// Members by their places, the first that changed the key wins.
    Names(Vec<usize>),
}

impl Strategy {
    /// Reads a strategy that was checked when it was stored; `names`: the members in the listed order.
    pub fn parse(text: &str, names: &[&str]) -> Self {
        match text {
            "bucardo_latest" => Self::Latest,
            "bucardo_latest_all_tables" => Self::LatestAllTables,
            "bucardo_source" => Self::First,
            "bucardo_target" => Self::Last,
            "bucardo_random" => Self::Random,
            "bucardo_skip" => Self::Skip,
            "bucardo_abort" => Self::Abort,
            _ => {
                let place = |name: &str| names.iter().position(|n| *n == name);
                match place(text) {
                    Some(one) => Self::Names(vec![one]),
                    None => Self::Names(text.split_whitespace().filter_map(place).collect()),
                }
            }
        }
    }
}

/// What a strategy says of a conflict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// This source's row, or its deletion, goes to everybody.
    Winner(usize),
    /// Every row stays as it is.
    Nobody,
    /// Nothing is changed anywhere.
    Abort,
}

/// What the decision may need beside the changes.
pub struct Circumstances<'a> {
    /// The last change of each source in any table, by place; for `LatestAllTables`.
    pub latest: &'a [i64],
    /// The sources that take part, as bits: a name that is away cannot win.
    pub present: u64,
    /// A number that nobody can foresee.
    pub random: u64,
}

/// Chooses among the contenders, at least two, in the listed order.
pub fn choose(strategy: &Strategy, contenders: &[KeyChange], given: &Circumstances<'_>) -> Choice {
    // The first of equals: `max_by_key` alone would take the last.
    let greatest = |rank: &dyn Fn(&KeyChange) -> i64| {
        let best = contenders.iter().map(rank).max();
        contenders.iter().find(|c| Some(rank(c)) == best).map(|c| c.source)
    };
    let winner = match strategy {
        Strategy::Skip => return Choice::Nobody,
        Strategy::Abort => return Choice::Abort,
        Strategy::Latest => greatest(&|c| c.at),
        Strategy::LatestAllTables => greatest(&|c| given.latest.get(c.source).copied().unwrap_or(i64::MIN)),
        Strategy::First => contenders.first().map(|c| c.source),
        Strategy::Last => contenders.last().map(|c| c.source),
        Strategy::Random => contenders.get((given.random % contenders.len().max(1) as u64) as usize).map(|c| c.source),
        Strategy::Names(names) => {
            let changed = names.iter().copied().find(|n| contenders.iter().any(|c| c.source == *n));
            let listed = names.iter().copied().find(|n| given.present & (1 << n) != 0);
            changed.or(listed).or(contenders.first().map(|c| c.source))
        }
    };
    winner.map_or(Choice::Nobody, Choice::Winner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kid::bits;

    const A: usize = 0;
    const B: usize = 1;
    const C: usize = 2;

    fn change(source: usize, towards: &[usize], at: i64) -> KeyChange {
        KeyChange { source, towards: bits::of(towards.iter().copied()), at, held: false }
    }

    #[test]
    fn who_could_bring_a_key_as_well() {
        let known = [change(A, &[], 1), change(B, &[], 2), change(C, &[], 3)];
        assert_eq!(peers(&known, A), [B, C]);
        assert_eq!(peers(&known, C), [A, B]);
        let held = [known[0], KeyChange { held: true, ..known[1] }];
        assert!(peers(&held, A).is_empty());
        // B does not know what C has changed, which knows B.
        let newer = [change(A, &[], 1), change(B, &[], 2), change(C, &[B], 3)];
        assert_eq!(judge(&newer), Judgement::Newest(A));
        assert_eq!(peers(&newer, A), [C]);
        let contending = [change(A, &[B], 1), change(B, &[A], 2)];
        assert!(peers(&contending, A).is_empty());
    }

    fn given() -> Circumstances<'static> {
        Circumstances { latest: &[5, 9, 7], present: 0b111, random: 1 }
    }

    #[test]
    fn changes_that_did_not_know_each_other_conflict() {
        let all = [change(A, &[B, C], 1), change(B, &[A, C], 2)];
        assert_eq!(judge(&all), Judgement::Conflict(vec![A, B]));
    }

    #[test]
    fn who_knows_the_others_is_newer() {
        // A has B's change already, and changed the row on top of it; B's is still pending towards C only.
        let all = [change(A, &[B, C], 3), change(B, &[C], 2)];
        assert_eq!(judge(&all), Judgement::Newest(A));
        assert_eq!(judge(&[change(B, &[A], 1)]), Judgement::Newest(B));
    }

    #[test]
    fn both_delivered_to_each_other_is_no_conflict() {
        // Decided between A and B while C was away: their rows are the same.
        assert_eq!(judge(&[change(A, &[C], 1), change(B, &[C], 2)]), Judgement::Newest(A));
        // C comes back with a change of its own: all three contend for what C did not know.
        let all = [change(A, &[C], 1), change(B, &[C], 2), change(C, &[A, B], 3)];
        assert_eq!(judge(&all), Judgement::Conflict(vec![A, B, C]));
    }

    #[test]
    fn who_know_each_other_contend_with_one_row() {
        let all = [change(A, &[B, C], 1), change(B, &[A], 2), change(C, &[A], 3)];
        assert_eq!(judge(&all), Judgement::Conflict(vec![A, B, C]));
        assert_eq!([A, B, C].map(|source| head(&all, source)), [A, B, B]);
    }

    #[test]
    fn a_partial_commit_is_never_decided_again() {
        // A won and B has committed A's row, but A died before it had committed B's progress.
        assert_eq!(judge(&[change(B, &[A], 2)]), Judgement::Newest(B));
    }

    #[test]
    fn strategies() {
        let all = [change(A, &[B], 3), change(B, &[A], 7), change(C, &[A, B], 7)];
        let names = ["A", "B", "C"];
        let choice = |text: &str| choose(&Strategy::parse(text, &names), &all, &given());
        assert_eq!(choice("bucardo_latest"), Choice::Winner(B), "a tie goes to the source listed first");
        assert_eq!(choice("bucardo_latest_all_tables"), Choice::Winner(B));
        assert_eq!(choice("bucardo_source"), Choice::Winner(A));
        assert_eq!(choice("bucardo_target"), Choice::Winner(C));
        assert_eq!(choice("bucardo_random"), Choice::Winner(B));
        assert_eq!(choice("bucardo_skip"), Choice::Nobody);
        assert_eq!(choice("bucardo_abort"), Choice::Abort);
        assert_eq!(choice("C A"), Choice::Winner(C));
        let two = &all[1..];
        assert_eq!(choose(&Strategy::parse("A", &names), two, &given()), Choice::Winner(A), "named, though it changed nothing");
        let away = Circumstances { present: 0b110, ..given() };
        assert_eq!(choose(&Strategy::parse("A", &names), two, &away), Choice::Winner(B));
        assert_eq!(Strategy::parse("A b", &["A b", "A"]), Strategy::Names(vec![0]));
    }
}
