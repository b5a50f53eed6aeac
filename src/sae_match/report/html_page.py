"""The frame of a page that is one file and opens offline: its own style and script, and a policy that bars the rest."""

from __future__ import annotations

from importlib.resources import files

from .html_table import content_hash, escape


def html_page(title: str, assets: str, body: str, *, images: bool = False) -> str:
    """A whole page as HTML text.

    The content security policy admits the page's own script and style by their hashes, with `images` also images inside
    the file, and nothing else.

    Args:
        title: heading; escaped here.
        assets: stem of the package's .css and .js files.
        body: HTML below the heading, with everything from outside escaped.
    """
    package = files("sae_match.report")
    script, style = (package.joinpath(f"{assets}.{kind}").read_text("utf-8") for kind in ("js", "css"))
    policy = (
        f"default-src 'none'; script-src '{content_hash(script)}'; style-src '{content_hash(style)}'; "
        f"{'img-src data:; ' if images else ''}base-uri 'none'; form-action 'none'"
    )
    return _PAGE.format(policy=policy, title=escape(title), style=style, body=body, script=script)


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{body}
<script>{script}</script>
</body>
</html>
"""
