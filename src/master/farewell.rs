//! What the master does when the extension is dropped: it takes capture off every member that can be reached, and off where
//! members were, and ends. A master that was stopped is started once more for that. Where the extension has been made anew meanwhile, what is left
//! goes over to its catalog. It must never hold up the DROP itself.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::controller::Job;
use super::main::{Master, extension_here};
use super::notify;
use super::removal::{RemovalStep, conninfo_of};
use super::slot::Report;
use crate::capture::install;
use crate::catalog::cleanup::{self, Cleanup};
use crate::catalog::{self, db::Db};
use crate::error::{Result, SqlState};
use crate::guc;
use crate::libpq::{Conn, Target};
use crate::pg::{latch, shmem, spi, worker, xact};

/// How long a member where an application holds a table is tried again.
const PATIENCE: Duration = Duration::from_secs(600);
const PAUSE: Duration = Duration::from_millis(200);
/// A member that does not answer must not hold up those after it.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a master that was started for a DROP waits until that has begun.
const BEGINS: Duration = Duration::from_secs(10);

/// How far a DROP EXTENSION is, for which a stopped master was started.
#[derive(Clone, Copy)]
pub(super) enum DropAwaited {
    Since(Instant),
    Begun,
}

/// Where something of a control database may be.
pub(super) struct Outpost {
    control: String,
    conninfo: String,
    target: Target,
}

/// Who might have something of ours, and what waits to be taken off where members were. In a transaction.
pub(super) fn members() -> Result<(Vec<Db>, Vec<Cleanup>)> {
    Ok((catalog::db::load_all()?, cleanup::waiting()?))
}

impl Master {
    /// Takes in who might have something of ours.
    pub(super) fn learn_members(&mut self, (members, waiting): (Vec<Db>, Vec<Cleanup>), generation: u64) {
        self.members = members;
        self.waiting = waiting;
        self.generation = generation;
        shmem::with(|s| s.masters[self.slot].loaded = generation);
    }

    /// All places where something of ours may be, each once.
    pub(super) fn outposts(&mut self) -> Vec<Outpost> {
        let control = self.control.clone();
        let member = |db: Db| Outpost { control: control.clone(), conninfo: db.conninfo, target: db.target };
        let mut all = std::mem::take(&mut self.unleft);
        all.extend(self.members.drain(..).map(member));
        for Cleanup { control, db, conninfo, .. } in self.waiting.drain(..) {
            all.extend(Outpost::at(control, db, conninfo));
        }
        // What came to nothing, and stands nowhere else.
        for removal in std::mem::take(&mut self.removals).into_values() {
            if let RemovalStep::Forget { control, .. } = removal.step {
                all.extend(Outpost::at(control, removal.watcher.target.name.clone(), removal.conninfo));
            }
        }
        let mut seen = HashSet::new();
        all.retain(|o| seen.insert((o.control.clone(), o.conninfo.clone())));
        all
    }

    /// Started for a DROP EXTENSION only: ends when there was none.
    pub(super) fn await_drop(&self, awaited: DropAwaited, now: Instant) -> Result<()> {
        // Here again after it has begun: it was rolled back.
        let over = match awaited {
            DropAwaited::Since(since) => now >= since + BEGINS,
            DropAwaited::Begun => true,
        };
        if over {
            let stopped = xact::transaction(catalog::is_stopped)?;
            shmem::with(|s| {
                let master = &mut s.masters[self.slot];
                master.for_drop = false;
                master.wanted = stopped == Some(false);
                master.ended_as_asked = true;
            });
            worker::exit(0);
        }
        latch::wait(None, Some(PAUSE));
        Ok(())
    }

    /// Ends all kids. What they have reported since.
    pub(super) fn end_kids(&mut self) -> Vec<(i32, Job, Report)> {
        let mut reports = self.kids.end_all(Instant::now());
        while !self.kids.is_empty() {
            latch::wait(None, Some(Duration::from_millis(20)));
            reports.extend(self.kids.end_all(Instant::now()));
        }
        reports
    }

