//! A network that can fail: a unix socket in front of a server's, through which a member is reached.
//!
//! It can be cut (live connections break, new ones are refused) and stalled (nothing moves, nothing breaks), while the
//! application's own connections go straight to the server. It must never touch what passes through it.

use crate::cluster::Cluster;
use crate::scratch::scratch;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const OPEN: u8 = 0;
const CUT: u8 = 1;
const STALLED: u8 = 2;
const OVER: u8 = 3;

pub struct Proxy {
    folder: PathBuf,
    port: u16,
    line: Arc<Line>,
}

struct Line {
    mode: AtomicU8,
    server: PathBuf,
    /// Both ends of each connection that lives, by its number.
    live: Mutex<HashMap<usize, [UnixStream; 2]>>,
    count: AtomicUsize,
    refused: AtomicUsize,
}

fn socket(folder: &Path, port: u16) -> PathBuf {
    folder.join(format!(".s.PGSQL.{port}"))
}

impl Proxy {
    pub fn to(cluster: &Cluster) -> Proxy {
        let (folder, port) = (scratch().new_folder("net"), cluster.port());
        let path = socket(&folder, port);
        let listener = UnixListener::bind(&path).expect("the proxy's socket can be made");
        // The servers run as another user when this process is root.
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).expect("the socket is ours");
        let (mode, live, count) = (AtomicU8::new(OPEN), Mutex::default(), AtomicUsize::new(0));
        let line = Line { mode, server: socket(cluster.folder(), port), live, count, refused: AtomicUsize::new(0) };
        let proxy = Proxy { folder, port, line: Arc::new(line) };
        let line = proxy.line.clone();
        std::thread::spawn(move || accept(&listener, &line));
        proxy
    }

    /// For `Conn::open`: where a client finds us.
    pub fn address(&self) -> (&Path, u16) {
        (&self.folder, self.port)
    }

    /// As `Cluster::conninfo`, but by this way.
    pub fn conninfo(&self, db: &str) -> String {
        format!("host={} port={} dbname={db} user=postgres", self.folder.display(), self.port)
    }

    pub fn cut(&self) {
        self.line.mode.store(CUT, Ordering::SeqCst);
        self.line.hang_up();
    }

    /// How many connections were refused while it was cut.
    pub fn refused(&self) -> usize {
        self.line.refused.load(Ordering::SeqCst)
    }

    pub fn stall(&self) {
        self.line.mode.store(STALLED, Ordering::SeqCst);
    }

    pub fn heal(&self) {
        self.line.mode.store(OPEN, Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.line.mode.store(OVER, Ordering::SeqCst);
        self.line.hang_up();
        // Whoever accepts wakes up and sees that it is over.
        let _ = UnixStream::connect(socket(&self.folder, self.port));
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Line {
    fn mode(&self) -> u8 {
        self.mode.load(Ordering::SeqCst)
    }

    fn hang_up(&self) {
        for (_, ends) in self.live.lock().unwrap_or_else(|e| e.into_inner()).drain() {
            ends.iter().for_each(|end| drop(end.shutdown(Shutdown::Both)));
        }
    }
}

fn accept(listener: &UnixListener, line: &Arc<Line>) {
    while let Ok((client, _)) = listener.accept() {
        match line.mode() {
            OVER => return,
            CUT => _ = line.refused.fetch_add(1, Ordering::SeqCst),
            _ => drop(connect(client, line)),
        }
    }
}

fn connect(client: UnixStream, line: &Arc<Line>) -> std::io::Result<()> {
    let server = UnixStream::connect(&line.server)?;
    let pairs = [(client.try_clone()?, server.try_clone()?), (server.try_clone()?, client.try_clone()?)];
    let number = line.count.fetch_add(1, Ordering::SeqCst);
    line.live.lock().unwrap().insert(number, [client, server]);
    // A cut between the look at the mode and this moment must not miss us.
    if line.mode() == CUT {
        line.hang_up();
    }
    for (from, to) in pairs {
        let line = line.clone();
        std::thread::spawn(move || {
            pump(from, to, &line);
            line.live.lock().unwrap().remove(&number);
        });
    }
    Ok(())
}

fn pump(mut from: UnixStream, mut to: UnixStream, line: &Line) {
    let mut buffer = vec![0_u8; 16_384];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        while line.mode() == STALLED {
            std::thread::sleep(Duration::from_millis(5));
        }
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
