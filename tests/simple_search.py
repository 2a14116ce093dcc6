"""Tree search by the book, slowly: objects and dictionaries over SimpleGo, which shares only formulas with csrc/go.

One game. W, P and Q are float32, as natively, and summed in the same order, so that both go the same way. The
network is a function: evaluate([node, ...]) -> [(policy [points + 1], value), ...].
"""

import copy
import math
import zlib

import numpy as np
import torch
from simple_go import SIDES

from mlperf_fast.workloads.minigo import board
from mlperf_fast.workloads.minigo.board import transform_planes, transform_policies

F = np.float32


class Node:
    def __init__(self, go, parent=None, move=None):
        self.go, self.parent, self.move = go, parent, move
        self.children = {}  # move -> Node, of those that were chosen
        self.expanded = False
        n = go.size**2 + 1
        self.N, self.W, self.P = np.zeros(n, int), np.zeros(n, F), np.zeros(n, F)  # of the edges
        self.own_N, self.own_W = 0, F(0)  # where there is no parent
        self.legal = np.array([verdict == board.LEGAL for verdict in go.verdicts()])
        self.sign = SIDES[go.to_move]

    @property
    def visits(self):
        return self.parent.N[self.move] if self.parent else self.own_N

    def add(self, value, visits):
        if self.parent:
            self.parent.W[self.move] += F(value)
            self.parent.N[self.move] += visits
        else:
            self.own_W += F(value)
            self.own_N += visits

    def path(self):
        node = self
        while node:
            yield node
            node = node.parent

    def exploration(self):
        return 2 * (math.log((1 + self.visits + 19652) / 19652) + 1.25)

    def scores(self, visits):
        q = self.sign * self.W.astype(float) / (1 + self.N)
        return q + self.exploration() * math.sqrt(visits) * self.P.astype(float) / (1 + self.N)

    def child(self, move):
        if move not in self.children:
            go = copy.copy(self.go)
            go.stones, go.seen, go.lost, go.boards = dict(go.stones), set(go.seen), dict(go.lost), list(go.boards)
            go.play(None if move == go.size**2 else divmod(move, go.size))
            self.children[move] = Node(go, self, move)
        return self.children[move]


