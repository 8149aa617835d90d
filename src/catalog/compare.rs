//! Whether a table of a source fits the table of the same name on another member, and how to mend it. Pure: it works
//! on descriptions alone, knows no connection, and finds all faults, not only the first.

use std::collections::HashMap;

use super::describe::{Column, Described};
use super::key;
use crate::error::{Error, SqlState};
use crate::ident::{display_qualified, one_line, quote_ident, quote_qualified};

/// Which types a member assigns to which, by oid.
pub type Casts = HashMap<u32, Vec<u32>>;

/// Types below this oid are built in and have the same oid on every member.
pub(super) const FIRST_USER_OID: u32 = 16384;
/// text, varchar, char(n), name: everything can be written to them.
const STRINGS: [u32; 4] = [25, 1043, 1042, 19];

/// Something that keeps a sync from working, where, and the statement that mends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub code: SqlState,
    /// Empty: no member is to blame.
    pub db: String,
    pub relation: Option<String>,
    pub fault: String,
    pub fix: Option<String>,
}

impl Fault {
    /// A fault of the call or of the catalog.
    pub fn own(error: Error) -> Self {
        Self { code: error.code, db: String::new(), relation: None, fault: error.message, fix: error.hint }
    }

    /// One line: where and what.
    pub fn line(&self) -> String {
        let fault = self.fault.split_whitespace().collect::<Vec<_>>().join(" ");
        let db = format!("db \"{}\"", self.db);
        match &self.relation {
            _ if self.db.is_empty() => fault,
            Some(relation) => format!("{db}, {}: {fault}", one_line(relation)),
            None if fault.contains(&db) => fault,
            None => format!("{db}: {fault}"),
        }
    }

    /// The one error for all faults: with a single one its own SQLSTATE, else 22023 with all of them as DETAIL.
    pub fn error(subject: &str, faults: &[Fault]) -> Option<Error> {
        let prefix = format!("{subject}: ");
        let line = |fault: &Fault| {
            let line = fault.line();
            line.strip_prefix(&prefix).map_or(line.clone(), str::to_string)
        };
        match faults {
            [] => None,
            [one] => {
                let error = Error::new(one.code, format!("{prefix}{}", line(one)));
                Some(match &one.fix {
                    Some(fix) => error.hint(fix.clone()),
                    None => error,
                })
            }
            many => {
                let lines: Vec<String> = many.iter().map(line).collect();
                let mut fixes: Vec<String> = Vec::new();
                for fault in many {
                    let fix = fault.fix.as_ref().map(|fix| match fault.db.as_str() {
                        "" => fix.clone(),
                        db => format!("On \"{db}\": {fix}"),
                    });
                    fixes.extend(fix.filter(|fix| !fixes.contains(fix)));
                }
                let error =
                    Error::new(SqlState::INVALID_PARAMETER, format!("{prefix}{} faults", many.len())).detail(lines.join("\n"));
                Some(if fixes.is_empty() { error } else { error.hint(fixes.join("\n")) })
            }
        }
    }
}

/// A source's table beside another member's.
pub struct Pair<'a> {
    pub source: &'a Described,
    pub other: &'a Described,
    /// The other member's short name.
    pub db: &'a str,
    /// The key's columns; empty where rows are not found by a key.
    pub key: &'a [String],
    pub strict: bool,
    /// What the other member assigns.
    pub casts: &'a Casts,
}

