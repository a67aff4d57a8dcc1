"""Settings of the documentation site, which ``make docs`` builds into build/docs."""

import os
import sys
import tomllib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from tutorial_inputs import lacking

project = "mapet"
author = "the authors of mapet"
version = release = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["version"]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "site_extension"]
exclude_patterns = ["_build"]
suppress_warnings = ["misc.highlighting_failure", "config.cache"]

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

os.environ["PYTHONWARNINGS"] = "ignore:IProgress"  # tqdm draws no bar here
nb_execution_mode = "auto"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_execution_in_temp = True
site_not_executed = lacking()  # page: reason
nb_execution_excludepatterns = [f"{page}.md" for page in site_not_executed]

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_use_rtype = False
nitpicky = True
nitpick_ignore_regex = [  # other projects' names, and types that are settings of one verb or results with few fields
    (r"py:.*", r"(?!mapet\b).*"),
    (r"py:class", r"mapet"),  # a default value
    (r"py:.*", r"mapet\.(api|build|config|data|engine|evals|method|tokenizers|utils|viz)\..*"),
]

html_theme = "furo"
html_title = f"mapet {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}
copybutton_exclude = ".linenos, .gp, .go"
