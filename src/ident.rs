//! Names: quoting them, checking those that users give, and taking lists of them apart. Pure text, no server behind
//! it, so that all of it is tested without one. It must never look anything up: what a name means is for others.

use crate::error::{Error, Result, SqlState};

/// The longest name, in bytes.
pub const MAX_NAME: usize = 63;

/// An identifier as SQL needs it. Always quoted: right for every word and every version.
pub fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `"schema"."name"`.
pub fn quote_qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", quote_ident(schema), quote_ident(name))
}

/// A text constant as SQL needs it, whatever `standard_conforming_strings` says.
pub fn quote_literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

/// A relation's name for people: quoted only where SQL would need it.
pub fn display_qualified(schema: &str, name: &str) -> String {
    let shown = |part: &str| if is_plain(part) { part.to_string() } else { quote_ident(part) };
    format!("{}.{}", shown(schema), shown(name))
}

fn is_plain(part: &str) -> bool {
    !part.is_empty()
        && !part.starts_with(|c: char| c.is_ascii_digit())
        && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

fn bad(message: impl Into<String>) -> Error {
    Error::new(SqlState::INVALID_PARAMETER, message)
}

/// A name as it may stand in a message: one line, and not longer than a line.
pub fn shown(name: &str) -> String {
    let line: String = name.chars().take(80).map(printable).collect();
    if name.chars().count() > 80 { format!("{line}…") } else { line }
}

/// The whole name on one line.
pub fn one_line(name: &str) -> String {
    name.chars().map(printable).collect()
}

fn printable(c: char) -> char {
    if c.is_control() { '?' } else { c }
}

/// Checks the name of a member, group, sync or customcode. `what` says which, as `sync`.
pub fn check_name(what: &str, name: &str) -> Result<()> {
    let fault = if name.trim().is_empty() {
        "must not be blank"
    } else if name.len() > MAX_NAME {
        "must not be longer than 63 bytes"
    } else if name.chars().any(char::is_control) {
        "must not contain control characters"
    } else if name.contains([':', ',']) {
        "must not contain \":\" or \",\""
    } else {
        return Ok(());
    };
    Err(bad(format!("the name of a {what} {fault}: \"{}\"", shown(name)))
        .hint("A name has 1 to 63 bytes, no control characters, no \":\" and no \",\"."))
}

/// Takes a comma list apart. Commas between double quotes do not part; items are trimmed, empty ones are refused.
pub fn parse_list(text: &str) -> Result<Vec<String>> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let mut items = vec![String::new()];
    let mut quoted = false;
    for c in text.chars() {
        match c {
            ',' if !quoted => items.push(String::new()),
            _ => {
                quoted ^= c == '"';
                if let Some(item) = items.last_mut() {
                    item.push(c);
                }
            }
        }
    }
    if quoted {
        return Err(bad(format!("a double quote is not closed: {}", shown(text)))
            .hint("Write names as in SQL: a double quote within a quoted name is doubled."));
    }
    let items: Vec<String> = items.iter().map(|i| i.trim().to_string()).collect();
    if items.iter().any(String::is_empty) { Err(empty_place(text)) } else { Ok(items) }
}

fn empty_place(list: &str) -> Error {
    bad(format!("the list has an empty place: \"{}\"", shown(list))).hint("Give one comma between two names.")
}

/// A relation's name as in SQL: `table`, `schema.table`, quoted parts kept as they are, others in lower case.
/// Without a schema the first part is None: such a name must be looked up.
pub fn parse_qualified(text: &str) -> Result<(Option<String>, String)> {
    let fault = || {
        bad(format!("\"{}\" is not the name of a relation", shown(text)))
            .hint("Write it as in SQL: schema.table, with double quotes where needed.")
    };
    let mut parts: Vec<String> = Vec::new();
    let mut rest = text.trim();
    loop {
        let (part, after) = parse_part(rest).ok_or_else(fault)?;
        parts.push(part);
        match after.trim_start().strip_prefix('.') {
            Some(next) => rest = next.trim_start(),
            None if after.trim().is_empty() => break,
            None => return Err(fault()),
        }
    }
    if parts.iter().any(|p| p.is_empty() || p.len() > MAX_NAME || p.contains('\0')) {
        return Err(fault());
    }
    match (parts.pop(), parts.pop(), parts.pop()) {
        (Some(name), schema, None) => Ok((schema, name)),
        _ => Err(fault()),
    }
}

