"""A Django shop in one file: what its views publish reaches the pages that are connected to sockets.py.

Run it in this folder, beside sockets.py:

    BACKPLANE_URL=ipc://shop uvicorn sockets:app
    BACKPLANE_URL=ipc://shop gunicorn shop:application --bind 127.0.0.1:8001 --workers 2 --preload

Connect to ws://127.0.0.1:8000/orders, then:

    curl -X POST http://127.0.0.1:8001/orders -d item=tea
"""

import os
from functools import partial
from typing import ClassVar

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.db import connection, models, transaction
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.views.decorators.http import require_POST

from backplane.sync import SyncBackplane

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ.get("ORDERS", "orders.sqlite3")}},
    ROOT_URLCONF=__name__,
)
django.setup()
backplane = SyncBackplane()  # opens nothing before its first publish, so `--preload` is safe


class Order(models.Model):
    """What a customer wants."""

    item: "models.CharField[str, str]" = models.CharField(max_length=100)
    objects: ClassVar[models.Manager["Order"]] = models.Manager()

    class Meta:
        """Django asks for it, as this is no installed application."""

        app_label = "shop"


@require_POST
@transaction.atomic
def place_order(request: HttpRequest) -> HttpResponse:
    """Store an order, and publish it once it is stored: after a rollback nothing is published."""
    order = Order.objects.create(item=request.POST.get("item", ""))
    transaction.on_commit(partial(backplane.publish, "orders", {"id": order.pk, "item": order.item}))
    if not order.item:
        transaction.set_rollback(True)
        return HttpResponse("an order needs an item", status=422)
    return HttpResponse(status=202)


urlpatterns = [path("orders", place_order)]
if "shop_order" not in connection.introspection.table_names():
    with connection.schema_editor() as schema:
        schema.create_model(Order)
connection.close()  # a connection must not be shared by the workers that are forked
application = get_wsgi_application()
