-- The functions that users script against: names, arguments in order, defaults, results. A change here is a change of
-- the contract. Functions of single captures and of test builds are left out.
SELECT p.proname || '(' || pg_get_function_arguments(p.oid) || ') -> ' || pg_get_function_result(p.oid) AS function
  FROM pg_proc p
 WHERE p.pronamespace = 'bucardo'::regnamespace AND p.prokind = 'f' AND p.proname !~ '^(capture|fault)'
 ORDER BY p.proname COLLATE "C", pg_get_function_identity_arguments(p.oid) COLLATE "C";
-- Nobody may call anything without a grant.
SELECT count(*) AS open_to_public
  FROM pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
 WHERE p.pronamespace = 'bucardo'::regnamespace AND a.grantee = 0
   -- Whoever makes a partition of a captured table must have the right to its row trigger.
   AND p.oid <> 'bucardo.capture()'::regprocedure;
-- Members, and the errors of calls that need no second server.
SELECT bucardo.add_db('A');
SELECT bucardo.add_db('A');
SELECT bucardo.add_db('B', 'nonsense');
SELECT bucardo.add_db('a:b');
SELECT bucardo.add_sync('s', dbs => 'A:source,X:target', tables => 'all');
SELECT bucardo.kick('unknown');
SELECT bucardo.remove_db('X');
SELECT bucardo.remove_db('A');
