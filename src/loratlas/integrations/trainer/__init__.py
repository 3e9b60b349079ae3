"""Placement that moves inside of transformers' `Trainer` and of TRL's trainers that are made of it."""
