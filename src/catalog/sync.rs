//! A sync as a whole: members in their listed order, relations in the order of a run, options resolved. The master
//! reads all of them whenever the catalog changed, so this takes five queries, writes nothing and burns no
//! transaction id.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::customcode::{self, Code};
use super::db::{self, Db};
use crate::error::Result;
pub use crate::ident::Role;
use crate::pg::spi::{self, Row};

/// A member in its role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub db: Db,
    pub role: Role,
}

/// A relation with the options that hold for it in this sync.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    pub id: i32,
    pub schema: String,
    pub name: String,
    pub is_sequence: bool,
    /// The unique index that is the key, where the user named one.
    pub pkey: Option<String>,
    /// Its own strategy; none: the sync's.
    pub conflict_strategy: Option<String>,
    /// Its own setting; none: the source's.
    pub makedelta: Option<bool>,
    /// Resolved against the sync.
    pub strict_checking: bool,
    pub rebuild_index: bool,
    pub autokick: bool,
}

impl Relation {
    /// The name for people, and for `bucardo.conflict`: unquoted, always with the schema.
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }
}

/// How a copy of whole tables empties those of a target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeleteMethod {
    /// Not at all: what the source does not have is deleted row by row.
    Delete,
    /// At once; as `Delete` where another table refers to one of them.
    Truncate,
    /// At once, with every table that refers to one of them.
    TruncateCascade,
}

impl DeleteMethod {
    fn parse(text: &str) -> Self {
        match text {
            "truncate" => Self::Truncate,
            "truncate_cascade" => Self::TruncateCascade,
            _ => Self::Delete,
        }
    }
}

/// A sync.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sync {
    pub id: i32,
    pub name: String,
    pub dbgroup: String,
    pub relgroup: String,
    /// In the listed order.
    pub members: Vec<Member>,
    /// In the order of a run.
    pub relations: Vec<Relation>,
    pub conflict_strategy: String,
    /// What is asked before the strategy, in this order.
    pub conflict_codes: Vec<Code>,
    pub onetimecopy: i32,
    pub autokick: bool,
    pub checktime: Option<Duration>,
    pub stayalive: bool,
    pub kidsalive: bool,
    pub lifetime: Option<Duration>,
    pub maxkicks: i32,
    pub serializable: bool,
    pub delete_method: DeleteMethod,
    pub rebuild_index: bool,
    pub analyze_after_copy: bool,
    pub vacuum_after_copy: bool,
    pub strict_checking: bool,
    pub priority: i32,
    pub active: bool,
    pub paused: bool,
}

impl Sync {
    pub fn sources(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|m| m.role == Role::Source)
    }

    /// The relation of that number.
    pub fn relation(&self, id: i32) -> Option<&Relation> {
        self.relations.iter().find(|r| r.id == id)
    }

    /// The first source, by its place among the members.
    pub fn first_source(&self) -> Option<usize> {
        self.members.iter().position(|m| m.role == Role::Source)
    }

    /// Whether every change starts a run by itself.
    pub fn always_kicks(&self) -> bool {
        self.sometimes_kicks() && self.tables().all(|r| r.autokick)
    }

    /// Whether changes of some of its tables start a run by themselves.
    pub fn sometimes_kicks(&self) -> bool {
        self.tables().any(|r| r.autokick)
    }

    fn tables(&self) -> impl Iterator<Item = &Relation> {
        self.relations.iter().filter(|r| !r.is_sequence)
    }

    /// Its tables whose changes wait for the next run, as `bucardo.capture_pending` leaves them out.
    pub fn quiet(&self) -> impl Iterator<Item = Value> {
        let name = self.capture_name();
        let named = move |r: &Relation| json!({"sync": name, "schema": r.schema, "table": r.name});
        self.tables().filter(|r| self.sometimes_kicks() && !r.autokick).map(named)
    }

    /// The name under which sources keep its capture and progress. The number makes it another one when a sync is removed
    /// and added again under its name: what is still to be taken off is then never the new sync's.
    pub fn capture_name(&self) -> String {
        format!("{}:{}", self.id, self.name)
    }

    /// Whether its changes are captured: not when everybody else is copied whole.
    pub fn captures(&self) -> bool {
        captures(self.members.iter().map(|m| m.role))
    }
}

/// Whether changes are captured among members of these roles, and so tables need keys.
pub fn captures(mut roles: impl Iterator<Item = Role> + Clone) -> bool {
    roles.clone().filter(|r| *r == Role::Source).count() > 1 || roles.any(|r| r == Role::Target)
}

