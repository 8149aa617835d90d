//! A sync with several sources, ready to use: sources `A`, `B`, `C`, targets `T`, `U`, and what their scenarios ask of them.
//!
//! It stands on `net`, which knows one source only, and speaks INTERFACE only. The scenarios are the modules below, one
//! file per theme. Changes are made one after the other from one process, so that "later" has one meaning; nothing here
//! may depend on the clock beyond that order.

mod abreast;
mod alone;
mod away;
mod basic;
mod cascade;
mod custom;
mod doubt;
mod foreign;
mod keytypes;
mod matrix;
mod moves;
mod names;
mod newcomer;
mod once;
mod pairwise;
mod record;
mod relay;
mod sequence;
mod star;
mod storm;
mod strategy;
mod truncate;
mod turns;
mod unique;
mod whole;

use crate::cluster::Cluster;
use crate::compare::literal;
use crate::net::{CONTROL, CONTROL_SETTINGS, Capture, Net};
use crate::wire::Conn;
use std::ops::Deref;

pub const SOURCES: [&str; 5] = ["A", "B", "C", "D", "E"];
pub const TARGETS: [&str; 2] = ["T", "U"];

/// Where the members live.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On the control server.
    Together,
    /// All on one server, which is not the control server: that one may die alone.
    Beside,
    /// Each on a server of its own.
    Apart,
}

/// What "the last change" is measured by on the servers of the members.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// `track_commit_timestamp = on`
    Commit,
    /// `track_commit_timestamp = off`: the time of the statement.
    Statement,
}

pub struct Plan {
    sources: usize,
    targets: usize,
    place: Place,
    clock: Clock,
    capture: Capture,
    settings: &'static str,
    databases: &'static str,
}

pub struct Multi {
    pub net: Net,
    pub sources: Vec<&'static str>,
}

impl Plan {
    /// So many sources and one target, on the control server, commit times kept, plain capture.
    pub fn new(sources: usize) -> Plan {
        Plan {
            sources,
            targets: 1,
            place: Place::Together,
            clock: Clock::Commit,
            capture: Capture::Plain,
            settings: "",
            databases: "",
        }
    }

    pub fn targets(self, targets: usize) -> Plan {
        Plan { targets, ..self }
    }

    pub fn place(self, place: Place) -> Plan {
        Plan { place, ..self }
    }

    pub fn clock(self, clock: Clock) -> Plan {
        Plan { clock, ..self }
    }

    /// Native: the extension is on A and B, not on C, so that both ways of capture meet in one run.
    pub fn capture(self, capture: Capture) -> Plan {
        Plan { capture, ..self }
    }

    /// Further settings of every server.
    pub fn settings(self, settings: &'static str) -> Plan {
        Plan { settings, ..self }
    }

    /// Further options of the members' databases.
    pub fn databases(self, databases: &'static str) -> Plan {
        Plan { databases, ..self }
    }

    pub fn start(self) -> Multi {
        let mut net = Net { servers: vec![], members: vec![] };
        net.servers.push(Cluster::start(CONTROL, &format!("{CONTROL_SETTINGS}\n{}", self.server_settings())));
        net.servers[0].create_database(CONTROL, "");
        net.control().exec("CREATE EXTENSION bucardo");
        let sources: Vec<&'static str> = SOURCES[..self.sources].to_vec();
        let all = sources.iter().chain(&TARGETS[..self.targets]);
        for (n, name) in all.enumerate() {
            self.add(&mut net, name, n);
        }
        Multi { net, sources }
    }

    fn server_settings(&self) -> String {
        let clock = if self.clock == Clock::Commit { "on" } else { "off" };
        format!("track_commit_timestamp = {clock}\n{}", self.settings)
    }