impl Pair<'_> {
    fn fault(&self, fault: String, fix: Option<String>) -> Fault {
        let relation = Some(display_qualified(&self.other.schema, &self.other.name));
        Fault { code: SqlState::WRONG_STATE, db: self.db.to_string(), relation, fault, fix }
    }

    fn alter(&self, what: String) -> Option<String> {
        Some(format!("ALTER TABLE {} {what};", quote_qualified(&self.other.schema, &self.other.name)))
    }

    /// All faults of this pair.
    pub fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        self.check_key(&mut faults);
        for column in &self.source.columns {
            match self.other.column(&column.name) {
                None => faults.push(self.fault(
                    format!("column \"{}\" is missing", column.name),
                    self.alter(format!("ADD COLUMN {} {}", quote_ident(&column.name), column.type_name)),
                )),
                Some(there) => self.check_column(column, there, &mut faults),
            }
        }
        for extra in self.other.columns.iter().filter(|c| self.source.column(&c.name).is_none()) {
            self.check_extra(extra, &mut faults);
        }
        faults
    }

    /// Rows are found by the key, so it must be unique there too: over the same columns, or within a primary key.
    fn check_key(&self, faults: &mut Vec<Fault>) {
        if self.key.is_empty() {
            return;
        }
        let same = |columns: &[String]| columns.len() == self.key.len() && self.key.iter().all(|k| columns.contains(k));
        let wider = self.key.iter().all(|k| self.other.primary_key.contains(k));
        if !wider && !same(&self.other.primary_key) && !self.other.unique.iter().any(|(_, columns)| same(columns)) {
            let list: Vec<String> = self.key.iter().map(|k| quote_ident(k)).collect();
            let fix = if self.other.primary_key.is_empty() { "ADD PRIMARY KEY" } else { "ADD UNIQUE" };
            faults.push(self.fault(
                format!("there is no primary key or unique index over the key ({}) that the source has", self.key.join(", ")),
                self.alter(format!("{fix} ({})", list.join(", "))),
            ));
        }
        for column in self.key.iter().filter_map(|k| self.other.column(k)).filter(|c| c.generated) {
            faults.push(self.fault(format!("key column \"{}\" is a generated column", column.name), None));
        }
        for name in self.key {
            let (Some(here), Some(there)) = (self.source.column(name), self.other.column(name)) else { continue };
            if let Some(why) = key::lost(here, there) {
                let collation = here.collation.as_ref().map_or("\"default\"".into(), |c| quote_ident(c));
                let collate = if there.folds { format!(" COLLATE {collation}") } else { String::new() };
                faults.push(self.fault(
                    format!("key column \"{name}\" would make one of several rows of the source: {why}"),
                    self.alter(format!("ALTER COLUMN {} TYPE {}{collate}", quote_ident(name), here.type_name)),
                ));
            }
        }
    }

    fn check_column(&self, here: &Column, there: &Column, faults: &mut Vec<Fault>) {
        let name = quote_ident(&here.name);
        if !assigns(here, there, self.casts) {
            faults.push(self.fault(
                format!(
                    "column \"{}\" is {}, to which the source's {} does not assign",
                    here.name, there.type_name, here.type_name
                ),
                self.alter(format!("ALTER COLUMN {name} TYPE {}", here.type_name)),
            ));
        }
        // What the source generates does not travel, and nobody else would fill it in.
        if here.generated && !there.generated {
            faults.push(self.fault(
                format!("column \"{}\" is a generated column on the source, and not there", here.name),
                self.alter(format!("DROP COLUMN {name}, ADD COLUMN {name} {} GENERATED ALWAYS AS (…) STORED", here.type_name)),
            ));
        }
        if !self.strict {
            return;
        }
        if here.not_null != there.not_null {
            let (fault, fix) = if here.not_null {
                ("is not NOT NULL, as on the source", "SET")
            } else {
                ("is NOT NULL, unlike on the source", "DROP")
            };
            faults.push(
                self.fault(
                    format!("column \"{}\" {fault}", here.name),
                    self.alter(format!("ALTER COLUMN {name} {fix} NOT NULL")),
                ),
            );
        }
        let own_value = |c: &Column| c.generated || c.identity != ' ';
        if !own_value(here) && !own_value(there) && here.default != there.default {
            let fix = match &here.default {
                Some(default) => format!("ALTER COLUMN {name} SET DEFAULT {default}"),
                None => format!("ALTER COLUMN {name} DROP DEFAULT"),
            };
            let shown = |d: &Option<String>| d.as_ref().map_or_else(|| "no default".to_string(), |d| format!("default {d}"));
            faults.push(self.fault(
                format!("column \"{}\" has {}, the source {}", here.name, shown(&there.default), shown(&here.default)),
                self.alter(fix),
            ));
        }
    }

    /// A column that only the other member has: never where it could not be filled, else only without strict checking.
    fn check_extra(&self, extra: &Column, faults: &mut Vec<Fault>) {
        let name = quote_ident(&extra.name);
        let filled = !extra.not_null || extra.default.is_some() || extra.generated || extra.identity != ' ';
        if self.strict {
            faults.push(self.fault(
                format!("column \"{}\" is not on the source", extra.name),
                self.alter(format!("DROP COLUMN {name}")).map(|fix| format!("{fix} or give the sync strict_checking => false")),
            ));
        } else if !filled {
            faults.push(self.fault(
                format!("column \"{}\" is not on the source, and is NOT NULL without a default", extra.name),
                self.alter(format!("ALTER COLUMN {name} DROP NOT NULL")),
            ));
        }
    }
}

