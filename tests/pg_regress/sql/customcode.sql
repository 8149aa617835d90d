-- Customcode of conflicts: what is stored, what is refused and how, and whose rights it has.
CREATE SCHEMA hooks;
CREATE FUNCTION hooks.decide(context jsonb) RETURNS jsonb LANGUAGE sql AS $$SELECT '{"winner": "A"}'::jsonb$$;
CREATE FUNCTION hooks."Other one"(context jsonb) RETURNS jsonb LANGUAGE sql AS $$SELECT NULL::jsonb$$;
CREATE FUNCTION hooks.no_answer(context jsonb) RETURNS text LANGUAGE sql AS $$SELECT ''$$;
CREATE FUNCTION hooks.no_context() RETURNS jsonb LANGUAGE sql AS $$SELECT '{}'::jsonb$$;
CREATE FUNCTION hooks.many(context jsonb) RETURNS SETOF jsonb LANGUAGE sql AS $$SELECT '{}'::jsonb$$;
CREATE TABLE hooks."T" (id int PRIMARY KEY);
CREATE SEQUENCE hooks.seq;
SELECT bucardo.add_db('A');
SELECT bucardo.add_relgroup('g');
SELECT bucardo.add_table('hooks."T"', 'g', db => 'A');
SELECT bucardo.add_sequence('hooks.seq', 'g', db => 'A');
-- Errors show their SQLSTATE.
CREATE FUNCTION attempt(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE hint text;
BEGIN
    EXECUTE statement;
    RETURN 'done';
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
    RETURN SQLSTATE || ' ' || SQLERRM || E'\n  ' || hint;
END$$;
\pset format unaligned
\pset tuples_only on
SELECT bucardo.add_customcode('first', 'conflict', 'hooks.decide(jsonb)');
SELECT bucardo.add_customcode('second', 'conflict', 'hooks."Other one"(jsonb)', relation => 'hooks."T"', priority => -1, status => 'inactive');
SELECT name, whenrun, code, sql, db, sync, relation, priority, status, owner FROM bucardo.customcode ORDER BY name;
-- What is refused.
SELECT attempt($$SELECT bucardo.add_customcode(NULL, 'conflict', 'hooks.decide(jsonb)')$$);
SELECT attempt($$SELECT bucardo.add_customcode('a:b', 'conflict', 'hooks.decide(jsonb)')$$);
SELECT attempt($$SELECT bucardo.add_customcode('x', NULL, 'hooks.decide(jsonb)')$$);
SELECT attempt($$SELECT bucardo.add_customcode('x', 'sometimes', 'hooks.decide(jsonb)')$$);
SELECT attempt($$SELECT bucardo.add_customcode('first', 'conflict', 'hooks.decide(jsonb)')$$);
SELECT attempt($$SELECT bucardo.add_customcode('x', 'conflict')$$);
SELECT attempt($$SELECT bucardo.add_customcode('x', 'conflict', 'hooks.decide(jsonb)', sql => 'SELECT 1')$$);
SELECT attempt($$SELECT bucardo.add_customcode('x', 'conflict', sql => 'SELECT 1')$$);
SELECT attempt($$SELECT bucardo.add_customcode('x', 'conflict', 'hooks.decide(jsonb)', db => 'A')$$);
SELECT attempt($$SELECT bucardo.add_customcode('x', 'after_txn', sql => 'SELECT 1', db => 'X')$$);
SELECT attempt($$SELECT bucardo.add_customcode('x', 'conflict', 'hooks.decide(jsonb)', sync => 'X')$$);
SELECT attempt($$SELECT bucardo.add_customcode('x', 'conflict', 'hooks.decide(jsonb)', relation => 'hooks.t')$$);
SELECT attempt($$SELECT bucardo.add_customcode('x', 'conflict', 'hooks.decide(jsonb)', relation => 'hooks.seq')$$);
SELECT attempt($$SELECT bucardo.add_customcode('x', 'conflict', 'hooks.decide(jsonb)', relation => 'a b')$$);
SELECT attempt($$SELECT bucardo.add_customcode('x', 'conflict', 'hooks.decide(jsonb)', status => 'on')$$);
SELECT attempt($$SELECT bucardo.add_customcode('x', 'conflict', 'hooks.no_answer(jsonb)')$$);
SELECT attempt($$SELECT bucardo.add_customcode('x', 'conflict', 'hooks.no_context()')$$);
SELECT attempt($$SELECT bucardo.add_customcode('x', 'conflict', 'hooks.many(jsonb)')$$);
SELECT attempt($$SELECT bucardo.add_customcode('x', 'conflict', 1::oid::regprocedure)$$);
-- The other places of a run: checked, then refused.
SELECT attempt($$SELECT bucardo.add_customcode('x', 'before_sync', 'hooks.no_answer(jsonb)')$$);
SELECT attempt($$SELECT bucardo.add_customcode('x', 'before_sync', 'hooks.decide(jsonb)')$$);
SELECT attempt($$SELECT bucardo.add_customcode('x', 'after_txn', sql => 'SELECT 1', db => 'A')$$);
SELECT attempt($$SELECT bucardo.update_customcode('first', whenrun => 'exception')$$);
-- Changes: what is null stays.
SELECT bucardo.update_customcode('first', priority => 5, relation => 'hooks."T"');
SELECT bucardo.update_customcode('second', code => 'hooks.decide(jsonb)', status => 'active');
SELECT name, code, relation, priority, status, owner FROM bucardo.customcode ORDER BY name;
SELECT attempt($$SELECT bucardo.update_customcode('x', priority => 1)$$);
SELECT attempt($$SELECT bucardo.update_customcode('first', sql => 'SELECT 1')$$);
SELECT attempt($$SELECT bucardo.update_customcode('first', code => 'hooks.many(jsonb)')$$);
-- It runs with the rights of the role that registered it, which must have them.
CREATE ROLE regress_registrar;
GRANT USAGE ON SCHEMA bucardo, hooks TO regress_registrar;
GRANT EXECUTE ON FUNCTION bucardo.add_customcode, bucardo.update_customcode TO regress_registrar;
REVOKE EXECUTE ON FUNCTION hooks.decide FROM PUBLIC;
SET ROLE regress_registrar;
SELECT attempt($$SELECT bucardo.add_customcode('third', 'conflict', 'hooks.decide(jsonb)')$$);
SELECT attempt($$SELECT bucardo.update_customcode('first', code => 'hooks.decide(jsonb)')$$);
SELECT bucardo.add_customcode('third', 'conflict', 'hooks."Other one"(jsonb)');
SELECT bucardo.update_customcode('first', code => 'hooks."Other one"(jsonb)');
SELECT bucardo.update_customcode('second', priority => 7);
SELECT attempt($$SELECT bucardo.remove_customcode('third')$$);
RESET ROLE;
SELECT name, code, priority, owner FROM bucardo.customcode ORDER BY name;
-- What a customcode may call, elsewhere.
SELECT attempt($$SELECT bucardo.member_query('A', 'SELECT 1')$$);
SELECT attempt($$SELECT bucardo.member_exec('A', 'SELECT 1')$$);
-- And away.
SELECT bucardo.remove_customcode(name) FROM bucardo.customcode ORDER BY name;
SELECT attempt($$SELECT bucardo.remove_customcode('first')$$);
SELECT bucardo.remove_relgroup('g'), bucardo.remove_db('A');
DROP SCHEMA hooks CASCADE;
DROP FUNCTION attempt(text);
DROP OWNED BY regress_registrar;
DROP ROLE regress_registrar;
