//! The conflict matrix: every combination of nothing, insert, update, delete on three sources (64), in each of the six
//! orders of their commits, once with the row there before and once without: 768 keys, decided in one run.
//!
//! An oracle of a few lines says for each key what every member must hold and what must be recorded; it knows the rules
//! of INTERFACE and nothing of how they are implemented.

use super::{Clock, Multi, Plan, SOURCES};
use crate::net::Capture;
use std::collections::BTreeMap;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Op {
    Nothing,
    Insert,
    Update,
    Delete,
}

const OPS: [Op; 4] = [Op::Nothing, Op::Insert, Op::Update, Op::Delete];
const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

/// What happens to one key.
struct Case {
    id: usize,
    ops: [Op; 3],
    order: [usize; 3],
    /// The row is there before, everywhere.
    before: bool,
}

/// Who wins among these, which come in the order of their commits; `None`: nobody.
type Judge = fn(&[usize]) -> Option<usize>;

impl Case {
    fn all() -> Vec<Case> {
        let mut cases = vec![];
        for before in [true, false] {
            for order in ORDERS {
                for combination in 0..64 {
                    let ops = [OPS[combination % 4], OPS[combination / 4 % 4], OPS[combination / 16]];
                    cases.push(Case { id: cases.len() + 1, ops, order, before });
                }
            }
        }
        cases
    }

    fn statements(&self, source: usize) -> Vec<String> {
        let (id, name) = (self.id, SOURCES[source]);
        let insert = format!("INSERT INTO t VALUES ({id}, '{name} insert')");
        let update = format!("UPDATE t SET val = '{name} update' WHERE id = {id}");
        let delete = format!("DELETE FROM t WHERE id = {id}");
        match (self.ops[source], self.before) {
            (Op::Nothing, _) => vec![],
            (Op::Insert, true) => vec![delete, insert],
            (Op::Insert, false) => vec![insert],
            (Op::Update, true) => vec![update],
            (Op::Update, false) => vec![insert, update],
            (Op::Delete, true) => vec![delete],
            (Op::Delete, false) => vec![insert, delete],
        }
    }

    fn start(&self) -> Option<String> {
        self.before.then(|| "start".to_owned())
    }

    /// What that source holds before the run.
    fn own(&self, source: usize) -> Option<String> {
        match self.ops[source] {
            Op::Nothing => self.start(),
            Op::Insert => Some(format!("{} insert", SOURCES[source])),
            Op::Update => Some(format!("{} update", SOURCES[source])),
            Op::Delete => None,
        }
    }

    fn contenders(&self) -> Vec<usize> {
        self.order.into_iter().filter(|s| self.ops[*s] != Op::Nothing).collect()
    }

    fn conflict(&self) -> bool {
        let contenders = self.contenders();
        contenders.len() > 1 && contenders.iter().any(|s| self.ops[*s] != Op::Delete)
    }

    /// What that member (the target comes after the sources) holds after the run.
    fn expected(&self, member: usize, judge: Judge) -> Option<String> {
        let contenders = self.contenders();
        let Some(first) = contenders.first() else { return self.start() };
        if !self.conflict() {
            return self.own(*first);
        }
        match judge(&contenders) {
            Some(winner) => self.own(winner),
            None if contenders.contains(&member) => self.own(member),
            None => self.start(),
        }
    }

    fn record(&self, judge: Judge) -> String {
        let mut contenders = self.contenders();
        let winner = judge(&contenders).map_or("-", |s| SOURCES[s]);
        contenders.sort_unstable();
        let row = |s: &usize| match self.own(*s) {
            Some(val) => format!("\"{}\": {{\"id\": {}, \"val\": \"{val}\"}}", SOURCES[*s], self.id),
            None => format!("\"{}\": null", SOURCES[*s]),
        };
        let rows: Vec<String> = contenders.iter().map(row).collect();
        format!("{winner} {{{}}}", rows.join(", "))
    }

    fn words(&self) -> String {
        let word = |op| match op {
            Op::Nothing => "nothing",
            Op::Insert => "insert",
            Op::Update => "update",
            Op::Delete => "delete",
        };
        let order = self.order.map(|s| format!("{} {}", SOURCES[s], word(self.ops[s]))).join(", ");
        format!("key {} (row there before: {}): {order}", self.id, self.before)
    }
}

fn rows_of(m: &Multi, member: &str) -> BTreeMap<usize, String> {
    let rows = m.on(member).query("SELECT id, val FROM t");
    rows.into_iter().map(|row| (row[0].as_ref().unwrap().parse().unwrap(), row[1].clone().unwrap())).collect()
}

fn records(m: &Multi) -> BTreeMap<usize, Vec<String>> {
    let sql =
        "SELECT key->>'id', coalesce(winner, '-') || ' ' || rows FROM bucardo.conflict WHERE relation = 'public.t' ORDER BY id";
    let mut found: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for row in m.control().query(sql) {
        found.entry(row[0].as_ref().unwrap().parse().unwrap()).or_default().push(row[1].clone().unwrap());
    }
    found
}

