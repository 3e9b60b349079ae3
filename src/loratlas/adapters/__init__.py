"""PEFT adapters: put on at exactly the named sites, handed over in the format every tool reads."""
