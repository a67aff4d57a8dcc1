"""What the site adds to Sphinx: help of the verbs, pages of linked files, and texts that lie outside of docs."""

import html
import os
import re
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import Any

from docutils import nodes
from pygments.lexers import get_lexer_for_filename
from sphinx.addnodes import download_reference
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util.docutils import SphinxDirective
from sphinx.util.logging import getLogger

ROOT = Path(__file__).parents[1]
logger = getLogger(__name__)
RECORDS = {  # pages whose text is a file elsewhere
    "records/cifar10": "results/cifar10/README.md",
    "records/benchmarks": "benchmarks/README.md",
    "records/contributing": "CONTRIBUTING.md",
    "records/changelog": "CHANGELOG.md",
}
LINK = re.compile(r"(!?)\[([^]]*)\]\((?![a-z]+:|#)([^)#\s]+)(#[^)]*)?\)")


def read_page(app: Sphinx, docname: str, source: list[str]) -> None:
    """Take the text of a record from its file, and lead links out of docs to the pages of this site."""
    here = ROOT / "docs" / Path(docname).parent
    home = (ROOT / RECORDS[docname]).parent if docname in RECORDS else here
    text = (ROOT / RECORDS[docname]).read_text() if docname in RECORDS else source[0]
    if reason := app.config.site_not_executed.get(docname):
        logger.info(f"not executed: {docname}, as {reason}")
        note = f"\n```{{note}}\nThis page was built without its outputs: {reason}\n```\n"
        text = re.sub(r"^# .*\n", lambda title: title[0] + note, text, count=1, flags=re.M)
    source[0] = LINK.sub(lambda link: _inside(link, home, here), text)


def _inside(link: re.Match[str], home: Path, here: Path) -> str:
    """A link of a text that lies in ``home``, for the page in ``here``; a link to a folder becomes its text."""
    target = (home / link[3]).resolve()
    path = target.relative_to(ROOT).as_posix()
    record = next((page for page, file in RECORDS.items() if path in (file, str(Path(file).parent))), None)
    if record is None and target.is_dir():
        return link[2]
    target = ROOT / "docs" / f"{record}.md" if record else target
    return f"{link[1]}[{link[2]}]({os.path.relpath(target, here)}{link[4] or ''})"


class FileLinks(SphinxTransform):
    """Links to files of the repository lead to a page with the file, or to the page that is made of it."""

    default_priority = 400

    def apply(self, **_: Any) -> None:
        """Replace each link to a file."""
        docname = self.env.docname
        up = "../" * docname.count("/")
        for node in list(self.document.findall(download_reference)):
            path = (ROOT / "docs" / Path(docname).parent / node["reftarget"]).resolve().relative_to(ROOT).as_posix()
            linked_files(self.env.app).add(path)
            node.replace_self(nodes.reference("", "", *node.children, refuri=f"{up}files/{path}.html", internal=True))


def linked_files(app: Sphinx) -> set[str]:
    """Paths of the files that pages link to, kept from build to build."""
    if not hasattr(app.env, "mapet_files"):
        app.env.mapet_files = set()
    found: set[str] = app.env.mapet_files
    return found


def file_pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """A page with the text of each linked file."""
    for path in sorted(linked_files(app)):
        text = (ROOT / path).read_text()
        name = get_lexer_for_filename(path).aliases[0] if "." in path else "text"
        code = app.builder.highlighter.highlight_block(text, name)  # type: ignore[attr-defined]
        yield f"files/{path}", {"title": path, "body": f"<h1>{html.escape(path)}</h1>{code}"}, "page.html"


class Verbs(SphinxDirective):
    """A section for each verb of the command line, with what ``--help-all`` prints."""

    has_content = False

    def run(self) -> list[nodes.Node]:
        """The sections, as Markdown."""
        from mapet.cli.verbs import GROUPS, SUBVERBS

        lines: list[str] = []
        for group, verbs in GROUPS.items():
            lines += [f"## {group}", ""]
            for verb in verbs:
                for name in [f"tokenizer {sub}" for sub in SUBVERBS] if verb == "tokenizer" else [verb]:
                    lines += [f"### mapet {name}", "", "```text", *help_of(name.split()).splitlines(), "```", ""]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def help_of(words: list[str]) -> str:
    """What a verb's ``--help-all`` prints in 80 columns, without the frame of the table."""
    from mapet.cli import main

    out, before = StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "80"
    try:
        with redirect_stdout(out), suppress(SystemExit):
            main([*words, "--help-all"])
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def reachable(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Let the keyboard scroll what is wider than the page, and give the captions of the navigation a level."""
    if body := context.get("body"):
        body = re.sub(r"<pre(?=[ >])", '<pre tabindex="0"', body)
        context["body"] = body.replace('class="table-wrapper', 'tabindex="0" class="table-wrapper')
    if tree := context.get("furo_navigation_tree"):
        context["furo_navigation_tree"] = tree.replace('role="heading"', 'role="heading" aria-level="2"')


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_config_value("site_not_executed", {}, "env")
    app.add_directive("mapet-verbs", Verbs)
    app.add_transform(FileLinks)
    app.connect("source-read", read_page)
    app.connect("html-collect-pages", file_pages)
    app.connect("html-page-context", reachable, priority=900)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
