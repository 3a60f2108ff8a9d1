"""A whole appliance that is promoted, swapped and brought back, under load on every store, while things go wrong."""
