"""The fixed graphs on which the graph tasks are tested: the London Underground and a family tree."""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

import torch

from envs.data.files import check_known, find, read_bytes
from envs.tasks.graphs.sample import Graphs


class World(NamedTuple):
    """A graph whose nodes and edges have names."""

    names: tuple[str, ...]
    """Names of the nodes."""
    points: tuple[tuple[float, float], ...]
    """Positions of the nodes in the unit square, for drawing: x to the right, y upwards."""
    kinds: tuple[str, ...]
    """Names of the edge labels."""
    edges: tuple[tuple[int, int, int], ...]
    """Source, kind and destination; no two edges of a node are of one kind."""

    def graphs(self, num_envs: int, device: torch.device) -> Graphs:
        """The graph, repeated for `num_envs` environments."""
        max_edges = max(sum(source == node for source, _, _ in self.edges) for node in range(len(self.names)))
        rows: list[list[tuple[int, int]]] = [[] for _ in self.names]
        for source, kind, destination in self.edges:
            rows[source].append((destination, kind))
        table = torch.tensor([row + [(-1, 0)] * (max_edges - len(row)) for row in rows], device=device)
        points = torch.tensor(self.points, dtype=torch.float32, device=device)
        successors, kinds = (part.expand(num_envs, -1, -1) for part in table.unbind(2))
        nodes = torch.full((num_envs,), len(self.names), device=device)
        return Graphs(points.expand(num_envs, -1, -1), successors, kinds, nodes)


# -- the Underground ---------------------------------------------------------------------------------------------------

_DOCKLANDS = "13"  # the one line of the files that is not the Underground
_COMPASS = {"E": 0.0, "N": 90.0, "W": 180.0, "S": 270.0}


def underground(data_dir: str | Path | None = None) -> World:
    """Stations of zone 1 where lines meet, and the lines between them in both directions.

    Stations on the border of zone 1 are included. Stations between two of them with a single line are skipped.
    An edge's kind is its line and the point of the compass to which it leads: the edges of a
    line at a station get different points, as close to their true bearings as possible.

    Raises:
        DataError: a file is missing and cannot be downloaded, or is not the published one (another map would be another
            benchmark).
    """
    stations = {row["id"]: row for row in _table("stations", data_dir)}
    lines = {row["line"]: row["name"].removesuffix(" Line") for row in _table("lines", data_dir)}
    track: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))  # line, station, neighbours
    for row in _table("connections", data_dir):
        if row["line"] != _DOCKLANDS:
            track[row["line"]][row["station1"]].add(row["station2"])
            track[row["line"]][row["station2"]].add(row["station1"])
    central = {station for station, row in stations.items() if float(row["zone"]) < 2}
    where = {key: (float(row["longitude"]), float(row["latitude"])) for key, row in stations.items()}
    met = sorted(key for key in central if sum(key in neighbours for neighbours in track.values()) > 1)
    found: dict[tuple[str, str, str], str] = {}  # station, line, point of the compass: station
    for line, neighbours in track.items():
        for station in met:
            ends = sorted(set(_ends(station, neighbours, central, set(met))))
            turns = [_bearing(where[station], where[end]) for end in ends]
            for end, point in zip(ends, _points_of_the_compass(turns), strict=True):
                found[station, lines[line], point] = end
    kinds = sorted({f"{line} {point}" for _, line, point in found})
    number = {station: index for index, station in enumerate(met)}
    edges = [
        (number[start], kinds.index(f"{line} {point}"), number[end]) for (start, line, point), end in found.items()
    ]
    columns = [[where[station][axis] for station in met] for axis in (0, 1)]
    scaled = [[(value - min(column)) / (max(column) - min(column)) for value in column] for column in columns]
    names = tuple(stations[station]["name"] for station in met)
    return World(names, tuple(zip(*scaled, strict=True)), tuple(kinds), tuple(sorted(edges)))