    /// The extension was dropped.
    pub(super) fn farewell(&mut self) -> Result<()> {
        self.end_kids();
        let deadline = Instant::now() + PATIENCE;
        let mut outposts = self.outposts();
        // What the transaction that dropped it had put somewhere before.
        for (name, conninfo, _) in shmem::with(|s| notify::take_installed(s, self.db)) {
            outposts.extend(Outpost::at(self.control.clone(), name, conninfo));
        }
        outposts.sort_by_key(|o| self.sources.get(&o.target.name).is_some_and(|s| s.watcher.trouble().is_some()));
        loop {
            outposts.retain(|outpost| !leave(outpost));
            match extension_here() {
                Ok(false) => {}
                Ok(true) => return self.hand_over(outposts),
                Err(error) => {
                    self.unleft = outposts;
                    return Err(error);
                }
            }
            if outposts.is_empty() {
                break;
            }
            if latch::left(deadline).is_none() {
                let names: Vec<&str> = outposts.iter().map(|o| o.target.name.as_str()).collect();
                pgrx::warning!("bucardo: capture was left on {}: its tables are never free", names.join(", "));
                break;
            }
            latch::wait(None, Some(PAUSE));
        }
        forget_database()?;
        shmem::with(|s| {
            s.keep_syncs(self.db, &[]);
            s.masters[self.slot].wanted = false;
            s.masters[self.slot].for_drop = false;
        });
        worker::exit(0)
    }

    /// The extension was dropped and made anew: its new catalog learns what is to be cleaned up, and a master that has read
    /// it goes on.
    pub(super) fn hand_over(&mut self, outposts: Vec<Outpost>) -> Result<()> {
        self.end_kids();
        let leave = |o: &Outpost| cleanup::add(&o.control, &o.target.name, &o.conninfo, None);
        if let Err(error) = xact::transaction(|| outposts.iter().try_for_each(leave)) {
            self.unleft = outposts;
            return Err(error);
        }
        shmem::with(|s| {
            s.keep_syncs(self.db, &[]);
            let master = &mut s.masters[self.slot];
            master.for_drop = false;
            master.ended_as_asked = true;
        });
        worker::exit(0)
    }
}

impl Outpost {
    /// None: it was a member's whose conninfo cannot be read any more.
    fn at(control: String, name: String, conninfo: String) -> Option<Self> {
        let info = conninfo_of(&conninfo).ok()?;
        Some(Self { control, conninfo, target: Target { name, info } })
    }
}

/// Takes everything of a control database off a place. False: tables are busy, it must be tried again.
fn leave(outpost: &Outpost) -> bool {
    let Outpost { control, target, .. } = outpost;
    let opened = Conn::open(target, "bucardo master", guc::connect_timeout().min(CONNECT));
    match opened.and_then(|mut conn| install::uninstall(&mut conn, control, None)) {
        Ok(left) => left == 0,
        Err(e) if install::is_missing(&e) => true,
        Err(e) if matches!(e.code, SqlState::LOCK_NOT_AVAILABLE | SqlState::DEADLOCK) => false,
        Err(e) => {
            pgrx::warning!("bucardo: capture was left on db \"{}\": {e}", target.name);
            true
        }
    }
}

/// Takes the launcher's mark off this database.
pub(super) fn forget_database() -> Result<()> {
    xact::transaction(|| {
        let sql = spi::value::<String>(
            "SELECT pg_catalog.format('ALTER DATABASE %I RESET bucardo.master', d.datname) FROM pg_catalog.pg_database d \
             JOIN pg_catalog.pg_db_role_setting s ON s.setdatabase = d.oid AND s.setrole = 0 \
             WHERE d.datname = pg_catalog.current_database() AND s.setconfig::text ~ 'bucardo[.]master'",
            &[],
        )?;
        sql.map_or(Ok(()), |sql| spi::execute(&sql, &[]).map(drop))
    })
}
