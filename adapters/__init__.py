"""One module or package per adapter, each the only one to import the client of its broker.

The folder stands at the top level of the repository and is imported as `backplane.adapters`, never as `adapters`: under
two names every class would exist twice, and `except` and `isinstance` would miss.
"""

if __name__ != "backplane.adapters":
    raise ImportError(f"import backplane.adapters, not {__name__}: under two names every class would exist twice")
