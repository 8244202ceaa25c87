"""Make the built site light, without changing how it looks, and weigh its pages.

The theme brings every icon, every rule of Bootstrap and the search index to every page. What no page names goes;
formulas are drawn here, once, not by every reader's browser.
"""

import json
import logging
import re
import subprocess
from html import unescape
from pathlib import Path
from urllib.parse import unquote

PAGE_LIMIT, FIRST_LIMIT = 2_000_000, 500_000  # bytes that a browser loads, uncompressed
DIAGRAM = 700_000  # bytes of Mermaid that one flow chart loads, as measured in Chromium
FORMULA = re.compile(
    r'(<(?:span|div) class="math [^>]*>(?:\s*<span class="eqno">.*?</span>)?)\s*\\([(\[])(.*?)\\[)\]]', re.S
)
SEARCH = re.compile(r'\s*<script src="[./]*(?:_static/searchtools|_static/language_data|searchindex)\.js"></script>')
ICONS = re.compile(r'\s*<script defer src="[^"]*/scripts/fontawesome\.js[^>]*></script>')
MATHJAX = re.compile(
    r'<script>window\.MathJax[^<]*</script>\s*<script[^>]*src="([./]*)_static/vendor/mathjax[^>]*></script>'
)
NAMED = re.compile(r"""(?:url\(|@import (?=["']))["']?(?!data:)([^)"']+)""")  # files, in a style sheet
DRAW = """
require(process.argv[1] + "/es5/node-main.js").init({
  loader: { load: ["input/tex", "output/chtml", "a11y/assistive-mml"] },
  chtml: { fontURL: "vendor/mathjax" },
}).then((MathJax) => {
  const { adaptor } = MathJax.startup;
  const formulas = JSON.parse(require("fs").readFileSync(0, "utf8"));
  const drawn = formulas.map(([display, tex]) => adaptor.outerHTML(MathJax.tex2chtml(tex, { display })));
  console.log(JSON.stringify([drawn, adaptor.textContent(MathJax.chtmlStylesheet())]));
}).catch((error) => { console.error(error.message); process.exit(1); });
"""


def slim(out: Path, mathjax: Path | None) -> None:
    """Remove from the built site what its pages do not need; draw their formulas with the npm package `mathjax`, which
    has to be unpacked there. Without it they stay as TeX."""
    for path in (*out.rglob("fontawesome.js"), *out.rglob("*.map")):
        path.unlink()  # the style sheet draws the same icons
    pages = {path: ICONS.sub("", path.read_text(encoding="utf-8")) for path in out.rglob("*.html")}
    pages = {path: text if path.name == "search.html" else SEARCH.sub("", text) for path, text in pages.items()}
    scripts = [
        path.read_text(encoding="utf-8") for path in (out / "_static").glob("**/*.js") if "vendor" not in path.parts
    ]
    words = set(re.findall(r"[\w-]+", " ".join([*pages.values(), *scripts])))
    for path in out.rglob("*.css"):
        path.write_text(used_rules(path.read_text(encoding="utf-8"), words), encoding="utf-8")
    pages, sheet = draw_formulas(pages, mathjax)
    (out / "_static" / "math.css").write_text(sheet, encoding="utf-8")
    for path, text in pages.items():
        path.write_text(text, encoding="utf-8")
    subset_fonts(out)


def used_rules(css: str, words: set[str]) -> str:
    """The style sheet without the selectors that name a class that is none of the words of pages and scripts.

    >>> used_rules(".a{x:1} .a .b, .c:not(.d){x:2} @media print{.b{x:3}}", {"a", "c"})
    '.a{x:1}.c:not(.d){x:2}@media print{}'
    """
    import tinycss2

    kept = []
    for rule in tinycss2.parse_stylesheet(css, skip_whitespace=True):
        if rule.type == "at-rule" and rule.lower_at_keyword in ("media", "supports") and rule.content is not None:
            inside = used_rules(tinycss2.serialize(rule.content), words)
            kept.append(f"@{rule.at_keyword}{tinycss2.serialize(rule.prelude)}{{{inside}}}")
        elif rule.type == "qualified-rule":
            selectors: list[list] = [[]]
            for part in rule.prelude:
                selectors.append([]) if part == "," else selectors[-1].append(part)
            used = [tinycss2.serialize(one).strip() for one in selectors if _classes(one) <= words]
            kept += [f"{', '.join(used)}{{{tinycss2.serialize(rule.content)}}}"] if used else []
        else:
            kept.append(rule.serialize())
    return "".join(kept)


