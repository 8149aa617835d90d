"""Contenders that take turns of a fraction of a second: each has a pgbench of its own that stands still while others work, so
what the machine does besides concerns all of them, and none is always the first. It must never count what others committed."""

import os
import signal
import subprocess
import time

from common import cpu_of, pgbench_command, until

NEXT_XID = "SELECT pg_snapshot_xmax(pg_current_snapshot())"


class Turns:
    """Sessions of pgbench in several databases of one server, whose transactions write once each."""

    def __init__(self, bench, databases, arguments, commit):
        self.bench = bench
        self.conn = bench.one.connect()
        self.programs = {}
        try:
            for db in databases:
                command = pgbench_command(bench, bench.one, db, ["-n", "-T", "86400", *arguments])
                env = {**os.environ, "PGOPTIONS": f"-c synchronous_commit={commit}"}
                streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
                before = self._next_xid()
                self.programs[db] = subprocess.Popen(command, env=env, cwd=bench.place.folder, **streams)
                # Sessions that have begun, with all that they keep in memory.
                until(lambda before=before: self._next_xid() > before + 200, 60)
                self._let(db, False)
        except BaseException:
            self.close()
            raise

    def _next_xid(self):
        return int(self.conn.one(NEXT_XID))

    def _let(self, db, go):
        program = self.programs[db]
        if program.poll() is not None:
            raise RuntimeError(f"pgbench in {db} ended with {program.returncode}")
        program.send_signal(signal.SIGCONT if go else signal.SIGSTOP)

    def _used(self, db):
        """The processor time of the server, but for the session that looks on, and of the contender's pgbench."""
        return self.bench.one.cpu() - cpu_of(self.conn.pid) + cpu_of(self.programs[db].pid)

    def turn(self, db, seconds):
        """Lets one work for so long: its transactions a second, and the processor time of each in microseconds (server and pgbench)."""
        used, first = self._used(db), self._next_xid()
        began = time.perf_counter()
        self._let(db, True)
        time.sleep(seconds)
        self._let(db, False)
        lasted = time.perf_counter() - began
        # What was on its way counts for whose turn it was.
        busy = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{db}' AND backend_type = 'client backend' AND state <> 'idle'"
        until(lambda: self.conn.one(busy) == "0", 60)
        done = max(1, self._next_xid() - first)
        return done / lasted, (self._used(db) - used) / done * 1e6

    def close(self):
        for program in self.programs.values():
            program.kill()
            program.wait()
        self.conn.close()
