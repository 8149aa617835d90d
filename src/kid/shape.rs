//! What the tables of a sync look like on each member, as the kid last saw them, with a fingerprint that tells whether
//! they still do. A run checks the fingerprints of the tables it touches in its own snapshots, so that a column added
//! under a running sync is seen before a row is copied without it.

use std::collections::HashMap;

use super::statements::list;
use crate::catalog::describe::{self, Described};
use crate::catalog::sync::{Relation, Sync};
use crate::error::{Error, Result, SqlState};
use crate::ident::{quote_ident, quote_literal, quote_qualified};
use crate::libpq::{Conn, Rows};

/// A foreign key on one member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignKey {
    /// The table that it refers to.
    pub parent: u32,
    pub columns: Vec<String>,
    /// The parent's columns, in the same order.
    pub to: Vec<String>,
    /// The columns that become null in a row whose parent goes; none: the row goes too.
    pub cleared: Vec<String>,
    /// Whether it holds for all rows: one that is NOT VALID says nothing of those that were there before.
    pub validated: bool,
}

/// A unique index on one member, or the index of an exclusion constraint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UniqueIndex {
    /// What it is over, as SQL: columns or expressions of the table's columns.
    pub expressions: Vec<String>,
    /// The rows that it holds, as SQL; None: all.
    pub predicate: Option<String>,
    pub nulls_not_distinct: bool,
    /// Whether it is checked by a trigger, which is off while rows are applied: it refuses nothing then.
    pub deferred: bool,
    /// All columns that it looks at.
    pub columns: Vec<String>,
    /// Of an exclusion constraint: the operators by which no two rows may be related, one for each expression; none: equal.
    pub operators: Vec<String>,
    /// Of an exclusion constraint: how its index is made, after USING.
    pub method: Option<String>,
    /// Of a unique index: by which operator two values of each expression are equal.
    pub equals: Vec<String>,
    /// The collation of each expression, where that is another one than the column's and makes other values equal.
    pub collations: Vec<Option<String>>,
}

impl UniqueIndex {
    /// Whether it is over just these columns.
    pub fn is_on(&self, key: &[String]) -> bool {
        let names: Vec<String> = key.iter().map(|k| quote_ident(k)).collect();
        let bare = |e: &String| if e.starts_with('"') { e.clone() } else { quote_ident(e) };
        self.predicate.is_none()
            && self.operators.is_empty()
            && !self.has_collations()
            && self.expressions.len() == names.len()
            && self.expressions.iter().all(|e| names.contains(&bare(e)))
    }

    /// Whether it calls other values equal than the columns' own collations do.
    pub fn has_collations(&self) -> bool {
        self.collations.iter().any(Option::is_some)
    }

    pub(super) fn named(&self, prefix: &str) -> String {
        let collation =
            |i: usize| self.collations.get(i).and_then(Option::as_ref).map_or_else(String::new, |c| format!(" COLLATE {c}"));
        list(self.expressions.len(), |i| format!("({}){} AS {prefix}{}", self.expressions[i], collation(i), i + 1), ", ")
    }

    /// Whether two values of an expression are equal: no search_path of ours names the operator of another type than the
    /// server's own.
    pub(super) fn equal(&self, i: usize) -> &str {
        self.equals.get(i).map_or("OPERATOR(pg_catalog.=)", String::as_str)
    }

    pub(super) fn predicate(&self) -> &str {
        self.predicate.as_deref().unwrap_or("true")
    }

