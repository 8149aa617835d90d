//! A replication ready to use: a control database, a source `A`, targets `B`, `C`, …, and what a scenario asks of them.
//!
//! It speaks INTERFACE only: `add_db`, `add_sync`, `kick`, the views. It never looks into tables that the contract does
//! not name, and its waits end when the rows are equal, not when time has passed.

use crate::cluster::Cluster;
use crate::compare::{difference, fingerprint, literal, row_expression};
use crate::wait::{reached, wait_until};
use crate::wire::{Conn, PgError, Row};
use std::fmt::Write;

/// How the source's changes are captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capture {
    /// The extension is there: the source is the control database itself.
    Native,
    /// Plain SQL objects only: the source is a database without the extension.
    Plain,
}

pub const BOTH: [Capture; 2] = [Capture::Native, Capture::Plain];

/// A database taking part, known as `name` to the extension.
pub struct Member {
    pub name: &'static str,
    pub server: usize,
    pub db: String,
}

pub struct Net {
    /// The control database's server comes first.
    pub servers: Vec<Cluster>,
    pub members: Vec<Member>,
}

pub const CONTROL: &str = "control";
const NAMES: [&str; 5] = ["A", "B", "C", "D", "E"];

/// What the control server needs, and settings that make it try again soon.
pub const CONTROL_SETTINGS: &str = "
shared_preload_libraries = 'bucardo'
bucardo.retry_min = '200ms'
bucardo.retry_max = '2s'
bucardo.connect_timeout = '5s'
";

impl Net {
    /// Everything on one server, in databases of its own: the quickest layout.
    pub fn together(capture: Capture, targets: usize) -> Net {
        Self::build(capture, targets, |_| 0, "")
    }

    /// Every target on a server of its own. A plain source, too, has its own.
    pub fn apart(capture: Capture, targets: usize) -> Net {
        Self::apart_with(capture, targets, "")
    }

    pub fn apart_with(capture: Capture, targets: usize, control_settings: &str) -> Net {
        Self::build(capture, targets, move |n| if capture == Capture::Native { n } else { n + 1 }, control_settings)
    }

    /// The target beside the control database, the source on a server of its own.
    pub fn beside_the_target() -> Net {
        Self::build(Capture::Plain, 1, |n| 1 - n, "")
    }

    /// As `together`, with further settings of the server.
    pub fn together_with(capture: Capture, targets: usize, settings: &str) -> Net {
        Self::build(capture, targets, |_| 0, settings)
    }

    fn build(capture: Capture, targets: usize, server_of: impl Fn(usize) -> usize, more: &str) -> Net {
        let mut net = Net { servers: vec![], members: vec![] };
        net.servers.push(Cluster::start(CONTROL, &format!("{CONTROL_SETTINGS}\n{more}")));
        net.servers[0].create_database(CONTROL, "");
        net.control().exec("CREATE EXTENSION bucardo");
        for (n, name) in NAMES.into_iter().enumerate().take(targets + 1) {
            if n == 0 && capture == Capture::Native {
                net.members.push(Member { name, server: 0, db: CONTROL.to_owned() });
                net.control().exec("SELECT bucardo.add_db('A')");
            } else {
                net.add_member(name, server_of(n), "");
            }
        }
        net
    }

    /// A new database `name` on server number `server` (started if it is the next one), made a member.
    pub fn add_member(&mut self, name: &'static str, server: usize, database_options: &str) {
        let db = name.to_lowercase();
        if server == self.servers.len() {
            self.servers.push(Cluster::start(&db, ""));
        }
        self.servers[server].create_database(&db, database_options);
        self.members.push(Member { name, server, db });
        self.register(name);
    }

    pub fn register(&self, name: &str) {
        let conninfo = literal(&self.conninfo(name));
        self.control().exec(&format!("SELECT bucardo.add_db('{name}', {conninfo})"));
    }

    fn member(&self, name: &str) -> &Member {
        self.members.iter().find(|m| m.name == name).unwrap_or_else(|| panic!("no member {name} here"))
    }

    pub fn server_of(&self, name: &str) -> &Cluster {
        &self.servers[self.member(name).server]
    }

    pub fn conninfo(&self, name: &str) -> String {
        self.server_of(name).conninfo(&self.member(name).db)
    }

    #[track_caller]
    pub fn control(&self) -> Conn {
        self.servers[0].connect(CONTROL)
    }

    #[track_caller]
    pub fn on(&self, name: &str) -> Conn {
        self.server_of(name).connect(&self.member(name).db)
    }

    /// On every member, the source first.
    #[track_caller]
    pub fn everywhere(&self, sql: &str) {
        for member in &self.members {
            self.on(member.name).exec(sql);
        }
    }

    /// `A:source,B:target,…` of all members there are.
    pub fn dbs(&self) -> String {
        let role = |m: &Member| if m.name == "A" { "source" } else { "target" };
        self.members.iter().map(|m| format!("{}:{}", m.name, role(m))).collect::<Vec<_>>().join(",")
    }

    /// Sync `s` from A to all others, with these further arguments of `add_sync`.
    #[track_caller]
    pub fn add_sync(&self, arguments: &str) {
        self.control().exec(&format!("SELECT bucardo.add_sync('s', dbs => '{}', {arguments})", self.dbs()));
    }

    /// The same table everywhere, in sync `s`.
    #[track_caller]
    pub fn with_table(self, ddl: &str, tables: &str) -> Net {
        self.everywhere(ddl);
        self.add_sync(&format!("tables => {}", literal(tables)));
        self
    }

