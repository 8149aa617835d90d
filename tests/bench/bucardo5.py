"""The original Bucardo, measured in its own words; see the environment variable WITH_BUCARDO5."""

import os


def original(bench):
    """The original Bucardo 5.6 over the same backlogs, with its defaults and tuned."""
    if os.environ.get("WITH_BUCARDO5") != "1":
        bench.results.skip("the original Bucardo", "WITH_BUCARDO5=1 is not set")