    /// The rows of different sources in a table of rows that clash: key, source, time, number of the group. `source` and
    /// `time`: what these columns are called there.
    pub fn clashes(&self, table: &str, key: &[String], source: &str, time: &str) -> String {
        if let Some(method) = self.method.as_ref().filter(|_| self.operators.len() == self.expressions.len()) {
            return self.exclusions(method, table, key, source, time);
        }
        let named = list(key.len(), |i| format!("t.{} AS k{}", quote_ident(&key[i]), i + 1), ", ");
        let keys = list(key.len(), |i| format!("k{}", i + 1), ", ");
        let values = list(self.expressions.len(), |i| format!("e{}", i + 1), ", ");
        let known = match self.nulls_not_distinct {
            true => "true".to_string(),
            false => list(self.expressions.len(), |i| format!("e{} IS NOT NULL", i + 1), " AND "),
        };
        format!(
            "SELECT {keys}, source, time, number FROM (SELECT *, count(*) OVER (PARTITION BY {values}) AS n, \
             dense_rank() OVER (ORDER BY {values}) AS number FROM (SELECT {named}, t.{source} AS source, t.{time} AS time, {exprs} \
             FROM pg_temp.{table} t WHERE {predicate}) u WHERE {known}) x WHERE n > 1",
            exprs = self.named("e"),
            predicate = self.predicate()
        )
    }

    /// The same where rows exclude each other by pairs: each pair is a group. With an index of its own to find them by.
    fn exclusions(&self, method: &str, table: &str, key: &[String], source: &str, time: &str) -> String {
        let n = key.len();
        let columns = list(n, |i| format!("t.{} AS k{}", quote_ident(&key[i]), i + 1), ", ");
        let side = |of: &str| format!("{}, {of}.source, {of}.time", list(n, |i| format!("{of}.k{}", i + 1), ", "));
        let of = |i: usize| format!("({}) {} a.e{}", self.expressions[i], self.operators[i], i + 1);
        format!(
            "CREATE INDEX ON pg_temp.{table} USING {method} WHERE {predicate}; \
             WITH pairs AS (SELECT row_number() OVER () AS number, a, b FROM \
             (SELECT {columns}, t.{source} AS source, t.{time} AS time, t.ctid AS place, {exprs} FROM pg_temp.{table} t WHERE {predicate}) a \
             CROSS JOIN LATERAL (SELECT {columns}, t.{source} AS source, t.{time} AS time FROM pg_temp.{table} t \
             WHERE ({predicate}) AND {related} AND t.ctid > a.place OFFSET 0) b) \
             SELECT {first}, number FROM pairs UNION ALL SELECT {second}, number FROM pairs",
            exprs = self.named("e"),
            related = list(self.expressions.len(), of, " AND "),
            predicate = self.predicate(),
            first = side("(a)"),
            second = side("(b)"),
        )
    }
}

/// A table on one member.
#[derive(Clone, Default)]
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
    /// All unique indexes, whatever they are over.
    pub uniques: Vec<UniqueIndex>,
    /// What its rows refer to.
    pub references: Vec<ForeignKey>,
    pub fingerprint: String,
    /// Whether any rule is on it, which MERGE refuses.
    pub has_rules: bool,
    /// Of columns whose type is a domain: what that is over, with its modifier.
    pub domains: HashMap<String, String>,
}

impl Table {
    pub fn column(&self, name: &str) -> Option<&describe::Column> {
        self.columns.iter().find(|c| c.name == name)
    }

    /// The columns that travel: all that it does not generate itself.
    pub fn travelling(&self) -> Vec<String> {
        self.columns.iter().filter(|c| !c.generated).map(|c| c.name.clone()).collect()
    }

    /// Keeps writers out before the snapshot is taken.
    pub fn lock(&self) -> String {
        format!("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE", self.only)
    }

    /// The columns of a key in the table's order, if the table begins with them.
    pub fn begins_with(&self, key: &[String]) -> Vec<String> {
        let first: Vec<String> = self.columns.iter().take(key.len()).map(|c| c.name.clone()).collect();
        if first.iter().all(|name| key.contains(name)) { first } else { vec![] }
    }

    /// The type under a column's domain; None: it has none.
    pub fn domain_of(&self, column: &str) -> Option<&str> {
        self.domains.get(column).map(String::as_str)
    }

