"""3x3 egocentric mapping and localisation."""