fn make_changes(m: &Multi, cases: &[Case]) {
    let mut writers = m.writers();
    for case in cases {
        for source in case.order {
            case.statements(source).iter().for_each(|sql| writers[source].exec(sql));
        }
    }
}

fn judge_all(m: &Multi, cases: &[Case], judge: Judge) {
    let mut faults = vec![];
    for (number, member) in m.names().into_iter().enumerate() {
        let rows = rows_of(m, member);
        for case in cases {
            let (wanted, seen) = (case.expected(number, judge), rows.get(&case.id).cloned());
            if wanted != seen {
                faults.push(format!("{}\n   {member} holds {seen:?}, should hold {wanted:?}", case.words()));
            }
        }
    }
    let recorded = records(m);
    for case in cases {
        let wanted = if case.conflict() { vec![case.record(judge)] } else { vec![] };
        let seen = recorded.get(&case.id).cloned().unwrap_or_default();
        if wanted != seen {
            faults.push(format!("{}\n   recorded {seen:?}\n   should be {wanted:?}", case.words()));
        }
    }
    let shown: Vec<&str> = faults.iter().take(10).map(String::as_str).collect();
    assert!(faults.is_empty(), "{} faults, the first ones:\n{}\n{}", faults.len(), shown.join("\n"), m.report());
}

fn matrix(plan: Plan, dbs: &str, strategy: &str, judge: Judge) {
    let m = plan.start();
    let cases = Case::all();
    m.everywhere("CREATE TABLE t (id int PRIMARY KEY, val text)");
    for case in cases.iter().filter(|case| case.before).map(|case| case.id).collect::<Vec<_>>().chunks(400) {
        let values: Vec<String> = case.iter().map(|id| format!("({id}, 'start')")).collect();
        m.everywhere(&format!("INSERT INTO t VALUES {}", values.join(", ")));
    }
    m.sync_over(dbs, &format!("tables => 'public.t', autokick => false, conflict_strategy => '{strategy}'"));
    make_changes(&m, &cases);
    assert_eq!(m.kick(), "good");
    judge_all(&m, &cases, judge);
    let conflicts = cases.iter().filter(|case| case.conflict()).count() as i64;
    assert_eq!(m.counted(), conflicts, "syncrun.conflicts");
    let status = "SELECT conflicts FROM bucardo.status WHERE sync = 's'";
    assert_eq!(m.control().number(status), conflicts, "status.conflicts");
    assert_eq!(m.kick(), "empty", "a decision is made once");
    assert_eq!(m.pending(), 0);
    judge_all(&m, &cases, judge);
}

const FORWARD: &str = "A:source,B:source,C:source,T:target";
const BACKWARD: &str = "C:source,B:source,A:source,T:target";

fn last(contenders: &[usize]) -> Option<usize> {
    contenders.last().copied()
}

fn alphabetic_first(contenders: &[usize]) -> Option<usize> {
    contenders.iter().min().copied()
}

fn alphabetic_last(contenders: &[usize]) -> Option<usize> {
    contenders.iter().max().copied()
}

fn nobody(_: &[usize]) -> Option<usize> {
    None
}

/// C, then A, then B.
fn by_list(contenders: &[usize]) -> Option<usize> {
    [2, 0, 1].into_iter().find(|s| contenders.contains(s))
}

#[test]
fn latest_by_commit_time() {
    matrix(Plan::new(3).capture(Capture::Native), FORWARD, "bucardo_latest", last);
}

#[test]
fn latest_by_commit_time_listed_backward() {
    matrix(Plan::new(3).capture(Capture::Plain), BACKWARD, "bucardo_latest", last);
}

#[test]
fn latest_by_the_time_of_the_change() {
    matrix(Plan::new(3).clock(Clock::Statement).capture(Capture::Plain), FORWARD, "bucardo_latest", last);
}

#[test]
fn latest_by_the_time_of_the_change_native_and_listed_backward() {
    matrix(Plan::new(3).clock(Clock::Statement).capture(Capture::Native), BACKWARD, "bucardo_latest", last);
}

#[test]
fn source() {
    matrix(Plan::new(3), FORWARD, "bucardo_source", alphabetic_first);
}

#[test]
fn source_listed_backward() {
    matrix(Plan::new(3), BACKWARD, "bucardo_source", alphabetic_last);
}

#[test]
fn target() {
    matrix(Plan::new(3), FORWARD, "bucardo_target", alphabetic_last);
}

#[test]
fn target_listed_backward() {
    matrix(Plan::new(3), BACKWARD, "bucardo_target", alphabetic_first);
}

#[test]
fn skip() {
    matrix(Plan::new(3), FORWARD, "bucardo_skip", nobody);
}

#[test]
fn a_list_of_names() {
    matrix(Plan::new(3), FORWARD, "C A B", by_list);
}
