//! A throw-away cluster: copied from the template, started on a free port, stopped and removed when dropped.
//!
//! It stands between `scratch` (folders) and `net` (members of a replication). A scenario that fails leaves its clusters'
//! folders behind and prints the end of their logs. It must never stop a server that it did not start.

use crate::scratch::{output, scratch};
use crate::wait::wait_until;
use crate::wire::{Conn, PgError, Row};
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU16, Ordering};

const SETTINGS: &str = "
# A test's server: nothing survives the machine, so nothing is flushed for it.
fsync = off
full_page_writes = off
shared_buffers = 32MB
max_connections = 80
max_worker_processes = 16
max_prepared_transactions = 10
max_wal_size = 1GB
checkpoint_timeout = 30min
jit = off
timezone = UTC
listen_addresses = '127.0.0.1'
log_line_prefix = '%m [%p] %d %a: '
";

pub struct Cluster {
    name: String,
    folder: PathBuf,
    port: Mutex<u16>,
    server: Mutex<Option<Child>>,
    /// By how many milliseconds the server's clock is wrong.
    clock: AtomicI64,
    /// Whether it starts as pg_upgrade starts a server.
    upgrading: AtomicBool,
}

#[derive(Clone, Copy, Debug)]
pub enum Stop {
    Smart,
    Fast,
    Immediate,
}

impl Cluster {
    /// A started cluster with these lines added to its configuration.
    pub fn start(name: &str, settings: &str) -> Cluster {
        let folder = scratch().new_folder(name);
        output(Command::new("cp").arg("-a").arg(scratch().template()).arg(folder.join("data")));
        give_identity(&folder.join("data"));
        let cluster = Cluster::in_folder(name, folder);
        cluster.configure(SETTINGS);
        cluster.configure(settings);
        cluster.settle_in();
        cluster
    }

    /// A copy of a running cluster's files, started: a standby of it, or a server that goes on by itself.
    pub fn copy_of(other: &Cluster, name: &str, standby: bool) -> Cluster {
        let folder = scratch().new_folder(name);
        let cluster = Cluster::in_folder(name, folder);
        cluster.fetch(other, standby);
        cluster.settle_in();
        cluster
    }

    fn in_folder(name: &str, folder: PathBuf) -> Cluster {
        let (port, server) = (Mutex::new(0), Mutex::new(None));
        Cluster { name: name.to_owned(), folder, port, server, clock: AtomicI64::new(0), upgrading: AtomicBool::new(false) }
    }

    /// In the place of this cluster, at its port, a copy of another one goes on.
    pub fn replace_by_copy_of(&self, other: &Cluster) {
        self.stop(Stop::Fast);
        std::fs::remove_dir_all(self.folder.join("data")).expect("the old data can be removed");
        self.fetch(other, false);
        self.settle_in();
    }

    fn fetch(&self, other: &Cluster, standby: bool) {
        let mut backup = scratch().server_command("pg_basebackup");
        backup.args(["-c", "fast", "-X", "stream", "--no-sync", "-d", &other.conninfo("postgres"), "-D"]);
        backup.arg(self.folder.join("data")).args(standby.then_some("-R"));
        output(&mut backup);
    }

    fn settle_in(&self) {
        self.configure(&format!("unix_socket_directories = '{}'", self.folder.display()));
        self.launch();
    }

    /// Makes a standby a server of its own.
    pub fn promote(&self) {
        self.sql("postgres", "SELECT pg_promote()");
    }

    /// Lines at the end of postgresql.conf; the last one of a name wins. In force from the next start or reload.
    pub fn configure(&self, lines: &str) {
        let path = self.folder.join("data/postgresql.conf");
        let mut file = std::fs::OpenOptions::new().append(true).open(&path).expect("postgresql.conf can be opened");
        writeln!(file, "{lines}").expect("postgresql.conf can be written");
    }

    /// Replaces pg_hba.conf and reloads.
    pub fn authenticate(&self, lines: &str) {
        std::fs::write(self.folder.join("data/pg_hba.conf"), format!("{lines}\n")).expect("pg_hba.conf can be written");
        self.signal("HUP");
    }

