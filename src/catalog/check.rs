//! A sync against its members as they are now: connects to each, describes the relations, and finds all faults. What
//! add_sync, update_sync, add_table and validate_sync have in common. It changes nothing anywhere; the open
//! connections and the descriptions go on to whoever installs capture.

use super::compare::{Fault, Pair};
use super::describe::{self, Described, Identity};
use super::sync::{Member, Relation, Role, Sync};
use super::{cleanup, db};
use crate::capture::install::{self, Captured, Owner};
use crate::error::{Result, SqlState};
use crate::ident::{display_qualified, quote_ident, quote_literal, quote_qualified};
use crate::kid::{renew, who};
use crate::libpq::Conn;
use crate::pg::spi;
use crate::{catalog, guc, master};

/// An active member, connected, and the sync's relations as they are there.
pub struct Checked<'a> {
    pub member: &'a Member,
    pub conn: Conn,
    /// In the order of the sync's relations.
    pub relations: Vec<Option<Described>>,
}

/// Opens a member for one of our functions, and makes sure that it can take part. It waits for locks there as long as the
/// caller says that he waits for any, and takes its time as the caller has it, whatever the member's own sessions may take.
pub fn open(target: &crate::libpq::Target, function: &str) -> Result<(Conn, Identity)> {
    let mut conn = Conn::open(target, &format!("bucardo {function}"), guc::connect_timeout())?;
    let patience: Option<String> = spi::value("SELECT pg_catalog.current_setting('lock_timeout')", &[])?;
    conn.query(&format!("SET statement_timeout = 0; SET lock_timeout = {}", quote_literal(&patience.unwrap_or_default())))?;
    let identity = describe::check_member(&mut conn)?;
    Ok((conn, identity))
}

/// A member that was connected already, or could not be; so that nobody is tried twice.
pub type Opened = Option<(String, Result<(Conn, Identity)>)>;

/// Connects and describes; what cannot be reached or does not fit is pushed onto `faults`. `before`: the sync that is
/// being changed.
pub fn check<'a>(
    sync: &'a Sync,
    before: Option<&Sync>,
    function: &str,
    mut opened: Opened,
    faults: &mut Vec<Fault>,
) -> Result<Vec<Checked<'a>>> {
    let names: Vec<(&str, &str)> = sync.relations.iter().map(|r| (r.schema.as_str(), r.name.as_str())).collect();
    let mut checked: Vec<Checked<'a>> = Vec::new();
    let mut known: Vec<(Identity, &str)> = Vec::new();
    for member in sync.members.iter().filter(|m| m.db.active) {
        let attempt = match opened.take_if(|(name, _)| *name == member.db.name) {
            Some((_, attempt)) => attempt,
            None => open(&member.db.target, function),
        };
        let described = attempt.and_then(|(mut conn, identity)| {
            know(member, &identity)?;
            describe::check_role(&mut conn)?;
            let relations = describe::describe(&mut conn, &names)?;
            Ok((conn, identity, relations))
        });
        match described {
            Ok((conn, identity, relations)) => {
                if let Some((_, other)) = known.iter().find(|(i, _)| *i == identity) {
                    faults.push(Fault {
                        code: SqlState::INVALID_PARAMETER,
                        db: member.db.name.clone(),
                        relation: None,
                        fault: format!("it is the same database as db \"{other}\""),
                        fix: Some("List each database once.".into()),
                    });
                }
                known.push((identity, &member.db.name));
                checked.push(Checked { member, conn, relations });
            }
            // One that was in the sync before and is away now has no part in the change; it finds out when it is back.
            Err(e) if e.code.class() == "08" && before.is_some_and(|b| b.members.contains(member)) => {
                pgrx::warning!("{}: it is not checked now", e.message);
            }
            Err(e) if e.code == SqlState::LOCK_NOT_AVAILABLE => return Err(e.at(format!("db \"{}\"", member.db.name))),
            Err(e) => {
                faults.push(Fault { code: e.code, db: member.db.name.clone(), relation: None, fault: e.message, fix: e.hint })
            }
        }
    }
    compare(sync, &mut checked, faults)?;
    Ok(checked)
}