def _classes(selector: list) -> set[str]:
    """The classes that an element has to have; those inside of `:is()` and `:not()` do not count."""
    return {
        part.value for dot, part in zip(selector, selector[1:], strict=False) if dot == "." and part.type == "ident"
    }


def draw_formulas(pages: dict[Path, str], mathjax: Path | None) -> tuple[dict[Path, str], str]:
    """The pages with drawn formulas instead of TeX and MathJax's script, and the style sheet of the formulas. Raises
    CalledProcessError when Node.js fails, and SystemExit for a formula with a mistake."""
    found = {(mark == "[", unescape(tex)): None for text in pages.values() for _, mark, tex in FORMULA.findall(text)}
    drawn, sheet = [], ""
    if mathjax and found:
        command = ["node", "-e", DRAW, str(mathjax)]
        answer = subprocess.run(command, input=json.dumps(list(found)), check=True, capture_output=True, text=True)
        drawn, sheet = json.loads(answer.stdout)
        if wrong := [tex for (_, tex), html in zip(found, drawn, strict=True) if "merror" in html]:
            raise SystemExit(f"MathJax cannot read {wrong}")
    html = dict(zip(found, drawn, strict=bool(drawn)))

    def replaced(match: re.Match) -> str:
        before, mark, tex = match.groups()
        return before + html[mark == "[", unescape(tex)]

    link = r'<link rel="stylesheet" href="\1_static/math.css">'
    pages = {path: MATHJAX.sub(link, text) for path, text in pages.items()}
    return {path: FORMULA.sub(replaced, text) if html else text for path, text in pages.items()}, sheet


def subset_fonts(out: Path) -> None:
    """Keep in each font the glyphs that a style sheet writes, as `content: "\\f061"` does, and remove unused fonts."""
    from fontTools import subset

    logging.getLogger("fontTools").setLevel(logging.WARNING)
    sheets = " ".join(path.read_text(encoding="utf-8") for path in out.rglob("*.css"))
    texts = "".join(re.findall(r'"([^"]*)"', sheets))
    unicodes = {int(code, 16) for code in re.findall(r"\\([0-9a-fA-F]{1,6})", texts)} | set(map(ord, texts))
    for path in out.rglob("*.woff*"):
        if path.name not in sheets:
            path.unlink()
            continue
        options = subset.Options(flavor=path.suffix[1:], notdef_outline=True)
        font = subset.load_font(str(path), options)
        cut = subset.Subsetter(options)
        cut.populate(unicodes=unicodes)
        cut.subset(font)
        subset.save_font(font, str(path), options)


def weights(out: Path) -> dict[str, int]:
    """Bytes that a browser loads for each page, uncompressed: itself, its scripts, style sheets, the fonts and pictures
    that these name, and its own pictures."""
    found = {}
    for page in out.rglob("*.html"):
        if "_static" in page.parts:  # the theme's templates
            continue
        text = page.read_text(encoding="utf-8")
        links = re.findall(r'<(?:script|img)\b[^>]*\bsrc="([^"]*)"', text)
        links += re.findall(r'<link\b[^>]*\brel="(?:stylesheet|icon|preload)"[^>]*\bhref="([^"]*)"', text)
        links += re.findall(r'<link\b[^>]*\bhref="([^"]*)"[^>]*\brel="(?:stylesheet|icon|preload)"', text)
        waiting, files = [_target(page, link) for link in links], {page.resolve()}
        while waiting:
            file = waiting.pop()
            if file.is_file() and file not in files:
                files.add(file)
                sheet = file.read_text(encoding="utf-8") if file.suffix == ".css" else ""
                waiting += [_target(file, link) for link in NAMED.findall(sheet)]
        size = sum(file.stat().st_size for file in files)
        found[page.relative_to(out).as_posix()] = size + DIAGRAM * ("highlight-mermaid" in text)
    return found


def _target(page: Path, link: str) -> Path:
    """The file that a page or style sheet names."""
    return (page.parent / unquote(unescape(link)).split("?")[0].split("#")[0]).resolve()


def too_heavy(pages: dict[str, int]) -> list[str]:
    """A line for each page above its limit.

    >>> too_heavy({"index.html": 600_000, "a.html": 600_000, "b.html": 2_100_000})
    ['index.html: 600 kB; the limit is 500 kB', 'b.html: 2100 kB; the limit is 2000 kB']
    """
    limits = {page: FIRST_LIMIT if page == "index.html" else PAGE_LIMIT for page in pages}
    return [
        f"{page}: {size / 1000:.0f} kB; the limit is {limits[page] / 1000:.0f} kB"
        for page, size in pages.items()
        if size > limits[page]
    ]
