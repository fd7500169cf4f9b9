"""The Centrifugal client protocol: official SDKs of seven languages as clients of the same channels."""
