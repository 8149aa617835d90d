//! Every `bucardo.*` setting: one static, one getter, one line of documentation. Settings hold no secrets.

use std::time::Duration;

use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting, PostgresGucEnum};

/// How much the workers write to the server's log.
#[derive(PostgresGucEnum, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub enum LogLevel {
    #[name = c"error"]
    Error,
    #[name = c"normal"]
    Normal,
    #[name = c"verbose"]
    Verbose,
}

static MAX_KIDS: GucSetting<i32> = GucSetting::<i32>::new(4);
static CONNECT_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(10_000);
static RETRY_MIN: GucSetting<i32> = GucSetting::<i32>::new(500);
static RETRY_MAX: GucSetting<i32> = GucSetting::<i32>::new(30_000);
static PURGE_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(10_000);
/// In milliseconds too, of which 32 bits would hold only 24 days.
static HISTORY_RETENTION: GucSetting<f64> = GucSetting::<f64>::new(7.0 * 24.0 * 3_600_000.0);
static POLL_MIN: GucSetting<i32> = GucSetting::<i32>::new(20);
static POLL_MAX: GucSetting<i32> = GucSetting::<i32>::new(1_000);
static KID_WORK_MEM: GucSetting<i32> = GucSetting::<i32>::new(64 * 1024);
static LOG_LEVEL: GucSetting<LogLevel> = GucSetting::<LogLevel>::new(LogLevel::Normal);
static MASTER: GucSetting<bool> = GucSetting::<bool>::new(false);

/// A hundred years.
const HISTORY_MAX: f64 = 100.0 * 365.25 * 24.0 * 3_600_000.0;

fn milliseconds(setting: &GucSetting<i32>) -> Duration {
    Duration::from_millis(setting.get().max(0) as u64)
}

/// The most kids that may run at once for one control database.
pub fn max_kids() -> usize {
    MAX_KIDS.get().max(1) as usize
}

/// How long to wait for a connection to a member.
pub fn connect_timeout() -> Duration {
    milliseconds(&CONNECT_TIMEOUT)
}

/// The first wait before a failed member is tried again.
pub fn retry_min() -> Duration {
    milliseconds(&RETRY_MIN)
}

/// The longest wait before a failed member is tried again.
pub fn retry_max() -> Duration {
    milliseconds(&RETRY_MAX)
}

/// How often served deltas are purged.
pub fn purge_interval() -> Duration {
    milliseconds(&PURGE_INTERVAL)
}

/// `bucardo.kid_work_mem`, in kilobytes.
pub fn kid_work_mem() -> i32 {
    KID_WORK_MEM.get()
}

/// How long runs and conflicts are kept.
pub fn history_retention() -> Duration {
    Duration::from_secs_f64(HISTORY_RETENTION.get().clamp(0.0, HISTORY_MAX) / 1000.0)
}

/// The wait between two polls of a source soon after a change.
pub fn poll_min() -> Duration {
    milliseconds(&POLL_MIN)
}

/// The wait between two polls of a source at rest.
pub fn poll_max() -> Duration {
    milliseconds(&POLL_MAX)
}

/// Whether messages of this level are written.
pub fn logs(level: LogLevel) -> bool {
    LOG_LEVEL.get() >= level
}

/// Registers all settings. To be called once, when the library is loaded.
pub fn init() {
    let ms = GucFlags::UNIT_MS;
    let sighup = || GucContext::Sighup;
    let int = GucRegistry::define_int_guc;
    int(
        c"bucardo.max_kids",
        c"The most kids that may run at once for one control database.",
        c"Never more than max_worker_processes leaves.",
        &MAX_KIDS,
        1,
        crate::master::slot::MAX_KIDS as i32,
        sighup(),
        GucFlags::default(),
    );
    int(
        c"bucardo.connect_timeout",
        c"How long to wait for a connection to a member.",
        c"A member that is silent for so long is asked over a second connection whether it is still there.",
        &CONNECT_TIMEOUT,
        100,
        600_000,
        sighup(),
        ms,
    );
    int(
        c"bucardo.retry_min",
        c"The first wait before a failed member is tried again.",
        c"It doubles with every failure.",
        &RETRY_MIN,
        10,
        3_600_000,
        sighup(),
        ms,
    );
    int(
        c"bucardo.retry_max",
        c"The longest wait before a failed member is tried again.",
        c"",
        &RETRY_MAX,
        10,
        86_400_000,
        sighup(),
        ms,
    );
    int(c"bucardo.purge_interval", c"How often served deltas are purged.", c"", &PURGE_INTERVAL, 100, 86_400_000, sighup(), ms);
    GucRegistry::define_float_guc(
        c"bucardo.history_retention",
        c"How long runs and conflicts are kept.",
        c"",
        &HISTORY_RETENTION,
        0.0,
        HISTORY_MAX,
        sighup(),
        ms,
    );
    int(
        c"bucardo.poll_min",
        c"The wait between two polls of a source soon after a change.",
        c"",
        &POLL_MIN,
        1,
        60_000,
        sighup(),
        ms,
    );
    int(c"bucardo.poll_max", c"The wait between two polls of a source at rest.", c"", &POLL_MAX, 1, 3_600_000, sighup(), ms);
    int(
        c"bucardo.kid_work_mem",
        c"The memory a kid may use for the keys of one run.",
        c"More is spilled to a temporary table.",
        &KID_WORK_MEM,
        64,
        i32::MAX,
        sighup(),
        GucFlags::UNIT_KB,
    );
    GucRegistry::define_enum_guc(
        c"bucardo.log_level",
        c"How much the workers write to the server's log.",
        c"error: what went wrong in them; normal: also when they start and who is away; verbose: also what came of each run.",
        &LOG_LEVEL,
        sighup(),
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"bucardo.master",
        c"Whether this database is a control database.",
        c"Set for the database by CREATE EXTENSION, so that the launcher finds it. Not to be set by hand.",
        &MASTER,
        GucContext::Suset,
        GucFlags::NO_SHOW_ALL,
    );
    crate::pg::worker::reserve_settings();
}
