//! Customcode asked by a run: calls the function in a transaction of its own on the control database, with the rights
//! of the role that registered it, and reads its answer. What the answer means is decided by the step that asks. It
//! must never take an answer that it does not understand for none.

use std::cell::RefCell;

use pgrx::{log, warning};
use serde_json::{Map, Value};

use super::apply::Receiver;
use crate::catalog::customcode::Code;
use crate::error::{Error, Result, SqlState};
use crate::ident::shown;
use crate::libpq::Conn;
use crate::pg::{role, spi, xact};

/// What the row of one key shall be.
#[derive(Clone, Debug, PartialEq)]
pub struct RowChoice {
    /// An object of the key columns.
    pub key: Value,
    /// The member whose row wins; none: `row` says it.
    pub db: Option<String>,
    /// The row itself: an object, or null for a row that is to be deleted.
    pub row: Option<Value>,
}

/// What a customcode answered. The default: nothing, then the strategy decides.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// The member that wins all conflicts that were asked about.
    pub winner: Option<String>,
    /// Winners of single keys.
    pub winners: Vec<RowChoice>,
    /// No further code is to be asked.
    pub last: bool,
    /// The run is to be cancelled.
    pub end: bool,
}

/// An answer with what is to be told at once.
#[derive(Debug, Default, PartialEq)]
struct Said {
    message: Option<String>,
    warning: Option<String>,
    error: Option<String>,
    /// Words that mean nothing here.
    unknown: Vec<String>,
    answer: Answer,
}

/// The members of the run that asks, for as long as it does.
struct Lent {
    members: Vec<Receiver>,
    /// The names of all members of the sync, in its order.
    names: Vec<String>,
    role: u32,
}

thread_local! {
    static LENT: RefCell<Option<Lent>> = const { RefCell::new(None) };
}

/// Asks a customcode. To be called outside of any transaction of the control database; what the function wrote there
/// is kept unless it fails, or says that the run shall. Meanwhile it may use the members' transactions, so nothing may be
/// under way on them.
pub fn ask(code: &Code, context: &Value, members: &mut Vec<Receiver>, names: Vec<String>) -> Result<Answer> {
    let named = |error: Error| error.at(format_args!("customcode \"{}\"", code.name));
    LENT.set(Some(Lent { members: std::mem::take(members), names, role: code.role }));
    let answer = xact::transaction(|| hear(code, parse(call(code, context)?.as_deref())?)).map_err(named);
    if let Some(lent) = LENT.take() {
        *members = lent.members;
    }
    answer
}

/// Does something in the run's transaction on a member, for the customcode that is being asked. What fails there is undone
/// there, and the function may go on. None: no customcode is being asked.
pub fn on_member<T>(db: &str, action: impl FnOnce(&mut Conn) -> Result<T>) -> Option<Result<T>> {
    LENT.with_borrow_mut(|lent| Some(lent.as_mut()?.on(db, action)))
}

impl Lent {
    fn on<T>(&mut self, db: &str, action: impl FnOnce(&mut Conn) -> Result<T>) -> Result<T> {
        // Whoever else is led into the call has not registered the code.
        if role::current() != self.role {
            return Err(Error::new(
                SqlState::NOT_ALLOWED,
                "only the role that registered the customcode may use its run's transactions",
            )
            .hint("Call it from the registered function itself, not from one that is SECURITY DEFINER."));
        }
        let usable = |m: &&mut Receiver| self.names[m.index] == db && m.failed.is_none() && !m.spoilt;
        let Some(member) = self.members.iter_mut().find(usable) else {
            return Err(Error::new(SqlState::UNDEFINED_OBJECT, format!("db \"{}\" takes no part in this run", shown(db)))
                .hint("The context's dbs are those that do."));
        };
        // What it may have set there lasts no longer than this run.
        member.session.never_again();
        let conn = &mut member.session.conn;
        let done = conn.query("SAVEPOINT bucardo_code").and_then(|_| action(conn));
        let end = if done.is_ok() { "RELEASE SAVEPOINT bucardo_code" } else { "ROLLBACK TO SAVEPOINT bucardo_code" };
        if let Err(error) = conn.query(end) {
            member.failed = Some(error.clone());
            return Err(error);
        }
        done.map_err(|error| error.at(format_args!("db \"{db}\"")))
    }
}

