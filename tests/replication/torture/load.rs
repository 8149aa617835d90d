//! What applications do to a source: short transactions over few keys, of every kind. An error is theirs to bear (a
//! constraint, a deadlock, a server that is gone), and they go on; a commit that was acknowledged is remembered.

use super::World;
use super::dice::Dice;
use crate::wire::Conn;
use std::sync::atomic::Ordering;

const SETTINGS: &str = "SET lock_timeout = '5s'; SET statement_timeout = '20s'; SET idle_in_transaction_session_timeout = '20s'";

/// Writes to `source` until it is over. `client` makes the keys of `entry` and the values unique.
pub fn write(world: &World, source: &str, client: i64, mut dice: Dice) {
    let mut writer = Writer { client, written: 0, entries: 0 };
    let over = || world.over.load(Ordering::SeqCst);
    while !over() {
        let Ok(mut conn) = world.m.server_of(source).try_connect(&source.to_lowercase()) else {
            dice.rest(30);
            continue;
        };
        if conn.try_query(SETTINGS).is_err() {
            continue;
        }
        while !over() && writer.transaction(world, &mut conn, &mut dice) {
            dice.rest(12);
        }
    }
}

struct Writer {
    client: i64,
    written: i64,
    entries: i64,
}

impl Writer {
    /// Whether the connection is still good.
    fn transaction(&mut self, world: &World, conn: &mut Conn, dice: &mut Dice) -> bool {
        let mut sql = String::from("BEGIN; ");
        for _ in 0..=dice.below(4) {
            sql += &self.statement(dice);
            sql += "; ";
        }
        let entry = dice.below(3) == 0;
        if entry {
            sql += &format!("INSERT INTO entry VALUES ({}, 'x'); ", self.client * 1_000_000_000 + self.entries);
            self.entries += 1;
        }
        let rollback = dice.below(12) == 0;
        sql += if rollback { "ROLLBACK" } else { "COMMIT" };
        match conn.try_query(&sql) {
            Ok(_) => {
                if entry && !rollback {
                    world.acknowledged.fetch_add(1, Ordering::SeqCst);
                }
                true
            }
            Err(_) => conn.try_query("ROLLBACK").is_ok(),
        }
    }

    /// A value that nobody else writes.
    fn value(&mut self) -> String {
        self.written += 1;
        format!("'{}.{}'", self.client, self.written)
    }

    fn statement(&mut self, dice: &mut Dice) -> String {
        match dice.below(200) {
            0 => "TRUNCATE item".to_owned(),
            1 => "TRUNCATE parent CASCADE".to_owned(),
            2 => "TRUNCATE child".to_owned(),
            3..=60 => self.on_parent(dice),
            61..=120 => self.on_child(dice),
            _ => self.on_item(dice),
        }
    }

    fn on_parent(&mut self, dice: &mut Dice) -> String {
        let (id, other, val) = (dice.below(8), dice.below(8), self.value());
        match dice.below(8) {
            0..=2 => format!("INSERT INTO parent VALUES ({id}, {val}) ON CONFLICT (id) DO UPDATE SET val = excluded.val"),
            3 | 4 => format!("UPDATE parent SET val = {val} WHERE id = {id}"),
            5 => format!("UPDATE parent SET id = {other}, val = {val} WHERE id = {id}"),
            6 => format!("DELETE FROM parent WHERE id = {id}; INSERT INTO parent VALUES ({id}, {val})"),
            _ => format!("DELETE FROM parent WHERE id = {id}"),
        }
    }

    fn on_child(&mut self, dice: &mut Dice) -> String {
        let (a, b, parent, val) = (dice.below(3), dice.pick(&["x", "y", "y z", ""]), dice.below(8), self.value());
        match dice.below(8) {
            0..=3 => format!(
                "INSERT INTO child SELECT {a}, '{b}', id, {val} FROM parent WHERE id >= {parent} ORDER BY id LIMIT 1 \
                 ON CONFLICT (b, a) DO UPDATE SET parent = excluded.parent, val = excluded.val"
            ),
            4 => format!("UPDATE child SET val = {val} WHERE (a, b) = ({a}, '{b}')"),
            5 => format!("UPDATE child SET a = {}, val = {val} WHERE (a, b) = ({a}, '{b}')", dice.below(3)),
            6 => format!("UPDATE child SET parent = NULL, val = {val} WHERE parent = {parent}"),
            _ => format!("DELETE FROM child WHERE (a, b) = ({a}, '{b}')"),
        }
    }

    fn on_item(&mut self, dice: &mut Dice) -> String {
        let (id, other, u, val) = (dice.below(10), dice.below(10), dice.below(7), self.value());
        match dice.below(12) {
            0..=2 => format!("INSERT INTO item VALUES ({id}, 'u{u}', {val}) ON CONFLICT DO NOTHING"),
            3 => format!("INSERT INTO item VALUES ({id}, NULL, {val}) ON CONFLICT (id) DO UPDATE SET val = excluded.val"),
            4 | 5 => format!("UPDATE item SET val = {val} WHERE id = {id}"),
            6 | 7 => format!(
                "UPDATE item SET u = 'u{u}', val = {val} WHERE id = {id} AND NOT EXISTS (SELECT FROM item WHERE u = 'u{u}')"
            ),
            8 => swap(id, other, &val),
            9 => format!("UPDATE item SET id = {other}, val = {val} WHERE id = {id}"),
            10 => {
                format!("DELETE FROM item WHERE u = 'u{u}'; INSERT INTO item VALUES ({id}, 'u{u}', {val}) ON CONFLICT DO NOTHING")
            }
            _ => format!("DELETE FROM item WHERE id = {id}"),
        }
    }
}

/// Two rows exchange their unique values, through NULL: the index is checked row by row.
fn swap(id: u64, other: u64, val: &str) -> String {
    format!(
        "CREATE TEMP TABLE IF NOT EXISTS swap (id int, u text); TRUNCATE swap; \
         INSERT INTO swap SELECT x.id, y.u FROM item x, item y WHERE (x.id, y.id) IN (({id}, {other}), ({other}, {id})) AND x.id <> y.id; \
         UPDATE item SET u = NULL WHERE id IN (SELECT id FROM swap); \
         UPDATE item SET u = swap.u, val = {val} FROM swap WHERE item.id = swap.id"
    )
}
