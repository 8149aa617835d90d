-- Runs first: the extension comes into an empty database, with everything in a schema of its own.
CREATE EXTENSION bucardo;
SELECT extname, nspname, extversion
  FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace
 WHERE extname = 'bucardo';
