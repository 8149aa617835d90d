-- Lists that add_sync has made go with the sync; where others have come to use them, with the last of those.
CREATE DATABASE owned_c;
CREATE TABLE owned (id int PRIMARY KEY);
CREATE TABLE other (id int PRIMARY KEY);
\c owned_c
CREATE TABLE owned (id int PRIMARY KEY);
CREATE TABLE other (id int PRIMARY KEY);
\c regress
SELECT bucardo.add_db('A');
SELECT bucardo.add_db('C', format('host=%s port=%s dbname=owned_c user=postgres', current_setting('unix_socket_directories'), current_setting('port')));
CREATE VIEW lists AS
SELECT (SELECT array_agg(name ORDER BY name) FROM bucardo.sync) AS syncs, (SELECT array_agg(name ORDER BY name) FROM bucardo.dbgroup) AS dbgroups,
       (SELECT array_agg(name ORDER BY name) FROM bucardo.relgroup) AS relgroups;
SELECT bucardo.add_sync('s1', 'A,C', tables => 'public.owned');
SELECT bucardo.add_sync('s2', 'A,C', tables => 'public.other');
SELECT bucardo.add_sync('s3', 's1', tables => 'public.other');
SELECT bucardo.update_sync('s2', relgroup => 's1');
SELECT * FROM lists;
SELECT bucardo.remove_sync('s1');
SELECT * FROM lists;
-- What several have inherited is changed for none of the others.
SELECT bucardo.add_sync('s4', 's1', tables => 'public.other');
SELECT bucardo.update_sync('s3', dbs => 'C,A');
SELECT dbgroup, db, role FROM bucardo.dbmap ORDER BY dbgroup, priority;
SELECT bucardo.remove_sync('s3');
SELECT bucardo.remove_sync('s2');
SELECT * FROM lists;
SELECT bucardo.remove_sync('s4');
SELECT * FROM lists;
SELECT bucardo.add_sync('s1', 'A,C', tables => 'public.owned');
-- A list of the user's own stays.
SELECT bucardo.add_relgroup('mine', 'public.other');
SELECT bucardo.update_sync('s1', relgroup => 'mine');
SELECT bucardo.remove_sync('s1');
SELECT * FROM lists;
SELECT bucardo.remove_relgroup('mine');
SELECT bucardo.remove_db(name) FROM bucardo.db ORDER BY name;
DROP VIEW lists;
DROP TABLE owned, other;
