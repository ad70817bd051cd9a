"""The peer of `compiled_peer.py`: PPO with an LSTM or GRU on the same maze, in JAX, in the style of PureJaxRL.

It runs under an interpreter with JAX and imports nothing of this project. A whole
iteration (rollout, advantages, every epoch and minibatch) is one compiled function; the loops over time are
`lax.scan`; the memory is reset inside its step. Network and work are those of our agents: the observation goes straight
into the recurrent layer, actor and critic are one layer each on its output, minibatches are cut over environments.

The parent writes one JSON object a line on the standard input and reads one a line from the standard output:

    {"do": "build", "what": "ppo", "cell": "lstm", ...}   compile it; gives {"ready": seconds}
    {"do": "run", "times": 3}                             gives {"wall": s, "cpu": s, "return": mean reward of a step}
    {"do": "play", "goals": [...], "thrown": [...], "actions": [...]}   gives what the maze shows; see `play`
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random

SIZE, LENGTH, PENALTY, REWARD, NO_ACTION = 9, 200, 0.1, 10.0, 4
GAMMA, LAMBDA, CLIP, VALUE_COEF, RATE, MAX_NORM = 0.99, 0.95, 0.2, 0.5, 3e-4, 0.5


# -- the maze ----------------------------------------------------------------------------------------------------------


def maze_tables() -> tuple[Any, Any, Any, int]:
    """Next cell, whether it bumps (`[cells, 4]`) and view `[cells, 9]` of the free cells in reading order; the centre.

    A ring of wall, pillars where row and column are both even, none in the centre.
    """
    middle = SIZE // 2 + 1
    pillar = (np.arange(SIZE + 2) % 2 == 0)[:, None] & (np.arange(SIZE + 2) % 2 == 0)
    ring = np.pad(np.zeros((SIZE, SIZE), bool), 1, constant_values=True)
    walls = ring | pillar
    walls[middle, middle] = False
    free = [(row, column) for row in range(SIZE + 2) for column in range(SIZE + 2) if not walls[row, column]]
    number = {cell: index for index, cell in enumerate(free)}
    towards = [[(r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1)] for r, c in free]
    following = [[number.get(cell, number[here]) for cell in cells] for here, cells in zip(free, towards, strict=True)]
    bumped = [[float(walls[cell]) for cell in cells] for cells in towards]
    views = [walls[r - 1 : r + 2, c - 1 : c + 2].ravel().astype(np.float32) for r, c in free]
    return jnp.array(following), jnp.array(bumped), jnp.array(np.stack(views)), number[middle, middle]


FOLLOWING, BUMPED, VIEWS, CENTRE = maze_tables()
CELLS = len(FOLLOWING)


class Maze(NamedTuple):
    """Copies of the maze; every field except the common clock is `[N]`."""

    cell: Any
    goal: Any
    action: Any
    reward: Any
    clock: Any


def maze_begin(goal: Any) -> Maze:
    copies = goal.shape
    action, reward = jnp.full(copies, NO_ACTION), jnp.zeros(copies)
    return Maze(jnp.full(copies, CENTRE), goal, action, reward, jnp.zeros((), jnp.int32))


def maze_step(maze: Maze, action: Any, thrown: Any) -> Maze:
    """A step; agents that reach the goal continue at `thrown`."""
    cell = FOLLOWING[maze.cell, action]
    found = cell == maze.goal
    reward = REWARD * found - PENALTY * BUMPED[maze.cell, action]
    return Maze(jnp.where(found, thrown, cell), maze.goal, action, reward, maze.clock + 1)


def maze_observe(maze: Maze) -> Any:
    """`[N, 15]`: the 3×3 view, the clock, the previous reward, the previous action."""
    clock = jnp.broadcast_to(maze.clock / LENGTH, maze.reward.shape)
    action = jax.nn.one_hot(maze.action, 4)  # NO_ACTION is none of them
    return jnp.concatenate([VIEWS[maze.cell], clock[:, None], maze.reward[:, None], action], 1)


def maze_move(maze: Maze, action: Any, key: Any) -> tuple[Maze, Any, Any]:
    """A step with its own random numbers, and a new episode where one ended: maze, reward, end flags."""
    throw, hide = random.split(key)
    maze = maze_step(maze, action, random.randint(throw, action.shape, 0, CELLS))
    over = maze.clock == LENGTH
    initial = maze_begin(random.randint(hide, action.shape, 0, CELLS))
    new_maze = jax.tree.map(lambda new, old: jnp.where(over, new, old), initial, maze)
    return new_maze, maze.reward, jnp.broadcast_to(over, action.shape)


def play(goals: list[int], thrown: list[list[int]], actions: list[list[int]]) -> dict[str, Any]:
    """Observations `[T + 1, N, 15]` and rewards `[T, N]` of given moves, for comparison with our maze."""
    maze = maze_begin(jnp.array(goals))
    observations, rewards = [maze_observe(maze)], []
    for action, throw in zip(actions, thrown, strict=True):
        maze = maze_step(maze, jnp.array(action), jnp.array(throw))
        observations.append(maze_observe(maze))
        rewards.append(maze.reward)
    return {"observations": np.stack(observations).tolist(), "rewards": np.stack(rewards).tolist()}


# -- the agent ---------------------------------------------------------------------------------------------------------


def lstm(weights: dict[str, Any], state: tuple[Any, Any], projected: Any) -> tuple[Any, Any]:
    hidden, cell = state
    i, f, g, o = jnp.split(projected + hidden @ weights["recurrent"], 4, -1)
    cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(cell), cell


def gru(weights: dict[str, Any], state: tuple[Any, Any], projected: Any) -> tuple[Any, Any]:
    hidden = state[0]
    r, z, n = jnp.split(projected, 3, -1)
    hr, hz, hn = jnp.split(hidden @ weights["recurrent"] + weights["recurrent_bias"], 3, -1)
    z = jax.nn.sigmoid(z + hz)
    hidden = (1 - z) * jnp.tanh(n + jax.nn.sigmoid(r + hr) * hn) + z * hidden
    return hidden, hidden


def project(weights: dict[str, Any], observation: Any) -> Any:
    return observation @ weights["input"] + weights["bias"]


def heads(weights: dict[str, Any], output: Any) -> tuple[Any, Any]:
    """Log-probabilities `[..., 4]` and value."""
    return jax.nn.log_softmax(output @ weights["actor"]), (output @ weights["critic"])[..., 0]


def of(log_probs: Any, action: Any) -> Any:
    return jnp.take_along_axis(log_probs, action[..., None], -1)[..., 0]


class Carry(NamedTuple):
    weights: dict[str, Any]
    moments: tuple[Any, Any]
    updates: Any
    maze: Maze
    state: tuple[Any, Any]
    ended: Any
    key: Any


def initial(cell: str, hidden: int, copies: int, seed: int) -> Carry:
    keys = random.split(random.key(seed), 6)
    gates, bound = {"lstm": 4, "gru": 3}[cell], hidden**-0.5

    def uniform(key: Any, *shape: int) -> Any:
        return random.uniform(key, shape, minval=-bound, maxval=bound)

    weights = {
        "input": uniform(keys[0], 15, gates * hidden),
        "recurrent": uniform(keys[1], hidden, gates * hidden),
        "bias": jnp.zeros(gates * hidden),
        "actor": 0.01 * uniform(keys[2], hidden, 4),
        "critic": uniform(keys[3], hidden, 1),
    }
    if cell == "gru":
        weights["recurrent_bias"] = jnp.zeros(gates * hidden)
    zeros = jax.tree.map(jnp.zeros_like, weights)
    state = (jnp.zeros((copies, hidden)), jnp.zeros((copies, hidden)))
    maze = maze_begin(random.randint(keys[4], (copies,), 0, CELLS))
    return Carry(weights, (zeros, zeros), jnp.zeros(()), maze, state, jnp.ones(copies, bool), keys[5])


def iteration(carry: Carry, cell: str, steps: int, epochs: int, minibatches: int) -> tuple[Carry, Any]:
    """One iteration of PPO; also returns the mean reward."""
    recurrent = {"lstm": lstm, "gru": gru}[cell]

    def remember(weights: Any, state: Any, projected: Any, starts: Any) -> Any:
        state = jax.tree.map(lambda part: jnp.where(starts[:, None], 0.0, part), state)
        return recurrent(weights, state, projected)

    def act(now: tuple[Any, ...], key: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        maze, state, starts = now
        choose, move = random.split(key)
        observation = maze_observe(maze)
        state = remember(carry.weights, state, project(carry.weights, observation), starts)
        log_probs, value = heads(carry.weights, state[0])
        action = random.categorical(choose, log_probs)
        maze, reward, ended = maze_move(maze, action, move)
        return (maze, state, ended), (observation, action, reward, starts, ended, value, of(log_probs, action))

    key, shuffle, rolling = random.split(carry.key, 3)
    now = (carry.maze, carry.state, carry.ended)
    (maze, state, ended), taken = lax.scan(act, now, random.split(rolling, steps))
    observations, actions, rewards, starts, ends, values, log_probs = taken
    last_state = remember(carry.weights, state, project(carry.weights, maze_observe(maze)), ended)
    last = heads(carry.weights, last_state[0])[1]

    def advantage(later: tuple[Any, Any], step: tuple[Any, ...]) -> tuple[tuple[Any, Any], Any]:
        (gain, following), (reward, over, value) = later, step
        gain = reward + GAMMA * following * ~over - value + GAMMA * LAMBDA * ~over * gain
        return (gain, value), gain

    gains = lax.scan(advantage, (jnp.zeros_like(last), last), (rewards, ends, values), reverse=True)[1]
    batch = (observations, actions, starts, log_probs, gains, gains + values)

    def loss(weights: Any, begin: Any, minibatch: tuple[Any, ...]) -> Any:
        seen, action, starts, old, gain, target = minibatch

        def step(state: Any, at: tuple[Any, Any]) -> tuple[Any, Any]:
            state = remember(weights, state, *at)
            return state, state[0]

        output = lax.scan(step, begin, (project(weights, seen), starts))[1]
        new, value = heads(weights, output)
        ratio = jnp.exp(of(new, action) - old)
        gain = (gain - gain.mean()) / (gain.std() + 1e-8)
        clipped = jnp.minimum(gain * ratio, gain * jnp.clip(ratio, 1 - CLIP, 1 + CLIP))
        return -clipped.mean() + VALUE_COEF * jnp.square(value - target).mean()

    def update(learner: tuple[Any, ...], index: Any) -> tuple[tuple[Any, ...], None]:
        weights, (mean, square), count = learner
        begin = jax.tree.map(lambda part: part[index], carry.state)
        grads = jax.grad(loss)(weights, begin, jax.tree.map(lambda part: part[:, index], batch))
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(grad)) for grad in jax.tree.leaves(grads)))
        grads = jax.tree.map(lambda grad: grad * jnp.minimum(1.0, MAX_NORM / norm), grads)
        count = count + 1
        mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, grads)
        square = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, square, grads)

        def moved(weight: Any, m: Any, v: Any) -> Any:  # Adam
            return weight - RATE * (m / (1 - 0.9**count)) / (jnp.sqrt(v / (1 - 0.999**count)) + 1e-5)

        return (jax.tree.map(moved, weights, mean, square), (mean, square), count), None

    copies = len(carry.ended)
    orders = jax.vmap(lambda key: random.permutation(key, copies))(random.split(shuffle, epochs))
    learner = (carry.weights, carry.moments, carry.updates)
    learner, _ = lax.scan(update, learner, orders.reshape(epochs * minibatches, -1))
    return Carry(*learner, maze, state, ended, key), rewards.mean()


# -- environments alone ------------------------------------------------------------------------------------------------


def our_maze(copies: int, steps: int) -> tuple[Any, Callable[[Any], tuple[Any, Any]]]:
    """Random actions in this maze; summing the observation makes XLA compute it."""

    def step(now: tuple[Any, Any], key: Any) -> tuple[tuple[Any, Any], None]:
        maze, total = now
        choose, move = random.split(key)
        maze, reward, _ = maze_move(maze, random.randint(choose, (copies,), 0, 4), move)
        return (maze, total + reward + maze_observe(maze).sum(1)), None

    def run(carry: Any) -> tuple[Any, Any]:
        maze, key = carry
        key, rolling = random.split(key)
        (maze, total), _ = lax.scan(step, (maze, jnp.zeros(copies)), random.split(rolling, steps))
        return (maze, key), total.mean()

    key = random.key(0)
    return (maze_begin(random.randint(key, (copies,), 0, CELLS)), key), run


def gymnax_maze(copies: int, steps: int) -> tuple[Any, Callable[[Any], tuple[Any, Any]]]:
    """Random actions in gymnax's `MetaMaze-misc`, its most similar environment."""
    import gymnax

    env, parameters = gymnax.make("MetaMaze-misc")

    def step(now: tuple[Any, Any], key: Any) -> tuple[tuple[Any, Any], None]:
        state, total = now
        choose, move = random.split(key)
        action = random.randint(choose, (copies,), 0, 4)
        moves = jax.vmap(env.step, (0, 0, 0, None))
        seen, state, reward, *_ = moves(random.split(move, copies), state, action, parameters)
        return (state, total + reward + seen.reshape(copies, -1).sum(1)), None

    def run(carry: Any) -> tuple[Any, Any]:
        state, key = carry
        key, rolling = random.split(key)
        (state, total), _ = lax.scan(step, (state, jnp.zeros(copies)), random.split(rolling, steps))
        return (state, key), total.mean()

    key = random.key(0)
    state = jax.vmap(env.reset, (0, None))(random.split(key, copies), parameters)[1]
    return (state, key), run


