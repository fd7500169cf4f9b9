"""The endpoint that official Centrifugal SDKs connect to: their client protocol over the channels of a `Backplane`."""
