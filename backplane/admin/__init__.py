"""The live page: what the workers of a deployment do at this moment, in a browser: `admin_routes`."""

from backplane.admin.access import AuthorizeVisitor, Right, local_only
from backplane.admin.routes import admin_routes

__all__ = ["AuthorizeVisitor", "Right", "admin_routes", "local_only"]
