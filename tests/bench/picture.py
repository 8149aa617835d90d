"""The picture of the results, as SVG written by hand: for each work with a goal, how far the figure is from it.

The axis is figure / goal, logarithmic and so that left is better for every unit: at 1 the goal is just met. Bars are ours, marks
are others measured in the same run in the same unit. It must not need anything but Python.

usage: picture.py RESULTS.json PICTURE.svg
"""

import json
import math
import sys
from xml.sax.saxutils import escape

from report import figure_of, limit_of

LOW, HIGH = 0.01, 30.0
LEFT, WIDTH, ROW, TOP = 470, 420, 18, 64
STYLE = """text{font:12px sans-serif;fill:#1f2328} .small{font-size:11px;fill:#57606a} .head{font-size:15px;font-weight:bold}
.met{fill:#2da44e} .missed{fill:#cf222e} .other{fill:none;stroke:#0550ae;stroke-width:1.6} .grid{stroke:#d0d7de} .goal{stroke:#1f2328;stroke-width:1.4}"""


def distance(line, goal):
    """How many times the goal the figure is; less is better. None: it cannot be compared."""
    sign, limit = limit_of(goal)
    figure = figure_of({**line, "goal": goal})
    if figure is None or limit == 0:
        return None
    return figure / limit if sign == "<=" else (limit / figure if figure else None)


def place_of(value):
    value = min(max(value, LOW), HIGH)
    return LEFT + WIDTH * math.log(value / LOW) / math.log(HIGH / LOW)


def rows_of(lines):
    """(line, distance, [(name, distance) of others]) for everything with a goal that is not zero."""
    rows = []
    for line in lines:
        if "goal" not in line or (own := distance(line, line["goal"])) is None:
            continue
        rivals = [x for x in lines if x["work"] == line["work"] and not x["ours"] and x["unit"] == line["unit"]]
        suffix = line["contender"].rsplit(", ", 1)[-1] if ", " in line["contender"] else None
        if suffix in ("median", "p99"):
            rivals = [x for x in rivals if x["contender"].endswith(suffix)]
        others = [(x["contender"], distance(x, line["goal"])) for x in rivals if not (line["goal"].endswith(" x") and "ratio" not in x)]
        rows.append((line, own, [(name, d) for name, d in others if d is not None]))
    return rows


def figure_text(line):
    figure = figure_of(line)
    return f"{figure:.2f} x" if line["goal"].endswith(" x") else f"{figure:.3g} {line['unit']}"


def draw_row(line, own, others, y):
    one, end = place_of(1.0), place_of(own)
    label = f"{line['work']}: {line['contender']}"
    tip = "; ".join([f"{label}: {figure_text(line)}, goal {line['goal']}", *[f"{n}: {d:.2f} of the goal" for n, d in others]])
    out = [f"<g><title>{escape(tip)}</title>", f'<text x="{LEFT - 10}" y="{y + 12}" text-anchor="end">{escape(label)}</text>']
    kind = "met" if line.get("met") else "missed"
    out.append(f'<rect class="{kind}" x="{min(one, end):.1f}" y="{y + 3}" width="{max(1.5, abs(one - end)):.1f}" height="{ROW - 7}"/>')
    for _, d in others:
        out.append(f'<circle class="other" cx="{place_of(d):.1f}" cy="{y + ROW / 2 - 0.5:.1f}" r="4"/>')
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
        "bars: bucardo (green: goal met, red: missed); rings: others in the same run; logarithmic</text>",
    ]
    for tick in (0.01, 0.1, 0.5, 1, 2, 10, 30):
        x = place_of(tick)
        out.append(f'<line class="{"goal" if tick == 1 else "grid"}" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 2}" y2="{bottom + 4}"/>')
        out.append(f'<text class="small" x="{x:.1f}" y="{bottom + 20}" text-anchor="middle">{tick:g}</text>')
    out += [draw_row(line, own, others, TOP + ROW * n) for n, (line, own, others) in enumerate(rows)]
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join([*out, "</svg>", ""]))


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as results:
        known = json.load(results)
    draw(known["results"], known["about"], sys.argv[2])
