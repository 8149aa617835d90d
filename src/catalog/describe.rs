//! What a relation is on a member, read over libpq, for any number of relations in two round trips. Types, enums and
//! domains have other oids on other members: compare them by name. Nothing is judged here; `compare` does that.

use std::collections::HashMap;

use crate::error::{Error, Result, SqlState};
use crate::ident::{quote_ident, text_array};
use crate::libpq::{Conn, Rows};

/// A column as it is on one member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    pub type_oid: u32,
    /// As SQL writes it, with its modifier, its schema where it is not pg_catalog's: `character varying(10)`.
    pub type_name: String,
    /// The same of what a domain is over.
    pub stored_name: String,
    /// The type's bare name, without its schema: the same on all members even where schemas differ.
    pub bare_name: String,
    /// What a domain is over; the type itself for all others.
    pub domain_of: u32,
    pub not_null: bool,
    pub default: Option<String>,
    /// ' ' none, 'a' always, 'd' by default.
    pub identity: char,
    pub generated: bool,
    /// The collation, where it is not the type's own.
    pub collation: Option<String>,
    /// Whether it calls texts equal that are not the same.
    pub folds: bool,
}

/// A relation as it is on one member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Described {
    pub oid: u32,
    pub schema: String,
    pub name: String,
    /// pg_class.relkind: 'r' table, 'p' partitioned table, 'S' sequence, …
    pub kind: char,
    /// By attribute number, without the dropped ones.
    pub columns: Vec<Column>,
    /// In key order; empty: none.
    pub primary_key: Vec<String>,
    /// The other unique indexes that can serve as key, the narrowest first.
    pub unique: Vec<(String, Vec<String>)>,
}

impl Described {
    /// The key's columns: of the primary key, else of the index named `pkey`, else of the narrowest unique index.
    pub fn key(&self, pkey: Option<&str>) -> Option<Vec<String>> {
        if !self.primary_key.is_empty() {
            return Some(self.primary_key.clone());
        }
        let mut unique = self.unique.iter();
        let index = match pkey {
            Some(index) => unique.find(|(name, _)| name == index),
            None => unique.next(),
        };
        index.map(|(_, columns)| columns.clone())
    }

    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|c| c.name == name)
    }

    pub fn is_table(&self) -> bool {
        matches!(self.kind, 'r' | 'p')
    }

    pub fn is_sequence(&self) -> bool {
        self.kind == 'S'
    }
}

const COLUMNS: &str = "SELECT w.ord, c.oid, c.relkind, a.attname, a.atttypid, \
    pg_catalog.format_type(a.atttypid, a.atttypmod), t.typname, \
    CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END, a.attnotnull, \
    CASE WHEN a.attgenerated = '' THEN pg_catalog.pg_get_expr(d.adbin, d.adrelid) END, a.attidentity, a.attgenerated <> '', \
    pg_catalog.format_type(coalesce(nullif(t.typbasetype, 0), a.atttypid), CASE WHEN t.typtype = 'd' THEN t.typtypmod ELSE a.atttypmod END), \
    CASE WHEN a.attcollation <> t.typcollation THEN (SELECT l.collname FROM pg_catalog.pg_collation l WHERE l.oid = a.attcollation) END, \
    EXISTS (SELECT FROM pg_catalog.pg_collation l WHERE l.oid = a.attcollation AND NOT l.collisdeterministic) \
    FROM unnest($1::text[], $2::text[]) WITH ORDINALITY w(s, r, ord) \
    JOIN pg_catalog.pg_namespace n ON n.nspname = w.s::name \
    JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.r::name \
    LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND c.relkind <> 'S' \
    LEFT JOIN pg_catalog.pg_type t ON t.oid = a.atttypid \
    LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum \
    ORDER BY w.ord, a.attnum";

const INDEXES: &str = "SELECT w.ord, i.indexrelid, i.indisprimary, x.relname, a.attname, a.attnotnull, a.attlen \
    FROM unnest($1::text[], $2::text[]) WITH ORDINALITY w(s, r, ord) \
    JOIN pg_catalog.pg_namespace n ON n.nspname = w.s::name \
    JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.r::name \
    JOIN pg_catalog.pg_index i ON i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indpred IS NULL \
        AND i.indexprs IS NULL AND (i.indisprimary OR i.indimmediate) \
    JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid \
    CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY k(attnum, pos) \
    JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum \
    WHERE k.pos <= i.indnkeyatts ORDER BY w.ord, i.indexrelid, k.pos";