    /// Starts the server and waits for it; a port that somebody else took meanwhile is given up for the next one.
    pub fn launch(&self) {
        for _ in 0..20 {
            if self.port() == 0 {
                *self.port.lock().unwrap() = free_port();
            }
            if self.try_launch() {
                return;
            }
            *self.port.lock().unwrap() = 0;
        }
        panic!("cluster {} does not start:\n{}", self.name, self.log_tail(40));
    }

    fn try_launch(&self) -> bool {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log_path()).expect("the log opens");
        let mut postgres = self.command();
        postgres.arg("-D").arg(self.folder.join("data")).arg("-p").arg(self.port().to_string());
        postgres.args(self.upgrading.load(Ordering::Relaxed).then_some("-b"));
        postgres.stdout(log.try_clone().expect("the log opens twice")).stderr(log);
        let mut child = postgres.spawn().expect("postgres can be started");
        let mut gone = false;
        wait_until(&format!("cluster {} to accept connections", self.name), || {
            gone = matches!(child.try_wait(), Ok(Some(_)));
            // That it has no such database any more, or lets nobody in there, is an answer too.
            gone || self.try_connect("postgres").map_or_else(|e| matches!(e.sqlstate.as_str(), "3D000" | "55000"), |_| true)
        });
        if !gone {
            *self.server.lock().unwrap() = Some(child);
        }
        !gone
    }

    fn command(&self) -> Command {
        let clock = self.clock.load(Ordering::Relaxed);
        // A scenario's own library, that goes before those of the system.
        let preload = self.folder.join("preload.so");
        if preload.exists() {
            let mut env = scratch().server_command("/usr/bin/env");
            env.arg(format!("LD_PRELOAD={}", preload.display())).arg(scratch().bindir.join("postgres"));
            return env;
        }
        if clock == 0 {
            return scratch().server_command("postgres");
        }
        // A server's processes have one thread each, and look at the clock in signal handlers, too: the library for several
        // threads would wait there for a lock that the same process holds.
        let mut env = scratch().server_command("/usr/bin/env");
        env.arg("LD_PRELOAD=/usr/$LIB/faketime/libfaketime.so.1").arg(format!("FAKETIME={:+.3}", clock as f64 / 1000.0));
        env.args(["FAKETIME_DONT_FAKE_MONOTONIC=1", "FAKETIME_DISABLE_SHM=1", "NO_FAKE_STAT=1"]);
        env.arg(scratch().bindir.join("postgres"));
        env
    }

    /// Sets the clock of the server off, by libfaketime, from its next start on.
    pub fn set_clock_off(&self, milliseconds: i64) {
        self.clock.store(milliseconds, Ordering::Relaxed);
    }

    /// From its next start on it is a server as pg_upgrade starts it, or again as any other.
    pub fn set_upgrading(&self, upgrading: bool) {
        self.upgrading.store(upgrading, Ordering::Relaxed);
    }

    pub fn stop(&self, how: Stop) {
        self.begin_stop(how);
        self.await_stop();
    }

    pub fn begin_stop(&self, how: Stop) {
        self.signal(match how {
            Stop::Smart => "TERM",
            Stop::Fast => "INT",
            Stop::Immediate => "QUIT",
        });
    }

    pub fn await_stop(&self) {
        let Some(mut child) = self.server.lock().unwrap().take() else { return };
        wait_until(&format!("cluster {} to stop", self.name), || !matches!(child.try_wait(), Ok(None)));
    }

    pub fn restart(&self, how: Stop) {
        self.stop(how);
        self.launch();
    }

    /// The pid of the server's process with that title, as for one that stands in no view.
    pub fn process(&self, title: &str) -> Option<i32> {
        let server = self.server.lock().unwrap().as_ref().map(|child| child.id().to_string())?;
        let found = Command::new("pgrep").args(["-P", &server, "-f", title]).output().expect("pgrep can be run");
        String::from_utf8_lossy(&found.stdout).lines().next()?.parse().ok()
    }

    /// Sends the postmaster a signal, by the pid of our own child.
    pub fn signal(&self, signal: &str) {
        if let Some(child) = self.server.lock().unwrap().as_ref() {
            kill(signal, child.id() as i32);
        }
    }

    /// Stops every process of the server where it stands: its machine takes connections, and nobody answers.
    pub fn freeze(&self) {
        // The postmaster first, so that none is started meanwhile.
        self.signal("STOP");
        self.children().iter().for_each(|pid| kill("STOP", *pid));
    }

    pub fn thaw(&self) {
        self.children().iter().for_each(|pid| kill("CONT", *pid));
        self.signal("CONT");
    }

    fn children(&self) -> Vec<i32> {
        let Some(server) = self.server.lock().unwrap_or_else(|e| e.into_inner()).as_ref().map(|child| child.id().to_string())
        else {
            return vec![];
        };
        let found = Command::new("pgrep").args(["-P", &server]).output().expect("pgrep can be run");
        String::from_utf8_lossy(&found.stdout).lines().filter_map(|pid| pid.parse().ok()).collect()
    }

    pub fn port(&self) -> u16 {
        *self.port.lock().unwrap()
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Over the unix socket, as the superuser.
    pub fn conninfo(&self, db: &str) -> String {
        format!("host={} port={} dbname={db} user=postgres", self.folder.display(), self.port())
    }

    pub fn try_connect(&self, db: &str) -> Result<Conn, PgError> {
        Conn::open(&self.folder, self.port(), db, "postgres")
    }

    #[track_caller]
    pub fn connect(&self, db: &str) -> Conn {
        self.connect_as(db, "postgres")
    }

    #[track_caller]
    pub fn connect_as(&self, db: &str, user: &str) -> Conn {
        match Conn::open(&self.folder, self.port(), db, user) {
            Ok(conn) => conn,
            Err(error) => panic!("cannot connect to {db} on cluster {}:\n{error}", self.name),
        }
    }

    /// As an application that sets nothing: the database's own DateStyle and so on.
    #[track_caller]
    pub fn connect_raw(&self, db: &str) -> Conn {
        Conn::open_with(&self.folder, self.port(), db, "postgres", "").unwrap_or_else(|error| panic!("{db}: {error}"))
    }

    #[track_caller]
    pub fn sql(&self, db: &str, sql: &str) -> Vec<Row> {
        self.connect(db).query(sql)
    }

    pub fn create_database(&self, db: &str, options: &str) {
        self.sql("postgres", &format!("CREATE DATABASE {db} {options}"));
    }

    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// How often the server started anew because a process of it died: must stay 0 unless a scenario kills one.
    pub fn crash_restarts(&self) -> usize {
        self.log().matches("all server processes terminated; reinitializing").count()
    }

    fn log_path(&self) -> PathBuf {
        self.folder.join("log")
    }

    fn log_tail(&self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.thaw();
        self.begin_stop(Stop::Immediate);
        if let Some(mut child) = self.server.lock().unwrap_or_else(|e| e.into_inner()).take() {
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("---- end of the log of cluster {} (kept until the next run in {}):", self.name, self.folder.display());
            eprintln!("{}", self.log_tail(60));
            let _ = std::fs::write(self.folder.join("KEPT"), "");
        } else {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}

/// All clusters come from one template; as servers that were made each for itself they need system identifiers of their
/// own. That is the first number of pg_control, whose checksum stands behind what it covers; the log is made anew for it.
fn give_identity(data: &Path) {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let path = data.join("global/pg_control");
    let mut bytes = std::fs::read(&path).expect("pg_control can be read");
    let stored = |n: usize| u32::from_le_bytes(bytes[n..n + 4].try_into().unwrap());
    let end = (8..1024).step_by(4).find(|n| crc32c(&bytes[..*n]) == stored(*n)).expect("pg_control has its checksum");
    let number = u64::from_le_bytes(bytes[..8].try_into().unwrap()) + u64::from(NEXT.fetch_add(1, Ordering::Relaxed));
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    let crc = crc32c(&bytes[..end]);
    bytes[end..end + 4].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(&path, bytes).expect("pg_control can be written");
    output(scratch().server_command("pg_resetwal").arg("-D").arg(data));
}

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc: u32, _| (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}

/// Sends one process a signal; one that is gone already is no error.
pub fn kill(signal: &str, pid: i32) {
    let _ = Command::new("kill").arg(format!("-{signal}")).arg(pid.to_string()).output();
}

/// Below the range from which outgoing connections are given their ports, so that it stays free until we take it.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() % 1_000) as u16 * 9;
    for _ in 0..2_000 {
        let port = 21_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 11_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port on 127.0.0.1");
}
