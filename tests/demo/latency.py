"""From commit to commit: how long a change took from the source to each target. Reads, prints, changes nothing.

usage: latency.py SOURCE.csv TARGET=FILE.csv ...

Each file has lines `key,microseconds`: the commit timestamp of the transaction that wrote the row as it is now. A row that
both have in the same version gives one sample: the target's commit minus the source's.
"""

import csv
import sys


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return {key: int(time) for key, time in csv.reader(file) if time}


def at(sorted_values, share):
    return sorted_values[min(len(sorted_values) - 1, int(share * len(sorted_values)))]


def main():
    source = read(sys.argv[1])
    for argument in sys.argv[2:]:
        name, path = argument.split("=", 1)
        target = read(path)
        samples = sorted((target[key] - time) / 1000 for key, time in source.items() if target.get(key, 0) >= time)
        if not samples:
            print(f"     {name:<8} no sample")
            continue
        print(
            f"     {name:<8} {len(samples):>6,} rows   median {at(samples, 0.5):7.1f} ms   "
            f"95 % within {at(samples, 0.95):7.1f} ms   slowest {samples[-1]:7.1f} ms"
        )


if __name__ == "__main__":
    main()