    /// Kicks and waits for a run that began afterwards; what the contract answers.
    pub fn try_kick(&self) -> Result<String, PgError> {
        let rows = self.control().try_query("SELECT bucardo.kick('s', '80s')")?.rows;
        Ok(rows[0][0].clone().unwrap_or_default())
    }

    #[track_caller]
    pub fn kick(&self) -> String {
        self.try_kick().unwrap_or_else(|error| panic!("kick: {error}\n{}", self.report()))
    }

    /// Until no run is under way or to come: one that has brought something is followed by one more.
    pub fn until_empty(&self) {
        // Who is away or refuses is no matter here.
        for _ in 0..10 {
            if self.try_kick().is_ok_and(|state| state == "empty") {
                break;
            }
        }
    }

    /// Pauses the sync, and no run of it is under way: a pause ends none.
    pub fn rest(&self) {
        self.until_empty();
        self.control().exec("SELECT bucardo.pause('s')");
    }

    pub fn state(&self) -> String {
        self.control().maybe("SELECT state FROM bucardo.status WHERE sync = 's'").unwrap_or_default()
    }

    pub fn last_error(&self) -> String {
        self.control().maybe("SELECT last_error FROM bucardo.status WHERE sync = 's'").unwrap_or_default()
    }

    #[track_caller]
    pub fn wait_state(&self, wanted: &str) {
        let mut conn = self.control();
        let mut seen = String::new();
        let there = reached(|| {
            seen = conn.maybe("SELECT state FROM bucardo.status WHERE sync = 's'").unwrap_or_default();
            wanted.split('|').any(|state| state == seen)
        });
        assert!(there, "state is {seen}, waited for {wanted}\n{}", self.report());
    }

    pub fn pending(&self) -> i64 {
        self.control().number("SELECT coalesce(sum(changes), 0) FROM bucardo.pending('s')")
    }

    #[track_caller]
    pub fn wait_served(&self) {
        // Asked on a new connection each time: some scenarios crash the server while we ask.
        let pending = "SELECT coalesce(sum(changes), 0) FROM bucardo.pending('s')";
        let ask = || self.servers[0].try_connect(CONTROL)?.try_query(pending);
        let served = reached(|| ask().is_ok_and(|reply| reply.rows[0][0].as_deref() == Some("0")));
        assert!(served, "changes stay pending\n{}", self.report());
    }

    /// Until nothing is pending and all members hold the source's rows.
    #[track_caller]
    pub fn settle(&self, tables: &[&str]) {
        self.wait_served();
        for table in tables {
            let others: Vec<&str> = self.members.iter().map(|m| m.name).filter(|name| *name != "A").collect();
            self.wait_equal(table, &others);
        }
    }

    /// Until these members hold the same rows as A.
    #[track_caller]
    pub fn wait_equal(&self, table: &str, members: &[&str]) {
        let mut source = self.on("A");
        let row = row_expression(&mut source, table);
        for name in members {
            let mut member = self.on(name);
            if !reached(|| fingerprint(&mut source, table, &row) == fingerprint(&mut member, table, &row)) {
                let difference = difference(&mut source, &mut member, table, &row);
                panic!("{table} on {name} differs from A\n{difference}\n{}", self.report());
            }
        }
    }

    /// Now, without waiting: after a `kick` that answered, or while a lag would be a fault.
    #[track_caller]
    pub fn assert_equal(&self, table: &str) {
        let mut source = self.on("A");
        let row = row_expression(&mut source, table);
        for member in self.members.iter().filter(|m| m.name != "A") {
            let mut conn = self.on(member.name);
            if fingerprint(&mut source, table, &row) != fingerprint(&mut conn, table, &row) {
                let difference = difference(&mut source, &mut conn, table, &row);
                panic!("{table} on {} differs from A\n{difference}\n{}", member.name, self.report());
            }
        }
    }

    /// What an operator would look at: for failures.
    pub fn report(&self) -> String {
        let mut text = String::new();
        let Ok(mut conn) = self.servers[0].try_connect(CONTROL) else { return "the control server is down".into() };
        for query in [
            "SELECT * FROM bucardo.status",
            "SELECT * FROM bucardo.pending()",
            "SELECT * FROM bucardo.activity",
            "SELECT run, sync, state, started, ended, upserts, deletes, error, sqlstate FROM bucardo.syncrun \
             ORDER BY run DESC LIMIT 6",
        ] {
            let _ = writeln!(text, "-- {query}");
            match conn.try_query(query) {
                Ok(reply) => reply.rows.iter().for_each(|row| _ = writeln!(text, "   {}", show(row))),
                Err(error) => drop(writeln!(text, "   {}", error.message)),
            }
        }
        text
    }

    /// How much memory, in kB, a kid that lives has had at most.
    pub fn kid_memory(&self) -> u64 {
        let kids = self.control().query("SELECT pid FROM pg_stat_activity WHERE backend_type = 'bucardo kid'");
        let peak = |pid: &str| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:").map(str::to_owned));
            line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok())
        };
        kids.iter().filter_map(|row| peak(row[0].as_deref()?)).max().expect("no kid lives")
    }

    #[track_caller]
    pub fn wait_sql_on_control(&self, what: &str, condition: &str) {
        let mut conn = self.control();
        wait_until(what, || conn.one(condition) == "t");
    }

    #[track_caller]
    pub fn wait_sql(&self, member: &str, what: &str, condition: &str) {
        let mut conn = self.on(member);
        wait_until(&format!("{what} ({condition} on {member})"), || conn.one(condition) == "t");
    }
}

pub fn show(row: &Row) -> String {
    row.iter().map(|value| value.as_deref().unwrap_or("NULL")).collect::<Vec<_>>().join(" | ")
}