    /// The operator that compares a key column.
    pub fn equal(&self, column: &str) -> &str {
        self.equals.get(column).map_or("OPERATOR(pg_catalog.=)", String::as_str)
    }

    /// A name like this one that no column has.
    pub fn free_name(&self, name: &str) -> String {
        let mut free = name.to_string();
        while self.column(&free).is_some() {
            free.push('_');
        }
        free
    }

    /// Whether two values of a column are equal only if they are the same to the byte.
    pub fn is_exact(&self, column: &str) -> bool {
        self.column(column).is_some_and(|c| EXACT.contains(&c.type_oid) && c.collation.is_none())
    }

    /// The key if it is one whole number, in PostgreSQL's own order.
    pub fn number<'b>(&self, key: &'b [String]) -> Option<&'b String> {
        let [key] = key else { return None };
        let number = self.column(key).is_some_and(|c| WHOLE_NUMBERS.contains(&c.type_oid));
        Some(key).filter(|key| number && self.equal(key) == "OPERATOR(\"pg_catalog\".=)")
    }

    /// Whether a unique index covers just the key, so that a row is found by it.
    pub fn is_unique_on(&self, key: &[String]) -> bool {
        self.unique.iter().any(|u| u.len() == key.len() && u.iter().all(|c| key.contains(c)))
    }

    /// Whether such an index refuses a second row of the same key. A deferrable one leaves that to a trigger, which is off
    /// while rows are applied.
    pub fn refuses_doubles(&self, key: &[String]) -> bool {
        self.uniques.iter().any(|u| !u.deferred && u.is_on(key))
    }
}

/// Built-in types of which two values are equal only if they are the same to the byte: bool, bytea, "char", name, int8,
/// int2, int4, text, oid, varchar, date, time, timestamp, timestamptz, uuid.
const EXACT: [u32; 15] = [16, 17, 18, 19, 20, 21, 23, 25, 26, 1043, 1082, 1083, 1114, 1184, 2950];
/// The built-in types of whole numbers: int8, int2, int4.
const WHOLE_NUMBERS: [u32; 3] = [20, 21, 23];

/// Whether rows may travel between the two in binary: the same built-in types in the same order.
pub fn is_binary_safe(source: &Table, receiver: &Table, columns: &[String]) -> bool {
    columns.iter().all(|name| match (source.column(name), receiver.column(name)) {
        (Some(a), Some(b)) => a.type_oid == b.type_oid && a.type_oid < FIRST_ASSIGNED_OID && !AS_TEXT_ONLY.contains(&a.type_oid),
        _ => false,
    })
}

/// Below this, oids are written into the server's sources: the same in every database of one major version.
const FIRST_ASSIGNED_OID: u32 = 10000;

/// Built-in types, each with its array, whose binary form says nothing on another server, because it is the oid of an
/// object (regproc, regprocedure, regoper, regoperator, regclass, regtype, regrole, regnamespace, regconfig,
/// regdictionary, regcollation), or that have none (aclitem).
const AS_TEXT_ONLY: [u32; 24] = [
    24, 1008, 2202, 2207, 2203, 2208, 2204, 2209, 2205, 2210, 2206, 2211, 4096, 4097, 4089, 4090, 3734, 3735, 3769, 3770, 4191,
    4192, 1033, 1034,
];

/// The relations of a sync on one member, by their number in the catalog.
pub type Shapes = HashMap<i32, Table>;

