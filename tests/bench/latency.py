"""How soon a change is there: one row at a time, and under pgbench's TPC-B at a fixed rate."""

import itertools
import random
import statistics
import subprocess
import threading
import time

import pq
from common import median_and_p99, orders, pgbench_command, quantile, timed, until
from opponents import Subscription

PGBENCH_TABLES = "pgbench_accounts, pgbench_branches, pgbench_tellers"
KEYS = {"pgbench_accounts": "aid", "pgbench_branches": "bid", "pgbench_tellers": "tid"}
# The pauses: the same ones in every run.
LOT = random.Random(5)


def one_by_one(source, target, numbers, pause, wake=lambda: None):
    """Milliseconds from each commit to the row being visible there; a query of the target is part of every sample. The pause
    before each is by lot, up to twice `pause` seconds: what has a rhythm of its own, such as polls, is met at every phase.
    `wake` is what has to be done after a commit."""
    samples = []
    for n in numbers:
        time.sleep(LOT.uniform(0, 2 * pause))
        source.run(f"INSERT INTO t VALUES ({n}, 0, 'x')")
        began = time.perf_counter()
        wake()
        while not target.rows(f"SELECT 1 FROM t WHERE id = {n}"):
            pass
        samples.append((time.perf_counter() - began) * 1000)
    return samples


def latency(bench):
    """From the commit to the row being visible on the other side, one row at a time; the contenders take turns."""
    # In each repetition. Each turn begins with some that do not count: whoever was at rest polls less often.
    count, first = bench.rows(150, 10), 10
    bench.databases("source", "logical_source")
    bench.databases("far_control", table=None)
    bench.databases("target", "far_source", "far_target", "logical", server=bench.two)
    near = bench.sync("source", ("A", bench.one, "source"), [("B", bench.two, "target")])
    far = bench.sync("far_control", ("F", bench.two, "far_source"), [("B", bench.two, "far_target")])
    subscription = Subscription(bench, bench.one, "logical_source", bench.two, "logical")
    poll_min = float(far.one("SELECT setting FROM pg_settings WHERE name = 'bucardo.poll_min'"))
    polled = (bench.two.connect("far_source"), bench.two.connect("far_target"))
    pairs = {
        "bucardo": (bench.one.connect("source"), bench.two.connect("target")),
        "bucardo, polled member": polled,
        "native logical": (subscription.source, subscription.target),
    }
    goals = {"bucardo": ("<= 2 ms", "<= 8 ms"), "bucardo, polled member": (f"<= {poll_min + 5:g} ms", None)}
    repetitions = {name: [] for name in pairs}
    numbers = itertools.count(1)
    for order in orders(tuple(pairs), bench.repeat):
        for name in order:
            source, target = pairs[name]
            # The polls of a member that is polled are 20 ms apart and more.
            pause = 0.03 if pairs[name] is polled else 0.01
            one_by_one(source, target, itertools.islice(numbers, first), pause)
            repetitions[name].append(one_by_one(source, target, itertools.islice(numbers, count), pause))
    for name, (source, target) in pairs.items():
        bench.equal(source, [target])
        median_and_p99(bench.report, "commit to visible", name, repetitions[name], goals.get(name, (None, None)))
    subscription.close()
    for conn in (near, far, *pairs["bucardo"], *polled):
        conn.close()
    bench.drop("source", "far_control", "target", "far_source", "far_target", "logical", "logical_source")


class Sampler:
    """Asks something again and again while the benchmark is inside the `with`; `samples` has the answers afterwards."""

    def __init__(self, ask, pause=0.2):
        self.ask, self.pause = ask, pause
        self.samples, self.error, self.over = [], None, threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        try:
            while not self.over.wait(self.pause):
                self.samples.append(self.ask())
        except pq.Error as error:
            self.error = error

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *failure):
        self.over.set()
        self.thread.join()
        if self.error and not failure[0]:
            raise self.error


BACKLOG = """SELECT coalesce(sum(changes), 0), coalesce(extract(epoch FROM clock_timestamp() - min(oldest)) * 1000, 0)
FROM bucardo.capture_backlog((SELECT min(control) FROM bucardo.capture_track))"""


def backlog_of(conn):
    return [float(x) for x in conn.rows(BACKLOG)[0]]


