"""The spectral norm of Kanerva++'s dense layers: right for the weights as they are, whoever changed them."""

from __future__ import annotations

import pytest
import torch

from policies.memories.kanerva.encoder import DeepLinear
from policies.memories.time.scopes import no_host_reads


def test_dense_layers_have_spectral_norm_one() -> None:
    layers = DeepLinear(20, 12, 5).double()
    with torch.no_grad():
        for layer in layers:
            columns = torch.linspace(0.1, 3, layer.in_features).double()
            layer.weight.copy_(torch.randn(layer.out_features, layer.in_features).double() * columns)
    largest = [torch.linalg.matrix_norm(layer.weight, 2) for layer in layers]
    torch.testing.assert_close(layers.sigmas(), largest, rtol=5e-3, atol=0)
    for layer, sigma in zip(layers, layers.sigmas(), strict=True):
        (gradient,) = torch.autograd.grad(sigma, layer.weight)
        u, _, v = torch.linalg.svd(layer.weight)
        assert ((gradient * torch.outer(u[:, 0], v[0])).sum() - 1).abs() < 0.02  # ∂σ/∂W = u vᵀ
    x, bias = torch.randn(50, 20).double(), layers(torch.zeros(20).double())
    assert ((layers(x) - bias).norm(dim=1) <= 1.03 * x.norm(dim=1)).all()
    zero = DeepLinear(3, 4, 2)
    with torch.no_grad():
        for layer in zero:
            layer.weight.zero_()
    assert zero(torch.ones(3)).isfinite().all()


@pytest.mark.parametrize("change", ["fused Adam", "Adam", "in place", "data", "loaded"])
def test_the_spectral_norm_is_that_of_the_weights_whoever_changed_them(change: str) -> None:
    """Fused Adam changes weights without telling `tensor._version`."""
    layers = DeepLinear(20, 12, 5)
    x = torch.randn(7, 20)
    optimizer = torch.optim.Adam(layers.parameters(), 0.05, fused=change == "fused Adam")
    for _ in range(3):
        with torch.no_grad():
            before = layers(x)  # as while acting
        if "Adam" in change:
            optimizer.zero_grad()
            layers(x).square().sum().neg().backward()
            optimizer.step()
        elif change == "loaded":
            layers.load_state_dict({name: torch.randn_like(value) for name, value in layers.state_dict().items()})
        else:
            weight = layers[1].weight.data if change == "data" else layers[1].weight
            with torch.no_grad():
                weight.add_(torch.randn_like(weight))
        fresh = DeepLinear(20, 12, 5)
        fresh.load_state_dict(layers.state_dict())
        assert torch.equal(layers(x), fresh(x))
        assert not torch.allclose(layers(x), before)
        norms = [torch.linalg.matrix_norm(layer.weight, 2) for layer in layers]
        torch.testing.assert_close(layers.sigmas(), norms, rtol=0.02, atol=0)


def test_where_nothing_may_be_read_the_norm_is_computed_each_time() -> None:
    """As within a CUDA graph, whose replays run none of the Python."""
    layers, x = DeepLinear(6, 4, 3), torch.randn(2, 6)
    outside = layers(x)
    layers._known = None
    with no_host_reads():
        assert torch.equal(layers(x), outside)
    assert layers._known is None
