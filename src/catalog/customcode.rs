//! Customcode: code of the user's that a run asks. Functions are kept by their names and roles by theirs, so that a
//! dump finds them again in another server. It must never widen what a code concerns: limited to a relation that
//! nothing knows any more, it concerns nothing.

use pgrx::pg_sys::Oid;

use super::Noun;
use crate::error::{Error, Result, SqlState};
use crate::ident::{display_qualified, parse_qualified};
use crate::pg::spi;

/// A function that is asked about conflicts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Code {
    pub name: String,
    /// Quoted, with its schema.
    pub function: String,
    /// Who registered it, with whose rights it runs; 0: there is no such role any more.
    pub role: u32,
    /// The only relation that it is asked about; none: all.
    pub relation: Option<i32>,
}

/// All active conflict codes, each with the sync that it is limited to.
pub struct Codes(Vec<(Option<String>, Code)>);

impl Codes {
    /// Those that concern the sync, in the order in which they are asked.
    pub fn of(&self, sync: &str) -> Vec<Code> {
        let concerns = |only: &Option<String>| only.as_deref().is_none_or(|only| only == sync);
        self.0.iter().filter(|(only, _)| concerns(only)).map(|(_, code)| code.clone()).collect()
    }
}

/// A relation's name as it is kept, and compared.
const RELATION_NAME: &str = "pg_catalog.format('%I.%I', coalesce(r.schemaname, 'public'), r.relname)";

/// What follows the function's name where it is kept.
const ARGUMENTS: &str = "(jsonb)";

/// Loads the active conflict codes.
pub fn load() -> Result<Codes> {
    let sql = format!(
        "SELECT c.sync, c.name, c.code, coalesce(a.oid, 0::oid), r.id FROM bucardo.customcode c \
         LEFT JOIN pg_catalog.pg_roles a ON a.rolname = c.owner \
         LEFT JOIN bucardo.relation r ON r.kind = 'table' AND {RELATION_NAME} = c.relation \
         WHERE c.whenrun = 'conflict' AND c.status = 'active' AND c.code IS NOT NULL AND (c.relation IS NULL OR r.id IS NOT NULL) \
         ORDER BY c.priority, c.name, r.id"
    );
    let rows = spi::select(&sql, &[], |row| {
        let code: String = row.get(3)?;
        let function = code.strip_suffix(ARGUMENTS).unwrap_or(&code).to_string();
        let role = row.get::<Oid>(4)?.to_u32();
        Ok((row.opt(1)?, Code { name: row.get(2)?, function, role, relation: row.opt(5)? }))
    })?;
    Ok(Codes(rows))
}

/// What add_customcode and update_customcode store; none: the default of a new one, unchanged of an old one.
#[derive(Default)]
pub struct Fields<'a> {
    /// As [`check_function`] gave it, with the role that registers it.
    pub code: Option<(String, u32)>,
    pub sync: Option<&'a str>,
    /// As [`relation_name`] gave it.
    pub relation: Option<String>,
    pub priority: Option<i32>,
    pub status: Option<&'a str>,
}

/// Adds a conflict code.
pub fn insert(name: &str, fields: &Fields<'_>) -> Result<()> {
    let sql = "INSERT INTO bucardo.customcode (name, whenrun, code, owner, sync, relation, priority, status) \
        VALUES ($1, 'conflict', $2, pg_catalog.pg_get_userbyid($3), $4, $5, coalesce($6, 0), coalesce($7, 'active')) \
        ON CONFLICT (name) DO NOTHING";
    if write(sql, name, fields)? { Ok(()) } else { Err(Noun::Customcode.duplicate(name)) }
}

/// Changes what is given of a conflict code.
pub fn update(name: &str, fields: &Fields<'_>) -> Result<()> {
    let sql = "UPDATE bucardo.customcode SET code = coalesce($2, code), owner = coalesce(pg_catalog.pg_get_userbyid($3), owner), \
        sync = coalesce($4, sync), relation = coalesce($5, relation), priority = coalesce($6, priority), status = coalesce($7, status) \
        WHERE name = $1";
    if write(sql, name, fields)? { Ok(()) } else { Err(Noun::Customcode.unknown(name)) }
}

