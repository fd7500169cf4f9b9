"""`backplane.centrifugal.endpoint`: its options, and how a client is accepted (protocol, section 1)."""
