"""Cycles in a graph of files: node -> the nodes that it needs."""


def cycles(graph: dict[str, list[str]]) -> list[list[str]]:
    """A path back to its start for every node that a walk along the edges meets twice."""
    found, done = [], set()

    def walk(node: str, path: list[str]) -> None:
        if node in path:
            found.append([*path[path.index(node) :], node])
        elif node not in done:
            for name in graph.get(node, []):
                walk(name, [*path, node])
            done.add(node)

    for node in graph:
        walk(node, [])
    return found
