"""The page's files: all there, from nowhere else, and under a strict policy."""

import re
from html.parser import HTMLParser

import pytest
from serving import serving

from mamba_ssm.book import Shelf
from mamba_ssm.server.room import PAGE

SCRIPTS = sorted(PAGE.glob("*.js"))


@pytest.fixture(scope="module")
def http(engine, tmp_path_factory):
    with Shelf.open(tmp_path_factory.mktemp("shelf"), engine) as shelf, serving(engine, shelf=shelf) as served:
        yield served.http


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.inline = [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag in ("script", "link", "img"):
            self.found.append(attributes.get("src") or attributes["href"])
        self.inline += [name for name in attributes if name.startswith("on") or name == "style"]


def test_all_that_the_page_names_is_served_with_its_kind(http):
    page = http.get("/")
    assert page.headers["content-type"].startswith("text/html")
    links = Links()
    links.feed(page.text)
    assert links.inline == []
    named = set(links.found)
    for script in SCRIPTS:
        named |= {f"room/{name}" for name in re.findall(r'from "\./([^"]+)"', script.read_text())}
    assert named == {f"room/{path.name}" for path in PAGE.iterdir() if path.name != "index.html"}
    kinds = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    for name in named:
        part = http.get(f"/{name}")
        assert part.status_code == 200
        assert part.headers["content-type"].startswith(kinds[name[name.rindex(".") :]])
        assert part.headers["x-content-type-options"] == "nosniff"


def test_the_policy_lets_nothing_in_but_the_page_itself(http):
    policy = http.get("/").headers["content-security-policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert rules["frame-ancestors"] == rules["base-uri"] == "'none'"
    assert rules["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in policy


def test_no_file_of_the_page_loads_from_elsewhere_or_parses_html():
    for path in PAGE.iterdir():
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"(https?:)?//[a-z0-9-]+\.[a-z]|@import|url\(", text), path.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|srcdoc", text), path.name


def test_other_files_are_not_served(http):
    for name in ("../app.py", "..%2fapp.py", "%2e%2e/app.py", "nothing.js", "room.py"):
        assert http.get(f"/room/{name}").status_code == 404
