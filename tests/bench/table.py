"""The table of docs/performance.md out of the results of benchmark runs; of several files a later one replaces the lines of the same
work and contender. It must never show a figure that is in none of them: a row whose lines are not all there stays as it was.

usage: table.py RESULTS.json... DOCUMENT.md
"""

import json
import sys

GUARDED = "the same with its owner's rights and path"
LIKE_THE_ORIGINAL = "triggers like the original's"
HEADER = "| work | ours | goal | others, same run |"


class Lines:
    """The lines of the results, by work and contender, and how a table shows them."""

    def __init__(self, paths):
        self.lines = {}
        for path in paths:
            with open(path, encoding="utf-8") as file:
                self.lines.update({(line["work"], line["contender"]): line for line in json.load(file)["results"]})

    def work(self, begin, end="", contender=None):
        """The first work that begins and ends so, which such a contender did."""
        for work, who in self.lines:
            if work.startswith(begin) and work.endswith(end) and contender in (None, who):
                return work
        raise KeyError(f"{begin}…{end}")

    def of(self, work, contender):
        return self.lines[work, contender]

    def median(self, work, contender, unit=True):
        line = self.of(work, contender)
        return number(line["median"]) + (f" {line['unit']}" if unit else "")

    def range(self, work, contender):
        line = self.of(work, contender)
        least, most = number(line["min"]), number(line["max"])
        return self.median(work, contender) + (f" ({least}–{most})" if least != most else "")

    def ratio(self, work, contender):
        return f"{self.of(work, contender)['ratio']:.2f} ×"

    def both(self, work, contender):
        return f"{self.range(work, contender)}, {self.ratio(work, contender)}"

    def other(self, work, contender, name=None):
        return f"{name or contender} {self.median(work, contender)} ({self.ratio(work, contender)})"

    def goal(self, text, *which):
        """The goal of one line or more, and whether it is missed, and in how many."""
        missed = sum(self.of(*one)["met"] is False for one in which)
        if not missed:
            return text
        return f"{text} **missed**" + (f" in {missed} of {len(which)}" if missed < len(which) else "")

    def theirs(self, work, contender, show):
        """What the original needs, with its defaults and tuned, if it was there."""
        names = [f"the original{kind}{contender}" for kind in ("", ", tuned")]
        if any((work, name) not in self.lines for name in names):
            return ""
        return "; the original " + " and tuned ".join(show(work, name) for name in names)


def number(value):
    if value == 0:
        return "0"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.3g}" if abs(value) < 1 else f"{value:,.{digits}f}"


def captured(of, kind, count, plain_goal, native_goal, empty):
    work = f"capture of one {kind} of {count}"
    original = f"one {kind.upper()} of {count}, the original"
    others = f"no capture {of.range(work, 'no capture')}; logical decoding {of.ratio(work, 'logical decoding')}"
    if (original, "the original") in of.lines:
        others += f"; the original {of.ratio(original, 'the original')}"
    for name, goal, than in (("native", native_goal, "an empty native trigger"), ("plain SQL", plain_goal, "an empty PL/pgSQL trigger")):
        more = f"; {than} {of.ratio(work, f'{than} by statement')}" if empty else ""
        yield f"{work}, {name}", of.both(work, name), of.goal(goal, (work, name)), (others if name == "native" else "the same") + more


def one_row(of, commit, native_goal, plain_goal):
    protocols = [[f"one-row commits, {p}, {c} clients, sync {commit}" for c in (2, 16)] for p in ("simple", "prepared")]

    def all_of(show):
        return "; ".join(" / ".join(show(work) for work in works) for works in protocols)

    def ratios(who):
        return all_of(lambda work: f"{of.of(work, who)['ratio']:.2f}") + " ×"

    rates = all_of(lambda work: f"{round(of.of(work, 'no capture')['median'], -2):,.0f}")
    others = {
        "native": f"no capture {rates} tps, another database without capture {ratios('no capture, another database')}; logical decoding "
        f"{ratios('logical decoding')}; an empty native trigger {ratios('an empty native trigger by statement')}",
        "plain SQL": f"an empty PL/pgSQL trigger {ratios('an empty PL/pgSQL trigger by statement')}; one that only inserts "
        f"{ratios('a PL/pgSQL trigger that only inserts')}; the same with its owner's rights and path "
        f"{ratios(GUARDED)}; triggers like the original's {ratios(LIKE_THE_ORIGINAL)}",
    }
    for who, goal in (("native", native_goal), ("plain SQL", plain_goal)):
        label = f"one-row commits, sync {commit}, {who}: simple protocol, 2 / 16 clients; prepared, 2 / 16"
        yield label, ratios(who), of.goal(goal, *((work, who) for works in protocols for work in works)), others[who]


