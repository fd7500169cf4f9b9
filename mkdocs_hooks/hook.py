"""What mkdocs calls while it builds the site: the navigation, and the generated blocks of each page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs_hooks.blocks import fill
from mkdocs_hooks.navigation import navigation

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

__all__ = ["on_config", "on_page_markdown"]


def on_config(config: MkDocsConfig) -> None:
    """Make the navigation from the files that are there."""
    config.nav = navigation(Path(config.docs_dir))


def on_page_markdown(markdown: str, /, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put generated text in the place of each `<!-- generated: name -->`."""
    return fill(markdown)
