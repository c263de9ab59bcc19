"""What must happen in the end: delivery stays possible (S2), and nobody is starved of it (L1).

Both need the graph itself, which the search does not keep: the edges are looked up once more and
kept in flat arrays.  For small bounds.

L1 is `<>[](nothing is owed)` under weak fairness: an actor that is obliged to move from some point
on without interruption does move.  Posts are bounded, so on a cycle nobody posts and what is owed
stays owed: the claim is broken by a fair cycle, or a state at rest, in which something is owed.  A
scenario that claims it has the hardware's priority (`Scenario.priority`); without, a guest can
starve itself by always doing something else before the notification that is under way.
"""

from array import array
from collections.abc import Iterator

from emulator.checker.claims import Claim
from emulator.checker.search import Broken, Exploration


class _Graph:
    """The states in the order they were found, and their edges; `whose` has each edge's part."""

    def __init__(self, found: Exploration) -> None:
        world = found.world
        self.states = list(found.parents)
        number = {state: i for i, state in enumerate(self.states)}
        self.first = array("q", [0])
        self.edges = array("q")
        self.whose = array("b")
        self.obliged: list[int] = []  # by state: a bit for each part that has to move
        for state in self.states:
            bits = 0
            for i in range(len(world.parts)):
                obliged, deltas = world.entry(i, state)
                bits |= obliged << i
                for delta in deltas:
                    self.edges.append(number[state + delta])
                    self.whose.append(i)
            self.first.append(len(self.edges))
            self.obliged.append(bits)

    def after(self, i: int) -> Iterator[tuple[int, int]]:
        """(state, part that moves) of each edge from state number `i`."""
        for edge in range(self.first[i], self.first[i + 1]):
            yield self.edges[edge], self.whose[edge]


def delivery_stays_possible(found: Exploration) -> Broken | None:
    """S2: from every state one can be reached in which nothing is owed."""
    graph = _Graph(found)
    back: list[list[int]] = [[] for _ in graph.states]
    for i in range(len(graph.states)):
        for j, _ in graph.after(i):
            back[j].append(i)
    mask = found.world.owed_mask
    fine = [i for i, state in enumerate(graph.states) if not state & mask]
    reached = bytearray(len(graph.states))
    for i in fine:
        reached[i] = 1
    while fine:
        for i in back[fine.pop()]:
            if not reached[i]:
                reached[i] = 1
                fine.append(i)
    for i, state in enumerate(graph.states):
        if not reached[i] and found.world.owes(state):
            text = "from here no post that is owed can be delivered any more"
            return Broken(Claim.DELIVERY_STAYS_POSSIBLE, text, found.way_to(state))
    return None


def every_post_is_delivered_at_last(found: Exploration) -> Broken | None:
    """L1: no fair cycle, and no state at rest, in which something is owed."""
    graph = _Graph(found)
    mask, world = found.world.owed_mask, found.world
    owing = [bool(state & mask) and bool(world.owes(state)) for state in graph.states]
    earliest: tuple[int, str] | None = None
    for component in _components(graph, owing):
        first = min(component)
        if len(component) == 1 and not graph.obliged[first]:
            text = "at rest, and a post is owed"
        elif len(component) > 1 and _is_fair(graph, component):
            text = f"a fair cycle through {len(component)} states in which a post stays owed"
        else:
            continue
        if earliest is None or first < earliest[0]:
            earliest = first, text
    if earliest is None:
        return None
    first, text = earliest
    claim = Claim.EVERY_POST_IS_DELIVERED_AT_LAST
    return Broken(claim, text, found.way_to(graph.states[first]))


def _is_fair(graph: _Graph, component: set[int]) -> bool:
    """Each part moves on the cycle, or is once not obliged to."""
    always, moves = -1, 0
    for i in component:
        always &= graph.obliged[i]
        for j, part in graph.after(i):
            if j in component:
                moves |= 1 << part
    return not always & ~moves


def _components(graph: _Graph, wanted: list[bool]) -> Iterator[set[int]]:
    """The strongly connected components of the wanted states (Tarjan, without recursion)."""
    index = [0] * len(wanted)
    low = [0] * len(wanted)
    on_stack = bytearray(len(wanted))
    stack: list[int] = []
    count = 0
    for root, is_wanted in enumerate(wanted):
        if not is_wanted or index[root]:
            continue
        count += 1
        index[root] = low[root] = count
        stack.append(root)
        on_stack[root] = 1
        work = [(root, graph.after(root))]
        while work:
            i, edges = work[-1]
            for j, _ in edges:
                if not wanted[j]:
                    continue
                if not index[j]:
                    count += 1
                    index[j] = low[j] = count
                    stack.append(j)
                    on_stack[j] = 1
                    work.append((j, graph.after(j)))
                    break
                if on_stack[j]:
                    low[i] = min(low[i], index[j])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[i])
                if low[i] == index[i]:
                    component = set()
                    while True:
                        j = stack.pop()
                        on_stack[j] = 0
                        component.add(j)
                        if j == i:
                            break
                    yield component
