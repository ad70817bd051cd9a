"""Graphs against slow references, and the two fixed ones."""

from __future__ import annotations

import math
import os
from pathlib import Path

import graph_decoders as decode
import pytest
import torch

from envs.data.files import DataError, digest
from envs.data.sources import SOURCES
from envs.tasks.graphs.sample import Graphs, distinct, hops, random_graphs
from envs.tasks.graphs.shortest_path import ShortestPath
from envs.tasks.graphs.traversal import GraphTraversal
from envs.tasks.graphs.worlds import family, underground

REAL = os.environ.get("ENGRAM_DATA")


@pytest.fixture(scope="module")
def graphs() -> tuple[Graphs, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    nodes = torch.randint(6, 13, (200,), generator=generator)
    least, most = torch.full((200,), 1), torch.randint(1, 5, (200,), generator=generator)
    kinds = torch.randint(4, 8, (200,), generator=generator)
    made = random_graphs(nodes, (least, most), kinds, (12, 5, 9), generator)
    return made, most, kinds


def test_edges_lead_to_the_nearest_neighbours(graphs: tuple[Graphs, torch.Tensor, torch.Tensor]) -> None:
    made, most, _ = graphs
    degrees = []
    for index in range(200):
        points = made.points[index, : made.nodes[index]].tolist()
        for node, here in enumerate(points):
            near = sorted((math.dist(here, there), other) for other, there in enumerate(points) if other != node)
            ends = [end for end in made.successors[index, node].tolist() if end >= 0]
            assert ends == [other for _, other in near[: len(ends)]]
            assert made.successors[index, node, : len(ends)].tolist() == ends  # no gaps
            assert 1 <= len(ends) <= most[index]
            degrees += [len(ends)] if most[index] == 4 else []
        assert (made.successors[index, made.nodes[index] :] == -1).all()
    assert all(degrees.count(degree) / len(degrees) == pytest.approx(0.25, abs=0.07) for degree in (1, 2, 3, 4))


def test_edges_of_a_node_are_of_different_kinds(graphs: tuple[Graphs, torch.Tensor, torch.Tensor]) -> None:
    made, _, kinds = graphs
    seen = set()
    for index in range(200):
        for node in range(int(made.nodes[index])):
            there = made.successors[index, node] >= 0
            own = made.kinds[index, node][there].tolist()
            assert len(set(own)) == len(own)
            assert all(0 <= kind < kinds[index] for kind in own)
            seen |= set(own)
    assert seen == set(range(7))


def test_points_are_spread_over_the_square() -> None:
    nodes = torch.full((400,), 10)
    one = torch.ones_like(nodes)
    made = random_graphs(nodes, (one, one), one, (10, 1, 1), torch.Generator().manual_seed(0))
    assert made.points.min() >= 0
    assert made.points.max() <= 1
    assert made.points.flatten(0, 1).mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.02)
    assert made.points.flatten(0, 1).var(0).tolist() == pytest.approx([1 / 12, 1 / 12], abs=0.005)


def test_distinct_numbers_are_different_and_fair() -> None:
    chance = torch.rand(4000, 3, generator=torch.Generator().manual_seed(0))
    drawn = distinct(chance, 5)
    orders = [tuple(row) for row in drawn.tolist()]
    assert all(len(set(order)) == 3 for order in orders)
    assert len(set(orders)) == 60
    assert all(abs(orders.count(order) - 4000 / 60) < 5 * math.sqrt(4000 / 60) for order in set(orders))
    limits = torch.arange(4000) % 3 + 3
    bounded = distinct(chance, 5, limits)
    assert (bounded < limits[:, None]).all()
    assert all(len(set(row)) == 3 for row in bounded.tolist())
    assert {tuple(sorted(row)) for row in bounded[limits == 3].tolist()} == {(0, 1, 2)}
    one = distinct(chance[:1], 1000)
    assert len(set(one[0].tolist())) == 3


