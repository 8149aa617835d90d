-- Plain capture: the trigger function of a table on a source that does not have the extension, made for its key. Stands on every
-- source, beside the objects of sql/capture.sql. It must never make the application's statement fail, nor, with the rights of
-- who installed capture, call anything that the table's owner could have made.

-- The key of a captured table, column by column: its name, what makes a value of it one of the segment's type ("::integer" after
-- one of a domain; an operator or a cast of the domain's owner's own is then not looked for), by what two are equal, and its type.
CREATE OR REPLACE FUNCTION bucardo.capture_key(p_capture bucardo.capture) RETURNS TABLE (ord bigint, name text, plain text, equal text, type oid)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $body$
    SELECT u.ord, quote_ident(u.k), CASE WHEN base <> a.atttypid THEN '::' || format_type(base, -1) ELSE '' END,
           bucardo.capture_equal(p_capture.relid, u.k), a.atttypid
      FROM unnest(p_capture.keys) WITH ORDINALITY u(k, ord) JOIN pg_attribute a ON a.attrelid = p_capture.relid AND a.attname = u.k
     CROSS JOIN LATERAL bucardo.capture_base(a.atttypid) base
$body$;

-- Whether a query that names a relation (as %1$s) can be parsed, and says true. A capture function asks so, before it plans a statement
-- that reads a key, whether the key has the types that it was made for, and what it writes into is there: a column may be gone, or
-- have a type to which casts or operators belong that the table's owner has made, which would then be looked for, and what is constant
-- in them called.
-- "Immutable" is not true of it, and is why it costs nothing: a call with constants is made where an expression is planned, and a kept
-- plan is made anew when a relation is altered of which the query before it had the number as a constant of type oid: '1'::oid, not
-- 1::oid. p_other: one more such relation. A plan that would not fold it asks each time. It asks the parser, which knows what is
-- true now; a query that reads the catalogs would ask a snapshot, which may be older.
CREATE OR REPLACE FUNCTION bucardo.capture_sound(p_relation oid, p_other oid, p_query text) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    sound boolean;
BEGIN
    EXECUTE format(p_query, p_relation::regclass) INTO sound;
    RETURN sound IS TRUE;
EXCEPTION WHEN syntax_error_or_access_rule_violation OR invalid_schema_name OR internal_error THEN
    RETURN false;
END
$body$;

-- The same as text, of the table and the sequence of its segments, and of one segment, whose columns may have gone with their types. A
-- segment that is not in use must not be asked for: it may be locked, by a purge that waits for who reads it. Also by name: in a
-- restored dump the numbers are those of other objects.
CREATE OR REPLACE FUNCTION bucardo.capture_sound_table(p_capture bucardo.capture) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $body$
    SELECT format('bucardo.capture_sound(%L::oid, %L::oid, %L)', p_capture.relid, p_capture.active,
        format('SELECT to_regclass(%L)::oid = %s AND ', replace(p_capture.active::regclass::text, '%', '%%'), p_capture.active)
        || string_agg(format('pg_typeof((NULL::%%1$s).%s)::oid = %s', replace(k.name, '%', '%%'), k.type), ' AND ' ORDER BY k.ord))
      FROM bucardo.capture_key(p_capture) k
$body$;

CREATE OR REPLACE FUNCTION bucardo.capture_sound_segment(p_capture bucardo.capture, p_segment oid) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $body$
    SELECT format('bucardo.capture_sound(%L::oid, NULL, %L)', p_segment,
        format('SELECT to_regclass(%L)::oid = %s', replace(p_segment::regclass::text, '%', '%%'), p_segment)
        || string_agg(format(' AND (NULL::%%1$s).k%s IS NULL', k), '')) FROM generate_subscripts(p_capture.keys, 1) k
$body$;

