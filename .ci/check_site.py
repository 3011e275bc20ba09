"""Checks the site as it is built: that every link within it leads somewhere, those of
included files too, which the build does not follow; and that every public name is there.

python .ci/check_site.py SITE
"""

import ast
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, file: Path):
        super().__init__()
        self.links, self.anchors = set[str](), {""}
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.add(value)
            elif name == "id" and value:
                self.anchors.add(value)


site = Path(sys.argv[1]).resolve()
pages = {file: Page(file) for file in site.rglob("*.html") if file.name != "404.html"}
problems = list[str]()
for file, page in pages.items():
    for link in page.links:
        url = urlsplit(link)
        if url.scheme or url.netloc:
            continue
        target = (file.parent / unquote(url.path)).resolve() if url.path else file
        target = target / "index.html" if target.is_dir() else target
        anchors = pages[target].anchors if target in pages else {unquote(url.fragment)}
        if not target.is_file() or unquote(url.fragment) not in anchors:
            problems.append(f"{file.relative_to(site)} links to {link}")
tree = ast.parse(Path("eqx_bart/__init__.py").read_text())
public = next(x.value for x in tree.body if "__all__" in ast.unparse(x).split(" ")[:1])
anchors = set[str]().union(*(page.anchors for page in pages.values()))
documented = {anchor.split(".")[1] for anchor in anchors if anchor.startswith("eqx_bart.")}
missing = set(ast.literal_eval(public)) - documented
problems += [f"no page has eqx_bart.{name}" for name in sorted(missing)]
sys.exit("\n".join(problems) or None)
