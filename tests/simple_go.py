"""Go by the book, slowly: an engine in sets of points that shares nothing with csrc/go, for its tests.

Points are (row, column), stones a dictionary point -> "B" or "W", a board of the past a frozenset of its items.
"""

import numpy as np

from mlperf_fast.workloads.minigo import board

SIDES = {"B": board.BLACK, "W": board.WHITE}
COLOURS = {value: key for key, value in SIDES.items()}
OTHER = {"B": "W", "W": "B"}


class SimpleGo:
    def __init__(self, size, stones=(), to_move="B"):
        self.size, self.stones, self.to_move = size, dict(stones), to_move
        self.seen = {frozenset(self.stones.items())}
        self.boards = []  # of the past, oldest first; a pass adds one too
        self.passes, self.moves, self.ko, self.last = 0, 0, None, -1
        self.lost = {"B": 0, "W": 0}

    def points(self):
        return [(row, column) for row in range(self.size) for column in range(self.size)]

    def beside(self, point):
        row, column = point
        near = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
        return [(r, c) for r, c in near if 0 <= r < self.size and 0 <= c < self.size]

    def connected(self, point, inside):
        """All points reached from `point` through points for which inside(point) holds."""
        found, waiting = {point}, [point]
        while waiting:
            for near in self.beside(waiting.pop()):
                if near not in found and inside(near):
                    found.add(near)
                    waiting.append(near)
        return found

    def chain(self, point, stones=None):
        stones = self.stones if stones is None else stones
        return self.connected(point, lambda near: stones.get(near) == stones[point])

    def liberties(self, chain, stones=None):
        stones = self.stones if stones is None else stones
        return {near for point in chain for near in self.beside(point) if near not in stones}

    def after(self, point, colour):
        """(stones after a move, what it takes), suicides included as chains without liberties."""
        stones = {**self.stones, point: colour}
        taken = set()
        for near in self.beside(point):
            if stones.get(near) == OTHER[colour]:
                chain = self.chain(near, stones)
                if not self.liberties(chain, stones):
                    taken |= chain
        for one in taken:
            del stones[one]
        return stones, taken

    def verdict(self, point, colour=None):
        """One of board's verdicts; `point` None is the pass."""
        colour = colour or self.to_move
        if self.passes >= 2:
            return board.OVER
        if point is None:
            return board.LEGAL
        if point in self.stones:
            return board.OCCUPIED
        if point == self.ko and colour == self.to_move:
            return board.KO
        stones, _ = self.after(point, colour)
        if not self.liberties(self.chain(point, stones), stones):
            return board.SUICIDE
        return board.SUPERKO if frozenset(stones.items()) in self.seen else board.LEGAL

    def play(self, point, colour=None):
        colour = colour or self.to_move
        assert self.verdict(point, colour) == board.LEGAL
        self.boards.append(self.stones)
        self.moves += 1
        self.ko = None
        self.to_move = OTHER[colour]
        self.last = self.number(point)
        if point is None:
            self.passes += 1
            return
        self.passes = 0
        self.stones, taken = self.after(point, colour)
        self.seen.add(frozenset(self.stones.items()))
        self.lost[OTHER[colour]] += len(taken)
        chain = self.chain(point)
        if len(taken) == 1 and len(chain) == 1 and self.liberties(chain) == taken:
            self.ko = min(taken)

    def number(self, point):
        return self.size**2 if point is None else point[0] * self.size + point[1]

    def verdicts(self):
        """Of every point and the pass, in the order of moves."""
        return [self.verdict(point) for point in [*self.points(), None]]

    # Life and territory -----------------------------------------------------------------------------------------

    def chains(self, colour):
        return {frozenset(self.chain(point)) for point, found in self.stones.items() if found == colour}

    def regions(self, colour):
        """Connected sets of points without that colour."""
        return {
            frozenset(self.connected(point, lambda near: self.stones.get(near) != colour))
            for point in self.points()
            if self.stones.get(point) != colour
        }

    def pass_alive(self, colour):
        """Benson's algorithm from its definition: points of the pass-alive chains and of their regions."""
        chains, regions = self.chains(colour), self.regions(colour)

        def touches(chain, points):
            return any(near in chain for point in points for near in self.beside(point))

        def vital(region, chain):
            return all(touches(chain, {point}) for point in region if point not in self.stones)

        while True:
            kept = {chain for chain in chains if sum(vital(region, chain) for region in regions) >= 2}
            left = {region for region in regions if not any(touches(c, region) for c in self.chains(colour) - kept)}
            if (kept, left) == (chains, regions):
                break
            chains, regions = kept, left
        owned = set().union(*chains) if chains else set()
        for region in regions if chains else ():
            empty = [point for point in region if point not in self.stones]
            inner = [p for p in empty if not any(self.stones.get(near) == colour for near in self.beside(p))]
            if len(inner) <= 1:
                owned |= region
        return owned

    def owners(self):
        """point -> colour, of the area."""
        owners = dict(self.stones)
        for colour in "BW":
            owners |= dict.fromkeys(self.pass_alive(colour), colour)
        for point in self.points():
            if point in owners:
                continue
            region = self.connected(point, lambda near, owned=frozenset(owners): near not in owned)
            around = {owners[near] for one in region for near in self.beside(one) if near in owners}
            if len(around) == 1:
                owners |= dict.fromkeys(region, around.pop())
        return owners

    # As arrays --------------------------------------------------------------------------------------------------

    def array(self, owners):
        """int8 [size, size] of a dictionary point -> colour."""
        found = np.zeros((self.size, self.size), np.int8)
        for point, colour in owners.items():
            found[point] = SIDES[colour]
        return found

    def pass_alive_array(self):
        return self.array({point: colour for colour in "BW" for point in self.pass_alive(colour)})

    def liberty_counts(self):
        found = np.zeros((self.size, self.size), np.int32)
        for point in self.stones:
            found[point] = len(self.liberties(self.chain(point)))
        return found

    def planes(self):
        """uint8 [13, size, size], from the description of the reference's planes."""
        planes = np.zeros((13, self.size, self.size), np.uint8)
        for age, stones in enumerate([self.stones, *reversed(self.boards)][:4]):
            for point, colour in stones.items():
                planes[2 * age + (colour != self.to_move)][point] = 1
        planes[8] = self.to_move == "B"
        counts = self.liberty_counts()
        planes[9], planes[10], planes[11] = counts == 1, counts == 2, counts >= 3
        for point in self.points():
            if self.verdict(point) == board.LEGAL:
                planes[12][point] = bool(self.after(point, self.to_move)[1])
        return planes


