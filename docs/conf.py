"""Settings of Sphinx for the documentation site; build_site.py gives the folders."""

import sys
from pathlib import Path

import mathjax

sys.path.insert(0, str(Path(__file__).parent))
from pages import slug  # noqa: E402

project = "Perceptio"
author = "the Perceptio companion"
html_title = "Perceptio, runnable"
copyright = "Apache-2.0"

extensions = ["myst_nb"]
exclude_patterns = []
html_theme = "furo"
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-dark"
html_static_path = [
    str(Path(__file__).parent / "static"),
    str(Path(mathjax.__file__).parent / "static/mathjax/es5/tex-svg-full.js"),
]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
mathjax_path = "tex-svg-full.js"  # one file that holds its fonts: nothing is loaded from elsewhere

nb_execution_mode = "off"  # build_site.py runs what is quick
nb_output_stderr = "remove"
nb_merge_streams = True
nb_code_prompt_show, nb_code_prompt_hide = "Show {type}", "Hide {type}"
nb_ipywidgets_js = {}  # would be loaded from elsewhere
nb_render_markdown_format = "myst"
myst_enable_extensions = ["amsmath", "attrs_block", "attrs_inline", "colon_fence", "dollarmath"]
myst_heading_anchors = 6
myst_heading_slug_func = slug
suppress_warnings = ["config.cache", "mystnb.unknown_mime_type"]
