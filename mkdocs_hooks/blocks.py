"""The blocks that a page can hold: `<!-- generated: settings -->`, or with an argument `adapter-options redis`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from mkdocs_hooks.adapters import adapters
from mkdocs_hooks.api import api, api_others, exports
from mkdocs_hooks.close_codes import close_codes
from mkdocs_hooks.command_line import command_line
from mkdocs_hooks.decisions import decisions
from mkdocs_hooks.errors import error_tree, errors
from mkdocs_hooks.histories import histories
from mkdocs_hooks.layers import layers
from mkdocs_hooks.log_events import log_events, log_lines
from mkdocs_hooks.metrics import metrics
from mkdocs_hooks.options import adapter_options, options, statistics
from mkdocs_hooks.pages import pages
from mkdocs_hooks.patterns import patterns
from mkdocs_hooks.rooms import rooms

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BLOCKS", "MARK", "fill"]

MARK: Final = re.compile(r"^<!-- generated: (\S+)(?: (\S+))? -->$", re.MULTILINE)

BLOCKS: Final[dict[str, Callable[..., str]]] = {
    "adapters": adapters,
    "adapter-options": adapter_options,
    "api": api,
    "api-others": api_others,
    "close-codes": close_codes,
    "command-line": command_line,
    "decisions": decisions,
    "error-tree": error_tree,
    "errors": errors,
    "exports": exports,
    "histories": histories,
    "layers": layers,
    "log-events": log_events,
    "log-lines": log_lines,
    "metrics": metrics,
    "options": options,
    "pages": pages,
    "patterns": patterns,
    "rooms": rooms,
    "statistics": statistics,
}


def fill(markdown: str) -> str:
    """Return a page with generated text in the place of each mark.

    Raises:
        KeyError: A mark names no block.
    """
    return MARK.sub(lambda mark: BLOCKS[mark[1]](*filter(None, [mark[2]])), markdown)