def test_hops_against_a_search(graphs: tuple[Graphs, torch.Tensor, torch.Tensor]) -> None:
    made, *_ = graphs
    start = torch.arange(200) % 6
    for towards in (False, True):
        for most in (2, 11):
            found = hops(made.successors, start, most, towards)
            for index in range(200):
                far, ring, table = {int(start[index]): 0}, [int(start[index])], made.successors[index].tolist()
                while ring:
                    node = ring.pop(0)
                    ends = [end for end in table[node] if end >= 0]
                    if towards:
                        ends = [other for other in range(12) if node in table[other]]
                    for end in ends:
                        if end not in far:
                            far[end] = far[node] + 1
                            ring.append(end)
                expected = [min(far.get(node, 99), most + 1) for node in range(12)]
                assert found[index].tolist() == expected


def test_the_family() -> None:
    world = family()
    kin = {(world.names[one], world.kinds[kind]): world.names[other] for one, kind, other in world.edges}
    assert len(kin) == len(world.edges)  # nobody has two of a kind

    def related(person: str, *path: str) -> str:
        for step in path:
            person = kin[person, step]
        return person

    assert related("Freya", "mother", "mother", "father", "son") == "Fergus"  # her maternal great uncle
    assert related("Freya", "mother", "brother", "daughter") == "Skye"
    back = {
        "father": ("son", "daughter"),
        "mother": ("son", "daughter"),
        "son": ("father", "mother"),
        "daughter": ("father", "mother"),
        "brother": ("brother", "sister"),
        "sister": ("brother", "sister"),
        "husband": ("wife",),
        "wife": ("husband",),
    }
    women = {other for (_, kind), other in kin.items() if kind in ("mother", "daughter", "sister", "wife")}
    men = {other for (_, kind), other in kin.items() if kind in ("father", "son", "brother", "husband")}
    assert women | men == set(world.names)
    assert not women & men
    for (person, kind), other in kin.items():
        assert any(kin.get((other, reverse)) == person for reverse in back[kind]), (person, kind, other)
    made = world.graphs(2, torch.device("cpu"))
    for index, node in ((0, 3), (1, 18)):
        ends = zip(made.kinds[index, node].tolist(), made.successors[index, node].tolist(), strict=True)
        assert {(node, kind, end) for kind, end in ends if end >= 0} == {e for e in world.edges if e[0] == node}


# -- the Underground ---------------------------------------------------------------------------------------------------

STATIONS = """"id","latitude","longitude","name","zone"
1,51.50,-0.10,"Middle",1
2,51.50,-0.20,"West",1.5
3,51.50,-0.15,"Halt",1
4,51.60,-0.10,"North",1
5,51.50,0.00,"Outside",2
6,51.40,-0.10,"South",1
"""
LINES = '"line","name"\n1,"Red Line"\n2,"Blue Line"\n13,"Docklands Light Railway"\n'
CONNECTIONS = """"station1","station2","line","time"
1,3,1,1
3,2,1,1
1,4,2,1
4,2,2,1
1,5,1,1
1,6,2,1
6,2,13,1
4,5,1,1
"""


