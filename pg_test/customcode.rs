//! Customcode inside a server: whose rights a registered function has, and what it can leave behind. Every test runs
//! in a transaction that is rolled back, so no worker sees its rows.

#[pgrx::pg_schema]
mod tests {
    use pgrx::prelude::*;
    use serde_json::json;

    use crate::catalog::customcode::{self, Code};
    use crate::kid::customcode::call;
    use crate::pg::role;

    /// A role that may register, and a function that says whose rights it has.
    const SETUP: &str = "CREATE ROLE registrar; CREATE SCHEMA s; GRANT USAGE ON SCHEMA s, bucardo TO registrar; \
        GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA bucardo TO registrar; \
        CREATE FUNCTION s.who(c jsonb) RETURNS jsonb LANGUAGE sql AS $$SELECT jsonb_build_object('winner', current_user, 'c', c)$$";

    fn run(sql: &str) {
        Spi::run(sql).unwrap();
    }

    fn text(sql: &str) -> String {
        Spi::get_one::<String>(sql).unwrap().unwrap_or_default()
    }

    fn registered(name: &str) -> Code {
        customcode::load().unwrap().of("any").into_iter().find(|c| c.name == name).unwrap()
    }

    /// A function of that body, registered by the role that has no rights.
    fn plpgsql(body: &str) -> Code {
        run(SETUP);
        run(&format!("CREATE FUNCTION s.f(c jsonb) RETURNS jsonb LANGUAGE plpgsql AS $f$BEGIN {body}; RETURN '{{}}'; END$f$"));
        run("SET ROLE registrar; SELECT bucardo.add_customcode('f', 'conflict', 's.f(jsonb)'); RESET ROLE");
        registered("f")
    }

    #[pg_test]
    fn a_code_has_the_rights_of_its_registrar() {
        run(SETUP);
        run("SET ROLE registrar; SELECT bucardo.add_customcode('c', 'conflict', 's.who(jsonb)'); RESET ROLE");
        let code = registered("c");
        let before = (role::current(), text("SHOW search_path"));
        let answer = call(&code, &json!({"a": 1})).unwrap().unwrap();
        assert_eq!(answer, r#"{"c": {"a": 1}, "winner": "registrar"}"#);
        assert_eq!((role::current(), text("SHOW search_path")), before);
    }

    #[pg_test]
    fn a_code_is_its_who_gave_the_function_last() {
        run(SETUP);
        run("SELECT bucardo.add_customcode('c', 'conflict', 's.who(jsonb)')");
        let owner = "SELECT owner FROM bucardo.customcode WHERE name = 'c'";
        let superuser = text("SELECT current_user::text");
        assert_eq!(text(owner), superuser);
        run("SET ROLE registrar; SELECT bucardo.update_customcode('c', priority => 3, status => 'active'); RESET ROLE");
        assert_eq!(text(owner), superuser);
        run("SET ROLE registrar; SELECT bucardo.update_customcode('c', code => 's.who(jsonb)'); RESET ROLE");
        assert_eq!(text(owner), "registrar");
    }

    #[pg_test]
    fn a_session_led_into_a_function_registers_nothing_as_itself() {
        run(SETUP);
        run("CREATE FUNCTION s.trap() RETURNS text LANGUAGE sql SECURITY DEFINER \
             AS $$SELECT bucardo.add_customcode('c', 'conflict', 's.who(jsonb)')$$; ALTER FUNCTION s.trap() OWNER TO registrar; \
             SELECT s.trap()");
        assert_eq!(text("SELECT owner FROM bucardo.customcode WHERE name = 'c'"), "registrar");
    }

    #[pg_test(error = "cannot set parameter \"role\" within security-definer function")]
    fn a_code_cannot_become_another_role() {
        call(&plpgsql("SET ROLE NONE"), &json!({})).unwrap();
    }

    #[pg_test(error = "cannot fire deferred trigger within security-restricted operation")]
    fn a_code_cannot_have_a_trigger_fired_after_it() {
        let code = plpgsql("INSERT INTO s.t VALUES (1)");
        run("CREATE TABLE s.t (id int); GRANT INSERT ON s.t TO registrar; \
             CREATE FUNCTION s.late() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN NULL; END$$; \
             CREATE CONSTRAINT TRIGGER late AFTER INSERT ON s.t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION s.late()");
        call(&code, &json!({})).unwrap();
    }

    #[pg_test]
    fn a_code_leaves_no_settings_behind() {
        let before = text("SHOW search_path");
        let code = plpgsql(
            "IF current_setting('search_path') <> 'pg_catalog, pg_temp' THEN RAISE 'search_path'; END IF; \
             PERFORM set_config('search_path', 's, pg_catalog', false)",
        );
        assert_eq!(call(&code, &json!({})).unwrap().as_deref(), Some("{}"));
        assert_eq!(text("SHOW search_path"), before);
    }

    #[pg_test(error = "permission denied for table secret")]
    fn a_code_cannot_read_what_its_registrar_cannot() {
        let code = plpgsql("PERFORM 1 FROM s.secret");
        run("CREATE TABLE s.secret (id int)");
        call(&code, &json!({})).unwrap();
    }

    #[pg_test]
    fn a_code_whose_role_or_relation_is_gone() {
        run(SETUP);
        run("SELECT bucardo.add_customcode('c', 'conflict', 's.who(jsonb)'); UPDATE bucardo.customcode SET owner = 'gone'");
        let error = call(&registered("c"), &json!({})).unwrap_err();
        assert_eq!(error.code.as_str(), "42704", "{error}");
        run("UPDATE bucardo.customcode SET relation = 's.gone'");
        assert!(customcode::load().unwrap().of("any").is_empty());
    }

    #[pg_test]
    fn the_codes_of_a_sync() {
        run(SETUP);
        run("INSERT INTO bucardo.dbgroup VALUES ('g'); INSERT INTO bucardo.relgroup VALUES ('g'); \
             INSERT INTO bucardo.sync (name, dbgroup, relgroup, status) VALUES ('one', 'g', 'g', 'inactive'), ('two', 'g', 'g', 'inactive'); \
             INSERT INTO bucardo.relation (schemaname, relname, kind) VALUES ('S', 'select', 'table')");
        for (name, arguments) in [
            ("c", "priority => 1"),
            ("b", "sync => 'one', relation => '\"S\".\"select\"'"),
            ("a", "priority => 2, sync => 'two'"),
            ("d", "status => 'inactive'"),
        ] {
            run(&format!("SELECT bucardo.add_customcode('{name}', 'conflict', 's.who(jsonb)', {arguments})"));
        }
        let codes = |sync: &str| crate::catalog::sync::load(sync).unwrap().unwrap().conflict_codes;
        let names = |sync: &str| codes(sync).into_iter().map(|c| c.name).collect::<Vec<_>>();
        assert_eq!(names("one"), ["b", "c"]);
        assert_eq!(names("two"), ["c", "a"]);
        let relation = Spi::get_one::<i32>("SELECT id FROM bucardo.relation WHERE relname = 'select'").unwrap();
        assert_eq!(codes("one")[0].relation, relation);
        assert_eq!(codes("one")[1].relation, None);
        assert_eq!(codes("one")[0].function, "s.who");
    }
}
