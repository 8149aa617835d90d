-- What add_sync and its lists say and take, over two further databases of this server: all faults at once, odd names, kinds of
-- relations that are looked up late.
CREATE DATABASE contract_x;
CREATE DATABASE contract_y;
CREATE SCHEMA contract;
CREATE TABLE contract.t (id int PRIMARY KEY);
CREATE TABLE contract.heap (id int, k int);
CREATE SEQUENCE contract.q;
CREATE SEQUENCE q;
CREATE TABLE contract."new
line" (id int);
\c contract_x
CREATE SCHEMA contract;
CREATE TABLE contract.t (id int PRIMARY KEY);
CREATE TABLE contract.heap (id int, k int);
CREATE SEQUENCE contract.q;
CREATE SEQUENCE q;
\c contract_y
CREATE SCHEMA contract;
CREATE TABLE contract.t (id int PRIMARY KEY);
CREATE SEQUENCE contract.q;
CREATE SEQUENCE q;
\c regress
SELECT bucardo.add_db('Z');
SELECT bucardo.add_db(name, format('host=%s port=%s dbname=%s user=postgres', current_setting('unix_socket_directories'), current_setting('port'), db))
  FROM (VALUES ('X', 'contract_x'), ('a"Y', 'contract_y')) v(name, db);
-- All faults at once, of whatever kind.
SELECT bucardo.add_sync('s', 'Z:source,X:target,nosuch:target', tables => 'contract.t, contract.heap, no%, contract.none', maxkicks => -1, status => 'maybe');
SELECT bucardo.add_sync('s', 'Z:source,X:target', relgroup => 'nosuch', onetimecopy => 7);
SELECT bucardo.add_sync('s', 'Z:source,X:king', tables => 'contract.t', onetimecopy => 7);
SELECT bucardo.add_sync('s', 'Z:source,X:target', onetimecopy => 7);
SELECT bucardo.add_sync('s', 'Z:target,X:target', tables => 'contract.t', onetimecopy => 7);
-- A single one keeps its SQLSTATE.
\set VERBOSITY sqlstate
SELECT bucardo.add_sync('s', 'Z:source,nosuch:target', tables => 'contract.t');
SELECT bucardo.add_sync('s', 'Z:source,X:target', relgroup => 'nosuch');
SELECT bucardo.add_sync('s', 'Z:source,X:target', tables => 'contract.t', onetimecopy => 7);
SELECT bucardo.add_sync('s', 'Z:source,X:target', tables => 'contract.heap');
\set VERBOSITY default
SELECT count(*) FROM bucardo.sync;
-- The first active source says which tables there are.
SELECT bucardo.update_db('Z', status => 'inactive');
SELECT bucardo.add_sync('s', 'Z:source,X:source,a"Y:target', tables => 'contract.t, q');
SELECT bucardo.update_db('Z', status => 'active'), bucardo.remove_sync('s');
-- Names with a double quote, as they are and as in SQL.
SELECT bucardo.add_dbgroup('plain', 'Z,a"Y:target'), bucardo.add_dbgroup('quoted', '"Z","a""Y":target');
SELECT dbgroup, db, role FROM bucardo.dbmap ORDER BY dbgroup, priority;
SELECT bucardo.update_dbgroup('nosuch', NULL);
-- Sequences of a relgroup, with a schema and without.
SELECT bucardo.add_relgroup('seqs', 'contract.t, contract.q, q');
SELECT bucardo.add_sync('s', 'Z:source,X:target', relgroup => 'seqs');
SELECT r.schemaname, r.relname, r.kind, r.db FROM bucardo.relmap m JOIN bucardo.relation r ON r.id = m.relation WHERE m.relgroup = 'seqs' ORDER BY m.position;
SELECT * FROM bucardo.validate_sync('s');
-- A pkey that names nothing is an error only where it would be needed.
SELECT bucardo.add_relgroup('keys');
SELECT bucardo.add_table('contract.t', 'keys', db => 'Z', pkey => 'nosuch');
SELECT bucardo.add_table('contract.heap', 'keys', db => 'Z', pkey => 'nosuch');
-- Messages have one line, whatever relations are called.
SELECT bucardo.add_table(E'contract."new\nline"', 'keys', db => 'Z', pkey => E'no\nsuch');
SELECT bucardo.add_sequence(E'contract."new\nline"', 'keys', db => 'Z');
SELECT bucardo.add_table(E'contract."no\nsuch"', 'keys', db => 'Z');
SELECT bucardo.remove_table(E'contract."no\nsuch"', 'keys');
SELECT bucardo.add_relgroup('twice', E'"a\nb","a\nb"');
SELECT bucardo.add_sync('odd', 'Z:source,X:target', tables => E'contract."new\nline", contract."no\nsuch"');
SELECT bucardo.remove_sync(name) FROM bucardo.sync ORDER BY name;
SELECT bucardo.remove_relgroup(name) FROM bucardo.relgroup ORDER BY name;
SELECT bucardo.remove_dbgroup(name) FROM bucardo.dbgroup ORDER BY name;
SELECT bucardo.remove_db(name) FROM bucardo.db ORDER BY name;
DROP SEQUENCE q;
DROP SCHEMA contract CASCADE;