fn write(sql: &str, name: &str, fields: &Fields<'_>) -> Result<bool> {
    let args = [
        name.into(),
        fields.code.as_ref().map(|(code, _)| code.as_str()).into(),
        fields.code.as_ref().map(|(_, role)| Oid::from(*role)).into(),
        fields.sync.into(),
        fields.relation.as_deref().into(),
        fields.priority.into(),
        fields.status.into(),
    ];
    Ok(spi::execute(sql, &args)? > 0)
}

/// Removes a customcode.
pub fn remove(name: &str) -> Result<()> {
    if spi::execute("DELETE FROM bucardo.customcode WHERE name = $1", &[name.into()])? == 0 {
        return Err(Noun::Customcode.unknown(name));
    }
    Ok(())
}

struct Found {
    kept: String,
    shown: String,
    fits: bool,
    allowed: bool,
}

/// How the function is kept; refused unless it is f(jsonb) returns jsonb, in a schema that lasts, and the role may call it.
pub fn check_function(function: Oid, role: u32) -> Result<String> {
    let sql = format!(
        "SELECT pg_catalog.format('%I.%I', n.nspname, p.proname) || '{ARGUMENTS}', p.oid::pg_catalog.regprocedure::text, \
         p.prokind = 'f' AND NOT p.proretset AND p.pronargs = 1 AND p.proargtypes[0] = 'pg_catalog.jsonb'::pg_catalog.regtype \
         AND p.prorettype = 'pg_catalog.jsonb'::pg_catalog.regtype AND n.nspname !~ '^pg_temp', \
         pg_catalog.has_schema_privilege($2, n.oid, 'USAGE') AND pg_catalog.has_function_privilege($2, p.oid, 'EXECUTE') \
         FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace WHERE p.oid = $1"
    );
    let found = spi::select(&sql, &[function.into(), Oid::from(role).into()], |row| {
        Ok(Found { kept: row.get(1)?, shown: row.get(2)?, fits: row.get(3)?, allowed: row.get(4)? })
    })?;
    let Some(found) = found.into_iter().next() else {
        return Err(Error::new(SqlState::UNDEFINED_OBJECT, format!("function {} does not exist", function.to_u32()))
            .hint("Give code => 'schema.name(jsonb)'."));
    };
    if !found.fits {
        return Err(Error::new(
            SqlState::INVALID_PARAMETER,
            format!("{} is not a function that takes one jsonb and returns jsonb", found.shown),
        )
        .hint("CREATE FUNCTION schema.name(context jsonb) RETURNS jsonb …, not in a temporary schema."));
    }
    if !found.allowed {
        return Err(Error::new(SqlState::NOT_ALLOWED, format!("permission denied for function {}", found.kept)).hint(format!(
            "It runs with the rights of the role that registers it, which needs EXECUTE on it and USAGE on its schema: \
             GRANT EXECUTE ON FUNCTION {} TO …;",
            found.kept
        )));
    }
    Ok(found.kept)
}

/// How the relation is kept: a table that some relgroup holds. Without a schema the name must fit only one.
pub fn relation_name(given: &str) -> Result<String> {
    let (schema, name) = parse_qualified(given)?;
    let sql = format!(
        "SELECT DISTINCT {RELATION_NAME} FROM bucardo.relation r WHERE r.kind = 'table' AND r.relname = $2 \
         AND ($1 IS NULL OR coalesce(r.schemaname, 'public') = $1)"
    );
    let mut found = spi::select(&sql, &[schema.as_deref().into(), name.as_str().into()], |row| row.get::<String>(1))?;
    let shown = schema.map_or_else(|| name.clone(), |schema| display_qualified(&schema, &name));
    match (found.pop(), found.is_empty()) {
        (Some(one), true) => Ok(one),
        (None, _) => Err(Error::new(SqlState::UNDEFINED_OBJECT, format!("table {shown} is in no relgroup"))
            .hint("See bucardo.relation, or add it: SELECT bucardo.add_table('schema.table', 'relgroup');")),
        _ => Err(Error::new(SqlState::INVALID_PARAMETER, format!("there is more than one table named {shown}"))
            .hint("Write the name with its schema: schema.table.")),
    }
}
