"""Parts of the documentation site that are generated from the code, and the site's navigation.

mkdocs calls `hook.py`; the other modules import no part of mkdocs, and are tested in tests/unit/test_docs.py.
"""
