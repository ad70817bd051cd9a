"""Tasks on random and real graphs (the DNC's)."""
