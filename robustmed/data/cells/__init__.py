"""Blood smears with boxes (BCCD), and their phantom."""