/// Describes relations, in the order of `names`; None where there is none of that name.
pub fn describe(conn: &mut Conn, names: &[(&str, &str)]) -> Result<Vec<Option<Described>>> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let schemas = text_array(names.iter().map(|n| n.0));
    let relations = text_array(names.iter().map(|n| n.1));
    let params = [Some(schemas.as_str()), Some(relations.as_str())];
    let (columns, indexes) =
        with_catalog_path(conn, |conn| Ok((conn.query_params(COLUMNS, &params)?, conn.query_params(INDEXES, &params)?)))?;
    let mut found: Vec<Option<Described>> = vec![None; names.len()];
    for row in 0..columns.len() {
        let at = place(&columns, row);
        if let (Some((schema, name)), Some(slot)) = (names.get(at), found.get_mut(at)) {
            let described = slot.get_or_insert_with(|| relation_row(&columns, row, schema, name));
            if columns.get(row, 3).is_some() {
                described.columns.push(column_row(&columns, row));
            }
        }
    }
    add_keys(&indexes, &mut found);
    Ok(found)
}

/// Names of types and defaults are written relative to search_path, so all members are asked under the same one.
fn with_catalog_path<T>(conn: &mut Conn, ask: impl FnOnce(&mut Conn) -> Result<T>) -> Result<T> {
    let path = conn.query("SELECT pg_catalog.current_setting('search_path')")?.text(0, 0);
    if path == "pg_catalog" {
        return ask(conn);
    }
    conn.query("SET search_path = pg_catalog")?;
    let answer = ask(conn)?;
    conn.query_params("SELECT pg_catalog.set_config('search_path', $1, false)", &[Some(&path)])?;
    Ok(answer)
}

fn place(rows: &Rows, row: usize) -> usize {
    rows.number::<usize>(row, 0).unwrap_or(0).wrapping_sub(1)
}

fn first_char(rows: &Rows, row: usize, column: usize) -> char {
    rows.get(row, column).and_then(|t| t.chars().next()).unwrap_or(' ')
}

fn relation_row(rows: &Rows, row: usize, schema: &str, name: &str) -> Described {
    let oid = rows.number(row, 1).unwrap_or(0);
    let kind = first_char(rows, row, 2);
    Described { oid, schema: schema.to_string(), name: name.to_string(), kind, ..Described::default() }
}

fn column_row(rows: &Rows, row: usize) -> Column {
    let owned = |column| rows.get(row, column).map(str::to_string);
    Column {
        name: rows.text(row, 3),
        type_oid: rows.number(row, 4).unwrap_or(0),
        type_name: rows.text(row, 5),
        bare_name: rows.text(row, 6),
        domain_of: rows.number(row, 7).unwrap_or(0),
        not_null: rows.bool(row, 8),
        default: owned(9),
        identity: first_char(rows, row, 10),
        generated: rows.bool(row, 11),
        stored_name: rows.text(row, 12),
        collation: owned(13),
        folds: rows.bool(row, 14),
    }
}

/// A unique index while its columns are being gathered.
struct Index {
    relation: usize,
    oid: u32,
    primary: bool,
    name: String,
    columns: Vec<String>,
    not_null: bool,
    width: i64,
}

fn add_keys(rows: &Rows, found: &mut [Option<Described>]) {
    let mut indexes: Vec<Index> = Vec::new();
    for row in 0..rows.len() {
        let (relation, oid) = (place(rows, row), rows.number(row, 1).unwrap_or(0));
        if indexes.last().is_none_or(|i| i.oid != oid || i.relation != relation) {
            let name = rows.text(row, 3);
            indexes.push(Index {
                relation,
                oid,
                primary: rows.bool(row, 2),
                name,
                columns: Vec::new(),
                not_null: true,
                width: 0,
            });
        }
        if let Some(index) = indexes.last_mut() {
            index.columns.push(rows.text(row, 4));
            index.not_null &= rows.bool(row, 5);
            // A type without a fixed width counts as wide.
            index.width += rows.number::<i64>(row, 6).filter(|w| *w > 0).unwrap_or(1000);
        }
    }
    indexes.sort_by(|a, b| (a.columns.len(), a.width, &a.name).cmp(&(b.columns.len(), b.width, &b.name)));
    for index in indexes.into_iter().filter(|i| i.not_null) {
        if let Some(Some(described)) = found.get_mut(index.relation) {
            if index.primary {
                described.primary_key = index.columns;
            } else {
                described.unique.push((index.name, index.columns));
            }
        }
    }
}

/// Finds names given without a schema through the connecting role's search_path, in the order of `names`.
pub fn resolve(conn: &mut Conn, names: &[&str]) -> Result<Vec<Option<(String, String)>>> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let sql = "SELECT n.nspname, c.relname FROM unnest($1::text[]) WITH ORDINALITY w(r, ord) \
        LEFT JOIN pg_catalog.pg_class c ON c.oid = pg_catalog.to_regclass(pg_catalog.quote_ident(w.r)) \
        LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace ORDER BY w.ord";
    let rows = conn.query_params(sql, &[Some(&text_array(names))])?;
    Ok((0..rows.len()).map(|r| Some((rows.get(r, 0)?.to_string(), rows.get(r, 1)?.to_string()))).collect())
}

/// A relation of a member's, as found by looking around.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub schema: String,
    pub name: String,
    pub is_sequence: bool,
}

