"""The rules of the source tree that no compiler checks. Called by `tests/run lint`; it reads, and must never change a file.

Each rule prints FILE:LINE and what is wrong; the exit code is 1 if anything was printed.
"""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
# The only folders where a block may give up the compiler's guarantees.
UNSAFE_FOLDERS = ("src/libpq/", "src/pg/")
# All of it runs inside one guard, which a panic must not leave.
GUARDED = ("src/pg/delta.rs",)
# The budget is 400; a file that has outgrown even this has to be cut.
MAX_LINES = 500
# Paths that exist on one machine only. Written so that this file does not match itself.
MACHINE_PATH = re.compile(r"(?<![\w./$}-])/(?:work|root|home/\w+)/")
# What an item that exists for tests only stands under.
TEST_ONLY = re.compile(r"#\[cfg\((?:test|any\(test\b.*|feature = \"pg_test\")\)\]")
# A test that runs nothing says that something is tested which is not.
EMPTY_TEST = re.compile(r"#\[test\]\s*(?:#\[[^\]]*\]\s*)*fn (\w+)\(\)\s*\{\s*\}")
COMMENT_OR_STRING = re.compile(r'//.*|r#*".*?"#*|b?"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])\'')

faults = []


def fault(path, line, text):
    faults.append(f"{path}:{line}: {text}")


def tracked():
    out = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    ).stdout
    return [p for p in out.decode().split("\0") if p and (ROOT / p).is_file()]


def code_lines(text):
    """(number, line without comments and strings) of what is compiled into a release build."""
    skip_until = None  # while inside of a test-only item: the indentation of its closing brace
    pending = False  # a test-only attribute was seen, its item comes next
    for number, raw in enumerate(text.splitlines(), 1):
        indent = len(raw) - len(raw.lstrip())
        if skip_until is not None:
            if raw.strip() in ("}", "};") and indent == skip_until:
                skip_until = None
            continue
        if TEST_ONLY.search(raw):
            pending = True
            continue
        line = COMMENT_OR_STRING.sub('""', raw)
        if pending and line.strip() and not line.strip().startswith(("#[", '""')):
            pending = False
            if line.rstrip().endswith("{"):
                skip_until = indent
            continue
        yield number, line


def check_opening(path, text):
    lines = [line for line in text.splitlines() if line.strip()]
    if path.endswith(".rs"):
        mark = "//!"
    elif path.endswith(".sql"):
        mark = "--"
    elif lines and lines[0].startswith("#!"):
        mark, lines = "#", lines[1:]
    else:
        return
    if not lines or not lines[0].startswith(mark):
        fault(path, 1, "a file opens with a few sentences: what it is, where it stands, what it must never do")


def check_source(path, text):
    if (count := text.count("\n")) > MAX_LINES:
        fault(path, count, f"{count} lines; the budget is 400")
    for number, line in code_lines(text):
        bare = re.sub(r"#!?\[[^\]]*\]", "", line)  # `#[unsafe(no_mangle)]` of a worker's entry point is no block
        if re.search(r"\bunsafe\b", bare) and not path.startswith(UNSAFE_FOLDERS):
            fault(path, number, "`unsafe` stands only in " + " and ".join(UNSAFE_FOLDERS))
        if path in GUARDED and re.search(r"pg_sys::(?!BufferGetPage\()\w+\(", line):
            fault(path, number, "inside a guard the server is called as in src/pg/raw.rs")
        if re.search(r"\.(unwrap|expect)\(", line):
            fault(path, number, "no unwrap, no expect outside of tests")
    for empty in EMPTY_TEST.finditer(text):
        fault(path, text.count("\n", 0, empty.start()) + 1, f"the test {empty.group(1)} cannot fail: it is empty")


def main():
    for path in tracked():
        try:
            text = (ROOT / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            fault(path, 1, "is not text")
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if MACHINE_PATH.search(line):
                fault(path, number, "names a path of one machine")
            if path.startswith("sql/capture") and not line.isascii():
                fault(path, number, "goes to members of any encoding, so it must be ASCII")
        check_opening(path, text)
        if path.startswith("src/") and path.endswith(".rs"):
            check_source(path, text)
    print("\n".join(faults) if faults else "lint.py: every rule holds")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
