"""The API's description for people: plain HTML made of the OpenAPI document, without scripts. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

_STYLE = (
    "body{font:16px system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "code{background:#8882;padding:.1em .3em}table{border-collapse:collapse}"
    "td,th{border:1px solid #8886;padding:.2em .5em;text-align:left}"
)


def page(document: Mapping[str, Any]) -> str:
    """`document`: as at /openapi.json."""
    info = document["info"]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{escape(info['title'])}</title><style>{_STYLE}</style>",
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info.get('description', ''))}</p>",
        "<p>The same for programs: <a href=/openapi.json>openapi.json</a>. Send a token as "
        "<code>Authorization: Bearer TOKEN</code>. An error is <code>{&quot;error&quot;: sentence}</code>.</p>",
    ]
    for path, methods in document["paths"].items():
        for method, described in methods.items():
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2>")
            parts.append(f"<p>{escape(described.get('description', ''))}</p>")
            parts.append(_parameters(described))
    parts.append("<h1>Values</h1>")
    for name, schema in document.get("components", {}).get("schemas", {}).items():
        if name not in ("HTTPValidationError", "ValidationError"):
            parts.append(_schema(name, schema))
    return "".join(parts)


def _parameters(described: Mapping[str, Any]) -> str:
    rows = [(one["name"], one["in"], _kind(one["schema"])) for one in described.get("parameters", ())]
    body = described.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    if body is not None:
        rows.append(("", "body", _kind(body)))
    if not rows:
        return ""
    cells = ("<tr>" + "".join(f"<td>{escape(cell)}" for cell in row) for row in rows)
    return "<table>" + "".join(cells) + "</table>"


def _schema(name: str, schema: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(field)}</code><td>{escape(_kind(one))}<td>{escape(one.get('description', ''))}"
        for field, one in schema.get("properties", {}).items()
    )
    return f"<h2>{escape(name)}</h2><p>{escape(schema.get('description', ''))}</p><table>{rows}</table>"


def _kind(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(map(_kind, schema["anyOf"]))
    if "enum" in schema:
        return " or ".join(map(str, schema["enum"]))
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return str(schema.get("type", "anything"))
