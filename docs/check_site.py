"""What is wrong with a built site: dead links, pictures without a text, files that another machine must send."""

from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADS = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}


class Page(HTMLParser):
    "Anchors, links, loaded files and pictures of one page."

    def __init__(self, text):
        super().__init__()
        self.anchors, self.links, self.loads, self.bare = set(), [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.anchors |= {given[k] for k in ("id", "name") if given.get(k)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if given.get(LOADS.get(tag)) and given.get("rel") not in ("canonical", "next", "prev", "search", "index"):
            self.loads.append(given[LOADS[tag]])
        if tag == "img" and not says_something(given.get("alt"), given.get("src", "")):
            self.bare.append(given.get("src", "")[:60])


def says_something(alt, src):
    "Whether a picture's text is more than its file's name, which Sphinx writes where there is none."
    return bool(alt and alt.strip()) and Path(urlsplit(src).path).name not in alt


def elsewhere(link):
    "Whether a link leaves the site."
    return bool(urlsplit(link).scheme or urlsplit(link).netloc)


def target(page, link):
    "(file, anchor) that a link inside the site leads to."
    parts = urlsplit(link)
    return (page.parent / unquote(parts.path)).resolve() if parts.path else page, unquote(parts.fragment)


def is_broken(page, link, pages):
    "Whether a link leads to no file, or to an anchor that its page lacks."
    if elsewhere(link):
        return False
    path, anchor = target(page, link)
    if path.is_dir():
        path = path / "index.html"
    if path not in pages:
        return not path.is_file()
    return bool(anchor) and anchor not in pages[path].anchors


def faults(site):
    "A line per page and kind of fault."
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in Path(site).rglob("*.html")}
    found = defaultdict(set)
    for path, page in pages.items():
        name = path.relative_to(Path(site).resolve())
        found[name, "leads nowhere"] |= {link for link in page.links if is_broken(path, link, pages)}
        found[name, "is loaded from elsewhere"] |= {s for s in page.loads if elsewhere(s) and not s.startswith("data:")}
        found[name, "is not there"] |= {s for s in page.loads if is_broken(path, s, pages)}
        found[name, "is a picture without a text"] |= set(page.bare)
    return [f"{name}: {each} {what}" for (name, what), some in sorted(found.items(), key=str) for each in sorted(some)]