/// What of the catalog makes up a table's shape, as one text per table that begins with its name, and whether it has rules.
/// Changed by every ALTER TABLE that matters, and by every change of its keys. The planner can do nothing but look for each table
/// by its oid, and keeps its plan.
const FINGERPRINT: &str = "SELECT o, c.name || md5(concat_ws('|', c.relhasrules, \
        (SELECT string_agg(a.attnum || '.' || a.xmin::text, ',' ORDER BY a.attnum) \
            FROM pg_catalog.pg_attribute a WHERE a.attrelid = o AND a.attnum > 0), \
        (SELECT string_agg(i.indexrelid || '.' || i.xmin::text, ',' ORDER BY i.indexrelid) \
            FROM pg_catalog.pg_index i WHERE i.indrelid = o AND (i.indisunique OR i.indisexclusion)), \
        (SELECT string_agg(k.oid || '.' || k.xmin::text, ',' ORDER BY k.oid) \
            FROM pg_catalog.pg_constraint k WHERE k.conrelid = o AND k.contype IN ('f', 'p', 'u', 'x')))), c.relhasrules \
    FROM unnest((SELECT $1::pg_catalog.oid[])::pg_catalog.oid[]) o \
    CROSS JOIN LATERAL (SELECT r.relhasrules, (SELECT n.nspname FROM pg_catalog.pg_namespace n WHERE n.oid = r.relnamespace) \
        || '.' || r.relname || ' ' AS name FROM pg_catalog.pg_class r WHERE r.oid = o OFFSET 0) c";

/// The equality operators of the columns of unique indexes, from the indexes' own operator classes: of several that of the
/// primary key, as in `capture_equal`.
const EQUALS: &str = "SELECT DISTINCT ON (i.indrelid, a.attname) i.indrelid, a.attname, n.nspname, o.oprname FROM pg_catalog.pg_index i, \
    LATERAL unnest(i.indkey::pg_catalog.int2[], i.indclass::pg_catalog.oid[]) u(attnum, class), pg_catalog.pg_attribute a, \
    pg_catalog.pg_opclass c, pg_catalog.pg_amop p, pg_catalog.pg_operator o, pg_catalog.pg_namespace n \
    WHERE i.indrelid = ANY ($1::pg_catalog.oid[]) AND i.indisunique AND a.attrelid = i.indrelid AND a.attnum = u.attnum \
    AND c.oid = u.class AND p.amopfamily = c.opcfamily AND p.amopstrategy = 3 AND p.amoplefttype = c.opcintype \
    AND p.amoprighttype = c.opcintype AND o.oid = p.amopopr AND n.oid = o.oprnamespace \
    ORDER BY i.indrelid, a.attname, i.indisprimary DESC, i.indexrelid";