def from_diagram(diagram, to_move="B"):
    """`X` Black, `O` White, `.` empty; rows from the top."""
    rows = ["".join(line.split()) for line in diagram.strip().splitlines()]
    stones = {
        (r, c): {"X": "B", "O": "W"}[mark] for r, row in enumerate(rows) for c, mark in enumerate(row) if mark != "."
    }
    return SimpleGo(len(rows), stones, to_move)


def games_of(simple, n=1, **options):
    """The native games that begin with the simple one's stones."""
    stones = {colour: [simple.number(p) for p, found in simple.stones.items() if found == colour] for colour in "BW"}
    to_move = SIDES[simple.to_move]
    return board.new_games(n, simple.size, black=stones["B"], white=stones["W"], to_move=to_move, **options)


def game_of(diagram, to_move="B"):
    """A single native game that begins so."""
    return games_of(from_diagram(diagram, to_move))


def play(games, *moves):
    """Points, None for a pass, in turns in a single game; the last one's verdict. All before it must be legal."""
    for number, move in enumerate(moves, 1):
        point = games.size**2 if move is None else move[0] * games.size + move[1]
        verdict = int(games.play([point])[0])
        assert verdict == board.LEGAL or number == len(moves), (move, board.VERDICTS[verdict])
    return verdict
