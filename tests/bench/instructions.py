"""What capture costs in instructions, counted by valgrind's callgrind in a single-user backend: the same on a busy machine as on
an idle one, and nearly the same every time. It tells nothing of waiting, of locks or of the disk.

What a statement costs is the difference of two runs, one of which has more of the statements, so that start and end of the
backend are not in it. Each run has a copy of the same stopped cluster, and none may see what another one left. It must never
report a count of statements of which one failed, or that were not written down where they should be.
"""

import copy
import os
import re
import shutil

import capture
from common import ROW
from latency import BACKLOG

ROWS = 1_000
# A run of so many statements, and one of so many more.
FEW, MORE = 50, 200
FULL = ("none", "native", "plain")
# These are there for updates only.
TRIGGERS = ("by_statement", "by_plpgsql", "inserts", "guarded")
ONE = {
    "UPDATE": lambda n: "UPDATE t SET a = a + 1 WHERE id = 500",
    "INSERT": lambda n: f"INSERT INTO t VALUES ({ROWS + n}, {n}, 'row number {ROWS + n}')",
    "DELETE": lambda n: f"DELETE FROM t WHERE id = {n}",
}
CAPTURED = f"SELECT changes FROM ({' '.join(BACKLOG.split())}) AS x (changes, age)"
LEAST = "SELECT count(*) FROM least.written"
# How many changes are written down, by database.
WRITTEN = {"native": CAPTURED, "plain": CAPTURED, "inserts": LEAST, "guarded": LEAST}


class Backends:
    """Single-user backends, each over a copy of a stopped cluster with the databases of the contenders."""

    def __init__(self, bench):
        self.place = bench.place
        # As the other benchmarks' servers are, but with as little WAL as can be: it is copied, too.
        server = self.place.server("single", "shared_preload_libraries = 'bucardo'\nmin_wal_size = '32MB'")
        self.data, self.copy = server.data, os.path.join(server.folder, "copy")
        self.counts = os.path.join(server.folder, "callgrind.out")
        self.known = {}
        small = copy.copy(bench)
        small.one = small.two = server
        capture.captured_databases(small)
        capture.empty_triggers(small)
        small.databases("inserts", "guarded")
        small.on(server, "inserts", capture.ONLY_INSERTS)
        small.on(server, "guarded", capture.GUARDED)
        for db in (*FULL, *TRIGGERS):
            small.on(server, db, f"INSERT INTO t {ROW} FROM generate_series(1, {ROWS}) g")
            # With the catalogs, of which the first to look would otherwise do the upkeep.
            small.on(server, db, "VACUUM")
        small.drop("decoded", "sink")
        self.place.as_server([self.place.bin("pg_ctl"), "-D", self.data, "-m", "fast", "-w", "stop"])

    def remove(self):
        self.place.as_server(["rm", "-rf", self.copy])

    def run(self, db, statements, under=()):
        """What a backend prints that is fed with statements; one a line."""
        self.remove()
        self.place.as_server(["cp", "-a", self.data, self.copy])
        # A statement that fails does not end it: the log tells, which goes to standard error.
        backend = [*under, self.place.bin("postgres"), "--single", "-D", self.copy, db]
        said = self.place.as_server(["sh", "-c", 'exec "$@" 2>&1', "sh", *backend], "".join(f"{s}\n" for s in statements))
        if re.search("ERROR:|FATAL:|PANIC:", said):
            raise RuntimeError(said)
        return said

    def count(self, db, statements):
        """The instructions of a backend from its start to its end; what was counted once is not counted again."""
        if (key := (db, *statements)) in self.known:
            return self.known[key]
        self.run(db, statements, [shutil.which("valgrind"), "-q", "--tool=callgrind", f"--callgrind-out-file={self.counts}"])
        with open(self.counts, encoding="utf-8") as file:
            self.known[key] = next(int(line.split()[1]) for line in file if line.startswith("totals:"))
        return self.known[key]

    def cost(self, db, before, statements, changes):
        """The instructions of statements after others, of which it is known that they change so many rows."""
        if db in WRITTEN:
            said = self.run(db, [*before, WRITTEN[db], *statements, WRITTEN[db]])
            had, has = (int(figure) for figure in re.findall(r'= "(\d+)"', said))
            if has - had != changes:
                raise RuntimeError(f"{db}: {changes} changes were made, and {has - had} written down")
        return self.count(db, [*before, *statements]) - self.count(db, before)


def report(bench, work, counts):
    """Once each: they would be the same again."""
    for db, count in counts.items():
        reference = [counts["none"]] if "none" in counts and db != "none" else None
        bench.report(work, capture.NAMES[db], [count], "instr", reference, ours=db in ("native", "plain"))


def instructions(bench):
    """Instructions of one-row statements, of an INSERT of 100,000 rows and an UPDATE of 50,000, by callgrind, against those
    without capture."""
    if not shutil.which("valgrind"):
        bench.results.skip("instructions of a statement", "valgrind is not there")
        return
    smoke = bench.factor < 0.01
    full, triggers, kinds = (("native",), (), ("UPDATE",)) if smoke else (FULL, TRIGGERS, tuple(ONE))
    backends = Backends(bench)
    for kind in kinds:
        few, more = ([ONE[kind](n) for n in numbers] for numbers in (range(1, FEW + 1), range(FEW + 1, FEW + MORE + 1)))
        contenders = (*full, *triggers) if kind == "UPDATE" else full
        report(bench, f"one-row {kind}: instructions", {db: backends.cost(db, few, more, MORE) / MORE for db in contenders})
    inserts, updates = bench.rows(100_000), bench.rows(50_000)
    insert = f"INSERT INTO t {ROW} FROM generate_series({ROWS + 1}, {ROWS + inserts}) g"
    update = f"UPDATE t SET a = a + 1 WHERE id <= {updates}"
    report(bench, f"one INSERT of {inserts:,}: instructions", {db: backends.cost(db, [], [insert], inserts) for db in full})
    report(bench, f"one UPDATE of {updates:,}: instructions", {db: backends.cost(db, [insert], [update], updates) for db in full})
    backends.remove()
