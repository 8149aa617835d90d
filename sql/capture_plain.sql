-- Plain capture: the trigger function of a table on a source that does not have the extension, made for its key. Stands on every
-- source, beside the objects of sql/capture.sql. It must never make the application's statement fail, nor, with the rights of
-- who installed capture, call anything that the table's owner could have made.

-- The statement that writes the key of a statement's only row into a segment, and of more than one row nothing. p_rows: the rows of a
-- transition table, perhaps joined to others, of which p_only is true.
DROP FUNCTION IF EXISTS bucardo.capture_write_one(text, text, text, text, text);
DROP FUNCTION IF EXISTS bucardo.capture_write_one(text, text, text, text);
CREATE OR REPLACE FUNCTION bucardo.capture_write_one(p_segment text, p_keys text, p_rows text, p_only text, p_existed text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $body$
    SELECT format('INSERT INTO %s SELECT %s, txid_current(), clock_timestamp(), NULL, %s FROM %s WHERE %s AND NOT EXISTS (SELECT FROM %s OFFSET 1);',
        p_segment, p_keys, p_existed, p_rows, p_only, split_part(p_rows, ' ', 1))
$body$;

-- The statement that writes the keys of a query: as arrays where there can be some, else each as it is. An array must stay
-- far from what a value can hold, or the application's statement would fail: a million keys of fixed width at once, a
-- thousand of any other. What p_then says is done with the arrays of each million. p_anew: it is planned for the rows that there are
-- each time. A session keeps other plans from its first statement on, and how two transition tables are joined that had a row each
-- would take hours for a million.
DROP FUNCTION IF EXISTS bucardo.capture_write(bucardo.capture, text, text, text, text, text, boolean);
DROP FUNCTION IF EXISTS bucardo.capture_write(bucardo.capture, text, text, text, text, text, boolean, text);
CREATE OR REPLACE FUNCTION bucardo.capture_write(p_capture bucardo.capture, p_segment text, p_keys text, p_existed text, p_arrays text,
    p_aggregates text, p_fixed boolean, p_then text, p_anew boolean) RETURNS text
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    tx text := CASE WHEN p_anew THEN '$1' ELSE 'tx' END;
    skip text := CASE WHEN p_anew THEN '$2' ELSE 'skip' END;
    one text;
BEGIN
    IF p_capture.batched AND p_fixed THEN
        one := format('INSERT INTO %1$s (%4$s, xid, at, existed) SELECT %5$s, %6$s, clock_timestamp(), %3$s FROM (%2$s OFFSET %7$s LIMIT 1000000) d
                        HAVING count(*) > 0 RETURNING %4$s', p_segment, p_keys, p_existed, p_arrays, p_aggregates, tx, skip);
        RETURN format($f$
                skip := 0;
                LOOP
                    %s;
                    %sEXIT WHEN array_length(made.ks1, 1) IS DISTINCT FROM 1000000;
                    skip := skip + 1000000;
                END LOOP;$f$, CASE WHEN p_anew THEN format('EXECUTE %L INTO made USING tx, skip', one) ELSE one || ' INTO made' END, p_then);
    END IF;
    one := CASE WHEN p_capture.batched THEN
        format('INSERT INTO %1$s (%4$s, xid, at, existed) SELECT %5$s, %6$s, clock_timestamp(), %3$s
                    FROM (SELECT k.*, (row_number() OVER () - 1) / 1000 AS part FROM (%2$s) k) d GROUP BY d.part', p_segment, p_keys, p_existed, p_arrays, p_aggregates, tx)
        ELSE format('INSERT INTO %s SELECT d.*, %s, clock_timestamp(), NULL, %s FROM (%s) d', p_segment, tx, p_existed, p_keys) END;
    RETURN format('
                %s;', CASE WHEN p_anew THEN format('EXECUTE %L USING tx', one) ELSE one END);
END
$body$;

-- The key of a captured table, column by column: its name, what makes a value of it one of the segment's type ("::integer" after
-- one of a domain; an operator or a cast of the domain's owner's own is then not looked for), by what two are equal, and its type.
CREATE OR REPLACE FUNCTION bucardo.capture_key(p_capture bucardo.capture) RETURNS TABLE (ord bigint, name text, plain text, equal text, type oid)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $body$
    SELECT u.ord, quote_ident(u.k), CASE WHEN base <> a.atttypid THEN '::' || format_type(base, -1) ELSE '' END,
           bucardo.capture_equal(p_capture.relid, u.k), a.atttypid
      FROM unnest(p_capture.keys) WITH ORDINALITY u(k, ord) JOIN pg_attribute a ON a.attrelid = p_capture.relid AND a.attname = u.k
     CROSS JOIN LATERAL bucardo.capture_base(a.atttypid) base
$body$;

-- What a plain capture function does first. By then the table may have been altered, and capture not yet been made anew: its key
-- columns may be gone, or have another type, to which casts or operators belong that their owner has made. So it looks whether
-- everything is there, and whether the key's types are what they were, before a statement that reads a value is planned: an
-- operator or a cast would be looked for then, and what is constant in it called. Triggers by statement have the types in NEW as well.
-- Only this can fail (an internal error: the type that was looked for earlier in the session is gone), so only this stands in a block
-- with an exception. What writes stands outside: in there it would take a subtransaction's id, and a transaction that has more than
-- 64 of those slows down the snapshots of all others.
-- After it, `active` is the number of a segment, or null: then the whole table is to be marked.
CREATE OR REPLACE FUNCTION bucardo.capture_look(p_capture bucardo.capture) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $body$
    SELECT format($f$
    BEGIN
        active := coalesce(pg_sequence_last_value(%L::regclass), 1);
%s        END IF;%s
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
                   FROM unnest(p_capture.segments) WITH ORDINALITY u(g, i)) g),
        CASE WHEN p_capture.by_row THEN format($f$
        IF active IS NOT NULL AND TG_OP = 'UPDATE' THEN
            moved := (%s) IS NOT TRUE;
        END IF;$f$, same) END)
      FROM (SELECT string_agg(format('pg_typeof(NEW.%s)::oid = %s', k.name, k.type), ' AND ' ORDER BY k.ord) AS types,
                   string_agg(format('NEW.%1$s%2$s %3$s OLD.%1$s%2$s', k.name, k.plain, k.equal), ' AND ' ORDER BY k.ord) AS same
              FROM bucardo.capture_key(p_capture) k) v
$body$;

-- The body of the plain capture function of one table. By statement it reads the transition tables, by row OLD and NEW.
CREATE OR REPLACE FUNCTION bucardo.capture_body(p_capture bucardo.capture) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    old_row text; new_row text; same text; arrays text; aggregates text; new_columns text; old_columns text; created text;
    compared text; differ text; gone text; old_key text; new_key text;
    one text := '';
    body text := '';
    segment text;
    branch text;
    fixed boolean;
    limited boolean;
BEGIN
    -- Altered already, when an older version's function is made anew: what captures it next reads all of it.
    IF NOT bucardo.capture_intact(p_capture) OR p_capture.key_types IS DISTINCT FROM bucardo.capture_key_types(p_capture.relid, p_capture.keys) THEN
        RETURN format('BEGIN PERFORM bucardo.capture_whole(%s); RETURN NULL; END', p_capture.relid);
    END IF;
    SELECT string_agg(format('o.%s%s AS k%s', k.name, k.plain, k.ord), ', ' ORDER BY k.ord), string_agg(format('n.%s%s AS k%s', k.name, k.plain, k.ord), ', ' ORDER BY k.ord),
           string_agg(format('OLD.%s%s', k.name, k.plain), ', ' ORDER BY k.ord), string_agg(format('NEW.%s%s', k.name, k.plain), ', ' ORDER BY k.ord),
           string_agg(format('n.%1$s%2$s %3$s o.%1$s%2$s', k.name, k.plain, k.equal), ' AND ' ORDER BY k.ord),
           string_agg(format('o.%s', k.name), ', ' ORDER BY k.ord), string_agg(format('n.%s', k.name), ', ' ORDER BY k.ord),
           string_agg(format('ks%s', k.ord), ', ' ORDER BY k.ord), string_agg(format('array_agg(d.k%s)', k.ord), ', ' ORDER BY k.ord),
           bool_and(t.typlen > 0)
      INTO old_columns, new_columns, old_row, new_row, same, old_key, new_key, arrays, aggregates, fixed
      FROM bucardo.capture_key(p_capture) k JOIN pg_type t ON t.oid = k.type;
    created := format('SELECT %s FROM bucardo_new n', new_columns);
    -- Of keys whose arrays are the same before and after, none has changed: sooner seen than by looking for each.
    SELECT string_agg(format('array_agg(d.k%s)', ord), ', ' ORDER BY ord), string_agg(format('held.ks%s', ord), ', ' ORDER BY ord)
      INTO compared, differ FROM generate_subscripts(p_capture.keys, 1) ord;
    compared := format($f$IF NOT moved AND made.ks1 IS NOT NULL THEN
                        held := made;
                        SELECT %s INTO %s FROM (SELECT %s FROM bucardo_old o OFFSET skip LIMIT 1000000) d;
                        moved := made *<> held;
                    END IF;
                    $f$, compared, differ, old_columns);
    -- Segments that an older version made have the lengths that the key had.
    limited := EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = ANY (p_capture.segments) AND a.attnum > 0 AND NOT a.attisdropped AND a.atttypmod >= 0);
    FOR i IN 1 .. 3 LOOP
        segment := p_capture.segments[i]::regclass::text;
        branch := format('%s active = %s THEN', CASE WHEN i = 1 THEN '    IF' ELSE '    ELSIF' END, i);
        IF p_capture.by_row THEN
            body := body || branch || format($f$
        IF TG_OP = 'INSERT' THEN INSERT INTO %1$s VALUES (%2$s, txid_current(), clock_timestamp(), NULL, NULL);
        ELSE
            INSERT INTO %1$s VALUES (%3$s, txid_current(), clock_timestamp(), NULL, true);
            IF TG_OP = 'UPDATE' THEN
                IF moved THEN INSERT INTO %1$s VALUES (%2$s, txid_current(), clock_timestamp(), NULL, true); END IF;
            END IF;
        END IF;
$f$, segment, new_row, old_row);
        ELSE
            -- Of the only row of an UPDATE only where its key has stayed what it was, byte by byte.
            one := one || branch || format($f$
        IF TG_OP = 'UPDATE' THEN %s
        ELSIF TG_OP = 'INSERT' THEN %s
        ELSE %s
        END IF;
$f$, bucardo.capture_write_one(segment, new_columns, 'bucardo_new n, bucardo_old o', format('ROW(%s)::record *= ROW(%s)::record', new_key, old_key), 'true'),
                bucardo.capture_write_one(segment, new_columns, 'bucardo_new n', 'true', 'NULL'),
                bucardo.capture_write_one(segment, old_columns, 'bucardo_old o', 'true', 'true'));
            gone := bucardo.capture_write(p_capture, segment, format('SELECT %s FROM bucardo_old o WHERE NOT EXISTS (SELECT FROM bucardo_new n WHERE %s)',
                old_columns, same), 'true', arrays, aggregates, fixed, '', true);
            IF p_capture.batched AND fixed THEN
                gone := format('IF moved THEN%s
                END IF;', gone);
            END IF;
            body := body || branch || format($f$
        IF TG_OP = 'UPDATE' THEN
            moved := false; %s
            %s
        ELSIF TG_OP = 'INSERT' THEN %s
        ELSE %s
        END IF;
$f$, bucardo.capture_write(p_capture, segment, created, 'true', arrays, aggregates, fixed, compared, false),
                gone,
                bucardo.capture_write(p_capture, segment, created, 'NULL', arrays, aggregates, fixed, '', false),
                bucardo.capture_write(p_capture, segment, format('SELECT %s FROM bucardo_old o', old_columns), 'true', arrays, aggregates, fixed, '', false));
        END IF;
    END LOOP;
    RETURN format($f$
#variable_conflict use_variable
DECLARE
    active bigint;
    moved boolean;
%4$sBEGIN
%3$s%5$s
%7$s%6$s    IF active IS NULL THEN
        PERFORM bucardo.capture_whole(%1$s);
        RETURN NULL;
    END IF;
%9$s%2$s    END IF;
%8$s    RETURN NULL;
END
$f$, p_capture.relid, body,
        -- Everybody may call that one in a trigger of his own table, where types and casts are his.
        CASE WHEN p_capture.by_row THEN format($f$    IF TG_RELID <> %1$s AND pg_partition_root(TG_RELID) = pg_partition_root(%1$s) IS NOT TRUE THEN
        RETURN NULL;
    END IF;$f$, p_capture.relid) END,
        CASE WHEN NOT p_capture.by_row THEN E'    seen bigint;\n    tx bigint;\n    skip bigint;\n    made record;\n    held record;\n' END,
        bucardo.capture_look(p_capture),
        CASE WHEN NOT p_capture.by_row THEN format($f$%s    END IF;
    IF FOUND THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'DELETE' THEN
        SELECT count(*) INTO seen FROM (SELECT FROM bucardo_old LIMIT 1) x;
    ELSE
        SELECT count(*) INTO seen FROM (SELECT FROM bucardo_new LIMIT 1) x;
    END IF;
    IF seen = 0 THEN
        RETURN NULL;
    END IF;
$f$, one) END,
        CASE WHEN limited THEN E'    BEGIN\n' END,
        CASE WHEN limited THEN format(E'    EXCEPTION WHEN data_exception THEN\n        PERFORM bucardo.capture_whole(%s);\n    END;\n', p_capture.relid) END,
        CASE WHEN NOT p_capture.by_row THEN E'    tx := txid_current();\n' END);
END
$body$;

-- Makes the plain capture function of a table anew. Whoever makes a partition gives it the row triggers of the table, and so needs
-- the right to their function; nobody can name it without a right to the schema. Without JIT: a session keeps the plans of its first
-- statement, and what they cost for a statement of many rows would have every later one, of one row too, compiled.
CREATE OR REPLACE FUNCTION bucardo.capture_function(c bucardo.capture) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    called text := format('bucardo.%I()', bucardo.capture_clip(format('seg%s_capture_%s_%s', c.id, c.schemaname, c.relname)));
    grantee regrole;
BEGIN
    EXECUTE format('CREATE OR REPLACE FUNCTION %s RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET jit = off AS %L',
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
