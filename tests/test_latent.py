"""Constructions in latent space, against torch.distributions, geometry, and bars drawn by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.testing import assert_close

from tme_utils import latent
from tme_utils.latent import (
    Measured,
    aggregated_log_prob,
    lerp,
    log_ratio_to_prior,
    measure_shape,
    nearest,
    prior_grid,
    shares_explained,
    slerp,
    traversals,
)

F64 = torch.float64
T = torch.linspace(0, 1, 11, dtype=F64)


def normal(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize(("n", "dtype"), [(1, None), (5, None), (20, F64)])
def test_cells_of_the_grid_hold_equal_prior_mass_and_the_first_index_runs_over_z2(n, dtype):
    grid = prior_grid(n, dtype)
    centres = ((torch.arange(n, dtype=dtype or torch.float32) + 0.5) / n).expand(n, n)
    assert_close(Normal(0.0, 1.0).cdf(grid), torch.stack([centres, centres.T], dim=-1))


def test_a_traversal_changes_one_coordinate_and_no_other():
    z, values = normal(3, 5), torch.tensor([-2.0, 0.0, 2.0], dtype=F64)
    codes = traversals(z, torch.tensor([4, 0]), values)
    for i, dim in enumerate([4, 0]):
        expected = z[:, None].repeat(1, 3, 1)
        expected[:, :, dim] = values
        assert torch.equal(codes[:, i], expected)
    assert torch.equal(z, normal(3, 5))  # the base is left alone


@pytest.mark.parametrize("path", [lerp, slerp])
def test_a_path_joins_its_ends_and_is_straight_between_codes_in_one_direction(path):
    start, end = normal(4, 20), normal(4, 20, seed=1)
    assert_close(path(start, end, T)[[0, -1]], torch.stack([start, end]))
    assert_close(path(start, end, T), path(end, start, 1 - T))
    assert_close(path(start, end, T)[:, 2], path(start[2], end[2], T))  # each pair by itself
    assert_close(path(start, start, T), start.expand(11, 4, 20))
    assert_close(path(start, 3 * start, T), (1 + 2 * T)[:, None, None] * start)


@given(st.integers(0, 1000), st.sampled_from([2, 3, 20]))
def test_the_spherical_path_turns_evenly_and_its_norm_changes_evenly(seed, d):
    start, end = normal(2, d, seed=seed)
    codes = slerp(start, end, T)
    assert_close(codes.norm(dim=1), (1 - T) * start.norm() + T * end.norm())
    angles = torch.acos(torch.cosine_similarity(codes[1:], codes[:-1]).clamp(-1, 1))
    total = torch.acos(torch.cosine_similarity(start, end, dim=0))
    assert_close(angles, (total / 10).expand(10), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_nearly_opposite_codes_do_not_go_astray_and_opposite_ones_have_no_arc(dtype):
    start, end = torch.tensor([3.0, 0.0], dtype=dtype), torch.tensor([-1.0, 0.01], dtype=dtype)
    assert slerp(start, end, T.to(dtype)).norm(dim=1).max() <= 3 + 1e-6
    for seed in range(20):
        z = normal(2, 3, seed=seed).to(dtype)
        with pytest.raises(ValueError, match="opposite directions"):  # one pair is enough
            slerp(z, torch.stack([z[1], -2 * z[1]]), T.to(dtype))


@pytest.mark.parametrize(("block", "k"), [(1, 1), (50, 5), (10_000, 20)])
def test_the_nearest_are_those_of_a_full_sort(block, k, monkeypatch):
    monkeypatch.setattr(latent, "BLOCK", block)
    known = normal(20, 3, seed=1)
    z = torch.cat([known, normal(30, 3)])  # a known code is its own nearest
    assert torch.equal(nearest(z, known, k), (z[:, None] - known).square().sum(-1).argsort(dim=1)[:, :k])


@pytest.mark.parametrize("block", [1, 100, 10_000])
@pytest.mark.parametrize(("dtype", "narrow"), [(F64, 0), (F64, -11), (torch.float32, -11)])
def test_the_aggregated_posterior_is_the_mixture_however_narrow_and_far(block, dtype, narrow, monkeypatch):
    monkeypatch.setattr(latent, "BLOCK", block)
    mu, logvar, z = (
        part.to(dtype) for part in (normal(30, 3), normal(30, 3, seed=1) + narrow, normal(4, 5, 3, seed=2))
    )
    parts = Independent(Normal(mu.double(), torch.exp(0.5 * logvar.double())), 1)
    log_q = MixtureSameFamily(Categorical(torch.ones(30, dtype=F64)), parts).log_prob(z.double())
    assert_close(aggregated_log_prob(z, mu, logvar), log_q.to(dtype))
    log_prior = Independent(Normal(torch.zeros(3, dtype=F64), 1.0), 1).log_prob(z.double())
    assert_close(log_ratio_to_prior(z, mu, logvar), (log_q - log_prior).to(dtype))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lerp(normal(4, 3), normal(3), T), r"one shape, got \(4, 3\) and \(3,\)"),
        (lambda: slerp(normal(4, 3), normal(1, 3), T), r"one shape, got \(4, 3\) and \(1, 3\)"),
        (lambda: slerp(normal(3), torch.zeros(3, dtype=F64), T), "norm 0"),
        (lambda: aggregated_log_prob(normal(5, 1), normal(4, 2), normal(4, 2)), r"z .* ends in \(2,\), got \(5, 1\)"),
        (lambda: measure_shape(torch.ones(2, 28, 28)), r"ends in \(1, 28, 28\), got \(2, 28, 28\)"),
        (lambda: measure_shape(torch.eye(28).expand(2, 1, 28, 28) * T[:2, None, None, None]), "without ink"),
        (lambda: traversals(normal(2, 3), torch.tensor([0, 3]), T), r"0 to 2, got \[0, 3\]"),
        (lambda: traversals(normal(2, 3), torch.tensor([-1]), T), r"0 to 2, got \[-1\]"),
        (lambda: nearest(normal(5, 2), normal(40, 2), 41), "between 1 and the 40 known codes, got 41"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def bar(width, shear, at):  # 16 high, with soft edges, leaning to the right
    axis = torch.arange(28, dtype=F64) - 13.5
    v, u = torch.meshgrid(-axis - at[1], axis - at[0], indexing="ij")
    return (torch.minimum(width / 2 - (u - shear * v).abs(), 8 - v.abs()) + 0.5).clamp(0, 1)[None]


@pytest.mark.parametrize("width", [3, 8])
@pytest.mark.parametrize("slant", [-25, 0, 15])
@pytest.mark.parametrize("at", [(0, 0), (3, -2)])
def test_bars_of_known_size_are_measured_and_mirrored_bars_lean_the_other_way(width, slant, at):
    image = bar(width, math.tan(math.radians(slant)), at)
    shape, mirrored, pale = (measure_shape(x.expand(2, 3, 1, 28, 28)) for x in (image, image.flip(-1), 0.5 * image))
    area, outline = 16 * width, 2 * width + 2 * 16 / math.cos(math.radians(slant))
    expected = torch.tensor([area, 2 * area / outline, slant, width, 16, 0]).expand(2, 3, 6)  # in the order of Shape
    tolerance = torch.tensor([0.02 * area, 0.1 * area / outline, 1, 0.4, 0.4, 1e-9])
    assert ((torch.stack(shape, dim=-1) - expected).abs() < tolerance).all()
    assert_close(mirrored, shape._replace(slant=-shape.slant))
    assert_close(pale, shape._replace(ink=shape.ink / 2))


@pytest.mark.parametrize("dims", [(), (-1,), (-2,), (-1, -2)])
def test_ink_at_the_border_has_an_outline_there_too_and_one_pixel_is_one_wide_and_high(dims):
    square, dot = (torch.nn.functional.pad(torch.ones(1, n, n, dtype=F64), (28 - n, 0, 28 - n, 0)) for n in (8, 1))
    shape = measure_shape(square.flip(dims))
    assert shape.thickness.item() == pytest.approx(2 * 64 / (4 * 8), rel=0.05)
    assert_close(shape.thickness, measure_shape(square.roll((-9, -9), (1, 2))).thickness)
    ink, _, *others = measure_shape(dot.flip(dims))
    assert [ink, *others] == pytest.approx([1, 0, 1, 1, 0])  # slant, width, height and loops


LOOPS = {
    "a ring": (1, ["....", ".##.", "#..#", ".##."]),  # ink is joined at corners
    "open to the border": (0, ["#..#", "#..#", ".##."]),
    "an eight": (2, ["###", "#.#", "###", "#.#", "###"]),
    "two regions that touch at a corner": (2, ["####", "#.##", "##.#", "####"]),
    "a bent region": (1, ["#####", "#...#", "#.###", "#.###", "#####"]),
    "a wide region": (1, ["#####", "#...#", "#...#", "#####"]),
}


@pytest.mark.parametrize(("n_loops", "drawing"), LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize("darkest", [1.0, 0.2])
def test_loops_are_counted_wherever_they_are_and_however_pale(n_loops, drawing, darkest):
    ink = torch.tensor([[darkest if pixel == "#" else 0.4 * darkest for pixel in row] for row in drawing], dtype=F64)
    height, width = ink.shape
    images = torch.zeros(3, 1, 28, 28, dtype=F64)
    images[0, 0, :height, :width] = images[1, 0, 28 - height :, 28 - width :] = images[
        2, 0, 5 : 5 + height, 9 : 9 + width
    ] = ink
    assert measure_shape(images).loops.tolist() == [n_loops] * 3


def test_a_line_a_plane_and_the_place_explain_what_they_can():
    def measured(n, seed):
        z, y = normal(n, 2, seed=seed), torch.arange(n) % 2
        values = torch.stack(
            [3 * z[:, 0] - 1, z[:, 0] + z[:, 1], z[:, 0] ** 2, 10.0 * y + z[:, 1], normal(n, seed=9)], 1
        )
        return Measured(z, values, y)

    known, test = measured(4000, seed=1), measured(1000, seed=2)
    shares = {name: share.tolist() for name, share in shares_explained(known, test).items()}
    assert list(shares) == ["z1", "z2", "linear", "place", "linear in class", "place in class"]
    assert shares["z1"] == pytest.approx([1, 0.5, 0, 0, 0], abs=0.05)
    assert shares["z2"] == pytest.approx([0, 0.5, 0, 1 / 26, 0], abs=0.05)
    assert shares["linear"] == pytest.approx([1, 1, 0, 1 / 26, 0], abs=0.05)
    assert shares["place"] == pytest.approx([1, 1, 1, 1 / 26, 0], abs=0.1)
    assert shares["linear in class"] == pytest.approx([1, 1, 0, 1, 0], abs=0.05)
    assert shares["place in class"] == pytest.approx([1, 1, 1, 1, 0], abs=0.1)


def test_the_share_of_a_line_is_that_of_the_textbook():
    z, values = normal(50, 1), normal(50, 1, seed=1) + normal(50, 1)
    both = Measured(z, values, torch.zeros(50))
    correlation = torch.corrcoef(torch.cat([z, values], dim=1).T)[0, 1]
    assert_close(shares_explained(both, both)["linear"], correlation.square()[None])