def pgbench(bench, server, db, arguments):
    """Runs pgbench to its end."""
    command = pgbench_command(bench, server, db, arguments)
    done = subprocess.run(command, capture_output=True, text=True, cwd=bench.place.folder)
    if done.returncode != 0:
        raise RuntimeError(f"pgbench: {done.stdout}{done.stderr}")


def tpcb_databases(bench, names):
    for server, db in names:
        server.create_database(db)
        pgbench(bench, server, db, ["-i", "-q", "-s", str(max(1, round(10 * min(1, bench.factor))))])


def tpcb(bench):
    """pgbench's TPC-B at 500/s for 60 s in all: rows pending and the oldest of them meanwhile, and how long it takes until all is served."""
    # The repetitions share the minute, but none is so short that its beginning counts for much.
    load = ["-n", "-c", "4", "-j", "1", "-R", "500", "-M", "prepared", *bench.load(max(20, 60 / bench.repeat))]
    for vacuum in ("on", "off"):
        tpcb_databases(bench, [(bench.one, "source"), (bench.two, "target"), (bench.one, "logical_source"), (bench.two, "logical")])
        for server in (bench.one, bench.two):
            server.setting("autovacuum", vacuum)
        bench.sync("source", ("A", bench.one, "source"), [("B", bench.two, "target")], PGBENCH_TABLES).close()
        figures = {}
        for order in orders((tpcb_ours, tpcb_native), bench.repeat):
            for turn in order:
                for name, value in turn(bench, load).items():
                    figures.setdefault(name, []).append(value)
        for name, unit, goal, ours in TPCB:
            bench.report(f"TPC-B 500/s, autovacuum {vacuum}", name, figures[name], unit, goal=goal, ours=ours)
        bench.drop("source", "target", "logical_source", "logical")
    for server in (bench.one, bench.two):
        server.setting("autovacuum", "on")


# What is reported, a figure for each repetition: (name, unit, goal, whether it is ours).
TPCB = (
    ("bucardo, pending, median", "rows", "<= 5 rows", True),
    ("bucardo, pending, p99", "rows", None, True),
    ("bucardo, oldest, median", "ms", "<= 10 ms", True),
    ("bucardo, oldest, p99", "ms", None, True),
    ("bucardo, to drain", "ms", "<= 50 ms", True),
    ("native logical, replay_lag, median", "ms", None, False),
    ("native logical, replay_lag, p99", "ms", None, False),
    ("native logical, to drain", "ms", None, False),
)


def compare_tpcb(bench, source, target):
    for table, key in KEYS.items():
        bench.equal(source, [target], table, key)


def tpcb_ours(bench, load):
    """Our turn: its figures by name."""
    watcher, asker, target = bench.one.connect("source"), bench.one.connect("source"), bench.two.connect("target")
    with Sampler(lambda: backlog_of(watcher)) as sampler:
        pgbench(bench, bench.one, "source", load)
        drain = timed(lambda: until(lambda: backlog_of(asker)[0] == 0)) * 1000
    samples = sampler.samples or [backlog_of(watcher)]
    compare_tpcb(bench, asker, target)
    pending, oldest = [s[0] for s in samples], [s[1] for s in samples]
    for conn in (watcher, asker, target):
        conn.close()
    return {
        "bucardo, pending, median": statistics.median(pending),
        "bucardo, pending, p99": quantile(pending, 0.99),
        "bucardo, oldest, median": statistics.median(oldest),
        "bucardo, oldest, p99": quantile(oldest, 0.99),
        "bucardo, to drain": drain,
    }


def tpcb_native(bench, load):
    """Logical replication's turn, of the same tables. It is there for its turn only: reading along would cost the other's."""
    subscription = Subscription(bench, bench.one, "logical_source", bench.two, "logical", PGBENCH_TABLES)
    watcher = bench.one.connect("logical_source")
    with Sampler(lambda: subscription.lag(watcher)) as sampler:
        pgbench(bench, bench.one, "logical_source", load)
        lsn = subscription.source.one("SELECT pg_current_wal_lsn()")
        drain = timed(lambda: until(lambda: subscription.flushed(lsn))) * 1000
    lags = sampler.samples or [0.0]
    compare_tpcb(bench, subscription.source, subscription.target)
    watcher.close()
    subscription.close()
    return {
        "native logical, replay_lag, median": statistics.median(lags),
        "native logical, replay_lag, p99": quantile(lags, 0.99),
        "native logical, to drain": drain,
    }
