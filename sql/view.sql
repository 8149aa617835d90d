-- What people look at. The views join the catalog and the history with what the master and the kids say of themselves
-- in shared memory, so that what they say is true at that moment.

CREATE VIEW bucardo.asleep AS
SELECT DISTINCT ON (y.sync) y.sync, y.dbs,
       pg_catalog.format('it cannot run: %s %s %s inactive', CASE pg_catalog.array_length(y.dbs, 1) WHEN 1 THEN 'db' ELSE 'dbs' END,
           (SELECT pg_catalog.string_agg('"' || d.name || '"', ', ' ORDER BY d.place) FROM pg_catalog.unnest(y.dbs) WITH ORDINALITY d (name, place)),
           CASE pg_catalog.array_length(y.dbs, 1) WHEN 1 THEN 'is' ELSE 'are all' END) AS why
  FROM (SELECT s.name AS sync, s.dbgroup, m.role = 'source' AS sends, pg_catalog.array_agg(m.db ORDER BY m.priority, m.db) AS dbs
          FROM bucardo.sync s
          JOIN bucardo.dbmap m ON m.dbgroup = s.dbgroup
          JOIN bucardo.db d ON d.name = m.db
         GROUP BY s.name, s.dbgroup, m.role = 'source'
        HAVING NOT pg_catalog.bool_or(d.status = 'active')) y
 -- Several sources receive as well: then the other members do not matter.
 WHERE y.sends OR (SELECT count(*) FROM bucardo.dbmap o WHERE o.dbgroup = y.dbgroup AND o.role = 'source') = 1
 ORDER BY y.sync, y.sends DESC;
COMMENT ON VIEW bucardo.asleep IS 'Syncs that cannot run because all their sources, or all who would receive, are inactive members.';

CREATE VIEW bucardo.status AS
SELECT s.name AS sync,
       CASE WHEN s.status = 'inactive' THEN 'inactive'
            WHEN s.paused THEN 'paused'
            WHEN asleep.why IS NOT NULL THEN 'inactive'
            WHEN NOT m.running THEN 'stopped'
            ELSE coalesce(live.state, last.state, 'new')
       END AS state,
       good.ended AS last_good,
       good.ended - good.started AS last_good_duration,
       good.upserts,
       good.deletes,
       good.conflicts,
       bad.ended AS last_bad,
       coalesce(asleep.why, CASE WHEN m.running THEN live.error ELSE m.trouble END, bad.error) AS last_error,
       CASE WHEN m.running AND s.status = 'active' AND NOT s.paused AND asleep.why IS NULL THEN live.next_try END AS next_try,
       CASE WHEN NOT m.running THEN NULL
            WHEN live.sync IS NULL AND m.no_room THEN 'this server has no room for the state of further syncs: what is shown is of its last run, and it cannot be kicked'
            ELSE live.doubt
       END AS warning
  FROM bucardo.sync s
 CROSS JOIN bucardo.master_state() m
  LEFT JOIN bucardo.asleep ON asleep.sync = s.name
  LEFT JOIN bucardo.sync_state() live ON live.sync = s.id
  -- A run of an earlier sync of that name may have written its row while that one was being removed.
  LEFT JOIN LATERAL (SELECT r.state FROM bucardo.syncrun r WHERE r.sync = s.name AND r.started >= s.created ORDER BY r.run DESC LIMIT 1) last ON true
  LEFT JOIN LATERAL (SELECT r.* FROM bucardo.syncrun r WHERE r.sync = s.name AND r.state = 'good' AND r.started >= s.created ORDER BY r.run DESC LIMIT 1) good ON true
  LEFT JOIN LATERAL (SELECT r.* FROM bucardo.syncrun r WHERE r.sync = s.name AND r.state = 'bad' AND r.started >= s.created ORDER BY r.run DESC LIMIT 1) bad ON true;
COMMENT ON VIEW bucardo.status IS 'Each sync: its state now, its last good run, and its last error with the time of the next try, and what makes its decisions, or this row, doubtful.';
CREATE INDEX syncrun_state ON bucardo.syncrun (sync, state, run DESC);

CREATE VIEW bucardo.activity AS
SELECT p.pid, p.kind, s.name AS sync, p.run, p.phase, p.db, p.relation, p.rows_done, p.rows_total,
       coalesce(p.since, (SELECT a.backend_start FROM pg_catalog.pg_stat_get_activity(p.pid) a)) AS since
  FROM bucardo.process_state() p LEFT JOIN bucardo.sync s ON s.id = p.sync;
COMMENT ON VIEW bucardo.activity IS 'Each live process of bucardo in this database, and what it does.';

-- The master of this database starts when CREATE EXTENSION commits.
SELECT bucardo.begin_master();
