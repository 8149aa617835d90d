//! What goes wrong meanwhile: kicks and pauses at any time, workers terminated and killed, servers that fall over, sessions
//! cut off, networks cut and stalled. Each is over after a moment, and the next one comes.

use super::World;
use super::dice::Dice;
use crate::cluster::{Stop, kill};
use crate::net::CONTROL;
use std::time::Instant;

#[derive(Clone, Copy, Debug)]
enum Trouble {
    Kick,
    Pause,
    StopAndStart,
    Purge,
    Terminate,
    Kill,
    CutSessions,
    CutNetwork,
    StallNetwork,
    RestartMember,
    RestartControl,
}

use Trouble::{
    CutNetwork, CutSessions, Kick, Kill, Pause, Purge, RestartControl, RestartMember, StallNetwork, StopAndStart, Terminate,
};

/// As often as they stand here.
const TROUBLES: [Trouble; 19] = [
    Kick,
    Kick,
    Kick,
    Kick,
    Pause,
    Pause,
    StopAndStart,
    Purge,
    Purge,
    Terminate,
    Terminate,
    Kill,
    CutSessions,
    CutSessions,
    CutNetwork,
    CutNetwork,
    StallNetwork,
    RestartMember,
    RestartControl,
];

pub fn make(world: &World, dice: &mut Dice, end: Instant) {
    while Instant::now() < end {
        dice.rest(500);
        one(world, *dice.pick(&TROUBLES), dice);
    }
}

fn one(world: &World, trouble: Trouble, dice: &mut Dice) {
    let member = dice.below(world.proxies.len() as u64) as usize;
    let name = world.m.names()[member];
    match trouble {
        Kick => command(world, "SELECT bucardo.kick('s')"),
        Purge => command(world, "SELECT bucardo.purge()"),
        Pause => {
            command(world, "SELECT bucardo.pause('s')");
            dice.rest(400);
            command(world, "SELECT bucardo.resume('s')");
        }
        StopAndStart => {
            command(world, "SELECT bucardo.stop('torture', '60s')");
            command(world, "SELECT bucardo.start()");
        }
        Terminate => worker(world, dice, "TERM"),
        Kill => worker(world, dice, "KILL"),
        CutSessions => {
            let all = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
            if let Ok(mut conn) = world.m.server_of(name).try_connect(&name.to_lowercase()) {
                let _done = conn.try_query(all);
            }
        }
        CutNetwork => {
            world.proxies[member].cut();
            dice.rest(700);
            world.proxies[member].heal();
        }
        StallNetwork => {
            world.proxies[member].stall();
            dice.rest(700);
            world.proxies[member].heal();
        }
        RestartMember => world.m.server_of(name).restart(Stop::Immediate),
        RestartControl => world.m.servers[0].restart(Stop::Immediate),
    }
}

/// One of the master's and the kids' processes gets a signal. After KILL the server restarts itself: PostgreSQL's own rule.
fn worker(world: &World, dice: &mut Dice, signal: &str) {
    let Ok(mut conn) = world.m.servers[0].try_connect(CONTROL) else { return };
    let Ok(reply) = conn.try_query("SELECT pid FROM bucardo.activity ORDER BY kind, pid") else { return };
    if reply.rows.is_empty() {
        return;
    }
    if let Some(pid) = dice.pick(&reply.rows)[0].as_ref().and_then(|pid| pid.parse().ok()) {
        kill(signal, pid);
    }
}

/// Said to the control database, which may not be there, or have another opinion.
fn command(world: &World, sql: &str) {
    if let Ok(mut conn) = world.m.servers[0].try_connect(CONTROL) {
        let _done = conn.try_query(sql);
    }
}
