"""The endpoint that official Centrifugal SDKs connect to: their client protocol over the channels of a `Backplane`."""

from backplane.centrifugal.codes import CommandError
from backplane.centrifugal.endpoint import Accepted, Centrifugal, ConnectRequest
from backplane.centrifugal.tokens import ConnectClaims, JwtTokens, SubscribeClaims, Tokens

__all__ = [
    "Accepted",
    "Centrifugal",
    "CommandError",
    "ConnectClaims",
    "ConnectRequest",
    "JwtTokens",
    "SubscribeClaims",
    "Tokens",
]
