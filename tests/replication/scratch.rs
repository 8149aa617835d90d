//! The scratch folder of one run of the suite, the user the servers run as, and the template they are copied from.
//!
//! It stands below everything: `cluster` asks it for folders. It must never leave a server or a folder behind, however
//! this process ends: a small shell process holds the other end of a pipe, and cleans up when the pipe closes.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

const PREFIX: &str = "bucardo-test-";

/// Stops every server below the folder given, then removes the folder except for clusters marked to be kept.
const SWEEPER: &str = r#"
trap '' INT TERM HUP
cat >/dev/null
for pidfile in "$0"/*/data/postmaster.pid; do
    [ -f "$pidfile" ] && kill -QUIT "$(head -n 1 "$pidfile")" 2>/dev/null
done
tries=0
while [ "$tries" -lt 100 ] && ls "$0"/*/data/postmaster.pid >/dev/null 2>&1; do sleep 0.05; tries=$((tries + 1)); done
for folder in "$0"/*; do [ -e "$folder/KEPT" ] || rm -rf "$folder"; done
rmdir "$0" 2>/dev/null || true
"#;

/// What all clusters of this run share.
pub struct Scratch {
    pub root: PathBuf,
    pub bindir: PathBuf,
    /// The unprivileged user to run servers as, when this process is root (which the server refuses).
    pub run_as: Option<String>,
    count: AtomicU32,
}

pub fn scratch() -> &'static Scratch {
    static SCRATCH: OnceLock<Scratch> = OnceLock::new();
    SCRATCH.get_or_init(Scratch::create)
}

impl Scratch {
    fn create() -> Scratch {
        let pg_config = std::env::var("PGRX_PG_CONFIG_PATH")
            .or_else(|_| std::env::var("PG_CONFIG"))
            .unwrap_or_else(|_| "pg_config".to_owned());
        let bindir = PathBuf::from(output(Command::new(pg_config).arg("--bindir")));
        let run_as = (output(Command::new("id").arg("-u")) == "0")
            .then(|| std::env::var("BUCARDO_TEST_USER").unwrap_or_else(|_| "postgres".to_owned()));
        let parent = std::env::temp_dir();
        sweep_dead_runs(&parent);
        let root = parent.join(format!("{PREFIX}{}", std::process::id()));
        let scratch = Scratch { root, bindir, run_as, count: AtomicU32::new(0) };
        scratch.make_folder(&scratch.root);
        scratch.watch();
        scratch.make_template();
        scratch
    }

    /// A new folder of its own, owned by the user who runs the servers. The name is short: a unix socket lives in it.
    pub fn new_folder(&self, name: &str) -> PathBuf {
        let folder = self.root.join(format!("{}-{name}", self.count.fetch_add(1, Ordering::Relaxed)));
        self.make_folder(&folder);
        folder
    }

    fn make_folder(&self, folder: &Path) {
        let mut install = Command::new("install");
        install.args(["-d", "-m", "755"]);
        if let Some(user) = &self.run_as {
            install.args(["-o", user]);
        }
        output(install.arg(folder));
    }

    /// A command of the server's installation, run as the unprivileged user, deaf to the terminal's Ctrl-C.
    pub fn server_command(&self, program: &str) -> Command {
        let program = self.bindir.join(program);
        let mut command = match &self.run_as {
            None => Command::new(program),
            Some(user) => {
                let mut setpriv = Command::new("setpriv");
                setpriv.args(["--reuid", user, "--regid", user, "--init-groups"]).arg(program);
                setpriv
            }
        };
        command.env_remove("PGOPTIONS").env("LC_ALL", "C").stdin(Stdio::null()).current_dir(&self.root).process_group(0);
        command
    }

    pub fn template(&self) -> PathBuf {
        self.root.join("template/data")
    }

    fn make_template(&self) {
        self.make_folder(&self.root.join("template"));
        let mut initdb = self.server_command("initdb");
        initdb.args(["-D".as_ref(), self.template().as_os_str()]);
        initdb.args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync", "--wal-segsize=4"]);
        output(&mut initdb);
    }

    #[expect(clippy::zombie_processes, reason = "it outlives this process on purpose, and then ends by itself")]
    fn watch(&self) {
        let mut sweeper = Command::new("sh")
            .args(["-c", SWEEPER])
            .arg(&self.root)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("sh can be started");
        // Held open until this process is gone, in whichever way.
        std::mem::forget(sweeper.stdin.take());
    }
}

/// Folders kept by an earlier run that failed.
fn sweep_dead_runs(parent: &Path) {
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(pid) = name.strip_prefix(PREFIX) else { continue };
        if pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists() {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Runs a command that must succeed; its standard output, trimmed.
#[track_caller]
pub fn output(command: &mut Command) -> String {
    let done = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{command:?} failed ({}):\n{said}", done.status);
    String::from_utf8_lossy(&done.stdout).trim().to_owned()
}