const SYNCS: &str = "SELECT id, name, dbgroup, relgroup, conflict_strategy, onetimecopy, autokick, \
    (extract(epoch FROM checktime) * 1000)::float8, stayalive, kidsalive, (extract(epoch FROM lifetime) * 1000)::float8, \
    maxkicks, isolation_level = 'serializable', rebuild_index, analyze_after_copy, vacuum_after_copy, \
    strict_checking, priority, status = 'active', paused, deletemethod \
    FROM bucardo.sync WHERE $1 IS NULL OR name = $1 ORDER BY name";

const MEMBERS: &str = "SELECT m.dbgroup, m.db, m.role FROM bucardo.dbmap m \
    WHERE m.dbgroup IN (SELECT s.dbgroup FROM bucardo.sync s WHERE $1 IS NULL OR s.name = $1) ORDER BY m.dbgroup, m.priority, m.db";

const RELATIONS: &str = "SELECT m.relgroup, r.id, coalesce(r.schemaname, 'public'), r.relname, r.kind = 'sequence', m.pkey, \
    m.conflict_strategy, m.makedelta, m.strict_checking, m.rebuild_index, m.autokick \
    FROM bucardo.relmap m JOIN bucardo.relation r ON r.id = m.relation \
    WHERE m.relgroup IN (SELECT s.relgroup FROM bucardo.sync s WHERE $1 IS NULL OR s.name = $1) \
    ORDER BY m.relgroup, m.priority DESC, m.position";

/// The sync of that name.
pub fn load(name: &str) -> Result<Option<Sync>> {
    Ok(load_where(Some(name))?.into_iter().next())
}

/// The sync of that number, whatever its name is by now.
pub fn load_by_id(id: i32) -> Result<Option<Sync>> {
    let name = spi::value::<String>("SELECT name FROM bucardo.sync WHERE id = $1", &[id.into()])?;
    name.map_or(Ok(None), |name| load(&name))
}

/// All syncs, by name.
pub fn load_all() -> Result<Vec<Sync>> {
    load_where(None)
}

fn load_where(name: Option<&str>) -> Result<Vec<Sync>> {
    let mut syncs = spi::select(SYNCS, &[name.into()], sync_row)?;
    if syncs.is_empty() {
        return Ok(syncs);
    }
    let dbs: HashMap<String, Db> = db::load_all()?.into_iter().map(|db| (db.name.clone(), db)).collect();
    let mut members: HashMap<String, Vec<Member>> = HashMap::new();
    for (group, db, role) in
        spi::select(MEMBERS, &[name.into()], |r| Ok((r.get::<String>(1)?, r.get::<String>(2)?, r.get::<String>(3)?)))?
    {
        if let Some(db) = dbs.get(&db) {
            members.entry(group).or_default().push(Member { db: db.clone(), role: Role::parse(&role)? });
        }
    }
    let mut relations: HashMap<String, Vec<Mapped>> = HashMap::new();
    for (group, relation) in spi::select(RELATIONS, &[name.into()], relation_row)? {
        relations.entry(group).or_default().push(relation);
    }
    let codes = customcode::load()?;
    for sync in &mut syncs {
        sync.members = members.get(&sync.dbgroup).cloned().unwrap_or_default();
        sync.relations =
            relations.get(&sync.relgroup).map(|all| all.iter().map(|r| r.resolved(sync)).collect()).unwrap_or_default();
        sync.conflict_codes = codes.of(&sync.name);
    }
    Ok(syncs)
}

fn duration(milliseconds: Option<f64>) -> Option<Duration> {
    milliseconds.filter(|ms| *ms > 0.0).and_then(|ms| Duration::try_from_secs_f64(ms / 1000.0).ok())
}

fn sync_row(row: &Row<'_>) -> Result<Sync> {
    Ok(Sync {
        id: row.get(1)?,
        name: row.get(2)?,
        dbgroup: row.get(3)?,
        relgroup: row.get(4)?,
        members: Vec::new(),
        relations: Vec::new(),
        conflict_strategy: row.get(5)?,
        conflict_codes: Vec::new(),
        onetimecopy: row.get(6)?,
        autokick: row.get(7)?,
        checktime: duration(row.opt(8)?),
        stayalive: row.get(9)?,
        kidsalive: row.get(10)?,
        lifetime: duration(row.opt(11)?),
        maxkicks: row.get(12)?,
        serializable: row.get(13)?,
        rebuild_index: row.get(14)?,
        analyze_after_copy: row.get(15)?,
        vacuum_after_copy: row.get(16)?,
        strict_checking: row.get(17)?,
        priority: row.get(18)?,
        active: row.get(19)?,
        paused: row.get(20)?,
        delete_method: DeleteMethod::parse(&row.get::<String>(21)?),
    })
}

