"""The founding study's page: advice, figures and prose, all from committed results (`tools/claims.py` writes them)."""
