"""The picture of the results, as SVG written by hand: for each work with a goal, how far the figure is from it.

The axis is figure / goal, logarithmic and so that left is better for every unit: at 1 the goal is just met. Bars are ours, marks
are others measured in the same run in the same unit; a whisker goes from the least to the most. It must not need anything but Python.

usage: picture.py RESULTS.json [RESULTS.json ...] PICTURE.svg
Of several files a later one replaces the lines of the same work and contender.
"""

import json
import math
import sys
from xml.sax.saxutils import escape

from report import figure_of, limit_of

LOW, HIGH = 0.01, 30.0
LEFT, WIDTH, ROW, TOP = 470, 420, 18, 64
STYLE = """text{font:12px sans-serif;fill:#1f2328} .small{font-size:11px;fill:#57606a} .head{font-size:15px;font-weight:bold}
.met{fill:#2da44e} .missed{fill:#cf222e} .other{fill:none;stroke:#0550ae;stroke-width:1.6} .grid{stroke:#d0d7de} .goal{stroke:#1f2328;stroke-width:1.4}
.whisker{fill:none;stroke:#1f2328} .whisker.of_other{stroke:#0550ae}"""


def distance(figure, goal):
    """How many times the goal a figure is; less is better. None: it cannot be compared."""
    sign, limit = limit_of(goal)
    if figure is None or limit == 0:
        return None
    return figure / limit if sign == "<=" else (limit / figure if figure else None)


def distances(line, goal):
    """(of the median, least, most) of a line from a goal, which may be another line's. None: it cannot be compared."""
    own = figure_of({**line, "goal": goal})
    ends = ("ratio_min", "ratio_max") if goal.endswith(" x") else ("min", "max")
    # Files from before the whiskers have no ends of a ratio.
    middle, *both = (distance(figure, goal) for figure in (own, *(line.get(end, own) for end in ends)))
    return None if middle is None else (middle, *sorted(middle if end is None else end for end in both))


def place_of(value):
    value = min(max(value, LOW), HIGH)
    return LEFT + WIDTH * math.log(value / LOW) / math.log(HIGH / LOW)


def rows_of(lines):
    """(line, distances, [(name, distances) of others]) for everything with a goal that is not zero."""
    rows = []
    for line in lines:
        if "goal" not in line or (own := distances(line, line["goal"])) is None:
            continue
        rivals = [x for x in lines if x["work"] == line["work"] and not x["ours"] and x["unit"] == line["unit"]]
        suffix = line["contender"].rsplit(", ", 1)[-1] if ", " in line["contender"] else None
        if suffix in ("median", "p99"):
            rivals = [x for x in rivals if x["contender"].endswith(suffix)]
        others = [(x["contender"], distances(x, line["goal"])) for x in rivals]
        rows.append((line, own, [(name, d) for name, d in others if d is not None]))
    return rows


def figure_text(line):
    figure = figure_of(line)
    return f"{figure:.2f} x" if line["goal"].endswith(" x") else f"{figure:.3g} {line['unit']}"


def whisker(ends, y, kind, cap):
    """A thin line from the least to the most; none where they are the same."""
    low, high = (place_of(end) for end in ends)
    if high - low < 0.1:
        return []
    return [f'<path class="{kind}" d="M{low:.1f} {y - cap:.1f}v{2 * cap}m0 {-cap}H{high:.1f}m0 {-cap}v{2 * cap}"/>']


def draw_row(line, own, others, y):
    one, end, middle = place_of(1.0), place_of(own[0]), y + ROW / 2 - 0.5
    label = f"{line['work']}: {line['contender']}"
    tip = "; ".join([f"{label}: {figure_text(line)}, goal {line['goal']}", *[f"{n}: {d[0]:.2f} of the goal" for n, d in others]])
    out = [f"<g><title>{escape(tip)}</title>", f'<text x="{LEFT - 10}" y="{y + 12}" text-anchor="end">{escape(label)}</text>']
    kind = "met" if line.get("met") else "missed"
    out.append(f'<rect class="{kind}" x="{min(one, end):.1f}" y="{y + 3}" width="{max(1.5, abs(one - end)):.1f}" height="{ROW - 7}"/>')
    out += whisker(own[1:], middle, "whisker", 3)
    for _, d in others:
        # Without caps, which its ring would hide where they are close.
        out += whisker(d[1:], middle, "whisker of_other", 0)
        out.append(f'<circle class="other" cx="{place_of(d[0]):.1f}" cy="{middle:.1f}" r="4"/>')
    out.append(f'<text class="small" x="{LEFT + WIDTH + 12}" y="{y + 12}">{escape(figure_text(line))} (goal {escape(line["goal"])})</text></g>')
    return "\n".join(out)


def draw(lines, about, path):
    rows = rows_of(lines)
    bottom = TOP + ROW * len(rows)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 190} {bottom + 34}" role="img">',
        f"<title>Measured against the goals</title><style>{STYLE}</style>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        '<text class="head" x="14" y="22">Measured figure / goal: left of 1 is better than the goal</text>',
        f'<text class="small" x="14" y="40">PostgreSQL {escape(str(about["server"]))}, {about["processors"]} processors, '
        "bars: bucardo (green: goal met, red: missed); rings: others in the same run; whiskers: least to most; logarithmic</text>",
    ]
    for tick in (0.01, 0.1, 0.5, 1, 2, 10, 30):
        x = place_of(tick)
        out.append(f'<line class="{"goal" if tick == 1 else "grid"}" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 2}" y2="{bottom + 4}"/>')
        out.append(f'<text class="small" x="{x:.1f}" y="{bottom + 20}" text-anchor="middle">{tick:g}</text>')
    out += [draw_row(line, own, others, TOP + ROW * n) for n, (line, own, others) in enumerate(rows)]
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join([*out, "</svg>", ""]))


def merged(paths):
    """(lines, about) of several files: a later one's line takes the place of the one of the same work and contender."""
    lines, about = {}, None
    for path in paths:
        with open(path, encoding="utf-8") as results:
            known = json.load(results)
        about = known["about"]
        lines.update({(line["work"], line["contender"]): line for line in known["results"]})
    return list(lines.values()), about


if __name__ == "__main__":
    draw(*merged(sys.argv[1:-1]), sys.argv[-1])
