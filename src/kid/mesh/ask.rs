//! Conflicts that a customcode decides: what it is told, and what its answer means for each key. It goes before the
//! strategy; a key that it says nothing of is left to the next code, and then to the strategy.

use std::rc::Rc;

use serde_json::{Map, Value, json};

use super::settle::{Conflict, Ruling, parsed};
use super::{Broken, Mesh};
use crate::catalog::customcode::Code;
use crate::error::{Error, SqlState};
use crate::kid::customcode::{self, Answer};

/// A conflict as a code is told of it.
struct Told<'a> {
    conflict: &'a Conflict,
    key: Value,
    rows: Map<String, Value>,
}

impl<'a> Told<'a> {
    fn of(conflict: &'a Conflict) -> Result<Self, Error> {
        let row =
            |(name, row): &(Rc<str>, Option<String>)| Ok((name.to_string(), row.as_deref().map_or(Ok(Value::Null), parsed)?));
        let rows = conflict.rows.iter().map(row).collect::<Result<_, Error>>()?;
        Ok(Self { conflict, key: parsed(&conflict.key_json)?, rows })
    }
}

/// What a code has said of a conflict, and the code's name; none: the strategy decides.
type Ruled = Option<(Ruling, Rc<str>)>;

impl Mesh<'_> {
    /// Asks the codes that concern a relation about its conflicts.
    pub(super) fn ask_codes(&mut self, relation: i32, conflicts: &[Conflict]) -> Result<Vec<Ruled>, Broken> {
        let mut rulings: Vec<Ruled> = vec![None; conflicts.len()];
        let codes: Vec<Code> = self.codes(relation).cloned().collect();
        if codes.is_empty() {
            return Ok(rulings);
        }
        let conflicts = conflicts.iter().map(Told::of).collect::<Result<Vec<_>, Error>>()?;
        let names: Vec<String> = self.plan.sync.members.iter().map(|m| m.db.name.clone()).collect();
        for code in &codes {
            let open: Vec<usize> = (0..conflicts.len()).filter(|i| rulings[*i].is_none()).collect();
            if open.is_empty() {
                break;
            }
            let told: Vec<&Told> = open.iter().map(|i| &conflicts[*i]).collect();
            let context = self.context(relation, &told);
            let answer = customcode::ask(code, &context, &mut self.members, names.clone());
            // A member that failed under its hands ends the attempt as if it had failed under ours.
            self.check()?;
            let answer = answer?;
            if answer.end {
                return Err(Broken::Ended);
            }
            for i in open {
                if let Some(ruling) =
                    self.ruling(&answer, &conflicts[i]).map_err(|e| e.at(format_args!("customcode \"{}\"", code.name)))?
                {
                    rulings[i] = Some((ruling, code.name.as_str().into()));
                }
            }
            if answer.last {
                break;
            }
        }
        Ok(rulings)
    }

    /// The codes that are asked about a relation.
    pub(super) fn codes(&self, relation: i32) -> impl Iterator<Item = &Code> {
        self.plan.sync.conflict_codes.iter().filter(move |c| c.relation.is_none_or(|only| only == relation))
    }

    fn context(&self, relation: i32, conflicts: &[&Told<'_>]) -> Value {
        let one = |c: &&Told| {
            let times: Map<String, Value> =
                c.conflict.heads().map(|x| (self.member_name(x.source).to_string(), Value::from(timestamp(x.at)))).collect();
            json!({"key": c.key, "rows": c.rows, "changed_at": times})
        };
        let dbs: Vec<&str> = self.members.iter().map(|m| self.member_name(m.index)).collect();
        json!({
            "sync": self.plan.sync.name,
            "run": self.run,
            "whenrun": "conflict",
            "relation": self.relation_name(relation),
            "dbs": dbs,
            "attempt": self.attempt,
            "error": null,
            "conflicts": conflicts.iter().map(one).collect::<Vec<_>>(),
        })
    }

    /// What an answer says of a conflict.
    fn ruling(&self, answer: &Answer, conflict: &Told<'_>) -> Result<Option<Ruling>, Error> {
        let own = answer.winners.iter().find(|choice| choice.key == conflict.key);
        let named = own.map_or(answer.winner.as_ref(), |choice| choice.db.as_ref());
        match (named, own.and_then(|choice| choice.row.as_ref())) {
            (Some(name), _) => self.source_named(name).map(|index| Some(Ruling::Winner(index))),
            (None, Some(Value::Null)) => Ok(Some(Ruling::Row(None))),
            (None, Some(row)) => Ok(Some(Ruling::Row(Some(completed(row, conflict)?)))),
            (None, None) => Ok(None),
        }
    }

    fn source_named(&self, name: &str) -> Result<usize, Error> {
        let found = self.sources().into_iter().find(|at| self.name(*at) == name).map(|at| self.members[at].index);
        found.ok_or_else(|| {
            Error::new(SqlState::INVALID_PARAMETER, format!("the winner \"{name}\" is not a source that takes part"))
                .hint("A winner is one of the context's rows.")
        })
    }
}

/// The row that a code has made: what it leaves out is as in a contender's row, and the key is the conflict's.
fn completed(row: &Value, conflict: &Told<'_>) -> Result<Value, Error> {
    let Value::Object(given) = row else {
        return Err(
            Error::new(SqlState::INVALID_PARAMETER, "a row in the answer is not an object").hint("Give a row as by to_jsonb.")
        );
    };
    let model = conflict.rows.values().find_map(Value::as_object);
    let mut whole = model.cloned().unwrap_or_default();
    if let Some(unknown) = given.keys().find(|k| model.is_some_and(|m| !m.contains_key(*k))) {
        return Err(Error::new(
            SqlState::INVALID_PARAMETER,
            format!("a row in the answer has a column \"{unknown}\" that the table has not"),
        )
        .hint("Give a row as by to_jsonb."));
    }
    if let Value::Object(key) = &conflict.key {
        if let Some((column, _)) = key.iter().find(|(column, value)| given.get(*column).is_some_and(|v| v != *value)) {
            return Err(Error::new(
                SqlState::INVALID_PARAMETER,
                format!("a row in the answer has another \"{column}\" than its key"),
            )
            .hint("A merged row keeps the key of its conflict."));
        }
        whole.extend(key.clone());
    }
    whole.extend(given.clone());
    Ok(Value::Object(whole))
}

/// Microseconds since 1970 as a timestamp with time zone is written in JSON.
fn timestamp(micros: i64) -> String {
    let (days, of_day) = (micros.div_euclid(86_400_000_000), micros.rem_euclid(86_400_000_000));
    // Days since 0000-03-01, in the calendar whose year begins with March: the leap day is the last one.
    let z = days + 719_468;
    let (era, doe) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + i64::from(month <= 2);
    let (seconds, micros) = (of_day / 1_000_000, of_day % 1_000_000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}+00:00")
}

#[cfg(test)]
mod tests {
    use super::timestamp;

    #[test]
    fn times_as_json_writes_them() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00.000000+00:00");
        assert_eq!(timestamp(1_709_164_799_000_001), "2024-02-28T23:59:59.000001+00:00");
        assert_eq!(timestamp(1_709_251_200_000_000), "2024-03-01T00:00:00.000000+00:00");
        assert_eq!(timestamp(-1), "1969-12-31T23:59:59.999999+00:00");
    }
}
