-- Comes after all other files of capture: nobody else may read or call what they have made, and what an older version has built
-- is made anew. It must never take a right away that partitions need.

REVOKE ALL ON ALL TABLES IN SCHEMA bucardo FROM PUBLIC;
REVOKE ALL ON ALL ROUTINES IN SCHEMA bucardo FROM PUBLIC;
-- Functions of plain capture, also those of partitions, which get their right again. By name: in a restored dump the numbers may
-- be those of other tables.
SELECT bucardo.capture_function(c) FROM bucardo.capture c JOIN pg_catalog.pg_class r ON r.oid = c.relid AND r.relname = c.relname
    JOIN pg_catalog.pg_namespace n ON n.oid = r.relnamespace AND n.nspname = c.schemaname
    WHERE NOT c.native AND NOT EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'bucardo');
