"""What the fused layers cost beside plain ones and beside the reference: see ``cpu_layers``."""
