"""How the cost of a run grows: with the rows, the targets, the tables of a sync and the syncs. Each series is one line for each
point, whose ratio is to the smallest point of the series; and a picture of them. It must never compare points whose members were
not in the same state before, nor draw what was not measured.

usage: growth.py RESULTS.json PICTURE.svg
"""

import json
import math
import re
import sys
from xml.sax.saxutils import escape

from backlog import DETAILS
from common import ROW, kick, measured, serve, timed, until
from many import SERVED, OneChanged, make_syncs
from picture import STYLE

ROWS, MOST_UPDATES = (1_000, 10_000, 100_000, 1_000_000), 200_000
TARGETS, ROWS_TO_TARGETS = (1, 2, 4), 100_000
TABLES = (1, 10, 100, 1_000)
SYNCS, TABLES_OF_SYNC, KIDS = (1, 10, 100), 10, 4


def growth(bench):
    """How the cost of a run grows with rows, targets, tables and syncs."""
    with_rows(bench)
    with_members(bench)
    with_tables(bench)
    with_syncs(bench)


def points(bench, counts, least):
    """The points of a series; when it is only to prove that it works, fewer."""
    return sorted({bench.rows(count, min(count, least)) for count in counts})


def series(bench, work, thing, values, unit):
    """Reports a series, {point: values}, of which the smallest point is the reference. `thing`: what is counted, and what of it."""
    counted, what = thing
    first = values[min(values)]
    for point, of in values.items():
        contender = f"{point:,} {counted if point > 1 else counted[:-1]}: {what}"
        bench.report(f"growth with {work}", contender, of, unit, None if of is first else first, ours=True)


def statements(inserts, updates):
    return (
        ("inserts", f"INSERT INTO t {ROW} FROM generate_series(1, {inserts}) g"),
        ("updates", f"UPDATE t SET a = a + 1 WHERE id <= {updates}"),
    )


def held_back(bench, control, source, targets, sql):
    """Seconds on the wall and of the source's server, `two`, from the end of a pause until all are equal."""
    control.run("SELECT bucardo.pause('s')")
    source.run(sql)
    bench.checkpoint()
    figures = measured(lambda: serve(control), bench.two.cpu)
    bench.equal(source, targets)
    return figures


def backlogs(bench, targets, sizes):
    """{(kind, inserted rows, updated rows): [(wall, CPU of the source)]} of backlogs of these (inserts, updates)."""
    bench.databases("control", table=None)
    bench.databases("source", server=bench.two)
    bench.databases(*targets)
    control = bench.sync("control", ("A", bench.two, "source"), [(name, bench.one, db) for name, db in zip("BCDE", targets)])
    source, others = bench.two.connect("source"), [bench.one.connect(db) for db in targets]
    figures = {}
    # The first round prepares what the later ones find: of the least size, and not counted.
    for turn in range(bench.repeat + 1):
        for inserts, updates in sizes if turn else sizes[:1]:
            source.run("TRUNCATE t")
            kick(control)
            for kind, sql in statements(inserts, updates):
                taken = held_back(bench, control, source, others, sql)
                if turn:
                    figures.setdefault((kind, inserts if kind == "inserts" else updates), []).append(taken)
    print(f"      {control.one(DETAILS)}")
    for conn in (control, source, *others):
        conn.close()
    bench.drop("control", "source", *targets)
    return figures


def with_rows(bench):
    most = bench.rows(MOST_UPDATES)
    figures = backlogs(bench, ["target1"], [(count, min(count, most)) for count in points(bench, ROWS, 100)])
    for kind in ("inserts", "updates"):
        walls = {count: [wall for wall, _ in taken] for (k, count), taken in figures.items() if k == kind}
        series(bench, "rows", ("rows", kind), walls, "s")
        each = {count: [wall / count * 1e6 for wall in of] for count, of in walls.items()}
        series(bench, "rows", ("rows", f"{kind}, each"), each, "us")


def with_members(bench):
    rows, walls, cpus = bench.rows(ROWS_TO_TARGETS), {}, {}
    for count in TARGETS:
        for (kind, _), taken in backlogs(bench, [f"target{n + 1}" for n in range(count)], [(rows, rows)]).items():
            walls.setdefault(kind, {})[count] = [wall for wall, _ in taken]
            cpus.setdefault(kind, {})[count] = [cpu for _, cpu in taken]
    for kind in walls:
        series(bench, "members", ("targets", f"{rows:,} {kind}"), walls[kind], "s")
        series(bench, "members", ("targets", f"{kind}, CPU"), cpus[kind], "s")


