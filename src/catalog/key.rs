//! Whether a key column on another member keeps all keys of the source apart. Where its type rounds, or its collation calls
//! different texts equal, two rows of the source would be written to one there, without any error. Pure; part of `compare`.

use super::compare::FIRST_USER_OID;
use super::describe::Column;

/// Types by their oids: "char", int8, int2, int4, text, name, varchar, char(n), float4, float8, numeric, and those of time.
const CHAR: u32 = 18;
const INT8: u32 = 20;
const INT2: u32 = 21;
const INT4: u32 = 23;
const TEXT: u32 = 25;
const NAME: u32 = 19;
const VARCHAR: u32 = 1043;
const BPCHAR: u32 = 1042;
const FLOAT4: u32 = 700;
const FLOAT8: u32 = 701;
const NUMERIC: u32 = 1700;
const DATE: u32 = 1082;
const TIME: u32 = 1083;
const TIMESTAMP: u32 = 1114;
const TIMESTAMPTZ: u32 = 1184;
const TIMETZ: u32 = 1266;
const INTERVAL: u32 = 1186;
/// Of the built-in types those that write values of their own which a collation may call equal.
const WORDS: [u32; 5] = [CHAR, NAME, TEXT, BPCHAR, VARCHAR];

/// What tells keys of the source's column apart and is lost in the other one; None: nothing. Types that differ travel as texts,
/// and what the other one's input refuses is an error, by which nothing is lost. Blanks at the end count for nothing.
pub fn lost(here: &Column, there: &Column) -> Option<&'static str> {
    let (from, to) = (here.domain_of, there.domain_of);
    let words = from >= FIRST_USER_OID || WORDS.contains(&from);
    // Of two such collations nobody knows which one keeps more apart.
    if words && there.folds && !(here.folds && here.collation == there.collation) {
        return Some("its collation calls different texts equal");
    }
    let fewer = || scale(there).is_some_and(|there| scale(here).is_none_or(|here| there < here));
    let rounds = match (from, to) {
        (TEXT | VARCHAR | BPCHAR, NAME) => return Some("a name is cut off after 63 bytes"),
        (from, CHAR) if from != CHAR => return Some("it is cut off after one byte"),
        (TIMETZ, TIME) => return Some("it has no time zone"),
        (NUMERIC, FLOAT4 | FLOAT8) => digits(here).is_none_or(|digits| digits > if to == FLOAT8 { 15 } else { 6 }),
        (FLOAT8, FLOAT4) | (INT4, FLOAT4) | (INT8, FLOAT4 | FLOAT8) => true,
        (TIMESTAMP | TIMESTAMPTZ, DATE | TIME | TIMETZ) => true,
        (TIMESTAMP | TIMESTAMPTZ, TIMESTAMP | TIMESTAMPTZ) | (TIME | TIMETZ, TIME | TIMETZ) | (INTERVAL, INTERVAL) => fewer(),
        (NUMERIC | FLOAT4 | FLOAT8, NUMERIC) => fewer(),
        (INT2 | INT4 | INT8, NUMERIC) => scale(there).is_some_and(|there| there < 0),
        _ => false,
    };
    rounds.then_some("its type rounds them")
}

/// The numbers of a type's modifier.
fn modifier(column: &Column) -> Option<Vec<i32>> {
    let (_, modifier) = column.stored_name.rsplit_once('(')?;
    let (numbers, _) = modifier.split_once(')')?;
    numbers.split(',').map(|n| n.trim().parse().ok()).collect()
}

/// How many digits after the point a column keeps; None: as many as there are.
fn scale(column: &Column) -> Option<i32> {
    let numbers = modifier(column);
    match column.domain_of {
        NUMERIC => numbers.map(|n| n.get(1).copied().unwrap_or(0)),
        FLOAT4 | FLOAT8 => None,
        // Those of time have six at most.
        _ => Some(numbers.and_then(|n| n.last().copied()).unwrap_or(6)),
    }
}