/// Calls the function; the text of its answer. Inside a transaction.
pub fn call(code: &Code, context: &Value) -> Result<Option<String>> {
    if !role::exists(code.role) {
        return Err(Error::new(SqlState::UNDEFINED_OBJECT, "the role that registered it does not exist any more").hint(format!(
            "Register it as another role: SELECT bucardo.update_customcode('{}', code => '{}(jsonb)');",
            code.name, code.function
        )));
    }
    let sql = format!("SELECT {}($1::pg_catalog.jsonb)::pg_catalog.text", code.function);
    let context = context.to_string();
    role::sandboxed(code.role, || spi::value(&sql, &[context.as_str().into()]))
}

/// Writes to the log what the function wants written, and fails if it wants that.
fn hear(code: &Code, said: Said) -> Result<Answer> {
    let name = &code.name;
    if let Some(message) = said.message {
        log!("bucardo: customcode \"{name}\": {message}");
    }
    if let Some(warning) = said.warning {
        warning!("bucardo: customcode \"{name}\": {warning}");
    }
    if !said.unknown.is_empty() {
        warning!("bucardo: customcode \"{name}\": nothing is known of this in its answer: {}", said.unknown.join(", "));
    }
    said.error.map_or(Ok(said.answer), |error| Err(Error::new(SqlState::RAISED, error)))
}

fn wrong(message: String) -> Error {
    Error::new(SqlState::INVALID_PARAMETER, message)
        .hint("A conflict's answer is null, or an object with winner, winners, message, warning, error, lastcode, endsync.")
}

/// Reads an answer. A value of null is as good as none.
fn parse(text: Option<&str>) -> Result<Said> {
    let mut said = Said::default();
    let value = match text {
        Some(text) => serde_json::from_str(text).map_err(|e| wrong(format!("the answer cannot be read: {e}")))?,
        None => Value::Null,
    };
    let words = match value {
        Value::Null => return Ok(said),
        Value::Object(words) => words,
        other => return Err(wrong(format!("the answer is {}, not an object", kind(&other)))),
    };
    for (word, value) in words.into_iter().filter(|(_, value)| !value.is_null()) {
        match word.as_str() {
            "winner" => said.answer.winner = Some(text_of(&word, value)?),
            "winners" => said.answer.winners = choices(value)?,
            "message" => said.message = Some(text_of(&word, value)?),
            "warning" => said.warning = Some(text_of(&word, value)?),
            "error" => said.error = Some(text_of(&word, value)?),
            "lastcode" => said.answer.last = truth_of(&word, &value)?,
            "endsync" => said.answer.end = truth_of(&word, &value)?,
            _ => said.unknown.push(shown(&word)),
        }
    }
    Ok(said)
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn text_of(word: &str, value: Value) -> Result<String> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(wrong(format!("the answer's \"{word}\" is {}, not a text", kind(&other)))),
    }
}

fn truth_of(word: &str, value: &Value) -> Result<bool> {
    value.as_bool().ok_or_else(|| wrong(format!("the answer's \"{word}\" is {}, not a boolean", kind(value))))
}

fn choices(value: Value) -> Result<Vec<RowChoice>> {
    let Value::Array(items) = value else {
        return Err(wrong(format!("the answer's \"winners\" is {}, not an array", kind(&value))));
    };
    let numbered =
        |(at, item)| choice(item).map_err(|fault| wrong(format!("the answer's \"winners\", item {}: {fault}", at + 1)));
    items.into_iter().enumerate().map(numbered).collect()
}

/// `{"key": …, "db": …}` or `{"key": …, "row": …}`, or what is wrong with it. A row of null is a deletion, so it counts
/// when there is no db.
fn choice(item: Value) -> Result<RowChoice, String> {
    let Value::Object(mut item) = item else { return Err(format!("it is {}, not an object", kind(&item))) };
    let key = match item.remove("key") {
        Some(Value::Object(key)) if !key.is_empty() => Value::Object(key),
        _ => return Err("its \"key\" is not an object of the key columns".into()),
    };
    let (db, row) = match (item.remove("db").filter(|db| !db.is_null()), item.remove("row")) {
        (Some(Value::String(db)), None | Some(Value::Null)) => (Some(db), None),
        (None, Some(row @ (Value::Null | Value::Object(_)))) => (None, Some(row)),
        (None, None) => return Err("it has neither \"db\" nor \"row\"".into()),
        (Some(Value::String(_)), Some(_)) => return Err("it has both \"db\" and \"row\"".into()),
        (Some(db), _) => return Err(format!("its \"db\" is {}, not a text", kind(&db))),
        (None, Some(row)) => return Err(format!("its \"row\" is {}, not an object or null", kind(&row))),
    };
    no_more(&item)?;
    Ok(RowChoice { key, db, row })
}

