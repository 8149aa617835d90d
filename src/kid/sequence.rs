//! Sequences travel with every run: the receivers get the source's value, whether it was called, and its attributes.
//! `setval` is not undone by a rollback, which is harmless here: the value is the source's in any case.
//! A source's own sequence goes on handing out numbers meanwhile, and must never be set back.

use crate::catalog::sync::{Relation, Sync};
use crate::ident::{quote_literal, quote_qualified};
use crate::libpq::Rows;

fn sequences(sync: &Sync) -> impl Iterator<Item = &Relation> {
    sync.relations.iter().filter(|r| r.is_sequence)
}

fn name(relation: &Relation) -> String {
    quote_qualified(&relation.schema, &relation.name)
}

/// The statement that reads all sequences of the sync; None when it has none.
pub fn query(sync: &Sync) -> Option<String> {
    let one = |r: &Relation| {
        let name = name(r);
        format!(
            "SELECT {id}, s.last_value, s.is_called, p.seqstart, p.seqincrement, p.seqmin, p.seqmax, p.seqcycle \
             FROM {name} s, pg_catalog.pg_sequence p WHERE p.seqrelid = {literal}::pg_catalog.regclass",
            id = r.id,
            literal = quote_literal(&name)
        )
    };
    let all: Vec<String> = sequences(sync).map(one).collect();
    (!all.is_empty()).then(|| all.join(" UNION ALL "))
}

/// All sequences as one text, to see whether anything moved.
pub fn fingerprint(rows: &Rows) -> String {
    let row = |i: usize| (0..rows.columns()).map(|c| rows.text(i, c)).collect::<Vec<_>>().join(",");
    let mut all: Vec<String> = (0..rows.len()).map(row).collect();
    all.sort();
    all.join(";")
}

/// Up to so many numbers of a source's sequence are taken, one by one, instead of setting it.
const WALK: u32 = 10_000;

/// One sequence as a member has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    last: i64,
    called: bool,
    start: i64,
    increment: i64,
    least: i64,
    greatest: i64,
    cycle: bool,
}

fn state(rows: &Rows, row: usize) -> Option<State> {
    let n = |c: usize| rows.number::<i64>(row, c);
    Some(State {
        last: n(1)?,
        called: rows.bool(row, 2),
        start: n(3)?,
        increment: n(4)?,
        least: n(5)?,
        greatest: n(6)?,
        cycle: rows.bool(row, 7),
    })
}

/// What a member's sequence should be, given those of all sources in the listed order: as far as the furthest, never
/// back, with the first source's attributes. Sources that hand out numbers in turn (equal steps of more than one, from
/// different starts) each keep to their own numbers, and to their own start.
fn agreed(sources: &[State], mine: State, is_source: bool) -> Option<State> {
    let model = *sources.first()?;
    let ahead = |s: &State| if model.increment < 0 { (-i128::from(s.last), s.called) } else { (i128::from(s.last), s.called) };
    let furthest = *sources.iter().max_by_key(|s| ahead(s))?;
    let step = model.increment.unsigned_abs();
    let in_turn = step > 1
        && sources.iter().all(|s| s.increment == model.increment)
        && sources.iter().any(|s| s.last.rem_euclid(step as i64) != model.last.rem_euclid(step as i64));
    let mut wanted = State { last: furthest.last, called: furthest.called, ..model };
    if is_source {
        if in_turn {
            wanted.start = mine.start;
            wanted.least = mine.least;
            let short = (furthest.last - mine.last).rem_euclid(step as i64);
            if short != 0 {
                // The last of its own numbers that is not beyond the furthest: the next one is.
                wanted.last = if model.increment > 0 { furthest.last - short } else { furthest.last + (step as i64 - short) };
                wanted.called = true;
            }
        }
        if ahead(&wanted) < ahead(&mine) {
            (wanted.last, wanted.called) = (mine.last, mine.called);
        }
    }
    Some(wanted)
}

