"""Encoders: from an observation to the memory's input.

A vector memory takes `[B, F]`. Stable-Baselines3's feature extractors produce exactly this, so they are used directly:
`FlattenExtractor` for vectors and discrete spaces (one-hot), `NatureCNN` for pictures, and any of the user's own
through `features_extractor_class`. `PictureEncoder` is for pictures that `NatureCNN` does not fit, `DictEncoder` for
`Dict` spaces, `EmbeddingEncoder` for many symbols, and `MLPEncoder` adds layers in front of the memory.

A grid memory takes `[B, C, L]` or `[B, C, H, W]`; `GridEncoder` converts any observation to a grid. `QueryEncoder`
separates questions from input, for memories with readers.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import TensorDict
from torch import Tensor, nn

from policies.memories.contract import Memory
from policies.observations import any_observation, entries_of, is_symbols, short, width_of

EMBED_FROM = 32
"""`Discrete` observations with at least this many symbols are embedded."""
MIN_NATURE_SIDE = 36
"""Minimum height and width for `NatureCNN` in pixels."""
QUERY_PREFIX = "query"
"""Prefix of the keys of a `Dict` observation that are questions."""


def default_encoder(observation_space: spaces.Space) -> type[BaseFeaturesExtractor]:  # type: ignore[type-arg]
    """The default feature extractor of an observation space: SB3's choice, except that many symbols are embedded."""
    if isinstance(observation_space, spaces.Dict):
        return DictEncoder
    if isinstance(observation_space, spaces.Discrete) and observation_space.n >= EMBED_FROM:
        return EmbeddingEncoder
    if is_image_space(observation_space):
        assert observation_space.shape is not None
        return PictureEncoder if min(observation_space.shape[1:]) < MIN_NATURE_SIDE else NatureCNN
    return FlatEncoder if isinstance(observation_space, spaces.MultiDiscrete) else FlattenExtractor


def encoder_for(
    observation_space: spaces.Space[Any], memory: type[Memory], memory_kwargs: dict[str, Any]
) -> tuple[type[BaseFeaturesExtractor], dict[str, Any]]:
    """The encoder class and its arguments for an observation space and a memory class."""
    if memory.has_readers and any(name.startswith(QUERY_PREFIX) for name in entries_of(observation_space)):
        return QueryEncoder, {"memory": memory, "memory_kwargs": memory_kwargs}
    if memory.input_kind == "grid":
        return GridEncoder, {"spatial": memory.default_grid(**memory_kwargs)}
    if memory.input_kind == "either" and _is_grid(observation_space, 2):
        assert observation_space.shape is not None
        return GridEncoder, {"spatial": observation_space.shape[1:]}
    return default_encoder(observation_space), {}


@contextlib.contextmanager
def encoder_errors_named(encoder: type[BaseFeaturesExtractor], space: spaces.Space[Any]) -> Iterator[None]:
    """Context manager that turns errors of a third-party encoder's constructor into a one-line ValueError."""
    if not (isinstance(encoder, type) and issubclass(encoder, nn.Module)):
        raise ValueError(
            f"the encoder (features_extractor_class) is {short(encoder)}, expected a subclass of SB3's "
            "BaseFeaturesExtractor"
        )
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        cause = f"{type(error).__name__}: {' '.join(' '.join(map(str, error.args)).split())}"
        raise ValueError(
            f"the encoder {encoder.__name__} cannot be built for the observations {short(space)}: {cause}; the default "
            f"is {default_encoder(space).__name__}"
        ) from error


def shape_of(encoder: BaseFeaturesExtractor) -> int | tuple[int, ...]:
    """An encoder's output for one observation: the width of a vector, or the shape of a grid."""
    shape: int | tuple[int, ...] = getattr(encoder, "shape", int(encoder.features_dim))
    return shape