def with_tables(bench):
    samples = bench.rows(40, 5)
    taken = {count: one_changed(bench, count, samples) for count in points(bench, TABLES, 5)}
    series(bench, "tables", ("tables", "a run"), {count: runs for count, (runs, _) in taken.items()}, "ms")
    series(bench, "tables", ("tables", "commit to visible"), {count: waits for count, (_, waits) in taken.items()}, "ms")


def one_changed(bench, count, samples):
    """Milliseconds of a run of so many tables, one of them changed, and from the commit until that is visible: a median each turn."""
    contender = OneChanged(bench, count)
    for _ in range(bench.repeat):
        contender.turn(max(2, samples // bench.repeat))
    contender.close()
    return contender.runs, contender.waits


def with_syncs(bench):
    bench.one.setting("bucardo.max_kids", KIDS)
    taken = {count: syncs_at_once(bench, count) for count in points(bench, SYNCS, 4)}
    series(bench, "syncs", ("syncs", "a fresh kick"), {count: fresh for count, (fresh, _) in taken.items()}, "ms")
    series(bench, "syncs", ("syncs", "all, the last"), {count: last for count, (_, last) in taken.items()}, "s")


def syncs_at_once(bench, syncs):
    """Milliseconds of a fresh kick of each sync at rest, and seconds from a kick of all to the end of the last run."""
    control = make_syncs(bench, syncs, TABLES_OF_SYNC)
    source, target = bench.one.connect("source"), bench.two.connect("target")
    names = [f"s{s + 1}" for s in range(syncs)]
    last = []
    for turn in range(bench.repeat):
        # At rest, and not amid what the last turn asked for.
        for name in names:
            kick(control, name)
        at = control.one("SELECT clock_timestamp()")
        source.run("".join(f"INSERT INTO t{s * TABLES_OF_SYNC + 1} VALUES ({turn}, 0, 'x');" for s in range(syncs)))
        for name in names:
            control.run(f"SELECT bucardo.kick('{name}')")
        served = SERVED.format(at=at, last="")
        until(lambda: all(row[1] for row in control.rows(served)), pause=0.02)
        last.append(max(float(row[1]) for row in control.rows(served)) / 1000)
        for s in range(syncs):
            bench.equal(source, [target], f"t{s * TABLES_OF_SYNC + 1}")
    # As many samples of one sync as of ten.
    fresh = [timed(lambda: kick(control, name)) * 1000 for name in names * max(1, 10 // syncs)]
    for conn in (control, source, target):
        conn.close()
    bench.drop("control", "source", "target")
    return fresh, last


# The charts: the series, what stands below and beside it, and how many of the axis' units a unit is; what is left out is not drawn.
CHARTS = (
    ("growth with rows", "rows of a backlog", "seconds", {"s": 1}),
    ("growth with members", "targets (CPU: of the source)", "seconds", {"s": 1}),
    ("growth with tables", "tables of the sync, one changed", "milliseconds", {"ms": 1}),
    ("growth with syncs", "syncs of ten tables, four kids", "milliseconds", {"ms": 1, "s": 1000}),
)
CHART, SIDE, HEIGHT, GAP, TOP = 230, 62, 210, 26, 84
COLOURS = ("#2da44e", "#0550ae", "#9a6700", "#8250df")
CONTENDER = re.compile(r"([\d,]+) \w+: (.*)")


class Axis:
    """A logarithmic axis over values, from `start` for `length` pixels."""

    def __init__(self, values, start, length):
        self.low, self.high = math.log10(min(values)), math.log10(max(values))
        # A little air, and no axis without a length.
        air = max(0.06 * (self.high - self.low), 0.08)
        self.low, self.high, self.start, self.length = self.low - air, self.high + air, start, length

    def place(self, value):
        return self.start + self.length * (math.log10(value) - self.low) / (self.high - self.low)

    def ticks(self):
        """Powers of ten, and what is between them where there are only few of these."""
        for steps in ((1,), (1, 3), (1, 2, 5)):
            powers = range(math.floor(self.low), math.ceil(self.high) + 1)
            found = [step * 10.0**power for power in powers for step in steps if self.low <= math.log10(step * 10.0**power) <= self.high]
            if len(found) >= 3:
                break
        return found


def curves(lines, work, units):
    """{what: [(point, median, min, max)]} of a series, in the unit of its axis."""
    found = {}
    for line in lines:
        if line["work"] == work and line["unit"] in units:
            point, what = CONTENDER.match(line["contender"]).groups()
            figures = [line[key] * units[line["unit"]] for key in ("median", "min", "max")]
            if min(figures) > 0:
                found.setdefault(what, []).append((int(point.replace(",", "")), *figures))
    return {what: sorted(of) for what, of in found.items()}


def draw_curve(what, of, colour, x, y):
    line = " ".join(f"{x.place(point):.1f},{y.place(median):.1f}" for point, median, _, _ in of)
    out = [f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.6"/>']
    for point, median, low, high in of:
        at = f"{x.place(point):.1f}"
        out.append(f"<g><title>{escape(what)}: {point:,}: {median:.4g} ({low:.4g}-{high:.4g})</title>")
        out.append(f'<line x1="{at}" x2="{at}" y1="{y.place(low):.1f}" y2="{y.place(high):.1f}" stroke="{colour}"/>')
        for end in (y.place(low), y.place(high)):
            out.append(f'<path d="M{x.place(point) - 3:.1f} {end:.1f}h6" stroke="{colour}"/>')
        out.append(f'<circle cx="{at}" cy="{y.place(median):.1f}" r="2.6" fill="{colour}"/></g>')
    return out


def draw_chart(lines, chart, left):
    work, below, beside, units = chart
    known = curves(lines, work, units)
    bottom = TOP + HEIGHT
    out = [
        f'<text x="{left}" y="{TOP - 14}" font-weight="bold">{escape(work)}</text>',
        f'<text class="small" x="{left + CHART / 2}" y="{bottom + 36}" text-anchor="middle">{escape(below)}</text>',
        f'<text class="small" transform="translate({left - 44} {TOP + HEIGHT / 2}) rotate(-90)" text-anchor="middle">{escape(beside)}</text>',
        f'<rect x="{left}" y="{TOP}" width="{CHART}" height="{HEIGHT}" fill="none" class="grid"/>',
    ]
    if not known:
        return [*out, f'<text class="small" x="{left + CHART / 2}" y="{TOP + HEIGHT / 2}" text-anchor="middle">not measured</text>']
    all_points = [point for of in known.values() for point in of]
    counts = sorted({point[0] for point in all_points})
    x = Axis(counts, left, CHART)
    y = Axis([figure for point in all_points for figure in point[1:]], bottom, -HEIGHT)
    # Where it was measured; but no label over another.
    last = -CHART
    for count in counts:
        at = x.place(count)
        out.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}"/>')
        if at - last > 46:
            out.append(f'<text class="small" x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{count:,}</text>')
            last = at
    for tick in y.ticks():
        at = y.place(tick)
        out.append(f'<line class="grid" x1="{left}" x2="{left + CHART}" y1="{at:.1f}" y2="{at:.1f}"/>')
        out.append(f'<text class="small" x="{left - 5}" y="{at + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for number, (what, of) in enumerate(known.items()):
        colour = COLOURS[number % len(COLOURS)]
        out += draw_curve(what, of, colour, x, y)
        row = bottom + 54 + 15 * number
        out.append(f'<path d="M{left} {row}h18" stroke="{colour}" stroke-width="2"/>')
        out.append(f'<text class="small" x="{left + 24}" y="{row + 4}">{escape(what)}</text>')
    return out


def draw(lines, about, path):
    wide = len(CHARTS) * (CHART + SIDE + GAP)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {TOP + HEIGHT + 116}" role="img">',
        f"<title>How the cost of a run grows</title><style>{STYLE}</style>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        '<text class="head" x="14" y="22">How the cost of a run grows</text>',
        f'<text class="small" x="14" y="40">PostgreSQL {escape(str(about["server"]))}, {about["processors"]} processors; '
        "both axes logarithmic; medians, from the least to the most</text>",
    ]
    for number, chart in enumerate(CHARTS):
        out += draw_chart(lines, chart, SIDE + number * (CHART + SIDE + GAP))
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join([*out, "</svg>", ""]))


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as results:
        everything = json.load(results)
    draw(everything["results"], everything["about"], sys.argv[2])