    fn add(&self, net: &mut Net, name: &'static str, number: usize) {
        let server = match self.place {
            Place::Together => 0,
            Place::Beside => 1,
            Place::Apart => number + 1,
        };
        if server == net.servers.len() {
            let settings = format!("shared_preload_libraries = 'bucardo'\n{}", self.server_settings());
            net.servers.push(Cluster::start(&name.to_lowercase(), &settings));
        }
        net.add_member(name, server, self.databases);
        if self.capture == Capture::Native && (name == "A" || name == "B") {
            net.on(name).exec("CREATE EXTENSION bucardo");
        }
    }
}

impl Deref for Multi {
    type Target = Net;

    fn deref(&self) -> &Net {
        &self.net
    }
}

impl Multi {
    /// `A:source,B:source,T:target`
    pub fn dbs(&self) -> String {
        let role = |name: &&str| if self.sources.contains(name) { "source" } else { "target" };
        self.net.members.iter().map(|m| format!("{}:{}", m.name, role(&m.name))).collect::<Vec<_>>().join(",")
    }

    pub fn names(&self) -> Vec<&'static str> {
        self.net.members.iter().map(|m| m.name).collect()
    }

    /// Sync `s` over all members, which runs only when it is kicked: so that changes of several sources meet in one run.
    #[track_caller]
    pub fn sync(&self, arguments: &str) {
        self.sync_over(&self.dbs(), &format!("autokick => false, {arguments}"));
    }

    #[track_caller]
    pub fn sync_over(&self, dbs: &str, arguments: &str) {
        self.control().exec(&format!("SELECT bucardo.add_sync('s', dbs => {}, {arguments})", literal(dbs)));
    }

    /// The same table everywhere, in sync `s`, run by kicks.
    #[track_caller]
    pub fn with(self, ddl: &str, arguments: &str) -> Multi {
        self.everywhere(ddl);
        self.sync(arguments);
        self
    }

    /// A connection to each source, in order.
    pub fn writers(&self) -> Vec<Conn> {
        self.sources.iter().map(|name| self.on(name)).collect()
    }

    /// `db: statement` lines, each a transaction of its own, in this order.
    #[track_caller]
    pub fn changes(&self, lines: &[(&str, &str)]) {
        for (db, sql) in lines {
            self.on(db).exec(sql);
        }
    }

    /// Kicks until there is nothing more to do: afterwards all have what there is to have. A run may leave work to the
    /// next one, but not for ever.
    #[track_caller]
    pub fn drain(&self) {
        for _ in 0..10 {
            if self.kick() == "empty" && self.pending() == 0 {
                return;
            }
        }
        panic!("ten runs, and still something to do\n{}", self.report());
    }

    #[track_caller]
    pub fn drain_equal(&self, tables: &[&str]) {
        self.drain();
        tables.iter().for_each(|table| self.assert_equal(table));
    }

    /// One string of a table's rows per member, all of which must be this one.
    #[track_caller]
    pub fn expect_everywhere(&self, query: &str, wanted: &str) {
        for name in self.names() {
            let seen = self.on(name).maybe(query).unwrap_or_default();
            assert_eq!(seen, wanted, "{query} on {name}\n{}", self.report());
        }
    }

    /// The decisions about a relation as lines `key|strategy|winner|rows`, by key and order of decision.
    pub fn conflicts(&self, relation: &str) -> Vec<String> {
        let sql = format!(
            "SELECT concat_ws('|', key, strategy, coalesce(winner, '-'), rows) FROM bucardo.conflict \
             WHERE sync = 's' AND relation = {} ORDER BY key, id",
            literal(relation)
        );
        self.control().query(&sql).into_iter().filter_map(|row| row[0].clone()).collect()
    }

    /// One number of `bucardo.conflict`, for a condition on its columns.
    pub fn count_conflicts(&self, condition: &str) -> i64 {
        self.control().number(&format!("SELECT count(*) FROM bucardo.conflict WHERE {condition}"))
    }

    /// How many conflicts the last run that was not empty counted.
    pub fn counted(&self) -> i64 {
        self.control().number(
            "SELECT coalesce((SELECT conflicts FROM bucardo.syncrun WHERE sync = 's' AND state <> 'empty' \
             ORDER BY run DESC LIMIT 1), 0)",
        )
    }
}