/// All unique indexes and those of exclusion constraints: table, expressions, predicate, whether nulls are equal, the
/// columns that they look at, whether they are deferred, operators, how an index of the kind is made; by which operators values
/// of a btree's expressions are equal, and where by another collation than the column's, unless both compare bytes.
const UNIQUES: &str = "SELECT i.indrelid, \
    to_json(ARRAY(SELECT pg_catalog.pg_get_indexdef(i.indexrelid, n, true) FROM generate_series(1, i.indnkeyatts) n)), \
    pg_catalog.pg_get_expr(i.indpred, i.indrelid), coalesce((to_jsonb(i) ->> 'indnullsnotdistinct')::bool, false), \
    to_json(ARRAY(SELECT a.attname FROM pg_catalog.pg_attribute a WHERE a.attrelid = i.indrelid AND (a.attnum = ANY (i.indkey) \
        OR EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass \
            AND d.objid = i.indexrelid AND d.refobjid = i.indrelid AND d.refobjsubid = a.attnum)))), NOT i.indimmediate, \
    to_json(ARRAY(SELECT format('OPERATOR(%I.%s)', n.nspname, o.oprname) FROM pg_catalog.pg_constraint c, \
        unnest(c.conexclop) WITH ORDINALITY u(op, ord), pg_catalog.pg_operator o, pg_catalog.pg_namespace n \
        WHERE c.conindid = i.indexrelid AND c.conexclop IS NOT NULL AND o.oid = u.op AND n.oid = o.oprnamespace ORDER BY u.ord)), \
    CASE WHEN i.indisexclusion THEN (SELECT format('%I (%s)', m.amname, (SELECT string_agg(format('(%s) %I.%I', \
        pg_catalog.pg_get_indexdef(i.indexrelid, u.ord::int, true), n.nspname, o.opcname), ', ' ORDER BY u.ord) \
        FROM unnest(i.indclass::pg_catalog.oid[]) WITH ORDINALITY u(class, ord), pg_catalog.pg_opclass o, pg_catalog.pg_namespace n \
        WHERE o.oid = u.class AND n.oid = o.opcnamespace)) \
        FROM pg_catalog.pg_class c, pg_catalog.pg_am m WHERE c.oid = i.indexrelid AND m.oid = c.relam) END, \
    to_json(ARRAY(SELECT format('OPERATOR(%I.%s)', n.nspname, o.oprname) FROM unnest(i.indclass::pg_catalog.oid[]) WITH ORDINALITY u(class, ord), \
        pg_catalog.pg_opclass c, pg_catalog.pg_amop p, pg_catalog.pg_operator o, pg_catalog.pg_namespace n \
        WHERE NOT i.indisexclusion AND c.oid = u.class AND p.amopfamily = c.opcfamily AND p.amopstrategy = 3 \
        AND p.amoplefttype = c.opcintype AND p.amoprighttype = c.opcintype AND o.oid = p.amopopr AND n.oid = o.oprnamespace ORDER BY u.ord)), \
    to_json(ARRAY(SELECT CASE WHEN l.oid IS DISTINCT FROM b.oid AND NOT (l.collisdeterministic AND coalesce(b.collisdeterministic, true)) \
            THEN format('%I.%I', n.nspname, l.collname) END \
        FROM unnest(i.indcollation::pg_catalog.oid[], i.indkey::pg_catalog.int2[]) WITH ORDINALITY u(coll, attnum, ord) \
        LEFT JOIN pg_catalog.pg_collation l ON l.oid = u.coll LEFT JOIN pg_catalog.pg_namespace n ON n.oid = l.collnamespace \
        LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = u.attnum AND u.attnum <> 0 \
        LEFT JOIN pg_catalog.pg_collation b ON b.oid = a.attcollation WHERE u.ord <= i.indnkeyatts ORDER BY u.ord)) \
    FROM pg_catalog.pg_index i WHERE i.indrelid = ANY ($1::pg_catalog.oid[]) AND (i.indisunique OR i.indisexclusion) AND i.indisvalid ORDER BY i.indexrelid";

/// The foreign keys among tables: table, parent, columns, the parent's columns, those that a deletion sets to null. Only
/// PostgreSQL 15 and later have confdelsetcols; without it these are all columns.
const REFERENCES: &str = "SELECT c.conrelid, c.confrelid, \
    to_json(ARRAY(SELECT a.attname FROM unnest(c.conkey) WITH ORDINALITY u(n, ord) JOIN pg_catalog.pg_attribute a \
        ON a.attrelid = c.conrelid AND a.attnum = u.n ORDER BY u.ord)), \
    to_json(ARRAY(SELECT a.attname FROM unnest(c.confkey) WITH ORDINALITY u(n, ord) JOIN pg_catalog.pg_attribute a \
        ON a.attrelid = c.confrelid AND a.attnum = u.n ORDER BY u.ord)), \
    to_json(ARRAY(SELECT a.attname FROM pg_catalog.pg_attribute a WHERE c.confdeltype = 'n' AND a.attrelid = c.conrelid \
        AND coalesce(nullif(to_jsonb(c) -> 'confdelsetcols', 'null'), to_jsonb(c.conkey)) @> to_jsonb(a.attnum))), c.convalidated \
    FROM pg_catalog.pg_constraint c WHERE c.contype = 'f' AND c.conparentid = 0 AND c.conrelid = ANY ($1::pg_catalog.oid[]) \
    AND c.confrelid = ANY ($1::pg_catalog.oid[]) ORDER BY c.oid";

