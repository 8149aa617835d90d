//! The hosts of a conninfo, one by one. libpq's time for each host is kept by its blocking loop only, so a silent first host
//! would keep the non-blocking one from ever reaching the second. What libpq alone can judge (a service file, lists
//! that do not match) is handed to it as it is. Pure; must never connect or wait.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use super::conninfo::Conninfo;

/// The keywords whose values are lists, entry by entry of the same host.
const LISTS: [&str; 3] = ["host", "hostaddr", "port"];
/// What libpq takes a shorter connect_timeout for.
const SHORTEST: u64 = 2;

/// The options of one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    pub options: Vec<(String, String)>,
    /// Whether it is for another address of the same name as the attempt before.
    pub further_address: bool,
}

impl Attempt {
    pub fn get(&self, keyword: &str) -> Option<&str> {
        self.options.iter().find(|(k, _)| k == keyword).map(|(_, v)| v.as_str()).filter(|v| !v.is_empty())
    }

    pub fn set(&mut self, keyword: &str, value: &str) {
        self.options.retain(|(k, _)| k != keyword);
        if !value.is_empty() {
            self.options.push((keyword.into(), value.into()));
        }
    }

    /// The name that must be looked up before: neither an address nor the folder of a socket.
    pub fn name_to_resolve(&self) -> Option<&str> {
        let host = self.get("host")?;
        let is_name = !host.starts_with(['/', '@']) && host.parse::<std::net::IpAddr>().is_err();
        // Lists that libpq is to judge are none.
        (is_name && !host.contains(',') && self.get("hostaddr").is_none()).then_some(host)
    }
}

/// The attempts to make, in their order. One that fails in any way is followed by the next: which of the servers is meant
/// is what `target_session_attrs` tells.
pub fn attempts(info: &Conninfo) -> VecDeque<Attempt> {
    let whole = Attempt { options: info.options.clone(), further_address: false };
    let list = |keyword: &str| whole.get(keyword).map(|v| v.split(',').collect::<Vec<_>>());
    let [hosts, addresses, ports] = LISTS.map(list);
    let count = addresses.as_ref().or(hosts.as_ref()).map_or(1, Vec::len);
    let fits = |list: &Option<Vec<&str>>| list.as_ref().is_none_or(|l| l.len() == count);
    let one_port = ports.as_ref().is_some_and(|p| p.len() == 1);
    if count == 1 || !fits(&hosts) || !(one_port || fits(&ports)) {
        return VecDeque::from([whole]);
    }
    let mut single: Vec<Attempt> = (0..count)
        .map(|i| {
            let mut attempt = whole.clone();
            for (keyword, list) in LISTS.iter().zip([&hosts, &addresses, &ports]) {
                let entry = list.as_ref().and_then(|l| l.get(i).or(l.first()));
                attempt.set(keyword, entry.copied().unwrap_or_default());
            }
            attempt
        })
        .collect();
    if whole.get("load_balance_hosts") == Some("random") {
        let random = RandomState::new();
        single.sort_by_cached_key(|attempt| random.hash_one(attempt.get("host").or(attempt.get("hostaddr")).unwrap_or("")));
    }
    if whole.get("target_session_attrs") != Some("prefer-standby") {
        return single.into();
    }
    // Any standby of all of them goes before any other server.
    let with = |attrs: &'static str| {
        single.iter().cloned().map(move |mut attempt| {
            attempt.set("target_session_attrs", attrs);
            attempt
        })
    };
    with("standby").chain(with("any")).collect()
}

/// The conninfo's own time for each host and address.
pub fn time_for_each(info: &Conninfo) -> Option<Duration> {
    let seconds: u64 = info.get("connect_timeout")?.trim().parse().ok().filter(|s| *s > 0)?;
    Some(Duration::from_secs(seconds.max(SHORTEST)))
}

#[cfg(test)]
mod tests {
    use super::{Attempt, attempts, time_for_each};
    use crate::libpq::Conninfo;

    fn info(options: &[(&str, &str)]) -> Conninfo {
        Conninfo { options: options.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect() }
    }

    fn places(options: &[(&str, &str)]) -> Vec<String> {
        let place = |a: &Attempt| ["host", "hostaddr", "port"].map(|k| a.get(k).unwrap_or("-").to_string()).join(" ");
        attempts(&info(options)).iter().map(place).collect()
    }

    #[test]
    fn each_host_goes_with_its_address_and_port() {
        assert_eq!(places(&[("host", "a,b")]), ["a - -", "b - -"]);
        assert_eq!(places(&[("host", "a,b"), ("port", "7")]), ["a - 7", "b - 7"]);
        assert_eq!(places(&[("host", "a,b"), ("port", "7,8")]), ["a - 7", "b - 8"]);
        assert_eq!(places(&[("host", "a,b"), ("port", "7,")]), ["a - 7", "b - -"]);
        assert_eq!(places(&[("hostaddr", "::1,10.0.0.1"), ("host", "a,b")]), ["a ::1 -", "b 10.0.0.1 -"]);
        assert_eq!(places(&[("hostaddr", "::1,10.0.0.1"), ("port", "7")]), ["- ::1 7", "- 10.0.0.1 7"]);
    }

    #[test]
    fn what_is_no_list_of_hosts_is_left_to_libpq() {
        for whole in [
            &[("dbname", "x")][..],
            &[("host", "a")],
            &[("service", "s")],
            &[("host", "a,b"), ("port", "1,2,3")],
            &[("host", "a,b,c"), ("hostaddr", "::1,::2")],
            &[("port", "1,2")],
        ] {
            let attempts = attempts(&info(whole));
            assert_eq!(attempts.len(), 1, "{whole:?}");
            assert_eq!(attempts[0].options, info(whole).options);
        }
    }

    #[test]
    fn a_standby_is_preferred_to_all_others() {
        let all = attempts(&info(&[("host", "a,b"), ("target_session_attrs", "prefer-standby")]));
        let got: Vec<_> = all.iter().map(|a| (a.get("host").unwrap(), a.get("target_session_attrs").unwrap())).collect();
        assert_eq!(got, [("a", "standby"), ("b", "standby"), ("a", "any"), ("b", "any")]);
        let all = attempts(&info(&[("host", "a,b"), ("target_session_attrs", "read-write")]));
        assert!(all.iter().all(|a| a.get("target_session_attrs") == Some("read-write")));
    }

    #[test]
    fn only_names_are_looked_up() {
        let name = |options: &[(&str, &str)]| attempts(&info(options))[0].name_to_resolve().map(str::to_string);
        assert_eq!(name(&[("host", "db.example")]).as_deref(), Some("db.example"));
        for none in ["/run", "@abstract", "10.0.0.1", "::1", ""] {
            assert_eq!(name(&[("host", none)]), None, "{none}");
        }
        assert_eq!(name(&[("host", "a"), ("hostaddr", "10.0.0.1")]), None);
        assert_eq!(name(&[("service", "s")]), None);
    }

    #[test]
    fn the_time_for_each_host_is_read_as_libpq_reads_it() {
        let seconds = |text: &str| time_for_each(&info(&[("connect_timeout", text)])).map(|d| d.as_secs());
        assert_eq!(["30", "1", "0", "-1", ""].map(seconds), [Some(30), Some(2), None, None, None]);
        assert_eq!(time_for_each(&info(&[])), None);
    }
}
