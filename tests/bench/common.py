"""What all benchmarks share: two servers, the table, how members are set up and compared, and how time is taken.

Two clocks: the wall, and the processor time of the processes that did the work. The second is what to compare on a machine
that others use too. Must never report a figure of members that turned out unequal.
"""

import os
import random
import statistics
import time

import pq
from report import Results

TABLE = "CREATE TABLE t (id int PRIMARY KEY, a int NOT NULL, v text)"
# Narrow rows, or as wide as BENCH_ROW_BYTES says: what an UPDATE costs beside a COPY depends on that.
WIDTH = int(os.environ.get("BENCH_ROW_BYTES", "0"))


def row_of(width):
    """The rows that are inserted, g is their number: so many bytes each; 0: narrow ones."""
    return "SELECT g, g % 1000, " + (f"repeat(md5(g::text), {max(width // 32, 1)})" if width else "'row number ' || g")


ROW = row_of(WIDTH)


class Skipped(Exception):
    """The extension does not do this yet; the message says what."""


class Bench:
    """Two servers, and the results. `one` has the extension preloaded; `two` is a stock server."""

    def __init__(self, place, factor, repeat, settings=""):
        self.place, self.factor, self.repeat = place, factor, repeat
        self.one = place.server("one", "shared_preload_libraries = 'bucardo'\ntrack_commit_timestamp = off\n" + settings)
        self.two = place.server("two", settings)
        self.results = Results()
        self.report = self.results.add

    def rows(self, count, least=100):
        return max(least, int(count * self.factor))

    def seconds(self, count):
        return max(1, round(count * min(1.0, self.factor)))

    def load(self, seconds):
        """How long a pgbench runs: so many seconds, or a handful of transactions when it is only to prove that it works."""
        return ["-T", str(self.seconds(seconds))] if self.factor >= 0.01 else ["-t", "50"]

    def checkpoint(self):
        """Before what is timed: what others left to write does not count."""
        for server in (self.one, self.two):
            self.on(server, "postgres", "CHECKPOINT")

    def databases(self, *names, server=None, table=TABLE):
        """Fresh databases, each with the table."""
        server = server or self.one
        for name in names:
            server.create_database(name)
            if table:
                self.on(server, name, table)

    def on(self, server, db, sql):
        """Runs statements on a connection of their own."""
        conn = server.connect(db)
        try:
            conn.run(sql)
        finally:
            conn.close()

    def drop(self, *names):
        """Drops databases on whichever server has them; a control database before those that it replicates."""
        for server in (self.one, self.two):
            for name in names:
                self.on(server, "postgres", f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def sync(self, control, source, targets, tables="all", options="", name="s"):
        """A connection to a control database with a sync from `source` to `targets`: each (member, server, database). Without a
        name only the members are made."""
        return self.sync_of(control, [(*source, "source"), *[(*t, "target") for t in targets]], tables, options, name)

    def sync_of(self, control, members, tables="all", options="", name="s"):
        conn = self.one.connect(control)
        conn.run("CREATE EXTENSION IF NOT EXISTS bucardo")
        for member, server, db, _ in members:
            conninfo = "" if (server, db) == (self.one, control) else server.conninfo(db)
            conn.run(f"SELECT bucardo.add_db('{member}', $${conninfo}$$)")
        if name is None:
            return conn
        dbs = ",".join(f"{member}:{role}" for member, _, _, role in members)
        try:
            conn.run(f"SELECT bucardo.add_sync('{name}', dbs => '{dbs}', tables => '{tables}'{options})")
        except pq.Error as error:
            if error.sqlstate == "0A000":
                conn.close()
                raise Skipped(str(error).splitlines()[0]) from error
            raise
        return conn

    def equal(self, source, others, table="t", order="id"):
        digest = f"SELECT count(*) || ' ' || coalesce(md5(string_agg(md5(x::text), '' ORDER BY {order})), '') FROM {table} x"
        wanted = source.one(digest)
        for other in others:
            found = other.one(digest)
            if found != wanted:
                raise RuntimeError(f"the members differ in {table}: {wanted} and {found}")


def pgbench_command(bench, server, db, arguments):
    """How pgbench is called for a database."""
    return [bench.place.bin("pgbench"), "-h", server.folder, "-U", "postgres", *arguments, db]


def orders(names, rounds):
    """The order of each round: by lot, and then the same backwards, so that nobody is always behind the same one."""
    lot, order = random.Random(5), list(names)
    for number in range(rounds):
        if number % 2 == 0:
            lot.shuffle(order)
        else:
            order.reverse()
        yield tuple(order)


def kick(control, sync="s"):
    control.run(f"SELECT bucardo.kick('{sync}', '900s')")


def serve(control, sync="s"):
    """Lets a paused sync go on, and waits until all that was captured before is served."""
    control.run(f"SELECT bucardo.resume('{sync}')")
    kick(control, sync)


def timed(action):
    """Seconds on the wall."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def cpu_of(pid):
    """The processor time of a process so far, in seconds: user and system; of one that has ended meanwhile none."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0


def measured(action, clock):
    """Seconds on the wall, and by `clock`."""
    before = clock()
    wall = timed(action)
    return wall, clock() - before


def until(condition, seconds=900, pause=0.001):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError("waited in vain")
        time.sleep(pause)


def quantile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def median_and_p99(report, work, contender, repetitions, goals=(None, None)):
    """Of each repetition's samples the median and the p99: the table's figure is the median of those, with the least and the most."""
    report(work, f"{contender}, median", [statistics.median(samples) for samples in repetitions], "ms", goal=goals[0])
    report(work, f"{contender}, p99", [quantile(samples, 0.99) for samples in repetitions], "ms", goal=goals[1])
