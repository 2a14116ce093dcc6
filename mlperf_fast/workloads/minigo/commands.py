"""The commands `gtp` and `analyze`: their arguments, which import nothing heavy, and what they do."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mlperf_fast.errors import UserError

if TYPE_CHECKING:
    from mlperf_fast.workloads.minigo.judge import Judge

GTP = """Without --checkpoint it has no network: it judges a position by random games from there to the end, which plays
a fair game on small boards and a weak one on 19 lines. Programs that speak GTP, such as Sabaki, GoGui and Lizzie, take
this line as their engine; docs/minigo.md shows how. Standard output holds GTP alone, all else goes to standard error.
"""

ANALYZE = """Exit codes: 0 fine, 2 the file is no game that can be judged. Of a file with several games it takes the
first, of variations the main line. Area scoring with the file's komi, whatever rules it names.
"""


class Opponent(NamedTuple):
    """Who judges positions, and what comes with it."""

    judge: "Judge"
    size: int | None  # of the network's board; None: any
    komi: float
    own_eyes: bool
    name: str


def add_gtp(command: argparse.ArgumentParser) -> None:
    command.epilog, command.formatter_class = GTP, argparse.RawDescriptionHelpFormatter
    add_judge(command, (400, 4000), "a move")
    command.add_argument("--size", type=int, metavar="N", help="board at the start; default: the network's, else 19")
    command.add_argument("--komi", type=float, metavar="K", help="at the start; default: the network's, else 7.5")
    text = "gives up when it wins less often than this, in per cent; 0: never; default: 5"
    command.add_argument("--resign", type=float, default=5.0, metavar="P", help=text)


def add_analyze(command: argparse.ArgumentParser) -> None:
    command.epilog, command.formatter_class = ANALYZE, argparse.RawDescriptionHelpFormatter
    command.add_argument("game", type=Path, metavar="GAME.sgf")
    add_judge(command, (100, 1000), "each position")
    command.add_argument("--komi", type=float, metavar="K", help="default: the file's, else 7.5")
    command.add_argument("--out", type=Path, metavar="FILE.sgf", help="the game with what was found in its comments")
    command.add_argument("--svg", type=Path, metavar="FILE.svg", help="the win rate's curve and the last board")
    command.add_argument("--json", action="store_true", help="machine-readable, in place of the table")


def add_judge(command: argparse.ArgumentParser, readouts: tuple[int, int], of: str) -> None:
    """readouts: by a network, and by random games, of which each says little and costs little."""
    with_network, without = readouts
    text = "a network, as a run's models/ has them; default: random games judge"
    command.add_argument("--checkpoint", type=Path, metavar="FILE", help=text)
    text = f"positions that the search reads for {of}; default: {with_network}, without a network {without}"
    command.add_argument("--readouts", type=int, metavar="N", help=text)
    command.set_defaults(default_readouts=readouts)
    command.add_argument("--seed", type=int, default=0, metavar="N", help="the same seed, the same game; default: 0")


def opponent(options: argparse.Namespace) -> Opponent:
    """By the options of add_judge(). UserError for a bad number or file."""
    from mlperf_fast.workloads.minigo.judge import by_network, by_playouts

    if options.readouts is None:
        options.readouts = options.default_readouts[options.checkpoint is None]
    if not 1 <= options.readouts <= 1_000_000:
        raise UserError(f"--readouts is {options.readouts}; expected 1 to 1,000,000")
    if options.checkpoint is None:
        return Opponent(by_playouts, None, 7.5, True, "random games: no --checkpoint was given")
    import torch

    from mlperf_fast.workloads.minigo.inference import Inference
    from mlperf_fast.workloads.minigo.model import load

    net, notes = load(options.checkpoint, device="cuda" if torch.cuda.is_available() else "cpu")
    komi, own_eyes = float(notes.get("komi", 7.5)), bool(notes.get("own_eyes", True))
    return Opponent(by_network(Inference(net)), net.size, komi, own_eyes, f"the network {options.checkpoint}")


def gtp(options: argparse.Namespace) -> int:
    from mlperf_fast.workloads.minigo.gtp import Lines, Server, serve
    from mlperf_fast.workloads.minigo.player import Player

    if not 0 <= options.resign <= 100:
        raise UserError(f"--resign is {options.resign:g}; expected 0 to 100 per cent")
    who = opponent(options)

    def make(size: int, komi: float) -> Player:
        if who.size not in (None, size):
            raise UserError(f"the network plays on {who.size} lines, not on {size}")
        return Player(
            size,
            komi,
            who.judge,
            options.readouts,
            resign=options.resign / 100,
            own_eyes=who.own_eyes,
            seed=options.seed,
        )

    size = options.size if options.size is not None else who.size or 19
    server = Server(make, size, who.komi if options.komi is None else options.komi)
    print(f"mlperf_fast plays by {who.name}", file=sys.stderr, flush=True)
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    serve(server, Lines(sys.stdin.fileno()), sys.stdout)
    return 0


def analyze(options: argparse.Namespace) -> int:
    from mlperf_fast.workloads.minigo import analyze as analysis
    from mlperf_fast.workloads.minigo import picture, sgf

    for path in (options.out, options.svg):
        if path is not None and path.is_dir():
            raise UserError(f"{path} is a folder; name the file to write in it")
        if path is not None and not path.parent.is_dir():
            raise UserError(f"{path}: its folder doesn't exist: make it first")
    record, *others = sgf.read(options.game)
    if others:
        print(f"{options.game} holds {len(others) + 1} games; the first is judged", file=sys.stderr)
    if options.komi is not None:
        record.komi = options.komi
    who = opponent(options)
    if who.size not in (None, record.size):
        raise UserError(f"{options.game} was played on {record.size} lines, the network plays on {who.size}")
    positions = analysis.analyze(
        record, who.judge, options.readouts, own_eyes=who.own_eyes, seed=options.seed, name=str(options.game)
    )
    if options.out:
        write(options.out, sgf.write(analysis.annotated(record, positions)))
    if options.svg:
        write(options.svg, picture.picture(record, positions))
    if options.json:
        print(json.dumps(analysis.as_json(record, positions), indent=1))
    else:
        komi = analysis.KOMI if record.komi is None else record.komi
        print(f"judged by {who.name}; {options.readouts} readouts a position, komi {komi:g}")
        analysis.show(record, positions)
    return 0


def write(path: Path, text: str) -> None:
    from mlperf_fast.data.files import replace_file

    try:
        replace_file(path, text.encode())
    except OSError as error:
        raise UserError(f"{path} can't be written: {error.strerror}") from None
