-- Tables without a key in `all` and in patterns: left out, with a word about it, wherever changes are captured; among sources
-- alone, too.
CREATE DATABASE keyless_x;
CREATE SCHEMA keyless;
CREATE TABLE keyless.good (id int PRIMARY KEY);
CREATE TABLE keyless.heap (id int);
\c keyless_x
CREATE SCHEMA keyless;
CREATE TABLE keyless.good (id int PRIMARY KEY);
CREATE TABLE keyless.heap (id int);
\c regress
SELECT bucardo.add_db('Y');
SELECT bucardo.add_db('X', format('host=%s port=%s dbname=keyless_x user=postgres', current_setting('unix_socket_directories'), current_setting('port')));
SELECT bucardo.add_sync('sources', 'Y:source,X:source', tables => 'keyless.*');
SELECT bucardo.add_sync('target', 'Y:source,X:target', tables => 'keyless.*');
SELECT bucardo.add_sync('everything', 'Y:source,X:source', tables => 'all');
SELECT s.name, r.relname FROM bucardo.sync s JOIN bucardo.relmap m USING (relgroup) JOIN bucardo.relation r ON r.id = m.relation ORDER BY 1, 2;
-- One that is named is a fault.
SELECT bucardo.add_sync('named', 'Y:source,X:source', tables => 'keyless.good, keyless.heap');
SELECT bucardo.remove_sync(name) FROM bucardo.sync ORDER BY name;
SELECT bucardo.remove_db(name) FROM bucardo.db ORDER BY name;
DROP SCHEMA keyless CASCADE;
