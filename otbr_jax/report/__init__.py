"""What people look at: the summary table, the plots and the HTML page; needs the extra `report`."""

from otbr_jax.extras import needed

# Before anything is computed that a page would then be missing for.
for _package in ("matplotlib", "jinja2", "markupsafe", "tabulate", "dm_pix"):
    needed(_package, what="a report")
