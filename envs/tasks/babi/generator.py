"""Generates stories in bAbI's format, for use without downloads.

Five of the twenty tasks, with bAbI's own people, places, objects, verbs and questions. The published stories come from
another program, so results on these are not results on bAbI.
"""

from __future__ import annotations

import random
from collections.abc import Callable

PEOPLE = ("Mary", "John", "Sandra", "Daniel")
PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
OBJECTS = ("apple", "football", "milk")
MOVES = ("moved to", "went to", "went back to", "journeyed to", "travelled to")
TAKES = ("got", "took", "grabbed", "picked up")
DROPS = ("dropped", "discarded", "left", "put down")
GIVES = ("gave", "handed", "passed")
COUNTS = ("none", "one", "two", "three")
SPECIES = {"mouse": "mice", "sheep": "sheep", "wolf": "wolves", "cat": "cats"}
NAMES = ("Gertrude", "Winona", "Emily", "Jessica")


class _World:
    """People who walk and carry things. Unknown facts are None; each fact has the line that stated it."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.lines: list[str] = []
        self.place: dict[str, tuple[str, int]] = {}
        """Where a person is, and the line that stated it."""
        self.holder: dict[str, tuple[str, int]] = {}
        """Who holds an object, and the line that stated it."""
        self.lying: dict[str, tuple[str, int, int]] = {}
        """Where an object lies, with the lines of the drop and of the place."""
        self.past: dict[str, list[int]] = {}
        """Lines about what a person took, dropped, gave or was given."""

    def say(self, sentence: str) -> int:
        self.lines.append(f"{len(self.lines) + 1} {sentence}")
        return len(self.lines)

    def ask(self, question: str, answer: str, *support: int) -> None:
        self.say(f"{question}? \t{answer}\t{' '.join(map(str, support))}")

    def move(self) -> None:
        person = self.draw.choice(PEOPLE)
        here = self.place.get(person, ("", 0))[0]
        there = self.draw.choice([place for place in PLACES if place != here])
        self.place[person] = there, self.say(f"{person} {self.draw.choice(MOVES)} the {there}.")

    def handle(self, giving: bool = False) -> bool:
        """A person takes, drops or (with `giving`) hands over an object; False if no one can."""
        held = [(person, thing) for thing, (person, _) in self.holder.items() if person in self.place]
        free = [
            (person, thing)
            for person, (place, _) in self.place.items()
            for thing in OBJECTS
            if thing not in self.holder and self.lying.get(thing, (place, 0, 0))[0] == place
        ]
        meetings = [
            (person, other, thing)
            for person, thing in held
            for other in self.place
            if giving and other != person and self.place[other][0] == self.place[person][0]
        ]
        kinds = [kind for kind, cases in (("take", free), ("drop", held), ("give", meetings)) if cases]
        if not kinds:
            return False
        kind = self.draw.choice(kinds)
        if kind == "take":
            person, thing = self.draw.choice(free)
            line = self.say(f"{person} {self.draw.choice(TAKES)} the {thing} there.")
            self.holder[thing] = person, line
            self.lying.pop(thing, None)
        elif kind == "drop":
            person, thing = self.draw.choice(held)
            place, arrived = self.place[person]
            line = self.say(f"{person} {self.draw.choice(DROPS)} the {thing}{self.draw.choice(('', ' there'))}.")
            del self.holder[thing]
            self.lying[thing] = place, line, arrived
        else:
            person, other, thing = self.draw.choice(meetings)
            line = self.say(f"{person} {self.draw.choice(GIVES)} the {thing} to {other}.")
            self.holder[thing] = other, line
            self.past.setdefault(other, []).append(line)
        self.past.setdefault(person, []).append(line)
        return True


def _where_is_person(draw: random.Random, questions: int) -> list[str]:
    """Task 1: where is a person?"""
    world = _World(draw)
    for _ in range(questions):
        world.move()
        world.move()
        person = draw.choice(list(world.place))
        world.ask(f"Where is {person}", *world.place[person])
    return world.lines


def _where_is_object(draw: random.Random, questions: int) -> list[str]:
    """Task 2: where is an object that was carried?"""
    world = _World(draw)
    for _ in range(questions):
        for _ in range(draw.randint(2, 5)):
            if draw.random() < 0.6 or not world.handle():
                world.move()
        while not (world.holder or world.lying):
            if not world.handle():
                world.move()
        thing = draw.choice([thing for thing in OBJECTS if thing in world.holder or thing in world.lying])
        if thing in world.holder:
            person, took = world.holder[thing]
            place, arrived = world.place[person]
        else:
            place, took, arrived = world.lying[thing]
        world.ask(f"Where is the {thing}", place, took, arrived)
    return world.lines


def _yes_or_no(draw: random.Random, questions: int) -> list[str]:
    """Task 6: is a person in a place? Half of the answers are yes."""
    world = _World(draw)
    for _ in range(questions):
        for _ in range(2):
            if draw.random() < 0.8 or not world.handle():
                world.move()
        person = draw.choice(list(world.place))
        here, line = world.place[person]
        yes = draw.random() < 0.5
        place = here if yes else draw.choice([place for place in PLACES if place != here])
        world.ask(f"Is {person} in the {place}", "yes" if yes else "no", line)
    return world.lines


def _how_many(draw: random.Random, questions: int) -> list[str]:
    """Task 7: how many objects does a person carry?"""
    world = _World(draw)
    for _ in range(questions):
        for _ in range(draw.randint(2, 4)):
            if draw.random() < 0.5 or not world.handle(giving=True):
                world.move()
        while not world.past:
            if not world.handle(giving=True):
                world.move()
        person = draw.choice(list(world.past))
        carried = sum(holder == person for holder, _ in world.holder.values())
        world.ask(f"How many objects is {person} carrying", COUNTS[carried], *world.past[person])
    return world.lines


def _afraid(draw: random.Random, questions: int) -> list[str]:
    """Task 15: what is an animal afraid of, given its species?"""
    world = _World(draw)
    fear = {kind: draw.choice([other for other in SPECIES if other != kind]) for kind in SPECIES}
    kinds = {name: draw.choice(list(SPECIES)) for name in NAMES}
    facts = [("", kind) for kind in SPECIES] + list(kinds.items())
    draw.shuffle(facts)
    stated: dict[str, int] = {}  # line of each fact, by name or kind
    for name, kind in facts:
        if name:
            stated[name] = world.say(f"{name} is a {kind}.")
        else:
            stated[kind] = world.say(f"{SPECIES[kind].capitalize()} are afraid of {SPECIES[fear[kind]]}.")
    for _ in range(questions):
        name = draw.choice(NAMES)
        kind = kinds[name]
        world.ask(f"What is {name.lower()} afraid of", fear[kind], stated[name], stated[kind])
    return world.lines


GENERATORS: dict[int, Callable[[random.Random, int], list[str]]] = {
    1: _where_is_person,
    2: _where_is_object,
    6: _yes_or_no,
    7: _how_many,
    15: _afraid,
}
"""The tasks that can be generated, by bAbI's numbers."""


def generate(task: int, stories: int, questions: int, seed: int | str) -> str:
    """Stories of one task, as the text of a file.

    Args:
        task: one of `GENERATORS`.
        stories: number of stories, at least 1.
        questions: number of questions per story, at least 1; bAbI has 5, and 4 in task 15.
        seed: equal seeds give equal texts.
    """
    draw = random.Random(f"{seed}/{task}")
    return "".join(line + "\n" for _ in range(stories) for line in GENERATORS[task](draw, questions))
