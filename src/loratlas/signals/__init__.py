"""Signals: measurements that say how much adaptation would pay at each site, before anything is trained."""
