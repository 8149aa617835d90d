//! Relations and their places in relgroups. A relation has one row however many relgroups hold it; the row goes with
//! the last of them.

use pgrx::datum::DatumWithOid;

use crate::error::{Error, Result, SqlState};
use crate::ident::{display_qualified, one_line};
use crate::pg::spi;

/// The options of a relation's place in a relgroup; None: the sync's.
#[derive(Clone, Copy, Default)]
pub struct Options<'a> {
    pub pkey: Option<&'a str>,
    pub conflict_strategy: Option<&'a str>,
    pub makedelta: Option<bool>,
    pub strict_checking: Option<bool>,
    pub rebuild_index: Option<bool>,
    pub autokick: Option<bool>,
    pub priority: Option<i32>,
}

impl<'a> Options<'a> {
    /// The arguments of a statement about that place: $1 and $2 say which, from $3 on come the options.
    fn args(&self, relgroup: &'a str, id: i32) -> [DatumWithOid<'a>; 9] {
        [
            relgroup.into(),
            id.into(),
            self.pkey.into(),
            self.conflict_strategy.into(),
            self.makedelta.into(),
            self.strict_checking.into(),
            self.rebuild_index.into(),
            self.autokick.into(),
            self.priority.into(),
        ]
    }
}

/// A relation as it is to be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// None: given without one, and not looked up yet.
    pub schema: Option<String>,
    pub name: String,
    pub is_sequence: bool,
}

impl Named {
    fn kind(&self) -> &'static str {
        if self.is_sequence { "sequence" } else { "table" }
    }

    pub fn display(&self) -> String {
        match &self.schema {
            Some(schema) => display_qualified(schema, &self.name),
            None => self.name.clone(),
        }
    }
}

/// The relation's number, made when it is new.
fn ensure(relation: &Named, db: Option<&str>) -> Result<i32> {
    let insert = "INSERT INTO bucardo.relation (db, schemaname, relname, kind) VALUES ($1, $2, $3, $4) \
        ON CONFLICT (relname, (COALESCE(schemaname, '')), kind) DO UPDATE SET db = coalesce(bucardo.relation.db, excluded.db) RETURNING id";
    let args = [db.into(), relation.schema.as_deref().into(), relation.name.as_str().into(), relation.kind().into()];
    let ids = spi::write(insert, &args, |row| row.get(1))?;
    ids.first().copied().ok_or_else(|| Error::internal("a relation could not be stored"))
}

/// Puts a relation at the end of a relgroup and returns its number; None when it is there already.
pub fn add(relgroup: &str, relation: &Named, db: Option<&str>, options: &Options<'_>) -> Result<Option<i32>> {
    let id = ensure(relation, db)?;
    let sql = "INSERT INTO bucardo.relmap (relgroup, relation, pkey, conflict_strategy, makedelta, strict_checking, rebuild_index, \
        autokick, priority) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, coalesce($9, 0)) ON CONFLICT DO NOTHING";
    Ok((spi::execute(sql, &options.args(relgroup, id))? > 0).then_some(id))
}

/// Changes what is given of a relation's place.
pub fn update(relgroup: &str, id: i32, options: &Options<'_>) -> Result<()> {
    let sql = "UPDATE bucardo.relmap SET pkey = coalesce($3, pkey), conflict_strategy = coalesce($4, conflict_strategy), \
        makedelta = coalesce($5, makedelta), strict_checking = coalesce($6, strict_checking), \
        rebuild_index = coalesce($7, rebuild_index), autokick = coalesce($8, autokick), priority = coalesce($9, priority) \
        WHERE relgroup = $1 AND relation = $2";
    spi::execute(sql, &options.args(relgroup, id))?;
    Ok(())
}

/// The number of a relation of the relgroup. A name without a schema must fit only one.
pub fn find(relgroup: &str, schema: Option<&str>, name: &str) -> Result<i32> {
    let sql = "SELECT r.id FROM bucardo.relmap m JOIN bucardo.relation r ON r.id = m.relation \
        WHERE m.relgroup = $1 AND r.relname = $3 AND ($2 IS NULL OR r.schemaname = $2)";
    let ids = spi::write(sql, &[relgroup.into(), schema.into(), name.into()], |row| row.get::<i32>(1))?;
    let shown = one_line(&schema.map_or_else(|| name.to_string(), |schema| display_qualified(schema, name)));
    match ids.as_slice() {
        [id] => Ok(*id),
        [] => Err(Error::new(SqlState::UNDEFINED_OBJECT, format!("relation {shown} is not in relgroup \"{relgroup}\""))
            .hint("See bucardo.relmap and bucardo.relation for what is in it.")),
        _ => Err(Error::new(
            SqlState::INVALID_PARAMETER,
            format!("relgroup \"{relgroup}\" has more than one relation named {shown}"),
        )
        .hint("Write the name with its schema: schema.table.")),
    }
}

/// Takes a relation out of a relgroup.
pub fn remove(relgroup: &str, id: i32) -> Result<()> {
    spi::execute("DELETE FROM bucardo.relmap WHERE relgroup = $1 AND relation = $2", &[relgroup.into(), id.into()])?;
    delete_unused()
}

/// Drops the relations that no relgroup holds.
pub fn delete_unused() -> Result<()> {
    let unused = "FROM bucardo.relation r WHERE NOT EXISTS (SELECT 1 FROM bucardo.relmap m WHERE m.relation = r.id)";
    // Somebody may be putting one of them into another relgroup: what has become of it is seen only by a statement that
    // begins when he has ended.
    let ids = spi::write(&format!("SELECT r.id {unused} ORDER BY r.id FOR UPDATE"), &[], |row| row.get::<i32>(1))?;
    if !ids.is_empty() {
        spi::execute(&format!("DELETE {unused} AND r.id = ANY ($1)"), &[ids.into()])?;
    }
    Ok(())
}

/// The relations of a relgroup that were not looked up yet, of which schema or kind may not be known: number, name.
pub fn unresolved(relgroup: &str) -> Result<Vec<(i32, Named)>> {
    let sql = "SELECT r.id, r.relname, r.kind = 'sequence', r.schemaname FROM bucardo.relmap m JOIN bucardo.relation r ON r.id = m.relation \
        WHERE m.relgroup = $1 AND (r.schemaname IS NULL OR r.db IS NULL) ORDER BY m.position";
    spi::select(sql, &[relgroup.into()], |row| {
        Ok((row.get(1)?, Named { schema: row.opt(4)?, name: row.get(2)?, is_sequence: row.get(3)? }))
    })
}

/// Gives a relation the schema and kind with which it was found; where it is known so already, that row is used.
pub fn settle(relgroup: &str, id: i32, found: &Named, db: &str) -> Result<()> {
    let whole = ensure(found, Some(db))?;
    if whole == id {
        return Ok(());
    }
    let sql = "UPDATE bucardo.relmap m SET relation = $3 WHERE m.relgroup = $1 AND m.relation = $2 \
        AND NOT EXISTS (SELECT 1 FROM bucardo.relmap o WHERE o.relgroup = $1 AND o.relation = $3)";
    spi::execute(sql, &[relgroup.into(), id.into(), whole.into()])?;
    remove(relgroup, id)
}