/// All tables and sequences of the user's: partitioned parents but not their leaves, nothing temporary, nothing that
/// belongs to the system or to an extension.
pub fn list(conn: &mut Conn) -> Result<Vec<Listed>> {
    let sql = "SELECT n.nspname, c.relname, c.relkind = 'S' FROM pg_catalog.pg_class c \
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
        WHERE c.relkind IN ('r', 'p', 'S') AND NOT c.relispartition AND c.relpersistence <> 't' \
        AND n.nspname NOT IN ('information_schema', 'bucardo') AND n.nspname !~ '^pg_' \
        AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass \
            AND d.objid = c.oid AND d.deptype = 'e') \
        ORDER BY n.nspname, c.relname";
    let rows = conn.query(sql)?;
    Ok((0..rows.len()).map(|r| Listed { schema: rows.text(r, 0), name: rows.text(r, 1), is_sequence: rows.bool(r, 2) }).collect())
}

/// Which types this member assigns to which, beyond a type to itself.
pub fn casts(conn: &mut Conn) -> Result<HashMap<u32, Vec<u32>>> {
    let rows = conn.query("SELECT castsource, casttarget FROM pg_catalog.pg_cast WHERE castcontext IN ('a', 'i')")?;
    let mut casts: HashMap<u32, Vec<u32>> = HashMap::new();
    for row in 0..rows.len() {
        if let (Some(from), Some(to)) = (rows.number(row, 0), rows.number(row, 1)) {
            casts.entry(from).or_default().push(to);
        }
    }
    Ok(casts)
}

/// What tells one database from all others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// For as long as its server runs: not even a copy has the same.
    running: String,
    /// For good, as `kid/who.rs` knows it.
    pub lasting: String,
}

/// Refuses a server that cannot take part: too old, or a standby. Returns the database's identity.
pub fn check_member(conn: &mut Conn) -> Result<Identity> {
    if conn.version() < 130_000 {
        let version = conn.version() / 10_000;
        return Err(Error::new(
            SqlState::NOT_SUPPORTED,
            format!("db \"{}\" is PostgreSQL {version}, which is too old", conn.name),
        )
        .hint("A member must be PostgreSQL 13 or newer."));
    }
    let sql = "SELECT pg_catalog.pg_is_in_recovery(), pg_catalog.concat_ws(' ', extract(epoch FROM pg_catalog.pg_postmaster_start_time()), \
        pg_catalog.current_setting('port'), pg_catalog.current_setting('data_directory', true), d.oid), \
        (SELECT s.system_identifier FROM pg_catalog.pg_control_system() s) || '/' || d.oid \
        FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()";
    let rows = match conn.query(sql) {
        // data_directory may be hidden from this role; the rest tells enough.
        Err(error) if error.code == SqlState::NOT_ALLOWED => {
            conn.query(&sql.replace("pg_catalog.current_setting('data_directory', true), ", ""))?
        }
        other => other?,
    };
    if rows.bool(0, 0) {
        return Err(Error::new(SqlState::WRONG_STATE, format!("db \"{}\" is a standby and cannot be written", conn.name))
            .hint("Give it the conninfo of the primary."));
    }
    Ok(Identity { running: rows.text(0, 1), lasting: rows.text(0, 2) })
}

/// Refuses a role that may not do what a run does first.
pub fn check_role(conn: &mut Conn) -> Result<()> {
    let role = conn.parameter(c"session_authorization");
    let denied = |error: Error| {
        Error::new(error.code, format!("role \"{role}\" may not take part: {}", error.message)).hint(format!(
            "Give a superuser in the conninfo, or from PostgreSQL 15 on: GRANT SET ON PARAMETER session_replication_role TO {};",
            quote_ident(&role)
        ))
    };
    conn.query("SET session_replication_role = replica; RESET session_replication_role").map(drop).map_err(denied)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(primary: &[&str], unique: &[(&str, &[&str])]) -> Described {
        let owned = |c: &[&str]| c.iter().map(|c| c.to_string()).collect::<Vec<_>>();
        Described {
            primary_key: owned(primary),
            unique: unique.iter().map(|(n, c)| (n.to_string(), owned(c))).collect(),
            ..Described::default()
        }
    }

    #[test]
    fn the_key_of_a_table() {
        let both = table(&["id"], &[("u", &["a"]), ("v", &["a", "b"])]);
        assert_eq!(both.key(None).unwrap(), ["id"]);
        assert_eq!(both.key(Some("v")).unwrap(), ["id"], "a primary key goes before what pkey says");
        assert_eq!(both.key(Some("other")).unwrap(), ["id"]);
        let none = table(&[], &[("u", &["a"]), ("v", &["a", "b"])]);
        assert_eq!(none.key(Some("v")).unwrap(), ["a", "b"]);
        assert_eq!(none.key(Some("other")), None);
        assert_eq!(none.key(None).unwrap(), ["a"]);
        assert_eq!(table(&[], &[]).key(None), None);
    }
}
