-- What every function says to wrong arguments that need no second server: SQLSTATE, message, hint.
CREATE TABLE refused (id int PRIMARY KEY);
CREATE TABLE "it's ""so""" (id int PRIMARY KEY);
SELECT bucardo.add_db('A'), bucardo.add_relgroup('g', 'public.refused');
CREATE FUNCTION attempt(call text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE detail text; hint text; answer text;
BEGIN
    EXECUTE 'SELECT bucardo.' || call INTO answer;
    RETURN call || E'\n  answered ' || coalesce(answer, 'null');
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
    RETURN call || E'\n  ' || SQLSTATE || ' ' || SQLERRM || coalesce(E'\n  ' || nullif(detail, ''), '') || coalesce(E'\n  ' || nullif(hint, ''), E'\n  NO HINT');
END$$;
\pset format unaligned
\pset tuples_only on
SELECT attempt(call) FROM unnest(ARRAY[
    'kick(NULL)', 'kick(''x'', NULL)', 'kick(''it''''s "so"'')', 'kick(''x'', ''-1 s'')', 'kick(E''new\nline'')',
    'pending(''x'')', 'pending(NULL)', 'purge(''x'')', 'purge(NULL)',
    'pause(NULL)', 'resume(NULL)', 'activate(NULL)', 'deactivate(NULL)', 'pause(''x'')', 'resume(''x'')', 'activate(''x'')',
    'deactivate(''x'')', 'validate_sync(NULL)', 'validate_sync(''x'')', 'remove_sync(NULL)', 'remove_sync(''x'')',
    'stop(timeout => ''-1 s'')', 'stop(timeout => NULL)', 'ping(''-1 s'')', 'ping(NULL)', 'start(NULL)',
    'wait_for_changes(''-1 s'')', 'wait_for_changes(NULL)'
]) call;
SELECT attempt(call) FROM unnest(ARRAY[
    'add_db(NULL)', 'add_db('''')', 'add_db(''A'')', 'add_db(''B'', ''nonsense'')', 'add_db(''B'', status => ''on'')', 'add_db(''B'', role => ''source'')',
    'add_db(''B'', dbgroup => ''d'', role => ''sauce'')', 'add_db(''B'', dbgroup => ''d:e'')', 'add_db(''B'', ''service=nosuch'')',
    'update_db(NULL)', 'update_db(''x'')', 'update_db(''A'', status => ''on'')', 'update_db(''A'', ''x=y'')', 'remove_db(NULL)', 'remove_db(''x'')',
    'add_dbgroup(NULL)', 'add_dbgroup(''d'', NULL)', 'add_dbgroup(''d'', ''A'')', 'add_dbgroup(''e'', ''A:'')', 'add_dbgroup(''e'', ''A,A'')', 'add_dbgroup(''e'', ''x'')',
    'add_dbgroup(''e'', ''A:king'')', 'update_dbgroup(NULL, ''A'')', 'update_dbgroup(''x'', ''A'')', 'update_dbgroup(''d'', NULL)', 'update_dbgroup(''d'', '''')', 'remove_dbgroup(NULL)', 'remove_dbgroup(''x'')'
]) call;
SELECT attempt(call) FROM unnest(ARRAY[
    'add_relgroup(NULL)', 'add_relgroup(''h'', ''public.*'')', 'add_relgroup(''h'', ''"'')', 'add_relgroup(''h'', ''a.b.c.d'')', 'add_relgroup(''h'', ''public.refused,public.refused'')',
    'remove_relgroup(NULL)', 'remove_relgroup(''x'')',
    'add_table(NULL, ''g'')', 'add_table(''t'', NULL)', 'add_table(''public.refused'', ''x'')', 'add_table(''public.refused'', ''g'')', 'add_table('''', ''g'')', 'add_table(''a.b.c'', ''g'')',
    'add_table(''public.missing'', ''g'', db => ''A'')', 'add_table(''public.missing'', ''g'', db => ''x'')', 'add_table(''pg_catalog.pg_class'', ''g'', db => ''A'')', 'add_table(''bucardo.sync'', ''g'', db => ''A'')',
    'add_table(''public.refused'', ''g'', pkey => ''nosuch'', db => ''A'')', 'add_table(''other'', ''g'', conflict_strategy => ''who knows'')',
    'add_sequence(NULL, ''g'')', 'add_sequence(''public.refused'', ''g'', db => ''A'')', 'add_sequence(''public.missing'', ''g'', db => ''A'')',
    'add_all_tables(NULL, ''A'')', 'add_all_tables(''g'', NULL)', 'add_all_tables(''g'', ''x'')', 'add_all_tables(''g'', ''A'', ''nosuch'')', 'add_all_sequences(''g'', ''A'', ''nosuch'')',
    'update_table(NULL, ''g'')', 'update_table(''public.refused'', NULL)', 'update_table(''public.missing'', ''g'')', 'update_table(''public.refused'', ''g'', conflict_strategy => ''who knows'')',
    'remove_table(NULL, ''g'')', 'remove_table(''public.missing'', ''g'')', 'remove_table(''public.refused'', NULL)'
]) call;
SELECT attempt('add_sync(' || arguments || ')') FROM unnest(ARRAY[
    'NULL, ''A''', '''s'', NULL', '''s'', ''A''', '''s'', ''A'', tables => ''public.refused''', '''s'', ''A,A'', tables => ''public.refused''', '''s'', ''A:source,x:target'', tables => ''public.refused''',
    '''s'', ''A:king'', tables => ''public.refused''', '''s'', '''', tables => ''public.refused''', '''s'', ''A,B'', tables => ''''', '''s'', ''A,B'', relgroup => ''x''', '''s'', ''A,B'', tables => ''x'', relgroup => ''g''',
    '''s'', ''A:king,x:target,A:queen,,c:d'', tables => ''public.missing''', '''s'', ''A:king,nobody:prince'', tables => '''''
]) arguments;
SELECT attempt('add_sync(''s'', ''A,B'', tables => ''public.refused'', ' || option || ')') FROM unnest(ARRAY[
    'checktime => ''-1 s''', 'checktime => ''0''', 'checktime => ''1 us''', 'lifetime => ''-1 day''', 'lifetime => ''0''', 'maxkicks => -1', 'onetimecopy => 3',
    'conflict_strategy => ''''', 'conflict_strategy => ''latest''', 'isolation_level => ''read committed''', 'deletemethod => ''burn''', 'status => ''maybe'''
]) option;
SELECT attempt('add_sync(''s'', ''A,B'', tables => ''public.refused'', conflict_strategy => ''latest'', onetimecopy => 3, checktime => ''-1 s'', lifetime => ''-1 s'', maxkicks => -1, isolation_level => ''dirty'', deletemethod => ''burn'', status => ''maybe'')');
SELECT attempt('update_sync(''s'', maxkicks => -1, status => ''maybe'')');
SELECT attempt('update_sync(''s'', ' || option || ')') FROM unnest(ARRAY['checktime => ''-1 s''', 'checktime => ''0''', 'lifetime => ''-1 s''']) option;
SELECT attempt(call) FROM unnest(ARRAY[
    'add_customname(NULL, ''x'')', 'add_customname(''public.refused'', NULL)', 'add_customname(''public.refused'', ''x'', db => ''x'')', 'add_customcols(''public.refused'', NULL)', 'remove_customname(''public.refused'')', 'remove_customcols(NULL)'
]) call;
-- Names that need quotes, and long ones, stay on one line and are quoted in what the hint says.
SELECT attempt(format('add_db(%L)', name)), attempt(format('remove_db(%L)', name)), attempt(format('add_sync(%L, ''A'', tables => ''all'')', name))
  FROM unnest(ARRAY['it''s "so"', E'new\nline', repeat('n', 200)]) name;
SELECT bucardo.remove_db(name) FROM bucardo.db ORDER BY name;
SELECT bucardo.remove_relgroup(name) FROM bucardo.relgroup ORDER BY name;
SELECT bucardo.remove_dbgroup(name) FROM bucardo.dbgroup ORDER BY name;
DROP FUNCTION attempt(text);
DROP TABLE refused, "it's ""so""";
