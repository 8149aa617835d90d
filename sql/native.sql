-- The native capture trigger: only where the extension is. sql/capture.sql uses it when it finds it.
CREATE FUNCTION bucardo.capture() RETURNS trigger LANGUAGE c AS 'MODULE_PATHNAME', 'bucardo_capture';
COMMENT ON FUNCTION bucardo.capture() IS 'Writes down which rows a statement changed. For triggers made by bucardo only.';

-- A database that has been a source without the extension. What cannot be converted the master captures anew.
SELECT bucardo.capture_convert(c) FROM bucardo.capture c WHERE bucardo.capture_fault(c) = 'the extension has come, and does not capture the table';