def try_encoder(encoder: BaseFeaturesExtractor, space: spaces.Space[Any], prepare: Callable[[Any], Any]) -> None:
    """Encodes two observations with a copy of an encoder of another package.

    Args:
        encoder: the encoder.
        space: of the observations.
        prepare: converts observations to the encoder's input.

    Raises:
        ValueError: the encoder fails, or its output does not have the size that it says.
    """
    kind = type(encoder)
    ours = kind.__module__.startswith(("policies.", "stable_baselines3.")) or isinstance(encoder, QueryEncoder)
    if ours or torch.get_default_device().type == "meta":
        return
    inputs, shape = prepare(any_observation(space, 2)), shape_of(encoder)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            output: Any = copy.deepcopy(encoder).eval()(inputs)
    except Exception as error:
        raise ValueError(
            f"the encoder {kind.__name__} fails on the observations {short(space)}: {type(error).__name__}: "
            f"{' '.join(str(error).split())}"
        ) from error
    expected = (2, *shape) if isinstance(shape, tuple) else (2, shape)
    if not isinstance(output, Tensor) or output.shape != expected or output.dtype != torch.float32:
        found = type(output).__name__
        if isinstance(output, Tensor):
            found = f"{str(output.dtype).removeprefix('torch.')} {tuple(output.shape)}"
        raise ValueError(
            f"the encoder {kind.__name__} returned {found} for 2 observations, expected float32 {expected}, as its "
            "features_dim says"
        )


class EmbeddingEncoder(BaseFeaturesExtractor):
    """Embeds the symbols of a `Discrete` observation, such as the words of a story.

    Embeddings are initialised with variance 1. A one-hot vector has length 1 and changes a recurrent layer little: on
    bAbI's first task a GRU does not learn with one-hot symbols, but learns with embeddings (docs/environments/babi.md).

    Args:
        observation_space: `Discrete`.
        features_dim: width of an embedding.
    """

    def __init__(self, observation_space: spaces.Space, features_dim: int = 64) -> None:  # type: ignore[type-arg]
        super().__init__(observation_space, features_dim)
        # not a linear layer: SB3's orthogonal initialisation would make its values small
        self.vectors = nn.Parameter(torch.randn(width_of(observation_space), features_dim))

    def forward(self, observations: Tensor) -> Tensor:
        return observations.flatten(1) @ self.vectors  # SB3 has made the symbols one-hot


class FlatEncoder(BaseFeaturesExtractor):
    """Concatenated one-hot choices of a `MultiDiscrete` of any shape."""

    def __init__(self, observation_space: spaces.Space) -> None:  # type: ignore[type-arg]
        super().__init__(observation_space, width_of(observation_space))

    def forward(self, observations: Tensor) -> Tensor:
        return observations.flatten(1)