/// A place in a relgroup, before the sync's options fill what it leaves open.
struct Mapped {
    relation: Relation,
    strict_checking: Option<bool>,
    rebuild_index: Option<bool>,
    autokick: Option<bool>,
}

impl Mapped {
    fn resolved(&self, sync: &Sync) -> Relation {
        Relation {
            strict_checking: self.strict_checking.unwrap_or(sync.strict_checking),
            rebuild_index: self.rebuild_index.unwrap_or(sync.rebuild_index),
            autokick: self.autokick.unwrap_or(sync.autokick),
            ..self.relation.clone()
        }
    }
}

fn relation_row(row: &Row<'_>) -> Result<(String, Mapped)> {
    let relation = Relation {
        id: row.get(2)?,
        schema: row.get(3)?,
        name: row.get(4)?,
        is_sequence: row.get(5)?,
        pkey: row.opt(6)?,
        conflict_strategy: row.opt(7)?,
        makedelta: row.opt(8)?,
        strict_checking: true,
        rebuild_index: false,
        autokick: true,
    };
    let mapped = Mapped { relation, strict_checking: row.opt(9)?, rebuild_index: row.opt(10)?, autokick: row.opt(11)? };
    Ok((row.get(1)?, mapped))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::libpq::{Conninfo, Target};

    /// A sync number 7 named s, of these members, all active, and of these tables of schema public.
    pub(crate) fn sync(members: &[(&str, Role)], tables: &[&str]) -> Sync {
        let member = |(name, role): &(&str, Role)| {
            let target = Target { name: name.to_string(), info: Conninfo::parse("").unwrap() };
            let db =
                Db { name: name.to_string(), conninfo: String::new(), target, makedelta: false, active: true, identity: None };
            Member { db, role: *role }
        };
        let relation = |(i, name): (usize, &&str)| Relation {
            id: i as i32 + 1,
            schema: "public".into(),
            name: name.to_string(),
            is_sequence: false,
            pkey: None,
            conflict_strategy: None,
            makedelta: None,
            strict_checking: true,
            rebuild_index: false,
            autokick: true,
        };
        Sync {
            id: 7,
            name: "s".into(),
            dbgroup: "s".into(),
            relgroup: "s".into(),
            members: members.iter().map(member).collect(),
            relations: tables.iter().enumerate().map(relation).collect(),
            conflict_strategy: "bucardo_latest".into(),
            conflict_codes: Vec::new(),
            onetimecopy: 0,
            autokick: true,
            checktime: None,
            stayalive: true,
            kidsalive: true,
            lifetime: None,
            maxkicks: 0,
            serializable: false,
            delete_method: DeleteMethod::Delete,
            rebuild_index: false,
            analyze_after_copy: true,
            vacuum_after_copy: false,
            strict_checking: true,
            priority: 0,
            active: true,
            paused: false,
        }
    }

    #[test]
    fn which_changes_start_a_run() {
        let mut s = sync(&[("A", Role::Source), ("B", Role::Target)], &["t", "u"]);
        assert!(s.always_kicks() && s.quiet().next().is_none());
        s.relations[1].autokick = false;
        assert!(s.sometimes_kicks() && !s.always_kicks());
        assert_eq!(s.quiet().collect::<Vec<_>>(), [json!({"sync": "7:s", "schema": "public", "table": "u"})]);
        s.relations[0].autokick = false;
        assert!(!s.sometimes_kicks() && s.quiet().next().is_none(), "where none does there is nothing to be told apart");
    }

    #[test]
    fn who_is_copied_whole_needs_no_capture() {
        use Role::{Fullcopy, Source, Target};
        for (roles, captures) in [
            (vec![Source, Target], true),
            (vec![Source, Source], true),
            (vec![Source, Fullcopy], false),
            (vec![Source, Fullcopy, Target], true),
        ] {
            assert_eq!(super::captures(roles.iter().copied()), captures, "{roles:?}");
        }
    }
}
