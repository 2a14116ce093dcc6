"""What kernels may take of a GPU: tests/kernels/budgets.csv against what the compilers say.

    python tests/budgets.py            checks every kernel
    python tests/budgets.py --update   writes the table anew

A kernel fails when it spills where it didn't, when its registers need another step of 8 (they are handed out in such
steps, so that a growth within one costs nothing), or when its stack or shared memory grow. Registers depend on the
compiler's version, which the table holds: under another one only spills are compared.
"""

import csv
import io
import sys
from dataclasses import astuple, dataclass, fields
from pathlib import Path

TABLE = Path(__file__).parent / "kernels" / "budgets.csv"
ARCHITECTURES = (80, 90, 100)  # A100, H100, B200
STEP = 8  # registers a thread


@dataclass(frozen=True)
class Row:
    """What one kernel takes, compiled for one architecture. Registers, stack and spills are a thread's."""

    kernel: str
    case: str  # Triton: what it is compiled with; CUDA C++: its file
    architecture: int
    compiler: str
    registers: int
    stack: int  # bytes, spills included
    spilled: int  # bytes
    shared: int  # bytes a block, without dynamic shared memory of CUDA C++

    @property
    def key(self) -> tuple[str, str, int]:
        return self.kernel, self.case, self.architecture

    def line(self) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="").writerow(astuple(self))
        return text.getvalue()


def read() -> dict[tuple[str, str, int], Row]:
    with TABLE.open(newline="") as file:
        rows = [
            Row(*(int(value) if f.type is int else value for f, value in zip(fields(Row), line, strict=True)))
            for line in list(csv.reader(file))[1:]
        ]
    return {row.key: row for row in rows}


def complaint(row: Row, budget: Row | None) -> str | None:
    """What is wrong with `row`, and the line to change in the table; None when it keeps its budget."""
    name = f"{row.kernel} ({row.case}) for sm_{row.architecture}"
    if budget is None:
        return f"{name} has no budget; {TABLE.name} needs the line\n{row.line()}"
    found = []
    if row.spilled > budget.spilled:
        found.append(f"spills {row.spilled} bytes a thread, budget {budget.spilled}")
    if row.compiler == budget.compiler:
        allowed = -(-budget.registers // STEP) * STEP
        if row.registers > allowed:
            found.append(f"takes {row.registers} registers a thread, budget {budget.registers}, allowed {allowed}")
        if row.stack - row.spilled > budget.stack - budget.spilled:
            found.append(f"takes {row.stack} bytes of stack a thread, budget {budget.stack}")
        if row.shared > budget.shared:
            found.append(f"takes {row.shared} bytes of shared memory a block, budget {budget.shared}")
    if not found:
        return None
    return f"{name} {'; '.join(found)}. If that is meant, change in {TABLE.name}\n-{budget.line()}\n+{row.line()}"


def check(*rows: Row) -> None:
    """For tests: fails with the complaints, skips what another compiler's figures can't say."""
    import pytest

    table = read()
    wrong = [text for row in rows if (text := complaint(row, table.get(row.key)))]
    if wrong:
        pytest.fail("\n".join(wrong), pytrace=False)
    of, now = table[rows[0].key].compiler, rows[0].compiler
    if of != now:
        pytest.skip(f"the budgets are {of}'s, this is {now}: only spills were compared")


def measure() -> list[Row]:
    """Every kernel whose compiler is here, and on standard error which isn't."""
    import nvcc

    rows = []
    try:
        from ptxas import row_of
        from triton_cases import CASES
    except ImportError as error:
        print(f"Triton's kernels: left out, {error}", file=sys.stderr)
    else:
        rows += [row_of(*case, architecture) for case in CASES for architecture in ARCHITECTURES]
    if nvcc.NVCC is None:
        print("CUDA C++ kernels: left out, there is no nvcc", file=sys.stderr)
    else:
        rows += [row for source in nvcc.SOURCES for row in nvcc.compiled(source).rows]
    return rows


def main() -> int:
    rows, table = measure(), read()
    if sys.argv[1:] == ["--update"]:
        tools = {row.compiler.split()[0] for row in rows}
        kept = [row for row in table.values() if row.compiler.split()[0] not in tools]
        with TABLE.open("w", newline="") as file:
            lines = sorted([*rows, *kept], key=lambda row: (row.compiler, *row.key))
            file.write(
                "".join(f"{line}\n" for line in [",".join(f.name for f in fields(Row)), *(r.line() for r in lines)])
            )
        return 0
    wrong = [text for row in rows if (text := complaint(row, table.get(row.key)))]
    other = {f"{table[r.key].compiler} → {r.compiler}" for r in rows if table.get(r.key, r).compiler != r.compiler}
    print("\n".join(wrong), end="\n" * bool(wrong))
    print(f"{len(rows)} compiled, {len(wrong)} over budget", *(f"; {o}: only spills compared" for o in sorted(other)))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
