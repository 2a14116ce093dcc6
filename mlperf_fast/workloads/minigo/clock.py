"""Time on the clock of a game, as GTP counts it, and how much of it the next move may take.

clock = Clock(main=60, extra=10, stones=5)       # a minute, then 10 s for each 5 stones (Canadian byo-yomi)
seconds = clock.seconds(BLACK, moves=12, points=81)
clock.used(BLACK, 3.2)
"""

from mlperf_fast.workloads.minigo.board import BLACK, WHITE

SAFETY = 0.1  # seconds of each move: the way to the referee and back, and a batch that has begun


class Clock:
    """Without arguments there is no limit; nor where GTP says so, by extra time for no stones."""

    def __init__(self, main: float = 0, extra: float = 0, stones: int = 0) -> None:
        self.main, self.extra, self.stones = main, extra, stones
        self.is_limited = (main > 0 or extra > 0) and not (extra > 0 and stones == 0)
        self.restart()

    def restart(self) -> None:
        """The clocks of a new game: seconds and, in the extra time, the stones to play in them."""
        first = (self.main, 0) if self.main > 0 else (self.extra, self.stones)
        self.left: dict[int, tuple[float, int]] = {BLACK: first, WHITE: first}

    def seconds(self, colour: int, moves: int, points: int) -> float | None:
        """For the next move, of a game in which `moves` were played on so many points; None: there is no limit.

        Main time is shared out over the moves that are likely to follow, as if three quarters of the points were
        played on, and never fewer than an eighth; extra time over its stones.
        """
        if not self.is_limited:
            return None
        left, stones = self.left[colour]
        if stones > 0:
            return max(0.0, left / stones - SAFETY)
        to_follow = max(points * 3 / 4 - moves, points / 8) / 2
        extra = self.extra / self.stones if self.stones else 0.0
        return max(0.0, max(left / to_follow, extra) - SAFETY)

    def told(self, colour: int, left: float, stones: int) -> None:
        """By the referee: what is left, for so many stones; 0: of the main time. Without settings too it is a limit."""
        self.is_limited |= self.main == self.extra == 0
        self.left[colour] = left, stones

    def used(self, colour: int, seconds: float) -> None:
        """For referees that don't tell what is left; told() overrules it."""
        left, stones = self.left[colour]
        left -= seconds
        if stones > 1:
            self.left[colour] = left, stones - 1
        elif self.stones and (stones == 1 or left <= 0):
            self.left[colour] = self.extra, self.stones
        else:
            self.left[colour] = max(left, 0.0), 0
