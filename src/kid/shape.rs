//! What the tables of a sync look like on each member, as the kid last saw them, with a fingerprint that tells whether
//! they still do. A run checks the fingerprints of the tables it touches in its own snapshots, so that a column added
//! under a running sync is seen before a row is copied without it.

use std::collections::HashMap;

use crate::catalog::describe::{self, Described};
use crate::catalog::sync::{Relation, Sync};
use crate::error::{Error, Result, SqlState};
use crate::ident::quote_ident;
use crate::libpq::{Conn, Rows};

/// A table on one member.
#[derive(Clone)]
pub struct Table {
    pub oid: u32,
    /// The quoted name.
    pub name: String,
    /// What DML names: without the children that inherit, but with the partitions.
    pub only: String,
    pub columns: Vec<describe::Column>,
    /// The equality operator of each key column, as `OPERATOR(pg_catalog.=)`.
    pub equals: HashMap<String, String>,
    /// The columns by which rows are found; None: the table has no key.
    pub key: Option<Vec<String>>,
    /// The sets of columns that some unique index covers.
    pub unique: Vec<Vec<String>>,
    pub fingerprint: String,
    /// How many rows it has, as its statistics say; at least 1.
    pub rows: u64,
}

impl Table {
    pub fn column(&self, name: &str) -> Option<&describe::Column> {
        self.columns.iter().find(|c| c.name == name)
    }

    /// The operator that compares a key column.
    pub fn equal(&self, column: &str) -> &str {
        self.equals.get(column).map_or("OPERATOR(pg_catalog.=)", String::as_str)
    }

    /// Whether two values of a column are equal only if they are the same to the byte.
    pub fn is_exact(&self, column: &str) -> bool {
        self.column(column).is_some_and(|c| EXACT.contains(&c.type_oid) && c.collation.is_none())
    }

    /// Whether a unique index covers just the key, so that a row cannot be written twice.
    pub fn is_unique_on(&self, key: &[String]) -> bool {
        self.unique.iter().any(|u| u.len() == key.len() && u.iter().all(|c| key.contains(c)))
    }
}

/// Built-in types of which two values are equal only if they are the same to the byte: bool, bytea, "char", name, int8,
/// int2, int4, text, oid, varchar, date, time, timestamp, timestamptz, uuid.
const EXACT: [u32; 15] = [16, 17, 18, 19, 20, 21, 23, 25, 26, 1043, 1082, 1083, 1114, 1184, 2950];

/// Whether rows may travel between the two in binary: the same built-in types in the same order.
pub fn is_binary_safe(source: &Table, receiver: &Table, columns: &[String]) -> bool {
    columns.iter().all(|name| match (source.column(name), receiver.column(name)) {
        (Some(a), Some(b)) => a.type_oid == b.type_oid && a.type_oid < FIRST_USER_OID,
        _ => false,
    })
}

/// Below this, oids are the same in every database of one major version.
const FIRST_USER_OID: u32 = 16384;

/// The relations of a sync on one member, by their number in the catalog.
pub type Shapes = HashMap<i32, Table>;

/// The rows of the catalog that make up a table's shape, as one text per table. Changed by every ALTER TABLE that matters.
const FINGERPRINT: &str = "SELECT a.attrelid, md5(string_agg(a.attnum || '.' || a.xmin::text, ',' ORDER BY a.attnum)) \
    FROM pg_catalog.pg_attribute a WHERE a.attrelid = ANY ($1::pg_catalog.oid[]) AND a.attnum > 0 GROUP BY a.attrelid";

/// The equality operators of the columns of unique indexes, from the indexes' own operator classes.
const EQUALS: &str = "SELECT DISTINCT i.indrelid, a.attname, n.nspname, o.oprname FROM pg_catalog.pg_index i, \
    LATERAL unnest(i.indkey::pg_catalog.int2[], i.indclass::pg_catalog.oid[]) u(attnum, class), pg_catalog.pg_attribute a, \
    pg_catalog.pg_opclass c, pg_catalog.pg_amop p, pg_catalog.pg_operator o, pg_catalog.pg_namespace n \
    WHERE i.indrelid = ANY ($1::pg_catalog.oid[]) AND i.indisunique AND a.attrelid = i.indrelid AND a.attnum = u.attnum \
    AND c.oid = u.class AND p.amopfamily = c.opcfamily AND p.amopstrategy = 3 AND p.amoplefttype = c.opcintype \
    AND p.amoprighttype = c.opcintype AND o.oid = p.amopopr AND n.oid = o.oprnamespace";

