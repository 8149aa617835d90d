-- The last of the installation: who may see and call what, and what pg_dump must keep. Must stay last, so that it
-- covers every function made before it.

SELECT pg_catalog.pg_extension_config_dump('bucardo.db', '');
SELECT pg_catalog.pg_extension_config_dump('bucardo.db_secret', '');
SELECT pg_catalog.pg_extension_config_dump('bucardo.dbgroup', '');
SELECT pg_catalog.pg_extension_config_dump('bucardo.dbmap', '');
SELECT pg_catalog.pg_extension_config_dump('bucardo.relgroup', '');
SELECT pg_catalog.pg_extension_config_dump('bucardo.relation', '');
SELECT pg_catalog.pg_extension_config_dump('bucardo.relation_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('bucardo.relmap', '');
SELECT pg_catalog.pg_extension_config_dump('bucardo.relmap_position_seq', '');
SELECT pg_catalog.pg_extension_config_dump('bucardo.sync', '');
SELECT pg_catalog.pg_extension_config_dump('bucardo.sync_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('bucardo.customcode', '');
SELECT pg_catalog.pg_extension_config_dump('bucardo.customname', '');
SELECT pg_catalog.pg_extension_config_dump('bucardo.customname_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('bucardo.customcols', '');
SELECT pg_catalog.pg_extension_config_dump('bucardo.customcols_id_seq', '');

REVOKE ALL ON ALL ROUTINES IN SCHEMA bucardo FROM PUBLIC;
-- A trigger function: whoever makes a partition of a captured table must have the right to it.
GRANT EXECUTE ON FUNCTION bucardo.capture() TO PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA bucardo FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA bucardo FROM PUBLIC;
REVOKE ALL ON SCHEMA bucardo FROM PUBLIC;
GRANT USAGE ON SCHEMA bucardo TO pg_monitor;
GRANT SELECT ON bucardo.control, bucardo.db, bucardo.dbgroup, bucardo.dbmap, bucardo.relgroup, bucardo.relation,
    bucardo.relmap, bucardo.sync, bucardo.customcode, bucardo.customname, bucardo.customcols, bucardo.syncrun
    TO pg_monitor;
GRANT SELECT ON bucardo.status, bucardo.activity TO pg_monitor;
-- A view's functions are checked against who asks.
GRANT EXECUTE ON FUNCTION bucardo.sync_state(), bucardo.master_state(), bucardo.process_state() TO pg_monitor;
GRANT EXECUTE ON FUNCTION bucardo.pending(text), bucardo.version() TO pg_monitor;
