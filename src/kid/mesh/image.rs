//! Rows that are no jsonb, though they are JSON: with a `\u0000`, a number beyond all measure, or of hundreds of megabytes.
//! Looked for only when the record of decisions was refused, and then told apart by asking the server itself; a stand-in with
//! the row's key is recorded for such a row. It must never change a row that jsonb takes.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::pg::{spi, xact};

/// Whether the server says that a text is no jsonb, or too large for one.
pub fn is_unfit(error: &Error) -> bool {
    matches!(&error.code.as_str()[..2], "22" | "54")
}

/// Which of the texts are no jsonb, and why.
pub fn unfit(texts: &[impl AsRef<str>]) -> Result<HashMap<usize, &'static str>> {
    let texts: Vec<&str> = texts.iter().map(AsRef::as_ref).collect();
    let mut found = HashMap::new();
    look(&texts, 0, &mut found)?;
    Ok(found)
}

/// By halves: there are many, and few of them are unfit.
fn look(texts: &[&str], first: usize, found: &mut HashMap<usize, &'static str>) -> Result<()> {
    if texts.is_empty() {
        return Ok(());
    }
    let sql = "SELECT count(t::jsonb) FROM unnest($1::text[]) t";
    match xact::transaction(|| spi::value::<i64>(sql, &[texts.to_vec().into()])) {
        Ok(_) => Ok(()),
        Err(error) if !is_unfit(&error) => Err(error),
        Err(error) if texts.len() == 1 => {
            found.insert(first, if error.code.as_str().starts_with("54") { "too large" } else { "not jsonb" });
            Ok(())
        }
        Err(_) => {
            let (left, right) = texts.split_at(texts.len() / 2);
            look(left, first, found)?;
            look(right, first + left.len(), found)
        }
    }
}

/// Puts stand-ins into decisions' rows, which are objects of rows by member, for those that are unfit.
pub fn make_fit(keys: &[String], rows: &mut [String]) -> Result<()> {
    for (i, why) in unfit(rows)? {
        let members = split(&rows[i]);
        let mut bad = unfit(&members.iter().map(|(_, row)| *row).collect::<Vec<_>>())?;
        if bad.is_empty() {
            // Each would do, but not together.
            bad = members.iter().enumerate().filter(|(_, (_, row))| *row != "null").map(|(at, _)| (at, why)).collect();
        }
        let row = |(at, (name, row)): (usize, &(&str, &str))| match bad.get(&at) {
            Some(why) => format!("{name}:{}", stand_in(&keys[i], why)),
            None => format!("{name}:{row}"),
        };
        let fit = members.iter().enumerate().map(row).collect::<Vec<_>>().join(",");
        rows[i] = format!("{{{fit}}}");
    }
    Ok(())
}

/// What is recorded for a row: why it is not there, and its key.
fn stand_in(key: &str, why: &str) -> String {
    let columns = key.trim().strip_prefix('{').and_then(|k| k.strip_suffix('}')).filter(|k| !k.trim().is_empty());
    format!("{{\"bucardo_image\":\"{why}\"{}}}", columns.map_or_else(String::new, |c| format!(",{c}")))
}

/// The members of an object as they are written: name and value. No parser of ours could hold them all.
fn split(object: &str) -> Vec<(&str, &str)> {
    let mut members = Vec::new();
    let (mut depth, mut quoted, mut escaped) = (0, false, false);
    let (mut start, mut colon) = (1, None);
    for (at, byte) in object.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'{' | b'[' => depth += 1,
            b':' if depth == 1 && colon.is_none() => colon = Some(at),
            b',' | b'}' | b']' => {
                if depth == 1
                    && let Some(colon) = colon.take()
                {
                    members.push((object[start..colon].trim(), object[colon + 1..at].trim()));
                    start = at + 1;
                }
                depth -= i32::from(byte != b',');
            }
            _ => {}
        }
    }
    members
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_falls_apart_into_its_members() {
        let rows = r#"{"A":{"x":"},{\"","y":[1,{"z":2}]},"B, C":null,"\"":{}}"#;
        assert_eq!(split(rows), [(r#""A""#, r#"{"x":"},{\"","y":[1,{"z":2}]}"#), (r#""B, C""#, "null"), (r#""\"""#, "{}")]);
        assert_eq!(split("{}"), []);
    }

    #[test]
    fn a_stand_in_names_the_key() {
        assert_eq!(stand_in(r#"{"id": 7}"#, "not jsonb"), r#"{"bucardo_image":"not jsonb","id": 7}"#);
        assert_eq!(stand_in("", "too large"), r#"{"bucardo_image":"too large"}"#);
    }
}
