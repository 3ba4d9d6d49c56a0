"""Constructions in latent space, against torch.distributions, geometry, and bars drawn by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.testing import assert_close

from tme_utils import latent
from tme_utils.latent import aggregated_log_prob, lerp, measure_shape, nearest, prior_grid, slerp, traversals

F64 = torch.float64
T = torch.linspace(0, 1, 11, dtype=F64)


def normal(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=F64)


# --- grid


@pytest.mark.parametrize("n", [1, 2, 5, 20])
def test_cells_hold_equal_prior_mass(n):
    grid = prior_grid(n)
    assert grid.shape == (n, n, 2)
    centres = (torch.arange(n) + 0.5) / n
    assert_close(Normal(0.0, 1.0).cdf(grid[0, :, 0]), centres)
    assert_close(Normal(0.0, 1.0).cdf(grid[:, 0, 1]), centres)


def test_the_first_index_runs_over_z2_and_the_second_over_z1():
    grid = prior_grid(4)
    z1, z2 = grid[..., 0], grid[..., 1]
    assert torch.equal(z1, z1[:1].expand(4, 4))
    assert torch.equal(z2, z2[:, :1].expand(4, 4))
    assert (z1.diff(dim=1) > 0).all()
    assert (z2.diff(dim=0) > 0).all()


def test_the_grid_is_symmetric_about_the_origin():
    grid = prior_grid(5)
    assert_close(grid, -grid.flip(0, 1))
    assert_close(grid[2, 2], torch.zeros(2))


def test_an_average_over_the_grid_is_an_average_over_the_prior():
    grid = prior_grid(400, F64)
    assert grid.dtype == F64
    assert grid[..., 0].square().mean().item() == pytest.approx(1, abs=0.01)
    assert torch.cos(grid.sum(-1)).mean().item() == pytest.approx(math.exp(-1), abs=1e-3)  # E cos(N(0, 2))


@pytest.mark.parametrize("n", [0, -3, 2.5])
def test_a_grid_of_no_row_or_of_half_a_row_is_refused(n):
    with pytest.raises(ValueError, match=f"n must be an integer >= 1, got {n}"):
        prior_grid(n)


# --- traversals


def test_a_traversal_changes_one_coordinate_and_no_other():
    z, dims, values = normal(3, 5), torch.tensor([4, 1]), torch.tensor([-2.0, 0.0, 2.0], dtype=F64)
    codes = traversals(z, dims, values)
    assert codes.shape == (3, 2, 3, 5)
    for i, dim in enumerate(dims.tolist()):
        assert torch.equal(codes[:, i, :, dim], values.expand(3, 3))
        others = [j for j in range(5) if j != dim]
        assert torch.equal(codes[:, i][..., others], z[:, None, others].expand(3, 3, 4))


def test_a_traversal_leaves_its_base_alone():
    z = normal(2, 3)
    before = z.clone()
    traversals(z, torch.arange(3), torch.zeros(4, dtype=F64))
    assert torch.equal(z, before)


@pytest.mark.parametrize("dims", [[3], [-1], [0, 7]])
def test_a_coordinate_that_does_not_exist_is_named(dims):
    with pytest.raises(ValueError, match=r"dims must lie in 0 to 2, got"):
        traversals(normal(2, 3), torch.tensor(dims), T)


def test_a_base_of_a_wrong_shape_is_named():
    with pytest.raises(ValueError, match=r"z must be \(N, latent_dim\), got \(3,\)"):
        traversals(normal(3), torch.tensor([0]), T)


# --- paths


@pytest.mark.parametrize("path", [lerp, slerp])
def test_a_path_joins_its_ends(path):
    start, end = normal(4, 20), normal(4, 20, seed=1)
    codes = path(start, end, T)
    assert codes.shape == (11, 4, 20)
    assert_close(codes[0], start)
    assert_close(codes[-1], end)
    assert_close(codes, path(end, start, 1 - T))


def test_the_straight_path_is_straight_and_even():
    steps = lerp(normal(20), normal(20, seed=1), T).diff(dim=0)
    assert_close(steps, steps[:1].expand(10, 20))


@given(st.integers(0, 1000), st.sampled_from([2, 3, 20]))
def test_the_spherical_path_turns_evenly_and_its_norm_changes_evenly(seed, d):
    start, end = normal(2, d, seed=seed)
    codes = slerp(start, end, T)
    assert_close(codes.norm(dim=1), lerp(start.norm()[None], end.norm()[None], T).flatten())
    directions = codes / codes.norm(dim=1, keepdim=True)
    angles = torch.acos((directions[1:] * directions[:-1]).sum(1).clamp(-1, 1))
    total = torch.acos(torch.cosine_similarity(start, end, dim=0))
    assert_close(angles, (total / 10).expand(10), rtol=1e-3, atol=1e-6)


def test_a_quarter_of_a_circle():
    codes = slerp(torch.tensor([1.0, 0.0], dtype=F64), torch.tensor([0.0, 1.0], dtype=F64), T)
    assert_close(codes, torch.stack([torch.cos(T * math.pi / 2), torch.sin(T * math.pi / 2)], dim=1))


def test_nearly_opposite_codes_of_different_norms_do_not_go_astray():
    start, end = torch.tensor([3.0, 0.0], dtype=F64), torch.tensor([-1.0, 0.01], dtype=F64)
    assert slerp(start, end, T).norm(dim=1).max() <= 3 + 1e-9


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_codes_in_one_direction_are_joined_by_the_straight_path(factor):
    z = normal(20)
    assert_close(slerp(z, factor * z, T), lerp(z, factor * z, T))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_codes_without_an_arc_are_refused(dtype):
    for seed in range(20):
        z = normal(3, seed=seed).to(dtype)
        with pytest.raises(ValueError, match="opposite directions"):
            slerp(z, -2 * z, T.to(dtype))
    with pytest.raises(ValueError, match="norm 0"):
        slerp(z, torch.zeros_like(z), T.to(dtype))


# --- neighbours


@pytest.mark.parametrize("block", [1, 50, 10_000])
def test_the_nearest_are_those_of_a_full_sort(block, monkeypatch):
    monkeypatch.setattr(latent, "BLOCK", block)
    z, known = normal(30, 3), normal(20, 3, seed=1)
    expected = (z[:, None] - known).square().sum(-1).argsort(dim=1)[:, :5]
    assert torch.equal(nearest(z, known, 5), expected)


def test_a_known_code_is_its_own_nearest():
    z = normal(40, 2)
    assert torch.equal(nearest(z, z, 3)[:, 0], torch.arange(40))


@pytest.mark.parametrize("k", [0, 41])
def test_a_wrong_number_of_neighbours_is_named(k):
    with pytest.raises(ValueError, match=f"between 1 and the 40 known codes, got {k}"):
        nearest(normal(5, 2), normal(40, 2), k)


# --- aggregated posterior


@pytest.mark.parametrize("block", [1, 100, 10_000])
def test_the_aggregated_posterior_is_the_mixture(block, monkeypatch):
    monkeypatch.setattr(latent, "BLOCK", block)
    mu, logvar, z = normal(30, 3), normal(30, 3, seed=1), normal(4, 5, 3, seed=2)
    parts = Independent(Normal(mu, torch.exp(0.5 * logvar)), 1)
    mixture = MixtureSameFamily(Categorical(torch.ones(30, dtype=F64)), parts)
    assert_close(aggregated_log_prob(z, mu, logvar), mixture.log_prob(z))


def test_one_posterior_equal_to_the_prior_is_the_prior():
    z = normal(7, 2)
    zeros = torch.zeros(1, 2, dtype=F64)
    assert_close(aggregated_log_prob(z, zeros, zeros), Normal(0.0, 1.0).log_prob(z).sum(-1))


@pytest.mark.parametrize(("z", "mu"), [((5, 3), (4, 2)), ((5, 2), (0, 2)), ((5, 2), (2,))])
def test_the_aggregated_posterior_names_wrong_shapes(z, mu):
    with pytest.raises(ValueError, match=r"need z \(\.\.\., d\) and mu \(N, d\)"):
        aggregated_log_prob(torch.zeros(z), torch.zeros(mu), torch.zeros(mu))


# --- shape


def bar(width, height, slant=0.0, at=(0.0, 0.0)):
    """A bar with soft edges, (1, 28, 28), leaning ``slant`` degrees to the right."""
    v, u = torch.meshgrid(13.5 - torch.arange(28, dtype=F64), torch.arange(28, dtype=F64) - 13.5, indexing="ij")
    u, v = u - at[0], v - at[1]
    shear = math.tan(math.radians(slant))
    inside = torch.minimum(width / 2 - (u - shear * v).abs(), height / 2 - v.abs())
    return (inside + 0.5).clamp(0, 1)[None]


def check_shape(measure, width, height, slant, at):
    shape = measure(bar(width, height, slant, at))
    area = width * height
    outline = 2 * width + 2 * height / math.cos(math.radians(slant))
    assert shape.ink.item() == pytest.approx(area, rel=0.02)
    assert shape.thickness.item() == pytest.approx(2 * area / outline, rel=0.05)
    assert shape.slant.item() == pytest.approx(slant, abs=1)
    assert shape.width.item() == pytest.approx(width, abs=0.4)
    assert shape.height.item() == pytest.approx(height, abs=0.4)


@pytest.mark.parametrize("width", [3, 5, 8])
@pytest.mark.parametrize("slant", [-25, 0, 15])
@pytest.mark.parametrize("at", [(0, 0), (3, -2)])
def test_bars_of_known_size_are_measured(width, slant, at):
    check_shape(measure_shape, width, 16, slant, at)


@pytest.mark.parametrize(
    "buggy",
    [
        pytest.param(lambda x: measure_shape(x.flip(-1)), id="mirrored"),
        pytest.param(lambda x: measure_shape(x.flip(-2)), id="upside down"),
        pytest.param(lambda x: measure_shape(x.transpose(-1, -2)), id="turned"),
        pytest.param(lambda x: measure_shape(1 - x), id="paper for ink"),
        pytest.param(lambda x: measure_shape(x)._replace(thickness=measure_shape(x).thickness / 2), id="area/outline"),
    ],
)
def test_the_check_of_the_ruler_rejects(buggy):
    with pytest.raises(AssertionError):
        check_shape(buggy, 3, 16, 15, (0, 0))


def test_half_the_ink_halves_nothing_but_the_ink():
    full, half = measure_shape(bar(4, 14, 10)), measure_shape(0.5 * bar(4, 14, 10))
    assert_close(half.ink, 0.5 * full.ink)
    for name in ("thickness", "slant", "width", "height"):
        assert_close(getattr(half, name), getattr(full, name))


def test_every_leading_shape_is_kept():
    images = torch.stack([bar(3, 12), bar(5, 12), bar(3, 18)]).reshape(3, 1, 1, 28, 28).expand(3, 2, 1, 28, 28)
    shape = measure_shape(images)
    assert all(value.shape == (3, 2) for value in shape)
    assert_close(shape.width[1, 0], measure_shape(bar(5, 12)).width)


def test_one_pixel_of_ink_is_one_pixel_wide_and_high():
    image = torch.zeros(1, 28, 28)
    image[0, 14, 14] = 1
    shape = measure_shape(image)
    assert [shape.ink.item(), shape.width.item(), shape.height.item(), shape.slant.item()] == pytest.approx(
        [1, 1, 1, 0]
    )


@pytest.mark.parametrize("dims", [(), (-1,), (-2,), (-1, -2)])
def test_ink_at_the_border_has_an_outline_there_too(dims):
    corner = torch.zeros(1, 28, 28, dtype=F64)
    corner[0, -8:, -8:] = 1
    inside = corner.roll((-9, -9), dims=(-1, -2))
    assert_close(measure_shape(corner.flip(dims)).thickness, measure_shape(inside).thickness)
    assert measure_shape(corner).thickness.item() == pytest.approx(2 * 64 / (4 * 8), rel=0.05)


def test_a_mirror_image_leans_the_other_way_and_is_otherwise_equal():
    left, right = measure_shape(bar(4, 14, -20)), measure_shape(bar(4, 14, -20).flip(-1))
    assert_close(left, right._replace(slant=-right.slant))


def test_images_without_ink_or_of_a_wrong_shape_are_refused():
    with pytest.raises(ValueError, match="without ink"):
        measure_shape(torch.zeros(2, 1, 28, 28))
    with pytest.raises(ValueError, match=r"must end in \(1, 28, 28\), got \(2, 28, 28\)"):
        measure_shape(torch.ones(2, 28, 28))
