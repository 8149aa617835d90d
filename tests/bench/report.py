"""The results: a line for each contender of each work, printed as they come, kept for the JSON file and the picture.

A goal is a text such as '<= 1.5 x' (of the ratio to the reference of the same run) or '<= 2 ms' (of the figure itself). It is
shown beside the figure and never asserted.
"""

import json
import statistics


class Results:
    """All lines of a run, in the order in which they were measured."""

    def __init__(self):
        self.lines = []
        self.skipped = []

    def add(self, work, contender, values, unit, reference=None, goal=None, ours=None, rounds=True):
        """A line: the median of `values`, and its ratio to `reference`. Ours are those with a goal, if not said; `rounds` as in
        `ratios_of`."""
        ratios = ratios_of(values, reference or [], rounds)
        values = [v for v in values if v is not None]
        median = statistics.median(values)
        line = {"work": work, "contender": contender, "unit": unit, "median": median, "min": min(values), "max": max(values)}
        line["values"] = [float(f"{v:.4g}") for v in values]
        if ratios:
            line["ratio"], line["ratio_min"], line["ratio_max"] = statistics.median(ratios), min(ratios), max(ratios)
        if goal:
            line["goal"] = goal
            line["met"] = meets(line)
        line["ours"] = bool(goal) if ours is None else ours
        self.lines.append(line)
        print(text_of(line), flush=True)

    def skip(self, work, why):
        self.skipped.append({"work": work, "why": why})
        print(f"  {work:<44} skipped: {why}", flush=True)

    def write_json(self, path, about):
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"about": about, "results": self.lines, "skipped": self.skipped}, file, indent=1)
            file.write("\n")


def ratios_of(values, reference, rounds):
    """The ratios whose median is the line's. With `rounds`, the values and the references of the same index were measured one
    after the other: each is compared with its own, because the machine's own ups and downs are longer than a round. Without, or
    where there are not as many of both, the index says nothing, and each is compared with the median of the references."""
    pairs = [(v, r) for v, r in zip(values, reference) if v is not None and r]
    if rounds and len(values) == len(reference) == len(pairs):
        return [v / r for v, r in pairs]
    base = statistics.median(reference) if reference else 0
    return [v / base for v in values if v is not None] if base > 0 else []


def figure_of(line):
    """What the goal of a line is about: the ratio or the figure itself."""
    return line.get("ratio") if line.get("goal", "x").endswith(" x") else line["median"]


def limit_of(goal):
    """('<=' or '>=', number)."""
    sign, number, *_ = goal.split()
    return sign, float(number)


def meets(line):
    sign, limit = limit_of(line["goal"])
    figure = figure_of(line)
    if figure is None:
        return None
    return figure <= limit if sign == "<=" else figure >= limit


def text_of(line):
    ratio = f"{line['ratio']:8.3f} x" if "ratio" in line else " " * 10
    goal = line.get("goal", "")
    verdict = {True: "ok", False: "MISSED", None: ""}[line.get("met")]
    figures = f"{line['median']:12.3f} {line['unit']:<6} ({line['min']:.3f}-{line['max']:.3f})"
    return f"  {line['work']:<44} {line['contender']:<32} {figures:<44} {ratio}  {goal:<12} {verdict}".rstrip()


def table_of(results):
    """The whole table, as it is shown at the end."""
    lines = [text_of(line) for line in results.lines]
    lines += [f"  {s['work']:<44} skipped: {s['why']}" for s in results.skipped]
    return "\n".join(lines)
