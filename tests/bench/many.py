"""How the cost grows with tables and syncs: a sync of 1,000 tables of which one changed, and 100 syncs on four kids."""

import itertools
import statistics
import time

from common import kick, orders, timed, until

RUNS = "SELECT extract(epoch FROM ended - started) * 1000 FROM bucardo.syncrun WHERE state = 'good' ORDER BY run DESC LIMIT {}"


def make_tables(bench, server, db, count):
    """Tables t1, t2, … in transactions of a hundred, because each takes locks."""
    conn = server.connect(db)
    for first in range(1, count + 1, 100):
        names = range(first, min(first + 100, count + 1))
        conn.run("".join(f"CREATE TABLE t{n} (id int PRIMARY KEY, a int NOT NULL, v text);" for n in names))
    conn.close()


class OneChanged:
    """A sync of `count` tables, the first of which gets a row now and then."""

    def __init__(self, bench, count):
        self.bench, self.names = bench, (f"source{count}", f"target{count}")
        for server, db in zip((bench.one, bench.two), self.names):
            server.create_database(db)
            make_tables(bench, server, db, count)
        self.control = bench.sync(self.names[0], ("A", bench.one, self.names[0]), [("B", bench.two, self.names[1])])
        self.source, self.target = bench.one.connect(self.names[0]), bench.two.connect(self.names[1])
        self.numbers = itertools.count()
        self.runs, self.waits = [], []

    def turn(self, samples):
        """Keeps the medians of so many rows: of the time of a run, and of the time until the row is visible there."""
        # The first ones find what the other's turn has left in the caches, and do not count.
        waits = [self._wait(n) for n in itertools.islice(self.numbers, samples + 5)]
        self.waits.append(statistics.median(waits[5:]))
        self.runs.append(statistics.median(float(row[0]) for row in self.control.rows(RUNS.format(samples))))

    def _wait(self, n):
        self.source.run(f"INSERT INTO t1 VALUES ({n}, 0, 'x')")
        wait = timed(lambda: until(lambda: self.target.rows(f"SELECT 1 FROM t1 WHERE id = {n}"))) * 1000
        kick(self.control)
        time.sleep(0.02)
        return wait

    def close(self):
        self.bench.equal(self.source, [self.target], "t1")
        for conn in (self.control, self.source, self.target):
            conn.close()
        self.bench.drop(*self.names)


def thousand_tables(bench):
    """A sync of 1,000 tables, one changed, against a sync of one table, in turns: the time of a run."""
    count, samples = bench.rows(1_000, 5), max(2, bench.rows(50, 5) // bench.repeat)
    one, many = OneChanged(bench, 1), OneChanged(bench, count)
    for order in orders((one, many), bench.repeat):
        for contender in order:
            contender.turn(samples)
    for contender in (one, many):
        contender.close()
    work = f"one of {count:,} tables changed"
    bench.report(work, "a run, 1 table", one.runs, "ms")
    bench.report(work, f"a run, {count:,} tables", many.runs, "ms", one.runs, "<= 2 x", rounds=True)
    bench.report(work, "commit to visible, 1 table", one.waits, "ms")
    bench.report(work, f"commit to visible, {count:,} tables", many.waits, "ms", one.waits, ours=True, rounds=True)


def make_syncs(bench, syncs, tables, source=None):
    """A control database `control` with syncs s1, s2, … of ten tables each."""
    source = source or bench.one
    bench.databases("control", table=None)
    for server, db in ((source, "source"), (bench.two, "target")):
        server.create_database(db)
        make_tables(bench, server, db, syncs * tables)
    control = bench.one.connect("control")
    control.run("CREATE EXTENSION bucardo")
    control.run(f"SELECT bucardo.add_db('A', $${source.conninfo('source')}$$), bucardo.add_db('B', $${bench.two.conninfo('target')}$$)")
    for s in range(syncs):
        names = ", ".join(f"public.t{s * tables + n + 1}" for n in range(tables))
        control.run(f"SELECT bucardo.add_sync('s{s + 1}', dbs => 'A:source, B:target', tables => '{names}')")
    return control


# Of each sync but the last the time from the kick to the begin and to the end of its first run since.
SERVED = """SELECT extract(epoch FROM min(r.started) - k.at) * 1000, extract(epoch FROM min(r.ended) - k.at) * 1000
FROM bucardo.sync s CROSS JOIN (SELECT '{at}'::timestamptz AS at) k LEFT JOIN bucardo.syncrun r ON r.sync = s.name AND r.started >= k.at
WHERE s.name <> '{last}' GROUP BY s.name, k.at"""


def all_at_once(control, source, syncs, number):
    """Kicks all syncs but one, with a row to bring for each, and that one while the others wait: the milliseconds from the kick
    to the begin and to the end of each of their runs, and how long the one took."""
    late = f"s{syncs + 1}"
    # Of the last sync nobody knows before its kick: it does not run by itself.
    source.run(f"INSERT INTO t{syncs * 10 + 1} VALUES ({number}, 0, 'x')")
    at = control.one("SELECT clock_timestamp()")
    source.run("".join(f"INSERT INTO t{s * 10 + 1} VALUES ({number}, 0, 'x');" for s in range(syncs)))
    for s in range(syncs):
        control.run(f"SELECT bucardo.kick('s{s + 1}')")
    wait = timed(lambda: kick(control, late)) * 1000
    served = SERVED.format(at=at, last=late)
    until(lambda: all(row[1] for row in control.rows(served)), pause=0.02)
    begins, ends = zip(*((float(begin), float(end)) for begin, end in control.rows(served)))
    return begins, ends, wait


def hundred_syncs(bench):
    """100 syncs of ten tables on four kids: all kicked at once, one more while they wait, and each by itself at rest."""
    syncs = bench.rows(100, 4)
    control = make_syncs(bench, syncs + 1, 10)
    control.run(f"SELECT bucardo.update_sync('s{syncs + 1}', autokick => false)")
    bench.one.setting("bucardo.max_kids", 4)
    source, target = bench.one.connect("source"), bench.two.connect("target")
    for s in range(syncs + 1):
        kick(control, f"s{s + 1}")
    begun, ended, last, late, fresh = [], [], [], [], []
    for number in range(bench.repeat):
        begins, ends, wait = all_at_once(control, source, syncs, number)
        begun += begins
        ended += ends
        last.append(max(ends))
        late.append(wait)
        for s in range(syncs + 1):
            bench.equal(source, [target], f"t{s * 10 + 1}")
        fresh += [timed(lambda: kick(control, f"s{s + 1}")) * 1000 for s in range(syncs)]
    work = f"{syncs} syncs x 10 tables on 4 kids"
    bench.report(work, "all at once: kick to begin of run", begun, "ms", ours=True)
    bench.report(work, "all at once: kick to end of run", ended, "ms", ours=True)
    bench.report(work, "all at once: the last", last, "ms", ours=True)
    bench.report(work, "a fresh kick while all others wait", late, "ms", ours=True)
    bench.report(work, "a fresh kick", fresh, "ms", goal="<= 100 ms")
    for conn in (control, source, target):
        conn.close()
    bench.drop("control", "source", "target")