/// A word too many would be a choice that is only half obeyed.
fn no_more(item: &Map<String, Value>) -> Result<(), String> {
    item.keys().next().map_or(Ok(()), |word| Err(format!("nothing is known of its \"{}\"", shown(word))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn answer(text: &str) -> Answer {
        parse(Some(text)).unwrap().answer
    }

    #[test]
    fn no_answer() {
        for none in [None, Some("null"), Some("{}"), Some(r#"{"winner": null, "winners": null, "endsync": null}"#)] {
            assert_eq!(parse(none).unwrap(), Said::default(), "{none:?}");
        }
    }

    #[test]
    fn winners() {
        assert_eq!(answer(r#"{"winner": "A"}"#), Answer { winner: Some("A".into()), ..Answer::default() });
        let text = r#"{"winners": [{"key": {"id": 1}, "db": "B"}, {"key": {"id": 2}, "row": {"id": 2, "v": null}},
            {"key": {"id": 3}, "row": null}, {"key": {"id": 4}, "db": "A", "row": null}, {"key": {"id": 5}, "db": null, "row": {}}]}"#;
        let choice = |id: i32, db: Option<&str>, row| RowChoice { key: json!({"id": id}), db: db.map(String::from), row };
        let expected = [
            choice(1, Some("B"), None),
            choice(2, None, Some(json!({"id": 2, "v": null}))),
            choice(3, None, Some(Value::Null)),
            choice(4, Some("A"), None),
            choice(5, None, Some(json!({}))),
        ];
        assert_eq!(answer(text).winners, expected);
    }

    #[test]
    fn numbers_stay_as_they_are_written() {
        let row = r#"{"a":1.10,"b":12345678901234567890.123456789,"c":99999999999999999999}"#;
        let said = answer(&format!(r#"{{"winners": [{{"key": {{"id": 1}}, "row": {row}}}]}}"#));
        assert_eq!(said.winners[0].row.as_ref().map(Value::to_string).as_deref(), Some(row));
    }

    #[test]
    fn words() {
        let said = parse(Some(r#"{"message": "m", "warning": "w", "error": "e", "lastcode": true, "winer": 1}"#)).unwrap();
        let expected = Said {
            message: Some("m".into()),
            warning: Some("w".into()),
            error: Some("e".into()),
            unknown: vec!["winer".into()],
            answer: Answer { last: true, ..Answer::default() },
        };
        assert_eq!(said, expected);
        assert!(answer(r#"{"endsync": true}"#).end);
        assert!(!answer(r#"{"endsync": false}"#).end);
    }

    #[test]
    fn what_is_no_answer() {
        for (text, says) in [
            ("[]", "an array, not an object"),
            ("\"A\"", "a text, not an object"),
            ("true", "a boolean, not an object"),
            (r#"{"winner": 1}"#, "\"winner\" is a number, not a text"),
            (r#"{"lastcode": "yes"}"#, "\"lastcode\" is a text, not a boolean"),
            (r#"{"error": {}}"#, "\"error\" is an object, not a text"),
            (r#"{"winners": {}}"#, "\"winners\" is an object, not an array"),
            (r#"{"winners": [{"key": {"id": 1}, "db": "A"}, 1]}"#, "item 2: it is a number"),
            (r#"{"winners": [{"db": "A"}]}"#, "item 1: its \"key\""),
            (r#"{"winners": [{"key": {}, "db": "A"}]}"#, "its \"key\""),
            (r#"{"winners": [{"key": 1, "db": "A"}]}"#, "its \"key\""),
            (r#"{"winners": [{"key": {"id": 1}}]}"#, "neither"),
            (r#"{"winners": [{"key": {"id": 1}, "db": "A", "row": {}}]}"#, "both"),
            (r#"{"winners": [{"key": {"id": 1}, "db": 1}]}"#, "its \"db\" is a number"),
            (r#"{"winners": [{"key": {"id": 1}, "row": [1]}]}"#, "its \"row\" is an array"),
            (r#"{"winners": [{"key": {"id": 1}, "db": "A", "rows": {}}]}"#, "its \"rows\""),
        ] {
            let error = parse(Some(text)).unwrap_err();
            assert_eq!(error.code, SqlState::INVALID_PARAMETER, "{text}");
            assert!(error.message.contains(says), "{text}: {}", error.message);
        }
    }
}
