"""Drawing only: arrays in, figures out. One style, one palette, one orientation for the whole report.

A notebook calls ``plots.use_style()`` once; ``plots.live`` is imported by itself, as it needs the widgets.
"""

from tme_utils.plots.latent import effect_maps as effect_maps
from tme_utils.plots.latent import holes as holes
from tme_utils.plots.latent import norms_along as norms_along
from tme_utils.plots.latent import overlap_matrices as overlap_matrices
from tme_utils.plots.latent import poster as poster
from tme_utils.plots.latent import scatter_row as scatter_row
from tme_utils.plots.latent import strips as strips
from tme_utils.plots.latent import values_along as values_along
from tme_utils.plots.latent import walks as walks
from tme_utils.plots.shared import COLOURS as COLOURS
from tme_utils.plots.shared import STYLE as STYLE
from tme_utils.plots.shared import draw_manifold as draw_manifold
from tme_utils.plots.shared import draw_tiles as draw_tiles
from tme_utils.plots.shared import film_strips as film_strips
from tme_utils.plots.shared import image_rows as image_rows
from tme_utils.plots.shared import latent_scatter as latent_scatter
from tme_utils.plots.shared import progress_panel as progress_panel
from tme_utils.plots.shared import save_figure as save_figure
from tme_utils.plots.shared import save_gif as save_gif
from tme_utils.plots.shared import tile as tile
from tme_utils.plots.shared import to_png as to_png
from tme_utils.plots.shared import training_curves as training_curves
from tme_utils.plots.shared import use_style as use_style
from tme_utils.plots.study import ARCHITECTURE_COLOURS as ARCHITECTURE_COLOURS
from tme_utils.plots.study import Line as Line
from tme_utils.plots.study import axis_power as axis_power
from tme_utils.plots.study import bound_by_samples as bound_by_samples
from tme_utils.plots.study import by_dimension as by_dimension
from tme_utils.plots.study import difference_histogram as difference_histogram
from tme_utils.plots.study import picture_grids as picture_grids
from tme_utils.plots.study import rate_distortion as rate_distortion
from tme_utils.plots.study import seed_dots as seed_dots
from tme_utils.plots.study import sorted_divergences as sorted_divergences
from tme_utils.plots.study import spectra as spectra
from tme_utils.plots.theory import bounds as bounds
from tme_utils.plots.theory import gradient_estimators as gradient_estimators
from tme_utils.plots.theory import kl_shape as kl_shape
from tme_utils.plots.theory import monte_carlo_error as monte_carlo_error
from tme_utils.plots.theory import posteriors as posteriors
from tme_utils.plots.theory import price_of_information as price_of_information
from tme_utils.plots.theory import region_levels as region_levels
from tme_utils.plots.theory import vae_schema as vae_schema
