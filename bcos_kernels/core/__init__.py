"""What every op shares: how a call is described, how an op is declared, its derivatives, and who serves a call."""