class PictureEncoder(BaseFeaturesExtractor):
    """Encodes images that are too small for `NatureCNN`, from 1×1 up.

    An image of at most 16×16 is read as a grid of symbols, such as MiniGrid's (object, colour, state). Divided by 255,
    their values of 0..10 would all be near 0. Each value of each channel has an embedding (Chevalier-Boisvert et al.
    2019, "BabyAI"). The embeddings of a cell are added to a linear map of its values divided by 255, so that
    photographs of this size work too. Two 3×3 convolutions follow. Larger images go through three 3×3 convolutions, the
    first two with stride 2.

    Args:
        observation_space: uint8, channels first.
        features_dim: width of the output.
    """

    takes_symbols = True

    def __init__(self, observation_space: spaces.Space, features_dim: int = 128) -> None:  # type: ignore[type-arg]
        super().__init__(observation_space, features_dim)
        assert observation_space.shape is not None
        channels, height, width = observation_space.shape
        self.vectors: nn.Parameter | None = None
        if is_symbols(observation_space):
            embedded = 16
            # a parameter, not a layer, as in EmbeddingEncoder; the sum over channels has variance 1
            self.vectors = nn.Parameter(torch.randn(channels, 256, embedded) / math.sqrt(channels))
            self.light = nn.Conv2d(channels, embedded, 1)
            widths, strides = [embedded, 32, 32], [1, 1]
        else:
            widths, strides = [channels, 32, 64, 64], [2, 2, 1]
        layers: list[nn.Module] = []
        for (inputs, outputs), stride in zip(itertools.pairwise(widths), strides, strict=True):
            layers += [nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.ReLU()]
            height, width = -(-height // stride), -(-width // stride)
        self.cnn = nn.Sequential(*layers, nn.Flatten())
        self.linear = nn.Sequential(nn.Linear(widths[-1] * height * width, features_dim), nn.ReLU())

    def forward(self, observations: Tensor) -> Tensor:
        x = observations
        if self.vectors is not None:
            numbers = x.long().unbind(1)
            x = self.light(x / 255)
            for vectors, number in zip(self.vectors, numbers, strict=True):
                x = x + nn.functional.embedding(number, vectors).movedim(-1, 1)
        output: Tensor = self.linear(self.cnn(x))
        return output


class DictEncoder(BaseFeaturesExtractor):
    """Concatenates the encoded entries of a `Dict`, in the order of the space. As SB3's `CombinedExtractor`, but with
    any key names and image sizes.

    Args:
        observation_space: a flat `Dict`.
        cnn_output_dim: output width per image; None: 256 for `NatureCNN` as in SB3, 128 for `PictureEncoder`.
    """

    takes_symbols = True

    def __init__(self, observation_space: spaces.Space, cnn_output_dim: int | None = None) -> None:  # type: ignore[type-arg]
        entries = entries_of(observation_space)
        parts: dict[str, nn.Module] = {}
        total = 0
        for name, entry in entries.items():
            if is_image_space(entry):
                picture = default_encoder(entry)
                width = cnn_output_dim or (256 if picture is NatureCNN else 128)
                parts[name] = picture(entry, features_dim=width)
            else:
                parts[name], width = nn.Flatten(), width_of(entry)
            total += width
        super().__init__(observation_space, total)
        self.names = module_names(parts)
        self.extractors = nn.ModuleDict({self.names[name]: part for name, part in parts.items()})

    def forward(self, observations: TensorDict) -> Tensor:
        return torch.cat([self.extractors[module](observations[name]) for name, module in self.names.items()], 1)


def module_names(names: Iterable[str]) -> dict[str, str]:
    """A valid module name for each key: the key itself if possible."""
    reserved = nn.ModuleDict()  # the names of its attributes are not allowed
    keys = list(names)
    modules: dict[str, str] = {}
    for index, key in enumerate(keys):
        valid = key and "." not in key and not hasattr(reserved, key)
        module = key if valid else f"entry{index}"
        while not valid and (module in keys or module in modules.values()):
            module += "_"
        modules[key] = module
    return modules


class GridEncoder(BaseFeaturesExtractor):
    """Any observation as a grid `[B, C, *spatial]`.

    - A `Box` with channels first is already a grid. In a `Dict` all such entries must have one size and are stacked;
      every number of the other entries becomes a constant plane. The symbols of a small picture (see `PictureEncoder`)
      enter as log(1 + number) / log(256).
    - An observation without a grid is mapped to one by a linear layer.

    Args:
        observation_space: of one environment.
        spatial: `(L,)` or `(H, W)`: the size of a grid made from a flat observation.
        channels: C of a grid made from a flat observation.

    Raises:
        ValueError: two entries are grids of different sizes.
    """

    takes_symbols = True

    def __init__(
        self,
        observation_space: spaces.Space,  # type: ignore[type-arg]
        spatial: tuple[int, ...] = (3, 3),
        channels: int = 8,
    ) -> None:
        entries = entries_of(observation_space)
        grids = {name: entry.shape or () for name, entry in entries.items() if _is_grid(entry, len(spatial))}
        sizes = {shape[1:] for shape in grids.values()}
        if len(sizes) > 1:
            raise ValueError(f"the observation's grids have the sizes {grids}; expected equal sizes")
        flat = sum(width_of(entry) for name, entry in entries.items() if name not in grids)
        spatial = sizes.pop() if grids else tuple(spatial)
        channels = sum(shape[0] for shape in grids.values()) + flat if grids else channels
        super().__init__(observation_space, channels * math.prod(spatial))
        self.shape = (channels, *spatial)
        self.grids = tuple(grids)
        self.flat = tuple(name for name in entries if name not in grids)
        self.symbols = {name for name, entry in entries.items() if is_symbols(entry)}
        self.fold = None if grids else nn.Linear(flat, self.features_dim)

    def forward(self, observations: Tensor | TensorDict) -> Tensor:
        parts = dict(observations) if isinstance(observations, dict) else {"": observations}
        for name in self.symbols:
            parts[name] = parts[name].log1p() / math.log(256)
        flat = [parts[name].flatten(1).float() for name in self.flat]
        if self.fold is not None:
            folded: Tensor = self.fold(torch.cat(flat, 1))
            return folded.view(-1, *self.shape)
        planes = [value.view(*value.shape, *[1] * (len(self.shape) - 1)) for value in flat]
        spatial = self.shape[1:]
        return torch.cat(
            [*(parts[name].float() for name in self.grids), *(plane.expand(-1, -1, *spatial) for plane in planes)], 1
        )


class QueryEncoder(BaseFeaturesExtractor):
    """Separates input and questions: questions are the entries of a `Dict` whose keys begin with `query`.

    Args:
        observation_space: a `Dict` with at least one entry of each kind.
        memory: the memory class; it sets the form of each part.
        memory_kwargs: its arguments.

    Raises:
        ValueError: all entries are questions.
    """

    takes_symbols = True

    def __init__(
        self,
        observation_space: spaces.Space,  # type: ignore[type-arg]
        memory: type[Memory],
        memory_kwargs: dict[str, Any],
    ) -> None:
        entries = entries_of(observation_space)
        self.names = tuple(name for name in entries if name.startswith(QUERY_PREFIX))
        seen = {name: entry for name, entry in entries.items() if name not in self.names}
        if not seen:
            raise ValueError(
                f"the observation has only questions ({', '.join(self.names)}); expected at least one other entry"
            )

        def encoder(space: spaces.Space[Any]) -> BaseFeaturesExtractor:
            encoder_class, arguments = encoder_for(space, memory, memory_kwargs)
            return encoder_class(space, **arguments)

        # spaces.Dict sorts the entries of a dict by name
        source = encoder(next(iter(seen.values())) if len(seen) == 1 else spaces.Dict(seen))
        super().__init__(observation_space, source.features_dim)
        self.only = next(iter(seen)) if len(seen) == 1 else None
        self.seen = tuple(seen)
        self.source = source
        self.modules_of = module_names(self.names)
        self.queries = nn.ModuleDict({self.modules_of[name]: encoder(entries[name]) for name in self.names})
        self.shape = shape_of(source)

    @property
    def query_shapes(self) -> dict[str, int | tuple[int, ...]]:
        """Output shape of each question's encoder."""
        return {name: shape_of(self.queries[module]) for name, module in self.modules_of.items()}  # type: ignore[arg-type]

    def forward(self, observations: TensorDict) -> tuple[Tensor, dict[str, Tensor]]:
        seen = observations[self.only] if self.only else {name: observations[name] for name in self.seen}
        return self.source(seen), {
            name: self.queries[module](observations[name]) for name, module in self.modules_of.items()
        }


def _is_grid(space: spaces.Space[Any], rank: int) -> bool:
    """Whether a space is a `Box` `[C, L]` or `[C, H, W]`."""
    return isinstance(space, spaces.Box) and len(space.shape) == rank + 1


class MLPEncoder(BaseFeaturesExtractor):
    """`default_encoder`, followed by ReLU layers.

    Args:
        observation_space: of one environment.
        layers: width of each layer; the last is the memory's input size.

    Raises:
        ValueError: `layers` is empty.
    """

    takes_symbols = True

    def __init__(self, observation_space: spaces.Space, layers: Sequence[int] = (128,)) -> None:  # type: ignore[type-arg]
        if not layers:
            raise ValueError("layers is empty; expected at least one width, or no MLPEncoder")
        super().__init__(observation_space, features_dim=layers[-1])
        self.input: BaseFeaturesExtractor = default_encoder(observation_space)(observation_space)
        widths = [self.input.features_dim, *layers]
        modules: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            modules += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.layers = nn.Sequential(*modules)

    def forward(self, observations: Tensor | TensorDict) -> Tensor:
        output: Tensor = self.layers(self.input(observations))
        return output


ENCODERS: dict[str, type[BaseFeaturesExtractor]] = {
    encoder.__name__: encoder
    for encoder in (MLPEncoder, NatureCNN, PictureEncoder, FlattenExtractor, DictEncoder, EmbeddingEncoder)
}
"""Encoders that commands and recipes can name."""
