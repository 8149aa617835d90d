-- What validate_sync says of a sync that cannot run whatever its tables look like, and that its fix mends it.
CREATE DATABASE shape_x;
CREATE TABLE shape (id int PRIMARY KEY);
\c shape_x
CREATE TABLE shape (id int PRIMARY KEY);
\c regress
SELECT bucardo.add_db('Y');
SELECT bucardo.add_db('X', format('host=%s port=%s dbname=shape_x user=postgres', current_setting('unix_socket_directories'), current_setting('port')));
SELECT bucardo.add_sync('s', 'Y:source,X:target', tables => 'public.shape', autokick => false);
SELECT * FROM bucardo.validate_sync('s');
-- Nobody of those that would receive is active, then nobody of those that send.
SELECT bucardo.update_db('X', status => 'inactive');
SELECT * FROM bucardo.validate_sync('s');
SELECT sync, state, last_error FROM bucardo.status;
SELECT bucardo.update_db('X', status => 'active'), bucardo.update_db('Y', status => 'inactive');
SELECT * FROM bucardo.validate_sync('s');
SELECT bucardo.update_db('Y', status => 'active');
SELECT * FROM bucardo.validate_sync('s');
-- No target any more.
SELECT bucardo.remove_db('X', true);
SELECT * FROM bucardo.validate_sync('s');
SELECT bucardo.add_db('X', format('host=%s port=%s dbname=shape_x user=postgres', current_setting('unix_socket_directories'), current_setting('port')));
SELECT bucardo.update_sync('s', dbs => 'Y:source,X:target', status => 'active');
SELECT * FROM bucardo.validate_sync('s');
-- No source any more, then nobody at all.
SELECT bucardo.remove_db('Y', true);
SELECT * FROM bucardo.validate_sync('s');
SELECT bucardo.remove_db('X', true);
SELECT * FROM bucardo.validate_sync('s');
SELECT bucardo.remove_sync('s');
DROP TABLE shape;
