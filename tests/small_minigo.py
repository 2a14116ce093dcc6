"""Minigo small enough for a test: a board of 5 lines, a network of one block, an iteration of a few games."""

SETTINGS = (
    "size=5", "komi=0.5", "batch_size=16", "max_epochs=2", "games=6", "window=2", "filter_amount=0.9", "model.width=8",
    "model.blocks=1", "play.workers=0", "play.games=6", "play.readouts=12", "play.fast_readouts=4", "match.games=6",
    "match.readouts=8", "match.opponent_readouts=4", "eval_every=1", "threads=1", "seed=11",
)  # fmt: skip


def settings(*more):
    """Arguments of `run minigo`."""
    return [part for setting in (*SETTINGS, *more) for part in ("--set", setting)]