/// A member must be the database that it was; the first time it is noted which one that is.
fn know(member: &Member, found: &Identity) -> Result<()> {
    match &member.db.identity {
        None => db::set_identity(&member.db.name, Some(&found.lasting)),
        Some(known) if *known == found.lasting => Ok(()),
        Some(known) => {
            let mut error = who::other_database(&member.db.name, known, &found.lasting);
            error.hint = error.detail.take();
            Err(error)
        }
    }
}

fn compare(sync: &Sync, checked: &mut [Checked<'_>], faults: &mut Vec<Fault>) -> Result<()> {
    let casts = checked.iter_mut().map(|c| describe::casts(&mut c.conn)).collect::<Result<Vec<_>>>()?;
    for (at, relation) in sync.relations.iter().enumerate() {
        // What no member has is one fault: its name.
        let nowhere = checked.iter().all(|c| c.relations[at].is_none());
        for c in checked.iter().take(if nowhere { 1 } else { checked.len() }) {
            faults.extend(presence(c, relation, c.relations[at].as_ref(), sync));
        }
        if relation.is_sequence {
            continue;
        }
        let table = |c: &'_ Checked<'_>| c.relations[at].clone().filter(Described::is_table);
        for (s, source) in checked.iter().enumerate().filter(|(_, c)| c.member.role == Role::Source) {
            let Some(here) = table(source) else { continue };
            let key = here.key(relation.pkey.as_deref());
            for (o, other) in checked.iter().enumerate().filter(|(o, _)| *o != s) {
                let Some(there) = table(other) else { continue };
                // A full copy finds no row by its key; any table will do.
                let key = if other.member.role == Role::Fullcopy { &[][..] } else { key.as_deref().unwrap_or_default() };
                let pair = Pair {
                    source: &here,
                    other: &there,
                    db: &other.member.db.name,
                    key,
                    strict: relation.strict_checking,
                    casts: &casts[o],
                };
                let new: Vec<Fault> = pair.faults().into_iter().filter(|f| !faults.contains(f)).collect();
                faults.extend(new);
            }
        }
    }
    Ok(())
}

/// Whether the relation is there at all, of the right kind, and on a source with a key.
fn presence(c: &Checked<'_>, relation: &Relation, found: Option<&Described>, sync: &Sync) -> Option<Fault> {
    let what = if relation.is_sequence { "sequence" } else { "table" };
    let name = quote_qualified(&relation.schema, &relation.name);
    let fault = |code, fault: String, fix: Option<String>| {
        let shown = display_qualified(&relation.schema, &relation.name);
        Some(Fault { code, db: c.member.db.name.clone(), relation: Some(shown), fault, fix })
    };
    let Some(found) = found else {
        return fault(
            SqlState::UNDEFINED_OBJECT,
            format!("the {what} does not exist"),
            Some(format!("Create {what} {name} there first.")),
        );
    };
    if found.is_sequence() != relation.is_sequence || !(found.is_table() || found.is_sequence()) {
        let fix = "Leave it out: only tables, partitioned tables and sequences are replicated.";
        return fault(SqlState::WRONG_STATE, format!("it is not a {what}"), Some(fix.into()));
    }
    if relation.schema.starts_with("pg_") || matches!(relation.schema.as_str(), "information_schema" | "bucardo") {
        let fix = format!("Leave out everything in schema {}.", quote_ident(&relation.schema));
        return fault(SqlState::WRONG_STATE, "it belongs to the server or to bucardo".into(), Some(fix));
    }
    if relation.is_sequence || c.member.role != Role::Source || !sync.captures() {
        return None;
    }
    match (&relation.pkey, found.key(relation.pkey.as_deref())) {
        (_, Some(_)) => None,
        (Some(index), None) => fault(
            SqlState::WRONG_STATE,
            format!("\"{index}\" is not a unique index over NOT NULL columns that can be its key"),
            Some(format!("CREATE UNIQUE INDEX {} ON {name} (…); over NOT NULL columns", quote_ident(index))),
        ),
        (None, None) => fault(
            SqlState::WRONG_STATE,
            "the table has no key: neither a primary key nor a unique index over NOT NULL columns".into(),
            Some(format!("ALTER TABLE {name} ADD PRIMARY KEY (…); or leave the table out")),
        ),
    }
}

/// Installs capture of the given relations on every checked source. The catalog's rows are written by now; should
/// this transaction still fail, the master takes it off again, because it was told before. It may be stopped: where one source
/// fails, what others have been given of a `new` sync is taken off at once.
pub fn install_capture(sync: &Sync, checked: &mut [Checked<'_>], new: bool) -> Result<()> {
    if !sync.captures() {
        return Ok(());
    }
    let control = catalog::control_id()?;
    let mut sources: Vec<&mut Checked<'_>> = checked.iter_mut().filter(|c| c.member.role == Role::Source).collect();
    for at in 0..sources.len() {
        if let Err(error) = install_on(sync, &control, sources[at]) {
            for done in sources.iter_mut().take(at).filter(|_| new) {
                install::take_back(&mut done.conn, &control, &sync.capture_name());
            }
            return Err(error);
        }
    }
    Ok(())
}

fn install_on(sync: &Sync, control: &str, c: &mut Checked<'_>) -> Result<()> {
    let mut tables = Vec::new();
    for (relation, found) in sync.relations.iter().zip(&c.relations).filter(|(r, _)| !r.is_sequence) {
        if let Some((found, key)) = found.as_ref().and_then(|f| Some((f, f.key(relation.pkey.as_deref())?))) {
            tables.push(Captured { oid: found.oid, key });
        }
    }
    let name = &c.member.db.name;
    let captured = sync.capture_name();
    let conninfo = db::secret(name)?.unwrap_or_default();
    master::notify::remember_install(name, &conninfo, &captured);
    // What an earlier change left to be taken off here is wanted again.
    cleanup::forget(control, &conninfo, &captured)?;
    if install::is_copy(&install::known(&mut c.conn, control, &captured)?, name).is_some() {
        // Whoever calls has confirmed it. Where it stood was another database's place.
        renew::forget(sync.id, name)?;
    }
    let receivers: Vec<String> = sync.members.iter().map(|m| m.db.name.clone()).filter(|n| n != name).collect();
    let owner = Owner { control, sync: &captured, source: name, receivers: &receivers };
    install::install(&mut c.conn, &owner, &tables, false)
}

/// What is wrong with the capture on the checked sources, for validate_sync: faults that a run would mend by itself,
/// and triggers that somebody has disabled.
pub fn check_capture(sync: &Sync, checked: &mut [Checked<'_>], faults: &mut Vec<Fault>) -> Result<()> {
    if !sync.captures() {
        return Ok(());
    }
    let control = catalog::control_id()?;
    for c in checked.iter_mut().filter(|c| c.member.role == Role::Source) {
        let states = install::state(&mut c.conn, &control, &sync.capture_name())?;
        for (relation, found) in sync.relations.iter().zip(&c.relations).filter(|(r, _)| !r.is_sequence) {
            let Some((oid, key)) = found.as_ref().and_then(|f| Some((f.oid, f.key(relation.pkey.as_deref())?))) else { continue };
            let state = states.get(&oid);
            let broken = state.map_or(Some("nothing captures it".to_string()), |s| s.broken(&key));
            let fix = match (&broken, state.and_then(|s| s.fault.as_ref())) {
                (Some(_), _) => format!("SELECT bucardo.update_sync({}, status => 'active');", quote_literal(&sync.name)),
                (None, Some(_)) => format!(
                    "ALTER TABLE {} ENABLE TRIGGER USER; what was written meanwhile was not captured",
                    quote_qualified(&relation.schema, &relation.name)
                ),
                (None, None) => continue,
            };
            faults.push(Fault {
                code: SqlState::WRONG_STATE,
                db: c.member.db.name.clone(),
                relation: Some(display_qualified(&relation.schema, &relation.name)),
                fault: broken.or_else(|| state.and_then(|s| s.fault.clone())).unwrap_or_default(),
                fix: Some(fix),
            });
        }
    }
    Ok(())
}
