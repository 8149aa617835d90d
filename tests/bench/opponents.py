"""Who we are measured against beside COPY: PostgreSQL's logical decoding and logical replication. The original Bucardo stands in
bucardo5.py. Each is started for its turn only, so that it costs the others nothing."""

import subprocess

from common import until


class Decoder:
    """pg_recvlogical reading along with pgoutput, as a subscriber would; what it reads goes nowhere."""

    def __init__(self, bench, server, db):
        self.admin = server.connect(db)
        self.slot = f"bench_{db}"
        # Once: a publication of all tables has every session of the server forget what it knows of tables.
        if not self.admin.rows(f"SELECT 1 FROM pg_publication WHERE pubname = '{self.slot}'"):
            self.admin.run(f"CREATE PUBLICATION {self.slot} FOR ALL TABLES")
        self.admin.run(f"SELECT pg_create_logical_replication_slot('{self.slot}', 'pgoutput')")
        options = ["-o", "proto_version=1", "-o", f"publication_names={self.slot}"]
        command = [bench.place.bin("pg_recvlogical"), "-d", server.conninfo(db), "-S", self.slot, "--start", "-f", "/dev/null", *options]
        self.process = bench.place.popen(command, stderr=subprocess.DEVNULL)
        until(self._active, 60, 0.01)

    def _active(self):
        return self.admin.one(f"SELECT active FROM pg_replication_slots WHERE slot_name = '{self.slot}'") == "t"

    def close(self):
        self.process.terminate()
        self.process.wait()
        until(lambda: not self._active(), 60, 0.01)
        self.admin.run(f"SELECT pg_drop_replication_slot('{self.slot}')")
        self.admin.close()


class Subscription:
    """PostgreSQL's logical replication of some tables of one database, or of all, into another, which must have the same rows already."""

    def __init__(self, bench, source, source_db, target, target_db, tables=None):
        self.source, self.target = source.connect(source_db), target.connect(target_db)
        self.name = f"bench_{target_db}"
        what = f"TABLE {tables}" if tables else "ALL TABLES"
        self.source.run(f"DROP PUBLICATION IF EXISTS {self.name}; CREATE PUBLICATION {self.name} FOR {what}")
        self.target.run(
            f"CREATE SUBSCRIPTION {self.name} CONNECTION '{source.conninfo(source_db)}' PUBLICATION {self.name} "
            f"WITH (copy_data = false, binary = true)"
        )
        streams = f"SELECT count(*) FROM pg_stat_replication WHERE application_name = '{self.name}' AND state = 'streaming'"
        until(lambda: self.source.one(streams) == "1", 60, 0.01)

    def flushed(self, lsn):
        """Whether all up to `lsn` has been applied there."""
        sql = f"SELECT coalesce(bool_and(replay_lsn >= '{lsn}'), false) FROM pg_stat_replication WHERE application_name = '{self.name}'"
        return self.source.one(sql) == "t"

    def lag(self, conn):
        """How old the oldest change is that is not applied there yet, in milliseconds, as PostgreSQL tells it."""
        sql = f"SELECT extract(epoch FROM replay_lag) * 1000 FROM pg_stat_replication WHERE application_name = '{self.name}'"
        rows = conn.rows(sql)
        return float(rows[0][0] or 0) if rows else 0.0

    def close(self):
        self.target.run(f"DROP SUBSCRIPTION {self.name}")
        self.source.run(f"DROP PUBLICATION {self.name}")
        self.source.close()
        self.target.close()