-- The statement that writes the key of a statement's only row into a segment. p_rest: what comes after the key. All columns of the
-- segment have values of their very types, and none is left out: the rows of the transition table then go into it as they are,
-- without a node of the plan between, and each node counts the columns anew. p_where: what else has to be so.
DROP FUNCTION IF EXISTS bucardo.capture_write_one(text, text, text, text, text);
DROP FUNCTION IF EXISTS bucardo.capture_write_one(text, text, text, text);
CREATE OR REPLACE FUNCTION bucardo.capture_write_one(p_capture bucardo.capture, p_segment text, p_keys text, p_rows text, p_existed text, p_where text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $body$
    SELECT format('INSERT INTO %s SELECT %s, txid_current(), clock_timestamp(), NULL::text, %s::boolean%s FROM %s %s;', p_segment, p_keys, p_existed,
        (SELECT string_agg(format(', NULL::%s', format_type(a.atttypid, -1)), '' ORDER BY a.attnum) FROM pg_attribute a
          WHERE a.attrelid = p_capture.segments[1] AND NOT a.attisdropped AND a.attname ~ '^ks[0-9]+$'), p_rows, p_where)
$body$;

-- The statement that writes the keys of a query: as arrays where there can be some, else each as it is. An array must stay
-- far from what a value can hold, or the application's statement would fail: a million keys of fixed width at once, a
-- thousand of any other. What p_then says is done with the arrays of each million. p_anew: it is planned for the rows that there are
-- each time. A session keeps other plans from its first statement on, and how two transition tables are joined that had a row each
-- would take hours for a million. p_from: how many of the first rows are written already.
DROP FUNCTION IF EXISTS bucardo.capture_write(bucardo.capture, text, text, text, text, text, boolean);
DROP FUNCTION IF EXISTS bucardo.capture_write(bucardo.capture, text, text, text, text, text, boolean, text);
DROP FUNCTION IF EXISTS bucardo.capture_write(bucardo.capture, text, text, text, text, text, boolean, text, boolean);
CREATE OR REPLACE FUNCTION bucardo.capture_write(p_capture bucardo.capture, p_segment text, p_keys text, p_existed text, p_arrays text,
    p_aggregates text, p_fixed boolean, p_then text, p_anew boolean, p_from integer) RETURNS text
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    tx text := CASE WHEN p_anew THEN '$1' ELSE 'tx' END;
    skip text := CASE WHEN p_anew THEN '$2' ELSE 'skip' END;
    keys text := CASE WHEN p_from = 0 THEN p_keys ELSE format('%s OFFSET %s', p_keys, p_from) END;
    one text;
BEGIN
    IF p_capture.batched AND p_fixed THEN
        one := format('INSERT INTO %1$s (%4$s, xid, at, existed) SELECT %5$s, %6$s, clock_timestamp(), %3$s FROM (%2$s OFFSET %7$s LIMIT 1000000) d
                        HAVING count(*) > 0 RETURNING %4$s', p_segment, p_keys, p_existed, p_arrays, p_aggregates, tx, skip);
        RETURN format($f$
                skip := %s;
                LOOP
                    %s;
                    %sEXIT WHEN array_length(made.ks1, 1) IS DISTINCT FROM 1000000;
                    skip := skip + 1000000;
                END LOOP;$f$, p_from, CASE WHEN p_anew THEN format('EXECUTE %L INTO made USING tx, skip', one) ELSE one || ' INTO made' END, p_then);
    END IF;
    one := CASE WHEN p_capture.batched THEN
        format('INSERT INTO %1$s (%4$s, xid, at, existed) SELECT %5$s, %6$s, clock_timestamp(), %3$s
                    FROM (SELECT k.*, (row_number() OVER () - 1) / 1000 AS part FROM (%2$s) k) d GROUP BY d.part', p_segment, keys, p_existed, p_arrays, p_aggregates, tx)
        ELSE format('INSERT INTO %s SELECT d.*, %s, clock_timestamp(), NULL, %s FROM (%s) d', p_segment, tx, p_existed, keys) END;
    RETURN format('
                %s;', CASE WHEN p_anew THEN format('EXECUTE %L USING tx', one) ELSE one END);
END
$body$;

-- What the capture function of row triggers does first: the same as capture_sound, but of the types of NEW, which
-- belong to a partition. Whoever writes into that holds no lock on the partitioned table, and must not ask for one: who alters it
-- waits for the partition. Only this can fail (an internal error: the type that was looked for earlier in the session is gone), so only
-- this stands in a block with an exception. What writes stands outside: in there it would take a subtransaction's id, and a
-- transaction that has more than 64 of those slows down the snapshots of all others.
-- After it, `active` is the number of a segment, or null: then the whole table is to be marked.
CREATE OR REPLACE FUNCTION bucardo.capture_look(p_capture bucardo.capture) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $body$
    SELECT format($f$
    BEGIN
        active := coalesce(pg_sequence_last_value(%L::regclass), 1);
%s        END IF;
        IF active IS NOT NULL AND TG_OP = 'UPDATE' THEN
            moved := (%s) IS NOT TRUE;
        END IF;
    EXCEPTION WHEN syntax_error_or_access_rule_violation OR invalid_schema_name OR internal_error THEN
        active := NULL;
    END;$f$, p_capture.active::regclass,
        -- But for the types never true: for the names alone, the types of which the segment's columns may have gone with. Each segment is
        -- in an expression of its own: one that is not active may be locked, by a purge that waits for who reads it.
        (SELECT string_agg(format($f$        %s active = %s THEN
            IF %L::regclass IS NULL OR %s OR (%s) IS NOT TRUE THEN
                active := NULL;
            END IF;
$f$, CASE WHEN g.i = 1 THEN 'IF' ELSE 'ELSIF' END, g.i, g.segment, g.gone, v.types), '' ORDER BY g.i)
           FROM (SELECT u.i, u.g::regclass AS segment,
                        (SELECT string_agg(format('(NULL::%s).k%s IS NOT NULL', u.g::regclass, k), ' OR ') FROM generate_subscripts(p_capture.keys, 1) k) AS gone
                   FROM unnest(p_capture.segments) WITH ORDINALITY u(g, i)) g), v.same)
      FROM (SELECT string_agg(format('pg_typeof(NEW.%s)::oid = %s', k.name, k.type), ' AND ' ORDER BY k.ord) AS types,
                   string_agg(format('NEW.%1$s%2$s %3$s OLD.%1$s%2$s', k.name, k.plain, k.equal), ' AND ' ORDER BY k.ord) AS same
              FROM bucardo.capture_key(p_capture) k) v
$body$;

-- The body of the function of row triggers, which read OLD and NEW.
CREATE OR REPLACE FUNCTION bucardo.capture_row_body(p_capture bucardo.capture) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    old_row text; new_row text;
    body text := '';
BEGIN
    SELECT string_agg(format('OLD.%s%s', k.name, k.plain), ', ' ORDER BY k.ord), string_agg(format('NEW.%s%s', k.name, k.plain), ', ' ORDER BY k.ord)
      INTO old_row, new_row FROM bucardo.capture_key(p_capture) k;
    FOR i IN 1 .. 3 LOOP
        body := body || format($f$
    %4$s active = %5$s THEN
        IF TG_OP = 'INSERT' THEN INSERT INTO %1$s VALUES (%2$s, txid_current(), clock_timestamp(), NULL, NULL);
        ELSE
            INSERT INTO %1$s VALUES (%3$s, txid_current(), clock_timestamp(), NULL, true);
            IF TG_OP = 'UPDATE' THEN
                IF moved THEN INSERT INTO %1$s VALUES (%2$s, txid_current(), clock_timestamp(), NULL, true); END IF;
            END IF;
        END IF;$f$, p_capture.segments[i]::regclass, new_row, old_row, CASE WHEN i = 1 THEN 'IF' ELSE 'ELSIF' END, i);
    END LOOP;
    -- Everybody may call it in a trigger of his own table, where types and casts are his.
    RETURN format($f$
    IF TG_RELID <> %1$s AND pg_partition_root(TG_RELID) = pg_partition_root(%1$s) IS NOT TRUE THEN
        RETURN NULL;
    END IF;%2$s
    IF active IS NULL THEN
        PERFORM bucardo.capture_whole(%1$s);
        RETURN NULL;
    END IF;%3$s
    END IF;
$f$, p_capture.relid, bucardo.capture_look(p_capture), body);
END
$body$;

-- The body of the function of statement triggers, which read the transition tables. A statement of one row, which most are, goes
-- through as few expressions as can be: each is prepared anew in each transaction.
CREATE OR REPLACE FUNCTION bucardo.capture_statement_body(p_capture bucardo.capture) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    same text; arrays text; aggregates text; new_columns text; old_columns text; created text; deleted text;
    compared text; differ text; gone text; old_key text; new_key text; one_key text; one_row text; alone text;
    body text := '';
    segment text;
    fixed boolean;
    comparable boolean;
BEGIN
    SELECT string_agg(format('o.%s%s AS k%s', k.name, k.plain, k.ord), ', ' ORDER BY k.ord), string_agg(format('n.%s%s AS k%s', k.name, k.plain, k.ord), ', ' ORDER BY k.ord),
           string_agg(format('n.%1$s%2$s %3$s o.%1$s%2$s', k.name, k.plain, k.equal), ' AND ' ORDER BY k.ord),
           string_agg(format('o.%s%s', k.name, k.plain), ', ' ORDER BY k.ord), string_agg(format('n.%s%s', k.name, k.plain), ', ' ORDER BY k.ord),
           string_agg(format('ks%s', k.ord), ', ' ORDER BY k.ord), string_agg(format('array_agg(d.k%s)', k.ord), ', ' ORDER BY k.ord),
           bool_and(t.typlen > 0),
           -- The server's own types and enums, whose equality is what their arrays and rows are compared by.
           bool_and((b.oid < 16384 OR b.typtype = 'e') AND b.typcategory NOT IN ('A', 'C') AND k.equal = 'OPERATOR(pg_catalog.=)')
      INTO old_columns, new_columns, same, old_key, new_key, arrays, aggregates, fixed, comparable
      FROM bucardo.capture_key(p_capture) k JOIN pg_type t ON t.oid = k.type JOIN pg_type b ON b.oid = bucardo.capture_base(k.type);
    created := format('SELECT %s FROM bucardo_new n', new_columns);
    deleted := format('SELECT %s FROM bucardo_old o', old_columns);
    -- Of keys whose arrays are the same before and after, none has changed: sooner seen than by looking for each.
    SELECT string_agg(format('array_agg(d.k%s)', ord), ', ' ORDER BY ord), string_agg(format('held.ks%s', ord), ', ' ORDER BY ord)
      INTO compared, differ FROM generate_subscripts(p_capture.keys, 1) ord;
    compared := format($f$IF NOT moved AND made.ks1 IS NOT NULL THEN
                        held := made;
                        SELECT %s INTO %s FROM (SELECT %s FROM bucardo_old o OFFSET skip LIMIT 1000000) d;
                        moved := made *<> held;
                    END IF;
                    $f$, compared, differ, old_columns);
    -- Whether there was but one row and its key is what it was: one array of up to two old keys tells both, and is compared with but one
    -- new key, however many there are. Of other types than those, byte by byte.
    IF comparable THEN
        SELECT string_agg(format('n.k%s', ord), ', ' ORDER BY ord), format('(%s LIMIT 1) n', created) INTO one_key, one_row FROM generate_subscripts(p_capture.keys, 1) ord;
        alone := format(CASE WHEN cardinality(p_capture.keys) = 1 THEN 'WHERE ARRAY(SELECT %s FROM bucardo_old o LIMIT 2) = ARRAY[%s]'
            ELSE 'WHERE ARRAY(SELECT ROW(%s) FROM bucardo_old o LIMIT 2) = ARRAY[ROW(%s)]' END, old_key, one_key);
    ELSE
        one_key := new_key; one_row := 'bucardo_new n, bucardo_old o';
        alone := format('WHERE ROW(%s)::record *= ROW(%s)::record AND NOT EXISTS (SELECT FROM bucardo_new OFFSET 1)', new_key, old_key);
    END IF;
    FOR i IN 1 .. 3 LOOP
        segment := p_capture.segments[i]::regclass::text;
        gone := bucardo.capture_write(p_capture, segment, format('%s WHERE NOT EXISTS (SELECT FROM bucardo_new n WHERE %s)', deleted, same),
            'true', arrays, aggregates, fixed, '', true, 0);
        IF p_capture.batched AND fixed THEN
            gone := format('IF moved THEN%s
            END IF;', gone);
        END IF;
        -- Of a new or deleted row no more has to be known than whether there is another: two are written at once, and then the rest.
        body := body || format($f$
    %1$s active = %2$s THEN
        IF TG_OP = 'UPDATE' AND %3$s THEN
            %4$s
            IF FOUND THEN
                RETURN NEW;
            END IF;
            PERFORM FROM bucardo_new LIMIT 1;
            IF NOT FOUND THEN
                RETURN NEW;
            END IF;
            tx := txid_current();
            moved := false;%5$s
            %6$s
            RETURN NEW;
        ELSIF TG_OP = 'INSERT' AND %3$s THEN
            %7$s
            GET DIAGNOSTICS written = ROW_COUNT;
            IF written < 2 THEN
                RETURN NEW;
            END IF;
            tx := txid_current();%8$s
            RETURN NEW;
        ELSIF TG_OP = 'DELETE' AND %3$s THEN
            %9$s
            GET DIAGNOSTICS written = ROW_COUNT;
            IF written < 2 THEN
                RETURN NEW;
            END IF;
            tx := txid_current();%10$s
            RETURN NEW;
        END IF;$f$, CASE WHEN i = 1 THEN 'IF' ELSE 'ELSIF' END, i, bucardo.capture_sound_segment(p_capture, p_capture.segments[i]),
            bucardo.capture_write_one(p_capture, segment, one_key, one_row, 'true', alone),
            bucardo.capture_write(p_capture, segment, created, 'true', arrays, aggregates, fixed, compared, false, 0),
            gone,
            bucardo.capture_write_one(p_capture, segment, new_columns, 'bucardo_new n', 'NULL', 'LIMIT 2'),
            bucardo.capture_write(p_capture, segment, created, 'NULL', arrays, aggregates, fixed, '', false, 2),
            bucardo.capture_write_one(p_capture, segment, old_columns, 'bucardo_old o', 'true', 'LIMIT 2'),
            bucardo.capture_write(p_capture, segment, deleted, 'true', arrays, aggregates, fixed, '', false, 2));
    END LOOP;
    -- NEW is empty by statement, and to return it no expression.
    RETURN format($f$
    active := CASE WHEN %1$s THEN coalesce(pg_sequence_last_value(%2$L::regclass), 1) END;%3$s
    END IF;
    IF TG_OP = 'DELETE' THEN
        PERFORM FROM bucardo_old LIMIT 1;
    ELSE
        PERFORM FROM bucardo_new LIMIT 1;
    END IF;
    IF FOUND THEN
        PERFORM bucardo.capture_whole(%4$s);
    END IF;
$f$, bucardo.capture_sound_table(p_capture), p_capture.active, body, p_capture.relid);
END
$body$;

-- The body of the plain capture function of one table.
CREATE OR REPLACE FUNCTION bucardo.capture_body(p_capture bucardo.capture) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    limited boolean;
BEGIN
    -- Altered already, when an older version's function is made anew: what captures it next reads all of it.
    IF NOT bucardo.capture_intact(p_capture) OR p_capture.key_types IS DISTINCT FROM bucardo.capture_key_types(p_capture.relid, p_capture.keys) THEN
        RETURN format('BEGIN PERFORM bucardo.capture_whole(%s); RETURN NULL; END', p_capture.relid);
    END IF;
    -- Segments that an older version made have the lengths that the key had.
    limited := EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = ANY (p_capture.segments) AND a.attnum > 0 AND NOT a.attisdropped AND a.atttypmod >= 0);
    RETURN format($f$
#variable_conflict use_variable
DECLARE
    active bigint;
    moved boolean;
%1$sBEGIN
%3$s%2$s%4$s    RETURN NULL;
END
$f$, CASE WHEN NOT p_capture.by_row THEN E'    written bigint;\n    tx bigint;\n    skip bigint;\n    made record;\n    held record;\n' END,
        CASE WHEN p_capture.by_row THEN bucardo.capture_row_body(p_capture) ELSE bucardo.capture_statement_body(p_capture) END,
        CASE WHEN limited THEN E'    BEGIN\n' END,
        CASE WHEN limited THEN format(E'    EXCEPTION WHEN data_exception THEN\n        PERFORM bucardo.capture_whole(%s);\n    END;\n', p_capture.relid) END);
END
$body$;

-- Makes the plain capture function of a table anew. Whoever makes a partition gives it the row triggers of the table, and so needs
-- the right to their function; nobody can name it without a right to the schema. Without JIT: a session keeps the plans of its first
-- statement, and what they cost for a statement of many rows would have every later one, of one row too, compiled. pg_catalog comes
-- before what a path names, and a path that does not name it is sooner made. Without a path of its own all plans would be made anew
-- whenever the application has set another.
CREATE OR REPLACE FUNCTION bucardo.capture_function(c bucardo.capture) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    called text := format('bucardo.%I()', bucardo.capture_clip(format('seg%s_capture_%s_%s', c.id, c.schemaname, c.relname)));
    grantee regrole;
BEGIN
    EXECUTE format('CREATE OR REPLACE FUNCTION %s RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_temp SET jit = off AS %L',
        called, bucardo.capture_body(c));
    EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', called);
    -- Default privileges may have given it to others: in a trigger of their own, what it calls by name could be theirs.
    FOR grantee IN SELECT a.grantee::regrole FROM pg_proc p CROSS JOIN aclexplode(p.proacl) a
                    WHERE p.oid = called::regprocedure AND a.grantee NOT IN (0, p.proowner) LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM %s', called, grantee);
    END LOOP;
    IF EXISTS (SELECT FROM pg_class r WHERE r.oid = c.relid AND r.relkind = 'p') THEN
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO PUBLIC', called);
    END IF;
    RETURN called;
END
$body$;