# -- the conversation --------------------------------------------------------------------------------------------------


def build(
    what: str, copies: int, steps: int, cell: str = "lstm", hidden: int = 200, epochs: int = 4, minibatches: int = 4
) -> tuple[Any, Callable[[Any], tuple[Any, Any]]]:
    """The state between runs, and the function of it to time."""
    if what == "ppo":
        return initial(cell, hidden, copies, seed=0), partial(
            iteration, cell=cell, steps=steps, epochs=epochs, minibatches=minibatches
        )
    return {"maze": our_maze, "gymnax": gymnax_maze}[what](copies, steps)


def main() -> None:
    """Answers requests until the input is closed."""
    carry: Any = None
    run: Any = None
    for line in sys.stdin:
        question = json.loads(line)
        do = question.pop("do")
        wall, cpu = time.perf_counter(), time.process_time()
        if do == "play":
            answer = play(**question)
        elif do == "build":
            carry, function = build(**question)
            carry = jax.tree.map(jnp.copy, carry)  # equal constants share a buffer, and a buffer is donated once
            run = jax.jit(function, donate_argnums=0).lower(carry).compile()
            carry, result = jax.block_until_ready(run(carry))
            answer = {"ready": time.perf_counter() - wall, "return": float(result)}
        else:
            for _ in range(question["times"]):
                carry, result = run(carry)
            jax.block_until_ready(carry)
            answer = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "return": float(result)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
