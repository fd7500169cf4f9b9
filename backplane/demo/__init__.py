"""`backplane demo`: a chat on several workers, to see one room span them and to copy from.

`app` is the application, `page.html` its page, `history` what is kept of its rooms, `server` the Gunicorn that runs it.
Needs the extra `cli`.
"""