def backlogs(of, wide, label):
    for count, kind in (("1,000,000", "insert"), ("200,000", "update")):
        work = f"backlog of {count} {kind}s{wide}"
        others = [f"COPY {of.range(work, 'COPY')}", of.other(work, "native logical")]
        if kind == "update":
            others += [of.other(work, name) for name in ("the UPDATE alone, there", "UPDATE there, from a table", "DELETE there, then COPY")]
        theirs = of.theirs(f"{work}, the original", "", lambda w, n: f"{of.median(w, n)} ({of.ratio(w, n)})")
        shown = f"backlog of {count} {kind}s{label}"
        yield shown, of.both(work, "bucardo"), of.goal("≤ 1.5 ×", (work, "bucardo")), "; ".join(others) + theirs


def fan_out(of):
    for what in ("1,000,000 inserts", "200,000 updates"):
        work, four = f"{what} to 1 and to 4", "CPU of the source, four targets"
        others = f"one target {of.range(work, 'CPU of the source, one target')}; wall {of.ratio(work, 'wall, four targets')}"
        yield f"{what} to four targets, CPU of the source", of.both(work, four) + " that for one", of.goal("≤ 1.2 ×", (work, four)), others


def latency(of):
    work = "commit to visible"
    for what, goal in (("median", "≤ 2 ms"), ("p99", "≤ 8 ms")):
        theirs = of.theirs(f"{work}, the original", f", {what}", of.median)
        others = f"native logical {of.median(work, f'native logical, {what}')}{theirs}"
        yield f"{work}, {what}", of.median(work, f"bucardo, {what}"), of.goal(goal, (work, f"bucardo, {what}")), others
    polled = "bucardo, polled member, median"
    others = f"its p99 {of.median(work, 'bucardo, polled member, p99')}"
    yield f"{work}, polled member, median", of.median(work, polled), of.goal("≤ 25 ms", (work, polled)), others


def tpcb(of):
    works = ("TPC-B 500/s, autovacuum on", "TPC-B 500/s, autovacuum off")

    def both(contender):
        return f"{' / '.join(of.median(work, contender, unit=False) for work in works)} {of.of(works[0], contender)['unit']}"

    pending = ("bucardo, pending, median", "bucardo, oldest, median", "bucardo, to drain")
    goals = ("≤ 5 rows", "≤ 10 ms", "≤ 50 ms")
    labels = ("for 60 s, rows pending, median, autovacuum on / off", "the oldest, median", "to drain")
    lag, drain = both("native logical, replay_lag, median"), both("native logical, to drain")
    others = ("", f"native logical, replay lag {lag}", f"native logical {drain}")
    for label, contender, goal, other in zip(labels, pending, goals, others):
        between = " " if label.startswith("for") else ", "
        yield f"TPC-B at 500/s{between}{label}", both(contender), of.goal(goal, *((work, contender) for work in works)), other


def two_sources(of):
    work, original = "two sources, 2 x 20,000 updates, 2,000 conflicts", "two sources, the original"
    others = of.theirs(original, "", of.median).removeprefix("; ")
    yield work, of.range(work, "bucardo"), of.goal("≤ 0.30 s", (work, "bucardo")), others


def storm(of):
    work = of.work("", contender="bucardo, all in conflict")
    line = (work, "bucardo, all in conflict")
    yield "two sources, 2 x 20,000 updates, all in conflict", of.both(*line), of.goal("≤ 1.33 ×", line), f"disjoint {of.range(work, 'bucardo, disjoint')}"


def initial_copy(of):
    work = of.work("initial copy of")
    others = f"COPY {of.range(work, 'COPY')}; {of.other(work, 'native logical')}"
    yield f"{work}, without ANALYZE", of.both(work, "bucardo"), of.goal("≤ 1.05 ×", (work, "bucardo")), others


def many(of):
    work, run = "one of 1,000 tables changed", "a run, 1,000 tables"
    visible = [of.median(work, f"commit to visible, {n}") for n in ("1 table", "1,000 tables")]
    others = f"1 table {of.median(work, 'a run, 1 table')}; commit to visible {visible[0]} and {visible[1]} ({of.ratio(work, 'commit to visible, 1,000 tables')})"
    yield f"{work}, a run", f"{of.median(work, run)}, {of.ratio(work, run)}", of.goal("≤ 2 ×", (work, run)), others