/// Columns of domains: table, column, and the type that is under all of them.
const DOMAINS: &str = "WITH RECURSIVE d AS (SELECT a.attrelid, a.attname, t.typbasetype AS base, t.typtypmod AS modifier \
        FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid AND t.typtype = 'd' \
        WHERE a.attrelid = ANY ($1::pg_catalog.oid[]) AND a.attnum > 0 AND NOT a.attisdropped \
    UNION ALL SELECT d.attrelid, d.attname, t.typbasetype, t.typtypmod FROM d JOIN pg_catalog.pg_type t ON t.oid = d.base AND t.typtype = 'd') \
    SELECT d.attrelid, d.attname, pg_catalog.format_type(d.base, d.modifier) FROM d JOIN pg_catalog.pg_type t ON t.oid = d.base AND t.typtype <> 'd'";

fn domains(rows: &Rows) -> HashMap<u32, HashMap<String, String>> {
    let mut all: HashMap<u32, HashMap<String, String>> = HashMap::new();
    for row in 0..rows.len() {
        all.entry(rows.number(row, 0).unwrap_or_default()).or_default().insert(rows.text(row, 1), rows.text(row, 2));
    }
    all
}

fn references(rows: &Rows) -> HashMap<u32, Vec<ForeignKey>> {
    let mut all: HashMap<u32, Vec<ForeignKey>> = HashMap::new();
    let names = |row: usize, column: usize| serde_json::from_str(rows.get(row, column).unwrap_or("[]")).unwrap_or_default();
    for row in 0..rows.len() {
        let parent = rows.number(row, 1).unwrap_or_default();
        let validated = rows.bool(row, 5);
        let key = ForeignKey { parent, columns: names(row, 2), to: names(row, 3), cleared: names(row, 4), validated };
        all.entry(rows.number(row, 0).unwrap_or_default()).or_default().push(key);
    }
    all
}

fn uniques(rows: &Rows) -> HashMap<u32, Vec<UniqueIndex>> {
    let mut all: HashMap<u32, Vec<UniqueIndex>> = HashMap::new();
    let names = |row: usize, column: usize| serde_json::from_str(rows.get(row, column).unwrap_or("[]")).unwrap_or_default();
    for row in 0..rows.len() {
        let index = UniqueIndex {
            expressions: names(row, 1),
            predicate: rows.get(row, 2).map(str::to_string),
            nulls_not_distinct: rows.bool(row, 3),
            columns: names(row, 4),
            deferred: rows.bool(row, 5),
            operators: names(row, 6),
            method: rows.get(row, 7).map(str::to_string),
            equals: names(row, 8),
            collations: serde_json::from_str(rows.get(row, 9).unwrap_or("[]")).unwrap_or_default(),
        };
        all.entry(rows.number(row, 0).unwrap_or_default()).or_default().push(index);
    }
    all
}

/// Oids as an array literal of PostgreSQL.
pub fn oid_array(oids: impl Iterator<Item = u32>) -> String {
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
            return Err(Error::new(SqlState::UNDEFINED_TABLE, format!("table {} was altered", table.name)));
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
    let name = sync.relation(relation).map(Relation::full_name).unwrap_or_default();
    Error::new(SqlState::UNDEFINED_TABLE, format!("table {name} of the sync does not exist"))
        .hint("Create it or rename it back, or take it out of the sync with bucardo.remove_table.")
}

/// An error that names a travelling column which the receiver's table does not have.
pub fn check_columns(sync: &Sync, table: &Table, columns: &[String]) -> Result<()> {
    match columns.iter().find(|c| table.column(c).is_none()) {
        None => Ok(()),
        Some(column) => Err(Error::new(SqlState::UNDEFINED_COLUMN, format!("column \"{column}\" is missing"))
            .hint(format!("See how to mend it: SELECT * FROM bucardo.validate_sync({});", quote_literal(&sync.name)))),
    }
}

/// An error that names a table of the sync which the member does not have. On a source nothing may count as served then:
/// its changes could not be told from those of a table that the sync no longer has.
pub fn check_complete(sync: &Sync, shapes: &Shapes) -> Result<()> {
    match sync.relations.iter().find(|r| !r.is_sequence && !shapes.contains_key(&r.id)) {
        None => Ok(()),
        Some(relation) => Err(missing(sync, relation.id)),
    }
}