/// The statements that make one member's sequences what the sources agree on.
pub fn agree(sync: &Sync, sources: &[&Rows], mine: &Rows, is_source: bool) -> Vec<String> {
    let mut all = Vec::new();
    for relation in sequences(sync) {
        let id = relation.id.to_string();
        let find = |rows: &Rows| (0..rows.len()).find(|i| rows.text(*i, 0) == id).and_then(|row| state(rows, row));
        let states: Vec<State> = sources.iter().filter_map(|rows| find(rows)).collect();
        let (Some(have), name) = (find(mine), name(relation)) else { continue };
        let Some(want) = agreed(&states, have, is_source) else { continue };
        if (want.start, want.increment, want.least, want.greatest, want.cycle)
            != (have.start, have.increment, have.least, have.greatest, have.cycle)
        {
            let cycle = if want.cycle { "CYCLE" } else { "NO CYCLE" };
            // A source goes on from where it is by now, unless that is not possible at all.
            let goes_on = is_source && (want.least..=want.greatest).contains(&have.last);
            let restart = if goes_on { String::new() } else { format!("RESTART WITH {}", want.last) };
            all.push(format!(
                "ALTER SEQUENCE {name} INCREMENT BY {} MINVALUE {} MAXVALUE {} START WITH {} {restart} {cycle}",
                want.increment, want.least, want.greatest, want.start
            ));
        }
        if want != have {
            let literal = quote_literal(&name);
            all.push(match is_source {
                true => forward(&name, want),
                false => format!("SELECT pg_catalog.setval({literal}::pg_catalog.regclass, {}, {})", want.last, want.called),
            });
        }
    }
    all
}

/// The statement that brings a source's sequence forward, if it is still behind by then: its application takes numbers all
/// the time. Nothing keeps it from doing so between the look and `setval`: LOCK TABLE takes no sequence, and ALTER SEQUENCE
/// would wait for every transaction that has taken a number, and have all others wait behind it. So where it is not far,
/// the numbers are taken like an application would, and no number can come twice. `setval` is for the rest: it would have to
/// be outrun by so many numbers within one statement.
fn forward(name: &str, want: State) -> String {
    let State { last, called, increment, .. } = want;
    let id = format!("{}::pg_catalog.regclass", quote_literal(name));
    let behind = if increment < 0 { '>' } else { '<' };
    let at_it = if called { format!(" OR (s.last_value = '{last}' AND NOT s.is_called)") } else { String::new() };
    format!(
        "SELECT CASE WHEN {called} AND p.seqcache = 1 AND w.steps <= {WALK} AND w.steps = pg_catalog.trunc(w.steps) \
         THEN (SELECT pg_catalog.count(pg_catalog.nextval({id})) FROM pg_catalog.generate_series(1, w.steps::pg_catalog.int8)) \
         ELSE pg_catalog.setval({id}, '{last}', {called}) END FROM {name} s, pg_catalog.pg_sequence p, \
         LATERAL (SELECT ('{last}'::pg_catalog.numeric - s.last_value) / p.seqincrement + (NOT s.is_called)::pg_catalog.int4 AS steps) w \
         WHERE p.seqrelid = {id} AND (s.last_value {behind} '{last}'{at_it})"
    )
}

#[cfg(test)]
mod tests {
    use super::{State, agreed};

    fn sequence(last: i64, called: bool, increment: i64) -> State {
        State { last, called, start: 1, increment, least: i64::MIN, greatest: i64::MAX, cycle: false }
    }

    #[test]
    fn a_shared_sequence_never_goes_back() {
        let (a, b) = (sequence(7, true, 1), sequence(9, true, 1));
        assert_eq!(agreed(&[a, b], a, true), Some(b));
        assert_eq!(agreed(&[a, b], b, true), Some(b));
        assert_eq!(agreed(&[a, b], sequence(30, true, 1), false), Some(b), "a target follows");
        let (a, b) = (sequence(-7, true, -1), sequence(-9, false, -1));
        assert_eq!(agreed(&[a, b], a, true), Some(b));
        let (a, b) = (sequence(1, false, 1), sequence(1, true, 1));
        assert_eq!(agreed(&[a, b], a, true), Some(b));
    }

    #[test]
    fn sources_that_take_turns_keep_their_own_numbers() {
        let (a, b) = (sequence(21, true, 2), sequence(4, true, 2));
        let moved = agreed(&[a, b], b, true).unwrap();
        assert_eq!((moved.last, moved.called), (20, true), "the next one is 22");
        assert_eq!(agreed(&[a, b], a, true), Some(a));
    }
}
