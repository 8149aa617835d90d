-- What a member of pg_monitor may look at, and what not.
CREATE ROLE watcher IN ROLE pg_monitor;
SELECT bucardo.ping() IS NOT NULL AS there;
SET ROLE watcher;
SELECT * FROM bucardo.pending();
SELECT bucardo.version() <> '' AS version;
SELECT sync, state FROM bucardo.status;
-- The master is there since it was started.
SELECT kind, phase, since BETWEEN pg_postmaster_start_time() AND now() AS since FROM bucardo.activity WHERE kind = 'master';
SELECT bucardo.kick('s');
SELECT bucardo.purge();
SELECT * FROM bucardo.conflict;
SELECT * FROM bucardo.db_secret;
RESET ROLE;
DROP ROLE watcher;