/// Whether a member has all tables of the sync, as they were seen before. To be asked outside of any transaction.
pub fn is_unchanged(conn: &mut Conn, sync: &Sync, seen: &Shapes) -> Result<bool> {
    if check_complete(sync, seen).is_err() {
        return Ok(false);
    }
    let prints = conn.query_params(FINGERPRINT, &[Some(&oid_array(seen.values().map(|t| t.oid)))])?;
    Ok(check_fingerprints(&prints, seen.values()).is_ok())
}

/// Looks at all tables of the sync on a member, outside of any transaction.
pub fn look(conn: &mut Conn, sync: &Sync) -> Result<Shapes> {
    let tables: Vec<&Relation> = sync.relations.iter().filter(|r| !r.is_sequence).collect();
    let names: Vec<(&str, &str)> = tables.iter().map(|r| name_on(r)).collect();
    let described = describe::describe(conn, &names)?;
    let oids = oid_array(described.iter().flatten().map(|d| d.oid));
    let prints = conn.query_params(FINGERPRINT, &[Some(&oids)])?;
    let fingerprints = read_fingerprints(&prints);
    let ruled: Vec<u32> = (0..prints.len()).filter(|i| prints.bool(*i, 2)).filter_map(|i| prints.number(i, 0)).collect();
    let mut domains = domains(&conn.query_params(DOMAINS, &[Some(&oids)])?);
    let operators = conn.query_params(EQUALS, &[Some(&oids)])?;
    let mut references = references(&conn.query_params(REFERENCES, &[Some(&oids)])?);
    let mut uniques = uniques(&conn.query_params(UNIQUES, &[Some(&oids)])?);
    let mut equals: HashMap<u32, HashMap<String, String>> = HashMap::new();
    for i in 0..operators.len() {
        let operator = format!("OPERATOR({}.{})", quote_ident(&operators.text(i, 2)), operators.text(i, 3));
        let table = operators.number(i, 0).unwrap_or_default();
        equals.entry(table).or_default().insert(operators.text(i, 1), operator);
    }
    let mut shapes = Shapes::new();
    for (relation, described) in tables.into_iter().zip(described) {
        if let Some(d) = described {
            // One that has got another name since it was found by this one must not be known by it: no run will find it unaltered.
            let named = format!("{}.{} ", d.schema, d.name);
            let fingerprint = fingerprints.get(&d.oid).filter(|f| f.starts_with(&named)).cloned().unwrap_or_default();
            let (has_rules, domains) = (ruled.contains(&d.oid), domains.remove(&d.oid).unwrap_or_default());
            let equals = equals.remove(&d.oid).unwrap_or_default();
            let uniques = uniques.remove(&d.oid).unwrap_or_default();
            let references = references.remove(&d.oid).unwrap_or_default();
            shapes.insert(
                relation.id,
                Table { uniques, references, has_rules, domains, ..table(relation, d, equals, fingerprint) },
            );
        }
    }
    Ok(shapes)
}

fn table(relation: &Relation, d: Described, equals: HashMap<String, String>, fingerprint: String) -> Table {
    let key = d.key(relation.pkey.as_deref());
    let name = quote_qualified(&d.schema, &d.name);
    let only = if d.kind == 'p' { name.clone() } else { format!("ONLY {name}") };
    let mut unique: Vec<Vec<String>> = d.unique.into_iter().map(|(_, columns)| columns).collect();
    if !d.primary_key.is_empty() {
        unique.push(d.primary_key);
    }
    Table {
        oid: d.oid,
        name,
        only,
        columns: d.columns,
        equals,
        key,
        unique,
        uniques: Vec::new(),
        references: Vec::new(),
        fingerprint,
        has_rules: false,
        domains: HashMap::new(),
    }
}