def _table(name: str, data_dir: str | Path | None) -> list[dict[str, str]]:
    name = f"london-underground/{name}"
    path = find(name, data_dir)
    content = read_bytes(path).replace(b"\r\n", b"\n")  # Git writes such line ends on Windows
    check_known(name, path, content)
    return list(csv.DictReader(io.StringIO(content.decode("utf-8"))))


def _ends(start: str, neighbours: dict[str, set[str]], central: set[str], met: set[str]) -> Iterator[str]:
    """The next stations of `met` along a line, in zone 1."""
    seen, ahead = {start}, list(neighbours.get(start, ()))
    while ahead:
        station = ahead.pop()
        if station in seen or station not in central:
            continue
        seen.add(station)
        if station in met:
            yield station
        else:
            ahead += neighbours[station]


def _bearing(here: tuple[float, float], there: tuple[float, float]) -> float:
    """Degrees from east, counter-clockwise, on the ground."""
    east = (there[0] - here[0]) * math.cos(math.radians(here[1]))
    return math.degrees(math.atan2(there[1] - here[1], east))


def _points_of_the_compass(turns: list[float]) -> tuple[str, ...]:
    """A different point for each bearing, with the smallest sum of squared angles between them."""

    def squared_angles(points: tuple[str, ...]) -> float:
        angles = ((turn - _COMPASS[point] + 180) % 360 - 180 for turn, point in zip(turns, points, strict=True))
        return sum(angle * angle for angle in angles)

    return min(permutations(_COMPASS, len(turns)), key=squared_angles)


# -- the family tree ---------------------------------------------------------------------------------------------------

_FAMILY = (  # father, mother, son, daughter, and the places of the parents
    (("Hamish", "Morag", "Fergus", "Isla"), (0.08, 0.2), 0.95),
    (("Angus", "Elspeth", "Ewan", "Rhona"), (0.36, 0.5), 0.95),
    (("Ewan", "Isla", "Callum", "Fiona"), (0.4, 0.2), 0.65),
    (("Bruce", "Ailsa", "Lachlan", "Una"), (0.7, 0.86), 0.65),
    (("Lachlan", "Fiona", "Rory", "Freya"), (0.7, 0.52), 0.35),
    (("Callum", "Mairi", "Niall", "Skye"), (0.2, 0.06), 0.35),
)
_FAMILY_LEAVES = {  # children without children of their own
    "Fergus": (0.06, 0.65),
    "Rhona": (0.54, 0.65),
    "Una": (0.9, 0.35),
    "Rory": (0.72, 0.05),
    "Freya": (0.52, 0.05),
    "Niall": (0.06, 0.05),
    "Skye": (0.22, 0.05),
}
_KIN = ("father", "mother", "son", "daughter", "brother", "sister", "husband", "wife")


def family() -> World:
    """Nineteen people of four generations, among them Freya and her maternal great uncle Fergus.

    Edges lead from a person to father, mother, son, daughter, brother, sister, husband and wife. Each couple has one
    son and one daughter, so that every relation is unique.
    """
    places: dict[str, tuple[float, float]] = {}
    edges: set[tuple[str, str, str]] = set()
    for (father, mother, son, daughter), (left, right), height in _FAMILY:
        places[father], places[mother] = (left, height), (right, height)
        edges |= {(father, "wife", mother), (mother, "husband", father)}
        edges |= {(son, "sister", daughter), (daughter, "brother", son)}
        for child, kin in ((son, "son"), (daughter, "daughter")):
            edges |= {(father, kin, child), (mother, kin, child)}
            edges |= {(child, "father", father), (child, "mother", mother)}
    places |= _FAMILY_LEAVES
    names = tuple(sorted(places))
    numbered = sorted((names.index(start), _KIN.index(kin), names.index(end)) for start, kin, end in edges)
    return World(names, tuple(places[name] for name in names), _KIN, tuple(numbered))