@pytest.fixture
def own_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of `write` stand for the published ones."""
    for name, text in {"stations": STATIONS, "lines": LINES, "connections": CONNECTIONS}.items():
        key = f"london-underground/{name}"
        monkeypatch.setitem(SOURCES, key, SOURCES[key]._replace(content=digest(text.encode())))


def write(folder: Path, **changed: str) -> Path:
    place = folder / "graphs" / "london-underground"
    place.mkdir(parents=True)
    for name, text in {"stations": STATIONS, "lines": LINES, "connections": CONNECTIONS, **changed}.items():
        (place / f"london.{name}.csv").write_text(text)
    return folder


def test_a_small_underground(tmp_path: Path, own_map: None) -> None:
    """Halt has one line and is passed through; Outside is not in zone 1; South has the Docklands line beside one."""
    world = underground(write(tmp_path))
    assert set(world.names) == {"Middle", "West", "North"}
    edges = {(world.names[one], world.kinds[kind], world.names[other]) for one, kind, other in world.edges}
    assert edges == {
        ("Middle", "Red W", "West"),
        ("West", "Red E", "Middle"),
        ("Middle", "Blue N", "North"),
        ("North", "Blue S", "Middle"),
        ("North", "Blue W", "West"),
        ("West", "Blue N", "North"),
    }
    assert world.points[world.names.index("West")] == (0.0, 0.0)
    assert world.points[world.names.index("North")] == (1.0, 1.0)


@pytest.mark.parametrize("graph", ["underground", "family"])
def test_tasks_on_fixed_graphs(graph: str, tmp_path: Path, own_map: None) -> None:
    data = write(tmp_path)
    world = underground(data) if graph == "underground" else family()
    env = GraphTraversal(30, graph=graph, data_dir=data)
    _, _, targets, rewards, _ = played = decode.play(env)
    for index in range(30):
        episode = decode.read(decode.rows_of(played[0], index), 0)
        assert len(episode.described) == len(world.edges)
        assert len(episode.query) == 7
        assert decode.said(targets, episode, index) == decode.walk(episode)
        assert len({edge for _, edge, _ in episode.described}) == len({kind for _, kind, _ in world.edges})
    length = {"underground": 1, "family": 4}[graph]  # all three stations are neighbours
    path = ShortestPath(300, graph=graph, data_dir=data, path_length=length)
    _, _, _, other, _ = decode.play(path)
    assert sum(rewards).tolist() == pytest.approx([1.0] * 30)
    assert sum(other).tolist() == pytest.approx([1.0] * 300)
    assert path.total.tolist() == [length] * 300
    every = torch.arange(len(world.names))
    table = world.graphs(len(every), torch.device("cpu")).successors
    far = hops(table, every, length, towards=False) == length
    drawn = {(int(nodes[0]), int(nodes[length])) for nodes in path.path}
    assert drawn <= {(one, two) for one, two in far.nonzero().tolist()}
    assert len(drawn) > 0.8 * min(int(far.sum()), 300 * 0.6)


def test_a_distance_that_a_fixed_graph_does_not_have() -> None:
    with pytest.raises(ValueError, match="path_length is 9, but no shortest path of family"):
        ShortestPath(graph="family", path_length=9)


@pytest.mark.parametrize("name", ["stations", "lines", "connections"])
def test_another_map_than_the_published_one_is_refused(tmp_path: Path, own_map: None, name: str) -> None:
    texts = {"stations": STATIONS, "lines": LINES, "connections": CONNECTIONS}
    for index, changed in enumerate((texts[name].replace("1", "3", 1), texts[name][:-20], "", "\r\n\r", "<html>404")):
        place = write(tmp_path / str(index), **{name: changed})
        with pytest.raises(DataError, match=rf"london\.{name}\.csv is not the published content of https.*download it"):
            underground(place)
    with pytest.raises(DataError, match="data_dir is"):
        underground(tmp_path / "nowhere")


def test_the_map_may_have_the_line_ends_of_windows(tmp_path: Path, own_map: None) -> None:
    world = underground(write(tmp_path / "a"))
    place = write(tmp_path / "b")
    for file in place.rglob("*.csv"):
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert underground(place) == world


@pytest.mark.skipif(REAL is None, reason="ENGRAM_DATA names no directory with the published files")
def test_the_underground() -> None:
    world = underground(REAL)
    assert (len(world.names), len(world.edges)) == (43, 212)
    edges = {(world.names[one], world.kinds[kind]): world.names[other] for one, kind, other in world.edges}
    assert len(edges) == 212
    assert edges["Oxford Circus", "Central E"] == "Tottenham Court Road"
    assert edges["Oxford Circus", "Victoria N"] == "Warren Street"
    assert edges["Bond Street", "Jubilee N"] == "Baker Street"
    assert edges["Moorgate", "Northern S"] == "Bank"
    back = {(other, kind.rpartition(" ")[0], one) for (one, kind), other in edges.items()}
    assert back == {(one, kind.rpartition(" ")[0], other) for (one, kind), other in edges.items()}