/// Whether the source's type can be written to the other member's.
fn assigns(here: &Column, there: &Column, casts: &Casts) -> bool {
    if here.bare_name == there.bare_name {
        return true;
    }
    let (from, to) = (here.domain_of, there.domain_of);
    if to >= FIRST_USER_OID {
        return false;
    }
    STRINGS.contains(&to) || (from < FIRST_USER_OID && (from == to || casts.get(&from).is_some_and(|all| all.contains(&to))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, oid: u32, bare: &str) -> Column {
        let text = bare.to_string();
        Column {
            name: name.into(),
            type_oid: oid,
            domain_of: oid,
            bare_name: text.clone(),
            type_name: text,
            identity: ' ',
            ..Column::default()
        }
    }

    fn table(columns: Vec<Column>) -> Described {
        Described {
            schema: "public".into(),
            name: "t".into(),
            kind: 'r',
            columns,
            primary_key: vec!["id".into()],
            ..Described::default()
        }
    }

    fn faults(source: &Described, other: &Described, strict: bool) -> Vec<String> {
        let casts = Casts::from([(23, vec![20, 21]), (25, vec![1043])]);
        let pair = Pair { source, other, db: "B", key: &source.primary_key, strict, casts: &casts };
        pair.faults().into_iter().map(|f| f.fault).collect()
    }

    #[test]
    fn equal_tables_have_no_fault_in_any_order() {
        let one = table(vec![column("id", 23, "int4"), column("v", 25, "text")]);
        let two = table(vec![column("v", 25, "text"), column("id", 23, "int4")]);
        assert!(faults(&one, &two, true).is_empty());
    }

    #[test]
    fn types_must_assign() {
        let one = table(vec![column("id", 23, "int4"), column("v", 25, "text")]);
        let two = table(vec![column("id", 20, "int8"), column("v", 23, "int4")]);
        let found = faults(&one, &two, false);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("\"v\" is int4"));
        let anything = table(vec![column("id", 23, "int4"), column("v", 25, "text")]);
        let mood = table(vec![column("id", 23, "int4"), column("v", 20000, "mood")]);
        assert!(faults(&mood, &anything, true).is_empty());
        assert_eq!(faults(&anything, &mood, true).len(), 1);
    }

    #[test]
    fn missing_and_extra_columns() {
        let one = table(vec![column("id", 23, "int4"), column("v", 25, "text")]);
        let mut extra = column("w", 25, "text");
        let two = table(vec![column("id", 23, "int4"), extra.clone()]);
        assert_eq!(faults(&one, &two, true), ["column \"v\" is missing", "column \"w\" is not on the source"]);
        assert_eq!(faults(&one, &two, false), ["column \"v\" is missing"]);
        extra.not_null = true;
        let three = table(vec![column("id", 23, "int4"), column("v", 25, "text"), extra]);
        assert_eq!(faults(&one, &three, false).len(), 1);
    }

    #[test]
    fn strict_checking_compares_not_null_and_defaults() {
        let one = table(vec![column("id", 23, "int4"), column("v", 25, "text")]);
        let mut two = one.clone();
        two.columns[1].not_null = true;
        two.columns[1].default = Some("''::text".into());
        assert_eq!(faults(&one, &two, true).len(), 2);
        assert!(faults(&one, &two, false).is_empty());
    }

    #[test]
    fn what_the_source_generates_is_generated_there() {
        let (mut one, two) = (
            table(vec![column("id", 23, "int4"), column("v", 25, "text")]),
            table(vec![column("id", 23, "int4"), column("v", 25, "text")]),
        );
        one.columns[1].generated = true;
        assert_eq!(faults(&one, &two, false), ["column \"v\" is a generated column on the source, and not there"]);
        assert!(faults(&two, &one, true).is_empty(), "where only the receiver generates it");
        assert!(faults(&one, &one, true).is_empty());
    }

    #[test]
    fn the_key_must_be_unique_there() {
        let one = table(vec![column("id", 23, "int4")]);
        let mut two = one.clone();
        two.primary_key = vec![];
        assert_eq!(faults(&one, &two, false).len(), 1);
        two.unique = vec![("u".into(), vec!["id".into()])];
        assert!(faults(&one, &two, false).is_empty());
        two.unique.clear();
        two.primary_key = vec!["id".into(), "region".into()];
        assert!(faults(&one, &two, false).is_empty());
    }

    #[test]
    fn one_fault_keeps_its_sqlstate_and_many_are_listed() {
        let fault = |db: &str| Fault {
            code: SqlState::WRONG_STATE,
            db: db.into(),
            relation: None,
            fault: "x".into(),
            fix: Some("y".into()),
        };
        assert!(Fault::error("s", &[]).is_none());
        let one = Fault::error("s", &[fault("A")]).unwrap();
        assert_eq!((one.code, one.message.as_str(), one.hint.as_deref()), (SqlState::WRONG_STATE, "s: db \"A\": x", Some("y")));
        let two = Fault::error("s", &[fault("A"), fault("B")]).unwrap();
        assert_eq!((two.code, two.detail.as_deref()), (SqlState::INVALID_PARAMETER, Some("db \"A\": x\ndb \"B\": x")));
    }
}
