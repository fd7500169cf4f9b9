"""Why a client does not receive a channel: what each worker states of both, and what follows from that. No I/O."""
