"""Messages of others onto channels: copy this folder into your application, and keep the sources that you need."""
