"""The image tasks: what is shown, asked, due, scored and drawn, decoded from observations alone."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from envs.tasks.images.base import ImageTask
from envs.tasks.images.data import load_images, resized
from envs.tasks.images.image_episode import LEVELS, NOISE, QUERIES, ImageEpisode, halves, noise_table
from envs.tasks.images.mnist_recall import MnistRecall
from envs.tasks.images.mnist_sort import MnistSort

Obs = dict[str, torch.Tensor]
Step = tuple[Obs, torch.Tensor, torch.Tensor]


def episode(env: ImageTask, seed: int = 0) -> list[Step]:
    """Observation, target and weight of every step."""
    obs, info = env.reset(seed=seed)
    steps = []
    for step in range(env.length):
        assert isinstance(obs, dict)
        steps.append((obs, info["target"], info["weight"]))
        obs, _, terminated, _, info = env.step(torch.zeros_like(info["target"]))
        assert terminated.all() == (step == env.length - 1)
    assert all((entry == 0).all() for entry in info["final_obs"].values())
    return steps


def labels_of(images: torch.Tensor, side: int | None = None) -> list[int]:
    """Labels of digits `[n, 1, H, W]`, found by comparing every pixel with all digits there are."""
    pixels, labels = load_images("digits")
    assert labels is not None
    pixels = pixels if side is None else resized(pixels, side)
    known = {tuple(row): label for row, label in zip(pixels.flatten(1).tolist(), labels.tolist(), strict=True)}
    return [known[tuple(row)] for row in (images.flatten(1) * 255).round().int().tolist()]


@pytest.mark.parametrize(("ask", "side", "length"), [("after", None, 10), ("last", None, 4), ("after", 7, 2)])
def test_recall_asks_for_the_class_after_the_image_in_the_question(ask: str, side: int | None, length: int) -> None:
    env = MnistRecall(40, length=length, ask=ask, side=side)
    steps = episode(env)
    assert len(steps) == length + (ask == "after")
    for obs, target, weight in steps[:-1]:
        assert (weight == 0).all()
        assert (target == 0).all()
        assert (obs["query"] == 0).all()
    obs, target, weight = steps[-1]
    assert (weight == 1).all()
    assert (obs["image"].flatten(1).sum(1) == 0).all() == (ask == "after")
    shown = torch.stack([seen["image"] for seen, _, _ in steps[:length]])
    for copy in range(40):
        same = [step for step in range(length) if torch.equal(shown[step, copy], obs["query"][copy])]
        assert len(same) == 1 or side is not None
        assert same[0] < length - 1
        assert labels_of(shown[:, copy], side)[same[0] + 1] == target[copy]


def test_recall_may_ask_with_each_image_but_the_first() -> None:
    env = MnistRecall(400, length=4, ask="each")
    steps = episode(env)
    assert len(steps) == 4
    assert (steps[0][0]["query"] == 0).all()
    assert (steps[0][2] == 0).all()
    shown = torch.stack([obs["image"] for obs, _, _ in steps])
    for step, (obs, target, weight) in enumerate(steps[1:], 1):
        assert (weight == 1).all()
        places = []
        for copy in range(400):
            places += [at for at in range(4) if torch.equal(shown[at, copy], obs["query"][copy])]
            assert labels_of(shown[places[-1] + 1, copy : copy + 1]) == [target[copy]]
        counts = Counter(places)
        assert sorted(counts) == list(range(step))
        assert all(abs(count - 400 / step) < 5 * math.sqrt(400 / step) for count in counts.values())


def test_every_place_but_the_last_is_asked_for_equally_often() -> None:
    env = MnistRecall(4000, length=5)
    env.reset(seed=0)
    places = (env.inputs == env.asked_with).int().argmax(0)
    assert sorted(Counter(places.tolist())) == [0, 1, 2, 3]
    assert all(abs(count - 1000) < 5 * math.sqrt(750) for count in Counter(places.tolist()).values())


@pytest.mark.parametrize("length", [1, 10])
def test_sort_asks_for_the_classes_in_falling_order_of_priority(length: int) -> None:
    steps = episode(MnistSort(30, length=length))
    assert len(steps) == 2 * length
    for copy in range(30):
        shown = torch.stack([obs["image"][copy] for obs, _, _ in steps[:length]])
        priority = [obs["priority"][copy, 0].item() for obs, _, _ in steps[:length]]
        ordered = sorted(zip(priority, labels_of(shown), strict=True), reverse=True)
        assert [int(target[copy]) for _, target, _ in steps[length:]] == [label for _, label in ordered]
    for step, (obs, _, weight) in enumerate(steps):
        assert (weight == (step >= length)).all()
        if step >= length:
            assert (obs["image"] == 0).all()
            assert (obs["priority"] == 0).all()
    spread = torch.stack([obs["priority"] for obs, _, _ in steps[:length]])
    assert spread.abs().max() <= 1
    assert length == 1 or (spread.min() < -0.9 and spread.max() > 0.9)


def test_different_images_in_an_episode_and_all_choices_equally_likely() -> None:
    env = MnistSort(12_000, length=2)
    env.pixels = env.pixels[:4]
    drawn = Counter(map(tuple, env._distinct(2).T.tolist()))
    assert sorted(drawn) == [(a, b) for a in range(4) for b in range(4) if a != b]
    assert all(abs(count - 1000) < 5 * math.sqrt(1000) for count in drawn.values())
    assert all(sorted(row) == [0, 1, 2, 3] for row in env._distinct(4).T.tolist())


@pytest.mark.parametrize("query", QUERIES)
def test_an_episode_is_written_and_then_asked_for(query: str) -> None:
    env = ImageEpisode(20, length=6, recalls=4, query=query)
    steps = episode(env)
    shown = torch.stack([obs["image"] for obs, _, _ in steps[:6]])
    assert set(shown.unique().tolist()) == {0.0, 1.0}
    for step, (obs, target, weight) in enumerate(steps):
        assert target.dtype == torch.int8
        assert (weight == (step >= 6)).all()
        assert (obs["query" if step < 6 else "image"] == 0).all()
        assert step >= 6 or (target == 0).all()
    places = []
    for copy in range(20):
        asked = [[torch.equal(target[copy].float(), image) for image in shown[:, copy]] for _, target, _ in steps[6:]]
        assert all(sum(row) == 1 for row in asked)
        places.append([row.index(True) for row in asked])
        assert len(set(places[-1])) == 4
    assert {row[0] for row in places} == set(range(6))  # in any order
    for obs, target, _ in steps[6:]:
        question, right = obs["query"], target.float()
        assert question.min() >= 0
        assert question.max() <= 1
        if query == "clean":
            assert torch.equal(question, right)
        elif query in ("speckle", "poisson"):
            assert (question[right == 0] == 0).all()
            assert (question[right == 1] < 1).any()
        elif query == "salt-and-pepper":
            assert set(question.unique().tolist()) == {0.0, 1.0}
            assert 0.02 < (question != right).float().mean() < 0.2
        else:
            cut = [right * half for half in halves(8, 8)]
            matches = torch.stack([(question == part).flatten(1).all(1) for part in cut])
            assert matches.any(0).all()
            assert (question.flatten(1).sum(1) < right.flatten(1).sum(1)).any()


def test_black_and_white_is_cut_at_half_ink() -> None:
    env = ImageEpisode(1)
    grey = load_images("digits").pixels
    assert torch.equal(env.pixels == 1, grey / 255 > 0.5)


def test_halves_hide_one_side_each() -> None:
    left, right, upper, lower = halves(5, 4).bool()
    assert left.tolist() == [[False, False, True, True]] * 5
    assert right.tolist() == [[True, True, False, False]] * 5
    assert upper.tolist() == [[False] * 4] * 2 + [[True] * 4] * 3
    assert lower.tolist() == [[True] * 4] * 3 + [[False] * 4] * 2
    env = ImageEpisode(2000, length=1, query="half")
    env.reset(seed=0)
    counts = Counter(env.side_hidden.flatten().tolist())
    assert sorted(counts) == [0, 1, 2, 3]
    assert all(abs(count - 500) < 100 for count in counts.values())


# -- noise -------------------------------------------------------------------------------------------------------------


def noisy(kind: str, amount: float, pixel: int) -> np.ndarray:
    """A million noisy pixels, as the environment draws them."""
    env = ImageEpisode(1, query=kind, noise=amount)
    env.generator.manual_seed(0)
    return env._noisy(torch.full((1000, 1001), pixel, dtype=torch.uint8)).flatten().double().numpy()


@pytest.mark.parametrize("amount", [0.0, 0.1, 0.5, 1.0])
def test_salt_and_pepper_spoils_its_share_evenly(amount: float) -> None:
    for pixel in (0, 1):
        drawn = noisy("salt-and-pepper", amount, pixel)
        assert set(np.unique(drawn)) <= {0.0, 1.0}
        assert (drawn != pixel).mean() == pytest.approx(amount / 2, abs=0.003)


@pytest.mark.parametrize("amount", [0.5, 1.5, 2.0, 7.0])
def test_poisson_counts_photons(amount: float) -> None:
    assert (noisy("poisson", amount, 0) == 0).all()
    drawn = noisy("poisson", amount, 1)
    chances = [math.exp(-amount) * amount**k / math.factorial(k) for k in range(60)]
    for count in range(math.ceil(amount)):
        assert (abs(drawn - count / amount) < 1e-6).mean() == pytest.approx(chances[count], abs=0.003)
    assert drawn.max() == 1
    mean = sum(chance * min(1, count / amount) for count, chance in enumerate(chances))
    assert drawn.mean() == pytest.approx(mean, abs=0.003)
    reference = np.minimum(np.random.default_rng(0).poisson(amount, 1_000_000) / amount, 1)
    assert drawn.std() == pytest.approx(reference.std(), abs=0.003)


@pytest.mark.parametrize("amount", [0.0, 0.3, 1.0])
def test_speckle_multiplies(amount: float) -> None:
    assert (noisy("speckle", amount, 0) == 0).all()
    drawn = noisy("speckle", amount, 1)
    reference = np.clip(1 + amount * np.random.default_rng(0).standard_normal(1_000_000), 0, 1)
    for share in (0.05, 0.1, 0.2, 0.3, 0.4, 0.6):
        assert np.quantile(drawn, share) == pytest.approx(np.quantile(reference, share), abs=0.005)
    assert drawn.mean() == pytest.approx(reference.mean(), abs=0.003)


def test_noise_is_new_at_every_pixel_step_and_copy() -> None:
    env = ImageEpisode(3, length=2, noise=0.5)
    images = torch.zeros(4, 8, 8, dtype=torch.uint8)
    one, other = env._noisy(images), env._noisy(images)
    assert not torch.equal(one, other)
    assert len({tuple(row) for row in one.flatten(1).tolist()}) == 4
    assert noise_table("speckle", 0.1).shape == (2, LEVELS)


# -- scores ------------------------------------------------------------------------------------------------------------


def play(env: ImageTask, answer: Any, episodes: int = 1, seed: int = 0) -> tuple[float, dict[str, float]]:
    """Mean return, and the metrics, of `answer(obs, info)`."""
    obs, info = env.reset(seed=seed)
    total, sums = 0.0, Counter[str]()
    for _ in range(episodes * env.length):
        obs, reward, _, _, info = env.step(answer(obs, info))
        total += reward.sum().item()
        for name, (amount, count) in info["metrics"].items():
            sums[name] += amount.sum().item()
            sums[name + "/"] += count.sum().item()
    return total / env.num_envs / episodes, {name: sums[name] / sums[name + "/"] for name in env.metric_names}


@pytest.mark.parametrize("task", [MnistRecall, MnistSort, ImageEpisode])
def test_a_perfect_episode_returns_1(task: Any) -> None:
    score, metrics = play(task(6), lambda obs, info: info["target"], 2)
    assert score == pytest.approx(1)
    assert set(metrics.values()) == {0.0}


def test_class_metrics_by_hand() -> None:
    env = MnistSort(2, length=2)
    _, info = env.reset(seed=0)
    measured = []
    for wrong in ([0, 0], [1, 1], [0, 1], [0, 0]):  # copy 0 answers right, copy 1 is wrong once; step 2 is unscored
        *_, info = env.step((info["target"] + torch.tensor(wrong)) % 10)
        measured.append({name: [part.tolist() for part in parts] for name, parts in info["metrics"].items()})
    assert [step["error"] for step in measured] == [
        [[0, 0], [0, 0]],
        [[0, 0], [0, 0]],
        [[0, 100], [1, 1]],
        [[0, 0], [1, 1]],
    ]
    assert measured[-1]["sequence_error"] == [[0, 1], [1, 1]]


def test_pixel_metrics_and_reward_by_hand() -> None:
    env = ImageEpisode(2, length=2, recalls=1)
    _, info = env.reset(seed=0)
    for _ in range(2):
        _, reward, _, _, info = env.step(1 - info["target"])  # nothing is asked for yet
        assert reward.tolist() == [0, 0]
        assert all((part == 0).all() for parts in info["metrics"].values() for part in parts)
    answer = info["target"].clone()
    answer[1, 0, 3, :5] ^= 1
    _, reward, _, _, info = env.step(answer)
    assert reward.tolist() == pytest.approx([1, 1 - 5 / 64])
    assert [part.tolist() for part in info["metrics"]["wrong_pixels"]] == [[0, 5], [1, 1]]
    assert info["metrics"]["error"][0].tolist() == pytest.approx([0, 500 / 64])


def test_scores_without_memory() -> None:
    for task in (MnistRecall(400), MnistSort(400)):
        most = torch.bincount(task.labels, minlength=10).argmax()
        score, _ = play(task, lambda obs, info, most=most: torch.full((400,), int(most)), 4)
        assert score == pytest.approx(0.1, abs=0.03)

    for ask, expected in {"last": 0.2, "each": 0.38}.items():
        env = MnistRecall(400, ask=ask)
        score, _ = play(env, lambda obs, info, env=env: env.labels[env.inputs[env._elapsed]], 4)
        assert score == pytest.approx(expected, abs=0.03), ask

    def paper(obs: Obs, info: Any) -> torch.Tensor:
        return torch.zeros_like(info["target"])

    def question(obs: Obs, info: Any) -> torch.Tensor:
        return (obs["query"] > 0).to(torch.int8)

    assert play(ImageEpisode(100), paper, 2)[0] == pytest.approx(0.675, abs=0.01)
    for query, expected in {
        **{"clean": 1.0, "salt-and-pepper": 0.9, "speckle": 0.993, "poisson": 0.956, "half": 0.837},
    }.items():
        assert play(ImageEpisode(100, query=query), question, 2)[0] == pytest.approx(expected, abs=0.01), query


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MnistRecall(length=1), "length is 1, expected at least 2"),
        (lambda: MnistRecall(ask="now"), "ask is 'now', expected one of after, last, each"),
        (lambda: MnistRecall(side=0), "side is 0"),
        (lambda: MnistSort(length=0), "length is 0"),
        (lambda: MnistSort(split="test", length=301), "shows 301 images, but this split has only 300"),
        (lambda: MnistSort(source="faces"), "source is 'faces'"),
        (lambda: ImageEpisode(length=0), "length is 0"),
        (lambda: ImageEpisode(length=3, recalls=4), "recalls is 4, expected 1 to length 3"),
        (lambda: ImageEpisode(recalls=0), "recalls is 0"),
        (lambda: ImageEpisode(query="blurred"), "query is 'blurred', expected one of clean, salt-and-pepper"),
        (lambda: ImageEpisode(query="half", noise=0.1), "query='half' uses none; expected noise=None"),
        (lambda: ImageEpisode(noise=1.1), "noise is 1.1, expected 0 to 1"),
        (lambda: ImageEpisode(query="speckle", noise=-1), "noise is -1"),
        (lambda: ImageEpisode(query="poisson", noise=0), "noise is 0, expected above 0"),
    ],
)
def test_mistakes_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_source_without_classes_has_no_class_task(tmp_path: Any) -> None:
    np.savez(tmp_path / "images_background.npz", images=np.ones((4, 2, 28, 28), bool))
    with pytest.raises(ValueError, match="'omniglot', which does not have ten classes; expected one of digits, mnist"):
        MnistSort(source="omniglot", data_dir=tmp_path)
    assert ImageEpisode(source="omniglot", data_dir=tmp_path, length=2).pixels.shape == (4, 28, 28)


def test_noise_kinds_have_a_default_amount() -> None:
    for kind, usual in NOISE.items():
        questions = []
        for noise in (None, usual):
            env = ImageEpisode(20, query=kind, noise=noise, length=1)
            env.reset(seed=0)
            questions.append(env.step(torch.zeros(20, 1, 8, 8))[0]["query"])
        assert torch.equal(*questions)


@pytest.mark.parametrize("kind", [torch.int8, torch.int64, torch.float32, torch.bool])
def test_answers_of_every_type_are_counted_alike(kind: torch.dtype) -> None:
    env = ImageEpisode(5, length=2)
    env.reset(seed=0)
    answer = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.4
    for _ in range(2):
        *_, info = env.step(answer.to(kind))
    wrong = (answer != info["target"].bool()).flatten(1).sum(1)
    *_, info = env.step(answer.to(kind))
    assert info["metrics"]["wrong_pixels"][0].tolist() == wrong.tolist()