fn oid_array(oids: impl Iterator<Item = u32>) -> String {
    format!("{{{}}}", oids.map(|o| o.to_string()).collect::<Vec<_>>().join(","))
}

/// The statement and the parameter that ask for the fingerprints of tables.
pub fn fingerprint_query(oids: impl Iterator<Item = u32>) -> (&'static str, String) {
    (FINGERPRINT, oid_array(oids))
}

fn read_fingerprints(rows: &Rows) -> HashMap<u32, String> {
    (0..rows.len()).filter_map(|i| Some((rows.number(i, 0)?, rows.text(i, 1)))).collect()
}

/// Whether the tables still look as they did. An error names the first that does not.
pub fn check_fingerprints<'a>(rows: &Rows, tables: impl Iterator<Item = &'a Table>) -> Result<()> {
    let now = read_fingerprints(rows);
    for table in tables {
        if now.get(&table.oid) != Some(&table.fingerprint) {
            return Err(Error::new(SqlState(*b"42P01"), format!("table {} was altered", table.name)));
        }
    }
    Ok(())
}

/// The name under which a relation goes on a member.
pub fn name_on(relation: &Relation) -> (&str, &str) {
    (&relation.schema, &relation.name)
}

/// The error for a table of the sync that is not there.
pub fn missing(sync: &Sync, relation: i32) -> Error {
    let name = sync.relations.iter().find(|r| r.id == relation).map_or_else(String::new, |r| format!("{}.{}", r.schema, r.name));
    Error::new(SqlState(*b"42P01"), format!("table {name} of the sync does not exist"))
        .hint("Create it or rename it back, or take it out of the sync with bucardo.remove_table.")
}

/// An error that names a table of the sync which the member does not have. On a source nothing may count as served then:
/// its changes could not be told from those of a table that the sync no longer has.
pub fn check_complete(sync: &Sync, shapes: &Shapes) -> Result<()> {
    match sync.relations.iter().find(|r| !r.is_sequence && !shapes.contains_key(&r.id)) {
        None => Ok(()),
        Some(relation) => Err(missing(sync, relation.id)),
    }
}

/// Looks at all tables of the sync on a member, outside of any transaction.
pub fn look(conn: &mut Conn, sync: &Sync) -> Result<Shapes> {
    let tables: Vec<&Relation> = sync.relations.iter().filter(|r| !r.is_sequence).collect();
    let names: Vec<(&str, &str)> = tables.iter().map(|r| name_on(r)).collect();
    let described = describe::describe(conn, &names)?;
    let oids = oid_array(described.iter().flatten().map(|d| d.oid));
    let fingerprints = read_fingerprints(&conn.query_params(FINGERPRINT, &[Some(&oids)])?);
    let operators = conn.query_params(EQUALS, &[Some(&oids)])?;
    let mut equals: HashMap<u32, HashMap<String, String>> = HashMap::new();
    for i in 0..operators.len() {
        let operator = format!("OPERATOR({}.{})", quote_ident(&operators.text(i, 2)), operators.text(i, 3));
        let table = operators.number(i, 0).unwrap_or_default();
        equals.entry(table).or_default().insert(operators.text(i, 1), operator);
    }
    let mut shapes = Shapes::new();
    for (relation, described) in tables.into_iter().zip(described) {
        if let Some(d) = described {
            let fingerprint = fingerprints.get(&d.oid).cloned().unwrap_or_default();
            let equals = equals.remove(&d.oid).unwrap_or_default();
            shapes.insert(relation.id, table(relation, d, equals, fingerprint));
        }
    }
    Ok(shapes)
}

fn table(relation: &Relation, d: Described, equals: HashMap<String, String>, fingerprint: String) -> Table {
    let key = d.key(relation.pkey.as_deref());
    let name = format!("{}.{}", quote_ident(&d.schema), quote_ident(&d.name));
    let only = if d.kind == 'p' { name.clone() } else { format!("ONLY {name}") };
    let mut unique: Vec<Vec<String>> = d.unique.into_iter().map(|(_, columns)| columns).collect();
    if !d.primary_key.is_empty() {
        unique.push(d.primary_key);
    }
    Table { oid: d.oid, name, only, columns: d.columns, equals, key, unique, fingerprint, rows: d.rows }
}
