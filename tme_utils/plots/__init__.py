"""Drawing only: arrays in, figures out. One style, one palette, one orientation for the whole report.

A notebook calls ``plots.use_style()`` once; ``plots.live`` is imported by itself, as it needs the widgets.
"""

from tme_utils.plots.latent import effect_maps, holes, latent_scatter, overlap_matrices, poster
from tme_utils.plots.latent import plane_maps, scatter_row, strips, values_along
from tme_utils.plots.shared import COLOURS, draw_manifold, draw_tiles, film_strips, image_rows
from tme_utils.plots.shared import progress_panel, save_figure, save_gif, tile, to_png, training_curves, use_style
from tme_utils.plots.study import ARCHITECTURE_COLOURS, Line, bound_by_samples, by_dimension
from tme_utils.plots.study import picture_grids, rate_distortion, sorted_divergences
from tme_utils.plots.theory import bounds, gradient_estimators, kl_shape, posteriors, vae_schema