/// How many digits a number has at most; None: as many as there are.
fn digits(column: &Column) -> Option<i32> {
    modifier(column).and_then(|numbers| numbers.first().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(oid: u32, name: &str) -> Column {
        Column { type_oid: oid, domain_of: oid, type_name: name.into(), stored_name: name.into(), ..Column::default() }
    }

    #[test]
    fn equal_columns_and_wider_ones_lose_nothing() {
        let same = [(INT4, "integer"), (TEXT, "text"), (NUMERIC, "numeric(10,2)"), (TIMESTAMPTZ, "timestamp(3) with time zone")];
        for (oid, name) in same {
            assert_eq!(lost(&column(oid, name), &column(oid, name)), None, "{name}");
        }
        let wider = [
            ((INT4, "integer"), (INT8, "bigint")),
            ((INT8, "bigint"), (INT4, "integer")),
            ((INT8, "bigint"), (TEXT, "text")),
            ((INT8, "bigint"), (NUMERIC, "numeric(10)")),
            ((NUMERIC, "numeric(10)"), (INT8, "bigint")),
            ((NUMERIC, "numeric"), (INT8, "bigint")),
            ((NUMERIC, "numeric(12)"), (FLOAT8, "double precision")),
            ((FLOAT4, "real"), (FLOAT8, "double precision")),
            ((FLOAT8, "double precision"), (NUMERIC, "numeric")),
            ((VARCHAR, "character varying(10)"), (TEXT, "text")),
            ((VARCHAR, "character varying(10)"), (BPCHAR, "character(10)")),
            ((BPCHAR, "character(10)"), (TEXT, "text")),
            ((NUMERIC, "numeric(10,2)"), (NUMERIC, "numeric(12,3)")),
            ((NUMERIC, "numeric(10,2)"), (NUMERIC, "numeric")),
            ((TIMESTAMP, "timestamp(0) without time zone"), (TIMESTAMPTZ, "timestamp with time zone")),
            ((TIMESTAMP, "timestamp without time zone"), (TIMESTAMP, "timestamp(6) without time zone")),
            ((DATE, "date"), (TIMESTAMP, "timestamp without time zone")),
        ];
        for ((from, name), (to, wider)) in wider {
            assert_eq!(lost(&column(from, name), &column(to, wider)), None, "{name} to {wider}");
        }
    }

    #[test]
    fn types_that_round_lose_keys() {
        let rounded = [
            ((NUMERIC, "numeric"), (NUMERIC, "numeric(10,2)")),
            ((NUMERIC, "numeric(10,2)"), (NUMERIC, "numeric(10)")),
            ((NUMERIC, "numeric"), (FLOAT8, "double precision")),
            ((NUMERIC, "numeric(20)"), (FLOAT8, "double precision")),
            ((FLOAT8, "double precision"), (NUMERIC, "numeric(10,2)")),
            ((INT8, "bigint"), (NUMERIC, "numeric(10,-2)")),
            ((INT8, "bigint"), (FLOAT8, "double precision")),
            ((TIMESTAMPTZ, "timestamp with time zone"), (DATE, "date")),
            ((TIMESTAMP, "timestamp without time zone"), (TIMESTAMP, "timestamp(3) without time zone")),
            ((TIMESTAMP, "timestamp(3) without time zone"), (TIMESTAMP, "timestamp(0) without time zone")),
            ((TIMETZ, "time with time zone"), (TIME, "time without time zone")),
            ((TEXT, "text"), (NAME, "name")),
            ((TEXT, "text"), (CHAR, "\"char\"")),
            ((INT4, "integer"), (CHAR, "\"char\"")),
        ];
        for ((from, name), (to, narrow)) in rounded {
            assert!(lost(&column(from, name), &column(to, narrow)).is_some(), "{name} to {narrow}");
        }
    }

    #[test]
    fn a_domain_is_what_it_is_over() {
        let domain = Column { type_name: "amount".into(), ..column(NUMERIC, "numeric(9,2)") };
        assert_eq!(lost(&domain, &column(NUMERIC, "numeric(9,2)")), None);
        assert!(lost(&column(NUMERIC, "numeric"), &domain).is_some());
    }

    #[test]
    fn a_collation_that_calls_different_texts_equal_must_be_the_sources_own() {
        let plain = column(TEXT, "text");
        let folding = |name: &str| Column { folds: true, collation: Some(name.into()), ..column(TEXT, "text") };
        assert!(lost(&plain, &folding("ci")).is_some());
        assert!(lost(&folding("ai"), &folding("ci")).is_some());
        assert_eq!(lost(&folding("ci"), &folding("ci")), None);
        assert_eq!(lost(&folding("ci"), &plain), None);
        assert_eq!(lost(&column(INT4, "integer"), &folding("ci")), None, "numbers do not fold");
    }
}
