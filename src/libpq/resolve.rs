//! Host names become addresses in a thread: a resolver that hangs must stop nobody. libpq would ask it in the middle of
//! the master's loop. A thread must never touch anything of the server; one that hangs is left alone, and whoever
//! wants the same name meanwhile waits for the same thread.

use std::collections::HashMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, MutexGuard};

use super::cancel::without_signals;

/// What the resolver says: the addresses, or its own words.
pub type Answer = Result<Vec<String>, String>;
type Place = Arc<Mutex<Option<Answer>>>;

/// The names that are being looked up by this process.
static RUNNING: Mutex<Option<HashMap<String, Place>>> = Mutex::new(None);

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A look-up that may have been answered.
pub struct Lookup(Place);

impl Lookup {
    pub fn start(host: &str) -> Self {
        Self::start_with(host, addresses)
    }

    fn start_with(host: &str, ask: fn(&str) -> Answer) -> Self {
        let mut running = lock(&RUNNING);
        let running = running.get_or_insert_default();
        if let Some(place) = running.get(host) {
            return Self(place.clone());
        }
        let place = Place::default();
        let (name, answer) = (host.to_string(), place.clone());
        let look = move || {
            let said = ask(&name);
            if let Some(running) = lock(&RUNNING).as_mut() {
                running.remove(&name);
            }
            *lock(&answer) = Some(said);
        };
        running.insert(host.to_string(), place.clone());
        let mut failed = None;
        without_signals(|| failed = std::thread::Builder::new().spawn(look).err());
        if let Some(error) = failed {
            running.remove(host);
            *lock(&place) = Some(Err(error.to_string()));
        }
        Self(place)
    }

    /// The answer, once it is there. Never waits.
    pub fn answer(&self) -> Option<Answer> {
        lock(&self.0).clone()
    }
}

/// Asks the resolver, for as long as it takes.
fn addresses(host: &str) -> Answer {
    let found = (host, 0).to_socket_addrs().map_err(|error| {
        let text = error.to_string();
        text.strip_prefix("failed to lookup address information: ").unwrap_or(&text).to_string()
    })?;
    let mut all: Vec<String> = Vec::new();
    for text in found.map(|address| text(&address)) {
        if !all.contains(&text) {
            all.push(text);
        }
    }
    Ok(all)
}

/// An address as `hostaddr` takes it; a link-local one is nothing without its interface.
fn text(address: &SocketAddr) -> String {
    match address {
        SocketAddr::V6(v6) if v6.scope_id() != 0 => format!("{}%{}", v6.ip(), v6.scope_id()),
        other => other.ip().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::sync::{Arc, Mutex};

    use super::{Answer, Lookup, addresses, text};

    fn wait(lookup: &Lookup) -> Answer {
        loop {
            match lookup.answer() {
                Some(answer) => return answer,
                None => std::thread::yield_now(),
            }
        }
    }

    #[test]
    fn a_name_is_looked_up_by_one_thread_at_a_time() {
        static ASKED: AtomicUsize = AtomicUsize::new(0);
        static GATE: Mutex<Option<mpsc::Receiver<()>>> = Mutex::new(None);
        let (open, gate) = mpsc::channel();
        *GATE.lock().unwrap() = Some(gate);
        fn hang(_: &str) -> Answer {
            ASKED.fetch_add(1, Ordering::SeqCst);
            GATE.lock().unwrap().as_ref().unwrap().recv().unwrap();
            Ok(vec!["10.0.0.1".into()])
        }
        let first = Lookup::start_with("hanging.test", hang);
        let second = Lookup::start_with("hanging.test", hang);
        assert!(first.answer().is_none() && second.answer().is_none());
        assert!(Arc::ptr_eq(&first.0, &second.0));
        open.send(()).unwrap();
        assert_eq!(wait(&first), Ok(vec!["10.0.0.1".to_string()]));
        assert_eq!(wait(&second), Ok(vec!["10.0.0.1".to_string()]));
        assert_eq!(ASKED.load(Ordering::SeqCst), 1);
        // Afterwards it is asked again.
        open.send(()).unwrap();
        assert!(wait(&Lookup::start_with("hanging.test", hang)).is_ok());
        assert_eq!(ASKED.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn addresses_are_written_as_libpq_takes_them() {
        assert_eq!(addresses("127.0.0.1"), Ok(vec!["127.0.0.1".to_string()]));
        assert_eq!(text(&"10.0.0.1:0".parse().unwrap()), "10.0.0.1");
        assert_eq!(text(&"[::1]:0".parse().unwrap()), "::1");
        let local = std::net::SocketAddrV6::new("fe80::1".parse().unwrap(), 0, 0, 3);
        assert_eq!(text(&local.into()), "fe80::1%3");
    }
}