def hundred(of):
    work = "100 syncs x 10 tables on 4 kids"
    others = f"all at once: kick to end of run {of.median(work, 'all at once: kick to end of run')}; the last {of.median(work, 'all at once: the last')}"
    others += f"; one more, kicked while they wait {of.median(work, 'a fresh kick while all others wait')}"
    yield f"{work}, a fresh kick", of.median(work, "a fresh kick"), of.goal("≤ 100 ms", (work, "a fresh kick")), others


def memory(of):
    for kind in ("inserted", "updated"):
        few = f"memory of a kid, 50,000 rows {kind}"
        count = "5,000,000"
        big = f"memory of a kid, {count} rows {kind}"
        figures = f"{of.median(few, 'bucardo', unit=False)} / {of.median(big, 'bucardo')}"
        yield f"memory of a kid, 50,000 / {count} rows {kind}", figures, of.goal("≤ 128 MiB", (big, "bucardo")), ""


def memory_of_conflicts(of):
    work = of.work("memory of a kid, two sources")
    took = of.median(work.removeprefix("memory of a kid, "), "bucardo")
    yield "memory of a kid, 2 x 1,000,000 updates, 100,000 conflicts", of.median(work, "bucardo"), of.goal("≤ 164 MiB", (work, "bucardo")), f"in {took}"


def idle(of):
    works = ("idle 60 s, 10 syncs, woken", "idle 60 s, 10 syncs, polled")

    def both(contender, unit=""):
        return " / ".join(of.median(work, contender, unit=False) for work in works) + unit

    workers = "CPU of 3 workers"
    label = "idle 60 s, 10 syncs, woken / polled"
    yield f"{label}, {workers}", both(workers, " %"), of.goal("≤ 0.5 %", *((w, workers) for w in works)), f"of their sessions {both('CPU of their 3 sessions', ' %')}"
    nothing = ("WAL", "transaction ids")
    written = f"{both('WAL', ' bytes')}, {both('transaction ids')}"
    yield f"{label}, WAL and transaction ids", written, of.goal("0", *((w, what) for w in works for what in nothing)), ""


def old_snapshot(of):
    work, last, after = "10 x 200,000 changes, an old snapshot", "held: the last 3 runs", "held: segments after the purge"
    without = of.ratio(work, "no snapshot: the last 3 runs")
    yield f"{work} held: the last 3 runs", f"{of.median(work, last)}, {of.ratio(work, last)} the first 3", of.goal("≤ 1.5 ×", (work, last)), f"no snapshot: {without}"
    yield "the same, segments after the purge", of.median(work, after), of.goal("0", (work, after)), ""


def purge(of):
    for kind in ("by one statement", "by a statement each"):
        work = f"purge of 1,000,000 deltas, {kind}"
        figures = f"{of.median(work, 'bucardo')}, {of.median(work, 'size after')} left of {of.median(work, 'size before')}"
        yield work, figures, of.goal("≤ 20 ms", (work, "bucardo")), ""


PARTS = (
    lambda of: captured(of, "insert", "1,000,000", "≤ 1.6 ×", "≤ 1.22 ×", False),
    lambda of: captured(of, "update", "200,000", "≤ 1.35 ×", "≤ 1.18 ×", True),
    lambda of: one_row(of, "off", "≥ 0.95 ×", "≥ 0.88 ×"),
    lambda of: one_row(of, "on", "≥ 0.97 ×", "≥ 0.93 ×"),
    lambda of: backlogs(of, "", ""),
    lambda of: backlogs(of, " of 600 bytes", " of 600 bytes (`backlog_wide`)"),
    fan_out,
    latency,
    tpcb,
    two_sources,
    storm,
    initial_copy,
    many,
    hundred,
    memory,
    memory_of_conflicts,
    idle,
    old_snapshot,
    purge,
)


def renewed(table, of):
    """The rows of a table, those anew whose lines are there."""
    rows = dict(table)
    for part in PARTS:
        try:
            rows.update({label: cells for label, *cells in part(of)})
        except KeyError as missing:
            print(f"left as it was: {missing}", file=sys.stderr)
    return rows


def main():
    *results, document = sys.argv[1:]
    with open(document, encoding="utf-8") as file:
        lines = file.read().split("\n")
    begin = lines.index(HEADER) + 2
    end = next(n for n in range(begin, len(lines)) if not lines[n].startswith("|"))
    table = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[begin:end]]
    rows = renewed([(label, cells) for label, *cells in table], Lines(results))
    lines[begin:end] = [f"| {' | '.join([label, *cells])} |" for label, cells in rows.items()]
    with open(document, "w", encoding="utf-8") as file:
        file.write("\n".join(lines))


if __name__ == "__main__":
    main()