/// One identifier from the beginning of the text, and what follows it.
fn parse_part(text: &str) -> Option<(String, &str)> {
    let Some(inner) = text.strip_prefix('"') else {
        let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '$')).unwrap_or(text.len());
        let part = &text[..end];
        let starts_well = part.starts_with(|c: char| c.is_alphabetic() || c == '_');
        return starts_well.then(|| (part.to_ascii_lowercase(), &text[end..]));
    };
    let mut part = String::new();
    let mut chars = inner.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        if c != '"' {
            part.push(c);
        } else if chars.next_if(|(_, c)| *c == '"').is_some() {
            part.push('"');
        } else {
            return Some((part, &inner[at + 1..]));
        }
    }
    None
}

/// An item of a list as a pattern: as of a name, what stands outside of double quotes means lower case.
pub fn pattern(item: &str) -> String {
    let part = |(at, part): (usize, &str)| if at % 2 == 0 { part.to_ascii_lowercase() } else { part.to_string() };
    item.split('"').enumerate().map(part).collect()
}

/// Whether `text` is like `pattern`, in which `%` and `*` stand for anything. All else stands for itself.
pub fn matches(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    let (mut p, mut t) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p).is_some_and(|c| matches!(c, '%' | '*')) {
            retry = Some((p + 1, t));
            p += 1;
        } else if pattern.get(p) == Some(&text[t]) {
            p += 1;
            t += 1;
        } else if let Some((after, from)) = retry {
            p = after;
            t = from + 1;
            retry = Some((after, from + 1));
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|c| matches!(c, '%' | '*'))
}

/// A pattern of a list against a relation: with a dot against `schema.table`, else against the table's name.
pub fn matches_relation(pattern: &str, schema: &str, name: &str) -> bool {
    if pattern.contains('.') { matches(pattern, &format!("{schema}.{name}")) } else { matches(pattern, name) }
}

/// What a member does in a sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Its changes are captured and sent.
    Source,
    /// It receives.
    Target,
    /// It is emptied and copied whole in every run.
    Fullcopy,
}

impl Role {
    pub fn parse(text: &str) -> Result<Self> {
        match text {
            "source" => Ok(Self::Source),
            "target" => Ok(Self::Target),
            "fullcopy" => Ok(Self::Fullcopy),
            _ => Err(bad(format!("unknown role \"{}\"", shown(text))).hint("A role is source, target or fullcopy.")),
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Target => "target",
            Self::Fullcopy => "fullcopy",
        }
    }
}

/// Takes a list of members apart: `A:source,B:target`, or names alone, of which the first is the source. A name has no
/// comma, so every comma parts. `known`: the members that there are, of which some may have double quotes in their names.
pub fn parse_dbs(text: &str, known: &[String]) -> Result<Vec<(String, Role)>> {
    let (dbs, faults) = scan_dbs(text, known);
    faults.into_iter().next().map_or(Ok(dbs), Err)
}

/// The same with all that is wrong; the rest of the list stays.
pub fn scan_dbs(text: &str, known: &[String]) -> (Vec<(String, Role)>, Vec<Error>) {
    let (mut dbs, mut faults): (Vec<(String, Role)>, _) = (Vec::new(), Vec::new());
    if text.trim().is_empty() {
        return (dbs, faults);
    }
    for (at, item) in text.split(',').enumerate() {
        if item.trim().is_empty() {
            faults.push(empty_place(text));
            continue;
        }
        let alone = if at == 0 { Role::Source } else { Role::Target };
        let (name, role) = match item.rsplit_once(':') {
            // With a role that there is not, the rest can still be checked.
            Some((name, role)) => (name, Role::parse(role.trim()).map_err(|e| faults.push(e)).unwrap_or(alone)),
            None => (item, alone),
        };
        // A name may begin or end with a blank.
        let name = match [name, name.trim()].into_iter().find(|name| known.iter().any(|k| k == name)) {
            Some(name) => name.to_string(),
            None => unquote(name.trim()),
        };
        if let Err(fault) = check_name("db", &name) {
            faults.push(fault);
        } else if dbs.iter().any(|(n, _)| *n == name) {
            faults.push(bad(format!("db \"{name}\" is listed twice")).hint("Name each db once, with one role."));
        } else {
            dbs.push((name, role));
        }
    }
    (dbs, faults)
}

/// A name of a member in a list: taken as it is, or between double quotes.
fn unquote(name: &str) -> String {
    match name.strip_prefix('"').and_then(|n| n.strip_suffix('"')) {
        Some(inner) if !inner.is_empty() => inner.replace("\"\"", "\""),
        _ => name.to_string(),
    }
}

