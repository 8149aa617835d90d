-- Comes after all other files of capture: nobody else may read or call what they have made, and what an older version has built
-- is made anew. It must never take a right away that partitions need.

REVOKE ALL ON ALL TABLES IN SCHEMA bucardo FROM PUBLIC;
REVOKE ALL ON ALL ROUTINES IN SCHEMA bucardo FROM PUBLIC;
-- Functions of plain capture, also those of partitions, which get their right again.
SELECT bucardo.capture_function(c) FROM bucardo.capture c WHERE NOT c.native
    AND EXISTS (SELECT FROM pg_catalog.pg_class r WHERE r.oid = c.relid) AND NOT EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'bucardo');
