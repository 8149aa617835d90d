-- Takes our objects off a member that has no extension and on which nothing captures any more. What else stands in the
-- schema, as a living Bucardo 5, is left alone, and the schema with it.
DO $body$
DECLARE
    o record;
BEGIN
    IF to_regclass('bucardo.capture_sync') IS NULL OR EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'bucardo') THEN
        RETURN;
    END IF;
    -- Whoever is installing capture just now ends first, and is then seen.
    PERFORM pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('bucardo capture', 0));
    IF to_regclass('bucardo.capture_sync') IS NULL OR EXISTS (SELECT FROM bucardo.capture_sync) OR EXISTS (SELECT FROM bucardo.capture_track) THEN
        RETURN;
    END IF;
    FOR o IN SELECT p.oid::pg_catalog.regprocedure AS name FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
             WHERE n.nspname = 'bucardo' AND p.proname LIKE 'capture\_%' ORDER BY p.proname = 'capture_body' DESC LOOP
        EXECUTE pg_catalog.format('DROP FUNCTION IF EXISTS %s CASCADE', o.name);
    END LOOP;
    DROP TABLE IF EXISTS bucardo.capture_settled, bucardo.capture_heard, bucardo.capture_progress, bucardo.capture_touched, bucardo.capture_root;
    DROP TABLE bucardo.capture_mark, bucardo.capture_track, bucardo.capture_sync, bucardo.capture;
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_depend WHERE refclassid = 'pg_catalog.pg_namespace'::pg_catalog.regclass AND refobjid = 'bucardo'::pg_catalog.regnamespace) THEN
        DROP SCHEMA bucardo;
    END IF;
END
$body$;
