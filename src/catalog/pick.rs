//! What a list of tables means on a member: names as they are, `schema.*` and other wildcards, `all`. Looks only.

use super::describe::{self, Listed};
use super::relation::Named;
use crate::error::{Error, Result, SqlState};
use crate::ident::{self, display_qualified, shown};
use crate::libpq::Conn;

/// What was picked, the tables that a pattern took in but that have no key, and what is wrong with the list.
#[derive(Debug, Default)]
pub struct Picked {
    pub relations: Vec<Named>,
    pub without_key: Vec<String>,
    pub faults: Vec<Error>,
}

/// One place of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    All,
    Pattern(String),
    Name(Option<String>, String),
}

/// Takes a list of tables apart. A wildcard within double quotes is an ordinary character.
pub fn parse(list: &str) -> Result<Vec<Item>> {
    let items = ident::parse_list(list)?;
    if items.is_empty() {
        return Err(Error::new(SqlState::INVALID_PARAMETER, "the list of tables is empty")
            .hint("Name tables, as 'public.a, public.b', 'public.*' or 'all'."));
    }
    items.iter().map(|item| parse_item(item)).collect()
}

fn parse_item(item: &str) -> Result<Item> {
    let bare: String = item.split('"').step_by(2).collect();
    if item.eq_ignore_ascii_case("all") {
        Ok(Item::All)
    } else if bare.contains(['*', '%']) {
        Ok(Item::Pattern(ident::pattern(item)))
    } else {
        let (schema, name) = ident::parse_qualified(item)?;
        Ok(Item::Name(schema, name))
    }
}

/// What the items are on the member. Names that are not there stay as tables: the check of the members says so.
pub fn pick(conn: &mut Conn, items: &[Item], need_key: bool) -> Result<Picked> {
    let mut picked = Picked::default();
    let names = find_names(conn, items)?;
    let mut found = names.into_iter();
    let listed = if items.iter().any(|i| !matches!(i, Item::Name(..))) { list(conn, need_key)? } else { Vec::new() };
    for item in items {
        let pattern = match item {
            Item::Name(..) => {
                push(&mut picked, found.next());
                continue;
            }
            Item::All => "*",
            Item::Pattern(pattern) => pattern,
        };
        let before = picked.relations.len();
        let mut matched = false;
        for (one, has_key) in listed.iter().filter(|(one, _)| ident::matches_relation(pattern, &one.schema, &one.name)) {
            matched = true;
            if *has_key {
                push(&mut picked, Some(named(one)));
            } else {
                picked.without_key.push(ident::one_line(&display_qualified(&one.schema, &one.name)));
            }
        }
        if (picked.relations.is_empty() || !matched) && picked.relations.len() == before {
            let without = if matched { " that has a key" } else { "" };
            let message = format!("db \"{}\" has no table or sequence{without} like \"{}\"", conn.name, shown(pattern));
            picked.faults.push(
                Error::new(SqlState::INVALID_PARAMETER, message)
                    .hint("A pattern with a dot is matched against schema.table, else against the table's name."),
            );
        }
    }
    Ok(picked)
}

fn named(one: &Listed) -> Named {
    Named { schema: Some(one.schema.clone()), name: one.name.clone(), is_sequence: one.is_sequence }
}

fn push(picked: &mut Picked, relation: Option<Named>) {
    if let Some(relation) = relation.filter(|r| !picked.relations.contains(r)) {
        picked.relations.push(relation);
    }
}

/// All user relations, and whether each has what a key needs.
pub fn list(conn: &mut Conn, need_key: bool) -> Result<Vec<(Listed, bool)>> {
    let listed = describe::list(conn)?;
    if !need_key {
        return Ok(listed.into_iter().map(|one| (one, true)).collect());
    }
    let names: Vec<(&str, &str)> = listed.iter().map(|l| (l.schema.as_str(), l.name.as_str())).collect();
    let described = describe::describe(conn, &names)?;
    let has_key = |(one, d): (Listed, Option<describe::Described>)| {
        let has = one.is_sequence || d.is_some_and(|d| d.key(None).is_some());
        (one, has)
    };
    Ok(listed.into_iter().zip(described).map(has_key).collect())
}

/// The named items, in their order: those without a schema looked up, each with its kind.
fn find_names(conn: &mut Conn, items: &[Item]) -> Result<Vec<Named>> {
    let names: Vec<(Option<String>, String)> = items
        .iter()
        .filter_map(|i| match i {
            Item::Name(schema, name) => Some((schema.clone(), name.clone())),
            _ => None,
        })
        .collect();
    Ok(look_up(conn, &names)?.into_iter().map(|(named, _)| named).collect())
}

/// Looks names up on a member: each with its schema and kind, and what it is there, if it is.
pub fn look_up(conn: &mut Conn, names: &[(Option<String>, String)]) -> Result<Vec<(Named, Option<describe::Described>)>> {
    let bare: Vec<&str> = names.iter().filter(|(schema, _)| schema.is_none()).map(|(_, name)| name.as_str()).collect();
    let mut resolved = describe::resolve(conn, &bare)?.into_iter();
    let mut whole: Vec<(String, String)> = Vec::new();
    for (schema, name) in names {
        whole.push(match schema {
            Some(schema) => (schema.clone(), name.clone()),
            None => resolved.next().flatten().unwrap_or_else(|| ("public".into(), name.clone())),
        });
    }
    let pairs: Vec<(&str, &str)> = whole.iter().map(|(s, n)| (s.as_str(), n.as_str())).collect();
    let described = describe::describe(conn, &pairs)?;
    let made = |((schema, name), found): ((String, String), Option<describe::Described>)| {
        let is_sequence = found.as_ref().is_some_and(describe::Described::is_sequence);
        (Named { schema: Some(schema), name, is_sequence }, found)
    };
    Ok(whole.into_iter().zip(described).map(made).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_tables() {
        let items = parse("all, public.*, s.t, \"A%\".t, T, ALL, PUBLIC.\"Ab\"C*").unwrap();
        let name = |s: Option<&str>, n: &str| Item::Name(s.map(str::to_string), n.to_string());
        assert_eq!(
            items,
            [
                Item::All,
                Item::Pattern("public.*".into()),
                name(Some("s"), "t"),
                name(Some("A%"), "t"),
                name(None, "t"),
                Item::All,
                Item::Pattern("public.Abc*".into())
            ]
        );
        for wrong in ["", "  ", "a,,b", "a.b.c"] {
            assert_eq!(parse(wrong).unwrap_err().code, SqlState::INVALID_PARAMETER, "{wrong}");
        }
    }
}
