import pytest
import torch
from torch.distributions import Normal
from torch.testing import assert_close

from tme_utils.latent import prior_grid


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


@pytest.mark.parametrize("n", [0, -3])
def test_an_empty_grid_is_refused(n):
    with pytest.raises(ValueError, match=f"n must be at least 1, got {n}"):
        prior_grid(n)
