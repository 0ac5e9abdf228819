"""What every op shares: one description of a call, one declaration of an op, its derivatives, and who serves it."""