/// Texts as an array literal of PostgreSQL.
pub fn text_array(items: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let quote = |item: &str| format!("\"{}\"", item.replace('\\', "\\\\").replace('"', "\\\""));
    let quoted: Vec<String> = items.into_iter().map(|item| quote(item.as_ref())).collect();
    format!("{{{}}}", quoted.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes() {
        assert_eq!(quote_qualified("a b", "c\"d"), "\"a b\".\"c\"\"d\"");
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal("a\\'b"), "E'a\\\\''b'");
        assert_eq!(display_qualified("public", "Flights"), "public.\"Flights\"");
    }

    #[test]
    fn names() {
        for good in ["a", "Ä b", "it's", "x\"y", &"n".repeat(63)] {
            assert!(check_name("sync", good).is_ok(), "{good}");
        }
        for wrong in ["", " ", "a:b", "a,b", "a\nb", &"n".repeat(64), &"ä".repeat(32)] {
            assert_eq!(check_name("sync", wrong).unwrap_err().code, SqlState::INVALID_PARAMETER, "{wrong}");
        }
        assert!(!check_name("sync", "a\nb").unwrap_err().message.contains('\n'));
    }

    #[test]
    fn arrays() {
        assert_eq!(text_array(["a", "b\"c\\", ""]), "{\"a\",\"b\\\"c\\\\\",\"\"}");
    }

    #[test]
    fn lists() {
        assert_eq!(parse_list(" a, \"b,c\" ,d.e").unwrap(), ["a", "\"b,c\"", "d.e"]);
        assert!(parse_list("").unwrap().is_empty());
        assert!(parse_list("a,,b").is_err());
        assert!(parse_list("a,\"b").is_err());
    }

    #[test]
    fn qualified_names() {
        let ok = |t: &str| parse_qualified(t).unwrap();
        assert_eq!(ok("t"), (None, "t".into()));
        assert_eq!(ok("Public.T"), (Some("public".into()), "t".into()));
        assert_eq!(ok("\"S.x\" . \"T\"\"q\""), (Some("S.x".into()), "T\"q".into()));
        assert_eq!(ok("größe.straße"), (Some("größe".into()), "straße".into()));
        for wrong in ["", ".", "a.", ".a", "a.b.c", "1a", "a b", "a;b", "\"\"", "\"a", "a\"b\"", &"n".repeat(64)] {
            assert!(parse_qualified(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn wildcards() {
        for (pattern, text) in [("%", ""), ("a*", "abc"), ("*b%d", "abcbd"), ("log_%", "log_2024"), ("a", "a")] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [("", "a"), ("a_c", "abc"), ("a*c", "abd"), ("b", "ab")] {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
        assert!(matches_relation("public.*", "public", "t"));
        assert!(matches_relation("t", "public", "t"));
        assert!(!matches_relation("s.t", "public", "t"));
    }

    #[test]
    fn members() {
        use Role::{Fullcopy, Source, Target};
        let known = ["A b".to_string(), "\"q\"".to_string(), "x\"y".to_string(), " z ".to_string()];
        let ok = |t: &str| parse_dbs(t, &known).unwrap();
        assert_eq!(ok("A, B,C"), [("A".into(), Source), ("B".into(), Target), ("C".into(), Target)]);
        assert_eq!(ok("A:source,B:fullcopy"), [("A".into(), Source), ("B".into(), Fullcopy)]);
        assert_eq!(ok("\"A b\" : target"), [("A b".into(), Target)]);
        assert_eq!(ok("x\"y:source,\"q\":target"), [("x\"y".into(), Source), ("\"q\"".into(), Target)]);
        assert_eq!(ok("\"x\"\"y\",\"c\""), [("x\"y".into(), Source), ("c".into(), Target)]);
        assert_eq!(ok("A, z , z: target"), [("A".into(), Source), (" z ".into(), Target), ("z".into(), Target)]);
        let (dbs, faults) = scan_dbs("A:king,,A,B:source,B:queen,c:d:source", &known);
        assert_eq!(dbs, [("A".into(), Source), ("B".into(), Source)]);
        assert_eq!(faults.len(), 6, "{faults:?}");
        for wrong in ["A:master", "A,A", "A:source,A:target", "A:", ":source", "A,,B", "a:b:source"] {
            assert_eq!(parse_dbs(wrong, &known).unwrap_err().code, SqlState::INVALID_PARAMETER, "{wrong}");
        }
    }
}