class SimpleSearch:
    def __init__(self, go, evaluate, *, leaves=4, penalty=0.2, komi=7.5, soft_moves=0, soft_power=0.98, passes=4):
        self.root, self.evaluate, self.komi, self.leaves, self.penalty = Node(go), evaluate, komi, leaves, penalty
        self.soft_moves, self.soft_power, self.passes = soft_moves, soft_power, passes
        self.in_a_row, self.restricted = {"B": 0, "W": 0}, passes == 0
        self.target = self.asked = self.twice = 0

    # Reading ----------------------------------------------------------------------------------------------------

    def read(self, readouts, full):
        self.target = self.root.visits + readouts
        if full:
            self.root = Node(self.root.go)
        while self.root.visits < self.target:
            self.batch()

    def batch(self):
        queue = []
        while len(queue) < self.leaves and self.root.visits < self.target:
            leaf = self.select()
            if leaf.go.passes >= 2:
                score = int(leaf.go.array(leaf.go.owners()).sum(dtype=int)) - self.komi
                for node in leaf.path():
                    node.add(np.sign(score), 1)
                continue
            queue.append(leaf)
            for node in leaf.path():
                node.add(node.sign, 0)
            if leaf is self.root:
                break
        self.asked += len(queue)
        for leaf, (policy, value) in zip(queue, self.evaluate(queue), strict=True):
            for node in leaf.path():
                node.add(-node.sign, 0)
            if leaf.expanded:
                self.twice += 1
                continue
            total = F(0)
            for p in policy[leaf.legal]:
                total += p
            leaf.P[leaf.legal] = F(1) / total * policy[leaf.legal]
            leaf.W[leaf.legal] = np.clip(F(value) - F(self.penalty) * F(leaf.sign), F(-1), F(1))
            leaf.expanded = True
            for node in leaf.path():
                node.add(value, 1)

    def select(self):
        node = self.root
        while node.expanded:
            scores = np.where(node.legal, node.scores(max(1, node.visits - 1)), -1000)
            node = node.child(int(scores.argmax()))
        return node

    # Choosing ---------------------------------------------------------------------------------------------------

    def barred(self):
        barred = np.zeros(len(self.root.N), bool)
        if self.restricted:
            barred[:-1] = self.root.go.pass_alive_array().flatten() != 0
        return barred

    def most_visited(self, barred):
        scores = self.root.scores(1 + self.root.visits)
        open_moves = [move for move in range(len(barred)) if self.root.legal[move] and not barred[move]]
        return max(open_moves, key=lambda move: (self.root.N[move], scores[move]), default=len(barred) - 1)

    def soft(self):
        return self.root.go.moves < self.soft_moves

    def weights(self):
        return self.root.N**self.soft_power if self.soft() else self.root.N.astype(float)

    def choose(self, drawn=0.0):
        """`drawn` in [0, 1): what picks a move at the start of the game."""
        points = self.weights()[:-1]
        if not self.soft():
            return self.most_visited(self.barred())
        if points.sum() == 0:
            return len(points)
        return int((points.cumsum() > drawn * points.sum()).argmax())

    def q(self):
        own_W = self.root.own_W
        return own_W / F(1 + self.root.visits)

    def prune(self):
        root, barred = self.root, self.barred()
        best = self.most_visited(np.zeros_like(barred))
        limit = root.scores(1 + root.visits)[best]
        for move in range(len(root.N)):
            if barred[move]:
                root.N[move] = 0
            elif move != best and root.N[move]:
                q = root.sign * float(root.W[move]) / (1 + root.N[move])
                kept = root.exploration() * float(root.P[move]) * math.sqrt(root.visits) / (limit - q)
                root.N[move] = min(max(math.trunc(kept), 0), root.N[move])
        if not root.N.any():
            root.N[-1] = 1

    def pi(self):
        weights = self.weights()
        return weights / weights.sum()

    def play(self, move):
        colour = self.root.go.to_move
        child, own_N, own_W = self.root.child(move), self.root.N[move], self.root.W[move]
        child.parent, child.own_N, child.own_W = None, own_N, own_W
        self.root = child
        self.in_a_row[colour] = self.in_a_row[colour] + 1 if move == len(child.N) - 1 else 0
        self.restricted |= self.in_a_row[colour] >= self.passes


# A network for the native search, which is driven here as self-play drives it --------------------------------------


def fake(planes):
    """(policy, value) of uint8 [13, size, size]: a function of all planes, to which no two positions are alike."""
    draw = np.random.default_rng(zlib.crc32(np.ascontiguousarray(planes).tobytes()))
    policy = draw.random(planes[0].size + 1).astype(np.float32) ** 4
    return policy / policy.sum(), np.float32(draw.uniform(-1, 1))


def answer(search, batch, evaluate=fake):
    """Judges positions as they lie, and turns the policies as the planes were turned."""
    plain = transform_planes(batch.planes, batch.symmetries, back=True).numpy()
    found = [evaluate(planes) for planes in plain]
    policies = torch.from_numpy(np.stack([policy for policy, _ in found]))
    search.take(
        transform_policies(policies, search.games.size, batch.symmetries),
        torch.from_numpy(np.array([value for _, value in found], np.float32)),
    )


def read(search, readouts, full=False, evaluate=fake):
    n = len(search)
    search.start([readouts] * n, [full] * n)
    while len(batch := search.leaves()):
        answer(search, batch, evaluate)


def uniform(planes):
    return np.full(planes[0].size + 1, 1 / (planes[0].size + 1), np.float32), np.float32(0)
